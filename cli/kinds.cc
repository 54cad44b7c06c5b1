#include "kinds.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "output.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

// One text for each item of a list, by `describe`, joined by commas.
template <class Describe>
std::string each(const json::object& tree, std::string_view pointer, Describe describe) {
  const json::value* list = value_at(tree, pointer);
  if (!list || !list->is_array()) return "";
  std::vector<std::string> parts;
  for (const json::value& item : list->as_array())
    if (item.is_object()) parts.push_back(describe(item.as_object()));
  return join(parts, ",");
}

std::string port_text(const json::object& port) {
  std::string protocol = text_at(port, "/protocol");
  return text_at(port, "/port") + "/" + (protocol.empty() ? "TCP" : protocol);
}

std::string server_text(const json::object& server) {
  return text_at(server, "/port/number") + "/" + text_at(server, "/port/protocol") + " " +
         text_at(server, "/hosts");
}

const std::vector<Kind>& table() {
  using Cells = std::vector<std::string>;
  using Tree = json::object;
  static const std::vector<Kind> kinds = {
      {"Service",
       "",
       "services",
       {"svc"},
       {"CLUSTER-IP", "PORTS", "SELECTOR"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/spec/clusterIP"), each(t, "/spec/ports", port_text),
                 text_at(t, "/spec/selector")};
       }},
      {"EndpointSlice",
       "discovery.k8s.io",
       "endpointslices",
       {"es"},
       {"ADDRESSTYPE", "PORTS", "ENDPOINTS"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/addressType"),
                 each(t, "/ports", [](const Tree& p) { return text_at(p, "/port"); }),
                 each(t, "/endpoints", [](const Tree& e) { return text_at(e, "/addresses"); })};
       }},
      {"WorkloadEntry",
       "networking.istio.io",
       "workloadentries",
       {"we"},
       {"ADDRESS", "SERVICE-ACCOUNT", "LABELS"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/spec/address"), text_at(t, "/spec/serviceAccount"),
                 text_at(t, "/spec/labels")};
       }},
      {"ServiceEntry",
       "networking.istio.io",
       "serviceentries",
       {"se"},
       {"HOSTS", "LOCATION", "RESOLUTION"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/spec/hosts"), text_at(t, "/spec/location"),
                 text_at(t, "/spec/resolution")};
       }},
      {"VirtualService",
       "networking.istio.io",
       "virtualservices",
       {"vs"},
       {"GATEWAYS", "HOSTS"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/spec/gateways"), text_at(t, "/spec/hosts")};
       }},
      {"DestinationRule",
       "networking.istio.io",
       "destinationrules",
       {"dr"},
       {"HOST", "SUBSETS"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/spec/host"),
                 each(t, "/spec/subsets", [](const Tree& s) { return text_at(s, "/name"); })};
       }},
      {"Gateway",
       "networking.istio.io",
       "gateways",
       {"gw"},
       {"SERVERS"},
       [](const Tree& t) -> Cells { return {each(t, "/spec/servers", server_text)}; }},
      {"TCPRoute",
       "gateway.networking.k8s.io",
       "tcproutes",
       {"tcpr"},
       {"PARENTS"},
       [](const Tree& t) -> Cells {
         return {each(t, "/spec/parentRefs", [](const Tree& p) { return text_at(p, "/name"); })};
       }},
      {"AuthorizationPolicy",
       "security.istio.io",
       "authorizationpolicies",
       {"ap", "authz"},
       {"ACTION", "SELECTOR"},
       [](const Tree& t) -> Cells {
         std::string action = text_at(t, "/spec/action");
         return {action.empty() ? "ALLOW" : action, text_at(t, "/spec/selector/matchLabels")};
       }},
      {"NetworkPolicy",
       "networking.k8s.io",
       "networkpolicies",
       {"netpol"},
       {"POD-SELECTOR", "POLICY-TYPES"},
       [](const Tree& t) -> Cells {
         return {text_at(t, "/spec/podSelector"), text_at(t, "/spec/policyTypes")};
       }},
      {"Namespace",
       "",
       "namespaces",
       {"ns"},
       {"LABELS"},
       [](const Tree& t) -> Cells { return {text_at(t, "/metadata/labels")}; }},
  };
  return kinds;
}

}  // namespace

std::span<const Kind> kinds() { return table(); }

const Kind* find_kind(std::string_view name) {
  std::string wanted = lower(name.substr(0, name.find('.')));  // "virtualservices.networking..."
  for (const Kind& kind : table())
    if (wanted == lower(kind.kind) || wanted == kind.plural ||
        std::find(kind.shorts.begin(), kind.shorts.end(), wanted) != kind.shorts.end())
      return &kind;
  return nullptr;
}

Result<const Kind*> need_kind(std::string_view name) {
  if (const Kind* kind = find_kind(name)) return kind;
  std::vector<std::string> known;
  for (const Kind& kind : table())
    known.push_back(std::string(kind.kind) + " (" + std::string(kind.shorts.front()) + ")");
  return Error{Errc::invalid_argument,
               "unknown kind '" + std::string(name) + "'; one of " + join(known, ", ")};
}

Result<std::vector<std::string>> need_kinds(std::string_view names) {
  if (names == "all") return std::vector<std::string>{""};
  std::vector<std::string> out;
  for (std::size_t at = 0; at <= names.size();) {
    std::size_t comma = std::min(names.find(',', at), names.size());
    MESH_TRY(auto kind, need_kind(names.substr(at, comma - at)));
    out.emplace_back(kind->kind);
    at = comma + 1;
  }
  return out;
}

std::string display_name(std::string_view kind, std::string_view api_version,
                         std::string_view name) {
  std::string out = lower(kind);
  std::string_view group;
  if (std::size_t slash = api_version.find('/'); slash != std::string_view::npos)
    group = api_version.substr(0, slash);
  else if (const Kind* known = find_kind(kind); known && api_version.empty())
    group = known->group;
  if (!group.empty()) out += "." + std::string(group);
  return out + "/" + std::string(name);
}

const json::value* value_at(const json::object& tree, std::string_view pointer) {
  const json::object* at = &tree;
  for (;;) {
    pointer.remove_prefix(1);
    std::size_t slash = pointer.find('/');
    const json::value* member = at->if_contains(pointer.substr(0, slash));
    if (!member || slash == std::string_view::npos) return member;
    at = member->if_object();
    if (!at) return nullptr;
    pointer.remove_prefix(slash);
  }
}

std::string text_at(const json::object& tree, std::string_view pointer) {
  const json::value* value = value_at(tree, pointer);
  return value ? cell(*value) : "";
}

}  // namespace mesh::cli
