// Canary: a connect from inside a workload, which proves that its connects are captured. A child is
// cloned into the workload's control group, enters its network namespace and connects, by IPv4 and
// by IPv6, to the address that its hooks answer in a way of their own (UM_CANARY in bpf/shared.h);
// without them the kernel refuses it at once: it is a loopback address, so nothing ever leaves.
// Needs root.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::datapath {

class Canary {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kPatience{2};

  // `netns` is borrowed for the call. Returns at once.
  static Result<Canary> send(int netns, const std::string& cgroup, Clock::time_point now);
  Canary(Canary&&) = default;
  Canary& operator=(Canary&&) = delete;
  ~Canary();  // it is killed and reaped

  // Nothing: it is on its way. `refused`: it was not captured; another error: it could not be sent,
  // or did not come back in time.
  std::optional<Result<>> outcome(Clock::time_point now);

 private:
  Canary(UniqueFd pidfd, Clock::time_point sent) : pidfd_(std::move(pidfd)), sent_(sent) {}

  UniqueFd pidfd_;
  Clock::time_point sent_;
};

}  // namespace mesh::datapath
