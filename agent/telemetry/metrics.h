// Metrics of requests: Istio's standard metrics, per worker, summed when read.
//
// istio_requests_total and istio_request_duration_milliseconds with the labels of Istio's
// reference/config/metrics; a value that is unknown is the string "unknown". The labels of one edge
// (reporter, source, destination) are interned once; a request then costs one lookup in the edge's
// own small table and a few plain stores: no lock, no allocation, no shared cache line.
// WorkerMetrics belongs to its worker. Metrics may be read by any thread at any time (one mutex,
// which workers take only to make a new series). The number of series is bounded: past the limit a
// request is counted in one series whose labels of source, destination and response say "overflow",
// and in undermesh_metrics_overflow_total.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/counter.h"
#include "telemetry/response_flags.h"

namespace mesh::telemetry {

// Istio's buckets, upper bounds in milliseconds.
inline constexpr std::array<double, 19> kDurationBuckets = {
    0.5,  1,    5,     10,    25,    50,     100,    250,     500,    1000,
    2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000};

class Histogram {  // one writer, any reader
 public:
  void record(std::chrono::nanoseconds duration);
  std::uint64_t bucket(std::size_t i) const { return buckets_[i].value(); }  // not cumulative
  std::uint64_t sum_microseconds() const { return sum_us_.value(); }

 private:
  std::array<Counter, kDurationBuckets.size() + 1> buckets_;  // the last: above all bounds
  Counter sum_us_;
};

// One side of a request. Empty members are reported as "unknown".
struct Peer {
  std::string_view workload, workload_namespace;
  std::string_view principal;  // "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
  std::string_view app, version;
  std::string_view canonical_service, canonical_revision;
  std::string_view cluster;  // the name of the Kubernetes cluster
};

struct EdgeLabels {
  std::string_view reporter = "source";  // or "destination"
  Peer source, destination;
  std::string_view destination_service;            // "reviews.default.svc.cluster.local"
  std::string_view destination_service_name;       // "reviews"
  std::string_view destination_service_namespace;  // "default"
  std::string_view request_protocol = "http";
  std::string_view connection_security_policy;  // "unknown" for reporter source
};

// As Prometheus text has them, without braces.
std::string rendered(const EdgeLabels& labels);
// Of what does not fit.
EdgeLabels overflow_labels();
// How long the series of a workload that ended stay, so that its last numbers are scraped.
inline constexpr std::chrono::minutes kKeepEnded{5};

class WorkerMetrics {
 public:
  class Edge;  // owned here; keep a pointer where the edge is used, while generation() is the same

  ~WorkerMetrics();
  WorkerMetrics(const WorkerMetrics&) = delete;
  WorkerMetrics& operator=(const WorkerMetrics&) = delete;

  // The edge of these labels, made at its first use (allocates then). Never null. Look it up when
  // the pool to an endpoint is made, not for each request.
  Edge* edge(const EdgeLabels& labels);
  // Drops the edges of workloads that ended: some time after (so that their last requests are
  // scraped), or at once where there are many edges. Call it when workloads changed, and sometimes.
  using IsThere = std::function<bool(std::string_view ns, std::string_view workload)>;
  void retain(const IsThere& is_there, std::chrono::steady_clock::time_point now);
  // Another one: edges were dropped. Look yours up again.
  std::uint64_t generation() const { return generation_; }
  // One finished request. grpc_status < 0: not gRPC (label value "").
  void record(Edge* edge, int response_code, ResponseFlags flags, std::chrono::nanoseconds duration,
              int grpc_status = -1);

 private:
  friend class Metrics;
  struct Series;
  explicit WorkerMetrics(std::size_t max_series);
  Series* add_series(const Edge* edge, int response_code, ResponseFlags flags, int grpc_status);
  std::vector<std::shared_ptr<const Series>> series() const;

  const std::size_t max_series_;
  std::unordered_map<std::string, std::unique_ptr<Edge>> edges_;  // by rendered labels
  Counter overflows_;
  std::uint64_t generation_ = 0;
  mutable std::mutex mutex_;  // why: a reader walks the list while the worker may change it
  std::vector<std::shared_ptr<Series>> series_;
  // Outside the limit:
  std::unique_ptr<Edge> overflow_edge_;
  Series* overflow_series_;
};

class Metrics {
 public:
  explicit Metrics(std::size_t max_series_per_worker = 10'000);
  ~Metrics();
  // At the start of a worker; the reference stays valid for the life of this.
  WorkerMetrics& add_worker();
  // Both families in Prometheus text, series sorted by labels, appended.
  void write_prometheus(std::string& out) const;

 private:
  const std::size_t max_series_;
  mutable std::mutex mutex_;  // why: workers come while a reader may walk the list
  std::vector<std::unique_ptr<WorkerMetrics>> workers_;
};

}  // namespace mesh::telemetry
