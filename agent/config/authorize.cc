// The verdict on a flow. AuthorizationPolicy: inside a source or an operation the lists are ANDed,
// values ORed; sources, operations and rules are ORed; conditions are ANDed. NetworkPolicy:
// policies and rules are ORed; in a rule one peer and one port must match.
#include <algorithm>
#include <iterator>

#include "config/policy_parts.h"
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
      if (!is_audit && !refused_) refused_ = Verdict{false, display_name(policy)};
      return;
    }
    if (policy.action == Action::kAllow && !default_)
      default_ = Verdict{false, display_name(policy)};
    if (is_audit ? audit_.has_value() : outcome(policy).has_value()) return;
    flow.is_denying = policy.action != Action::kAllow;
    const int rule = matching_rule(policy, flow);
    if (rule < 0) return;
    if (is_audit)
      audit_ = Verdict::Audit{display_name(policy), rule};
    else
      outcome(policy) = Verdict{policy.action == Action::kAllow, display_name(policy), rule};
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

// ---- NetworkPolicy

// What a rule sees of a flow: the other end, and the port of the server's end.
struct NetworkFlow {
  const Snapshot& snapshot;
  const Peer& other;
  const Workload* server;  // null: a stranger, whose ports have no names
  Transport transport;
  std::uint16_t port;
};

bool matches(const NetworkPeer& peer, const std::string& policy_ns, const NetworkFlow& flow) {
  if (peer.block) {
    const auto& address = flow.other.address;
    return address && peer.block->contains(*address) &&
           std::none_of(peer.except.begin(), peer.except.end(),
                        [&](const IpBlock& block) { return block.contains(*address); });
  }
  const Workload* workload = flow.other.workload;
  if (!workload || (!peer.pods && !peer.namespaces)) return false;
  return (!peer.pods || peer.pods->matches(workload->labels)) &&
         (peer.namespaces ? selects_namespace(flow.snapshot, *peer.namespaces, workload->name.ns)
                          : workload->name.ns == policy_ns);
}

bool matches(const NetworkPort& port, const NetworkFlow& flow) {
  if (port.transport != flow.transport) return false;
  if (port.name.empty()) return port.first <= flow.port && flow.port <= port.last;
  if (!flow.server) return false;
  auto named = flow.server->ports.find(port.name);
  return named != flow.server->ports.end() && named->second == flow.port;
}

bool matches(const NetworkRule& rule, const std::string& policy_ns, const NetworkFlow& flow) {
  return (rule.peers.empty() ||
          std::any_of(rule.peers.begin(), rule.peers.end(),
                      [&](const auto& peer) { return matches(peer, policy_ns, flow); })) &&
         (rule.ports.empty() || std::any_of(rule.ports.begin(), rule.ports.end(),
                                            [&](const auto& port) { return matches(port, flow); }));
}

Verdict verdict_of(const NetworkPolicy& policy, bool allowed, int rule = -1) {
  return {allowed, display_name(policy), rule, {}};
}

// What the policies say together; `rules`: those of the direction.
Verdict network_verdict(const std::vector<const NetworkPolicy*>& policies,
                        std::vector<NetworkRule> NetworkPolicy::* rules, const NetworkFlow& flow) {
  for (const NetworkPolicy* policy : policies)
    if (policy->refused) return verdict_of(*policy, false);
  for (const NetworkPolicy* policy : policies) {
    const auto& own = policy->*rules;
    for (std::size_t i = 0; i < own.size(); ++i)
      if (matches(own[i], policy->name.ns, flow))
        return verdict_of(*policy, true, static_cast<int>(i));
  }
  return policies.empty() ? Verdict() : verdict_of(*policies.front(), false);
}

// ---- both

bool is_itself(const Workload* client, const Workload* server) {
  return client && server && client->name == server->name;
}

// Whether any of the policies can let somebody in.
bool has_way_in(const Selection& selection) {
  const auto& policies = selection.authorization;
  return !selection.network.empty() ||
         std::any_of(policies.begin(), policies.end(), [](const AuthorizationPolicy* policy) {
           return policy->action == AuthorizationPolicy::Action::kAllow;
         });
}

bool is_this_node(const Peer& client, const Snapshot& snapshot) {
  const auto& own = snapshot.node_addresses;
  return client.address && std::find(own.begin(), own.end(), *client.address) != own.end();
}

// The verdict of two that must both allow; `first` is the one that is asked first.
Verdict both(Verdict first, Verdict second) {
  if (!first.allowed || (second.allowed && !first.policy.empty())) return first;
  second.audit = std::move(first.audit);
  return second;
}

const std::vector<std::size_t>& indexes(const StringMap<std::vector<std::size_t>>& by_namespace,
                                        std::string_view ns) {
  static const std::vector<std::size_t> kNone;
  auto found = by_namespace.find(ns);
  return found == by_namespace.end() ? kNone : found->second;
}

std::vector<const AuthorizationPolicy*> authorization_policies(const Snapshot& snapshot,
                                                               const Workload& server) {
  const auto& own = indexes(snapshot.policies_in, server.name.ns);
  const auto& everywhere = indexes(snapshot.policies_in, "");
  std::vector<std::size_t> by_age;
  std::merge(own.begin(), own.end(), everywhere.begin(), everywhere.end(),
             std::back_inserter(by_age));
  std::vector<const AuthorizationPolicy*> policies;
  for (std::size_t index : by_age)
    if (const auto& policy = snapshot.policies[index]; policy->selects(server))
      policies.push_back(policy.get());
  return policies;
}

std::vector<const NetworkPolicy*> network_policies(const Snapshot& snapshot,
                                                   const Workload& workload,
                                                   bool NetworkPolicy::* direction) {
  std::vector<const NetworkPolicy*> policies;
  for (std::size_t index : indexes(snapshot.network_policies_in, workload.name.ns))
    if (const auto& policy = snapshot.network_policies[index];
        (*policy).*direction && policy->selects(workload))
      policies.push_back(policy.get());
  return policies;
}

}  // namespace

std::string display_name(const AuthorizationPolicy& policy) {
  return "AuthorizationPolicy " + policy.name.to_string();
}

std::string display_name(const NetworkPolicy& policy) {
  return "NetworkPolicy " + policy.name.to_string();
}

std::string rule_name(const std::string& policy, int rule) {
  return rule < 0 ? policy : policy + "[" + std::to_string(rule) + "]";
}

bool AuthorizationPolicy::selects(const Workload& workload) const {
  return (everywhere || workload.name.ns == name.ns) && has_labels(workload.labels, selector);
}

bool selects_namespace(const Snapshot& snapshot, const LabelSelector& selector,
                       const std::string& ns) {
  auto known = snapshot.namespaces.find(ns);
  if (known != snapshot.namespaces.end()) return selector.matches(known->second);
  return selector.matches({{std::string(kNamespaceNameLabel), ns}});
}

bool NetworkPolicy::selects(const Workload& workload) const {
  return workload.name.ns == name.ns && selector.matches(workload.labels);
}

bool LabelRequirement::holds(const Labels& labels) const {
  auto label = labels.find(key);
  const bool exists = label != labels.end();
  const bool is_listed =
      exists && std::find(values.begin(), values.end(), label->second) != values.end();
  switch (op) {
    case Operator::kIn:
      return is_listed;
    case Operator::kNotIn:
      return !is_listed;
    case Operator::kExists:
      return exists;
    case Operator::kDoesNotExist:
      return !exists;
  }
  return false;
}

bool LabelSelector::matches(const Labels& own) const {
  return has_labels(own, labels) &&
         std::all_of(requirements.begin(), requirements.end(),
                     [&](const LabelRequirement& requirement) { return requirement.holds(own); });
}

Selection ingress_selection(const Snapshot& snapshot, const Workload& server) {
  return {authorization_policies(snapshot, server),
          network_policies(snapshot, server, &NetworkPolicy::ingress), server.strict};
}

Selection egress_selection(const Snapshot& snapshot, const Workload& client) {
  return {{}, network_policies(snapshot, client, &NetworkPolicy::egress), false};
}

Verdict authorize_ingress(const Snapshot& snapshot, const Selection& selection, const Peer& client,
                          const Workload& server, Transport transport, std::uint16_t port) {
  if (is_itself(client.workload, &server)) return {};
  Verdict authorized;
  if (transport == Transport::kTcp || selection.strict) {
    Flow flow(client, port);
    Authorization authorization;
    for (const AuthorizationPolicy* policy : selection.authorization)
      authorization.ask(*policy, flow);
    authorized = authorization.verdict();
  }
  if (selection.strict && authorized.allowed && !has_way_in(selection))
    return {false, std::string(kStrictDefault), -1, std::move(authorized.audit)};
  const bool is_refused = std::any_of(selection.network.begin(), selection.network.end(),
                                      [](const NetworkPolicy* policy) { return policy->refused; });
  if (is_this_node(client, snapshot) && !is_refused) return authorized;
  return both(std::move(authorized),
              network_verdict(selection.network, &NetworkPolicy::ingress_rules,
                              {snapshot, client, &server, transport, port}));
}

Verdict authorize_egress(const Snapshot& snapshot, const Selection& selection,
                         const Workload& client, const Peer& server, Transport transport,
                         std::uint16_t port) {
  if (is_itself(&client, server.workload)) return {};
  return network_verdict(selection.network, &NetworkPolicy::egress_rules,
                         {snapshot, server, server.workload, transport, port});
}

Verdict authorize_ingress(const Snapshot& snapshot, const Peer& client, const Workload& server,
                          Transport transport, std::uint16_t port) {
  return authorize_ingress(snapshot, ingress_selection(snapshot, server), client, server, transport,
                           port);
}

Verdict authorize_egress(const Snapshot& snapshot, const Workload& client, const Peer& server,
                         Transport transport, std::uint16_t port) {
  return authorize_egress(snapshot, egress_selection(snapshot, client), client, server, transport,
                          port);
}

Verdict authorize(const Snapshot& snapshot, const Peer& client, const Peer& server,
                  Transport transport, std::uint16_t port) {
  Verdict out;
  if (client.workload) out = authorize_egress(snapshot, *client.workload, server, transport, port);
  if (!server.workload || !out.allowed) return out;
  return both(authorize_ingress(snapshot, client, *server.workload, transport, port),
              std::move(out));
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
