#include "net/timer_wheel.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

using namespace std::chrono_literals;
namespace net = mesh::net;

namespace {

struct Probe : net::Timer {
  explicit Probe(std::vector<int>* log, int id)
      : Timer([](Timer& t) {
          auto& self = static_cast<Probe&>(t);
          self.log_->push_back(self.id_);
        }),
        log_(log),
        id_(id) {}
  std::vector<int>* log_;
  int id_;
};

class TimerWheelTest : public testing::Test {
 protected:
  net::Clock::time_point start = net::Clock::time_point(100h);
  net::TimerWheel wheel{start};
  std::vector<int> fired;
};

}  // namespace

TEST_F(TimerWheelTest, FiresInOrderAndNeverEarly) {
  Probe a(&fired, 1), b(&fired, 2), c(&fired, 3);
  wheel.arm(b, start + 50ms);
  wheel.arm(a, start + 11ms);
  wheel.arm(c, start + 3h);
  wheel.advance(start + 10ms);
  EXPECT_TRUE(fired.empty());
  wheel.advance(start + 20ms);
  EXPECT_EQ(fired, (std::vector{1}));
  wheel.advance(start + 49ms);
  EXPECT_EQ(fired, (std::vector{1}));
  wheel.advance(start + 3h - 1ms);
  EXPECT_EQ(fired, (std::vector{1, 2}));
  wheel.advance(start + 3h);
  EXPECT_EQ(fired, (std::vector{1, 2, 3}));
  EXPECT_EQ(wheel.next(), std::nullopt);
}

TEST_F(TimerWheelTest, EveryDelayUpToAnHourFiresWithinOneTick) {
  for (auto delay = 1ms; delay < 1h; delay = delay * 5 / 4 + 1ms) {
    Probe probe(&fired, 1);
    fired.clear();
    const auto from = start + 17h;
    wheel.advance(from);
    wheel.arm(probe, from + delay);
    net::Clock::time_point now = from;
    while (fired.empty()) {
      ASSERT_TRUE(wheel.next());
      ASSERT_GT(*wheel.next(), now);
      now = *wheel.next();
      ASSERT_LE(now, from + delay + net::TimerWheel::kTick) << delay.count();
      wheel.advance(now);
    }
    EXPECT_GE(now, from + delay);
    start = start + 17h;
  }
}

TEST_F(TimerWheelTest, ADisarmedOrDestroyedTimerDoesNotFire) {
  auto gone = std::make_unique<Probe>(&fired, 1);
  Probe off(&fired, 2);
  wheel.arm(*gone, start + 20ms);
  wheel.arm(off, start + 20ms);
  off.disarm();
  gone.reset();
  EXPECT_EQ(wheel.next(), std::nullopt);
  wheel.advance(start + 1s);
  EXPECT_TRUE(fired.empty());
}

TEST_F(TimerWheelTest, ACallbackMayDisarmItsNeighbourAndRearmItself) {
  struct Rearming : net::Timer {
    Rearming(net::TimerWheel* w, net::Timer* n)
        : Timer([](Timer& t) {
            auto& self = static_cast<Rearming&>(t);
            self.neighbour->disarm();
            if (++self.count < 3) self.wheel->arm(self, self.at += 100ms);
          }),
          wheel(w),
          neighbour(n) {}
    net::TimerWheel* wheel;
    net::Timer* neighbour;
    net::Clock::time_point at;
    int count = 0;
  };
  Probe neighbour(&fired, 1);
  Rearming rearming(&wheel, &neighbour);
  rearming.at = start + 20ms;
  wheel.arm(rearming, rearming.at);
  wheel.arm(neighbour, start + 20ms);
  wheel.advance(start + 1s);
  EXPECT_EQ(rearming.count, 3);
  EXPECT_TRUE(fired.empty());
}

TEST_F(TimerWheelTest, ATimerBeyondTheHorizonStillFires) {
  Probe probe(&fired, 1);
  wheel.arm(probe, start + 24h * 300);
  wheel.advance(start + 24h * 299);
  EXPECT_TRUE(fired.empty());
  wheel.advance(start + 24h * 300);
  EXPECT_EQ(fired, (std::vector{1}));
}
