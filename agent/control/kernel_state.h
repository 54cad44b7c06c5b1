// The kernel's state wanted for a snapshot: which services exist and how, which destinations belong
// together, and the verdict of every enrolled client. Asks for numbers, and keeps what it computed;
// touches nothing else.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "config/snapshot.h"
#include "control/kernel_policy.h"
#include "control/numbers.h"
#include "datapath/datapath.h"

namespace mesh::control {

struct KernelInput {
  const config::Snapshot& snapshot;  // what is wanted: its policies hold at once
  const config::Snapshot* acked;     // what the proxy has; null: nothing is known
  const datapath::State& current;    // what the kernel has
  const std::vector<Client>& clients;
};

// A proxied service is pointed at the proxy once the proxy has it (or where it is already pointed
// there: a meshd that restarted knows no acknowledgement); until then the address keeps what it
// has, or refuses when that is nothing. Everything else, all removals among it, holds at once: the
// proxy is told afterwards.
//
// Keeps what it computed: what nothing changed that it depends on is not computed again. One thread
// at a time.
class KernelStates {
 public:
  explicit KernelStates(Numbers& numbers) : numbers_(numbers), policy_(numbers) {}

  datapath::State compute(const KernelInput& input);

  // Whether something that had a number is gone since this was asked last.
  bool take_ended();
  // Whether a number (of any space but Space::kWorkload) is in use.
  bool uses(Space space, std::uint32_t number) const;

 private:
  struct ClientInput {  // what of a client routes and verdicts depend on
    datapath::WorkloadId id = 0;
    bool bypasses_proxy = false;
    config::WorkloadPtr workload;
    friend bool operator==(const ClientInput&, const ClientInput&) = default;
  };
  // Of a service: what it was computed from, and what was computed.
  struct Known {
    config::ServicePtr service;
    std::vector<config::ClusterPtr> clusters;  // by port
    bool is_final = false;                     // it depends on nothing else that may change
    std::vector<SocketAddress> tcp, udp;
    std::vector<std::pair<datapath::WorkloadId, datapath::ServiceId>> refusals;
    std::vector<datapath::ServiceId> ids;
  };
  using AllKnown = std::map<std::string, Known, std::less<>>;  // by host

  // What services depend on, as it was at the last compute(): what it shares with what is now
  // (base/shared_map.h) is not looked at.
  struct Seen {
    decltype(config::Snapshot::services) services;
    config::Clusters clusters;
    decltype(config::Snapshot::service_by_address) acked;
    decltype(datapath::State::services) current;
    decltype(config::Snapshot::tcp_routes) tcp_routes;
    decltype(config::Snapshot::client_hosts) client_hosts;
    config::HostTable mesh_hosts;
  };
  using Hosts = std::set<std::string, std::less<>>;

  bool is_ground_new(const KernelInput& input);
  bool are_routes_new(const config::Snapshot& snapshot);
  Hosts touched_hosts(const KernelInput& input);
  void follow_services(const KernelInput& input);
  bool is_current(const KernelInput& input, const Known& known,
                  const config::ServicePtr& service) const;
  void forget(Known& known);
  void compute_service(const KernelInput& input, Known& known);
  void add_port(const KernelInput& input, const config::ServicePort& port, Known& known);
  void add_udp_port(const KernelInput& input, std::uint16_t port, Known& known);
  datapath::ServiceId id_of(std::uint16_t port, Known& known);

  Numbers& numbers_;
  KernelPolicy policy_;
  std::uint64_t ground_ = 0;
  std::vector<ClientInput> clients_;
  AllKnown known_;
  Seen seen_;
  Hosts unsettled_;                         // whose Known is not final
  Hosts slow_;                              // that have a port without the fast path
  std::map<datapath::ServiceId, int> ids_;  // how many ports have it: UDP and TCP may share one
  decltype(datapath::State::services) services_, udp_services_;
  decltype(datapath::State::refusals) refusals_;
  bool ended_ = false;
};
// The same, from nothing.
datapath::State kernel_state(const KernelInput& input, Numbers& numbers);

// A short text for each client that changes when the set of destinations that it is denied does.
std::map<datapath::WorkloadId, std::string> denials(const datapath::State& state);

// config::display_name() and rule of a policy's number; nullopt: not a number of ours.
struct PolicyRule {
  std::string policy;
  int rule = -1;
};
std::map<std::uint32_t, PolicyRule> policy_rules(const Numbers& numbers);

}  // namespace mesh::control
