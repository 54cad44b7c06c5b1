// Workloads: who is enrolled, who is about to be, and why somebody is not.
//
// A local workload (a WorkloadEntry with netns and cgroup) is held by meshhold, entered into the
// kernel, told to the proxy, and then enrolled; it ends when its WorkloadEntry goes or its cgroup
// is empty. Until then it stays in the kernel, also while meshhold cannot hold it again: its policy
// holds, and where no listener is left its HTTP services refuse. What failed is tried again, ever
// more seldom. Ids are never given twice. The node's gateway is workload 1. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "config/snapshot.h"
#include "control/kernel_state.h"
#include "control/numbers.h"
#include "control/peer.h"
#include "feed/hold.h"

namespace mesh::control {

// Opens a namespace, looks at a cgroup: the seam to /proc, cgroupfs and the interfaces.
class Machine {
 public:
  virtual ~Machine() = default;
  // Of this machine's interfaces that are up, but loopback and link-local ones; sorted.
  virtual std::vector<IpAddress> node_addresses() = 0;
  virtual Result<UniqueFd> open_netns(const std::string& path) = 0;
  // Of all interfaces of a network namespace.
  virtual Result<std::vector<IpAddress>> addresses_in(int netns) = 0;
  // The id of the group and those of the groups above it, in this order, as far as it is mounted;
  // none: there is no such group. Refuses what is no control group, or one whose programs would run
  // for the mesh itself.
  virtual Result<std::vector<std::uint64_t>> look_at_cgroup(const std::string& cgroup) = 0;
  // nullopt: there is no such cgroup.
  virtual std::optional<bool> is_populated(const std::string& cgroup) = 0;
  virtual std::vector<std::string> sandbox_groups() = 0;  // all there are
  virtual Result<> remove_cgroup(const std::string& cgroup) = 0;
  // Tells when cgroup.events changes (also when it goes); watched until unwatch().
  virtual void watch_cgroup(const std::string& cgroup) = 0;
  virtual void unwatch_cgroup(const std::string& cgroup) = 0;
};

struct Enrolment {
  enum class State : std::uint8_t { kWaiting, kHeld, kFailed };  // for meshhold; by it; see reason
  config::WorkloadPtr workload;
  std::uint32_t id = 0;
  State state = State::kWaiting;
  std::string reason;
  UniqueFd netns;
  std::string netns_error;                // why there is none
  std::vector<std::uint64_t> cgroup_ids;  // Machine::look_at_cgroup(); its own while it has some
  std::uint64_t cookie = 0;               // known once it is or was held
  std::uint8_t families = 0;
  int dns_error = 0;    // errno of the listeners for DNS, where there are none
  feed::Fds listeners;  // duplicates, for the next meshhold
  std::string kernel_error;
  bool was_populated = false;
  int looks_at_empty = 0;
  int failures = 0;         // in a row
  int rounds_to_retry = 0;  // of retry_failed()

  bool is_in_kernel() const { return cookie != 0; }
};

class Workloads {
 public:
  using Wanted = decltype(config::Snapshot::workloads);

  Workloads(Machine& machine, Peer& hold, Numbers& numbers);

  // After a restart: what the kernel still has, by id.
  void adopt(const std::map<datapath::WorkloadId, datapath::EnrolledWorkload>& kernel);
  // The workloads that shall be enrolled. Returns true when somebody ended or changed.
  bool reconcile(const Wanted& wanted, const config::WorkloadPtr& gateway);

  // meshhold. true: the set that the kernel and the proxy are told changed.
  void on_hold_connected();
  Result<bool> on_hold_message(const feed::HoldMessage& message, feed::Fds fds);

  // Those whose cgroup is empty or gone.
  std::vector<config::ObjectName> find_ended();
  bool end(const config::ObjectName& name, const std::string& reason);  // false: it had ended
  void retry_failed();                                                  // every few seconds

  void set_kernel_errors(const std::map<datapath::WorkloadId, Error>& errors);
  std::vector<Client> clients() const;  // for the kernel
  const std::map<config::ObjectName, Enrolment>& all() const { return enrolments_; }

 private:
  void begin(Enrolment& enrolment);
  Result<> take_cgroup(Enrolment& enrolment);
  Result<> open_netns(Enrolment& enrolment);
  std::string refusal_text(const Enrolment& enrolment, const feed::HoldMessage& message) const;
  void start_waiting(Enrolment& enrolment);
  void ask_to_hold(const Enrolment& enrolment);
  void fail(Enrolment& enrolment, std::string reason);
  void let_go(Enrolment& enrolment);
  std::string number_name(const config::Workload& workload) const;

  Machine& machine_;
  Peer& hold_;
  Numbers& numbers_;
  std::map<datapath::WorkloadId, datapath::EnrolledWorkload> adopted_;
  std::map<config::ObjectName, Enrolment> enrolments_;
  Wanted reconciled_;                                        // last
  std::map<config::ObjectName, config::WorkloadPtr> local_;  // those of it that are to be enrolled
};

}  // namespace mesh::control
