// Tables of a snapshot, for `meshctl config dump` and `meshctl dns lookup`. Pure.
#pragma once

#include <string_view>

#include "api/messages.h"
#include "base/result.h"
#include "config/snapshot.h"

namespace mesh::control {

api::Dump dump_routes(const config::Snapshot& snapshot);
api::Dump dump_clusters(const config::Snapshot& snapshot);
api::Dump dump_endpoints(const config::Snapshot& snapshot);
api::Dump dump_policies(const config::Snapshot& snapshot,
                        const std::vector<api::Status::PolicyCount>& counts);
// What a client of namespace `ns` is told of `name`: one row for each of A, AAAA and SRV.
api::Dump dump_dns(const config::Snapshot& snapshot, std::string_view ns, std::string_view name);

// Adds what the proxy knows of the same rows (health, requests in flight): its rows have the same
// value in column `key`, and its other columns are put behind ours.
void merge_rows(api::Dump& dump, const boost::json::value& body,
                const std::vector<std::string_view>& keys);

}  // namespace mesh::control
