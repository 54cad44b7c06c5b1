// bpf/udp.h on the host: who began, for how long, and what is written of a datagram.
#include <gmock/gmock.h>

#include "tests/support/decide_cases.h"

namespace mesh::test {
namespace {

struct Records {
  std::map<um_udp_flow_key, um_udp_flow, Bytewise> flows;
  std::map<um_udp_choice_key, um_udp_choice, Bytewise> choices;
  std::map<std::uint32_t, um_destination> resolvers;
  int written = 0;
};
Records records;

}  // namespace
}  // namespace mesh::test

// clang-format off: the lookups that these two ask for
namespace {
um_udp_flow* um_find_udp_flow(const um_udp_flow_key* key) {
  const auto found = mesh::test::records.flows.find(*key);
  return found == mesh::test::records.flows.end() ? nullptr : &found->second;
}
void um_write_udp_flow(const um_udp_flow_key* key, const um_udp_flow* flow) {
  mesh::test::records.flows[*key] = *flow;
  ++mesh::test::records.written;
}
um_udp_choice* um_find_udp_choice(const um_udp_choice_key* key) {
  const auto found = mesh::test::records.choices.find(*key);
  return found == mesh::test::records.choices.end() ? nullptr : &found->second;
}
void um_write_udp_choice(const um_udp_choice_key* key, const um_udp_choice* choice) {
  mesh::test::records.choices[*key] = *choice;
  ++mesh::test::records.written;
}
int um_is_service(const um_destination* to) {
  return mesh::test::lookups.services.contains(*to) ? 1 : 0;
}
const um_destination* um_find_resolver(__u64, __u32 slot) {
  return mesh::test::find(mesh::test::records.resolvers, slot);
}
const um_destination* um_take_resolver(__u64, __u32 slot, const um_destination* resolver) {
  return &mesh::test::records.resolvers.emplace(slot, *resolver).first->second;
}
#include "bpf/began.h"
#include "bpf/dns.h"
#include "bpf/udp.h"
}  // namespace
// clang-format on

namespace mesh::test {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr const char* kPeer = "10.0.0.9:4000";  // of class 90
constexpr const char* kOwn = "10.0.0.7:7000";

um_destination udp(const std::string& text) {
  um_destination out = kernel_destination(text);
  out.protocol = UM_UDP;
  return out;
}

// Workload 7 has the egress set 4 and the ingress set 5; who is at 10.0.0.9, none.
class UdpDecide : public testing::Test {
 protected:
  void SetUp() override {
    records = {};
    world_ = enrolled();
    world_.workloads[4100].egress = 4;
    world_.workloads[4100].ingress = 5;
    world_.peers = {{"10.0.0.9", {90, 0}}};
    policy(true, true);
  }
  void policy(bool out, bool in) {
    const std::uint64_t now = lookups.now;
    world_.verdicts = {{4, 90, 0, 41, out, UM_UDP}, {5, 90, 0, 51, in, UM_UDP}};
    lookups = Lookups(world_);
    if (now != 0) lookups.now = now;
  }
  static void wait(std::uint64_t ns) { lookups.now += ns; }
  static um_decision send(const std::string& to = kPeer, std::uint64_t socket = 1,
                          std::uint16_t port = 7000, bool own_peer = false) {
    um_datagram in{};
    in.to.netns_cookie = 4100;
    in.to.to = udp(to);
    in.to.v4_only = 1;
    in.socket = socket;
    in.port = be16(port);
    in.own_peer = own_peer ? 1 : 0;
    um_decision out{};
    um_decide_datagram(&in, socket == 0 ? 1 : 0, &out);
    return out;
  }
  static um_decision connect(std::uint16_t port) { return send(kPeer, 0, port); }
  static um_decision arrive(const std::string& from = kPeer, const std::string& to = kOwn) {
    um_arrival in{};
    in.netns_cookie = 4100;
    in.from = udp(from);
    in.to = udp(to);
    um_decision out{};
    um_decide_datagram_arrival(&in, &out);
    return out;
  }
  static bool passes(const um_decision& decision) { return decision.action == UM_PASS; }

  World world_;
};

TEST_F(UdpDecide, AnAnswerPassesForSixtySecondsAfterWhatItAnswers) {
  policy(false, true);
  EXPECT_FALSE(passes(send())) << "nobody asked";
  EXPECT_TRUE(passes(arrive()));
  wait(60 * kSecond - 1);
  EXPECT_EQ(send().counter, UM_DATAGRAMS_ANSWERED);
  wait(60 * kSecond);
  EXPECT_FALSE(passes(send()));
}

TEST_F(UdpDecide, WhatAnswersAWorkloadArrivesForSixtySeconds) {
  policy(true, false);
  EXPECT_FALSE(passes(arrive())) << "nobody was asked";
  EXPECT_TRUE(passes(send()));
  wait(60 * kSecond - 1);
  EXPECT_EQ(arrive().counter, UM_ARRIVALS_ANSWERED);
  wait(60 * kSecond);
  EXPECT_FALSE(passes(arrive()));
}

TEST_F(UdpDecide, ItIsOfOnePortAndOnePeersPort) {
  policy(false, true);
  arrive();
  EXPECT_FALSE(passes(send(kPeer, 1, 7001)));
  EXPECT_FALSE(passes(send("10.0.0.9:4001")));
  EXPECT_TRUE(passes(send(kPeer, 2))) << "by whichever socket";
}

TEST_F(UdpDecide, TheDirectionThatBeganIsJudgedByWhatHoldsNow) {
  policy(false, true);
  arrive();
  EXPECT_TRUE(passes(send()));
  policy(false, false);
  const um_decision denied = send();
  ASSERT_EQ(denied.action, UM_REFUSE);
  ASSERT_GT(denied.rulings, 0U);
  EXPECT_EQ(denied.ruling[denied.rulings - 1].policy, 51U) << "that of who asked";
  policy(false, true);
  EXPECT_TRUE(passes(send())) << "the record is there still";
}

TEST_F(UdpDecide, AnswersMakeNoAskerAnAnswererAsLongAsAnythingPasses) {
  arrive();
  for (int i = 0; i < 10; ++i) {
    wait(50 * kSecond);
    EXPECT_TRUE(passes(send()));
  }
  policy(true, false);
  EXPECT_FALSE(passes(arrive()));
  wait(61 * kSecond);
  EXPECT_TRUE(passes(send())) << "a new conversation";
  EXPECT_TRUE(passes(arrive())) << "which it began";
}

TEST_F(UdpDecide, WritesAtMostOnceASecond) {
  for (int i = 0; i < 100; ++i) {
    send();
    arrive();
    wait(kSecond / 100);
  }
  EXPECT_EQ(records.written, 1);
  const std::uint64_t used = records.flows.begin()->second.used;
  wait(kSecond / 2);
  send();
  EXPECT_GT(records.flows.begin()->second.used, used);
}

TEST_F(UdpDecide, WithoutPolicyNothingIsWritten) {
  world_.workloads[4100].ingress = world_.workloads[4100].egress = 0;
  policy(true, true);
  EXPECT_TRUE(passes(send()));
  EXPECT_TRUE(passes(arrive()));
  EXPECT_EQ(records.written, 0);
  world_.peers["10.0.0.9"].ingress = 3;  // denies, having no verdict
  policy(true, true);
  EXPECT_TRUE(passes(arrive()));
  EXPECT_EQ(send().counter, UM_DATAGRAMS_ANSWERED);
}

TEST_F(UdpDecide, AConnectWithoutAPortAnswersNobody) {
  policy(false, true);
  arrive();
  EXPECT_TRUE(passes(connect(7000)));
  EXPECT_FALSE(passes(connect(0)));
  policy(true, true);
  records.flows.clear();
  EXPECT_TRUE(passes(connect(7000)));
  EXPECT_TRUE(records.flows.empty()) << "what it gets is not judged";
}

TEST_F(UdpDecide, WhatIsNoPolicysDenialIsNoAnswer) {
  arrive("[fe80::9]:4000", "[fd00::7]:7000");
  EXPECT_EQ(send("[fe80::9]:4000").counter, UM_CONNECTS_REFUSED_LINK_LOCAL);
  world_.config = UM_CONFIG_STATE_INCOMPLETE;
  policy(true, true);
  EXPECT_EQ(send("10.0.0.99:4000").counter, UM_CONNECTS_DENIED_MAP_FULL);
}

// ---- services

class UdpChoice : public UdpDecide {
 protected:
  void SetUp() override {
    UdpDecide::SetUp();
    policy(true, true);
    add_service("10.78.0.1:70", "10.0.0.9:7000");
  }
  // Where a socket that has no choice yet goes.
  void add_service(const std::string& at, const std::string& backend) {
    world_.services[at] = {2, UM_SERVICE_BALANCE, {World::Column(backend.c_str())}};
    policy(true, true);
    const auto of_tcp = lookups.services;
    for (const auto& [address, slot] : of_tcp) {
      um_destination of_udp = address;
      of_udp.protocol = UM_UDP;
      lookups.services[of_udp] = slot;
    }
    for (auto& [key, column] : lookups.backends)
      column.first.protocol = column.second.protocol = UM_UDP;
  }
  static std::string goes_to(const um_decision& decision) {
    if (decision.action != UM_BALANCE) return "refused";
    IpAddress::Bytes bytes;
    std::memcpy(bytes.data(), &decision.backend.address, sizeof bytes);
    return SocketAddress{IpAddress(bytes), be16(decision.backend.port)}.to_string();
  }
};

TEST_F(UdpChoice, ASocketKeepsItsBackendWhileItSends) {
  EXPECT_EQ(goes_to(send("10.78.0.1:70")), "10.0.0.9:7000");
  add_service("10.78.0.1:70", "10.0.0.9:7001");
  for (int i = 0; i < 5; ++i) {
    wait(59 * kSecond);
    EXPECT_EQ(goes_to(send("10.78.0.1:70")), "10.0.0.9:7000");
  }
  EXPECT_EQ(goes_to(send("10.78.0.1:70", 2)), "10.0.0.9:7001") << "another socket";
  wait(60 * kSecond);
  EXPECT_EQ(goes_to(send("10.78.0.1:70")), "10.0.0.9:7001");
}

TEST_F(UdpChoice, TheKeptBackendIsJudgedEachTime) {
  send("10.78.0.1:70");
  lookups.sets[{4, 0}].begin()->second.allowed = 0;
  EXPECT_EQ(goes_to(send("10.78.0.1:70")), "refused");
}

TEST_F(UdpChoice, AResolverThatIsAServiceGoesToTheResponderFromThenOn) {
  add_service("10.78.0.1:53", "10.0.0.9:53");
  EXPECT_EQ(send("10.78.0.1:53").action, UM_BALANCE);
  lookups.workloads[{4100, 0, 0}].flags = UM_WORKLOAD_DNS;
  lookups.heartbeat = lookups.now;
  EXPECT_EQ(send("10.78.0.1:53").action, UM_RESOLVE);
  EXPECT_EQ(send("10.0.0.9:53").action, UM_RESOLVE);
  EXPECT_EQ(send("10.0.0.9:53", 1, 7000, true).action, UM_PASS) << "it is connected there";
  lookups.heartbeat = 0;
  EXPECT_EQ(send("10.78.0.1:53").action, UM_BALANCE);
}

}  // namespace
}  // namespace mesh::test
