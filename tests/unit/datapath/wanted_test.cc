// What WantedMaps makes of one State after the other, against what it makes of each from nothing.
#include "datapath/wanted.h"

#include <gtest/gtest.h>

#include <iterator>

#include "base/random.h"

namespace mesh::datapath {
namespace {

class ChangingState {
 public:
  explicit ChangingState(std::uint64_t seed) : random_(seed) {}
  State state;

  void change() {
    const std::uint8_t n = number();
    const SocketAddress at{IpAddress::v4(10, 96, 0, n), 80};
    switch (random_.below(9)) {
      case 0:
        state.services.insert_or_assign(at, service());
        return;
      case 1:
        state.services.erase(at);
        return;
      case 2:
        state.udp_services.insert_or_assign(at, service());
        return;
      case 3:
        state.udp_services.erase(at);
        return;
      case 4:
        state.sets[n][{random_.below(3), Transport::kTcp, 80, 8080}] = {random_.below(2) == 0, 1};
        if (random_.below(3) == 0) state.sets.erase(number());
        return;
      case 5:
        state.peers.insert_or_assign(at.ip, Peer{random_.below(2), random_.below(2)});
        if (random_.below(2) == 0) state.peers.erase(IpAddress::v4(10, 96, 0, number()));
        return;
      case 6:
        state.refusals.insert_or_assign({1, n}, random_.below(2));
        if (random_.below(2) == 0) state.refusals.erase({1, number()});
        return;
      case 7:
        state.blocks[{IpAddress::v4(10, n, 0, 0), 16}] = random_.below(3);
        if (random_.below(2) == 0) state.blocks.erase(state.blocks.begin());
        return;
      default: {
        EnrolledWorkload& workload = state.workloads[n];
        workload.id = n;
        workload.netns_cookie = random_.below(30);  // 0, and one that another has: refused
        workload.addresses = {at.ip};
        if (random_.below(2) == 0) state.workloads.erase(number());
      }
    }
  }

 private:
  std::uint8_t number() { return static_cast<std::uint8_t>(1 + random_.below(20)); }
  ServiceEntry service() {
    ServiceEntry entry{random_.below(4) + 1, ServiceEntry::Kind::kBalance, {}};
    entry.columns.resize(random_.below(3));
    return entry;
  }
  Random random_;
};

bool are_same_sets(const PolicySets::Entries& a, const PolicySets::Entries& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
           return x.first == y.first && is_same_set(x.second, y.second);
         });
}

TEST(WantedMaps, FollowsEveryStateAsIfMadeAnew) {
  std::size_t entries = 0, refused = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    ChangingState world(seed);
    WantedMaps followed;
    State remembered;
    for (int step = 0; step < 200; ++step) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " step " + std::to_string(step));
      world.change();
      if (step % 50 == 20) remembered = world.state;
      if (step % 50 == 40) world.state = remembered;  // what was before is wanted again
      Problems problems, expected_problems;
      const Wanted now = followed.follow(world.state, problems);
      const Wanted expected = WantedMaps().follow(world.state, expected_problems);
      ASSERT_TRUE(now.services == expected.services);
      ASSERT_TRUE(are_same_sets(now.policy.sets, expected.policy.sets));
      ASSERT_TRUE(is_same(now.policy.peers, expected.policy.peers));
      ASSERT_TRUE(is_same(now.policy.blocks, expected.policy.blocks));
      ASSERT_TRUE(is_same(now.policy.workloads, expected.policy.workloads));
      ASSERT_TRUE(is_same(now.own_addresses, expected.own_addresses));
      ASSERT_TRUE(is_same(now.records, expected.records));
      ASSERT_TRUE(is_same(now.refusals, expected.refusals));
      ASSERT_TRUE(std::ranges::equal(problems, expected_problems));
      entries += now.services.size() + now.policy.sets.size() + now.policy.peers.size() +
                 now.refusals.size() + now.policy.workloads.size();
      refused += problems.size();
    }
  }
  EXPECT_GT(entries, 50'000U);
  EXPECT_GT(refused, 1000U);
}

}  // namespace
}  // namespace mesh::datapath
