#include "datapath/wanted.h"

#include <cstring>
#include <memory>
#include <string>

#include "datapath/byte_order.h"
#include "datapath/policy_sets.h"

namespace mesh::datapath {
namespace {

void add_workload(const EnrolledWorkload& workload, Wanted& wanted, Problems& problems) {
  um_workload_record record{};
  if (workload.id == 0 || workload.netns_cookie == 0 ||
      workload.cgroup.size() >= sizeof record.cgroup) {
    problems.emplace(workload.id, Error{Errc::invalid_argument,
                                        "a workload needs an id, the cookie of its network "
                                        "namespace, and a cgroup path below 1016 bytes"});
    return;
  }
  const std::uint32_t flags = (workload.cgroup.empty() ? UM_WORKLOAD_RECORDED : 0U) |
                              (workload.has_responder ? UM_WORKLOAD_DNS : 0U) |
                              (workload.bypasses_proxy ? UM_WORKLOAD_BYPASS : 0U);
  const um_workload entry{workload.id,      flags,          workload.class4, workload.class6,
                          workload.ingress, workload.egress};
  const auto [owner, is_first] =
      wanted.policy.workloads.emplace(um_workload_key{workload.netns_cookie, 0, 0}, entry);
  if (!is_first) {
    problems.emplace(workload.id, Error{Errc::invalid_argument,
                                        "its network namespace is enrolled already, as workload " +
                                            std::to_string(owner->second.id) +
                                            ": workloads that share one cannot be told apart"});
    return;
  }
  record.netns_cookie = workload.netns_cookie;
  std::memcpy(record.cgroup, workload.cgroup.data(), workload.cgroup.size());
  wanted.records.emplace(workload.id, record);
  std::uint32_t order = 0;
  for (const IpAddress& ip : workload.addresses)
    wanted.own_addresses.emplace(um_own_key{workload.id, kernel_address(ip)}, order++);
}

// Each entry of `of` is made of one of `now`, under a key of its own.
template <class Source, class Entries, class KeyOf, class ValueOf>
void follow_map(Source& last, const Source& now, Entries& of, KeyOf key_of, ValueOf value_of) {
  each_difference(last, now, [&](const auto* before, const auto* entry) {
    if (entry)
      of.insert_or_assign(key_of(entry->first), value_of(entry->second));
    else
      of.erase(key_of(before->first));
  });
  last = now;
}

}  // namespace

Wanted WantedMaps::follow(const State& state, Problems& problems) {
  const auto same = [](const auto& value) { return value; };
  const auto of_protocol = [](std::uint8_t protocol) {
    return [protocol](const SocketAddress& at) { return kernel_destination(at, protocol); };
  };
  Wanted& wanted = of_last_;
  follow_map(last_.services, state.services, wanted.services, of_protocol(UM_TCP), same);
  follow_map(last_.udp_services, state.udp_services, wanted.services, of_protocol(UM_UDP), same);
  follow_map(last_.sets, state.sets, wanted.policy.sets, same, [](const PolicySet& set) {
    return std::make_shared<const PolicySets::Verdicts>(kernel_verdicts(set));
  });
  follow_map(
      last_.peers, state.peers, wanted.policy.peers,
      [](const IpAddress& ip) { return um_peer_key{0, kernel_address(ip)}; },
      [](const Peer& peer) { return um_peer{peer.peer, peer.ingress}; });
  follow_map(
      last_.refusals, state.refusals, wanted.refusals,
      [](const auto& key) { return um_refusal_key{key.first, key.second}; }, same);
  Wanted now = wanted;
  for (const auto& [id, workload] : state.workloads) add_workload(workload, now, problems);
  for (const auto& [block, peer] : state.blocks)
    now.policy.blocks.emplace(kernel_block(block), peer);
  return now;
}

}  // namespace mesh::datapath
