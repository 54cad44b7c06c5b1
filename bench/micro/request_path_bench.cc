// What the pure libraries cost a request: decide, pick, limits, report, metrics, trace, log line.
#include <benchmark/benchmark.h>

#include <array>
#include <string>

#include "cluster/cluster.h"
#include "config/snapshot.h"
#include "routing/route_table.h"
#include "telemetry/access_log.h"
#include "telemetry/metrics.h"
#include "telemetry/trace_context.h"

namespace mesh {
namespace {

using namespace std::chrono_literals;

struct Field {
  std::string_view name, value;
};

// The nine fields of a browser's request through productpage.
constexpr std::array<Field, 9> kFields = {{
    {"Host", "reviews:9080"},
    {"User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"},
    {"Accept", "text/html,application/xhtml+xml"},
    {"Accept-Encoding", "gzip, deflate"},
    {"Accept-Language", "en-US,en;q=0.9"},
    {"Cookie", "session=eyJ1c2VyIjoiamFzb24ifQ"},
    {"X-Request-Id", "0b9f0d0c-6a2a-4f57-9d0a-3a8f4f2f9f10"},
    {"End-User", "jason"},
    {"Connection", "keep-alive"},
}};

constexpr std::string_view kHost = "reviews.default.svc.cluster.local";

config::ServicePtr make_service(std::string host) {
  auto service = std::make_shared<config::Service>();
  service->host = std::move(host);
  service->ports.push_back(
      {.name = "http", .port = 9080, .protocol = config::Protocol::kHttp, .target = "9080"});
  return service;
}

config::ClusterPtr make_cluster(const std::string& subset, config::Balancer balancer,
                                std::uint32_t unequal = 0) {
  auto cluster = std::make_shared<config::Cluster>();
  cluster->service = make_service(std::string(kHost));
  cluster->name = config::cluster_name(kHost, 9080, subset);
  cluster->port = 9080;
  cluster->subset = subset;
  for (std::uint8_t n = 1; n <= 10; ++n)
    cluster->endpoints.push_back({.address = {IpAddress::v4(10, 77, 0, n), 9080},
                                  .workload = nullptr,
                                  .weight = 1 + unequal * n});
  cluster->policy.balancer = balancer;
  cluster->policy.outlier = config::OutlierDetection{};
  return cluster;
}

// `services` services, of which reviews has rules for jason and a 80/20 split.
config::Snapshot make_snapshot(int services, bool rules) {
  config::Snapshot snapshot;
  for (int i = 0; i <= services; ++i) {
    auto service =
        make_service(i == 0 ? std::string(kHost)
                            : "service-" + std::to_string(i) + ".default.svc.cluster.local");
    snapshot.services[service->host] = service;
  }
  for (const char* subset : {"", "v1", "v2", "v3"}) {
    auto cluster = make_cluster(subset, config::Balancer::kLeastRequest);
    snapshot.clusters.insert_or_assign(cluster->name, cluster);
  }
  if (!rules) return snapshot;
  auto virtual_service = std::make_shared<config::VirtualService>();
  config::HttpRoute jason, rest;
  const config::StringMatch name{.kind = config::StringMatch::Kind::kExact, .value = "jason"};
  jason.matches = {{.headers = {{"end-user", name}}}};
  jason.destinations = {{.host = std::string(kHost), .subset = "v2"}};
  jason.total_weight = 1;
  rest.destinations = {{.host = std::string(kHost), .subset = "v1", .weight = 80},
                       {.host = std::string(kHost), .subset = "v3", .weight = 20}};
  rest.total_weight = 100;
  virtual_service->http = {jason, rest};
  virtual_service->gateways = {"mesh"};
  snapshot.mesh_hosts.exact[std::string(kHost)] = {{virtual_service}};
  return snapshot;
}

void decide(benchmark::State& state, bool rules, std::string_view host, std::size_t fields) {
  const auto snapshot = make_snapshot(1000, rules);
  const config::Workload workload{.name = {"default", "productpage"}};
  const routing::Client client{&workload, nullptr, 9080,
                               snapshot.services.find(kHost)->second.get()};
  const routing::RequestView request{.method = "GET",
                                     .path = "/reviews/0",
                                     .query = {},
                                     .host = host,
                                     .authority = host,
                                     .fields = routing::FieldList(kFields.data(), fields)};
  Random random(1);
  for (auto _ : state) benchmark::DoNotOptimize(routing::decide(snapshot, client, request, random));
}
BENCHMARK_CAPTURE(decide, no_rules, false, "reviews", 9);
BENCHMARK_CAPTURE(decide, no_rules_full_name, false, kHost, 9);
BENCHMARK_CAPTURE(decide, unknown_host, false, "www.example.com", 9);
BENCHMARK_CAPTURE(decide, header_rule_matches, true, "reviews", 9);
BENCHMARK_CAPTURE(decide, header_rule_misses_then_split, true, "reviews", 7);

void pick(benchmark::State& state, config::Balancer balancer, std::uint32_t unequal) {
  const auto config = make_cluster("", balancer, unequal);
  auto snapshot = std::make_shared<config::Snapshot>();
  snapshot->clusters.insert_or_assign(config->name, config);
  cluster::Registry registry;
  cluster::Clusters clusters(registry);
  clusters.adopt(snapshot);
  Random random(1);
  for (auto _ : state) benchmark::DoNotOptimize(clusters.get(config, "default")->pick(random));
}
BENCHMARK_CAPTURE(pick, least_request, config::Balancer::kLeastRequest, 0);
BENCHMARK_CAPTURE(pick, least_request_weighted, config::Balancer::kLeastRequest, 1);
BENCHMARK_CAPTURE(pick, round_robin, config::Balancer::kRoundRobin, 0);
BENCHMARK_CAPTURE(pick, round_robin_weighted, config::Balancer::kRoundRobin, 1);
BENCHMARK_CAPTURE(pick, random_weighted, config::Balancer::kRandom, 1);

// Everything the live state does for one request on a reused connection.
void account(benchmark::State& state, cluster::Sharing sharing) {
  const auto config = make_cluster("", config::Balancer::kRoundRobin);
  auto snapshot = std::make_shared<config::Snapshot>();
  snapshot->clusters.insert_or_assign(config->name, config);
  cluster::Registry registry;
  cluster::Clusters clusters(registry);
  clusters.adopt(snapshot);
  const auto cluster = clusters.get(config, "default");
  const auto limits = cluster->limits(1, sharing);
  Random random(1);
  const auto endpoint = cluster->pick(random);
  for (auto _ : state) {
    const auto slot = limits->try_request();
    const cluster::Endpoint::Request active(*endpoint);
    benchmark::DoNotOptimize(cluster->report(*endpoint, cluster::Outcome::response(200), {}));
  }
}
BENCHMARK_CAPTURE(account, one_worker, cluster::Sharing::kOne);
BENCHMARK_CAPTURE(account, several_workers, cluster::Sharing::kMany);

void record_metric(benchmark::State& state) {
  telemetry::Metrics metrics;
  auto& worker = metrics.add_worker();
  auto* edge = worker.edge({});
  for (int code : {404, 503, 500}) worker.record(edge, code, {}, 1ms);
  for (auto _ : state) worker.record(edge, 200, {}, 3ms);
}
BENCHMARK(record_metric);

void trace_new(benchmark::State& state) {
  Random random(1);
  for (auto _ : state) {
    const telemetry::TraceContext context({}, random, false);
    benchmark::DoNotOptimize(context.set().data());
  }
}
BENCHMARK(trace_new);

void trace_continued(benchmark::State& state) {
  Random random(1);
  const telemetry::TraceFields fields{
      .x_request_id = "0b9f0d0c-6a2a-4f57-9d0a-3a8f4f2f9f10",
      .traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      .b3_trace_id = "0af7651916cd43dd8448eb211c80319c",
      .b3_span_id = "b7ad6b7169203331",
      .b3_sampled = "1"};
  for (auto _ : state) {
    const telemetry::TraceContext context(fields, random, false);
    benchmark::DoNotOptimize(context.set().data());
  }
}
BENCHMARK(trace_continued);

void access_log_line(benchmark::State& state) {
  const SocketAddress address{IpAddress::v4(10, 77, 0, 5), 9080};
  const telemetry::AccessLogEntry entry{
      .start = std::chrono::sys_days{std::chrono::year{2026} / 11 / 2} + 3h,
      .method = "GET",
      .path = "/reviews/0",
      .protocol = "HTTP/1.1",
      .response_code = 200,
      .response_code_details = "via_upstream",
      .bytes_sent = 345,
      .duration = 6ms,
      .upstream_service_time_ms = 5,
      .user_agent = kFields[1].value,
      .request_id = kFields[6].value,
      .authority = "reviews:9080",
      .upstream_host = &address,
      .upstream_cluster = "outbound|9080|v1|reviews.default.svc.cluster.local",
      .upstream_local_address = &address,
      .downstream_local_address = &address,
      .downstream_remote_address = &address,
      .route_name = "default"};
  std::string out;
  for (auto _ : state) {
    out.clear();
    telemetry::append_access_log_line(entry, out);
    benchmark::DoNotOptimize(out.data());
  }
}
BENCHMARK(access_log_line);

}  // namespace
}  // namespace mesh

BENCHMARK_MAIN();
