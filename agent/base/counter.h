// Counter: a number that one thread changes and any thread reads.
//
// Because there is one writer, an update is a plain load and store (no locked instruction); readers
// see a recent value, never a torn one. Several writers would lose updates: use std::atomic there.
#pragma once

#include <atomic>
#include <cstdint>

namespace mesh {

class Counter {
 public:
  void add(std::uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  void subtract(std::uint64_t n = 1) { add(0 - n); }  // for gauges
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

}  // namespace mesh
