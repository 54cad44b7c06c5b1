#include "telemetry/metrics.h"

#include <gmock/gmock.h>

#include <map>
#include <regex>
#include <sstream>
#include <thread>

#include "telemetry/prometheus.h"

namespace mesh::telemetry {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::Not;

// Sample lines by "name{labels}".
std::map<std::string, std::string> scrape(const Metrics& metrics) {
  std::string text;
  metrics.write_prometheus(text);
  std::map<std::string, std::string> samples;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('#')) continue;
    const std::size_t space = line.rfind(' ');
    EXPECT_TRUE(samples.emplace(line.substr(0, space), line.substr(space + 1)).second) << line;
  }
  return samples;
}

double sum(const std::map<std::string, std::string>& samples, const std::string& prefix) {
  double total = 0;
  for (const auto& [name, value] : samples)
    if (name.starts_with(prefix)) total += std::stod(value);
  return total;
}

EdgeLabels edge(std::string_view source = "productpage-v1") {
  EdgeLabels labels;
  labels.source = {.workload = source,
                   .workload_namespace = "default",
                   .principal = "spiffe://cluster.local/ns/default/sa/productpage",
                   .app = "productpage",
                   .version = "v1",
                   .canonical_service = "productpage",
                   .canonical_revision = "v1",
                   .cluster = "Kubernetes"};
  labels.destination = {.workload = "reviews-v1", .workload_namespace = "default"};
  labels.destination_service = "reviews.default.svc.cluster.local";
  labels.destination_service_name = "reviews";
  labels.destination_service_namespace = "default";
  return labels;
}

TEST(Metrics, HaveIstiosNamesAndLabels) {
  Metrics metrics;
  auto& worker = metrics.add_worker();
  worker.record(worker.edge(edge()), 200, {}, 7ms);
  std::string text;
  metrics.write_prometheus(text);
  EXPECT_THAT(
      text,
      HasSubstr(
          "# TYPE istio_requests_total counter\n"
          "istio_requests_total{reporter=\"source\",source_workload=\"productpage-v1\","
          "source_workload_namespace=\"default\","
          "source_principal=\"spiffe://cluster.local/ns/default/sa/productpage\","
          "source_app=\"productpage\",source_version=\"v1\","
          "source_canonical_service=\"productpage\",source_canonical_revision=\"v1\","
          "source_cluster=\"Kubernetes\",destination_workload=\"reviews-v1\","
          "destination_workload_namespace=\"default\",destination_principal=\"unknown\","
          "destination_app=\"unknown\",destination_version=\"unknown\","
          "destination_canonical_service=\"unknown\",destination_canonical_revision=\"unknown\","
          "destination_cluster=\"unknown\","
          "destination_service=\"reviews.default.svc.cluster.local\","
          "destination_service_name=\"reviews\",destination_service_namespace=\"default\","
          "request_protocol=\"http\",connection_security_policy=\"unknown\","
          "response_code=\"200\",response_flags=\"-\",grpc_response_status=\"\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE istio_request_duration_milliseconds histogram\n"));
  EXPECT_THAT(text, HasSubstr("# HELP istio_request_duration_milliseconds "));
}

TEST(Metrics, CountEachOutcomeOfAnEdgeByItself) {
  Metrics metrics;
  auto& worker = metrics.add_worker();
  auto* to_reviews = worker.edge(edge());
  EXPECT_EQ(worker.edge(edge()), to_reviews);
  EXPECT_NE(worker.edge(edge("other")), to_reviews);
  for (int i = 0; i < 3; ++i) worker.record(to_reviews, 200, {}, 1ms);
  worker.record(to_reviews, 503, ResponseFlag::kUpstreamOverflow, 1ms);
  worker.record(to_reviews, 503, ResponseFlag::kNoHealthyUpstream, 1ms);
  worker.record(to_reviews, 200, {}, 1ms, 14);
  std::multiset<std::string> values;
  for (const auto& [name, value] : scrape(metrics))
    if (name.starts_with("istio_requests_total"))
      values.insert(name.substr(name.find("response_code")) + value);
  EXPECT_THAT(values,
              testing::ElementsAre(
                  "response_code=\"200\",response_flags=\"-\",grpc_response_status=\"\"}3",
                  "response_code=\"200\",response_flags=\"-\",grpc_response_status=\"14\"}1",
                  "response_code=\"503\",response_flags=\"UH\",grpc_response_status=\"\"}1",
                  "response_code=\"503\",response_flags=\"UO\",grpc_response_status=\"\"}1"));
}

TEST(Metrics, AddTheWorkersUp) {
  Metrics metrics;
  for (int i = 0; i < 3; ++i) {
    auto& worker = metrics.add_worker();
    worker.record(worker.edge(edge()), 200, {}, 10ms);
  }
  const auto samples = scrape(metrics);
  EXPECT_EQ(sum(samples, "istio_requests_total"), 3);
  EXPECT_EQ(sum(samples, "istio_request_duration_milliseconds_count"), 3);
  EXPECT_EQ(sum(samples, "istio_request_duration_milliseconds_sum"), 30);
}

TEST(Metrics, PutDurationsIntoIstiosBuckets) {
  struct {
    std::chrono::nanoseconds duration;
    std::string_view first_bucket;  // the smallest that counts it
  } const cases[] = {{0ns, "0.5"},    {500us, "0.5"}, {500us + 1ns, "1"}, {1ms, "1"},
                     {3ms, "5"},      {100ms, "100"}, {2500ms, "2500"},   {7s, "10000"},
                     {1h, "3600000"}, {2h, "+Inf"},   {-1ns, "0.5"},      {30min + 1ns, "3600000"}};
  for (const auto& c : cases) {
    Metrics metrics;
    auto& worker = metrics.add_worker();
    worker.record(worker.edge(edge()), 200, {}, c.duration);
    std::vector<std::pair<double, std::string>> counted;
    for (const auto& [name, value] : scrape(metrics)) {
      const std::size_t le = name.find(",le=\"");
      if (le == std::string::npos) continue;
      const std::string bound = name.substr(le + 5, name.size() - le - 7);
      if (value != "0") counted.emplace_back(std::stod(bound), bound);
    }
    ASSERT_FALSE(counted.empty());
    EXPECT_EQ(std::ranges::min(counted).second, c.first_bucket) << c.duration.count();
  }
}

TEST(Metrics, WriteCumulativeBucketsWithSumAndCount) {
  Metrics metrics;
  auto& worker = metrics.add_worker();
  for (auto duration : {300us, 700us, 4200us})
    worker.record(worker.edge(edge()), 200, {}, duration);
  std::string text;
  metrics.write_prometheus(text);
  for (const char* end : {"le=\"0.5\"} 1\n", "le=\"1\"} 2\n", "le=\"5\"} 3\n",
                          "le=\"3600000\"} 3\n", "le=\"+Inf\"} 3\n"})
    EXPECT_THAT(text, HasSubstr(end));
  EXPECT_THAT(text, HasSubstr("grpc_response_status=\"\"} 5.2\n"));
  EXPECT_THAT(text, HasSubstr("grpc_response_status=\"\"} 3\n"));
}

TEST(Metrics, BoundTheirSeriesAndCountWhatDidNotFit) {
  Metrics metrics(4);
  auto& worker = metrics.add_worker();
  for (int i = 0; i < 100; ++i)
    worker.record(worker.edge(edge("w" + std::to_string(i))), 200, {}, 1ms);
  auto* first = worker.edge(edge("w0"));
  for (int code = 200; code < 210; ++code) worker.record(first, code, {}, 1ms);
  const auto samples = scrape(metrics);
  EXPECT_EQ(sum(samples, "istio_requests_total{reporter=\"source\""), 5);  // w0 twice
  EXPECT_EQ(sum(samples, "istio_requests_total{reporter=\"overflow\""), 105);
  EXPECT_EQ(samples.at("undermesh_metrics_overflow_total"), "105");
}

TEST(Metrics, KeepTheSeriesOfAnEndedWorkloadForAWhile) {
  Metrics metrics;
  auto& worker = metrics.add_worker();
  const auto all_but = [](std::string_view ended) {
    return [ended](std::string_view ns, std::string_view workload) {
      EXPECT_EQ(ns, "default");
      return workload != ended;
    };
  };
  const std::chrono::steady_clock::time_point start(1h);
  worker.record(worker.edge(edge()), 200, {}, 1ms);
  worker.record(worker.edge(edge("other")), 200, {}, 1ms);
  const auto generation = worker.generation();
  worker.retain(all_but("other"), start);
  worker.retain(all_but("nobody"), start + 4min);  // it came back
  worker.retain(all_but("other"), start + 8min);
  EXPECT_EQ(sum(scrape(metrics), "istio_requests_total"), 2);
  EXPECT_EQ(worker.generation(), generation);
  worker.retain(all_but("other"), start + 13min);
  EXPECT_EQ(sum(scrape(metrics), "istio_requests_total"), 1);
  EXPECT_NE(worker.generation(), generation);
  worker.retain(all_but("reviews-v1"), start + 13min);
  worker.retain(all_but("reviews-v1"), start + 20min);
  EXPECT_EQ(sum(scrape(metrics), "istio_requests_total"), 0);
}

TEST(Metrics, GiveThePlacesOfEndedWorkloadsToNewOnes) {
  Metrics metrics(4);
  auto& worker = metrics.add_worker();
  for (int i = 0; i < 50; ++i) {
    const std::string now = "w" + std::to_string(i);
    worker.retain([&](auto, auto workload) { return workload == now || workload == "reviews-v1"; },
                  std::chrono::steady_clock::time_point(1h));
    worker.record(worker.edge(edge(now)), 200, {}, 1ms);
  }
  EXPECT_EQ(sum(scrape(metrics), "undermesh_metrics_overflow_total"), 0);
}

TEST(Metrics, SayNothingOfSeriesWithoutRequests) {
  Metrics metrics;
  metrics.add_worker().edge(edge());
  std::string text;
  metrics.write_prometheus(text);
  EXPECT_THAT(text, Not(HasSubstr("{")));
}

TEST(Metrics, AreReadWhileWorkersWrite) {
  constexpr int kWorkers = 3, kRequests = 20'000;
  Metrics metrics(1000);
  std::atomic<int> running{kWorkers};
  std::vector<std::thread> workers;
  for (int w = 0; w < kWorkers; ++w)
    workers.emplace_back([&] {
      auto& worker = metrics.add_worker();
      for (int i = 0; i < kRequests; ++i)
        worker.record(worker.edge(edge("w" + std::to_string(i % 10))), 200 + i % 7, {},
                      std::chrono::microseconds(i));
      --running;
    });
  double before = 0;
  while (running.load() > 0) {
    const double now = sum(scrape(metrics), "istio_requests_total");
    EXPECT_GE(now, before);
    before = now;
  }
  for (auto& worker : workers) worker.join();
  EXPECT_EQ(sum(scrape(metrics), "istio_requests_total"), kWorkers * kRequests);
}

TEST(PrometheusWriter, EscapesLabelValuesAndHelp) {
  std::string out;
  PrometheusWriter writer(out);
  writer.family("a_total", "line\none \\ \"two\"", PrometheusWriter::Type::kCounter);
  writer.sample({{"x", "q\"b\\n\n"}, {"y", ""}}, 1);
  EXPECT_EQ(out,
            "# HELP a_total line\\none \\\\ \"two\"\n# TYPE a_total counter\n"
            "a_total{x=\"q\\\"b\\\\n\\n\",y=\"\"} 1\n");
}

TEST(PrometheusWriter, WritesNumbersAsPeopleRead) {
  const std::pair<double, std::string_view> cases[] = {
      {0, "0"},          {1e6, "1000000"},   {0.5, "0.5"},    {-3, "-3"}, {1e14, "100000000000000"},
      {1.0 / 0, "+Inf"}, {-1.0 / 0, "-Inf"}, {0.0 / 0, "NaN"}};
  for (const auto& [value, text] : cases) {
    std::string out;
    append_number(value, out);
    EXPECT_EQ(out, text);
  }
}

TEST(PrometheusWriter, WritesASampleWithoutLabels) {
  std::string out;
  PrometheusWriter writer(out);
  writer.family("g", "help", PrometheusWriter::Type::kGauge);
  writer.sample({}, 2);
  EXPECT_THAT(out, HasSubstr("\ng 2\n"));
}

}  // namespace
}  // namespace mesh::telemetry
