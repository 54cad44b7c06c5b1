#include "cluster/cluster.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>
#include <set>
#include <thread>

namespace mesh::cluster {
namespace {

using namespace std::chrono_literals;
using config::Balancer;
using testing::ElementsAre;
using testing::IsEmpty;

SocketAddress address(std::uint8_t n) { return {IpAddress::v4(10, 77, 0, n), 9080}; }

// A snapshot with one cluster "c" whose endpoints 1, 2, ... have these weights.
class ClusterTest : public testing::Test {
 protected:
  using Weights = std::vector<std::uint32_t>;

  void adopt(const Weights& weights) {
    auto made = std::make_shared<config::Cluster>();
    made->name = "c";
    for (std::uint32_t weight : weights)
      made->endpoints.push_back(
          {.address = address(static_cast<std::uint8_t>(made->endpoints.size() + 1)),
           .workload = nullptr,
           .weight = weight});
    made->policy = policy;
    config = made;
    publish();
  }
  void publish() {
    auto snapshot = std::make_shared<config::Snapshot>();
    if (config) snapshot->clusters.insert_or_assign("c", config);
    if (own) snapshot->client_clusters.insert_or_assign("ns/c", own);
    registry.reconcile(*snapshot);
    clusters.adopt(snapshot);
  }
  ClusterPtr cluster() { return clusters.get(config, "default"); }

  int picked() {  // the number of the endpoint; 0: none
    const auto endpoint = cluster()->pick(random);
    return endpoint ? endpoint->address().ip.bytes()[15] : 0;
  }
  std::map<int, int> picks(int times) {
    std::map<int, int> got;
    for (int i = 0; i < times; ++i) ++got[picked()];
    return got;
  }
  void eject(int n) {
    for (int i = 0; i < 100; ++i) {
      const auto endpoint = cluster()->pick(random);
      ASSERT_TRUE(endpoint);
      if (endpoint->address() != address(static_cast<std::uint8_t>(n))) continue;
      for (int k = 0; k < 5; ++k) cluster()->report(*endpoint, Outcome::response(503), now);
      return;
    }
    FAIL() << "endpoint " << n << " was never picked";
  }

  config::TrafficPolicy policy;
  config::ClusterPtr config, own;
  Registry registry;
  Clusters clusters{registry};
  Random random{11};
  TimePoint now{1000s};
};

// Balancers ----------------------------------------------------------------------------------

TEST_F(ClusterTest, RoundRobinGivesEveryEndpointItsTurn) {
  policy.balancer = Balancer::kRoundRobin;
  adopt({1, 1, 1});
  std::vector<int> order;
  for (int i = 0; i < 9; ++i) order.push_back(picked());
  for (std::size_t i = 3; i < order.size(); ++i) EXPECT_EQ(order[i], order[i - 3]);
  EXPECT_EQ(std::set<int>(order.begin(), order.begin() + 3).size(), 3u);
}

TEST_F(ClusterTest, RoundRobinGivesExactlyTheWeightsInARound) {
  policy.balancer = Balancer::kRoundRobin;
  adopt({4, 2, 1});
  picks(5);  // wherever it starts
  EXPECT_THAT(picks(70), ElementsAre(std::pair(1, 40), std::pair(2, 20), std::pair(3, 10)));
}

TEST_F(ClusterTest, RoundRobinSpreadsAHeavyEndpointOut) {
  policy.balancer = Balancer::kRoundRobin;
  adopt({2, 1, 1});
  std::vector<int> order;
  for (int i = 0; i < 40; ++i) order.push_back(picked());
  for (std::size_t i = 2; i < order.size(); ++i)
    EXPECT_FALSE(order[i] == 1 && order[i - 1] == 1 && order[i - 2] == 1) << i;
}

TEST_F(ClusterTest, RoundRobinStartsAnywhere) {
  policy.balancer = Balancer::kRoundRobin;
  std::set<int> first;
  for (int i = 0; i < 60; ++i) {
    adopt({1, 1, 1});  // a new configuration each time
    first.insert(picked());
  }
  EXPECT_EQ(first.size(), 3u);
}

TEST_F(ClusterTest, RandomFollowsTheWeights) {
  policy.balancer = Balancer::kRandom;
  for (const Weights& weights : {Weights{1, 1, 1, 1}, Weights{4, 1, 3, 2}}) {
    adopt(weights);
    constexpr int kPicks = 20'000;
    auto got = picks(kPicks);
    double sum = 0;
    for (auto weight : weights) sum += weight;
    for (int n = 1; n <= 4; ++n) {
      const double share = weights[static_cast<std::size_t>(n - 1)] / sum;
      EXPECT_NEAR(got[n], kPicks * share, 4 * std::sqrt(kPicks * share * (1 - share))) << n;
    }
  }
}

TEST_F(ClusterTest, LeastRequestAvoidsTheBusyOne) {
  adopt({1, 1});
  auto busy = cluster()->pick(random);
  Endpoint::Request running(*busy);
  const int n = busy->address().ip.bytes()[15];
  constexpr int kPicks = 10'000;
  auto got = picks(kPicks);
  // Two choices with repetition: the busy one is taken only where both fell on it.
  EXPECT_NEAR(got[n], kPicks / 4, 4 * std::sqrt(kPicks * 0.25 * 0.75));
}

TEST_F(ClusterTest, LeastRequestKeepsTheLoadEven) {
  adopt(Weights(10, 1));
  std::vector<std::pair<EndpointPtr, Endpoint::Request>> running;
  for (int i = 0; i < 1000; ++i) {
    auto endpoint = cluster()->pick(random);
    Endpoint::Request request(*endpoint);
    running.emplace_back(std::move(endpoint), std::move(request));
  }
  for (const auto& [endpoint, request] : running) {
    EXPECT_GE(endpoint->active(), 90u);
    EXPECT_LE(endpoint->active(), 110u);
  }
}

TEST_F(ClusterTest, LeastRequestFollowsUnequalWeightsAndTheLoad) {
  adopt({3, 1});
  auto idle = picks(4000);
  EXPECT_NEAR(idle[1], 3000, 2);
  auto heavy = cluster()->pick(random);
  while (heavy->weight() != 3) heavy = cluster()->pick(random);
  std::vector<Endpoint::Request> running;
  for (int i = 0; i < 8; ++i) running.emplace_back(*heavy);
  auto got = picks(4000);  // 3/9 against 1
  EXPECT_NEAR(got[1], 1000, 10);
}

TEST_F(ClusterTest, AnEmptyClusterHasNoEndpoint) {
  adopt({});
  EXPECT_EQ(picked(), 0);
  EXPECT_EQ(cluster()->counters().upstream_cx_none_healthy.value(), 1u);
}

// Ejections ----------------------------------------------------------------------------------

class EjectionTest : public ClusterTest {
 protected:
  EjectionTest() { policy.outlier = config::OutlierDetection{.max_ejection_percent = 100}; }
};

TEST_F(EjectionTest, NoBalancerPicksAnEjectedEndpoint) {
  for (Balancer balancer : {Balancer::kRoundRobin, Balancer::kRandom, Balancer::kLeastRequest})
    for (const Weights& weights : {Weights{1, 1, 1}, Weights{3, 2, 1}}) {
      config = nullptr;
      publish();
      policy.balancer = balancer;
      adopt(weights);
      eject(2);
      const auto got = picks(600);
      EXPECT_FALSE(got.contains(2));
      EXPECT_GT(got.at(1), 0);
      EXPECT_GT(got.at(3), 0);
      eject(1);
      EXPECT_THAT(picks(50), ElementsAre(std::pair(3, 50)));
      eject(3);
      EXPECT_THAT(picks(50), ElementsAre(std::pair(0, 50)));
    }
}

TEST_F(EjectionTest, AnEndpointThatComesBackIsPickedAgain) {
  policy.outlier->interval = config::Milliseconds(1000);
  policy.outlier->base_ejection_time = config::Milliseconds(1000);
  adopt({1, 1});
  picked();
  registry.tick(now);
  eject(1);
  EXPECT_FALSE(picks(50).contains(1));
  now += 1s;
  const auto recovered = registry.tick(now);
  ASSERT_EQ(recovered.size(), 1u);
  EXPECT_EQ(recovered[0].cluster, "c");
  EXPECT_EQ(recovered[0].endpoint, address(1));
  EXPECT_TRUE(picks(50).contains(1));
}

TEST_F(EjectionTest, BelowTheMinimumOfHealthAllArePicked) {
  policy.outlier->min_health_percent = 60;
  adopt({1, 1, 1});
  eject(1);
  EXPECT_EQ(picks(100).size(), 2u);
  eject(2);
  EXPECT_EQ(picks(300).size(), 3u);
}

TEST_F(EjectionTest, IsSeenByEveryWorker) {
  adopt({1, 1});
  Clusters other(registry);
  auto snapshot = std::make_shared<config::Snapshot>();
  snapshot->clusters.insert_or_assign("c", config);
  other.adopt(snapshot);
  const ClusterPtr theirs = other.get(config, "default");
  EXPECT_TRUE(theirs->pick(random));
  eject(1);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(theirs->pick(random)->address(), address(2));
}

// What survives ------------------------------------------------------------------------------

TEST_F(EjectionTest, StateSurvivesAChangeOfTheCluster) {
  adopt({1, 1});
  eject(1);
  const ClusterPtr before = cluster();
  auto kept = before->pick(random);
  Endpoint::Request running(*kept);
  before->limits(5)->try_request().reset();

  adopt({1, 7, 1});
  EXPECT_EQ(cluster(), before);
  EXPECT_FALSE(picks(200).contains(1));
  EXPECT_FALSE(kept->is_removed());
  EXPECT_EQ(kept->active(), 1u);
  EXPECT_EQ(kept->weight(), 7u);
  EXPECT_EQ(cluster()->counters().upstream_rq_total.value(), 1u);
}

TEST_F(EjectionTest, AnotherClustersChangeLeavesTheScheduleAlone) {
  policy.balancer = Balancer::kRoundRobin;
  adopt({1, 1, 1, 1});
  std::vector<int> order;
  for (int i = 0; i < 12; ++i) {
    order.push_back(picked());
    publish();  // a new snapshot with the same cluster
  }
  for (std::size_t i = 4; i < order.size(); ++i) EXPECT_EQ(order[i], order[i - 4]);
}

TEST_F(ClusterTest, AnEndpointThatLeavesIsMarkedAndLivesWhileHeld) {
  adopt({1, 1});
  EndpointPtr second;
  while (!second || second->address() != address(2)) second = cluster()->pick(random);
  Endpoint::Request running(*second);
  adopt({1});
  EXPECT_TRUE(second->is_removed());
  EXPECT_EQ(second->active(), 1u);
  EXPECT_EQ(picks(20).size(), 1u);
}

TEST_F(ClusterTest, AClusterThatIsGoneLivesWhileHeldAndComesBackNew) {
  adopt({1});
  const ClusterPtr old = cluster();
  const auto endpoint = old->pick(random);
  const auto limits = old->limits(1);
  auto slot = limits->try_connection();
  const auto config_before = config;
  config = nullptr;
  publish();
  EXPECT_TRUE(endpoint->is_removed());
  EXPECT_THAT(registry.stats(), IsEmpty());
  EXPECT_TRUE(old->pick(random));
  config = config_before;
  publish();
  EXPECT_NE(cluster(), old);
}

TEST_F(ClusterTest, AClusterThatWentAndCameBackBetweenTwoSnapshotsOfAWorkerIsNew) {
  adopt({1, 1});
  const ClusterPtr old = cluster();
  const auto snapshot = std::make_shared<config::Snapshot>();
  registry.reconcile(*snapshot);  // without this cluster; the worker misses it
  adopt({1, 1});
  EXPECT_NE(cluster(), old);
  cluster()->report(*cluster()->pick(random), Outcome::response(200), now);
  EXPECT_EQ(registry.stats().at(0).counters[15].value, 1u);  // upstream_rq_2xx
}

TEST_F(ClusterTest, AClusterOfAnOlderSnapshotIsTheOneOfItsName) {
  adopt({1});
  const auto older = config;
  const ClusterPtr live = cluster();
  adopt({1, 1});
  EXPECT_EQ(clusters.get(older, "default"), live);
  EXPECT_EQ(clusters.get(config, "default"), live);
}

TEST_F(ClusterTest, AClientNamespacesClusterHasAStateOfItsOwn) {
  auto made = std::make_shared<config::Cluster>();
  made->name = "c";
  made->endpoints.push_back({.address = address(1), .workload = nullptr});
  own = made;
  adopt({1});
  const ClusterPtr theirs = clusters.get(own, "ns");
  EXPECT_NE(theirs, cluster());
  theirs->report(*theirs->pick(random), Outcome::response(503), now);
  const auto stats = registry.stats();
  ASSERT_EQ(stats.size(), 2u);
  EXPECT_EQ(stats[0].name, "c");
  EXPECT_EQ(stats[0].client_namespace, "");
  EXPECT_EQ(stats[1].name, "c");
  EXPECT_EQ(stats[1].client_namespace, "ns");
}

// Limits and counters ------------------------------------------------------------------------

TEST_F(ClusterTest, LimitsArePerClient) {
  policy.pool.max_connections = 1;
  adopt({1});
  auto first = cluster()->limits(1)->try_connection();
  auto second = cluster()->limits(2)->try_connection();
  EXPECT_TRUE(first);
  EXPECT_TRUE(second);
  EXPECT_FALSE(cluster()->limits(1)->try_connection());
  EXPECT_EQ(cluster()->counters().upstream_cx_overflow.value(), 1u);
}

TEST_F(ClusterTest, LimitsOfAClientOnSeveralWorkersAreOneBudget) {
  policy.pool.max_connections = 2;
  adopt({1});
  Clusters other(registry);
  auto snapshot = std::make_shared<config::Snapshot>();
  snapshot->clusters.insert_or_assign("c", config);
  other.adopt(snapshot);
  const auto ours = cluster()->limits(1, Sharing::kMany);
  const auto theirs = other.get(config, "default")->limits(1, Sharing::kMany);
  auto a = ours->try_connection();
  auto b = theirs->try_connection();
  EXPECT_TRUE(a);
  EXPECT_TRUE(b);
  EXPECT_FALSE(ours->try_connection());
  b.reset();
  EXPECT_TRUE(ours->retry_connection());
  auto waiting = ours->wait();
  EXPECT_TRUE(theirs->someone_waits());
}

TEST_F(ClusterTest, LimitsFollowTheConfiguration) {
  policy.pool.max_connections = 1;
  adopt({1});
  const auto one = cluster()->limits(1);
  const auto many = cluster()->limits(2, Sharing::kMany);
  auto a = one->try_connection(), b = many->try_connection();
  policy.pool.max_connections = 2;
  adopt({1});
  EXPECT_TRUE(one->try_connection());
  EXPECT_TRUE(many->try_connection());
}

TEST_F(ClusterTest, ForgottenClientsStartAnew) {
  adopt({1});
  const auto before = cluster()->limits(1, Sharing::kMany);
  clusters.forget_client(1);
  registry.forget_client(1);
  EXPECT_NE(cluster()->limits(1, Sharing::kMany), before);
}

TEST_F(ClusterTest, StatsAddTheWorkersUpAndOutliveThem) {
  adopt({1});
  {
    Clusters other(registry);
    auto snapshot = std::make_shared<config::Snapshot>();
    snapshot->clusters.insert_or_assign("c", config);
    other.adopt(snapshot);
    const auto& theirs = other.get(config, "default");
    theirs->report(*theirs->pick(random), Outcome::response(201), now);
    theirs->report(*theirs->pick(random), Outcome::connect_failed(), now);
  }
  cluster()->report(*cluster()->pick(random), Outcome::response(200), now);
  cluster()->report(*cluster()->pick(random), Outcome::timeout(), now);
  cluster()->report(*cluster()->pick(random), Outcome::response(404), now);
  std::map<std::string_view, std::uint64_t> counters;
  const ClusterStats stats = registry.stats().at(0);
  for (const auto& counter : stats.counters) counters[counter.name] = counter.value;
  EXPECT_EQ(counters["upstream_rq_2xx"], 2u);
  EXPECT_EQ(counters["upstream_rq_4xx"], 1u);
  EXPECT_EQ(counters["upstream_rq_5xx"], 2u);
  EXPECT_EQ(counters["upstream_cx_connect_fail"], 1u);
  EXPECT_EQ(counters["upstream_rq_timeout"], 1u);
}

TEST(Registry, ServesWorkersReadersAndPublishersAtOnce) {
  auto make_config = [](std::uint32_t version) {
    auto made = std::make_shared<config::Cluster>();
    made->name = "c";
    for (std::uint8_t n = 1; n <= 3 + version % 2; ++n)
      made->endpoints.push_back({.address = address(n), .workload = nullptr});
    made->policy.outlier = config::OutlierDetection{.interval = config::Milliseconds(1),
                                                    .base_ejection_time = config::Milliseconds(1),
                                                    .max_ejection_percent = 60};
    auto snapshot = std::make_shared<config::Snapshot>();
    snapshot->clusters.insert_or_assign("c", made);
    return snapshot;
  };
  Registry registry;
  std::mutex mutex;
  config::SnapshotPtr published = make_config(0);
  registry.reconcile(*published);
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> reported{0};

  std::vector<std::thread> workers;
  for (std::uint64_t w = 0; w < 3; ++w)
    workers.emplace_back([&, w] {
      Clusters clusters(registry);
      Random random(w);
      for (int i = 0; i < 5000; ++i) {
        config::SnapshotPtr snapshot;
        {
          const std::lock_guard lock(mutex);
          snapshot = published;
        }
        if (i % 50 == 0) clusters.adopt(snapshot);
        const auto& cluster = clusters.get(snapshot->clusters.begin()->second, "default");
        auto slot = cluster->limits(1, Sharing::kMany)->try_request();
        if (const auto endpoint = cluster->pick(random)) {
          Endpoint::Request running(*endpoint);
          cluster->report(*endpoint, Outcome::response(random.below(4) == 0 ? 200 : 503),
                          TimePoint{1ms * i});
          reported.fetch_add(1);
        }
      }
    });
  std::thread publisher([&] {
    for (std::uint32_t version = 1; !done.load(); ++version) {
      auto next = make_config(version);
      registry.reconcile(*next);
      {
        const std::lock_guard lock(mutex);
        published = next;
      }
      registry.tick(TimePoint{10ms * version});
      (void)registry.stats();
      std::this_thread::yield();
    }
  });
  for (auto& worker : workers) worker.join();
  done = true;
  publisher.join();
  std::uint64_t counted = 0;
  const ClusterStats stats = registry.stats().at(0);
  for (const auto& counter : stats.counters)
    if (counter.name == "upstream_rq_2xx" || counter.name == "upstream_rq_5xx")
      counted += counter.value;
  EXPECT_EQ(counted, reported.load());
}

}  // namespace
}  // namespace mesh::cluster
