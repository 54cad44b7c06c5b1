#include <algorithm>

#include "config/kinds.h"

namespace mesh::config {
namespace {

constexpr Field kPolicy[] = {{"podSelector"}, {"policyTypes"}, {"ingress"}, {"egress"}};
constexpr Field kIngressRule[] = {{"from"}, {"ports"}};
constexpr Field kEgressRule[] = {{"to"}, {"ports"}};
constexpr Field kPeer[] = {{"podSelector"}, {"namespaceSelector"}, {"ipBlock"}};
constexpr Field kIpBlock[] = {{"cidr"}, {"except"}};
constexpr Field kPort[] = {{"protocol"}, {"port"}, {"endPort"}};
constexpr Field kSelector[] = {{"matchLabels"}, {"matchExpressions"}};
constexpr Field kExpression[] = {{"key"}, {"operator"}, {"values"}};

struct OperatorWord {
  std::string_view word;
  LabelRequirement::Operator value;
  bool has_values;
};
constexpr OperatorWord kOperators[] = {
    {"In", LabelRequirement::Operator::kIn, true},
    {"NotIn", LabelRequirement::Operator::kNotIn, true},
    {"Exists", LabelRequirement::Operator::kExists, false},
    {"DoesNotExist", LabelRequirement::Operator::kDoesNotExist, false},
};

LabelRequirement read_requirement(const Fields& fields) {
  LabelRequirement requirement;
  requirement.key = fields.required_text("key").value_or("");
  if (const std::string fault = fault_of_label_key(requirement.key);
      !fault.empty() && !requirement.key.empty())
    fields.error("key", fault);
  requirement.values = fields.texts("values");
  for (const std::string& value : requirement.values)
    if (const std::string fault = fault_of_label_value(value); !fault.empty())
      fields.error("values", fault);
  auto word = fields.required_text("operator");
  if (!word) return requirement;
  auto found = std::find_if(std::begin(kOperators), std::end(kOperators),
                            [&](const OperatorWord& o) { return o.word == *word; });
  if (found == std::end(kOperators)) {
    fields.error("operator", "must be In, NotIn, Exists or DoesNotExist, not '" + *word + "'");
    return requirement;
  }
  requirement.op = found->value;
  if (found->has_values && requirement.values.empty())
    fields.error("values", "is required with the operator " + *word);
  if (!found->has_values && !requirement.values.empty())
    fields.error("values", "must be empty with the operator " + *word);
  return requirement;
}

LabelSelector read_selector(const Fields& fields) {
  LabelSelector selector;
  selector.labels = fields.labels("matchLabels");
  for (const Fields& expression : fields.messages("matchExpressions", kExpression))
    selector.requirements.push_back(read_requirement(expression));
  return selector;
}

std::optional<LabelSelector> read_optional_selector(const Fields& parent, std::string_view name) {
  auto fields = parent.message(name, kSelector);
  if (!fields) return {};
  return read_selector(*fields);
}

// What the policy selects when its selector cannot be read: the whole namespace.
LabelSelector read_pod_selector(const Fields& spec) {
  const std::size_t errors = spec.report().errors();
  auto selector = read_optional_selector(spec, "podSelector");
  return selector && spec.report().errors() == errors ? *std::move(selector) : LabelSelector();
}

std::optional<IpBlock> read_block(const Fields& fields, std::string_view name,
                                  const std::string& text) {
  auto block = IpBlock::parse(text);
  if (block && text.find('/') != std::string::npos) return block.value();
  fields.error(name, "must be a block of addresses such as 10.0.0.0/8, not '" + text + "'");
  return {};
}

void read_ip_block(const Fields& fields, NetworkPeer& peer) {
  auto cidr = fields.required_text("cidr");
  if (cidr) peer.block = read_block(fields, "cidr", *cidr);
  for (const std::string& text : fields.texts("except")) {
    auto block = read_block(fields, "except", text);
    if (!block || !peer.block) continue;
    if (!peer.block->contains(block->base) || block->prefix_length <= peer.block->prefix_length)
      fields.error("except", "'" + text + "' is not a part of " + *cidr);
    peer.except.push_back(*block);
  }
}

NetworkPeer read_peer(const Fields& fields) {
  NetworkPeer peer;
  peer.pods = read_optional_selector(fields, "podSelector");
  peer.namespaces = read_optional_selector(fields, "namespaceSelector");
  const bool selects = fields.has("podSelector") || fields.has("namespaceSelector");
  if (auto block = fields.message("ipBlock", kIpBlock)) {
    read_ip_block(*block, peer);
    if (selects) fields.error("ipBlock", "cannot stand beside podSelector or namespaceSelector");
  } else if (!selects && !fields.has("ipBlock")) {
    fields.error("", "must have podSelector, namespaceSelector or ipBlock");
  }
  return peer;
}

bool is_port_name(std::string_view name) {
  return name.size() <= 63 && std::any_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
         });
}

void read_port_numbers(const Fields& fields, NetworkPort& port) {
  const boost::json::value* given = fields.find("port");
  if (!given) {
    if (fields.has("endPort")) fields.error("endPort", "needs port, the first of the range");
    return;
  }
  if (given->is_string()) {
    port.name = std::string(given->get_string());
    if (!is_port_name(port.name))
      fields.error(
          "port", "must be a number, or the name of a port of the server, not '" + port.name + "'");
    if (fields.has("endPort")) fields.error("endPort", "needs a number as port");
    return;
  }
  port.first = fields.port("port").value_or(1);
  port.last = fields.port("endPort").value_or(port.first);
  if (port.last < port.first) fields.error("endPort", "must not be less than port");
}

NetworkPort read_port(const Fields& fields) {
  NetworkPort port;
  const std::string protocol = fields.text("protocol").value_or("TCP");
  if (protocol == "UDP")
    port.transport = Transport::kUdp;
  else if (protocol == "SCTP")
    fields.error("protocol", "SCTP is not supported; use TCP or UDP");
  else if (protocol != "TCP")
    fields.error("protocol", "must be TCP or UDP, not '" + protocol + "'");
  read_port_numbers(fields, port);
  return port;
}

std::vector<NetworkRule> read_rules(const Fields& spec, std::string_view name, Schema schema,
                                    std::string_view peers) {
  std::vector<NetworkRule> rules;
  for (const Fields& fields : spec.messages(name, schema)) {
    NetworkRule rule;
    for (const Fields& peer : fields.messages(peers, kPeer)) rule.peers.push_back(read_peer(peer));
    for (const Fields& port : fields.messages("ports", kPort))
      rule.ports.push_back(read_port(port));
    rules.push_back(std::move(rule));
  }
  return rules;
}

// Which directions the policy speaks of; false where that cannot be read.
bool read_types(const Fields& spec, NetworkPolicy& policy) {
  const std::size_t errors = spec.report().errors();
  const std::vector<std::string> types = spec.texts("policyTypes");
  for (const std::string& type : types) {
    if (type == "Ingress")
      policy.ingress = true;
    else if (type == "Egress")
      policy.egress = true;
    else
      spec.error("policyTypes", "must be Ingress, Egress or both, not '" + type + "'");
  }
  if (types.empty()) {
    policy.ingress = true;
    policy.egress = !policy.egress_rules.empty();
  }
  if (!policy.ingress && !policy.ingress_rules.empty())
    spec.warn("ingress", "has no effect: policyTypes does not name Ingress");
  if (!policy.egress && !policy.egress_rules.empty())
    spec.warn("egress", "has no effect: policyTypes does not name Egress");
  return !types.empty() && spec.report().errors() == errors;
}

}  // namespace

NetworkPolicy read_network_policy(Report& report) {
  const ObjectKey& key = report.object().key;
  NetworkPolicy policy;
  policy.name = {key.ns, key.name};
  Fields spec = open_spec(report, kPolicy);
  policy.selector = read_pod_selector(spec);
  policy.ingress_rules = read_rules(spec, "ingress", kIngressRule, "from");
  policy.egress_rules = read_rules(spec, "egress", kEgressRule, "to");
  const bool named = read_types(spec, policy);
  policy.refused = report.failed();
  // What is wrong may be where it says so.
  if (policy.refused && !named) policy.ingress = policy.egress = true;
  return policy;
}

}  // namespace mesh::config
