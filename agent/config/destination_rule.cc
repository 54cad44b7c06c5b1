#include <algorithm>

#include "config/kinds.h"

namespace mesh::config {
namespace {

namespace json = boost::json;

bool is_text(const json::value& value, std::string_view text) {
  return value.is_string() && value.get_string() == text;
}
bool is_no_tls(const json::value& value) {
  const json::object* tls = value.if_object();
  if (!tls) return false;
  const json::value* mode = tls->if_contains("mode");
  return tls->empty() || (tls->size() == 1 && mode && is_text(*mode, "DISABLE"));
}
bool is_no_upgrade(const json::value& value) {
  return is_text(value, "DEFAULT") || is_text(value, "DO_NOT_UPGRADE");
}
bool is_disabled(const json::value& value) {
  const json::object* setting = value.if_object();
  const json::value* enabled = setting ? setting->if_contains("enabled") : nullptr;
  return enabled && setting->size() == 1 && enabled->is_bool() && !enabled->get_bool();
}

constexpr Field kDestinationRule[] = {
    {"host"}, {"trafficPolicy"}, {"subsets"}, {"exportTo"}, later("workloadSelector")};
constexpr Field kTls =
    unless("tls", is_no_tls, "remove it, or write mode: DISABLE (connections are plain text)");
constexpr Field kTrafficPolicy[] = {
    {"loadBalancer"},      {"connectionPool"}, {"outlierDetection"},   kTls,
    {"portLevelSettings"}, later("tunnel"),    later("proxyProtocol"), later("retryBudget")};
constexpr Field kPortPolicy[] = {
    {"port"}, {"loadBalancer"}, {"connectionPool"}, {"outlierDetection"}, kTls};
constexpr Field kSubset[] = {{"name"}, {"labels"}, {"trafficPolicy"}};
constexpr Field kPort[] = {{"number"}};
constexpr Field kLoadBalancer[] = {{"simple"},
                                   later("consistentHash"),
                                   unless("localityLbSetting", is_disabled),
                                   unless("zoneAwareLbSetting", is_disabled),
                                   later("warmupDurationSecs"),
                                   later("warmup")};
constexpr Field kConnectionPool[] = {{"tcp"}, {"http"}};
constexpr Field kTcp[] = {{"maxConnections"},
                          {"connectTimeout"},
                          {"tcpKeepalive"},
                          {"maxConnectionDuration"},
                          {"idleTimeout"}};
constexpr Field kKeepalive[] = {{"probes"}, {"time"}, {"interval"}};
constexpr Field kHttp[] = {{"http1MaxPendingRequests"},
                           {"http2MaxRequests"},
                           {"maxRequestsPerConnection"},
                           later("maxRetries"),
                           {"idleTimeout"},
                           unless("h2UpgradePolicy", is_no_upgrade),
                           later("useClientProtocol"),
                           later("maxConcurrentStreams"),
                           later("http2KeepAlive")};
constexpr Field kOutlier[] = {{"consecutiveErrors"},
                              {"splitExternalLocalOriginErrors"},
                              {"consecutiveLocalOriginFailures"},
                              {"consecutiveGatewayErrors"},
                              {"consecutive5xxErrors"},
                              {"interval"},
                              {"baseEjectionTime"},
                              {"maxEjectionPercent"},
                              {"minHealthPercent"},
                              later("outlierDetectionHttpErrorCodes")};

std::optional<Balancer> read_balancer(const Fields& fields) {
  auto simple = fields.text("simple");
  if (!simple) return Balancer::kLeastRequest;
  if (*simple == "LEAST_REQUEST" || *simple == "LEAST_CONN" || *simple == "UNSPECIFIED")
    return Balancer::kLeastRequest;
  if (*simple == "ROUND_ROBIN") return Balancer::kRoundRobin;
  if (*simple == "RANDOM") return Balancer::kRandom;
  if (*simple == "PASSTHROUGH")
    fields.error("simple", "PASSTHROUGH is not supported yet; use LEAST_REQUEST");
  else
    fields.error("simple", "must be LEAST_REQUEST, ROUND_ROBIN or RANDOM, not '" + *simple + "'");
  return {};
}

std::uint32_t read_limit(const Fields& fields, std::string_view name, std::uint32_t unset) {
  auto value = fields.number(name, 0, INT32_MAX).value_or(0);
  return value == 0 ? unset : static_cast<std::uint32_t>(value);
}

std::optional<Milliseconds> read_timeout(const Fields& fields, std::string_view name) {
  auto value = fields.duration(name, Milliseconds(0));
  return value == Milliseconds(0) ? ConnectionPool::kNever : value;
}

void read_tcp(const Fields& fields, ConnectionPool& pool) {
  pool.max_connections = read_limit(fields, "maxConnections", ConnectionPool::kUnlimited);
  if (auto timeout = fields.duration("connectTimeout", Milliseconds(1)))
    pool.connect_timeout = *timeout;
  pool.max_connection_duration = fields.duration("maxConnectionDuration", Milliseconds(1));
  if (auto timeout = read_timeout(fields, "idleTimeout")) pool.idle_timeout = *timeout;
  if (auto keepalive = fields.message("tcpKeepalive", kKeepalive)) {
    ConnectionPool::Keepalive values;
    values.probes = static_cast<std::uint32_t>(keepalive->number("probes", 0, 127).value_or(0));
    values.time = keepalive->duration("time", Milliseconds(1000)).value_or(Milliseconds(0));
    values.interval = keepalive->duration("interval", Milliseconds(1000)).value_or(Milliseconds(0));
    pool.tcp_keepalive = values;
  }
}

void read_http(const Fields& fields, ConnectionPool& pool) {
  pool.max_pending_requests =
      read_limit(fields, "http1MaxPendingRequests", ConnectionPool::kUnlimited);
  pool.max_requests = read_limit(fields, "http2MaxRequests", ConnectionPool::kUnlimited);
  pool.max_requests_per_connection = read_limit(fields, "maxRequestsPerConnection", 0);
  if (auto timeout = read_timeout(fields, "idleTimeout")) pool.idle_timeout = *timeout;
}

ConnectionPool read_pool(const Fields& fields) {
  ConnectionPool pool;
  if (auto tcp = fields.message("tcp", kTcp)) read_tcp(*tcp, pool);
  if (auto http = fields.message("http", kHttp)) read_http(*http, pool);
  return pool;
}

std::optional<std::uint32_t> read_count(const Fields& fields, std::string_view name,
                                        std::int64_t most = UINT32_MAX) {
  auto value = fields.number(name, 0, most);
  if (!value) return {};
  return static_cast<std::uint32_t>(*value);
}

OutlierDetection read_outlier(const Fields& fields) {
  OutlierDetection outlier;
  if (auto errors = read_count(fields, "consecutiveErrors")) {
    fields.warn("consecutiveErrors", "is deprecated, and read as consecutive5xxErrors");
    outlier.consecutive_5xx = *errors;
  }
  if (auto errors = read_count(fields, "consecutive5xxErrors")) outlier.consecutive_5xx = *errors;
  if (auto errors = read_count(fields, "consecutiveGatewayErrors"))
    outlier.consecutive_gateway = *errors;
  outlier.split_local_origin = fields.flag("splitExternalLocalOriginErrors").value_or(false);
  if (auto errors = read_count(fields, "consecutiveLocalOriginFailures"))
    outlier.consecutive_local_origin = *errors;
  if (auto interval = fields.duration("interval", Milliseconds(1))) outlier.interval = *interval;
  if (auto time = fields.duration("baseEjectionTime", Milliseconds(1)))
    outlier.base_ejection_time = *time;
  // 0 is "unset" in Istio: the default stays.
  if (auto percent = read_count(fields, "maxEjectionPercent", 100); percent.value_or(0) > 0)
    outlier.max_ejection_percent = *percent;
  outlier.min_health_percent = read_count(fields, "minHealthPercent", 100).value_or(0);
  return outlier;
}

PolicyBlocks read_blocks(const Fields& fields) {
  PolicyBlocks blocks;
  if (auto balancer = fields.message("loadBalancer", kLoadBalancer))
    blocks.balancer = read_balancer(*balancer);
  if (auto pool = fields.message("connectionPool", kConnectionPool)) blocks.pool = read_pool(*pool);
  if (auto outlier = fields.message("outlierDetection", kOutlier))
    blocks.outlier = read_outlier(*outlier);
  return blocks;
}

DestinationPolicy read_policy(const Fields& parent) {
  DestinationPolicy policy;
  auto fields = parent.message("trafficPolicy", kTrafficPolicy);
  if (!fields) return policy;
  policy.blocks = read_blocks(*fields);
  for (const Fields& settings : fields->messages("portLevelSettings", kPortPolicy)) {
    std::optional<std::uint16_t> number;
    if (auto port = settings.message("port", kPort)) number = port->port("number");
    PolicyBlocks blocks = read_blocks(settings);
    if (!number)
      settings.error("port", "needs a number");
    else if (!policy.ports.emplace(*number, blocks).second)
      settings.error("port", "is given twice");
  }
  return policy;
}

// exportTo: true for "." alone. Anything but absent, "*" and "." is refused.
bool read_own_namespace_only(const Fields& spec) {
  std::vector<std::string> scopes = spec.texts("exportTo");
  if (scopes.empty()) return false;
  for (const std::string& scope : scopes)
    if (scope != "*" && scope != ".")
      spec.error("exportTo", "'" + scope + "' is not supported yet; use \"*\" or \".\"");
  return std::find(scopes.begin(), scopes.end(), "*") == scopes.end();
}

}  // namespace

DestinationRule read_destination_rule(Report& report) {
  const ObjectKey& key = report.object().key;
  Fields spec = open_spec(report, kDestinationRule);
  DestinationRule rule;
  rule.name = {key.ns, key.name};
  rule.host = lower(spec.required_text("host").value_or(""));
  if (!rule.host.empty() && !is_host(rule.host))
    spec.error("host", "must be the name of a service, '*.suffix' or '*'");
  rule.own_namespace_only = read_own_namespace_only(spec);
  rule.has_policy = spec.has("trafficPolicy");
  rule.policy = read_policy(spec);
  for (const Fields& fields : spec.messages("subsets", kSubset)) {
    DestinationRule::Subset subset;
    subset.name = fields.required_text("name").value_or("");
    bool taken = std::any_of(rule.subsets.begin(), rule.subsets.end(),
                             [&](const auto& other) { return other.name == subset.name; });
    if (!subset.name.empty() && taken) fields.error("name", "is given twice");
    if (subset.name.find_first_of("| \t") != std::string::npos)
      fields.error("name", "must be letters, digits, '-', '_' and '.'");
    subset.labels = fields.labels("labels");
    subset.policy = read_policy(fields);
    rule.subsets.push_back(std::move(subset));
  }
  return rule;
}

}  // namespace mesh::config
