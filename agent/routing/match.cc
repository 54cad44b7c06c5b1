#include "routing/match.h"

#include <algorithm>
#include <optional>
#include <string>

namespace mesh::routing {
namespace {

using config::StringMatch;

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }

// `lower_case` is in lower case already.
bool names_equal(std::string_view name, std::string_view lower_case) {
  return name.size() == lower_case.size() &&
         std::equal(name.begin(), name.end(), lower_case.begin(),
                    [](char a, char b) { return lower(a) == b; });
}

// The value of a field; of repeated ones all joined by "," in `storage`, as Envoy matches them.
std::optional<std::string_view> find_field(const FieldList& fields, std::string_view name,
                                           std::string& storage) {
  std::optional<std::string_view> found;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (!names_equal(fields.name(i), name)) continue;
    if (!found) {
      found = fields.value(i);
      continue;
    }
    if (storage.empty()) storage = *found;
    storage.append(",").append(fields.value(i));
    found = storage;
  }
  return found;
}

bool has_field(const FieldList& fields, const std::string& name, const StringMatch& match) {
  std::string storage;
  const auto value = find_field(fields, name, storage);
  return value && match.matches(*value);
}

// A missing field counts as empty here, except where the match asks for presence alone.
bool lacks_field(const FieldList& fields, const std::string& name, const StringMatch& match) {
  std::string storage;
  const auto value = find_field(fields, name, storage);
  if (match.kind == StringMatch::Kind::kPresent) return !value;
  return !match.matches(value.value_or(std::string_view{}));
}

// The first parameter of this name decides; names and values are compared as they were sent, not
// decoded (Envoy: Http::Utility::QueryParamsMulti::parseQueryString).
bool has_query_param(std::string_view query, const std::string& name, const StringMatch& match) {
  while (!query.empty()) {
    const std::string_view param = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), param.size() + 1));
    const std::size_t equals = param.find('=');
    if (param.substr(0, equals) != name) continue;
    return match.matches(equals == std::string_view::npos ? std::string_view{}
                                                          : param.substr(equals + 1));
  }
  return false;
}

bool optional_accepts(const std::optional<StringMatch>& match, std::string_view value) {
  return !match || match->matches(value);
}

bool labels_include(const config::Labels& labels, const config::Labels& wanted) {
  return std::ranges::all_of(wanted, [&](const auto& label) {
    const auto found = labels.find(label.first);
    return found != labels.end() && found->second == label.second;
  });
}

// `name` is "mesh" or "<ns>/<name>".
bool names(std::string_view name, const config::ObjectName* gateway) {
  if (gateway == nullptr) return name == "mesh";
  const std::size_t slash = gateway->ns.size();
  return name.size() > slash && name[slash] == '/' && name.substr(0, slash) == gateway->ns &&
         name.substr(slash + 1) == gateway->name;
}

}  // namespace

// Istio asks only the gateways of a match that lists some. We ask the labels of mesh clients even
// then, as the API's text has it: everything inside one match must hold.
bool applies_to(const config::HttpMatch& match, const Client& client,
                const config::ObjectName* gateway) {
  if (match.port != 0 && match.port != client.port) return false;
  if (!match.gateways.empty()) {
    if (std::ranges::none_of(match.gateways, [&](auto& name) { return names(name, gateway); }))
      return false;
    if (gateway != nullptr) return true;
  }
  if (!match.source_namespace.empty() && match.source_namespace != client.workload->name.ns)
    return false;
  return match.source_labels.empty() ||
         labels_include(client.workload->labels, match.source_labels);
}

bool accepts(const config::HttpMatch& match, const RequestView& request) {
  return optional_accepts(match.uri, request.path) &&
         optional_accepts(match.method, request.method) &&
         optional_accepts(match.authority, request.authority) &&
         optional_accepts(match.scheme, request.scheme) &&
         std::ranges::all_of(
             match.headers,
             [&](const auto& h) { return has_field(request.fields, h.first, h.second); }) &&
         std::ranges::all_of(
             match.without_headers,
             [&](const auto& h) { return lacks_field(request.fields, h.first, h.second); }) &&
         std::ranges::all_of(match.query_params, [&](const auto& p) {
           return has_query_param(request.query, p.first, p.second);
         });
}

bool is_catch_all(const config::HttpMatch& match) {
  if (match.scheme || match.method || match.authority || !match.headers.empty() ||
      !match.without_headers.empty() || !match.query_params.empty())
    return false;
  if (!match.uri) return true;
  switch (match.uri->kind) {
    case StringMatch::Kind::kPresent:
      return true;
    case StringMatch::Kind::kPrefix:
      return match.uri->value == "/";
    case StringMatch::Kind::kRegex:
      return match.uri->value == ".*" || match.uri->value == "/.*";
    default:
      return false;
  }
}

}  // namespace mesh::routing
