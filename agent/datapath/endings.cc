#include "datapath/endings.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "base/unique_fd.h"
#include "bpf/shared.h"
#include "datapath/revocation.h"

namespace mesh::datapath {
namespace {

Result<> outcome_of(std::optional<Error> failure) {
  if (failure) return *std::move(failure);
  return success();
}

}  // namespace

Result<> Endings::end_forbidden(const State& state) {
  const Revocation revocation(object_, flows_, state);
  const FateOf fate_of = [&](const EnrolledWorkload& workload, Transport transport,
                             const Connection& connection) {
    return revocation.fate_of(workload, transport, connection);
  };
  auto failure = end_where(state, {Transport::kTcp, Transport::kUdp}, by_policy_, fate_of);
  auto of_the_gateway = end_of_the_gateway(state, fate_of);
  return outcome_of(failure ? std::move(failure) : std::move(of_the_gateway));
}

Result<> Endings::end_removed(const State& state) {
  const bool is_asked = std::ranges::any_of(
      state.services, [](const auto& service) { return service.second.resets_on_removal; });
  if (!is_asked && state.former_services.empty()) return success();
  const Revocation revocation(object_, flows_, state);
  return outcome_of(
      end_where(state, {Transport::kTcp}, on_removal_,
                [&](const EnrolledWorkload&, Transport, const Connection& connection) {
                  return revocation.is_removed(connection) ? Fate::kEnds : Fate::kStays;
                }));
}

void Endings::add_to(Counters& counters) const {
  for (const Kind* kind : {&by_policy_, &on_removal_}) counters.totals[kind->counter] = kind->total;
  counters.totals["connections_not_ended"] = not_ended_;
}

std::optional<Error> Endings::end_where(const State& state,
                                        std::initializer_list<Transport> transports, Kind& kind,
                                        const FateOf& fate_of) {
  std::optional<Error> failure;
  for (const auto& [id, workload] : state.workloads) {
    if (workload.netns < 0 || workload.cgroup.empty()) continue;
    for (const Transport transport : transports) {
      auto failed = end_in(workload.netns, transport, kind,
                           [&, &one = workload](const Connection& connection) {
                             return fate_of(one, transport, connection);
                           });
      if (!failure) failure = std::move(failed);
    }
  }
  return failure;
}

// In the host's namespace, which is meshd's own: others' connections there are not the gateway's,
// and who has come to it no policy judges.
std::optional<Error> Endings::end_of_the_gateway(const State& state, const FateOf& fate_of) {
  for (const auto& [id, gateway] : state.workloads) {
    if (!gateway.cgroup.empty()) continue;
    const UniqueFd own(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    return end_in(gateway.netns < 0 ? own.get() : gateway.netns, Transport::kTcp, by_policy_,
                  [&, &one = gateway](const Connection& connection) {
                    const bool is_own = connection.mesh != 0 && connection.mesh != UM_MESH_ACCEPTED;
                    return is_own ? fate_of(one, Transport::kTcp, connection) : Fate::kStays;
                  });
  }
  return std::nullopt;
}

std::optional<Error> Endings::end_in(int netns, Transport transport, Kind& kind,
                                     const std::function<Fate(const Connection&)>& fate_of) {
  const int mesh_sockets = transport == Transport::kTcp ? object_.map("um_mesh_sockets") : -1;
  Ended ended = end_connections(work_, netns, transport, fate_of, mesh_sockets);
  kind.total += ended.ended.size();
  flows_.note_ended(ended.ended, kind.counter);
  not_ended_ += ended.not_ended;
  return std::move(ended.failure);
}

}  // namespace mesh::datapath
