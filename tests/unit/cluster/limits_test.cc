#include "cluster/limits.h"

#include <gmock/gmock.h>

#include <thread>
#include <vector>

namespace mesh::cluster {
namespace {

config::ConnectionPool pool(std::uint32_t connections, std::uint32_t pending,
                            std::uint32_t requests) {
  return {
      .max_connections = connections, .max_pending_requests = pending, .max_requests = requests};
}

class LimitsTest : public testing::Test {
 protected:
  std::shared_ptr<Counters> counters = std::make_shared<Counters>();
  std::shared_ptr<Budget> budget = std::make_shared<Budget>(pool(1, 2, 3), Sharing::kOne);
  Limits limits{budget, counters};
};

TEST_F(LimitsTest, GivesAsManySlotsAsConfiguredAndNoMore) {
  auto connection = limits.try_connection();
  EXPECT_TRUE(connection);
  EXPECT_FALSE(limits.try_connection());
  auto first = limits.try_pending(), second = limits.try_pending();
  EXPECT_TRUE(second);
  EXPECT_FALSE(limits.try_pending());
  auto a = limits.try_request(), b = limits.try_request(), c = limits.try_request();
  EXPECT_TRUE(c);
  EXPECT_FALSE(limits.try_request());
}

TEST_F(LimitsTest, TakesASlotBackWhenItDiesOrMovesOn) {
  {
    auto slot = limits.try_connection();
    Limits::Slot moved = std::move(slot);
    EXPECT_FALSE(slot);  // NOLINT: what a moved slot is, is the point
    EXPECT_EQ(limits.in_use(Use::kConnection), 1u);
  }
  EXPECT_EQ(limits.in_use(Use::kConnection), 0u);
  auto again = limits.try_connection();
  EXPECT_TRUE(again);
  again.reset();
  again.reset();
  EXPECT_EQ(limits.in_use(Use::kConnection), 0u);
  again = limits.try_connection();
  EXPECT_TRUE(again);
}

TEST_F(LimitsTest, CountsOverflowsByEnvoysNames) {
  auto connection = limits.try_connection();
  (void)limits.try_connection();
  EXPECT_FALSE(limits.retry_connection());  // looking again is not another overflow
  auto p1 = limits.try_pending(), p2 = limits.try_pending();
  (void)limits.try_pending();
  auto a = limits.try_request(), b = limits.try_request(), c = limits.try_request();
  (void)limits.try_request();
  EXPECT_EQ(counters->upstream_cx_overflow.value(), 1u);
  EXPECT_EQ(counters->upstream_rq_pending_overflow.value(), 2u);  // max_requests counts here too
}

TEST_F(LimitsTest, KeepsTotalsAndGauges) {
  for (int i = 0; i < 3; ++i) {
    auto connection = limits.try_connection();
    auto pending = limits.try_pending();
    auto request = limits.try_request();
    EXPECT_EQ(counters->upstream_cx_active.value(), 1u);
    EXPECT_EQ(counters->upstream_rq_pending_active.value(), 1u);
    EXPECT_EQ(counters->upstream_rq_active.value(), 1u);
  }
  EXPECT_EQ(counters->upstream_cx_total.value(), 3u);
  EXPECT_EQ(counters->upstream_rq_pending_total.value(), 3u);
  EXPECT_EQ(counters->upstream_rq_total.value(), 3u);
  EXPECT_EQ(counters->upstream_cx_active.value(), 0u);
  EXPECT_EQ(counters->upstream_rq_pending_active.value(), 0u);
  EXPECT_EQ(counters->upstream_rq_active.value(), 0u);
}

TEST_F(LimitsTest, HaveNoLimitWhereNoneIsSet) {
  budget->configure(pool(0, config::ConnectionPool::kUnlimited, 0));
  std::vector<Limits::Slot> slots;
  for (int i = 0; i < 5000; ++i) {
    slots.push_back(limits.try_connection());
    slots.push_back(limits.try_pending());
    slots.push_back(limits.try_request());
  }
  EXPECT_THAT(slots, testing::Each(testing::ResultOf([](auto& s) { return bool(s); }, true)));
}

TEST_F(LimitsTest, FollowALowerLimitWithoutTakingAnythingAway) {
  budget->configure(pool(3, 1, 1));
  auto a = limits.try_connection(), b = limits.try_connection();
  budget->configure(pool(1, 1, 1));
  EXPECT_FALSE(limits.try_connection());
  a.reset();
  EXPECT_FALSE(limits.try_connection());
  b.reset();
  EXPECT_TRUE(limits.try_connection());
}

TEST_F(LimitsTest, TellsOthersThatSomeoneWaits) {
  EXPECT_FALSE(limits.someone_waits());
  auto waiting = limits.wait();
  EXPECT_TRUE(limits.someone_waits());
  waiting.reset();
  EXPECT_FALSE(limits.someone_waits());
}

TEST(SharedBudget, IsExactAmongWorkers) {
  constexpr std::uint32_t kMax = 3;
  constexpr int kWorkers = 4, kRounds = 20'000;
  auto budget = std::make_shared<Budget>(pool(kMax, 1, 1), Sharing::kMany);
  std::atomic<std::uint32_t> held{0}, most{0};
  std::atomic<std::uint64_t> taken{0}, counted{0};
  std::vector<std::thread> workers;
  for (int w = 0; w < kWorkers; ++w)
    workers.emplace_back([&] {
      auto counters = std::make_shared<Counters>();
      Limits limits(budget, counters);
      for (int i = 0; i < kRounds; ++i) {
        auto slot = limits.try_connection();
        if (!slot) continue;
        taken.fetch_add(1);
        const std::uint32_t now = held.fetch_add(1) + 1;
        for (std::uint32_t seen = most.load();
             now > seen && !most.compare_exchange_weak(seen, now););
        held.fetch_sub(1);
      }
      counted.fetch_add(counters->upstream_cx_total.value());
      EXPECT_EQ(counters->upstream_cx_total.value() + counters->upstream_cx_overflow.value(),
                std::uint64_t{kRounds});
    });
  for (auto& worker : workers) worker.join();
  EXPECT_LE(most.load(), kMax);
  EXPECT_EQ(taken.load(), counted.load());
  EXPECT_EQ(budget->in_use(Use::kConnection), 0u);
}

TEST(SharedBudget, LosesNoUpdate) {
  constexpr int kWorkers = 4, kRounds = 200'000;
  Budget budget(pool(0, 0, 0), Sharing::kMany);
  std::vector<std::thread> workers;
  for (int w = 0; w < kWorkers; ++w)
    workers.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        budget.take(Use::kRequest);
        budget.give_back(Use::kRequest);
      }
    });
  for (auto& worker : workers) worker.join();
  EXPECT_EQ(budget.in_use(Use::kRequest), 0u);
}

}  // namespace
}  // namespace mesh::cluster
