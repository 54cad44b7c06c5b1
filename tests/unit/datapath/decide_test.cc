#include <gmock/gmock.h>

#include <algorithm>

#include "tests/support/decide_cases.h"

namespace mesh::test {
namespace {

um_connect connect_of(const DecideCase& c) {
  um_connect in{};
  in.netns_cookie = c.cookie;
  in.to = kernel_destination(c.to);
  in.v4_only = c.v4_only ? 1 : 0;
  return in;
}

um_arrival arrival_of(const DecideCase& c) {
  um_arrival arrival{};
  arrival.netns_cookie = c.cookie;
  arrival.to = kernel_destination(c.to);
  if (!c.from.empty()) arrival.from = kernel_destination(c.from);
  return arrival;
}

class Decide : public testing::TestWithParam<DecideCase> {};

TEST_P(Decide, AsTheTableSays) {
  const DecideCase& c = GetParam();
  lookups = Lookups(c.world);
  const um_connect in = connect_of(c);
  const um_arrival arrival = arrival_of(c);
  um_decision out{};
  switch (c.asked) {
    case Asked::kWorkload:
      um_decide_workload(&in, &out);
      break;
    case Asked::kMesh:
      um_decide_mesh(&in, &out);
      break;
    case Asked::kArrival:
      um_decide_arrival(&arrival, &out);
      break;
  }
  // Policy may change at any time: what is read twice may be of two states.
  EXPECT_EQ(lookups.of_config, 1);
  EXPECT_EQ(out.action, c.action);
  EXPECT_EQ(out.counter, c.counter);
  EXPECT_EQ(out.rulings == 0 ? 0 : out.ruling[out.rulings - 1].policy, c.policy);
  if (!c.backend.empty()) {
    um_destination backend = kernel_destination(c.backend);
    EXPECT_EQ(std::memcmp(&out.backend, &backend, sizeof backend), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, Decide, testing::ValuesIn(all_decide_cases()),
                         [](const auto& c) { return c.param.name; });

// As the verifier has it, who calls may have nothing to give.
TEST(DecideDoubts, WithoutWhatItNeedsItRefuses) {
  lookups = Lookups(World{});
  const um_destination to{};
  const um_workload client{};
  const auto refuses = [](auto decide) {
    um_decision out{};
    EXPECT_EQ(decide(&out), 0);
    EXPECT_EQ(decide(nullptr), 0);
    EXPECT_EQ(out.action, UM_REFUSE);
    return out.counter;
  };
  EXPECT_EQ(refuses([](um_decision* out) { return um_decide_workload_by(0, nullptr, out); }),
            UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
  EXPECT_EQ(refuses([](um_decision* out) { return um_decide_arrival_by(0, nullptr, out); }),
            UM_ARRIVALS_DENIED_UNKNOWN_WORKLOAD);
  EXPECT_EQ(refuses([&](um_decision* out) { return um_may_reach(nullptr, &to, 0, 0, out); }),
            UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
  EXPECT_EQ(refuses([&](um_decision* out) { return um_may_reach(&client, nullptr, 1, 0, out); }),
            UM_MESH_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
}

// A node knows much that a connection has nothing to do with.
void add_others(World& world, unsigned count) {
  const auto ip = [](unsigned i) {
    return "172.20." + std::to_string(i / 256) + "." + std::to_string(i % 256);
  };
  const auto verdicts = world.verdicts;
  for (unsigned i = 0; i < count; ++i) {
    const std::string service = "172.21." + std::to_string(i / 256) + "." + std::to_string(i % 256);
    world.services.emplace(
        service + ":80",
        World::Service{90'000 + i, UM_SERVICE_BALANCE, {ip(i).append(":80").c_str()}});
    world.peers.emplace(ip(i), um_peer{90'000 + i, 90'000 + i});
    if (!world.blocks.empty()) world.blocks.emplace(ip(i) + "/32", 90'000 + i);
    world.workloads.emplace(900'000 + i, um_workload{90'000 + i, 0, 0, 0, 0, 0});
    world.refusals.push_back({90'000 + i, 90'000 + i, 1});
    world.verdicts.push_back({90'000 + i, 0, 0, 1, true});
  }
  for (const World::Verdict& v : verdicts)  // in each set that there is, too
    for (unsigned i = 0; i < count; ++i) world.verdicts.push_back({v.set, 90'000 + i, 0, 1, true});
}

struct Outcome {
  int lookups = 0;
  um_decision decision{};
};
Outcome decided(const DecideCase& c, const World& world) {
  lookups = Lookups(world);
  const um_connect in = connect_of(c);
  const um_arrival arrival = arrival_of(c);
  Outcome outcome;
  if (c.asked == Asked::kWorkload) um_decide_workload(&in, &outcome.decision);
  if (c.asked == Asked::kMesh) um_decide_mesh(&in, &outcome.decision);
  if (c.asked == Asked::kArrival) um_decide_arrival(&arrival, &outcome.decision);
  outcome.lookups = lookups.made;
  return outcome;
}

TEST(DecideScale, TakesAsManyLookupsHoweverMuchThereIs) {
  int most = 0;
  for (const DecideCase& c : all_decide_cases()) {
    const Outcome few = decided(c, c.world);
    World large = c.world;
    add_others(large, 300);
    const Outcome many = decided(c, large);
    EXPECT_EQ(many.lookups, few.lookups) << c.name;
    EXPECT_EQ(many.decision.action, few.decision.action) << c.name;
    EXPECT_EQ(many.decision.counter, few.decision.counter) << c.name;
    most = std::max(most, few.lookups);
  }
  EXPECT_GT(most, 5);
  EXPECT_LE(most, 24);
}

TEST(DecideAddresses, NamesWhatNoUpstreamMayBe) {
  for (const char* forbidden : {"127.0.0.1", "127.255.0.1", "::1", "0.0.0.0", "0.1.2.3", "::",
                                "169.254.0.1", "169.254.169.254", "fe80::1", "febf::1", "224.0.0.1",
                                "239.255.255.255", "240.0.0.1", "255.255.255.255", "ff02::1"}) {
    um_address address = kernel_address(forbidden);
    EXPECT_TRUE(um_is_forbidden_upstream(&address)) << forbidden;
  }
  for (const char* fine :
       {"10.0.0.1", "126.255.255.255", "128.0.0.1", "169.253.1.1", "169.255.0.1", "223.255.255.255",
        "fd00::1", "fec0::1", "fe7f::1", "::2", "2001:db8::1", "64:ff9b::7f00:1"}) {
    um_address address = kernel_address(fine);
    EXPECT_FALSE(um_is_forbidden_upstream(&address)) << fine;
  }
}

TEST(DecideAddresses, AgreeWithThoseOfUserSpace) {
  for (const char* text : {"127.0.0.1", "127.1.2.3", "::1", "::", "0.0.0.0", "169.254.1.1",
                           "fe80::1", "10.0.0.1", "fd00::1", "ff02::1", "224.0.0.1", "1.0.0.0"}) {
    IpAddress ip = IpAddress::parse(text).value();
    um_address address = kernel_address(text);
    EXPECT_EQ(um_is_v4(&address) != 0, ip.is_v4()) << text;
    EXPECT_EQ(um_is_loopback(&address) != 0, ip.is_loopback()) << text;
    EXPECT_EQ(um_is_unspecified(&address) != 0, ip.is_unspecified()) << text;
    EXPECT_EQ(um_is_link_local(&address) != 0, ip.is_link_local()) << text;
  }
}

TEST(DecideHeartbeat, IsStaleAfterTwoSecondsEitherWay) {
  constexpr std::uint64_t kNow = 50'000'000'000, kLimit = UM_HEARTBEAT_LIMIT_NS;
  EXPECT_FALSE(um_is_proxy_alive(0, kNow));
  EXPECT_FALSE(um_is_proxy_alive(0, 1));
  EXPECT_TRUE(um_is_proxy_alive(kNow, kNow));
  EXPECT_TRUE(um_is_proxy_alive(kNow - kLimit, kNow));
  EXPECT_FALSE(um_is_proxy_alive(kNow - kLimit - 1, kNow));
  EXPECT_TRUE(um_is_proxy_alive(kNow + 1, kNow));
  EXPECT_FALSE(um_is_proxy_alive(kNow + kLimit + 1, kNow));
  EXPECT_FALSE(um_is_proxy_alive(~0ULL, kNow));
}

}  // namespace
}  // namespace mesh::test
