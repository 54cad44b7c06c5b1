// The fixtures themselves: what a killed test leaves does not stay.
#include <gtest/gtest.h>

#include "tests/support/netns.h"

namespace mesh::test {
namespace {

TEST(Cgroup, OfAKilledTestIsRemovedByTheNextOne) {
  if (!is_root()) GTEST_SKIP() << "needs root";
  Cgroup living = Cgroup::create("living");
  Child killed(nullptr, nullptr, [] {
    Cgroup left = Cgroup::create("left");
    ::kill(::getpid(), SIGKILL);
  });
  std::string left =
      cgroup2_mount() + std::string(kTestGroups) + std::to_string(killed.pid()) + "/left";
  killed.wait();
  Cgroup next = Cgroup::create("next");
  EXPECT_NE(::access(left.c_str(), F_OK), 0);
  EXPECT_EQ(::access(living.path().c_str(), F_OK), 0);
}

}  // namespace
}  // namespace mesh::test
