#include "proxy/worker.h"

#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <string>
#include <utility>

#include "base/log.h"
#include "proxy/exchange.h"

namespace mesh::proxy {

namespace {

using namespace std::chrono_literals;

constexpr auto kHousekeeping = 100ms;
constexpr auto kForget = 1min;            // between two looks for what ended
constexpr auto kOutOfDescriptors = 50ms;  // before the next accept
constexpr std::size_t kLogFlush = 64 * 1024;
constexpr std::size_t kKeepExchanges = 256;
constexpr std::size_t kMostPassthrough = 1024;  // between two changes of the configuration

Logger& log() {
  static Logger instance = logger("proxy");
  return instance;
}

void reset_connection(int fd) {
  const linger now{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

}  // namespace

// Client

Client::Client(Worker& worker, WorkloadId id, bool shared)
    : worker_(worker),
      id_(id),
      shared_(shared),
      scope_(worker.reactor()),
      connections_(worker.reactor()),
      stocks_{stock_of(SocketKind::kTcp4), stock_of(SocketKind::kTcp6), stock_of(SocketKind::kUdp4),
              stock_of(SocketKind::kUdp6)},
      dns_(worker, *this) {
  stock(SocketKind::kTcp4).refill();
}

SocketStock Client::stock_of(SocketKind kind) {
  return {worker_.reactor(), worker_.limits(), [this, kind](std::uint32_t n) {
            worker_.sinks().want_sockets(worker_.number(), id_, kind, n);
          }};
}

bool Client::has_room() const { return requests < worker_.limits().requests && has_buffers(); }

bool Client::has_buffers() const {
  return buffers * sizeof(net::BufferBlock) < worker_.limits().buffer_bytes;
}

UpstreamPool::User Client::use_pool(const cluster::ClusterPtr& cluster) {
  auto& pool = pools_[cluster.get()];
  if (!pool) {
    const auto sharing = shared_ ? cluster::Sharing::kMany : cluster::Sharing::kOne;
    pool = std::make_unique<UpstreamPool>(worker_.reactor(), worker_.limits(), scope_, cluster,
                                          cluster->limits(id_, sharing), stock(SocketKind::kTcp4),
                                          stock(SocketKind::kTcp6), shared_);
  }
  return UpstreamPool::User(*pool);
}

void Client::adopt(const View& view) {
  const auto& enrolled = view.configuration->enrolled;
  workload_ = nullptr;
  if (view.configuration->gateway && id_ == feed::kGatewayWorkload) {
    workload_ = view.configuration->gateway;
  } else if (const auto named = enrolled.find(id_); named != enrolled.end()) {
    const auto found = view.snapshot().workloads.find(named->second);
    if (found != view.snapshot().workloads.end()) workload_ = found->second;
  }
  known_.notify_all(worker_.reactor());
  adopt_denials(*view.configuration);
  // A pool whose cluster is no longer what that name means now ends when nobody uses it.
  std::erase_if(pools_, [&](auto& entry) {
    UpstreamPool& pool = *entry.second;
    pool.prune();
    const bool known = workload_ && is_current(view, *entry.first);
    if (known) return false;
    pool.close_idle();
    return !pool.is_used();
  });
}

// The kernel has the new policy already: connections opened from now on have passed it.
void Client::adopt_denials(const Configuration& configuration) {
  const auto found = configuration.denials.find(id_);
  std::string denials = found == configuration.denials.end() ? std::string() : found->second;
  if (denials_ && *denials_ != denials) {
    for (auto& [key, pool] : pools_) pool->reopen();
  }
  denials_ = std::move(denials);
}

// Whether the configuration still means this very cluster by its name.
bool Client::is_current(const View& view, const cluster::Cluster& cluster) const {
  const std::string& name = cluster.config().name;
  const std::string& ns = workload_->name.ns;
  const auto& snapshot = view.snapshot();
  const auto same = [&](const config::ClusterPtr& config) {
    return worker_.clusters().get(config, ns).get() == &cluster;
  };
  if (const auto all = snapshot.clusters.find(name); all != snapshot.clusters.end()) {
    if (same(all->second)) return true;
  }
  const auto own = snapshot.client_clusters.find(ns + "/" + name);
  return own != snapshot.client_clusters.end() && same(own->second);
}

void Client::housekeeping() {
  if (!shared_) return;
  for (auto& [key, pool] : pools_) pool->share();
}

net::Task<> Client::close() {
  scope_.cancel();
  co_await connections_.wait();
  co_await dns_.close();
  for (auto& [key, pool] : pools_) co_await pool->close();
  pools_.clear();
  for (SocketStock& stock : stocks_) stock.clear();
}

std::vector<Client::PoolInfo> Client::pools() const {
  std::vector<PoolInfo> result;
  for (const auto& [key, pool] : pools_) {
    const auto& limits = pool->limits();
    result.push_back({pool->cluster().config().name, pool->idle_count(),
                      limits.in_use(cluster::Use::kConnection),
                      limits.in_use(cluster::Use::kPending),
                      limits.in_use(cluster::Use::kRequest)});
  }
  return result;
}

// Worker

Worker::Housekeeping::Housekeeping(Worker* w)
    : Timer([](Timer& timer) { static_cast<Housekeeping&>(timer).worker->housekeeping(); }),
      worker(w) {}

Worker::Worker(unsigned number, const WorkerOptions& options, cluster::Registry& registry,
               telemetry::WorkerMetrics& metrics, Sinks& sinks, std::uint64_t seed)
    : number_(number),
      options_(options),
      random_(seed),
      clusters_(registry),
      metrics_(metrics),
      sinks_(sinks),
      scope_(reactor_),
      tasks_(reactor_),
      last_(reactor_),
      housekeeping_(this) {
  auto empty = std::make_shared<Configuration>();
  empty->snapshot = std::make_shared<config::Snapshot>();
  adopt(std::move(empty));
}

Worker::~Worker() = default;

void Worker::start() {
  turned(net::Clock::now());
  thread_ = std::thread([this] { run(); });
}

void Worker::run() {
  ::pthread_setname_np(::pthread_self(), ("worker" + std::to_string(number_)).c_str());
  reactor_.timers().arm(housekeeping_, net::Clock::now() + kHousekeeping);
  reactor_.run();
}

void Worker::begin_stop(std::function<void()> ended) {
  post([this, ended = std::move(ended)]() mutable {
    draining_ = true;
    last_.spawn(drain(std::move(ended)));
  });
}

void Worker::join() {
  if (thread_.joinable()) thread_.join();
}

net::Task<> Worker::drain(std::function<void()> ended) {
  end_sources([](const ListenerId& id) { return !feed::is_dns(id.kind); });
  const auto give_up = reactor_.now() + limits().drain;
  net::Scope scope(reactor_);
  const auto busy = [this] {
    return std::ranges::any_of(clients_, [](auto& c) { return c.second->requests > 0; });
  };
  while (busy() && reactor_.now() < give_up) (void)co_await net::sleep_for(scope, 20ms);
  // Last: until the heartbeat stops the kernel redirects queries.
  end_sources([](const ListenerId&) { return true; });
  while (!clients_.empty()) {
    auto client = std::move(clients_.begin()->second);
    clients_.erase(clients_.begin());
    tasks_.spawn(end_client(std::move(client)));
  }
  scope_.cancel();
  co_await tasks_.wait();
  housekeeping_.disarm();
  if (!log_.empty()) sinks_.log_lines(std::move(log_));
  turned(net::Clock::time_point::max());
  ended();
  reactor_.stop();
}

void Worker::turned(net::Clock::time_point now) {
  last_turn_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
}

void Worker::adopt(ConfigurationPtr configuration) {
  auto view = boost::make_local_shared<View>();
  view->configuration = std::move(configuration);
  view->epoch = ++epoch_;
  for (const auto& [id, name] : view->configuration->enrolled) {
    const auto found = view->snapshot().workloads.find(name);
    if (found != view->snapshot().workloads.end()) view->local.insert(found->second.get());
  }
  clusters_.adopt(view->configuration->snapshot);
  view_ = view;
  for (auto& [id, client] : clients_) client->adopt(*view_);
  passthrough_.clear();
  forget_ended_workloads();
}

// In the metrics.
void Worker::forget_ended_workloads() {
  forgot_ = reactor_.now();
  const Configuration& configuration = *view_->configuration;
  metrics_.retain(
      [&](std::string_view ns, std::string_view name) {
        const config::ObjectName workload{std::string(ns), std::string(name)};
        return configuration.snapshot->workloads.contains(workload) ||
               (configuration.gateway && configuration.gateway->name == workload);
      },
      forgot_);
}

Client& Worker::client(WorkloadId id, bool shared) {
  auto& client = clients_[id];
  if (!client) {
    client = std::make_unique<Client>(*this, id, shared);
    client->adopt(*view_);
  }
  return *client;
}

void Worker::add_listener(const ListenerId& id, UniqueFd fd, bool shared) {
  if (draining_ || sources_.contains(id)) return;  // the same socket again: the first is kept
  auto source = std::make_unique<Source>(client(id.workload, shared), id, scope_);
  auto opened = open_source(*source, std::move(fd));
  if (!opened) {
    log()->error("listener not served workload={} address={} error={}", id.workload,
                 id.address.to_string(), opened.error().message);
    return;
  }
  Source& added = *source;
  sources_.emplace(id, std::move(source));
  tasks_.spawn(serve(added));
}

Result<> Worker::open_source(Source& source, UniqueFd fd) {
  if (source.id.kind == feed::ListenerKind::kDnsUdp) {
    MESH_TRY(source.datagrams, net::UdpSocket::adopt(reactor_, std::move(fd)));
  } else {
    MESH_TRY(source.listener, net::Listener::adopt(reactor_, std::move(fd)));
  }
  return success();
}

net::Task<> Worker::serve(Source& source) {
  const ListenerId id = source.id;
  if (source.datagrams)
    co_await source.client.dns().serve_datagrams(source.datagrams, source.scope);
  else
    co_await accept_all(source);
  if (const auto found = sources_.find(id);
      found != sources_.end() && found->second.get() == &source) {
    end_source(found);  // its workload's, or the worker's end
  }
  std::erase_if(ending_sources_, [&](auto& ending) { return ending.get() == &source; });
}

net::Task<> Worker::accept_all(Source& source) {
  const ListenerId id = source.id;
  std::uint32_t accepted = 0;
  while (!source.scope.is_cancelled()) {
    // Connections wait in the backlog until the configuration says who they are from.
    if (source.client.workload() == nullptr) {
      (void)co_await source.client.known().wait(source.scope);
      continue;
    }
    auto fd = co_await source.listener->accept(source.scope);
    if (source.scope.is_cancelled()) break;
    if (!fd) {
      log()->warn("accept failed workload={} error={}", id.workload, fd.error().message);
      if (!co_await net::sleep_for(source.scope, kOutOfDescriptors)) break;
      continue;
    }
    counters_.connections_total.add();
    Client& client = source.client;
    if (client.workload() == nullptr || client.connections().size() >= limits().connections) {
      counters_.connections_refused.add();
      reset_connection(fd.value().get());
      continue;
    }
    client.connections().spawn(id.kind == feed::ListenerKind::kDnsTcp
                                   ? client.dns().serve_connection(std::move(fd).value())
                                   : serve_connection(*this, client, id, std::move(fd).value()));
    if (++accepted % Limits::kTurns == 0) (void)co_await net::yield(source.scope);
  }
}

void Worker::end_source(std::map<ListenerId, std::unique_ptr<Source>>::iterator source) {
  source->second->scope.cancel();
  ending_sources_.push_back(std::move(source->second));
  sources_.erase(source);
}

void Worker::end_sources(const std::function<bool(const ListenerId&)>& which) {
  for (auto source = sources_.begin(); source != sources_.end();) {
    const auto next = std::next(source);
    if (which(source->first)) end_source(source);
    source = next;
  }
}

void Worker::remove_listener(const ListenerId& id) {
  if (const auto found = sources_.find(id); found != sources_.end()) end_source(found);
}

void Worker::add_sockets(WorkloadId workload, SocketKind kind, std::vector<UniqueFd> sockets) {
  // A workload that ended meanwhile: its sockets are closed here.
  if (const auto found = clients_.find(workload); found != clients_.end()) {
    found->second->stock(kind).add(std::move(sockets));
  }
}

void Worker::ask_again() {
  for (auto& [id, client] : clients_) {
    for (const auto kind :
         {SocketKind::kTcp4, SocketKind::kTcp6, SocketKind::kUdp4, SocketKind::kUdp6})
      client->stock(kind).ask_again();
  }
}

void Worker::revoke(WorkloadId workload) {
  end_sources([workload](const ListenerId& id) { return id.workload == workload; });
  const auto found = clients_.find(workload);
  if (found == clients_.end()) return;
  auto client = std::move(found->second);
  clients_.erase(found);
  tasks_.spawn(end_client(std::move(client)));
}

net::Task<> Worker::end_client(std::unique_ptr<Client> client) {
  co_await client->close();
  const WorkloadId id = client->id();
  // Its listeners' loops, cancelled before, still name it: they end in this turn or the next.
  net::Scope scope(reactor_);
  while (
      std::ranges::any_of(ending_sources_, [&](auto& s) { return &s->client == client.get(); })) {
    (void)co_await net::yield(scope);
  }
  client.reset();
  if (!clients_.contains(id)) clusters_.forget_client(id);
}

std::vector<Client::PoolInfo> Worker::pools(WorkloadId workload) const {
  const auto found = clients_.find(workload);
  return found == clients_.end() ? std::vector<Client::PoolInfo>{} : found->second->pools();
}

std::vector<WorkloadId> Worker::client_ids() const {
  std::vector<WorkloadId> ids;
  for (const auto& [id, client] : clients_) ids.push_back(id);
  return ids;
}

void Worker::log_line(const std::string& line) {
  log_ += line;
  if (log_.size() >= kLogFlush) sinks_.log_lines(std::exchange(log_, {}));
}

std::string_view Worker::http_date() {
  const std::time_t now = std::time(nullptr);
  if (now != date_second_) {
    date_second_ = now;
    std::tm parts{};
    ::gmtime_r(&now, &parts);
    std::array<char, 40> text;
    const std::size_t size =
        std::strftime(text.data(), text.size(), "%a, %d %b %Y %H:%M:%S GMT", &parts);
    date_.assign(text.data(), size);
  }
  return date_;
}

config::ClusterPtr Worker::passthrough_cluster(const SocketAddress& destination) {
  const auto found = passthrough_.find(destination);
  if (found != passthrough_.end()) return found->second;
  if (passthrough_.size() >= kMostPassthrough) return nullptr;
  auto cluster = std::make_shared<config::Cluster>();
  cluster->name = "PassthroughCluster|" + destination.to_string();
  cluster->port = destination.port;
  cluster->endpoints.push_back({.address = destination, .workload = nullptr});
  return passthrough_.emplace(destination, std::move(cluster)).first->second;
}

std::unique_ptr<Exchange> Worker::take_exchange() {
  if (exchanges_.empty()) return std::make_unique<Exchange>(*this);
  auto exchange = std::move(exchanges_.back());
  exchanges_.pop_back();
  return exchange;
}

void Worker::give_back(std::unique_ptr<Exchange> exchange) {
  if (exchanges_.size() < kKeepExchanges) exchanges_.push_back(std::move(exchange));
}

void Worker::housekeeping() {
  turned(reactor_.now());
  if (!log_.empty()) sinks_.log_lines(std::exchange(log_, {}));
  for (auto& [id, client] : clients_) client->housekeeping();
  if (reactor_.now() - forgot_ > kForget) forget_ended_workloads();
  reactor_.timers().arm(housekeeping_, reactor_.now() + kHousekeeping);
}

}  // namespace mesh::proxy
