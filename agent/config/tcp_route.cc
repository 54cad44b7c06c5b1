#include "config/kinds.h"

namespace mesh::config {
namespace {

constexpr Field kRoute[] = {{"parentRefs"}, {"rules"}, later("useDefaultGateways")};
constexpr Field kParent[] = {{"group"}, {"kind"},        {"namespace"},
                             {"name"},  {"sectionName"}, {"port"}};
constexpr Field kRule[] = {{"name"}, {"backendRefs"}};
constexpr Field kBackend[] = {{"group"}, {"kind"}, {"namespace"}, {"name"}, {"port"}, {"weight"}};

constexpr std::int64_t kMaxWeight = 1'000'000;

// Reports a group and kind that are not those of a Service.
void check_service(const Fields& fields, const std::string& group, const std::string& kind,
                   std::string_view remedy) {
  if (kind != "Service")
    fields.error("kind", kind + " is not supported yet; " + std::string(remedy));
  else if (!group.empty() && group != "core")
    fields.error("group", "must be \"\" for a Service, not '" + group + "'");
}

ObjectName read_name(const Fields& fields) {
  std::string ns = fields.text("namespace").value_or("");
  if (ns.empty()) ns = fields.report().object().key.ns;
  return {std::move(ns), fields.required_text("name").value_or("")};
}

TcpRoutePart::Parent read_parent(const Fields& fields) {
  TcpRoutePart::Parent parent;
  check_service(fields, fields.text("group").value_or("gateway.networking.k8s.io"),
                fields.text("kind").value_or("Gateway"), "write group: \"\" and kind: Service");
  parent.path = fields.path();
  parent.service = read_name(fields);
  parent.section = fields.text("sectionName").value_or("");
  parent.port = fields.port("port").value_or(0);
  return parent;
}

WeightedDestination read_backend(const Fields& fields) {
  WeightedDestination backend;
  check_service(fields, fields.text("group").value_or(""), fields.text("kind").value_or("Service"),
                "backends are Services");
  const ObjectName name = read_name(fields);
  backend.host = service_host(name);
  if (!fields.has("port")) fields.error("port", "is required for a Service");
  backend.port = fields.port("port").value_or(0);
  backend.weight = static_cast<std::uint32_t>(fields.number("weight", 0, kMaxWeight).value_or(1));
  return backend;
}

}  // namespace

TcpRoutePart read_tcp_route(Report& report) {
  const ObjectKey& key = report.object().key;
  Fields spec = open_spec(report, kRoute);
  TcpRoutePart part;
  part.name = {key.ns, key.name};
  for (const Fields& parent : spec.messages("parentRefs", kParent))
    part.parents.push_back(read_parent(parent));
  if (part.parents.empty() && !spec.has("parentRefs")) spec.error("parentRefs", "is required");
  const std::vector<Fields> rules = spec.messages("rules", kRule);
  if (rules.empty() && (!spec.has("rules") || spec.find("rules")->is_array()))
    spec.error("rules", "is required");
  for (const Fields& fields : rules) {
    TcpRule rule;
    for (const Fields& backend : fields.messages("backendRefs", kBackend))
      rule.destinations.push_back(read_backend(backend));
    if (!part.rules.empty())
      fields.warn("", "is never reached: " + rules.front().path() + " matches every connection");
    else if (rule.destinations.empty() && !fields.report().failed())
      fields.warn("backendRefs", "is empty: every connection is refused");
    part.rules.push_back(std::move(rule));
  }
  return part;
}

}  // namespace mesh::config
