// FakeDatapath: datapath::Datapath in memory. Keeps the state applied, as the kernel's maps would,
// and fails where a test says so: whole calls at the n-th operation, single workloads always.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "datapath/datapath.h"

namespace mesh::test {

class FakeDatapath final : public datapath::Datapath {
 public:
  // What tests set.
  datapath::State state;  // also what adopt() returns: fill it to play a restart
  datapath::Counters counts;
  std::vector<datapath::Flow> flows;  // the next take_flows() has them
  std::vector<datapath::Flow> open;
  std::vector<datapath::UdpFlow> udp;
  std::map<datapath::WorkloadId, Error> refuse;  // cannot be enrolled; 0: what did not fit
  std::map<datapath::WorkloadId, std::string> not_covered;
  std::map<datapath::WorkloadId, std::vector<datapath::Difference>> differences;
  std::vector<datapath::Difference> mesh_differences;
  datapath::Misfits left_out;
  std::map<datapath::WorkloadId, Error> lost_canaries;
  int fail_at = 0;  // the n-th call fails (1: the next); 0: none
  bool cannot_end = false;
  std::string why_no_fast_path, fast_path_stopped;
  std::optional<Result<>> fast_path_outcome;  // of the test that runs
  // What tests look at.
  bool fast_path = false;
  int fast_path_tests = 0;
  int looks_for_settled = 0;
  std::string mesh_cgroup;
  int applies = 0;
  int looks_for_forbidden = 0, looks_for_removed = 0;
  std::set<SocketAddress> former_services;    // at the last look for removed ones
  std::vector<datapath::WorkloadId> audited;  // one after the other
  int mesh_audits = 0;
  std::set<datapath::WorkloadId> canaries;  // on their way
  std::vector<datapath::State> history;     // every state applied, in order

  Result<> attach_mesh(const std::string& cgroup_path) override {
    MESH_TRY(operation());
    mesh_cgroup = cgroup_path;
    return success();
  }
  Result<std::map<datapath::WorkloadId, Error>> apply(const datapath::State& wanted) override {
    MESH_TRY(operation());
    ++applies;
    state = wanted;
    history.push_back(wanted);
    std::map<datapath::WorkloadId, Error> problems;
    for (const auto& [id, error] : refuse)
      if (id == 0 || wanted.workloads.contains(id)) problems.emplace(id, error);
    return problems;
  }
  const datapath::Misfits& misfits() const override { return left_out; }
  const std::map<datapath::WorkloadId, std::string>& uncovered() const override {
    return not_covered;
  }
  Result<std::vector<datapath::Difference>> audit(
      const datapath::EnrolledWorkload& workload) override {
    MESH_TRY(operation());
    audited.push_back(workload.id);
    return differences[workload.id];
  }
  Result<std::vector<datapath::Difference>> audit_mesh() override {
    MESH_TRY(operation());
    ++mesh_audits;
    return mesh_differences;
  }
  Result<> send_canary(const datapath::EnrolledWorkload& workload,
                       std::chrono::steady_clock::time_point) override {
    MESH_TRY(operation());
    canaries.insert(workload.id);
    return success();
  }
  std::map<datapath::WorkloadId, Result<>> take_canaries(
      std::chrono::steady_clock::time_point) override {
    std::map<datapath::WorkloadId, Result<>> outcomes;
    for (const datapath::WorkloadId id : std::exchange(canaries, {})) {
      const auto lost = lost_canaries.find(id);
      outcomes.emplace(id, lost == lost_canaries.end() ? success() : Result<>(lost->second));
    }
    return outcomes;
  }
  Result<> end_forbidden(const datapath::State&) override {
    MESH_TRY(operation());
    ++looks_for_forbidden;
    if (cannot_end) return Error{Errc::internal, "a connection that does not end"};
    return success();
  }
  Result<> end_removed(const datapath::State& wanted) override {
    MESH_TRY(operation());
    former_services = wanted.former_services;
    ++looks_for_removed;
    return success();
  }
  Result<std::vector<datapath::Flow>> take_flows() override {
    MESH_TRY(operation());
    return std::exchange(flows, {});
  }
  Result<std::vector<datapath::Flow>> open_flows(const datapath::State&) override {
    MESH_TRY(operation());
    return open;
  }
  Result<std::vector<datapath::UdpFlow>> udp_flows() override {
    MESH_TRY(operation());
    return udp;
  }
  Result<datapath::Counters> counters() override {
    MESH_TRY(operation());
    return counts;
  }
  Result<> forget_policies_but(const std::set<std::uint32_t>& numbers) override {
    MESH_TRY(operation());
    for (auto* counted :
         {&counts.denied_by_policy, &counts.allowed_by_policy, &counts.audited_by_policy})
      std::erase_if(*counted, [&](const auto& item) { return !numbers.contains(item.first); });
    return success();
  }
  Result<datapath::State> adopt() override {
    MESH_TRY(operation());
    return state;
  }
  Result<> switch_fast_path(bool on) override {
    MESH_TRY(operation());
    if (on && !why_no_fast_path.empty()) return Error{Errc::unavailable, why_no_fast_path};
    fast_path = on;
    return success();
  }
  const std::string& why_fast_path_stopped() const override { return fast_path_stopped; }
  Result<> start_fast_path_test(std::chrono::steady_clock::time_point) override {
    MESH_TRY(operation());
    if (!why_no_fast_path.empty()) return Error{Errc::unavailable, why_no_fast_path};
    ++fast_path_tests;
    return success();
  }
  std::optional<Result<>> take_fast_path_test(std::chrono::steady_clock::time_point) override {
    return std::exchange(fast_path_outcome, std::nullopt);
  }
  Result<> let_settled_join(const datapath::State&) override {
    ++looks_for_settled;
    return success();
  }
  // A file in memory with one u64, which can be mapped as the kernel's map can.
  Result<UniqueFd> heartbeat_map() override {
    MESH_TRY(operation());
    if (!heartbeat_) heartbeat_.reset(::memfd_create("heartbeat", MFD_CLOEXEC));
    UniqueFd fd(::fcntl(heartbeat_.get(), F_DUPFD_CLOEXEC, 3));
    if (!fd || ::ftruncate(fd.get(), 8) != 0) return errno_error(errno, "make a heartbeat");
    return fd;
  }
  void stamp_heartbeat(std::chrono::steady_clock::time_point now) {
    const std::int64_t stamped = std::chrono::nanoseconds(now.time_since_epoch()).count();
    (void)!::pwrite(heartbeat_.get(), &stamped, sizeof stamped, 0);
  }

 private:
  Result<> operation() {
    if (fail_at == 0 || --fail_at > 0) return success();
    return Error{Errc::internal, "the fake datapath was told to fail"};
  }

  UniqueFd heartbeat_;
};

}  // namespace mesh::test
