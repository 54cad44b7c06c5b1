// Throttle: of what may happen thousands of times a second, the log is told at once, and then once
// a second how often. The total is for a metric. A value; time is an argument.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

namespace mesh::proxy {

class Throttle {
 public:
  using Clock = std::chrono::steady_clock;

  // It happened. How often since it was told last: tell it now; nullopt: it was told just now.
  std::optional<std::uint64_t> add(Clock::time_point now) {
    ++total_;
    if (told_at_ && now - *told_at_ < std::chrono::seconds(1)) return std::nullopt;
    told_at_ = now;
    return total_ - std::exchange(told_, total_);
  }
  std::uint64_t total() const { return total_; }

 private:
  std::uint64_t total_ = 0, told_ = 0;
  std::optional<Clock::time_point> told_at_;
};

}  // namespace mesh::proxy
