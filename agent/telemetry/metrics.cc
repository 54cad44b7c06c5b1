#include "telemetry/metrics.h"

#include <algorithm>
#include <map>
#include <optional>
#include <span>
#include <unordered_set>

#include "telemetry/prometheus.h"

namespace mesh::telemetry {
namespace {

constexpr std::string_view kUnknown = "unknown";
constexpr std::string_view kOverflow = "overflow";

// The bounds in nanoseconds.
constexpr auto kBounds = [] {
  std::array<std::int64_t, kDurationBuckets.size()> bounds{};
  for (std::size_t i = 0; i < bounds.size(); ++i)
    bounds[i] = static_cast<std::int64_t>(kDurationBuckets[i] * 1'000'000);
  return bounds;
}();

std::string_view known(std::string_view value) { return value.empty() ? kUnknown : value; }

struct Sums {
  std::array<std::uint64_t, kDurationBuckets.size() + 1> buckets{};
  std::uint64_t sum_microseconds = 0;

  std::uint64_t count() const {
    std::uint64_t count = 0;
    for (std::uint64_t n : buckets) count += n;
    return count;
  }
};

void write_histogram(PrometheusWriter& writer, const std::string& labels, const Sums& sums) {
  std::uint64_t below = 0;
  std::string text;
  for (std::size_t i = 0; i < sums.buckets.size(); ++i) {
    below += sums.buckets[i];
    text.assign(labels).append(",le=\"");
    if (i < kDurationBuckets.size())
      append_number(kDurationBuckets[i], text);
    else
      text += "+Inf";
    text += '"';
    writer.sample_text("_bucket", text, static_cast<double>(below));
  }
  writer.sample_text("_sum", labels, static_cast<double>(sums.sum_microseconds) / 1000);
  writer.sample_text("_count", labels, static_cast<double>(below));
}

}  // namespace

EdgeLabels overflow_labels() {
  const Peer peer{kOverflow, kOverflow, kOverflow, kOverflow,
                  kOverflow, kOverflow, kOverflow, kOverflow};
  return {.reporter = kOverflow,
          .source = peer,
          .destination = peer,
          .destination_service = kOverflow,
          .destination_service_name = kOverflow,
          .destination_service_namespace = kOverflow,
          .connection_security_policy = kOverflow};
}

std::string rendered(const EdgeLabels& edge) {
  const Peer& s = edge.source;
  const Peer& d = edge.destination;
  const Label labels[] = {
      {"reporter", edge.reporter},
      {"source_workload", known(s.workload)},
      {"source_workload_namespace", known(s.workload_namespace)},
      {"source_principal", known(s.principal)},
      {"source_app", known(s.app)},
      {"source_version", known(s.version)},
      {"source_canonical_service", known(s.canonical_service)},
      {"source_canonical_revision", known(s.canonical_revision)},
      {"source_cluster", known(s.cluster)},
      {"destination_workload", known(d.workload)},
      {"destination_workload_namespace", known(d.workload_namespace)},
      {"destination_principal", known(d.principal)},
      {"destination_app", known(d.app)},
      {"destination_version", known(d.version)},
      {"destination_canonical_service", known(d.canonical_service)},
      {"destination_canonical_revision", known(d.canonical_revision)},
      {"destination_cluster", known(d.cluster)},
      {"destination_service", known(edge.destination_service)},
      {"destination_service_name", known(edge.destination_service_name)},
      {"destination_service_namespace", known(edge.destination_service_namespace)},
      {"request_protocol", known(edge.request_protocol)},
      {"connection_security_policy", known(edge.connection_security_policy)},
  };
  std::string text;
  append_labels(labels, text);
  return text;
}

void Histogram::record(std::chrono::nanoseconds duration) {
  const auto bucket = std::ranges::lower_bound(kBounds, duration.count()) - kBounds.begin();
  buckets_[static_cast<std::size_t>(bucket)].add();
  sum_us_.add(static_cast<std::uint64_t>(std::max<std::int64_t>(0, duration.count()) / 1000));
}

struct WorkerMetrics::Series {
  const Edge* edge;  // the worker's alone: it may be dropped while a reader is here
  std::shared_ptr<const std::string> edge_labels;
  int response_code;  // below 0: the overflow series
  ResponseFlags flags;
  int grpc_status;
  Histogram duration;

  void append_labels_to(std::string& out) const;
};

class WorkerMetrics::Edge {
 public:
  Edge(std::string labels, const EdgeLabels& of)
      : labels_(std::make_shared<const std::string>(std::move(labels))),
        source_(of.source.workload),
        source_namespace_(of.source.workload_namespace),
        destination_(of.destination.workload),
        destination_namespace_(of.destination.workload_namespace) {}
  const std::shared_ptr<const std::string>& labels() const { return labels_; }
  bool is_there(const IsThere& is_there) const {
    return (source_.empty() || is_there(source_namespace_, source_)) &&
           (destination_.empty() || is_there(destination_namespace_, destination_));
  }
  std::optional<std::chrono::steady_clock::time_point> ended_at;

  Series* find(std::uint64_t key) const {
    for (const auto& [known_key, series] : series_)
      if (known_key == key) return series;
    return nullptr;
  }
  void add(std::uint64_t key, Series* series) { series_.emplace_back(key, series); }

 private:
  const std::shared_ptr<const std::string> labels_;  // read by other threads
  const std::string source_, source_namespace_, destination_, destination_namespace_;
  std::vector<std::pair<std::uint64_t, Series*>> series_;  // few: an edge has few outcomes
};

void WorkerMetrics::Series::append_labels_to(std::string& out) const {
  out += *edge_labels;
  if (response_code < 0) {
    out += ",response_code=\"overflow\",response_flags=\"overflow\",grpc_response_status=\"\"";
    return;
  }
  out += ",response_code=\"";
  append_number(response_code, out);
  out += "\",response_flags=\"";
  flags.append_to(out);
  out += "\",grpc_response_status=\"";
  if (grpc_status >= 0) append_number(grpc_status, out);
  out += '"';
}

WorkerMetrics::WorkerMetrics(std::size_t max_series)
    : max_series_(max_series),
      overflow_edge_(std::make_unique<Edge>(rendered(overflow_labels()), EdgeLabels{})),
      overflow_series_(add_series(overflow_edge_.get(), -1, {}, -1)) {}

WorkerMetrics::~WorkerMetrics() = default;

WorkerMetrics::Edge* WorkerMetrics::edge(const EdgeLabels& labels) {
  std::string text = rendered(labels);
  if (const auto found = edges_.find(text); found != edges_.end()) return found->second.get();
  if (edges_.size() >= max_series_) return overflow_edge_.get();
  auto edge = std::make_unique<Edge>(text, labels);
  return edges_.emplace(std::move(text), std::move(edge)).first->second.get();
}

void WorkerMetrics::record(Edge* edge, int response_code, ResponseFlags flags,
                           std::chrono::nanoseconds duration, int grpc_status) {
  const std::uint64_t key = std::uint64_t{flags.bits()} |
                            std::uint64_t{static_cast<std::uint16_t>(response_code)} << 32 |
                            std::uint64_t{static_cast<std::uint16_t>(grpc_status)} << 48;
  Series* series = edge->find(key);
  if (series == nullptr) {
    if (edge == overflow_edge_.get() || series_.size() > max_series_) {
      overflows_.add();
      series = overflow_series_;
    } else {
      series = add_series(edge, response_code, flags, grpc_status);
      edge->add(key, series);
    }
  }
  series->duration.record(duration);
}

WorkerMetrics::Series* WorkerMetrics::add_series(const Edge* edge, int response_code,
                                                 ResponseFlags flags, int grpc_status) {
  const std::lock_guard lock(mutex_);
  series_.push_back(
      std::make_shared<Series>(edge, edge->labels(), response_code, flags, grpc_status));
  return series_.back().get();
}

std::vector<std::shared_ptr<const WorkerMetrics::Series>> WorkerMetrics::series() const {
  const std::lock_guard lock(mutex_);
  return {series_.begin(), series_.end()};
}

void WorkerMetrics::retain(const IsThere& is_there, std::chrono::steady_clock::time_point now) {
  const bool many = edges_.size() > max_series_ / 2 || series_.size() > max_series_ / 2;
  std::unordered_set<const Edge*> dropped;
  for (auto& [text, edge] : edges_) {
    if (edge->is_there(is_there)) {
      edge->ended_at.reset();
      continue;
    }
    if (!edge->ended_at) edge->ended_at = now;
    if (many || now - *edge->ended_at >= kKeepEnded) dropped.insert(edge.get());
  }
  if (dropped.empty()) return;
  ++generation_;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(series_, [&](const auto& series) { return dropped.contains(series->edge); });
  }
  std::erase_if(edges_, [&](const auto& entry) { return dropped.contains(entry.second.get()); });
}

Metrics::Metrics(std::size_t max_series_per_worker) : max_series_(max_series_per_worker) {}
Metrics::~Metrics() = default;

WorkerMetrics& Metrics::add_worker() {
  const std::lock_guard lock(mutex_);
  workers_.push_back(std::unique_ptr<WorkerMetrics>(new WorkerMetrics(max_series_)));
  return *workers_.back();
}

void Metrics::write_prometheus(std::string& out) const {
  std::map<std::string, Sums> all;
  std::uint64_t overflows = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& worker : workers_) {
      overflows += worker->overflows_.value();
      for (const auto& series : worker->series()) {
        std::string labels;
        series->append_labels_to(labels);
        Sums& sums = all[std::move(labels)];
        for (std::size_t i = 0; i < sums.buckets.size(); ++i)
          sums.buckets[i] += series->duration.bucket(i);
        sums.sum_microseconds += series->duration.sum_microseconds();
      }
    }
  }
  std::erase_if(all, [](const auto& item) { return item.second.count() == 0; });

  PrometheusWriter writer(out);
  writer.family("istio_requests_total", "Requests handled by the proxy.",
                PrometheusWriter::Type::kCounter);
  for (const auto& [labels, sums] : all)
    writer.sample_text("", labels, static_cast<double>(sums.count()));
  writer.family("istio_request_duration_milliseconds", "Duration of requests in milliseconds.",
                PrometheusWriter::Type::kHistogram);
  for (const auto& [labels, sums] : all) write_histogram(writer, labels, sums);
  writer.family("undermesh_metrics_overflow_total",
                "Requests counted in the overflow series because the limit of series is reached.",
                PrometheusWriter::Type::kCounter);
  writer.sample({}, static_cast<double>(overflows));
}

}  // namespace mesh::telemetry
