#include <algorithm>
#include <array>
#include <deque>
#include <tuple>

#include "config/assemble.h"

namespace mesh::config {
namespace {

enum class Kind : std::uint8_t {
  kService,
  kNamespace,
  kEndpointSlice,
  kWorkloadEntry,
  kServiceEntry,
  kVirtualService,
  kDestinationRule,
  kGateway,
  kTcpRoute,
  kAuthorizationPolicy,
  kNetworkPolicy,
};

struct KindEntry {
  std::string_view name;
  std::string_view group;  // of apiVersion; "" is core
  std::array<std::string_view, 3> versions;
  Kind kind;
};
constexpr KindEntry kKinds[] = {
    {"Service", "", {"v1"}, Kind::kService},
    {"Namespace", "", {"v1"}, Kind::kNamespace},
    {"EndpointSlice", "discovery.k8s.io", {"v1"}, Kind::kEndpointSlice},
    {"WorkloadEntry", "networking.istio.io", {"v1", "v1beta1", "v1alpha3"}, Kind::kWorkloadEntry},
    {"ServiceEntry", "networking.istio.io", {"v1", "v1beta1", "v1alpha3"}, Kind::kServiceEntry},
    {"VirtualService", "networking.istio.io", {"v1", "v1beta1", "v1alpha3"}, Kind::kVirtualService},
    {"DestinationRule",
     "networking.istio.io",
     {"v1", "v1beta1", "v1alpha3"},
     Kind::kDestinationRule},
    {"Gateway", "networking.istio.io", {"v1", "v1beta1", "v1alpha3"}, Kind::kGateway},
    {"TCPRoute", "gateway.networking.k8s.io", {"v1", "v1alpha2"}, Kind::kTcpRoute},
    {"AuthorizationPolicy", "security.istio.io", {"v1", "v1beta1"}, Kind::kAuthorizationPolicy},
    {"NetworkPolicy", "networking.k8s.io", {"v1"}, Kind::kNetworkPolicy},
};

// Known to the APIs, so not a typing error.
constexpr std::string_view kLaterKinds[] = {"Sidecar",
                                            "EnvoyFilter",
                                            "WorkloadGroup",
                                            "WasmPlugin",
                                            "Telemetry",
                                            "PeerAuthentication",
                                            "RequestAuthentication",
                                            "ProxyConfig",
                                            "HTTPRoute",
                                            "GRPCRoute",
                                            "TLSRoute",
                                            "UDPRoute",
                                            "GatewayClass",
                                            "ReferenceGrant",
                                            "BackendTLSPolicy",
                                            "Pod",
                                            "Deployment",
                                            "ServiceAccount",
                                            "ConfigMap",
                                            "Secret",
                                            "Endpoints",
                                            "Ingress",
                                            "IngressClass",
                                            "IPAddress",
                                            "ServiceCIDR"};

// Of whose kinds all are above: another one is a typing error.
constexpr std::string_view kWholeGroups[] = {"security.istio.io", "networking.k8s.io"};

// "" is core's.
std::string_view group_of(std::string_view api_version) {
  const std::size_t slash = api_version.find('/');
  return slash == std::string_view::npos ? "" : api_version.substr(0, slash);
}

const KindEntry* entry_of(std::string_view kind) {
  const auto* entry = std::ranges::find(kKinds, kind, &KindEntry::name);
  return entry == std::end(kKinds) ? nullptr : entry;
}

bool is_later(std::string_view kind) {
  return std::ranges::find(kLaterKinds, kind) != std::end(kLaterKinds);
}

// A kind that it may have been meant for; "": none.
std::string_view meant_by(std::string_view kind) {
  std::vector<std::string_view> names;
  for (const KindEntry& entry : kKinds) names.push_back(entry.name);
  return closest(kind, names);
}

void report_unknown(Report& report) {
  const std::string& kind = report.object().key.kind;
  const std::string_view meant = is_later(kind) ? "" : meant_by(kind);
  report.error("kind",
               "the kind " + kind +
                   (is_later(kind)  ? " is not supported yet"
                    : meant.empty() ? " is unknown"
                                    : " is unknown (did you mean " + std::string(meant) + "?)"));
}

// Null for other kinds. Reports those, and versions that are not known.
const KindEntry* find_kind(Report& report) {
  const Object& object = report.object();
  const std::string& name = object.key.kind;
  const KindEntry* entry = entry_of(name);
  if (!entry) {
    report_unknown(report);
    return nullptr;
  }
  std::string_view given = object.api_version;
  std::string_view group = group_of(given);
  std::size_t slash = given.find('/');
  std::string_view version = slash == std::string_view::npos ? given : given.substr(slash + 1);
  bool known = group == entry->group && std::find(entry->versions.begin(), entry->versions.end(),
                                                  version) != entry->versions.end();
  if (known && !version.empty()) return entry;
  std::string expected = entry->group.empty() ? "" : std::string(entry->group) + "/";
  report.error("apiVersion", "'" + std::string(given) + "' is not supported for " + name +
                                 "; use " + expected + std::string(entry->versions[0]));
  return entry;
}

struct Item {
  ObjectPtr object;
  std::vector<Problem> problems;
  Report report;
  std::string created;  // sorts by time; empty: unknown
  std::size_t index;    // among the objects given

  Item(ObjectPtr o, std::size_t i);
};

// "2024-01-02T03:04:05Z", without its Z: so fractions of a second sort behind the whole one.
std::string creation_time(const Object& object) {
  const auto* metadata = object.tree.if_contains("metadata");
  const auto* time = metadata && metadata->is_object()
                         ? metadata->get_object().if_contains("creationTimestamp")
                         : nullptr;
  if (!time || !time->is_string()) return {};
  std::string text(time->get_string());
  if (text.ends_with('Z')) text.pop_back();
  return text;
}

Item::Item(ObjectPtr o, std::size_t i)
    : object(std::move(o)), report(*object, problems), created(creation_time(*object)), index(i) {}

// Oldest first; those without a time are about to be created, so the youngest.
bool is_older(const Item* a, const Item* b) {
  auto rank = [](const Item* item) {
    return std::tie(item->created, item->object->key.name, item->object->key.ns,
                    item->object->key.kind, item->index);
  };
  if (a->created.empty() != b->created.empty()) return b->created.empty();
  return rank(a) < rank(b);
}

std::string file_or_source(const Object& object) {
  return object.file.empty() ? "the same input" : object.file;
}

void refuse_duplicates(std::deque<Item>& items) {
  std::map<ObjectKey, const Object*> owners;
  for (Item& item : items) {
    auto [owner, is_new] = owners.emplace(item.object->key, item.object.get());
    if (!is_new)
      item.report.error("metadata.name",
                        "is also in " + file_or_source(*owner->second) +
                            "; an object has one owner: remove it from all but one");
  }
}

std::shared_ptr<const Surroundings> surroundings_of(const Parts& parts, const Snapshot& snapshot) {
  Surroundings found;
  found.has_slices = !parts.slices.empty();
  found.strict_namespaces = strict_namespaces(parts);
  for (const auto& [report, rule] : parts.destination_rules)
    found.rule_labels.insert(rule.host.starts_with('*') ? "*"
                                                        : rule.host.substr(0, rule.host.find('.')));
  for (const auto& [host, service] : snapshot.services)
    if (!service->selector.empty())
      found.selecting[service->name.ns].push_back(service);
    else if (service->is_entry)
      found.spelt_out.push_back(service);
  return std::make_shared<const Surroundings>(std::move(found));
}

}  // namespace

std::optional<Problem> mistaken_kind(const Object& object) {
  const std::string& kind = object.key.kind;
  if (entry_of(kind) || is_later(kind)) return std::nullopt;
  const std::string_view group = group_of(object.api_version);
  if (meant_by(kind).empty() && std::ranges::find(kWholeGroups, group) == std::end(kWholeGroups))
    return std::nullopt;
  std::vector<Problem> problems;
  Report report(object, problems);
  report_unknown(report);
  return problems.front();
}

void read_object(Report& report, const CompileOptions& options, Parts& parts) {
  const KindEntry* entry = find_kind(report);
  if (!entry || (report.failed() && !is_policy(report.object().key))) return;
  auto keep = [&](auto& list, auto value) {
    if (!report.failed()) list.push_back({&report, std::move(value)});
  };
  switch (entry->kind) {
    case Kind::kNamespace:
      // Refused or not, it takes part: what it says of its mode, right or not, closes its
      // workloads.
      return parts.namespaces.push_back({&report, read_namespace(report)});
    case Kind::kService:
      return keep(parts.services, read_service(report));
    case Kind::kEndpointSlice:
      return keep(parts.slices, read_endpoint_slice(report));
    case Kind::kWorkloadEntry:
      return keep(parts.workloads, read_workload_entry(report));
    case Kind::kServiceEntry:
      for (ServicePart& part : read_service_entry(report)) keep(parts.services, std::move(part));
      return;
    case Kind::kVirtualService:
      return keep(parts.virtual_services, read_virtual_service(report));
    case Kind::kDestinationRule:
      return keep(parts.destination_rules, read_destination_rule(report));
    case Kind::kGateway:
      return keep(parts.gateways, read_gateway(report));
    case Kind::kTcpRoute:
      return keep(parts.tcp_routes, read_tcp_route(report));
    case Kind::kAuthorizationPolicy:
      // Refused or not, it takes part: a refused one denies. It may be refused already: it is in
      // two places, or its version is not known.
      return parts.policies.push_back(
          {&report, read_authorization_policy(report, options.root_namespace)});
    case Kind::kNetworkPolicy:
      return parts.network_policies.push_back({&report, read_network_policy(report)});
  }
}

Compiled compile(const std::vector<ObjectPtr>& objects, std::uint64_t version,
                 const CompileOptions& options, const Snapshot* previous) {
  std::deque<Item> items;
  for (const ObjectPtr& object : objects) items.emplace_back(object, items.size());
  refuse_duplicates(items);
  std::vector<Item*> by_age;
  by_age.reserve(items.size());
  for (Item& item : items) by_age.push_back(&item);
  std::sort(by_age.begin(), by_age.end(), is_older);

  Parts parts;
  for (Item* item : by_age) read_object(item->report, options, parts);
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->version = version;
  snapshot->node_addresses = options.node_addresses;
  Compiled compiled;
  add_namespaces(parts, *snapshot);
  add_workloads(parts, options, previous, *snapshot);
  add_services(parts, previous, *snapshot);
  compiled.surroundings = surroundings_of(parts, *snapshot);
  add_clusters(parts, options, previous, *snapshot);
  add_routes(parts, options, previous, *snapshot);
  add_tcp_routes(parts, *snapshot);
  add_policies(parts, options, previous, *snapshot);
  add_network_policies(parts, previous, *snapshot);

  compiled.snapshot = std::move(snapshot);
  for (Item& item : items) {
    if (item.report.failed()) compiled.refused.push_back(item.object->key);
    std::move(item.problems.begin(), item.problems.end(), std::back_inserter(compiled.problems));
  }
  return compiled;
}

std::vector<Problem> validate(const Object& object) {
  std::vector<Problem> problems;
  Report report(object, problems);
  Parts parts;
  read_object(report, {}, parts);
  // Nothing is known of the ports that it selects: as for a policy that selects nothing yet.
  for (auto& [own, part] : parts.policies) judge_http_fields(part, false, *own);
  for (auto& [own, policy] : parts.network_policies)
    if (policy.refused) report_refusal(policy, *own);
  return problems;
}

}  // namespace mesh::config
