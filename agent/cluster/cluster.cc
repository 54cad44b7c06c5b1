#include "cluster/cluster.h"

#include <utility>

#include "cluster/balancer.h"
#include "cluster/node_cluster.h"

namespace mesh::cluster {
namespace {

config::ClusterPtr find_config(const config::Snapshot& snapshot, const std::string& key) {
  if (const auto found = snapshot.clusters.find(key); found != snapshot.clusters.end())
    return found->second;
  if (const auto found = snapshot.client_clusters.find(key);
      found != snapshot.client_clusters.end())
    return found->second;
  return nullptr;
}

void count_status(Counters& counters, int status) {
  switch (status / 100) {
    case 2:
      counters.upstream_rq_2xx.add();
      break;
    case 3:
      counters.upstream_rq_3xx.add();
      break;
    case 4:
      counters.upstream_rq_4xx.add();
      break;
    case 5:
      counters.upstream_rq_5xx.add();
      break;
    default:
      break;
  }
}

}  // namespace

Cluster::Cluster(config::ClusterPtr config, std::shared_ptr<NodeCluster> node)
    : node_(std::move(node)),
      counters_(node_->add_worker()),
      balancer_(std::make_unique<Balancer>()) {
  adopt(std::move(config));
}

Cluster::~Cluster() = default;

void Cluster::adopt(config::ClusterPtr config) {
  std::unordered_map<SocketAddress, EndpointPtr> known;
  retire();
  for (auto& endpoint : endpoints_) known.emplace(endpoint->address(), std::move(endpoint));
  endpoints_.clear();
  for (const auto& wanted : config->endpoints) {
    auto& endpoint = known[wanted.address];
    if (!endpoint) {
      auto health = std::make_shared<EndpointHealth>(wanted.address);
      endpoint = std::make_shared<Endpoint>(wanted, std::move(health));
    } else if (!endpoint->removed_) {
      continue;  // the same address twice
    }
    endpoint->config_ = wanted;
    endpoint->removed_ = false;
    endpoints_.push_back(endpoint);
  }
  config_ = std::move(config);
  for (auto& [client, limits] : limits_) limits->budget_->configure(config_->policy.pool);
  balanced_version_ = 0;
}

void Cluster::retire() {
  for (auto& endpoint : endpoints_) endpoint->removed_ = true;
}

// The detector's state is looked up by address: it may know a new endpoint a little later than we
// do, or have forgotten and learnt it again.
void Cluster::refresh(Random& random) {
  const OutlierDetector& outlier = node_->outlier();
  balanced_version_ = outlier.version();  // before the flags: a change meanwhile refreshes again
  const bool everyone = outlier.in_panic();
  std::vector<EndpointPtr> candidates;
  for (const auto& endpoint : endpoints_) {
    if (auto health = outlier.find(endpoint->address())) endpoint->health_ = std::move(health);
    if (everyone || !endpoint->is_ejected()) candidates.push_back(endpoint);
  }
  balancer_->reset(config_->policy.balancer, std::move(candidates), random);
}

EndpointPtr Cluster::pick(Random& random) {
  if (node_->outlier().version() != balanced_version_) refresh(random);
  if (const EndpointPtr* endpoint = balancer_->pick(random)) return *endpoint;
  counters_->upstream_cx_none_healthy.add();
  return nullptr;
}

bool Cluster::report(const Endpoint& endpoint, const Outcome& outcome, TimePoint now) {
  count_status(*counters_, outcome.status);
  switch (outcome.kind) {
    case Outcome::Kind::kResponse:
      break;
    case Outcome::Kind::kConnectFailed:
      counters_->upstream_cx_connect_fail.add();
      break;
    case Outcome::Kind::kTimeout:
      counters_->upstream_rq_timeout.add();
      break;
    case Outcome::Kind::kReset:
      counters_->upstream_rq_reset.add();
      break;
  }
  return node_->outlier().report(*endpoint.health_, outcome, now);
}

const LimitsPtr& Cluster::limits(ClientId client, Sharing sharing) {
  LimitsPtr& limits = limits_[client];
  if (!limits) {
    auto budget = sharing == Sharing::kMany
                      ? node_->shared_budget(client)
                      : std::make_shared<Budget>(config_->policy.pool, sharing);
    limits = std::make_shared<Limits>(std::move(budget), counters_);
  }
  return limits;
}

Registry::Registry() = default;
Registry::~Registry() = default;

void Registry::reconcile(const config::Snapshot& snapshot) {
  const std::lock_guard lock(mutex_);
  for (auto it = clusters_.begin(); it != clusters_.end();) {
    if (auto config = find_config(snapshot, it->first)) {
      it->second->configure(std::move(config));
      ++it;
    } else {
      it = clusters_.erase(it);
    }
  }
}

std::vector<Recovered> Registry::tick(TimePoint now) {
  std::vector<Recovered> recovered;
  const std::lock_guard lock(mutex_);
  for (auto& [key, cluster] : clusters_)
    for (const auto& address : cluster->outlier().tick(now)) recovered.push_back({key, address});
  return recovered;
}

std::vector<ClusterStats> Registry::stats() const {
  std::vector<ClusterStats> all;
  const std::lock_guard lock(mutex_);
  all.reserve(clusters_.size());
  for (const auto& [key, cluster] : clusters_) all.push_back(cluster->stats(key));
  return all;
}

void Registry::forget_client(ClientId client) {
  const std::lock_guard lock(mutex_);
  for (auto& [key, cluster] : clusters_) cluster->forget_client(client);
}

std::shared_ptr<NodeCluster> Registry::get(const std::string& key,
                                           const config::ClusterPtr& config) {
  const std::lock_guard lock(mutex_);
  auto& cluster = clusters_[key];
  if (!cluster) cluster = std::make_shared<NodeCluster>(config);
  return cluster;
}

Clusters::Clusters(Registry& registry) : registry_(registry) {}
Clusters::~Clusters() = default;

void Clusters::adopt(config::SnapshotPtr snapshot) {
  snapshot_ = std::move(snapshot);
  by_config_.clear();
  for (auto it = by_key_.begin(); it != by_key_.end();) {
    const auto config = find_config(*snapshot_, it->first);
    Cluster& cluster = *it->second;
    // The node forgot it in between (deleted and made again): it begins anew here too.
    if (!config || registry_.get(it->first, config) != cluster.node_) {
      cluster.retire();
      it = by_key_.erase(it);
      continue;
    }
    if (config != cluster.config_) cluster.adopt(config);
    by_config_.emplace(config.get(), it->second);
    ++it;
  }
}

const ClusterPtr& Clusters::get(const config::ClusterPtr& config, std::string_view client_ns) {
  if (const auto found = by_config_.find(config.get()); found != by_config_.end())
    return found->second;
  std::string key = config->name;
  if (snapshot_ && find_config(*snapshot_, key) != config) {
    std::string own = std::string(client_ns) + "/" + key;
    if (snapshot_->client_clusters.contains(own)) key = std::move(own);
  }
  auto& cluster = by_key_[key];
  if (!cluster) cluster = std::make_shared<Cluster>(config, registry_.get(key, config));
  // Of an older snapshot: not to be remembered by its address, which may be used again.
  if (cluster->config_ == config) by_config_.emplace(config.get(), cluster);
  return cluster;
}

void Clusters::forget_client(ClientId client) {
  for (auto& [key, cluster] : by_key_) cluster->limits_.erase(client);
}

}  // namespace mesh::cluster
