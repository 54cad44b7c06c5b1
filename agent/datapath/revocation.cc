#include "datapath/revocation.h"

#include <bpf/bpf.h>
#include <time.h>

#include <algorithm>

#include "bpf/shared.h"
#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

std::uint64_t monotonic_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

// As um_is_fresh() of the programs, who see nothing of a connected socket.
bool is_believed(const um_udp_flow& flow) {
  const std::uint64_t now = monotonic_now();
  return flow.connected != 0 || now < flow.used || now - flow.used < UM_UDP_LASTS_NS;
}

}  // namespace

// What nobody wrote down may be either end, so both ways must be allowed. But else an enrolment, or
// any change of policy, would end what a workload has open to its database, as no ingress policy
// names that: so who surely connected is no server, but in a strict workload. What has no record
// there is a stranger's, or older than the enrolment of one that became strict later: else it was
// ended at that.
Fate Revocation::fate_of(const EnrolledWorkload& workload, Transport transport,
                         const Connection& connection) const {
  const IpAddress& other = connection.remote.ip;
  if (std::ranges::find(workload.addresses, other) != workload.addresses.end()) return Fate::kStays;
  const Direction direction = direction_of(workload, transport, connection);
  if (direction != Direction::kInbound && is_denied_outbound(workload, transport, connection))
    return Fate::kEnds;
  if (direction == Direction::kOutbound ||
      !is_denied(workload.ingress, class_of_client(connection), transport, connection.local.port))
    return Fate::kStays;
  return direction == Direction::kUnknown && !workload.strict ? Fate::kEndsUnlessItConnected
                                                              : Fate::kEnds;
}

bool Revocation::is_denied_outbound(const EnrolledWorkload& workload, Transport transport,
                                    const Connection& connection) const {
  const IpAddress& other = connection.remote.ip;
  if (is_denied(workload.egress, class_at(other), transport, connection.remote.port)) return true;
  const auto server = state_.peers.find(other);
  return server != state_.peers.end() &&
         is_denied(server->second.ingress, other.is_v4() ? workload.class4 : workload.class6,
                   transport, connection.remote.port);
}

bool Revocation::is_removed(const Connection& connection) const {
  const auto record = flows_.find(connection.cookie);
  if (!record || (record->flags & UM_CONNECTION_INBOUND) != 0) return false;
  const auto service = state_.services.find(user_destination(record->service));
  if (service == state_.services.end())
    return state_.former_services.contains(user_destination(record->service));
  if (!service->second.resets_on_removal || service->second.kind != ServiceEntry::Kind::kBalance)
    return false;
  const Columns* columns = &service->second.columns;
  if (const auto& of_clients = service->second.of_clients) {
    const auto own = of_clients->find(record->workload);
    if (own == of_clients->end()) return true;
    columns = &own->second;
  }
  return std::ranges::none_of(*columns, [&](const Column& column) {
    return column.first == connection.remote || column.second == connection.remote;
  });
}

// TCP: what the programs wrote down as it was made; of the mesh's own sockets, in their storage.
// Nothing is written down of what is older than the enrolment, of another cgroup, found the map
// full, or is not made yet; but what a listener is asked for came, whoever has written.
// UDP: a socket that connected to who had asked it. Without a record it is taken for one that
// asked: then its own way must be allowed.
Revocation::Direction Revocation::direction_of(const EnrolledWorkload& workload,
                                               Transport transport,
                                               const Connection& connection) const {
  if (transport != Transport::kUdp) {
    if (const auto record = flows_.find(connection.cookie))
      return (record->flags & UM_CONNECTION_INBOUND) != 0 ? Direction::kInbound
                                                          : Direction::kOutbound;
    if (connection.mesh == UM_MESH_ACCEPTED || connection.is_request) return Direction::kInbound;
    return connection.mesh != 0 ? Direction::kOutbound : Direction::kUnknown;
  }
  const um_udp_flow_key key{workload.id, network_order(connection.local.port), 0,
                            kernel_destination(connection.remote, UM_UDP)};
  um_udp_flow flow{};
  const bool is_inbound = ::bpf_map_lookup_elem(object_.map("um_udp_flows"), &key, &flow) == 0 &&
                          flow.began == UM_BEGAN_THERE && is_believed(flow);
  return is_inbound ? Direction::kInbound : Direction::kOutbound;
}

bool Revocation::is_denied(SetId id, ClassId peer, Transport transport, std::uint16_t port) const {
  if (id == 0) return false;
  const auto set = state_.sets.find(id);
  const auto* found =
      set == state_.sets.end() ? nullptr : find_verdict(set->second, peer, transport, port);
  return !found || !found->allowed;
}

ClassId Revocation::class_of_client(const Connection& connection) const {
  const um_flow_key key{kernel_destination(connection.remote),
                        kernel_destination(connection.local)};
  std::uint64_t recorded = 0;
  if (::bpf_map_lookup_elem(object_.map("um_clients"), &key, &recorded) == 0)
    for (const auto& [id, client] : state_.workloads)
      if (client.netns_cookie == recorded)
        return connection.local.ip.is_v4() ? client.class4 : client.class6;
  return class_at(connection.remote.ip);
}

ClassId Revocation::class_at(const IpAddress& address) const {
  if (const auto peer = state_.peers.find(address); peer != state_.peers.end())
    return peer->second.peer;
  ClassId peer = 0;
  int longest = -1;
  for (const auto& [block, id] : state_.blocks)
    if (block.prefix_length > longest && block.contains(address)) {
      longest = block.prefix_length;
      peer = id;
    }
  return peer;
}

}  // namespace mesh::datapath
