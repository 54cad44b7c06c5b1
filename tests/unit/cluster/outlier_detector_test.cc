#include "cluster/outlier_detector.h"

#include <gmock/gmock.h>

#include <thread>
#include <vector>

#include "base/random.h"

namespace mesh::cluster {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;

config::Endpoint endpoint(std::uint8_t n) {
  return {.address = {IpAddress::v4(10, 77, 0, n), 9080}, .workload = nullptr};
}

class OutlierDetectorTest : public testing::Test {
 protected:
  OutlierDetectorTest() {
    settings.max_ejection_percent = 100;
    use(4);
  }
  void use(std::uint8_t endpoints) {
    list.clear();
    for (std::uint8_t n = 1; n <= endpoints; ++n) list.push_back(endpoint(n));
    detector.configure(settings, list);
  }
  EndpointHealth& at(std::uint8_t n) { return *detector.find(endpoint(n).address); }
  bool fail(std::uint8_t n, int times, Outcome outcome = Outcome::response(503)) {
    bool ejected = false;
    for (int i = 0; i < times; ++i) ejected = detector.report(at(n), outcome, now) || ejected;
    return ejected;
  }
  // Ticks every 100 ms until `end`, as the proxy would; what came back.
  std::vector<SocketAddress> run(std::chrono::milliseconds time) {
    std::vector<SocketAddress> all;
    for (const auto end = now + time; now < end;) {
      now += 100ms;
      for (const auto& address : detector.tick(now)) all.push_back(address);
    }
    return all;
  }

  config::OutlierDetection settings;
  std::vector<config::Endpoint> list;
  OutlierDetector detector;
  TimePoint now{1000s};
};

TEST_F(OutlierDetectorTest, EjectsAfterFiveConsecutive5xx) {
  EXPECT_FALSE(fail(1, 4));
  EXPECT_FALSE(at(1).is_ejected());
  EXPECT_TRUE(fail(1, 1));
  EXPECT_TRUE(at(1).is_ejected());
  EXPECT_FALSE(at(2).is_ejected());
  EXPECT_EQ(detector.counters().ejections_active, 1u);
  EXPECT_EQ(detector.counters().ejections_enforced_total, 1u);
  EXPECT_EQ(detector.counters().ejections_enforced_consecutive_5xx, 1u);
}

TEST_F(OutlierDetectorTest, StartsToCountAnewAfterASuccess) {
  for (int round = 0; round < 10; ++round) {
    EXPECT_FALSE(fail(1, 4));
    EXPECT_FALSE(fail(1, 1, Outcome::response(round % 2 == 0 ? 200 : 404)));
  }
  EXPECT_FALSE(at(1).is_ejected());
}

TEST_F(OutlierDetectorTest, CountsFailuresOfOurOwnSideAs5xx) {
  for (const Outcome outcome : {Outcome::connect_failed(), Outcome::timeout(), Outcome::reset()}) {
    detector.configure(std::nullopt, list);
    detector.configure(settings, list);
    EXPECT_TRUE(fail(1, 5, outcome));
  }
}

TEST_F(OutlierDetectorTest, CountsGatewayErrorsApart) {
  settings.consecutive_5xx = 0;
  settings.consecutive_gateway = 3;
  use(4);
  EXPECT_FALSE(fail(1, 20, Outcome::response(500)));
  EXPECT_FALSE(fail(1, 2, Outcome::response(502)));
  EXPECT_FALSE(fail(1, 1, Outcome::response(500)));  // breaks the run
  EXPECT_FALSE(fail(1, 2, Outcome::response(504)));
  EXPECT_TRUE(fail(1, 1, Outcome::timeout()));
  EXPECT_EQ(detector.counters().ejections_enforced_consecutive_gateway_failure, 1u);
}

TEST_F(OutlierDetectorTest, CountsLocalErrorsApartWhenSplit) {
  settings.split_local_origin = true;
  settings.consecutive_local_origin = 3;
  use(4);
  EXPECT_FALSE(fail(1, 2, Outcome::connect_failed()));
  EXPECT_FALSE(fail(1, 4, Outcome::response(503)));  // the connect worked
  EXPECT_FALSE(fail(1, 2, Outcome::timeout()));
  EXPECT_TRUE(fail(1, 1, Outcome::connect_failed()));
  EXPECT_EQ(detector.counters().ejections_enforced_consecutive_local_origin_failure, 1u);
  EXPECT_TRUE(fail(2, 5, Outcome::response(500)));
}

TEST_F(OutlierDetectorTest, DoesNothingWhenOffOrWithAThresholdOfZero) {
  settings.consecutive_5xx = 0;
  use(4);
  EXPECT_FALSE(fail(1, 50));
  detector.configure(std::nullopt, list);
  EXPECT_FALSE(fail(1, 50));
  EXPECT_THAT(detector.tick(now), IsEmpty());
}

TEST_F(OutlierDetectorTest, EjectsNoMoreThanTheConfiguredShare) {
  struct {
    std::uint8_t endpoints;
    std::uint32_t percent;
    std::uint64_t ejected;
  } const cases[] = {{10, 10, 1}, {9, 10, 0},  {3, 33, 0}, {3, 34, 1},
                     {4, 50, 2},  {3, 100, 3}, {20, 10, 2}};
  for (const auto& c : cases) {
    detector.configure(std::nullopt, {});
    settings.max_ejection_percent = c.percent;
    use(c.endpoints);
    const auto before = detector.counters();
    for (std::uint8_t n = 1; n <= c.endpoints; ++n) fail(n, 5);
    EXPECT_EQ(detector.counters().ejections_active, c.ejected) << int{c.endpoints} << c.percent;
    EXPECT_EQ(detector.counters().ejections_overflow - before.ejections_overflow,
              c.endpoints - c.ejected);
  }
}

TEST_F(OutlierDetectorTest, AsksAgainAfterTheNextRunWhereTheShareForbadeIt) {
  settings.max_ejection_percent = 25;
  use(4);
  EXPECT_TRUE(fail(1, 5));
  EXPECT_FALSE(fail(2, 5));
  EXPECT_FALSE(fail(2, 4));
  EXPECT_THAT(run(60s), ElementsAre(endpoint(1).address));
  EXPECT_TRUE(fail(2, 1));
}

TEST_F(OutlierDetectorTest, BringsAnEndpointBackAtATickAfterItsTime) {
  settings.interval = 1s;
  settings.base_ejection_time = 3s;
  use(4);
  run(500ms);
  fail(1, 5);
  EXPECT_THAT(run(2900ms), IsEmpty());
  EXPECT_TRUE(at(1).is_ejected());
  EXPECT_THAT(run(1s), ElementsAre(endpoint(1).address));
  EXPECT_FALSE(at(1).is_ejected());
  EXPECT_EQ(detector.counters().ejections_active, 0u);
  EXPECT_FALSE(fail(1, 4));  // it starts anew
  EXPECT_TRUE(fail(1, 1));
}

TEST_F(OutlierDetectorTest, ForgetsErrorsOfRequestsThatEndWhileTheEndpointIsEjected) {
  fail(1, 5);
  EXPECT_FALSE(fail(1, 4));
  run(60s);
  ASSERT_FALSE(at(1).is_ejected());
  EXPECT_FALSE(fail(1, 1));
}

// How long the endpoint stays out if it is ejected now, in whole seconds (ticks are a second
// apart).
class EjectionTimeTest : public OutlierDetectorTest {
 protected:
  EjectionTimeTest() {
    settings.interval = 1s;
    settings.base_ejection_time = 10s;
    use(4);
    detector.tick(now);  // the interval begins
    run(1s);
  }
  std::int64_t eject_and_wait() {
    const TimePoint start = now;
    EXPECT_TRUE(fail(1, 5));
    while (at(1).is_ejected()) run(1s);
    return std::chrono::duration_cast<std::chrono::seconds>(now - start).count();
  }
};

TEST_F(EjectionTimeTest, GrowsWithEveryEjectionInARow) {
  EXPECT_EQ(eject_and_wait(), 10);
  EXPECT_EQ(eject_and_wait(), 20);
  EXPECT_EQ(eject_and_wait(), 30);
}

TEST_F(EjectionTimeTest, ShrinksByOneStepForEachIntervalInHealth) {
  eject_and_wait();
  eject_and_wait();
  eject_and_wait();
  run(2s);
  EXPECT_EQ(eject_and_wait(), 20);
  run(20s);
  EXPECT_EQ(eject_and_wait(), 10);
}

TEST_F(EjectionTimeTest, IsAtMostFiveMinutes) {
  settings.base_ejection_time = 120s;
  use(4);
  EXPECT_EQ(eject_and_wait(), 120);
  EXPECT_EQ(eject_and_wait(), 240);
  EXPECT_EQ(eject_and_wait(), 300);
  EXPECT_EQ(eject_and_wait(), 300);
}

TEST_F(EjectionTimeTest, IsTheBaseTimeWhereThatIsLonger) {
  settings.base_ejection_time = 400s;
  use(4);
  EXPECT_EQ(eject_and_wait(), 400);
  EXPECT_EQ(eject_and_wait(), 400);
}

TEST_F(OutlierDetectorTest, KeepsEjectionsByAddressWhenTheConfigurationChanges) {
  fail(1, 5);
  fail(2, 3);
  const auto version = detector.version();
  use(5);
  EXPECT_NE(detector.version(), version);
  EXPECT_TRUE(at(1).is_ejected());
  EXPECT_TRUE(fail(2, 2));
  EXPECT_EQ(detector.counters().ejections_active, 2u);
}

TEST_F(OutlierDetectorTest, ForgetsEndpointsThatLeave) {
  fail(4, 5);
  auto old = detector.find(endpoint(4).address);
  use(3);
  EXPECT_EQ(detector.counters().ejections_active, 0u);
  EXPECT_EQ(detector.find(endpoint(4).address), nullptr);
  EXPECT_FALSE(detector.report(*old, Outcome::response(503), now));
  for (int i = 0; i < 10; ++i) detector.report(*old, Outcome::response(503), now);
  EXPECT_EQ(detector.counters().ejections_active, 0u);
  use(4);
  EXPECT_FALSE(at(4).is_ejected());
  for (int i = 0; i < 10; ++i) detector.report(*old, Outcome::response(503), now);
  EXPECT_EQ(detector.counters().ejections_active, 0u);
}

TEST_F(OutlierDetectorTest, EndsEveryEjectionWhenItIsSwitchedOff) {
  fail(1, 5);
  detector.configure(std::nullopt, list);
  EXPECT_FALSE(at(1).is_ejected());
  EXPECT_EQ(detector.counters().ejections_active, 0u);
}

TEST_F(OutlierDetectorTest, PanicsBelowTheMinimumOfHealthyEndpointsOnlyWhereOneIsSet) {
  for (std::uint8_t n = 1; n <= 4; ++n) fail(n, 5);
  EXPECT_FALSE(detector.in_panic());
  settings.min_health_percent = 50;
  detector.configure(std::nullopt, list);
  use(4);
  fail(1, 5);
  fail(2, 5);
  EXPECT_FALSE(detector.in_panic());  // half is enough
  fail(3, 5);
  EXPECT_TRUE(detector.in_panic());
}

TEST_F(OutlierDetectorTest, ChangesItsVersionOnlyWhenSomethingChanged) {
  run(1s);
  const auto version = detector.version();
  fail(1, 4);
  fail(1, 1, Outcome::response(200));
  run(100s);
  EXPECT_EQ(detector.version(), version);
  fail(1, 5);
  EXPECT_EQ(detector.version(), version + 1);
}

TEST(OutlierDetector, CountsExactlyWithManyReporters) {
  constexpr int kWorkers = 4, kRounds = 20'000;
  config::OutlierDetection settings;
  settings.max_ejection_percent = 50;
  settings.interval = std::chrono::milliseconds(1);
  settings.base_ejection_time = std::chrono::milliseconds(1);
  std::vector<config::Endpoint> list = {endpoint(1), endpoint(2), endpoint(3), endpoint(4)};
  OutlierDetector detector;
  detector.configure(settings, list);
  std::vector<EndpointHealthPtr> health;
  for (const auto& e : list) health.push_back(detector.find(e.address));

  std::atomic<std::uint64_t> ejected{0}, back{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> workers;
  for (int w = 0; w < kWorkers; ++w)
    workers.emplace_back([&, w] {
      Random random(static_cast<std::uint64_t>(w));
      for (int i = 0; i < kRounds; ++i) {
        const auto outcome = Outcome::response(random.below(10) == 0 ? 200 : 503);
        if (detector.report(*health[random.below(4)], outcome, TimePoint{1ms * i}))
          ejected.fetch_add(1);
      }
    });
  std::thread ticker([&] {
    for (int i = 0; !done.load(); ++i) {
      back.fetch_add(detector.tick(TimePoint{10ms * i}).size());
      EXPECT_LE(detector.counters().ejections_active, 2u);
      std::this_thread::yield();
    }
  });
  std::thread reader([&] {
    while (!done.load()) {
      (void)detector.version();
      (void)health[0]->is_ejected();
      detector.configure(settings, list);
      std::this_thread::yield();
    }
  });
  for (auto& worker : workers) worker.join();
  done = true;
  ticker.join();
  reader.join();
  const auto counters = detector.counters();
  EXPECT_EQ(counters.ejections_enforced_total, ejected.load());
  EXPECT_EQ(counters.ejections_active, ejected.load() - back.load());
  EXPECT_GT(ejected.load(), 0u);
}

}  // namespace
}  // namespace mesh::cluster
