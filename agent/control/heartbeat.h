// Heartbeat: meshd's look at the time that the proxy stamps into the kernel's map.
// A resource (the mapped page); one thread at a time.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::control {

class Heartbeat {
 public:
  Heartbeat() = default;
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  // map: of one u64, CLOCK_MONOTONIC nanoseconds (datapath::Datapath::heartbeat_map()).
  Result<> open(const UniqueFd& map);
  bool is_open() const { return page_ != nullptr; }
  // As the kernel judges it: stamped, and no further from now than `limit`.
  bool is_fresh(std::chrono::steady_clock::time_point now, std::chrono::nanoseconds limit) const;

 private:
  const volatile std::uint64_t* page_ = nullptr;
};

}  // namespace mesh::control
