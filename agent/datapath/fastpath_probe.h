// FastPathProbe: is the fast path right on this kernel? A child in a network namespace and a
// control group of its own sends data through a copy of the programs (fastpath_trial.h), before
// anybody else's goes there. Whoever asks is never blocked: a child that hangs is killed after
// kPatience. Needs root. One thread.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "base/result.h"
#include "datapath/fastpath.h"

namespace mesh::datapath {

class FastPathProbe {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kPatience{30};

  // The control group is made as `cgroup`, and removed afterwards; one that a killed process left
  // is used again. Errc::unavailable: not on this kernel.
  static Result<FastPathProbe> start(const std::string& cgroup, Clock::time_point now);
  FastPathProbe(FastPathProbe&& other) noexcept
      : copy_(std::move(other.copy_)),
        cgroup_(std::exchange(other.cgroup_, {})),
        pidfd_(std::move(other.pidfd_)),
        started_(other.started_) {}
  FastPathProbe& operator=(FastPathProbe&&) = delete;
  ~FastPathProbe();  // what is there still is killed

  // Nothing: it is not through yet. Errc::refused: the fast path is wrong here, and where.
  std::optional<Result<>> outcome(Clock::time_point now);
  int pidfd() const { return pidfd_.get(); }  // readable when it is through

 private:
  FastPathProbe() = default;
  Result<> attach(const std::string& cgroup);
  void end();

  FastPathCopy copy_;
  std::string cgroup_;
  UniqueFd pidfd_;
  Clock::time_point started_;
};

// As `meshctl check` asks while no meshd runs: waits until it is through.
Result<> try_fast_path(const std::string& cgroup);

}  // namespace mesh::datapath
