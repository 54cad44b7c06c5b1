// Tables of a snapshot, for `meshctl config dump` and `meshctl dns lookup`. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "api/messages.h"
#include "base/result.h"
#include "config/object.h"
#include "config/snapshot.h"

namespace mesh::control {

api::Dump dump_routes(const config::Snapshot& snapshot);
api::Dump dump_clusters(const config::Snapshot& snapshot);
api::Dump dump_endpoints(const config::Snapshot& snapshot);
// `enrolled`: the workloads that this node polices. A row has its counters by rule, too.
api::Dump dump_policies(const config::Snapshot& snapshot,
                        const std::vector<api::Status::PolicyCount>& counts,
                        const std::set<config::ObjectName>& enrolled,
                        const std::vector<config::Problem>& problems);
// Who asks for a name, and whom.
struct DnsClient {
  enum class Resolver : std::uint8_t {
    kAny,      // not known; the mesh is asked, and forwards
    kMesh,     // the mesh itself (dns::kMeshResolver), with nobody behind it
    kNotMesh,  // the mesh is not asked, `why` says for which reason
  };
  std::string ns = "default";
  Resolver resolver = Resolver::kAny;
  std::string why;
};
// What it is told of `name`: one row for each of A, AAAA and SRV.
api::Dump dump_dns(const config::Snapshot& snapshot, const DnsClient& client,
                   std::string_view name);

// Adds what the proxy knows of the same rows (health, requests in flight): its rows have the same
// value in column `key`, and its other columns are put behind ours.
void merge_rows(api::Dump& dump, const boost::json::value& body,
                const std::vector<std::string_view>& keys);

}  // namespace mesh::control
