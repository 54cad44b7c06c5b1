// Balancer: which of some endpoints takes the next request. Private to cluster; one worker's.
#pragma once

#include <cstdint>
#include <vector>

#include "base/random.h"
#include "cluster/cluster.h"
#include "config/snapshot.h"

namespace mesh::cluster {

class Balancer {
 public:
  // The candidates from now on. Where the order starts is random, so that workers and restarts do
  // not fall into step.
  void reset(config::Balancer kind, std::vector<EndpointPtr> endpoints, Random& random);
  const EndpointPtr* pick(Random& random);  // null: no candidates

 private:
  // Earliest deadline first: each endpoint is due again after 1/weight, so over a round each gets
  // its weight, spread out. `order` breaks ties, so equal weights are a plain round robin.
  struct Due {
    double deadline;
    std::uint64_t order;
    std::uint32_t index;
    friend bool operator>(const Due& a, const Due& b) {
      return a.deadline != b.deadline ? a.deadline > b.deadline : a.order > b.order;
    }
  };

  std::uint32_t pick_equal(Random& random);
  std::uint32_t pick_scheduled();
  std::uint32_t pick_weighted(Random& random) const;
  double weight(std::uint32_t index) const;

  config::Balancer kind_ = config::Balancer::kRandom;
  std::vector<EndpointPtr> endpoints_;
  bool equal_weights_ = true;
  std::uint32_t next_ = 0;     // round robin over equal weights
  std::vector<Due> schedule_;  // heap: round robin, least request over unequal weights
  std::uint64_t order_ = 0;
  std::vector<std::uint64_t> sums_;  // random over unequal weights: running sums
};

}  // namespace mesh::cluster
