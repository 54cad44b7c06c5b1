// What a request does to the live state allocates nothing in steady state.
#include "tests/support/allocations.h"

#include <gtest/gtest.h>

#include "cluster/cluster.h"

namespace mesh::cluster {
namespace {

TEST(Allocations, OfARequestAreNone) {
  for (const auto balancer :
       {config::Balancer::kLeastRequest, config::Balancer::kRoundRobin, config::Balancer::kRandom})
    for (const std::uint32_t unequal : {0u, 1u}) {
      auto made = std::make_shared<config::Cluster>();
      made->name = "outbound|9080||reviews.default.svc.cluster.local";
      for (std::uint8_t n = 1; n <= 3; ++n)
        made->endpoints.push_back({.address = {IpAddress::v4(10, 77, 0, n), 9080},
                                   .workload = nullptr,
                                   .weight = 1 + unequal * n});
      made->policy.balancer = balancer;
      made->policy.outlier = config::OutlierDetection{};
      auto snapshot = std::make_shared<config::Snapshot>();
      snapshot->clusters.insert_or_assign(made->name, made);
      Registry registry;
      Clusters clusters(registry);
      clusters.adopt(snapshot);
      const config::ClusterPtr config = made;
      Random random(1);
      EXPECT_EQ(test::count_allocations([&] {
                  const auto& cluster = clusters.get(config, "default");
                  const auto& limits = cluster->limits(1);
                  auto pending = limits->try_pending();
                  auto connection = limits->try_connection();
                  auto request = limits->try_request();
                  const auto endpoint = cluster->pick(random);
                  Endpoint::Request active(*endpoint);
                  cluster->report(*endpoint, Outcome::response(200), TimePoint{});
                  cluster->report(*endpoint, Outcome::timeout(), TimePoint{});
                }),
                0u);
    }
}

}  // namespace
}  // namespace mesh::cluster
