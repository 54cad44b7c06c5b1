#include "cluster/node_cluster.h"

#include <algorithm>
#include <utility>

namespace mesh::cluster {

void NodeCluster::configure(config::ClusterPtr config) {
  const std::lock_guard lock(mutex_);
  if (config == config_) return;
  config_ = std::move(config);
  outlier_.configure(config_->policy.outlier, config_->endpoints);
  for (auto& [client, budget] : budgets_) budget->configure(config_->policy.pool);
}

std::shared_ptr<Counters> NodeCluster::add_worker() {
  const std::lock_guard lock(mutex_);
  workers_.push_back(std::make_shared<Counters>());
  return workers_.back();
}

std::shared_ptr<Budget> NodeCluster::shared_budget(ClientId client) {
  const std::lock_guard lock(mutex_);
  auto& budget = budgets_[client];
  if (!budget) budget = std::make_shared<Budget>(config_->policy.pool, Sharing::kMany);
  return budget;
}

void NodeCluster::forget_client(ClientId client) {
  const std::lock_guard lock(mutex_);
  budgets_.erase(client);
}

ClusterStats NodeCluster::stats(const std::string& key) const {
  ClusterStats stats;
  const std::lock_guard lock(mutex_);
  stats.name = config_->name;
  if (key != stats.name) stats.client_namespace = key.substr(0, key.find('/'));
  Counters{}.for_each([&](std::string_view name, bool is_gauge, std::uint64_t value) {
    stats.counters.push_back({name, is_gauge, value});
  });
  for (const auto& worker : workers_) {
    std::size_t i = 0;
    worker->for_each(
        [&](std::string_view, bool, std::uint64_t value) { stats.counters[i++].value += value; });
  }
  stats.outlier = outlier_.counters();
  for (const auto& endpoint : outlier_.endpoints())
    stats.endpoints.push_back({endpoint->address(), endpoint->is_ejected()});
  std::ranges::sort(stats.endpoints);
  return stats;
}

}  // namespace mesh::cluster
