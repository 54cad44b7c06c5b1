// NodeCluster: what the workers share of one cluster. Private to cluster; thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cluster/cluster.h"
#include "cluster/counters.h"
#include "cluster/limits.h"
#include "cluster/outlier_detector.h"
#include "config/snapshot.h"

namespace mesh::cluster {

class NodeCluster {
 public:
  explicit NodeCluster(config::ClusterPtr config) { configure(std::move(config)); }
  NodeCluster(const NodeCluster&) = delete;
  NodeCluster& operator=(const NodeCluster&) = delete;

  // Does nothing where `config` is the one in force.
  void configure(config::ClusterPtr config);
  OutlierDetector& outlier() { return outlier_; }
  const OutlierDetector& outlier() const { return outlier_; }

  std::shared_ptr<Counters> add_worker();  // kept for the totals after the worker let go
  std::shared_ptr<Budget> shared_budget(ClientId client);
  void forget_client(ClientId client);
  ClusterStats stats(const std::string& key) const;

 private:
  OutlierDetector outlier_;
  mutable std::mutex mutex_;  // why: workers come while a reader sums; never on the request path
  config::ClusterPtr config_;
  std::vector<std::shared_ptr<Counters>> workers_;
  std::unordered_map<ClientId, std::shared_ptr<Budget>> budgets_;
};

}  // namespace mesh::cluster
