// The verdict on a connection. Inside a source or an operation the lists are ANDed, values ORed;
// sources, operations and rules are ORed; conditions are ANDed.
#include <algorithm>

#include "config/snapshot.h"

namespace mesh::config {
namespace {

struct Connection {
  std::string principal;
  std::string_view ns;
  std::string account;              // "ns/sa"
  std::optional<IpAddress> source;  // none: not known
  std::uint16_t port;
  bool is_denying = false;  // the policy that is asked; so what is not known does not open it
};

template <class List, class Is>
bool passes(const List& wanted, const List& unwanted, Is is) {
  return (wanted.empty() || std::any_of(wanted.begin(), wanted.end(), is)) &&
         std::none_of(unwanted.begin(), unwanted.end(), is);
}

bool matches_source(const SourceMatch& match, const Connection& connection) {
  if (match.ip_blocks.empty() && match.not_ip_blocks.empty()) return true;
  if (!connection.source) return connection.is_denying;
  return passes(match.ip_blocks, match.not_ip_blocks,
                [&](const auto& block) { return block.contains(*connection.source); });
}

bool matches(const SourceMatch& match, const Connection& connection) {
  return passes(match.principals, match.not_principals,
                [&](const auto& m) { return m.matches(connection.principal); }) &&
         passes(match.namespaces, match.not_namespaces,
                [&](const auto& m) { return m.matches(connection.ns); }) &&
         passes(match.service_accounts, match.not_service_accounts,
                [&](const auto& account) { return account == connection.account; }) &&
         matches_source(match, connection);
}

bool matches(const PortMatch& match, const Connection& connection) {
  return passes(match.first, match.second,
                [&](std::uint16_t port) { return port == connection.port; });
}

bool matches(const L4Rule& rule, const Connection& connection) {
  auto is_match = [&](const auto& match) { return matches(match, connection); };
  return !rule.never &&
         (rule.from.empty() || std::any_of(rule.from.begin(), rule.from.end(), is_match)) &&
         (rule.to.empty() || std::any_of(rule.to.begin(), rule.to.end(), is_match)) &&
         std::all_of(rule.when.begin(), rule.when.end(), is_match) &&
         std::all_of(rule.when_port.begin(), rule.when_port.end(), is_match);
}

int matching_rule(const AuthorizationPolicy& policy, const Connection& connection) {
  for (std::size_t i = 0; i < policy.rules.size(); ++i)
    if (matches(policy.rules[i], connection)) return static_cast<int>(i);
  return -1;
}

}  // namespace

bool AuthorizationPolicy::selects(const Workload& workload) const {
  if (!everywhere && workload.name.ns != name.ns) return false;
  return std::all_of(selector.begin(), selector.end(), [&](const auto& wanted) {
    auto label = workload.labels.find(wanted.first);
    return label != workload.labels.end() && label->second == wanted.second;
  });
}

Verdict authorize(const Snapshot& snapshot, const Workload& client,
                  const std::optional<IpAddress>& source, const Workload& server,
                  std::uint16_t port) {
  if (client.name == server.name) return {};
  Connection connection{client.principal(),
                        client.name.ns,
                        client.name.ns + "/" + client.service_account,
                        source,
                        port,
                        false};
  using Action = AuthorizationPolicy::Action;
  const AuthorizationPolicy* first_allow = nullptr;
  std::optional<Verdict> denied;
  std::optional<Verdict> allowed;
  for (const AuthorizationPolicyPtr& policy : snapshot.policies) {
    if (!policy->selects(server)) continue;
    if (policy->refused) return {false, policy->name.to_string(), -1};
    if (policy->action == Action::kAllow && !first_allow) first_allow = policy.get();
    std::optional<Verdict>& outcome = policy->action == Action::kDeny ? denied : allowed;
    if (outcome) continue;
    connection.is_denying = policy->action == Action::kDeny;
    int rule = matching_rule(*policy, connection);
    if (rule >= 0)
      outcome = Verdict{policy->action == Action::kAllow, policy->name.to_string(), rule};
  }
  if (denied) return *denied;
  if (allowed) return *allowed;
  if (first_allow) return {false, first_allow->name.to_string(), -1};
  return {};
}

Verdict authorize(const Snapshot& snapshot, const Workload& client, const Workload& server,
                  const SocketAddress& to) {
  std::optional<Verdict> allowed;
  for (const IpAddress& source : client.addresses) {
    if (source.is_v4() != to.ip.is_v4()) continue;
    Verdict verdict = authorize(snapshot, client, source, server, to.port);
    if (!verdict.allowed) return verdict;
    if (!allowed) allowed = std::move(verdict);
  }
  return allowed ? *std::move(allowed) : authorize(snapshot, client, std::nullopt, server, to.port);
}

}  // namespace mesh::config
