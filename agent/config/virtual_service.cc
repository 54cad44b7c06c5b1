#include <re2/re2.h>

#include <algorithm>
#include <cmath>

#include "config/kinds.h"

namespace mesh::config {
namespace {

namespace json = boost::json;

bool is_no_retry(const json::value& value) {
  const json::object* retries = value.if_object();
  if (!retries || retries->size() != 1) return false;
  const json::value* attempts = retries->if_contains("attempts");
  return attempts && attempts->is_int64() && attempts->get_int64() == 0;
}

constexpr Field kVirtualService[] = {{"hosts"},    {"gateways"}, {"http"},
                                     later("tls"), {"tcp"},      {"exportTo"}};
constexpr Field kTcpRoute[] = {{"match"}, {"route"}};
constexpr Field kTcpMatch[] = {{"destinationSubnets"}, {"port"},     later("sourceSubnet"),
                               {"sourceLabels"},       {"gateways"}, {"sourceNamespace"}};
constexpr Field kTcpDestination[] = {{"destination"}, {"weight"}};
constexpr Field kHttpRoute[] = {{"name"},
                                {"match"},
                                {"route"},
                                {"timeout"},
                                {"fault"},
                                {"headers"},
                                later("redirect"),
                                later("directResponse"),
                                later("delegate"),
                                later("rewrite"),
                                unless("retries", is_no_retry, "remove it, or write attempts: 0"),
                                later("mirror"),
                                later("mirrors"),
                                later("mirrorPercent"),
                                later("mirrorPercentage"),
                                later("corsPolicy")};
constexpr Field kHttpMatch[] = {{"name"},
                                {"uri"},
                                {"scheme"},
                                {"method"},
                                {"authority"},
                                {"headers"},
                                {"port"},
                                {"sourceLabels"},
                                {"gateways"},
                                {"queryParams"},
                                {"ignoreUriCase"},
                                {"withoutHeaders"},
                                {"sourceNamespace"},
                                later("statPrefix")};
constexpr Field kStringMatch[] = {{"exact"}, {"prefix"}, {"regex"}};
constexpr Field kRouteDestination[] = {{"destination"}, {"weight"}, {"headers"}};
constexpr Field kDestination[] = {{"host"}, {"subset"}, {"port"}};
constexpr Field kPort[] = {{"number"}};
constexpr Field kHeaders[] = {{"request"}, {"response"}};
constexpr Field kHeaderOperations[] = {{"set"}, {"add"}, {"remove"}};
constexpr Field kFault[] = {{"delay"}, {"abort"}};
constexpr Field kDelay[] = {{"percent"}, {"fixedDelay"}, later("exponentialDelay"), {"percentage"}};
constexpr Field kAbort[] = {
    {"httpStatus"}, later("grpcStatus"), later("http2Error"), {"percentage"}};
constexpr Field kPercent[] = {{"value"}};

constexpr std::size_t kMaxRegex = 1024;

bool is_token(std::string_view name) {
  static constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           kMarks.find(c) != std::string_view::npos;
  });
}

// ---- matches

void compile_regex(const Fields& match, StringMatch& result) {
  if (result.value.size() > kMaxRegex) return match.error("regex", "longer than 1024 characters");
  RE2::Options options(RE2::Quiet);
  options.set_max_mem(1 << 20);
  auto regex = std::make_shared<RE2>(result.value, options);
  if (!regex->ok()) return match.error("regex", "not an RE2 expression: " + regex->error());
  result.regex = std::move(regex);
}

// `presence`: where `regex: "*"` means "present" (headers and query parameters).
StringMatch read_string_match(const Fields& match, bool presence) {
  StringMatch result;
  auto exact = match.text("exact");
  auto prefix = match.text("prefix");
  auto regex = match.text("regex");
  if (int(exact.has_value()) + int(prefix.has_value()) + int(regex.has_value()) > 1)
    match.error("", "takes one of exact, prefix and regex");
  if (exact) {
    result.kind = StringMatch::Kind::kExact;
    result.value = *exact;
  } else if (prefix) {
    result.kind = StringMatch::Kind::kPrefix;
    result.value = *prefix;
    if (prefix->empty()) match.error("prefix", "must not be empty");
  } else if (regex && !(presence && *regex == "*")) {
    result.kind = StringMatch::Kind::kRegex;
    result.value = *regex;
    if (regex->empty())
      match.error("regex", "must not be empty");
    else
      compile_regex(match, result);
  }
  return result;
}

std::optional<StringMatch> read_optional_match(const Fields& parent, std::string_view name) {
  auto match = parent.message(name, kStringMatch);
  if (!match) return {};
  return read_string_match(*match, false);
}

std::vector<std::pair<std::string, StringMatch>> read_match_map(const Fields& parent,
                                                                std::string_view name) {
  std::vector<std::pair<std::string, StringMatch>> matches;
  Report& report = parent.report();
  parent.each_entry(
      name, [&](std::string_view key, const json::value& value, const std::string& path) {
        StringMatch match;
        if (value.is_object())
          match = read_string_match(Fields(report, value.get_object(), path, kStringMatch), true);
        else if (!value.is_null())
          return report.error(
              path, "must be an object with exact, prefix or regex, not " + described(value));
        matches.emplace_back(key, std::move(match));
      });
  return matches;
}

std::vector<std::pair<std::string, StringMatch>> read_header_matches(const Fields& parent,
                                                                     std::string_view name) {
  std::vector<std::pair<std::string, StringMatch>> result;
  for (auto& [key, match] : read_match_map(parent, name)) {
    std::string path = path_of_key(parent.path(name), key);
    std::string header = lower(key);
    if (header.starts_with("@request.auth.")) {
      parent.report().error(path, "claims are not supported yet; remove the condition");
    } else if (!is_token(header)) {
      parent.report().error(path, "not the name of a header");
    } else if (header == "uri" || header == "scheme" || header == "method" ||
               header == "authority") {
      parent.report().warn(
          path, "ignored, as in Istio; use the field " + header + " of the match instead");
    } else {
      result.emplace_back(std::move(header), std::move(match));
    }
  }
  return result;
}

// "mesh", or a Gateway: name, ns/name, ./name, or the old name.ns.svc.cluster.local -> "ns/name".
std::string gateway_name(std::string_view text, const std::string& ns) {
  if (text == "mesh") return "mesh";
  std::size_t slash = text.find('/');
  if (slash != std::string_view::npos)
    return (text.substr(0, slash) == "." ? ns : std::string(text.substr(0, slash))) +
           std::string(text.substr(slash));
  std::size_t dot = text.find('.');
  if (dot == std::string_view::npos) return ns + "/" + std::string(text);
  std::string_view rest = text.substr(dot + 1);
  return std::string(rest.substr(0, rest.find('.'))) + "/" + std::string(text.substr(0, dot));
}

std::vector<std::string> read_gateways(const Fields& fields) {
  std::vector<std::string> gateways;
  for (const std::string& text : fields.texts("gateways")) {
    if (text.empty()) fields.error("gateways", "must not have an empty name");
    gateways.push_back(gateway_name(text, fields.report().object().key.ns));
  }
  return gateways;
}

HttpMatch read_match(const Fields& fields) {
  HttpMatch match;
  match.name = fields.text("name").value_or("");
  match.uri = read_optional_match(fields, "uri");
  match.scheme = read_optional_match(fields, "scheme");
  match.method = read_optional_match(fields, "method");
  match.authority = read_optional_match(fields, "authority");
  if (fields.flag("ignoreUriCase").value_or(false) && match.uri) match.uri->ignore_case = true;
  match.headers = read_header_matches(fields, "headers");
  match.without_headers = read_header_matches(fields, "withoutHeaders");
  match.query_params = read_match_map(fields, "queryParams");
  match.port = fields.port("port").value_or(0);
  match.source_labels = fields.labels("sourceLabels");
  match.source_namespace = fields.text("sourceNamespace").value_or("");
  match.gateways = read_gateways(fields);
  return match;
}

bool is_catch_all(const HttpMatch& match) {
  bool every_uri = !match.uri || match.uri->kind == StringMatch::Kind::kPresent ||
                   (match.uri->kind == StringMatch::Kind::kPrefix && match.uri->value == "/") ||
                   (match.uri->kind == StringMatch::Kind::kRegex && match.uri->value == ".*");
  return every_uri && !match.scheme && !match.method && !match.authority && match.headers.empty() &&
         match.without_headers.empty() && match.query_params.empty() && match.port == 0 &&
         match.source_labels.empty() && match.source_namespace.empty() && match.gateways.empty();
}

bool is_catch_all(const HttpRoute& route) {
  return route.matches.empty() ||
         std::any_of(route.matches.begin(), route.matches.end(),
                     [](const HttpMatch& match) { return is_catch_all(match); });
}

// ---- header operations

// Envoy reads %...% in a value as a variable, and %% as one %.
std::optional<std::string> header_value(Report& report, const std::string& path,
                                        const json::value& value) {
  if (!value.is_string()) {
    report.error(path, "must be a string, not " + described(value) +
                           (value.is_structured() ? "" : "; write it in quotes"));
    return {};
  }
  std::string text;
  std::string_view given = value.get_string();
  for (std::size_t i = 0; i < given.size(); ++i) {
    auto c = static_cast<unsigned char>(given[i]);
    if ((c < 0x20 && c != '\t') || c == 0x7f) {
      report.error(path, "must not have control characters");
      return {};
    }
    if (c == '%') {
      ++i;  // the second of a pair
      if (given.substr(i, 1) != "%") {
        report.error(path, "variables (%...%) are not supported yet; write %% for a percent sign");
        return {};
      }
    }
    text += static_cast<char>(c);
  }
  return text;
}

// Headers that the proxy itself writes, as the framing of each connection needs them.
bool is_framing(std::string_view name) {
  static constexpr std::string_view kFraming[] = {
      "connection", "content-length",    "expect",  "keep-alive",    "proxy-connection", "te",
      "trailer",    "transfer-encoding", "upgrade", "http2-settings"};
  return std::find(std::begin(kFraming), std::end(kFraming), name) != std::end(kFraming);
}

std::optional<std::string> header_name(Report& report, const std::string& path,
                                       std::string_view key, bool request) {
  std::string name = lower(key);
  if (name == ":authority" && request) return "host";
  if (name.starts_with(':')) {
    report.error(path, "pseudo-headers cannot be changed here");
  } else if (!is_token(name)) {
    report.error(path, "not the name of a header");
  } else if (is_framing(name)) {
    report.error(path, "the proxy writes this header itself; remove the operation");
  } else {
    return name;
  }
  return {};
}

using HeaderList = std::vector<std::pair<std::string, std::string>>;

HeaderList read_header_list(const Fields& fields, std::string_view name, bool request) {
  HeaderList list;
  Report& report = fields.report();
  fields.each_entry(name,
                    [&](std::string_view key, const json::value& value, const std::string& path) {
                      auto header = header_name(report, path, key, request);
                      auto text = header_value(report, path, value);
                      if (header && text) list.emplace_back(*std::move(header), *std::move(text));
                    });
  return list;
}

bool is_host_entry(const std::pair<std::string, std::string>& entry) {
  return entry.first == "host";
}

HeaderOperations read_operations(const Fields& fields, bool request) {
  HeaderOperations operations;
  operations.set = read_header_list(fields, "set", request);
  operations.add = read_header_list(fields, "add", request);
  for (const std::string& text : fields.texts("remove")) {
    auto name = header_name(fields.report(), fields.path("remove"), text, request);
    if (name == "host" && request)
      fields.error("remove", "the host cannot be removed");
    else if (name)
      operations.remove.push_back(*std::move(name));
  }
  if (request) {  // `host` is one value: added where none is set, it is set
    auto added = std::find_if(operations.add.begin(), operations.add.end(), is_host_entry);
    if (added != operations.add.end()) {
      if (std::none_of(operations.set.begin(), operations.set.end(), is_host_entry))
        operations.set.push_back(*added);
      std::erase_if(operations.add, is_host_entry);
    }
    for (const auto& [name, value] : operations.set)
      if (name == "host" && (value.empty() || value.find_first_of(" \t/@?#,") != value.npos))
        fields.error("set", "the host must be a name or address, perhaps with a port");
  }
  return operations;
}

void read_headers(const Fields& parent, HeaderOperations& request, HeaderOperations& response) {
  auto headers = parent.message("headers", kHeaders);
  if (!headers) return;
  if (auto fields = headers->message("request", kHeaderOperations))
    request = read_operations(*fields, true);
  if (auto fields = headers->message("response", kHeaderOperations))
    response = read_operations(*fields, false);
}

// ---- faults and destinations

std::uint32_t read_ppm(const Fields& parent) {
  if (auto percentage = parent.message("percentage", kPercent)) {
    double value = percentage->decimal("value", 0, 100).value_or(0);
    if (value > 0 && value < 0.0001)
      percentage->error("value", "must be 0 or at least 0.0001 (percent)");
    return static_cast<std::uint32_t>(std::llround(value * 10'000));
  }
  if (!parent.has("percent")) return 0;  // as in Istio: no percentage, no fault
  return static_cast<std::uint32_t>(parent.number("percent", 0, 100).value_or(0) * 10'000);
}

Fault read_fault(const Fields& fields) {
  Fault fault;
  auto delay = fields.message("delay", kDelay);
  auto abort = fields.message("abort", kAbort);
  if (!fields.has("delay") && !fields.has("abort"))
    fields.error("", "must have delay, abort or both");
  if (delay) {
    if (!delay->has("fixedDelay") && !delay->has("exponentialDelay"))
      delay->error("fixedDelay", "is required");
    fault.delay = delay->duration("fixedDelay", Milliseconds(1)).value_or(Milliseconds(0));
    fault.delay_ppm = read_ppm(*delay);
  }
  if (abort) {
    if (!abort->has("httpStatus") && !abort->has("grpcStatus") && !abort->has("http2Error"))
      abort->error("httpStatus", "is required");
    auto status = abort->number("httpStatus", 200, 599).value_or(0);
    fault.abort_status = static_cast<std::uint16_t>(status);
    fault.abort_ppm = read_ppm(*abort);
  }
  if (fields.report().failed()) return fault;
  if (delay && fault.delay_ppm == 0)
    delay->warn("", "has no percentage above 0, so no request is delayed (as in Istio)");
  if (abort && fault.abort_ppm == 0)
    abort->warn("", "has no percentage above 0, so no request is aborted (as in Istio)");
  return fault;
}

WeightedDestination read_destination(const Fields& fields) {
  WeightedDestination result;
  if (auto destination = fields.message("destination", kDestination)) {
    result.host = lower(destination->required_text("host").value_or(""));
    if (!result.host.empty() && (!is_host(result.host) || result.host.starts_with('*')))
      destination->error("host", "must be the name of a service");
    result.subset = destination->text("subset").value_or("");
    if (auto port = destination->message("port", kPort))
      result.port = port->port("number").value_or(0);
  } else if (!fields.has("destination")) {
    fields.error("destination", "is required");
  }
  result.weight = static_cast<std::uint32_t>(fields.number("weight", 0, INT32_MAX).value_or(0));
  read_headers(fields, result.request_headers, result.response_headers);
  return result;
}

// The destinations of a route; a single one takes all, whatever its weight.
std::vector<WeightedDestination> read_weighted(const Fields& fields, Schema schema) {
  std::vector<WeightedDestination> destinations;
  for (const Fields& destination : fields.messages("route", schema))
    destinations.push_back(read_destination(destination));
  if (destinations.empty()) return destinations;
  if (destinations.size() == 1) destinations[0].weight = 1;
  std::uint64_t total = 0;
  for (const WeightedDestination& destination : destinations) total += destination.weight;
  if (total == 0)
    fields.error("route", "all weights are 0; give each destination its weight");
  else if (total > UINT32_MAX)
    fields.error("route", "the sum of the weights is too large");
  return destinations;
}

void read_destinations(const Fields& fields, HttpRoute& route) {
  route.destinations = read_weighted(fields, kRouteDestination);
  if (route.destinations.empty() && !fields.has("redirect") && !fields.has("directResponse") &&
      !fields.has("delegate"))
    fields.error("route", "is required");
  for (const WeightedDestination& destination : route.destinations)
    route.total_weight += destination.weight;
}

std::vector<IpBlock> read_subnets(const Fields& fields) {
  std::vector<IpBlock> blocks;
  for (const std::string& text : fields.texts("destinationSubnets")) {
    auto block = IpBlock::parse(text);
    if (block)
      blocks.push_back(block.value());
    else
      fields.error("destinationSubnets", block.error().message);
  }
  return blocks;
}

TcpRule read_tcp_rule(const Fields& fields) {
  TcpRule rule;
  for (const Fields& match : fields.messages("match", kTcpMatch))
    rule.matches.push_back({read_subnets(match), match.port("port").value_or(0),
                            match.labels("sourceLabels"),
                            match.text("sourceNamespace").value_or(""), read_gateways(match)});
  rule.destinations = read_weighted(fields, kTcpDestination);
  if (rule.destinations.empty()) fields.error("route", "is required");
  return rule;
}

bool is_catch_all(const TcpRule& rule) {
  return rule.matches.empty() ||
         std::find(rule.matches.begin(), rule.matches.end(), TcpMatch{}) != rule.matches.end();
}

// The rules of one list; `what` is what a catch-all takes from those behind it.
template <class Rule>
std::vector<Rule> read_rules(const Fields& spec, std::string_view name, Schema schema,
                             std::string_view what, Rule (*read)(const Fields&)) {
  std::vector<Rule> rules;
  std::string dead_after;
  for (const Fields& fields : spec.messages(name, schema)) {
    if (!dead_after.empty())
      fields.warn("", "is never reached: " + dead_after + " matches every " + std::string(what) +
                          " (IST0130)");
    rules.push_back(read(fields));
    if (dead_after.empty() && is_catch_all(rules.back())) dead_after = fields.path();
  }
  return rules;
}

HttpRoute read_route(const Fields& fields) {
  HttpRoute route;
  route.name = fields.text("name").value_or("");
  for (const Fields& match : fields.messages("match", kHttpMatch))
    route.matches.push_back(read_match(match));
  read_destinations(fields, route);
  route.timeout = fields.duration("timeout", Milliseconds(0));
  if (route.timeout == Milliseconds(0)) route.timeout.reset();  // 0s: disabled
  if (auto fault = fields.message("fault", kFault)) route.fault = read_fault(*fault);
  read_headers(fields, route.request_headers, route.response_headers);
  return route;
}

void read_hosts(const Fields& spec, VirtualService& service) {
  bool for_mesh =
      std::find(service.gateways.begin(), service.gateways.end(), "mesh") != service.gateways.end();
  std::size_t index = 0;
  for (const std::string& text : spec.texts("hosts")) {
    std::string path = path_of_item(spec.path("hosts"), index++);
    std::string host = lower(text);
    if (!is_host(host))
      spec.report().error(path, "must be a DNS name, '*.suffix' or '*', not '" + text + "'");
    else if (host == "*" && for_mesh)
      spec.report().error(path, "'*' is for gateways; traffic inside the mesh needs names");
    else if (std::find(service.hosts.begin(), service.hosts.end(), host) != service.hosts.end())
      spec.report().error(path, "is given twice");
    else
      service.hosts.push_back(std::move(host));
  }
  if (index == 0 && (!spec.has("hosts") || spec.find("hosts")->is_array()))
    spec.error("hosts", "is required (delegates are not supported yet)");
}

// A VirtualService acts for the clients of every namespace: what would be for some is refused.
void read_export(const Fields& spec, const VirtualService& service) {
  std::vector<std::string> scopes = spec.texts("exportTo");
  if (std::find(scopes.begin(), scopes.end(), "*") != scopes.end()) return;
  for (const std::string& scope : scopes)
    spec.error(
        "exportTo",
        "'" + scope +
            "' is not supported yet for a VirtualService, only '*' (clients of "
            "every namespace); remove the field" +
            (scope == "." ? ", and give each match sourceNamespace: " + service.name.ns : ""));
}

}  // namespace

VirtualService read_virtual_service(Report& report) {
  const ObjectKey& key = report.object().key;
  Fields spec = open_spec(report, kVirtualService);
  VirtualService service;
  service.name = {key.ns, key.name};
  service.gateways = read_gateways(spec);
  if (service.gateways.empty()) service.gateways.push_back("mesh");
  read_hosts(spec, service);
  read_export(spec, service);
  service.http = read_rules(spec, "http", kHttpRoute, "request", read_route);
  service.tcp = read_rules(spec, "tcp", kTcpRoute, "connection", read_tcp_rule);
  const auto is_missing = [&](std::string_view name) {
    return !spec.has(name) || (spec.find(name)->is_array() && spec.find(name)->get_array().empty());
  };
  if (is_missing("http") && is_missing("tcp") && !spec.has("tls"))
    spec.error("http", "is required, or tcp");
  return service;
}

}  // namespace mesh::config
