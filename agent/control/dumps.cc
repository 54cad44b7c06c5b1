#include "control/dumps.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <variant>

#include "dns/resolve.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::Snapshot;

std::string join(const std::vector<std::string>& parts, std::string_view between) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : std::string(between)) + part;
  return text;
}

std::string text_of(const config::StringMatch& match) {
  switch (match.kind) {
    case config::StringMatch::Kind::kPresent:
      return "*";
    case config::StringMatch::Kind::kExact:
      return match.value;
    case config::StringMatch::Kind::kPrefix:
      return match.value + "*";
    case config::StringMatch::Kind::kSuffix:
      return "*" + match.value;
    case config::StringMatch::Kind::kRegex:
      return "~" + match.value;
  }
  return {};
}

std::string text_of(const config::HttpMatch& match) {
  std::vector<std::string> parts;
  const auto add = [&](std::string_view what, const std::optional<config::StringMatch>& value) {
    if (value) parts.push_back(std::string(what) + "=" + text_of(*value));
  };
  add("uri", match.uri);
  add("method", match.method);
  add("authority", match.authority);
  add("scheme", match.scheme);
  for (const auto& [name, value] : match.headers)
    parts.push_back("header " + name + "=" + text_of(value));
  for (const auto& [name, value] : match.without_headers)
    parts.push_back("no header " + name + "=" + text_of(value));
  for (const auto& [name, value] : match.query_params)
    parts.push_back("query " + name + "=" + text_of(value));
  if (match.port != 0) parts.push_back("port=" + std::to_string(match.port));
  for (const auto& [name, value] : match.source_labels)
    parts.push_back("source label " + name + "=" + value);
  if (!match.source_namespace.empty())
    parts.push_back("source namespace=" + match.source_namespace);
  return join(parts, ", ");
}

std::string matches_of(const config::HttpRoute& route) {
  std::vector<std::string> parts;
  for (const auto& match : route.matches) parts.push_back(text_of(match));
  return parts.empty() ? "*" : join(parts, " | ");
}

std::string destinations_of(const config::HttpRoute& route) {
  std::vector<std::string> parts;
  for (const auto& destination : route.destinations) {
    std::string text = destination.host;
    if (!destination.subset.empty()) text += " " + destination.subset;
    if (destination.port != 0) text += ":" + std::to_string(destination.port);
    if (route.destinations.size() > 1) text += " " + std::to_string(destination.weight) + "%";
    parts.push_back(std::move(text));
  }
  return join(parts, ", ");
}

std::string extras_of(const config::HttpRoute& route) {
  std::vector<std::string> parts;
  if (route.timeout) parts.push_back("timeout " + std::to_string(route.timeout->count()) + "ms");
  const auto& fault = route.fault;
  if (fault.delay_ppm != 0)
    parts.push_back("delay " + std::to_string(fault.delay.count()) + "ms " +
                    std::to_string(fault.delay_ppm / 10000) + "%");
  if (fault.abort_ppm != 0)
    parts.push_back("abort " + std::to_string(fault.abort_status) + " " +
                    std::to_string(fault.abort_ppm / 10000) + "%");
  return join(parts, ", ");
}

std::string limit_text(std::uint32_t limit) {
  return limit == config::ConnectionPool::kUnlimited ? "-" : std::to_string(limit);
}

std::string_view balancer_text(config::Balancer balancer) {
  switch (balancer) {
    case config::Balancer::kLeastRequest:
      return "LEAST_REQUEST";
    case config::Balancer::kRoundRobin:
      return "ROUND_ROBIN";
    case config::Balancer::kRandom:
      return "RANDOM";
  }
  return {};
}

// All clusters by name; those of one client namespace carry it in front.
std::map<std::string, config::ClusterPtr> sorted_clusters(const Snapshot& snapshot) {
  std::map<std::string, config::ClusterPtr> sorted;
  for (const auto& [name, cluster] : snapshot.clusters) sorted[name] = cluster;
  for (const auto& [name, cluster] : snapshot.client_clusters) sorted[name] = cluster;
  return sorted;
}

api::Dump table(const Snapshot& snapshot, std::string what, std::vector<std::string> columns) {
  api::Dump dump;
  dump.what = std::move(what);
  dump.version = snapshot.version;
  dump.columns = std::move(columns);
  return dump;
}

std::string_view action_text(config::AuthorizationPolicy::Action action) {
  using Action = config::AuthorizationPolicy::Action;
  return action == Action::kAllow ? "ALLOW" : action == Action::kDeny ? "DENY" : "AUDIT";
}

struct PolicyRows {
  const Snapshot& snapshot;
  const std::vector<api::Status::PolicyCount>& counts;
  const std::set<config::ObjectName>& enrolled;
  const std::vector<config::Problem>& problems;

  // All but its action.
  template <class Policy>
  json::object row(const std::string& kind, const Policy& policy, std::size_t rules) const {
    std::vector<std::string> selected;
    std::size_t here = 0;
    for (const auto& [name, workload] : snapshot.workloads) {
      if (!policy.selects(*workload)) continue;
      selected.push_back(name.to_string());
      here += enrolled.contains(name) ? 1 : 0;
    }
    json::object row = {{"policy", display_name(policy)},
                        {"kind", kind},
                        {"namespace", policy.name.ns},
                        {"name", policy.name.name},
                        {"rules", rules},
                        {"selects", join(selected, ",")},
                        {"selects_here", here},
                        {"state", policy.refused ? "refused: denies all" : "accepted"},
                        {"reason", reason(kind, policy.name)}};
    add_counts(row);
    return row;
  }

 private:
  void add_counts(json::object& row) const {
    std::uint64_t denied = 0, allowed = 0, audited = 0;
    json::array by_rule;
    for (const auto& count : counts) {
      if (count.policy != row["policy"].as_string()) continue;
      denied += count.denied;
      allowed += count.allowed;
      audited += count.audited;
      by_rule.push_back({{"rule", count.rule},
                         {"denied", count.denied},
                         {"allowed", count.allowed},
                         {"audited", count.audited}});
    }
    row["denied"] = denied;
    row["allowed"] = allowed;
    row["audited"] = audited;
    row["by_rule"] = std::move(by_rule);
  }
  // What is wrong with it, errors first.
  std::string reason(const std::string& kind, const config::ObjectName& name) const {
    std::vector<std::string> errors, warnings;
    for (const config::Problem& problem : problems)
      if (problem.object == config::ObjectKey{kind, name.ns, name.name})
        (problem.severity == config::Problem::Severity::kError ? errors : warnings)
            .push_back(problem.field.empty() ? problem.message
                                             : problem.field + ": " + problem.message);
    errors.insert(errors.end(), warnings.begin(), warnings.end());
    return join(errors, "; ");
  }
};

}  // namespace

api::Dump dump_routes(const Snapshot& snapshot) {
  api::Dump dump =
      table(snapshot, "routes",
            {"virtual_service", "hosts", "gateways", "rule", "match", "destinations", "options"});
  for (const auto& service : snapshot.virtual_services) {
    std::size_t index = 0;
    for (const auto& route : service->http)
      dump.rows.push_back({{"virtual_service", service->name.to_string()},
                           {"hosts", join(service->hosts, ",")},
                           {"gateways", join(service->gateways, ",")},
                           {"rule", route.name.empty() ? std::to_string(index) : route.name},
                           {"index", index++},
                           {"match", matches_of(route)},
                           {"destinations", destinations_of(route)},
                           {"options", extras_of(route)}});
  }
  for (const auto& [host, service] : snapshot.services) {
    if (snapshot.find_mesh_routes(host)) continue;
    for (const auto& port : service->ports)
      if (port.protocol == config::Protocol::kHttp)
        dump.rows.push_back({{"virtual_service", ""},
                             {"hosts", host},
                             {"gateways", "mesh"},
                             {"rule", "default"},
                             {"index", 0},
                             {"match", "*"},
                             {"destinations", host + ":" + std::to_string(port.port)},
                             {"options", ""}});
  }
  return dump;
}

api::Dump dump_clusters(const Snapshot& snapshot) {
  api::Dump dump = table(snapshot, "clusters",
                         {"cluster", "endpoints", "balancer", "max_connections", "max_pending",
                          "max_requests", "outlier_detection"});
  for (const auto& [name, cluster] : sorted_clusters(snapshot)) {
    const auto& pool = cluster->policy.pool;
    dump.rows.push_back({{"cluster", name},
                         {"endpoints", cluster->endpoints.size()},
                         {"balancer", balancer_text(cluster->policy.balancer)},
                         {"max_connections", limit_text(pool.max_connections)},
                         {"max_pending", limit_text(pool.max_pending_requests)},
                         {"max_requests", limit_text(pool.max_requests)},
                         {"connect_timeout_ms", pool.connect_timeout.count()},
                         {"outlier_detection", cluster->policy.outlier.has_value()}});
  }
  return dump;
}

api::Dump dump_endpoints(const Snapshot& snapshot) {
  api::Dump dump = table(snapshot, "endpoints", {"cluster", "endpoint", "workload", "weight"});
  for (const auto& [name, cluster] : sorted_clusters(snapshot))
    for (const auto& endpoint : cluster->endpoints)
      dump.rows.push_back(
          {{"cluster", name},
           {"endpoint", endpoint.address.to_string()},
           {"workload", endpoint.workload ? endpoint.workload->name.to_string() : ""},
           {"weight", endpoint.weight}});
  return dump;
}

api::Dump dump_policies(const Snapshot& snapshot,
                        const std::vector<api::Status::PolicyCount>& counts,
                        const std::set<config::ObjectName>& enrolled,
                        const std::vector<config::Problem>& problems) {
  api::Dump dump =
      table(snapshot, "policies",
            {"policy", "action", "rules", "selects", "denied", "allowed", "audited", "state"});
  const PolicyRows rows{snapshot, counts, enrolled, problems};
  for (const auto& policy : snapshot.policies) {
    json::object row = rows.row("AuthorizationPolicy", *policy, policy->rules.size());
    row["action"] = action_text(policy->action);
    if (policy->refused && policy->action == config::AuthorizationPolicy::Action::kAudit)
      row["state"] = "refused: audits nothing";
    dump.rows.push_back(std::move(row));
  }
  for (const auto& policy : snapshot.network_policies) {
    json::object row = rows.row("NetworkPolicy", *policy,
                                policy->ingress_rules.size() + policy->egress_rules.size());
    row["action"] = !policy->egress ? "Ingress" : !policy->ingress ? "Egress" : "Ingress,Egress";
    dump.rows.push_back(std::move(row));
  }
  return dump;
}

namespace {

std::string text_of(const dns::Record& record) {
  if (const auto* ip = std::get_if<IpAddress>(&record.data)) return ip->to_string();
  if (const auto* alias = std::get_if<std::string>(&record.data)) return "-> " + *alias;
  const auto& service = std::get<dns::Service>(record.data);
  return service.target + ":" + std::to_string(service.port);
}

// Of what the mesh does not know.
std::string foreign(const DnsClient& client) {
  if (client.resolver == DnsClient::Resolver::kAny)
    return "forwarded to the resolver that is asked";
  return "no such name (NXDOMAIN) from a sandbox's resolver, " + dns::kMeshResolver.to_string() +
         "; forwarded to any other that is asked";
}

std::string decision_of(const dns::Resolution& found, const DnsClient& client) {
  using Kind = dns::Resolution::Kind;
  if (client.resolver == DnsClient::Resolver::kNotMesh)
    return "the mesh is not asked: " + client.why;
  if (found.kind == Kind::kForeign) return foreign(client);
  if (found.kind == Kind::kNoSuchName) return "no such name (NXDOMAIN)";
  std::string text;
  for (const dns::Record& record : found.answer.records)
    text += (text.empty() ? "" : ", ") + text_of(record);
  if (found.kind == Kind::kElsewhere) return text + ", " + foreign(client);
  return text.empty() ? "nothing of this type" : text;
}

}  // namespace

api::Dump dump_dns(const Snapshot& snapshot, const DnsClient& client, std::string_view name) {
  std::string wanted;
  for (const char c : name) wanted += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  if (wanted.ends_with('.')) wanted.pop_back();
  const bool is_elsewhere = client.resolver == DnsClient::Resolver::kNotMesh;
  api::Dump dump;
  dump.what = "dns";
  dump.columns = {"name", "type", "answer", "object"};
  for (const auto& [type, number] :
       {std::pair{"A", dns::type::kA}, {"AAAA", dns::type::kAaaa}, {"SRV", dns::type::kSrv}}) {
    const dns::Resolution found = dns::resolve(snapshot, client.ns, wanted, number);
    dump.rows.push_back({{"name", wanted},
                         {"type", type},
                         {"answer", decision_of(found, client)},
                         {"object", found.object.empty() || is_elsewhere ? "-" : found.object}});
  }
  return dump;
}

void merge_rows(api::Dump& dump, const json::value& body,
                const std::vector<std::string_view>& keys) {
  const json::object* root = body.if_object();
  const json::value* rows = root ? root->if_contains("rows") : nullptr;
  if (!rows || !rows->is_array()) return;
  const auto key_of = [&keys](const json::object& row) {
    std::string key;
    for (const std::string_view name : keys)
      if (const json::value* value = row.if_contains(name)) key += json::serialize(*value) + "\n";
    return key;
  };
  std::map<std::string, const json::object*> theirs;
  for (const json::value& row : rows->get_array())
    if (row.is_object()) theirs[key_of(row.get_object())] = &row.get_object();
  for (json::object& row : dump.rows) {
    const auto found = theirs.find(key_of(row));
    if (found == theirs.end()) continue;
    for (const auto& [name, value] : *found->second) {
      if (row.contains(name)) continue;
      row[name] = value;
      if (std::ranges::find(dump.columns, std::string(name)) == dump.columns.end())
        dump.columns.emplace_back(name);
    }
  }
}

}  // namespace mesh::control
