// Random policy sets with flows, and a reference that says who may talk to whom: written from the
// texts of Istio and Kubernetes, over the objects' own trees, slow and plain. What enforces
// policies is compared with it. Seeded: the same seed is the same case.
#pragma once

#include <boost/json.hpp>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "config/object.h"

namespace mesh::policy_cases {

namespace json = boost::json;

struct CaseWorkload {
  std::string ns, name, account;
  std::map<std::string, std::string> labels;
  std::map<std::string, int> ports;
  std::vector<std::string> addresses;  // one IPv4, perhaps one IPv6
  bool strict = false;
};

struct Case {
  std::vector<CaseWorkload> workloads;
  std::map<std::string, std::map<std::string, std::string>> namespaces;  // that have an object
  std::vector<json::object> policies;  // whole objects, of both kinds
  std::vector<std::string> node_addresses;

  // Everything, as compile() takes it.
  std::vector<config::ObjectPtr> objects() const;
  config::CompileOptions options() const;
};

struct CaseFlow {
  const CaseWorkload* client = nullptr;  // null: a stranger
  const CaseWorkload* server = nullptr;
  std::string from, to;  // addresses, of one family
  bool udp = false;
  int port = 0;
};

// ---- the reference

class Reference {
 public:
  Reference(const Case& world, const CaseFlow& flow) : world_(world), flow_(flow) {}

  bool allowed() const { return is_itself() || (egress_allows() && ingress_allows()); }
  // Whether an AUDIT policy of the server sees the flow: one that leaves its client.
  bool audited() const {
    return !is_itself() && flow_.server && egress_allows() && is_authorized_traffic() &&
           any_policy("AUDIT", true);
  }

 private:
  static const json::object* find(const json::object& object, const char* name) {
    const json::value* value = object.if_contains(name);
    return value ? value->if_object() : nullptr;
  }
  static json::array list(const json::object& object, const char* name) {
    const json::value* value = object.if_contains(name);
    return value ? value->as_array() : json::array();
  }
  static std::string text(const json::object& object, const char* name) {
    const json::value* value = object.if_contains(name);
    return value ? std::string(value->as_string()) : std::string();
  }
  static std::string ns_of(const json::object& object) {
    return text(object.at("metadata").as_object(), "namespace");
  }
  static bool is_kind(const json::object& object, const char* kind) {
    return text(object, "kind") == kind;
  }

  bool is_itself() const { return flow_.client && flow_.client == flow_.server; }

  static bool in_block(const std::string& block, const std::string& address) {
    const std::size_t slash = block.find('/');
    const IpAddress base = IpAddress::parse(block.substr(0, slash)).value();
    const IpAddress ip = IpAddress::parse(address).value();
    if (base.is_v4() != ip.is_v4()) return false;
    int bits = base.is_v4() ? 32 : 128;
    if (slash != std::string::npos) bits = std::stoi(block.substr(slash + 1));
    if (base.is_v4()) bits += 96;
    for (int i = 0; i < bits; ++i) {
      const auto byte = static_cast<std::size_t>(i / 8);
      const int mask = 0x80 >> (i % 8);
      if ((base.bytes()[byte] & mask) != (ip.bytes()[byte] & mask)) return false;
    }
    return true;
  }

  // ---- AuthorizationPolicy

  static bool value_matches(const std::string& pattern, const std::string& value) {
    if (pattern == "*") return !value.empty();
    if (pattern.back() == '*') return value.rfind(pattern.substr(0, pattern.size() - 1), 0) == 0;
    if (pattern.front() == '*') {
      const std::string tail = pattern.substr(1);
      return value.size() >= tail.size() && value.substr(value.size() - tail.size()) == tail;
    }
    return pattern == value;
  }

  // "" for strangers, who match nothing.
  std::string principal() const {
    return flow_.client ? "cluster.local/ns/" + flow_.client->ns + "/sa/" + flow_.client->account
                        : "";
  }
  bool is_value(const std::string& what, const std::string& value,
                const std::string& policy_ns) const {
    if (what == "ip") return in_block(value, flow_.from);
    if (what == "port") return value == std::to_string(flow_.port);
    if (!flow_.client) return false;
    if (what == "principal") return value_matches(value, principal());
    if (what == "namespace") return value_matches(value, flow_.client->ns);
    const std::string account =
        value.find('/') == std::string::npos ? policy_ns + "/" + value : value;
    return account == flow_.client->ns + "/" + flow_.client->account;
  }
  // A list and its "not" twin.
  bool lists_match(const json::object& object, const char* yes, const char* no,
                   const std::string& what, const std::string& policy_ns) const {
    const json::array wanted = list(object, yes), unwanted = list(object, no);
    bool any = wanted.empty();
    for (const auto& value : wanted)
      any = any || is_value(what, std::string(value.as_string()), policy_ns);
    for (const auto& value : unwanted)
      if (is_value(what, std::string(value.as_string()), policy_ns)) return false;
    return any;
  }
  bool source_matches(const json::object& s, const std::string& ns) const {
    return lists_match(s, "principals", "notPrincipals", "principal", ns) &&
           lists_match(s, "namespaces", "notNamespaces", "namespace", ns) &&
           lists_match(s, "serviceAccounts", "notServiceAccounts", "account", ns) &&
           lists_match(s, "ipBlocks", "notIpBlocks", "ip", ns);
  }
  // Istio, of TCP: what needs HTTP never matches in an ALLOW rule; from others it is left out.
  static bool needs_http(const json::object& rule) {
    for (const auto& f : list(rule, "from"))
      if (find(f.as_object(), "source")->contains("requestPrincipals")) return true;
    for (const auto& t : list(rule, "to"))
      for (const char* field : {"methods", "notPaths", "hosts"})
        if (find(t.as_object(), "operation")->contains(field)) return true;
    for (const auto& when : list(rule, "when"))
      if (text(when.as_object(), "key").rfind("request.", 0) == 0) return true;
    return false;
  }
  bool condition_matches(const json::object& c, const std::string& ns) const {
    if (text(c, "key").rfind("request.", 0) == 0) return true;
    static const std::map<std::string, std::string> kKeys = {{"source.principal", "principal"},
                                                             {"source.namespace", "namespace"},
                                                             {"source.serviceAccount", "account"},
                                                             {"source.ip", "ip"},
                                                             {"destination.port", "port"}};
    return lists_match(c, "values", "notValues", kKeys.at(text(c, "key")), ns);
  }
  bool rule_matches(const json::object& rule, const std::string& ns,
                    const std::string& action) const {
    if (action == "ALLOW" && needs_http(rule)) return false;
    bool from = !rule.contains("from"), to = !rule.contains("to");
    for (const auto& f : list(rule, "from"))
      from = from || source_matches(*find(f.as_object(), "source"), ns);
    for (const auto& t : list(rule, "to"))
      to = to || lists_match(*find(t.as_object(), "operation"), "ports", "notPorts", "port", ns);
    for (const auto& when : list(rule, "when"))
      if (!condition_matches(when.as_object(), ns)) return false;
    return from && to;
  }
  bool authorization_selects(const json::object& policy) const {
    const std::string ns = ns_of(policy);
    if (ns != "istio-system" && ns != flow_.server->ns) return false;
    const json::object* selector = find(policy.at("spec").as_object(), "selector");
    if (!selector) return true;
    for (const auto& [key, value] : *find(*selector, "matchLabels")) {
      auto label = flow_.server->labels.find(std::string(key));
      if (label == flow_.server->labels.end() || label->second != value.as_string()) return false;
    }
    return true;
  }
  // Whether a policy of this action selects the server, and (`matching`) has a rule that matches.
  bool any_policy(const std::string& action, bool matching) const {
    for (const json::object& policy : world_.policies) {
      if (!is_kind(policy, "AuthorizationPolicy") || !authorization_selects(policy)) continue;
      const json::object& spec = policy.at("spec").as_object();
      if (text(spec, "action") != action) continue;
      if (!matching) return true;
      for (const auto& rule : list(spec, "rules"))
        if (rule_matches(rule.as_object(), ns_of(policy), action)) return true;
    }
    return false;
  }
  bool is_authorized_traffic() const { return !flow_.udp || flow_.server->strict; }

  // ---- NetworkPolicy

  using Labels = std::map<std::string, std::string>;
  static bool selector_matches(const json::object& selector, const Labels& labels) {
    if (const json::object* wanted = find(selector, "matchLabels"))
      for (const auto& [key, value] : *wanted)
        if (!labels.contains(std::string(key)) ||
            labels.at(std::string(key)) != std::string(value.as_string()))
          return false;
    for (const auto& item : list(selector, "matchExpressions")) {
      const json::object& expression = item.as_object();
      const std::string key = text(expression, "key"), op = text(expression, "operator");
      const bool exists = labels.contains(key);
      bool listed = false;
      for (const auto& value : list(expression, "values"))
        listed = listed || (exists && labels.at(key) == std::string(value.as_string()));
      if (op == "In" && !listed) return false;
      if (op == "NotIn" && listed) return false;
      if (op == "Exists" && !exists) return false;
      if (op == "DoesNotExist" && exists) return false;
    }
    return true;
  }
  Labels namespace_labels(const std::string& ns) const {
    Labels labels;
    if (auto known = world_.namespaces.find(ns); known != world_.namespaces.end())
      labels = known->second;
    labels["kubernetes.io/metadata.name"] = ns;
    return labels;
  }
  bool peer_matches(const json::object& peer, const std::string& policy_ns,
                    const CaseWorkload* workload, const std::string& address) const {
    if (const json::object* block = find(peer, "ipBlock")) {
      for (const auto& except : list(*block, "except"))
        if (in_block(std::string(except.as_string()), address)) return false;
      return in_block(text(*block, "cidr"), address);
    }
    if (!workload) return false;
    const json::object* pods = find(peer, "podSelector");
    const json::object* namespaces = find(peer, "namespaceSelector");
    if (pods && !selector_matches(*pods, workload->labels)) return false;
    return namespaces ? selector_matches(*namespaces, namespace_labels(workload->ns))
                      : workload->ns == policy_ns;
  }
  bool port_matches(const json::object& port) const {
    const std::string protocol = text(port, "protocol");
    if ((protocol == "UDP") != flow_.udp) return false;
    const json::value* number = port.if_contains("port");
    if (!number) return true;
    if (number->is_string()) {
      if (!flow_.server) return false;
      auto named = flow_.server->ports.find(std::string(number->get_string()));
      return named != flow_.server->ports.end() && named->second == flow_.port;
    }
    const json::value* end = port.if_contains("endPort");
    return flow_.port >= number->as_int64() && flow_.port <= (end ? *end : *number).as_int64();
  }
  bool network_rule_matches(const json::object& rule, const char* peers, const std::string& ns,
                            const CaseWorkload* workload, const std::string& address) const {
    const json::array others = list(rule, peers), ports = list(rule, "ports");
    bool peer = others.empty(), port = ports.empty();
    for (const auto& other : others)
      peer = peer || peer_matches(other.as_object(), ns, workload, address);
    for (const auto& item : ports) port = port || port_matches(item.as_object());
    return peer && port;
  }
  static bool has_type(const json::object& spec, const std::string& type) {
    const json::array types = list(spec, "policyTypes");
    if (types.empty()) return type == "Ingress" || !list(spec, "egress").empty();
    for (const auto& given : types)
      if (given.as_string() == type) return true;
    return false;
  }
  static bool network_selects(const json::object& policy, const CaseWorkload& workload,
                              const std::string& type) {
    const json::object& spec = policy.at("spec").as_object();
    return is_kind(policy, "NetworkPolicy") && ns_of(policy) == workload.ns &&
           has_type(spec, type) && selector_matches(*find(spec, "podSelector"), workload.labels);
  }
  bool network_allows(const CaseWorkload& own, const std::string& type, const char* rules,
                      const char* peers, const CaseWorkload* other,
                      const std::string& address) const {
    bool isolated = false;
    for (const json::object& policy : world_.policies) {
      if (!network_selects(policy, own, type)) continue;
      isolated = true;
      for (const auto& rule : list(policy.at("spec").as_object(), rules))
        if (network_rule_matches(rule.as_object(), peers, ns_of(policy), other, address))
          return true;
    }
    return !isolated;
  }

  // ---- both

  bool egress_allows() const {
    return !flow_.client ||
           network_allows(*flow_.client, "Egress", "egress", "to", flow_.server, flow_.to);
  }
  bool ingress_allows() const {
    if (!flow_.server) return true;
    if (is_authorized_traffic()) {
      if (any_policy("DENY", true)) return false;
      if (any_policy("ALLOW", false) && !any_policy("ALLOW", true)) return false;
    }
    if (!is_this_node() &&
        !network_allows(*flow_.server, "Ingress", "ingress", "from", flow_.client, flow_.from))
      return false;
    return !flow_.server->strict || has_way_in();
  }
  // Kubernetes: the node's own agents reach its pods whatever NetworkPolicies say.
  bool is_this_node() const {
    for (const std::string& address : world_.node_addresses)
      if (address == flow_.from) return true;
    return false;
  }
  bool has_way_in() const {
    for (const json::object& policy : world_.policies)
      if (network_selects(policy, *flow_.server, "Ingress")) return true;
    return any_policy("ALLOW", false);
  }

  const Case& world_;
  const CaseFlow& flow_;
};

// ---- the generator

class Generator {
 public:
  explicit Generator(unsigned seed) : random_(seed) {}

  Case world() {
    Case world;
    world.namespaces = {{"books", {{"team", "red"}}}, {"shop", {{"team", "blue"}}}};
    for (int i = 0; i < 6; ++i) world.workloads.push_back(workload(i));
    if (pick(3) == 0) world.node_addresses = {"192.0.2.1", "fd99::1"};
    for (unsigned i = pick(4); i > 0; --i) add(world, "AuthorizationPolicy", authorization());
    for (unsigned i = pick(4); i > 0; --i) add(world, "NetworkPolicy", network());
    return world;
  }
  CaseFlow flow(const Case& world) {
    CaseFlow flow;
    flow.udp = pick(4) == 0;
    flow.port = *(kPorts.begin() + pick(static_cast<unsigned>(kPorts.size())));
    const std::size_t family = pick(4) == 0 ? 1 : 0;  // IPv6, where both ends have it
    flow.client = pick(5) ? &world.workloads[pick(6)] : nullptr;
    flow.server = pick(8) || !flow.client ? &world.workloads[pick(6)] : nullptr;
    const auto has = [&](const CaseWorkload* w) { return !w || w->addresses.size() > family; };
    const std::size_t used = has(flow.client) && has(flow.server) ? family : 0;
    flow.from = flow.client ? flow.client->addresses[used] : stranger(used);
    flow.to = flow.server ? flow.server->addresses[used] : stranger(used);
    return flow;
  }
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_()) % n; }

 private:
  static constexpr std::initializer_list<int> kPorts = {80, 81, 90, 53, 3306};

  std::string choose(std::initializer_list<const char*> words) {
    return *(words.begin() + pick(static_cast<unsigned>(words.size())));
  }
  std::string stranger(std::size_t family) {
    return family == 0 ? choose({"192.0.2.1", "192.0.2.200", "198.51.100.9"})
                       : choose({"fd99::1", "2001:db8::9"});
  }
  json::array some(std::initializer_list<const char*> words) {
    json::array values;
    for (unsigned i = 1 + pick(2); i > 0; --i) values.push_back(json::value(choose(words)));
    return values;
  }

  CaseWorkload workload(int i) {
    CaseWorkload w;
    w.ns = i < 3 ? "books" : i < 5 ? "shop" : "bank";
    w.name = "w" + std::to_string(i);
    w.account = choose({"default", "page", "ratings"});
    w.labels["app"] = choose({"page", "db", "cache"});
    if (pick(2)) w.labels["tier"] = choose({"front", "back"});
    w.ports["http"] = pick(2) ? 80 : 81;
    if (pick(2)) w.ports["sql"] = 3306;
    w.addresses = {"10.77." + std::to_string(i / 3) + "." + std::to_string(i + 1)};
    if (pick(2)) w.addresses.push_back("fd77::" + std::to_string(i + 1));
    w.strict = pick(4) == 0;
    return w;
  }
  void add(Case& world, const char* kind, json::object spec) {
    const bool network = std::string(kind) == "NetworkPolicy";
    const std::string ns = network || pick(4) ? choose({"books", "shop", "bank"}) : "istio-system";
    world.policies.push_back(
        {{"apiVersion", network ? "networking.k8s.io/v1" : "security.istio.io/v1"},
         {"kind", kind},
         {"metadata", {{"name", "p" + std::to_string(world.policies.size())}, {"namespace", ns}}},
         {"spec", std::move(spec)}});
  }

  // ---- AuthorizationPolicy

  json::object authorization() {
    json::object spec = {{"action", choose({"ALLOW", "ALLOW", "ALLOW", "DENY", "DENY", "AUDIT"})}};
    const bool selects_some = pick(2) != 0;
    if (selects_some)
      spec["selector"] = {{"matchLabels", {{"app", choose({"page", "db", "cache"})}}}};
    json::array rules;
    for (unsigned i = pick(4); i > 0; --i) {
      rules.push_back(rule());
      // One that needs HTTP and selects nobody is refused: who knows what it will select.
      if (!selects_some && pick(6) == 0) add_http(rules.back().as_object());
    }
    spec["rules"] = std::move(rules);
    return spec;
  }
  json::array values(const std::string& what) {
    if (what == "principal")
      return some({"*", "cluster.local/ns/books/*", "*/sa/ratings", "other/ns/books/sa/page",
                   "cluster.local/ns/books/sa/page", "cluster.local/ns/shop/sa/default"});
    if (what == "namespace") return some({"books", "shop", "b*", "*p", "*", "bank"});
    if (what == "account") return some({"ratings", "books/page", "shop/default", "bank/page"});
    if (what == "ip")
      return some({"10.77.0.0/24", "10.77.0.1", "fd77::/16", "0.0.0.0/0", "192.0.2.0/25"});
    return some({"80", "90", "3306", "53"});
  }
  json::object source() {
    json::object s;
    const auto maybe = [&](const char* name, const char* what) {
      if (pick(3) == 0) s[name] = values(what);
    };
    if (pick(4) == 0) {
      s[pick(2) ? "serviceAccounts" : "notServiceAccounts"] = values("account");
    } else {
      maybe("principals", "principal");
      maybe("notPrincipals", "principal");
      maybe("namespaces", "namespace");
      maybe("notNamespaces", "namespace");
    }
    maybe("ipBlocks", "ip");
    maybe("notIpBlocks", "ip");
    if (s.empty()) s["namespaces"] = values("namespace");
    return s;
  }
  json::object condition() {
    static constexpr const char* kKeys[][2] = {{"source.principal", "principal"},
                                               {"source.namespace", "namespace"},
                                               {"source.serviceAccount", "account"},
                                               {"source.ip", "ip"},
                                               {"destination.port", "port"}};
    const auto& key = kKeys[pick(5)];
    json::object c = {{"key", key[0]}};
    const unsigned which = pick(3);
    if (which != 0) c["values"] = values(key[1]);
    if (which != 1) c["notValues"] = values(key[1]);
    return c;
  }
  json::object rule() {
    json::object r;
    if (pick(3)) {
      json::array from;
      for (unsigned i = 1 + pick(2); i > 0; --i) from.push_back(json::object{{"source", source()}});
      r["from"] = std::move(from);
    }
    if (pick(3) == 0) {
      json::object operation;
      if (pick(2)) operation["ports"] = values("port");
      if (pick(2) || operation.empty()) operation["notPorts"] = values("port");
      r["to"] = json::array{json::object{{"operation", std::move(operation)}}};
    }
    if (pick(3) == 0) {
      json::array when;
      for (unsigned i = 1 + pick(2); i > 0; --i) when.push_back(condition());
      r["when"] = std::move(when);
    }
    return r;
  }

  void add_http(json::object& rule) {
    switch (pick(3)) {
      case 0:
        rule["to"] = json::array{json::object{
            {"operation", {{choose({"methods", "notPaths", "hosts"}), json::array{"GET"}}}}}};
        if (pick(2)) rule["to"].at(0).at("operation").as_object()["ports"] = values("port");
        break;
      case 1:
        rule["from"] =
            json::array{json::object{{"source", {{"requestPrincipals", json::array{"*"}}}}},
                        json::object{{"source", source()}}};
        break;
      default:
        rule["when"] = json::array{
            json::object{{"key", "request.headers[x]"}, {"values", json::array{"y"}}}, condition()};
    }
  }

  // ---- NetworkPolicy

  json::object selector(const char* key, std::initializer_list<const char*> words) {
    json::object s;
    if (pick(3) == 0) return s;
    if (pick(2)) {
      s["matchLabels"] = {{key, choose(words)}};
      if (pick(3)) return s;
    }
    const std::string op = choose({"In", "NotIn", "Exists", "DoesNotExist"});
    const std::string at = pick(2) ? key : "tier";
    json::object expression = {{"key", at}, {"operator", op}};
    if (op == "In" || op == "NotIn")
      expression["values"] = at == "tier" ? some({"front", "back"}) : some(words);
    s["matchExpressions"] = json::array{std::move(expression)};
    return s;
  }
  json::object pods() { return selector("app", {"page", "db", "cache"}); }
  json::object peer() {
    switch (pick(5)) {
      case 0:
        return {{"podSelector", pods()}};
      case 1:
        return {{"namespaceSelector", selector("team", {"red", "blue"})}};
      case 2:
        return {{"namespaceSelector",
                 selector("kubernetes.io/metadata.name", {"books", "shop", "bank"})},
                {"podSelector", pods()}};
      case 3:
        return {{"ipBlock",
                 {{"cidr", choose({"10.77.0.0/16", "0.0.0.0/0", "192.0.2.0/24", "::/0", "fd77::/16",
                                   "10.77.0.1/32"})}}}};
      default:
        return {{"ipBlock",
                 {{"cidr", "0.0.0.0/0"},
                  {"except", some({"10.77.0.0/24", "192.0.2.128/25", "10.77.1.4/32"})}}}};
    }
  }
  json::object port() {
    json::object p;
    if (pick(2)) p["protocol"] = pick(2) ? "TCP" : "UDP";
    switch (pick(4)) {
      case 0:
        break;
      case 1:
        p["port"] = choose({"http", "sql"});
        break;
      case 2:
        p["port"] = 80;
        p["endPort"] = 80 + static_cast<int>(pick(12));
        break;
      default:
        p["port"] = *(kPorts.begin() + pick(static_cast<unsigned>(kPorts.size())));
    }
    return p;
  }
  json::array rules(const char* peers) {
    json::array rules;
    for (unsigned i = pick(3); i > 0; --i) {
      json::object rule;
      json::array others, ports;
      for (unsigned k = pick(3); k > 0; --k) others.push_back(peer());
      for (unsigned k = pick(3); k > 0; --k) ports.push_back(port());
      if (!others.empty() || pick(2)) rule[peers] = std::move(others);
      if (!ports.empty()) rule["ports"] = std::move(ports);
      rules.push_back(std::move(rule));
    }
    return rules;
  }
  json::object network() {
    json::object spec = {{"podSelector", pods()}};
    const unsigned types = pick(4);
    if (types == 1) spec["policyTypes"] = json::array{"Ingress"};
    if (types == 2) spec["policyTypes"] = json::array{"Egress"};
    if (types == 3) spec["policyTypes"] = json::array{"Ingress", "Egress"};
    if (types != 2) spec["ingress"] = rules("from");
    if (types == 2 || types == 3 || pick(3) == 0) spec["egress"] = rules("to");
    return spec;
  }

  std::mt19937 random_;
};

inline config::CompileOptions Case::options() const {
  config::CompileOptions options;
  for (const std::string& address : node_addresses)
    options.node_addresses.push_back(IpAddress::parse(address).value());
  return options;
}

inline std::vector<config::ObjectPtr> Case::objects() const {
  std::vector<config::ObjectPtr> objects;
  const auto add = [&](json::object tree) {
    objects.push_back(
        std::make_shared<const config::Object>(config::make_object(std::move(tree)).value()));
  };
  const auto texts = [](const std::map<std::string, std::string>& map) {
    json::object object;
    for (const auto& [key, value] : map) object[key] = value;
    return object;
  };
  for (const auto& [name, labels] : namespaces)
    add({{"apiVersion", "v1"},
         {"kind", "Namespace"},
         {"metadata", {{"name", name}, {"labels", texts(labels)}}}});
  for (const CaseWorkload& w : workloads) {
    json::object annotations = {{"undermesh.io/mode", w.strict ? "strict" : "permissive"}};
    if (w.addresses.size() > 1) annotations["undermesh.io/addresses"] = w.addresses[1];
    json::object ports;
    for (const auto& [name, number] : w.ports) ports[name] = number;
    add({{"apiVersion", "networking.istio.io/v1"},
         {"kind", "WorkloadEntry"},
         {"metadata", {{"name", w.name}, {"namespace", w.ns}, {"annotations", annotations}}},
         {"spec",
          {{"address", w.addresses[0]},
           {"labels", texts(w.labels)},
           {"ports", ports},
           {"serviceAccount", w.account}}}});
  }
  for (const json::object& policy : policies) add(policy);
  return objects;
}

}  // namespace mesh::policy_cases
