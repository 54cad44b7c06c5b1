#include "datapath/attach.h"

#include <algorithm>
#include <utility>

#include "datapath/connections.h"

namespace mesh::datapath {
namespace {

Result<> end_unseen(const EnrolledWorkload& workload) {
  const auto is_elsewhere = [&](const Connection& connection) {
    return std::ranges::find(workload.addresses, connection.remote.ip) == workload.addresses.end();
  };
  for (const Transport transport : {Transport::kTcp, Transport::kUdp}) {
    MESH_TRY(end_connections(workload.netns, transport, is_elsewhere));
  }
  return success();
}

Result<> attach_strict(Object& object, const std::string& set, const EnrolledWorkload& workload) {
  if (workload.netns < 0)
    return Error{Errc::unavailable, "its network namespace cannot be opened, so it is refused all"};
  return object.ensure_ingress(set, workload.netns, workload.netns_cookie);
}

}  // namespace

Result<> attach(Object& object, const std::string& set, const EnrolledWorkload& workload,
                bool has_row) {
  if (workload.strict) {
    Result<> guarded = success();
    if (!has_row || workload.netns >= 0) guarded = attach_strict(object, set, workload);
    MESH_TRY(object.ensure_links(set, workload_hooks(), workload.cgroup));
    if (guarded && !has_row) return end_unseen(workload);
    return guarded;
  }
  const bool is_new = !object.has_links(set);
  Result<> attached = success();
  if (workload.netns >= 0)
    attached = object.ensure_ingress(set, workload.netns, workload.netns_cookie);
  if (attached) attached = object.ensure_links(set, workload_hooks(), workload.cgroup);
  if (!attached && is_new) (void)object.remove_links(set);
  return attached;
}

}  // namespace mesh::datapath
