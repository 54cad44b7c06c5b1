#include "datapath/attach.h"

#include <algorithm>
#include <utility>

#include "datapath/connections.h"

namespace mesh::datapath {
namespace {

Result<> end_unseen(SocketWork& work, const EnrolledWorkload& workload) {
  const auto fate_of = [&](const Connection& connection) {
    const bool is_own =
        std::ranges::find(workload.addresses, connection.remote.ip) != workload.addresses.end();
    return is_own ? Fate::kStays : Fate::kEnds;
  };
  for (const Transport transport : {Transport::kTcp, Transport::kUdp}) {
    const Ended ended = end_connections(work, workload.netns, transport, fate_of);
    if (ended.failure) return *ended.failure;
  }
  return success();
}

// What judges, all of it.
Result<std::string> guard(Object& object, const std::string& set,
                          const EnrolledWorkload& workload) {
  if (workload.netns < 0)
    return Error{Errc::unavailable, "its network namespace cannot be opened, so it is refused all"};
  MESH_TRY(object.ensure_ingress(set, workload.netns, workload.netns_cookie));
  return object.ensure_packets(set, workload.netns, workload.netns_cookie, workload.id);
}

Result<std::string> attach_strict(Object& object, SocketWork& work, const std::string& set,
                                  const EnrolledWorkload& workload, bool has_row) {
  Result<std::string> guarded = std::string();
  if (!has_row || workload.netns >= 0) guarded = guard(object, set, workload);
  MESH_TRY(object.ensure_links(set, workload_hooks(), workload.cgroup));
  if (guarded && !has_row) {
    MESH_TRY(end_unseen(work, workload));
  }
  return guarded;
}

}  // namespace

Result<std::string> attach(Object& object, SocketWork& work, const std::string& set,
                           const EnrolledWorkload& workload, bool has_row) {
  if (workload.strict) return attach_strict(object, work, set, workload, has_row);
  const bool is_new = !object.has_links(set);
  Result<> attached = object.remove_packets(set);
  if (attached && workload.netns >= 0)
    attached = object.ensure_ingress(set, workload.netns, workload.netns_cookie);
  if (attached) attached = object.ensure_links(set, workload_hooks(), workload.cgroup);
  if (attached) return std::string();
  if (is_new) (void)object.remove_links(set);
  return std::move(attached).assume_error();
}

}  // namespace mesh::datapath
