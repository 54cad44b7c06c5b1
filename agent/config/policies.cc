// Policies, and whether what they select speaks HTTP.
#include <algorithm>

#include "config/assemble.h"

namespace mesh::config {
namespace {

// Workloads that are endpoints of an HTTP port.
std::set<ObjectName> http_workloads(const Snapshot& snapshot) {
  std::set<ObjectName> names;
  for (const auto& [name, cluster] : snapshot.clusters) {
    if (!cluster->subset.empty()) continue;
    const ServicePort* port = cluster->service->find_port(cluster->port, cluster->transport);
    if (!port || port->protocol != Protocol::kHttp) continue;
    for (const Endpoint& endpoint : cluster->endpoints)
      if (endpoint.workload) names.insert(endpoint.workload->name);
  }
  return names;
}

bool selects_tcp_only(const AuthorizationPolicy& policy, const Snapshot& snapshot,
                      const std::set<ObjectName>& with_http) {
  bool any = false;
  for (const auto& [name, workload] : snapshot.workloads) {
    if (!policy.selects(*workload)) continue;
    if (with_http.contains(name)) return false;
    any = true;
  }
  return any;  // of what is not there yet, nothing is known
}

}  // namespace

void judge_http_fields(PolicyPart& part, bool tcp_only, Report& report) {
  using Action = AuthorizationPolicy::Action;
  const Action action = part.policy.action;
  for (const std::string& field : part.http_fields) {
    if (!tcp_only)
      report.error(field,
                   "not supported yet on HTTP ports (only L4 is authorised); remove the field");
    else if (action == Action::kAllow)
      report.warn(field, "needs HTTP: on the TCP ports that it selects this rule never matches");
    else
      report.warn(field, "needs HTTP: left out on the TCP ports that it selects, so the rule " +
                             std::string(action == Action::kDeny ? "denies" : "audits") + " more");
  }
  if (!report.failed()) return;
  part.policy.refused = true;
  report_refusal(part.policy, report);
}

void report_refusal(const AuthorizationPolicy& policy, Report& report) {
  report.error("", policy.action == AuthorizationPolicy::Action::kAudit
                       ? "the policy is refused: it audits nothing until it is mended"
                       : "the policy is refused: it denies every connection to what it selects "
                         "until it is mended or deleted");
}

void report_refusal(const NetworkPolicy& policy, Report& report) {
  const std::string_view what = !policy.egress    ? "to what it selects"
                                : !policy.ingress ? "of what it selects"
                                                  : "to and of what it selects";
  report.error("", "the policy is refused: it denies every connection " + std::string(what) +
                       " until it is mended or deleted");
}

void add_namespaces(Parts& parts, Snapshot& snapshot) {
  for (auto& [report, part] : parts.namespaces) {
    const std::string& name = report->object().key.name;
    part.labels[std::string(kNamespaceNameLabel)] = name;
    snapshot.namespaces.emplace(name, std::move(part.labels));
  }
}

void add_network_policies(Parts& parts, const Snapshot* previous, Snapshot& snapshot) {
  std::map<ObjectName, NetworkPolicyPtr> before;
  if (previous)
    for (const NetworkPolicyPtr& policy : previous->network_policies)
      before.emplace(policy->name, policy);
  for (auto& [report, policy] : parts.network_policies) {
    if (report->failed()) report_refusal(policy, *report);
    snapshot.network_policies_in[policy.name.ns].push_back(snapshot.network_policies.size());
    auto old = before.find(policy.name);
    snapshot.network_policies.push_back(
        shared(std::move(policy), old == before.end() ? nullptr : old->second));
  }
}

void add_policies(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                  Snapshot& snapshot) {
  std::set<ObjectName> with_http = http_workloads(snapshot);
  if (options.gateway_workload) with_http.insert(options.gateway_workload->name);
  std::map<ObjectName, AuthorizationPolicyPtr> before;
  if (previous)
    for (const AuthorizationPolicyPtr& policy : previous->policies)
      before.emplace(policy->name, policy);
  for (auto& [report, part] : parts.policies) {
    bool tcp_only = !part.http_fields.empty() && selects_tcp_only(part.policy, snapshot, with_http);
    judge_http_fields(part, tcp_only, *report);
    snapshot.policies_in[part.policy.everywhere ? "" : part.policy.name.ns].push_back(
        snapshot.policies.size());
    auto old = before.find(part.policy.name);
    snapshot.policies.push_back(
        shared(std::move(part.policy), old == before.end() ? nullptr : old->second));
  }
}

}  // namespace mesh::config
