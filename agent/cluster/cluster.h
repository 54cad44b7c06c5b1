// The live state of clusters: which endpoint takes the next request, what is in use, who is
// ejected, and what was counted. It belongs to a cluster's name, not to a snapshot: a change
// elsewhere never resets it, and an endpoint keeps its state for as long as its address stays.
//
// Registry is the node's: thread-safe; ejections and totals. Clusters is one worker's, with a
// Cluster for each name in use: balancing state, active requests, limits, counters; one thread, no
// lock and no foreign cache line on the request path. Time and random numbers are arguments.
// Balancing: Envoy docs arch_overview/upstream/load_balancing/load_balancers.rst.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/random.h"
#include "cluster/counters.h"
#include "cluster/limits.h"
#include "cluster/outlier_detector.h"
#include "config/snapshot.h"

namespace mesh::cluster {

// One endpoint as one worker sees it. Lives as long as someone holds it.
class Endpoint {
 public:
  Endpoint(const config::Endpoint& endpoint, EndpointHealthPtr health)
      : config_(endpoint), health_(std::move(health)) {}
  const SocketAddress& address() const { return config_.address; }
  const config::WorkloadPtr& workload() const { return config_.workload; }  // may be null
  std::uint32_t weight() const { return config_.weight; }
  // It left the configuration: let what runs finish, close what idles.
  bool is_removed() const { return removed_; }
  bool is_ejected() const { return health_->is_ejected(); }
  std::uint32_t active() const { return active_; }  // requests of this worker

  // One active request; LEAST_REQUEST counts these.
  class Request {
   public:
    Request() = default;
    explicit Request(Endpoint& endpoint) : endpoint_(&endpoint) { ++endpoint.active_; }
    Request(Request&& other) noexcept : endpoint_(std::exchange(other.endpoint_, nullptr)) {}
    Request& operator=(Request&& other) noexcept {
      std::swap(endpoint_, other.endpoint_);
      return *this;
    }
    ~Request() { reset(); }
    void reset() {
      if (endpoint_ != nullptr) --std::exchange(endpoint_, nullptr)->active_;
    }

   private:
    Endpoint* endpoint_ = nullptr;  // must outlive this
  };

 private:
  friend class Cluster;
  config::Endpoint config_;
  EndpointHealthPtr health_;
  bool removed_ = false;
  std::uint32_t active_ = 0;
};
using EndpointPtr = std::shared_ptr<Endpoint>;

using ClientId = std::uint32_t;  // of the client workload
using LimitsPtr = std::shared_ptr<Limits>;

class Balancer;     // cluster/balancer.h
class NodeCluster;  // cluster/node_cluster.h

class Cluster {
 public:
  Cluster(config::ClusterPtr config, std::shared_ptr<NodeCluster> node);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  const config::Cluster& config() const { return *config_; }
  // The endpoint for the next request; null: none, or all ejected (503, flag UH, counted).
  EndpointPtr pick(Random& random);
  // What came of a request to `endpoint`: keeps the counters of statuses and failures, and feeds
  // the outlier detection. True: this ejected it, for the whole node.
  bool report(const Endpoint& endpoint, const Outcome& outcome, TimePoint now);
  // The limits of a client workload. kMany: the workers share the budget. Keep it with the pool.
  const LimitsPtr& limits(ClientId client, Sharing sharing = Sharing::kOne);
  Counters& counters() { return *counters_; }  // for the few that the proxy keeps

 private:
  friend class Clusters;
  void adopt(config::ClusterPtr config);
  void retire();
  void refresh(Random& random);

  config::ClusterPtr config_;
  std::shared_ptr<NodeCluster> node_;
  std::shared_ptr<Counters> counters_;
  std::vector<EndpointPtr> endpoints_;
  std::unique_ptr<Balancer> balancer_;
  std::uint64_t balanced_version_ = 0;  // of the detector, when the balancer was filled; 0: never
  std::unordered_map<ClientId, LimitsPtr> limits_;
};
using ClusterPtr = std::shared_ptr<Cluster>;

struct EndpointStats {
  SocketAddress address;
  bool ejected = false;
  friend auto operator<=>(const EndpointStats&, const EndpointStats&) = default;
};

struct ClusterStats {
  std::string name;              // the cluster's
  std::string client_namespace;  // of its own DestinationRules; "" as everyone sees it
  struct Value {
    std::string_view name;
    bool is_gauge;
    std::uint64_t value;
  };
  std::vector<Value> counters;  // summed over workers
  OutlierCounters outlier;
  std::vector<EndpointStats> endpoints;
};

// An endpoint came back, for the log.
struct Recovered {
  std::string cluster;
  SocketAddress endpoint;
};

class Registry {
 public:
  Registry();
  ~Registry();
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // Before the workers adopt the same snapshot; by the thread that publishes them. Clusters that
  // are gone are forgotten once no worker holds them.
  void reconcile(const config::Snapshot& snapshot);
  // Ends ejections whose time is over. By one thread, a few times a second.
  std::vector<Recovered> tick(TimePoint now);
  std::vector<ClusterStats> stats() const;
  // A client workload ended: its shared budgets go.
  void forget_client(ClientId client);

 private:
  friend class Clusters;
  // Key: "<cluster name>" or "<client ns>/<cluster name>", as in the Snapshot.
  std::shared_ptr<NodeCluster> get(const std::string& key, const config::ClusterPtr& config);

  mutable std::mutex mutex_;  // why: workers take it once for each cluster they begin to use
  std::map<std::string, std::shared_ptr<NodeCluster>> clusters_;
};

class Clusters {
 public:
  explicit Clusters(Registry& registry);  // which must outlive this
  ~Clusters();
  Clusters(const Clusters&) = delete;
  Clusters& operator=(const Clusters&) = delete;

  // Between events. Clusters and endpoints that stay keep their state; a Cluster that is gone lives
  // on, with its last configuration, for as long as it is held.
  void adopt(config::SnapshotPtr snapshot);
  // The live state of a cluster of the adopted snapshot, as routing found it for a client of this
  // namespace. One lookup by pointer; the first use of a cluster makes its state.
  const ClusterPtr& get(const config::ClusterPtr& cluster, std::string_view client_ns);
  void forget_client(ClientId client);

 private:
  Registry& registry_;
  config::SnapshotPtr snapshot_;
  std::unordered_map<std::string, ClusterPtr> by_key_;
  std::unordered_map<const config::Cluster*, ClusterPtr> by_config_;
};

}  // namespace mesh::cluster
