#include "proxy/throttle.h"

#include <gtest/gtest.h>

namespace mesh::proxy {
namespace {

using namespace std::chrono_literals;

TEST(Throttle, TellsAtOnceAndThenOnceASecondHowOften) {
  const Throttle::Clock::time_point start{};
  Throttle throttle;
  EXPECT_EQ(throttle.add(start), 1u);
  EXPECT_EQ(throttle.add(start + 1ms), std::nullopt);
  EXPECT_EQ(throttle.add(start + 999ms), std::nullopt);
  EXPECT_EQ(throttle.add(start + 1s), 3u);
  EXPECT_EQ(throttle.add(start + 1001ms), std::nullopt);
  EXPECT_EQ(throttle.add(start + 1min), 2u);
  EXPECT_EQ(throttle.total(), 6u);
}

}  // namespace
}  // namespace mesh::proxy
