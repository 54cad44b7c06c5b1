// When the supervisor starts a program again. Pure: time is an argument.
//
// The first restart is immediate; then 100 ms, doubling to 10 s; a run of 30 s starts over.
#pragma once

#include <algorithm>
#include <chrono>

namespace mesh::cli {

class RestartPolicy {
 public:
  using Duration = std::chrono::milliseconds;
  static constexpr Duration kFirst{100}, kLongest{10'000}, kForgiven{30'000};

  // How long to wait, now that the program ended after having run for `ran`.
  Duration ended_after(Duration ran) {
    if (ran >= kForgiven) next_ = Duration{0};
    Duration wait = next_;
    next_ = wait == Duration{0} ? kFirst : std::min(kLongest, wait * 2);
    return wait;
  }

 private:
  Duration next_{0};
};

}  // namespace mesh::cli
