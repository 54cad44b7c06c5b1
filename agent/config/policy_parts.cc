#include "config/policy_parts.h"

namespace mesh::config {
namespace {

// Where a range begins: at every port that a rule names, and after it.
using Cuts = std::set<std::uint32_t>;

void cut(Cuts& cuts, std::uint16_t first, std::uint16_t last) {
  cuts.insert({std::uint32_t{first}, std::uint32_t{last} + 1});
}

void cut(Cuts& cuts, const std::vector<PortMatch>& matches) {
  for (const auto& [wanted, unwanted] : matches)
    for (const auto* ports : {&wanted, &unwanted})
      for (const std::uint16_t port : *ports) cut(cuts, port, port);
}

std::vector<PortRange> ranges_between(Cuts cuts) {
  cuts.insert(0);
  cuts.erase(65536);
  std::vector<PortRange> ranges;
  for (auto at = cuts.begin(); at != cuts.end();) {
    const auto first = static_cast<std::uint16_t>(*at++);
    ranges.push_back({first, static_cast<std::uint16_t>(at == cuts.end() ? 65535 : *at - 1)});
  }
  return ranges;
}

// Whatever the text is: no two lists of such are one text.
void add_part(const std::string& text, std::string& key) {
  key += std::to_string(text.size()) + ":" + text + ",";
}

// each_server(see): calls it with each one whose port names count; asked for named ports alone.
template <class EachServer>
std::vector<PortRange> ports(const Selection& selection, Transport transport,
                             std::vector<NetworkRule> NetworkPolicy::* rules,
                             EachServer each_server) {
  Cuts cuts;
  if (transport == Transport::kTcp || selection.strict)
    for (const AuthorizationPolicy* policy : selection.authorization)
      for (const L4Rule& rule : policy->rules) {
        cut(cuts, rule.to);
        cut(cuts, rule.when_port);
      }
  const auto cut_named = [&](const NetworkPort& port) {
    each_server([&](const Workload& server) {
      if (const auto named = server.ports.find(port.name); named != server.ports.end())
        cut(cuts, named->second, named->second);
    });
  };
  for (const NetworkPolicy* policy : selection.network)
    for (const NetworkRule& rule : policy->*rules)
      for (const NetworkPort& port : rule.ports) {
        if (port.transport != transport) continue;
        if (port.name.empty())
          cut(cuts, port.first, port.last);
        else
          cut_named(port);
      }
  return ranges_between(std::move(cuts));
}

}  // namespace

std::vector<IpBlock> address_blocks(const AuthorizationPolicy& policy) {
  std::vector<IpBlock> blocks;
  for (const L4Rule& rule : policy.rules)
    for (const auto* matches : {&rule.from, &rule.when})
      for (const SourceMatch& match : *matches)
        for (const auto* list : {&match.ip_blocks, &match.not_ip_blocks})
          blocks.insert(blocks.end(), list->begin(), list->end());
  return blocks;
}

std::vector<IpBlock> address_blocks(const NetworkPolicy& policy) {
  std::vector<IpBlock> blocks;
  for (const auto* rules : {&policy.ingress_rules, &policy.egress_rules})
    for (const NetworkRule& rule : *rules)
      for (const NetworkPeer& peer : rule.peers) {
        if (peer.block) blocks.push_back(*peer.block);
        blocks.insert(blocks.end(), peer.except.begin(), peer.except.end());
      }
  return blocks;
}

PolicyParts::PolicyParts(const Snapshot& snapshot) {
  std::map<std::string, int> versions;  // of a policy that is in several files
  const auto name = [&](const void* policy, const std::string& text) {
    const int version = versions[text]++;
    names_[policy] = text + (version ? "#" + std::to_string(version) : "") + ",";
  };
  const auto add_blocks = [&](const auto& policy) {
    const std::vector<IpBlock> blocks = config::address_blocks(policy);
    blocks_.insert(blocks_.end(), blocks.begin(), blocks.end());
  };
  for (const AuthorizationPolicyPtr& policy : snapshot.policies) {
    name(policy.get(), display_name(*policy));
    add_blocks(*policy);
  }
  for (const NetworkPolicyPtr& policy : snapshot.network_policies) {
    name(policy.get(), display_name(*policy));
    add_blocks(*policy);
    for (const auto* rules : {&policy->ingress_rules, &policy->egress_rules})
      for (const NetworkRule& rule : *rules) {
        for (const NetworkPeer& peer : rule.peers) see(peer);
        for (const NetworkPort& port : rule.ports)
          if (!port.name.empty()) port_names_.insert(port.name);
      }
  }
}

void PolicyParts::see(const NetworkPeer& peer) {
  if (!peer.pods) return;
  for (const auto& [label, value] : peer.pods->labels) labels_.insert(label);
  for (const LabelRequirement& requirement : peer.pods->requirements)
    labels_.insert(requirement.key);
}

std::string PolicyParts::key(const Selection& selection, const Workload& workload) const {
  std::string key = selection.strict ? "strict," : "";
  for (const AuthorizationPolicy* policy : selection.authorization) key += names_.at(policy);
  for (const NetworkPolicy* policy : selection.network) key += names_.at(policy);
  if (key.empty()) return key;
  for (const std::string& name : port_names_)
    if (const auto port = workload.ports.find(name); port != workload.ports.end())
      add_part(name + "=" + std::to_string(port->second), key);
  return key;
}

std::vector<PortRange> PolicyParts::ingress_ports(const Selection& selection, Transport transport,
                                                  const Workload& server) const {
  return ports(selection, transport, &NetworkPolicy::ingress_rules,
               [&](const auto& see) { see(server); });
}

std::vector<PortRange> PolicyParts::egress_ports(const Snapshot& snapshot,
                                                 const Selection& selection, Transport transport,
                                                 const Workload* server) const {
  return ports(selection, transport, &NetworkPolicy::egress_rules, [&](const auto& see) {
    if (server) return see(*server);
    for (const auto& [name, workload] : snapshot.workloads) see(*workload);
  });
}

std::vector<std::string> PolicyParts::asked_labels(const Workload& workload) const {
  std::vector<std::string> labels;
  for (const std::string& name : labels_)
    if (const auto label = workload.labels.find(name); label != workload.labels.end())
      labels.push_back(name + "=" + label->second);
  return labels;
}

std::vector<std::string> PolicyParts::asked_ports(const Workload& workload) const {
  std::vector<std::string> ports;
  for (const std::string& name : port_names_)
    if (const auto port = workload.ports.find(name); port != workload.ports.end())
      ports.push_back(name + "=" + std::to_string(port->second));
  return ports;
}

std::string PolicyParts::peer_key(const Workload& workload) const {
  std::string key;
  add_part(workload.principal(), key);
  for (const std::string& label : asked_labels(workload)) add_part(label, key);
  key += "|";
  for (const std::string& port : asked_ports(workload)) add_part(port, key);
  return key;
}

}  // namespace mesh::config
