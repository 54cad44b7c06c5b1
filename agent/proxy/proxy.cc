#include "proxy/proxy.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/log.h"
#include "telemetry/prometheus.h"

namespace mesh::proxy {

namespace {

using namespace std::chrono_literals;
using telemetry::PrometheusWriter;

constexpr auto kHousekeeping = 100ms;
constexpr auto kHeldUp = 1s;  // a worker that did not turn for so long is an error
constexpr std::uint32_t kMostTapsWaiting = 1000;  // above: events are dropped, nothing waits

Logger& log() {
  static Logger instance = logger("proxy");
  return instance;
}

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  if (::getrandom(&seed, sizeof seed, 0) != sizeof seed) std::abort();  // cannot fail on Linux
  return seed;
}

// As `config dump` and the snapshot name it.
std::string key_of(const cluster::ClusterStats& cluster) {
  return cluster.client_namespace.empty() ? cluster.name
                                          : cluster.client_namespace + "/" + cluster.name;
}

}  // namespace

Proxy::Housekeeping::Housekeeping(Proxy* p)
    : Timer([](Timer& timer) { static_cast<Housekeeping&>(timer).proxy->housekeeping(); }),
      proxy(p) {}

Proxy::Proxy(net::Reactor& main, unsigned workers, const WorkerOptions& options,
             Callbacks callbacks)
    : main_(main), callbacks_(std::move(callbacks)), housekeeping_(this) {
  for (unsigned i = 0; i < std::max(workers, 1u); ++i) {
    Sinks& sinks = *this;
    workers_.push_back(std::make_unique<Worker>(i, options, registry_, metrics_.add_worker(), sinks,
                                                random_seed()));
  }
  running_ = workers_.size();
  for (auto& worker : workers_) worker->start();
  main_.timers().arm(housekeeping_, main_.now() + kHousekeeping);
}

Proxy::~Proxy() { stop(); }

void Proxy::begin_stop() {
  if (std::exchange(stopping_, true)) return;
  listeners_.clear();  // or those who connect now would wait for nobody
  for (auto& worker : workers_) {
    worker->begin_stop([this] {
      main_.post([this] {
        if (--running_ == 0) all_ended_.notify_all(main_);
      });
    });
  }
}

net::Task<> Proxy::drain() {
  begin_stop();
  net::Scope scope(main_);
  while (running_ > 0) (void)co_await all_ended_.wait(scope);
}

void Proxy::stop() {
  begin_stop();
  housekeeping_.disarm();
  for (auto& worker : workers_) worker->join();
}

net::Clock::time_point Proxy::last_turn() const {
  auto oldest = main_.now();
  for (const auto& worker : workers_) oldest = std::min(oldest, worker->last_turn());
  return oldest;
}

void Proxy::publish(ConfigurationPtr configuration, std::function<void()> applied) {
  registry_.reconcile(*configuration->snapshot);
  auto left = std::make_shared<std::size_t>(workers_.size());  // counted down on the main thread
  for (auto& worker : workers_) {
    Worker* w = worker.get();
    w->post([this, w, configuration, left, applied] {
      w->adopt(configuration);
      main_.post([left, applied] {
        if (--*left == 0) applied();
      });
    });
  }
}

Worker& Proxy::least_loaded() {
  return **std::ranges::min_element(workers_, {}, [](auto& worker) { return worker->clients; });
}

std::vector<Worker*> Proxy::homes(WorkloadId workload) {
  if (workload == feed::kGatewayWorkload) {
    std::vector<Worker*> all;
    for (auto& worker : workers_) all.push_back(worker.get());
    return all;
  }
  auto& home = homes_[workload];
  if (home == nullptr) {
    home = &least_loaded();
    ++home->clients;
  }
  return {home};
}

void Proxy::add_listener(const ListenerId& id, UniqueFd fd) {
  if (listeners_.contains(id)) return;
  if (auto set = net::set_non_blocking(fd.get()); !set) {
    log()->error("listener not served address={} error={}", id.address.to_string(),
                 set.error().message);
    return;
  }
  (void)net::set_no_delay(fd.get());  // inherited by what it accepts
  const auto to = homes(id.workload);
  const bool shared = to.size() > 1;
  for (Worker* worker : to) {
    auto copy = std::make_shared<UniqueFd>(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
    if (!*copy) {
      log()->error("listener not served address={} error=out of descriptors",
                   id.address.to_string());
      continue;
    }
    worker->post(
        [worker, id, copy, shared] { worker->add_listener(id, std::move(*copy), shared); });
  }
  listeners_.emplace(id, std::move(fd));
}

void Proxy::remove_listener(const ListenerId& id) {
  if (listeners_.erase(id) == 0) return;
  for (Worker* worker : homes(id.workload))
    worker->post([worker, id] { worker->remove_listener(id); });
}

void Proxy::add_sockets(WorkloadId workload, SocketKind kind, std::vector<UniqueFd> sockets) {
  auto& askers = askers_[{workload, kind}];
  if (askers.empty()) return;  // an answer to a question of somebody before us
  Worker* worker = workers_[askers.front()].get();
  askers.pop_front();
  auto list = std::make_shared<std::vector<UniqueFd>>(std::move(sockets));
  worker->post(
      [worker, workload, kind, list] { worker->add_sockets(workload, kind, std::move(*list)); });
}

void Proxy::ask_again_for_sockets() {
  askers_.clear();
  for (auto& worker : workers_) worker->post([w = worker.get()] { w->ask_again(); });
}

void Proxy::revoke(WorkloadId workload) {
  for (Worker* worker : homes(workload))
    worker->post([worker, workload] { worker->revoke(workload); });
  std::erase_if(listeners_, [&](auto& entry) { return entry.first.workload == workload; });
  std::erase_if(askers_, [&](auto& entry) { return entry.first.first == workload; });
  if (const auto home = homes_.find(workload); home != homes_.end()) {
    --home->second->clients;
    homes_.erase(home);
  }
}

std::vector<ListenerId> Proxy::listeners() const {
  std::vector<ListenerId> result;
  for (const auto& [id, served] : listeners_) result.push_back(id);
  return result;
}

UniqueFd Proxy::duplicate_listener(const ListenerId& id) const {
  const auto found = listeners_.find(id);
  if (found == listeners_.end()) return {};
  return UniqueFd(::fcntl(found->second.get(), F_DUPFD_CLOEXEC, 3));
}

void Proxy::set_access_log(UniqueFd file) {
  const bool on = static_cast<bool>(file);
  access_log_.use(std::move(file));
  for (auto& worker : workers_) worker->post([w = worker.get(), on] { w->set_access_log(on); });
}

void Proxy::set_tap(bool on) {
  for (auto& worker : workers_) worker->post([w = worker.get(), on] { w->set_tap(on); });
}

// On a worker.
void Proxy::log_lines(std::string lines) { access_log_.write(std::move(lines)); }

// On a worker.
void Proxy::tap(TapEvent event) {
  if (taps_waiting_.fetch_add(1, std::memory_order_relaxed) >= kMostTapsWaiting) {
    taps_waiting_.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  main_.post([this, event = std::move(event)] {
    taps_waiting_.fetch_sub(1, std::memory_order_relaxed);
    if (callbacks_.tap) callbacks_.tap(event);
  });
}

// On a worker.
void Proxy::want_sockets(unsigned worker, WorkloadId workload, SocketKind kind,
                         std::uint32_t count) {
  main_.post([this, worker, workload, kind, count] {
    askers_[{workload, kind}].push_back(worker);
    if (callbacks_.want_sockets) callbacks_.want_sockets(workload, kind, count);
  });
}

void Proxy::housekeeping() {
  for (const auto& back : registry_.tick(main_.now())) {
    log()->info("endpoint back after ejection cluster={} endpoint={}", back.cluster,
                back.endpoint.to_string());
  }
  const bool held_up = main_.now() - last_turn() > kHeldUp;
  if (held_up && !held_up_) log()->error("a worker does not turn: its connections stand still");
  if (!held_up && held_up_) log()->info("every worker turns again");
  held_up_ = held_up;
  main_.timers().arm(housekeeping_, main_.now() + kHousekeeping);
}

void Proxy::write_metrics(std::string& out) const {
  metrics_.write_prometheus(out);
  PrometheusWriter writer(out);
  const auto stats = registry_.stats();
  const auto family = [&](std::string_view name, bool gauge) {
    const auto type = gauge ? PrometheusWriter::Type::kGauge : PrometheusWriter::Type::kCounter;
    const std::string full = "envoy_cluster_" + std::string(name);
    writer.family(full, "Envoy's cluster." + std::string(name) + ", summed over clients", type);
  };
  if (!stats.empty()) {
    for (std::size_t i = 0; i < stats.front().counters.size(); ++i) {
      family(stats.front().counters[i].name, stats.front().counters[i].is_gauge);
      for (const auto& cluster : stats) {
        writer.sample(
            {{"cluster_name", cluster.name}, {"client_namespace", cluster.client_namespace}},
            static_cast<double>(cluster.counters[i].value));
      }
    }
    const auto outlier = [&](std::string_view name, bool gauge,
                             std::uint64_t cluster::OutlierCounters::* member) {
      family("outlier_detection_" + std::string(name), gauge);
      for (const auto& cluster : stats) {
        writer.sample(
            {{"cluster_name", cluster.name}, {"client_namespace", cluster.client_namespace}},
            static_cast<double>(cluster.outlier.*member));
      }
    };
    using Outlier = cluster::OutlierCounters;
    outlier("ejections_active", true, &Outlier::ejections_active);
    outlier("ejections_enforced_total", false, &Outlier::ejections_enforced_total);
    outlier("ejections_overflow", false, &Outlier::ejections_overflow);
  }
  const auto own = [&](std::string_view name, std::string_view help, bool gauge,
                       Counter WorkerCounters::* member) {
    std::uint64_t sum = 0;
    for (const auto& worker : workers_) sum += (std::as_const(*worker).counters().*member).value();
    writer.family(name, help,
                  gauge ? PrometheusWriter::Type::kGauge : PrometheusWriter::Type::kCounter);
    writer.sample({}, static_cast<double>(sum));
  };
  own("undermesh_downstream_connections_total", "Connections accepted from workloads", false,
      &WorkerCounters::connections_total);
  own("undermesh_downstream_connections", "Connections from workloads that are open", true,
      &WorkerCounters::connections_active);
  own("undermesh_connections_without_destination_total",
      "Connections reset because nothing had redirected them", false,
      &WorkerCounters::connections_without_destination);
  own("undermesh_connections_refused_total",
      "Connections reset: over the workload's limit, or not enrolled", false,
      &WorkerCounters::connections_refused);
  own("undermesh_requests_refused_total", "Requests over a limit of their workload (503, OM)",
      false, &WorkerCounters::requests_refused);
  own("undermesh_bad_requests_total", "Input that was refused as no valid request", false,
      &WorkerCounters::bad_requests);
  own("undermesh_requests_retried_total",
      "Requests sent again because a reused connection had ended", false, &WorkerCounters::retries);
  write_dns_metrics(writer);
  std::size_t buffers = 0;
  for (const auto& worker : workers_) buffers += worker->buffers_in_use();
  writer.family("undermesh_buffers_in_use", "80 KiB buffers that heads and bodies are held in",
                PrometheusWriter::Type::kGauge);
  writer.sample({}, static_cast<double>(buffers));
  writer.family("undermesh_turn_age_seconds", "Since the slowest thread last took its turn",
                PrometheusWriter::Type::kGauge);
  writer.sample({}, std::chrono::duration<double>(net::Clock::now() - last_turn()).count());
  writer.family("undermesh_access_log_lost_bytes_total", "Access log lines that were not written",
                PrometheusWriter::Type::kCounter);
  writer.sample({}, static_cast<double>(access_log_.lost_bytes()));
}

void Proxy::write_dns_metrics(PrometheusWriter& writer) const {
  const auto sum = [this](const auto& counter_of) {
    std::uint64_t total = 0;
    for (const auto& worker : workers_)
      total += counter_of(std::as_const(*worker).counters().dns).value();
    return static_cast<double>(total);
  };
  using Type = PrometheusWriter::Type;
  writer.family("undermesh_dns_queries_total", "DNS queries of workloads, by what became of them",
                Type::kCounter);
  for (std::size_t i = 0; i < kDnsResults; ++i)
    writer.sample({{"result", to_string(static_cast<DnsResult>(i))}},
                  sum([i](const DnsCounters& dns) -> const Counter& { return dns.results[i]; }));
  writer.family("undermesh_dns_queries_in_flight", "DNS queries that a resolver has not answered",
                Type::kGauge);
  writer.sample({}, sum([](const DnsCounters& dns) -> const Counter& { return dns.in_flight; }));
  writer.family("undermesh_dns_responses_ignored_total",
                "Datagrams of resolvers that answered something else than was asked",
                Type::kCounter);
  writer.sample(
      {}, sum([](const DnsCounters& dns) -> const Counter& { return dns.responses_ignored; }));
}

boost::json::array Proxy::dump_endpoints() const {
  boost::json::array result;
  for (const auto& cluster : registry_.stats()) {
    for (const auto& endpoint : cluster.endpoints) {
      result.push_back({{"cluster", key_of(cluster)},
                        {"endpoint", endpoint.address.to_string()},
                        {"health", endpoint.ejected ? "ejected" : "healthy"}});
    }
  }
  return result;
}

void Proxy::dump_clusters(std::function<void(boost::json::array)> done) {
  struct Gathering {
    boost::json::array pools;
    std::size_t left;
  };
  auto gathering = std::make_shared<Gathering>(Gathering{{}, workers_.size()});
  for (auto& worker : workers_) {
    Worker* w = worker.get();
    w->post([this, w, gathering, done] {
      boost::json::array mine;
      for (const WorkloadId id : w->client_ids()) {
        for (const auto& pool : w->pools(id)) {
          mine.push_back({{"workload_id", id},
                          {"cluster", pool.cluster},
                          {"connections", pool.connections},
                          {"idle", pool.idle},
                          {"pending", pool.pending},
                          {"requests", pool.requests}});
        }
      }
      main_.post([this, gathering, done, mine = std::move(mine)] {
        for (const auto& pool : mine) gathering->pools.push_back(pool);
        if (--gathering->left > 0) return;
        boost::json::array clusters;
        for (const auto& cluster : registry_.stats()) {
          boost::json::object row{{"cluster", key_of(cluster)}};
          for (const char* name : {"connections", "idle", "pending", "requests"}) {
            std::uint64_t sum = 0;
            for (const auto& pool : gathering->pools) {
              if (pool.at("cluster").as_string() == cluster.name) {
                sum += pool.at(name).to_number<std::uint64_t>();
              }
            }
            row[name] = sum;
          }
          for (const auto& [column, counter] :
               {std::pair{"rq_total", "upstream_rq_total"},
                std::pair{"overflow", "upstream_rq_pending_overflow"}}) {
            for (const auto& value : cluster.counters) {
              if (value.name == counter) row[column] = value.value;
            }
          }
          row["ejected"] = cluster.outlier.ejections_active;
          boost::json::object counters;
          for (const auto& value : cluster.counters) counters[value.name] = value.value;
          row["counters"] = std::move(counters);
          clusters.push_back(std::move(row));
        }
        done(std::move(clusters));
      });
    });
  }
}

boost::json::object Proxy::stats() const {
  const auto sum = [this](Counter WorkerCounters::* member) {
    std::uint64_t total = 0;
    for (const auto& worker : workers_)
      total += (std::as_const(*worker).counters().*member).value();
    return total;
  };
  return {
      {"workers", workers_.size()},
      {"workloads", homes_.size()},
      {"connections", sum(&WorkerCounters::connections_active)},
      {"connections_total", sum(&WorkerCounters::connections_total)},
      {"connections_without_destination", sum(&WorkerCounters::connections_without_destination)},
      {"bad_requests", sum(&WorkerCounters::bad_requests)},
      {"requests_retried", sum(&WorkerCounters::retries)}};
}

}  // namespace mesh::proxy
