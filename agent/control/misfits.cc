#include "control/misfits.h"

#include <algorithm>
#include <set>

#include "config/policy_parts.h"
#include "control/address_blocks.h"

namespace mesh::control {
namespace {

using datapath::ClassId;

class Naming {
 public:
  Naming(const datapath::Misfits& misfits, const datapath::State& state,
         const config::Snapshot& snapshot, const std::map<std::uint32_t, PolicyRule>& rules)
      : misfits_(misfits), state_(state), snapshot_(snapshot), rules_(rules) {}

  // What refuses most comes first: a name keeps what was said first.
  NamedMisfits names() {
    name_sets();
    name_blocks();
    name_peers();
    name_refusals();
    name_services(misfits_.services, "");
    name_services(misfits_.udp_services, "/udp");
    return std::move(named_);
  }

 private:
  void name_policy(std::uint32_t number, const char* what) {
    if (const auto rule = rules_.find(number); rule != rules_.end())
      named_.policies.emplace(rule->second.policy, what);
  }
  void name_policies(const datapath::VerdictEntry& verdict, const char* what) {
    name_policy(verdict.policy, what);
    name_policy(verdict.audit, what);
  }

  void name_sets() {
    for (const datapath::SetId id : misfits_.sets)
      if (const auto set = state_.sets.find(id); set != state_.sets.end())
        for (const auto& [key, verdict] : set->second)
          name_policies(verdict, "does not fit into the kernel: denies all");
  }

  void name_blocks() {
    if (misfits_.blocks.empty()) return;
    const auto name = [this](const auto& policy) {
      if (std::ranges::any_of(config::address_blocks(policy), [this](const IpBlock& block) {
            return misfits_.blocks.contains(plain_block(block));
          }))
        named_.policies.emplace(display_name(policy),
                                "its address blocks do not fit into the kernel: denies whoever is "
                                "no workload of the mesh");
    };
    for (const auto& policy : snapshot_.policies) name(*policy);
    for (const auto& policy : snapshot_.network_policies) name(*policy);
  }

  // Policies that select one of them, or that treat it otherwise than a stranger.
  void name_peers() {
    constexpr const char* kWhat =
        "workloads that it is about do not fit into the kernel: denies these";
    std::set<ClassId> classes;
    std::set<datapath::SetId> sets;
    for (const IpAddress& address : misfits_.peers) {
      const auto owner = snapshot_.workload_by_address.find(address);
      named_.others.emplace(owner == snapshot_.workload_by_address.end()
                                ? "address " + address.to_string()
                                : "workload " + owner->second->name.to_string(),
                            "its address " + address.to_string() +
                                " does not fit into the kernel: enrolled workloads are refused to "
                                "it, and it to them");
      const auto peer = state_.peers.find(address);
      if (peer == state_.peers.end()) continue;
      if (peer->second.peer != 0) classes.insert(peer->second.peer);
      sets.insert(peer->second.ingress);
    }
    if (misfits_.peers.empty()) return;
    for (const auto& [id, set] : state_.sets)
      for (const auto& [key, verdict] : set)
        if (sets.contains(id) || classes.contains(key.peer)) name_policies(verdict, kWhat);
  }

  void name_refusals() {
    for (const auto& refusal : misfits_.refusals)
      if (const auto policy = state_.refusals.find(refusal); policy != state_.refusals.end())
        name_policy(policy->second,
                    "what it refuses does not fit into the kernel: its clients are denied all HTTP "
                    "services");
  }

  void name_services(const std::set<SocketAddress>& left_out, const char* suffix) {
    for (const SocketAddress& address : left_out) {
      const auto service = snapshot_.service_by_address.find(address.ip);
      named_.others.emplace(service == snapshot_.service_by_address.end()
                                ? "address " + address.ip.to_string()
                                : service->second->object(),
                            "port " + std::to_string(address.port) + suffix +
                                " does not fit into the kernel: connections to it are refused");
    }
  }

  const datapath::Misfits& misfits_;
  const datapath::State& state_;
  const config::Snapshot& snapshot_;
  const std::map<std::uint32_t, PolicyRule>& rules_;
  NamedMisfits named_;
};

}  // namespace

NamedMisfits name_misfits(const datapath::Misfits& misfits, const datapath::State& state,
                          const config::Snapshot& snapshot,
                          const std::map<std::uint32_t, PolicyRule>& rules) {
  return Naming(misfits, state, snapshot, rules).names();
}

}  // namespace mesh::control
