// The verdict on a flow. Inside a source or an operation the lists are ANDed, values ORed; sources,
// operations and rules are ORed; conditions are ANDed.
#include <algorithm>

#include "config/snapshot.h"

namespace mesh::config {
namespace {

// A client and what it asks for, as policies see it.
struct Flow {
  const Workload* client;           // null: a stranger
  std::string principal, account;   // "ns/sa"
  std::optional<IpAddress> source;  // none: not known
  std::uint16_t port;
  bool is_denying = false;  // the policy that is asked; so what is not known does not open it

  Flow(const Peer& peer, std::uint16_t to) : client(peer.workload), source(peer.address), port(to) {
    if (!client) return;
    principal = client->principal();
    account = client->name.ns + "/" + client->service_account;
  }
};

template <class List, class Is>
bool passes(const List& wanted, const List& unwanted, Is is) {
  return (wanted.empty() || std::any_of(wanted.begin(), wanted.end(), is)) &&
         std::none_of(unwanted.begin(), unwanted.end(), is);
}

bool matches_source(const SourceMatch& match, const Flow& flow) {
  if (match.ip_blocks.empty() && match.not_ip_blocks.empty()) return true;
  if (!flow.source) return flow.is_denying;
  return passes(match.ip_blocks, match.not_ip_blocks,
                [&](const auto& block) { return block.contains(*flow.source); });
}

bool matches(const SourceMatch& match, const Flow& flow) {
  return passes(match.principals, match.not_principals,
                [&](const auto& m) { return flow.client && m.matches(flow.principal); }) &&
         passes(match.namespaces, match.not_namespaces,
                [&](const auto& m) { return flow.client && m.matches(flow.client->name.ns); }) &&
         passes(match.service_accounts, match.not_service_accounts,
                [&](const auto& account) { return flow.client && account == flow.account; }) &&
         matches_source(match, flow);
}

bool matches(const PortMatch& match, const Flow& flow) {
  return passes(match.first, match.second, [&](std::uint16_t port) { return port == flow.port; });
}

bool matches(const L4Rule& rule, const Flow& flow) {
  auto is_match = [&](const auto& match) { return matches(match, flow); };
  return !rule.never &&
         (rule.from.empty() || std::any_of(rule.from.begin(), rule.from.end(), is_match)) &&
         (rule.to.empty() || std::any_of(rule.to.begin(), rule.to.end(), is_match)) &&
         std::all_of(rule.when.begin(), rule.when.end(), is_match) &&
         std::all_of(rule.when_port.begin(), rule.when_port.end(), is_match);
}

int matching_rule(const AuthorizationPolicy& policy, const Flow& flow) {
  for (std::size_t i = 0; i < policy.rules.size(); ++i)
    if (matches(policy.rules[i], flow)) return static_cast<int>(i);
  return -1;
}

// What the AuthorizationPolicies that select a server say together.
class Authorization {
 public:
  void ask(const AuthorizationPolicy& policy, Flow& flow) {
    using Action = AuthorizationPolicy::Action;
    const bool is_audit = policy.action == Action::kAudit;
    if (policy.refused) {
      if (!is_audit && !refused_) refused_ = Verdict{false, policy.name.to_string()};
      return;
    }
    if (policy.action == Action::kAllow && !default_)
      default_ = Verdict{false, policy.name.to_string()};
    if (is_audit ? audit_.has_value() : outcome(policy).has_value()) return;
    flow.is_denying = policy.action != Action::kAllow;
    const int rule = matching_rule(policy, flow);
    if (rule < 0) return;
    if (is_audit)
      audit_ = Verdict::Audit{policy.name.to_string(), rule};
    else
      outcome(policy) = Verdict{policy.action == Action::kAllow, policy.name.to_string(), rule};
  }

  Verdict verdict() const {
    Verdict verdict;
    for (const auto* outcome : {&refused_, &denied_, &allowed_, &default_})
      if (outcome->has_value()) {
        verdict = **outcome;
        break;
      }
    verdict.audit = audit_;
    return verdict;
  }

 private:
  std::optional<Verdict>& outcome(const AuthorizationPolicy& policy) {
    return policy.action == AuthorizationPolicy::Action::kDeny ? denied_ : allowed_;
  }

  std::optional<Verdict> refused_, denied_, allowed_, default_;
  std::optional<Verdict::Audit> audit_;
};

bool is_itself(const Peer& client, const Workload& server) {
  return client.workload && client.workload->name == server.name;
}

}  // namespace

bool AuthorizationPolicy::selects(const Workload& workload) const {
  return (everywhere || workload.name.ns == name.ns) && has_labels(workload.labels, selector);
}

Verdict authorize_ingress(const Snapshot& snapshot, const Peer& client, const Workload& server,
                          Transport transport, std::uint16_t port) {
  if (is_itself(client, server) || transport != Transport::kTcp) return {};
  Flow flow(client, port);
  Authorization authorization;
  for (const AuthorizationPolicyPtr& policy : snapshot.policies)
    if (policy->selects(server)) authorization.ask(*policy, flow);
  return authorization.verdict();
}

Verdict authorize(const Snapshot& snapshot, const Peer& client, const Peer& server,
                  Transport transport, std::uint16_t port) {
  if (!server.workload) return {};
  return authorize_ingress(snapshot, client, *server.workload, transport, port);
}

Verdict authorize(const Snapshot& snapshot, const Workload& client, const Workload& server,
                  const SocketAddress& to) {
  const auto from = [&](std::optional<IpAddress> source) {
    return authorize(snapshot, {&client, source}, {&server, to.ip}, Transport::kTcp, to.port);
  };
  std::optional<Verdict> allowed;
  for (const IpAddress& source : client.addresses) {
    if (source.is_v4() != to.ip.is_v4()) continue;
    Verdict verdict = from(source);
    if (!verdict.allowed) return verdict;
    if (!allowed) allowed = std::move(verdict);
  }
  return allowed ? *std::move(allowed) : from(std::nullopt);
}

}  // namespace mesh::config
