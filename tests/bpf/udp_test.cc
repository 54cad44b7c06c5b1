// UDP, live: what is sent, services, and what the mesh sends itself.
#include <gmock/gmock.h>

#include <atomic>
#include <set>
#include <string>
#include <vector>

#include "tests/support/udp_fixture.h"

namespace mesh::test {
namespace {

// ---- sending -------------------------------------------------------------------------------

TEST_F(UdpTest, PassesWithoutPolicy) {
  const auto server = echo({"10.9.0.2:7000", "[fd09::2]:7000"});
  apply_all();
  for (const int family : {AF_INET, AF_INET6}) {
    EXPECT_STREQ(ask_from_app("10.9.0.2:7000", family).text, "10.9.0.2:7000");
    EXPECT_EQ(ask_connected("10.9.0.2:7000", family).from, at("10.9.0.2:7000"));
  }
  EXPECT_EQ(ask_from_app("[fd09::2]:7000").from, at("[fd09::2]:7000"));
  EXPECT_EQ(ask_connected("[fd09::2]:7000").err, 0);
  EXPECT_EQ(entries_of("um_udp_flows"), 0) << "nothing to remember";
}

TEST_F(UdpTest, AForbiddenDatagramIsEpermAndAForbiddenConnectIsRefused) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.2:7001", "[fd09::2]:7000"});
  for (const char* address : {"10.9.0.2", "fd09::2"}) has_set(address, 3);
  udp_verdict(3, 0, false, 21);
  udp_verdict(3, 7001, true, 22);
  state_.sets[3][{kAppClass, datapath::Transport::kTcp, 0, 65535}] = {true, 23, 0};
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, EPERM);
  EXPECT_EQ(ask_from_app("10.9.0.2:7000", AF_INET6).err, EPERM);
  EXPECT_EQ(ask_from_app("[fd09::2]:7000").err, EPERM);
  EXPECT_EQ(ask_connected("10.9.0.2:7000").err, kRefused);
  EXPECT_EQ(ask_connected("10.9.0.2:7000", AF_INET6).err, kRefused);
  EXPECT_EQ(ask_connected("[fd09::2]:7000").err, kRefused);
  EXPECT_EQ(server->asked(), 0);
  EXPECT_EQ(ask_from_app("10.9.0.2:7001").err, 0);
  EXPECT_EQ(ask_connected("10.9.0.2:7001").err, 0);
  auto counters = must(datapath_->counters());
  EXPECT_EQ(counters.denied_by_policy, (std::map<std::uint32_t, std::uint64_t>{{21, 6}}));
  EXPECT_EQ(counters.totals["datagrams_denied"], 3);
  EXPECT_EQ(counters.totals["connects_denied_policy"], 3);
  EXPECT_EQ(counters.totals["datagrams_allowed"], 1);
}

TEST_F(UdpTest, TheClientsOwnPolicyIsAskedFirst) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  app().egress = 4;
  udp_verdict(4, 0, false, 41, 0);
  udp_verdict(4, 7000, true, 42, kServerClass);
  state_.peers[ip("10.9.0.2")] = {kServerClass, 0};
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, 0);
  EXPECT_EQ(ask_from_app("10.9.0.3:7000").err, EPERM);
  EXPECT_EQ(ask_connected("10.9.0.3:7000").err, kRefused);
}

// An address given to a connected socket is judged; its own peer is not judged anew.
TEST_F(UdpTest, AConnectedSocketSendsElsewhereOnlyAsAllowed) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  has_set("10.9.0.3", 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  for (const int family : {AF_INET, AF_INET6}) {
    const int err = in_app([&] {
      UniqueFd fd = udp_socket(family);
      if (const int failed = connect_udp(fd.get(), "10.9.0.2:7000", family)) return failed;
      if (const int failed = send_to(fd.get(), "10.9.0.2:7000", family)) return failed;
      iovec text{const_cast<char*>("x"), 1};
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
      msghdr message{};
      message.msg_iov = &text;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_IP;
      header->cmsg_type = IP_TTL;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      *reinterpret_cast<int*>(CMSG_DATA(header)) = 9;
      if (family == AF_INET && ::sendmsg(fd.get(), &message, 0) < 0) return errno;
      return send_to(fd.get(), "10.9.0.3:7000", family) == EPERM ? 0 : -1;
    });
    EXPECT_EQ(err, 0) << family;
  }
}

TEST_F(UdpTest, AnUnknownNamespaceAndUdpLiteAreRefused) {
  const auto server = echo({"10.9.0.2:7000"});
  apply_all();
  EXPECT_EQ(in_child(&*app_group_, &*server_,
                     [] { return send_to(udp_socket(AF_INET).get(), "10.9.0.1:7", AF_INET); }),
            EPERM);
  const int lite = in_app([] {
    UniqueFd fd(::socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE));
    return fd ? send_to(fd.get(), "10.9.0.2:7000", AF_INET) : EPERM;  // some kernels have none
  });
  EXPECT_EQ(lite, EPERM);
  EXPECT_EQ(in_app([] { return send_to(udp_socket(AF_INET6).get(), "[fe80::1]:7000", AF_INET6); }),
            EPERM);
}

TEST_F(UdpTest, WhatStaysInTheWorkloadPasses) {
  app().egress = 4;
  app().ingress = 7;
  udp_verdict(4, 0, false, 41, 0);
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  Echo own(*app_group_, *app_, {"10.9.0.1:7000", "127.0.0.1:7001", "[fd09::1]:7000"});
  for (const char* to : {"10.9.0.1:7000", "127.0.0.1:7001", "[fd09::1]:7000"}) {
    EXPECT_EQ(ask_from_app(to).err, 0) << to;
    EXPECT_EQ(ask_connected(to).err, 0) << to;
  }
}

// As of every other address: by the sender's own policy.
TEST_F(UdpTest, BroadcastAndMulticastAreOfTheEgressPolicy) {
  app_->command("ip route add 239.0.0.0/8 dev veth0");
  apply_all();
  const auto send = [&](const char* to) {
    return in_app([&] {
      UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:0");
      const int on = 1;
      ::setsockopt(fd.get(), SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
      return send_to(fd.get(), to, AF_INET);
    });
  };
  for (const char* to : {"10.9.0.255:7000", "239.1.2.3:7000"}) EXPECT_EQ(send(to), 0) << to;
  app().egress = 4;
  udp_verdict(4, 0, false, 41, 0);
  apply_all();
  for (const char* to : {"10.9.0.255:7000", "239.1.2.3:7000", "255.255.255.255:7000"})
    EXPECT_EQ(send(to), EPERM) << to;
}

// ---- services ------------------------------------------------------------------------------

TEST_F(UdpTest, ASocketStaysWithItsBackendAndSeesTheService) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  udp_service(kVip, {"10.9.0.2:7000", "10.9.0.3:7000"});
  apply_all();
  std::set<std::string> seen;
  for (int i = 0; i < 24; ++i) {
    const int family = i % 2 == 0 ? AF_INET : AF_INET6;
    struct Result {
      Answer first;
      int wrong = 0;
    };
    const Result result = in_app([&] {
      UniqueFd fd = udp_socket(family);
      Result out{ask(fd.get(), kVip, family)};
      for (int j = 0; j < 20; ++j) {
        const Answer next = ask(fd.get(), kVip, family);
        if (next.err != 0 || next.from != at(kVip) || std::strcmp(next.text, out.first.text) != 0)
          ++out.wrong;
      }
      return out;
    });
    ASSERT_EQ(result.first.err, 0);
    EXPECT_EQ(result.first.from, at(kVip));
    EXPECT_EQ(result.wrong, 0);
    seen.insert(result.first.text);
  }
  EXPECT_EQ(seen.size(), 2) << "24 sockets, and one backend";
  EXPECT_EQ(count("datagrams_balanced"), 24 * 21);
}

TEST_F(UdpTest, AConnectedSocketSeesTheServiceAsItsPeer) {
  const auto server = echo({"10.9.0.2:7000", "[fd09::2]:7000"});
  udp_service(kVip, {"10.9.0.2:7000"});
  udp_service("[fd78::2]:70", {"[fd09::2]:7000"});
  apply_all();
  struct Case {
    const char* to;
    int family;
  };
  for (const Case& c :
       {Case{kVip, AF_INET}, Case{kVip, AF_INET6}, Case{"[fd78::2]:70", AF_INET6}}) {
    const bool is_right = in_app([&] {
      UniqueFd fd = udp_socket(c.family);
      if (connect_udp(fd.get(), c.to, c.family) != 0) return false;
      if (peer_of(fd.get()).address != at(c.to)) return false;
      if (::send(fd.get(), "x", 1, 0) < 0 || receive(fd.get()).from != at(c.to)) return false;
      return ask(fd.get(), c.to, c.family).from == at(c.to);  // by the name that it knows
    });
    EXPECT_TRUE(is_right) << c.to << " " << c.family;
  }
  EXPECT_EQ(ask_from_app("[fd78::2]:70").from, at("[fd78::2]:70"));
}

TEST_F(UdpTest, ASocketWhoseNextConnectIsRefusedStaysWhereItIs) {
  const auto server = echo({"10.9.0.2:7000"});
  udp_service(kVip, {"10.9.0.2:7000"});
  has_set("10.9.0.3", 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  const bool is_right = in_app([&] {
    UniqueFd fd = udp_socket(AF_INET);
    if (connect_udp(fd.get(), kVip, AF_INET) != 0) return false;
    if (connect_udp(fd.get(), "10.9.0.3:7000", AF_INET) != kRefused) return false;
    if (peer_of(fd.get()).address != at(kVip)) return false;
    return ::send(fd.get(), "x", 1, 0) == 1 && receive(fd.get()).from == at(kVip);
  });
  EXPECT_TRUE(is_right);
}

// What comes after that goes to any of the service's backends, and is answered by the service.
TEST_F(UdpTest, ASocketWhoseChoiceIsForgottenAsTheMapIsFullChoosesAgain) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  udp_service(kVip, {"10.9.0.2:7000", "10.9.0.3:7000"});
  apply_all();
  const UniqueFd choices = map("um_udp_choices");
  struct Answers {
    Answer before, after, again;
  };
  const Answers answers = in_app([&] {
    const UniqueFd fd = udp_socket(AF_INET);
    Answers got;
    got.before = ask(fd.get(), kVip, AF_INET);
    crowd(choices.get());
    got.after = ask(fd.get(), kVip, AF_INET);
    got.again = ask(fd.get(), kVip, AF_INET);
    return got;
  });
  for (const Answer& answer : {answers.before, answers.after, answers.again})
    EXPECT_EQ(answer.from, at(kVip)) << answer.err;
  EXPECT_THAT(answers.after.text, testing::StartsWith("10.9.0."));
  EXPECT_STREQ(answers.again.text, answers.after.text) << "and stays with it";
  EXPECT_EQ(count("datagram_records_lost"), 0);
}

TEST_F(UdpTest, ATcpServiceOfTheSameAddressIsAnother) {
  const auto server = echo({"10.9.0.2:7000"});
  accept_on_both_servers();
  udp_service(kVip, {"10.9.0.2:7000"});
  state_.services[at(kVip)] = {2, ServiceEntry::Kind::kBalance,
                               datapath::columns_of({{at("10.9.0.2:8080"), 1}})};
  apply_all();
  EXPECT_EQ(ask_from_app(kVip).err, 0);
  EXPECT_EQ(connect_from_app(kVip), 0);
  const State adopted = must(datapath_->adopt());
  EXPECT_EQ(adopted.udp_services.size(), 1);
  EXPECT_EQ(adopted.services.size(), 1);
}

TEST_F(UdpTest, AServiceWithoutEndpointsIsRefused) {
  udp_service(kVip, {});
  udp_service("[fd78::2]:70", {"10.9.0.2:7000"});
  apply_all();
  EXPECT_EQ(ask_from_app(kVip).err, kRefused);
  EXPECT_EQ(ask_from_app(kVip, AF_INET6).err, kRefused);
  EXPECT_EQ(ask_connected(kVip).err, kRefused);
  EXPECT_EQ(ask_from_app("[fd78::2]:70").err, kRefused) << "no mapped address for sendmsg6";
  EXPECT_EQ(count("datagrams_refused_no_endpoint"), 3);
  EXPECT_EQ(entries_of("um_udp_choices"), 0) << "the next datagram may go elsewhere";
}

TEST_F(UdpTest, TheEndpointsPolicyHolds) {
  const auto server = echo({"10.9.0.2:7000"});
  udp_service(kVip, {"10.9.0.2:7000"});
  apply_all();
  Shared<std::atomic<int>> step;
  Child client(&*app_group_, &*app_, [&] {
    UniqueFd fd = udp_socket(AF_INET);
    if (ask(fd.get(), kVip, AF_INET).err == 0) *step = 1;
    if (!eventually([&] { return *step == 2; })) return;
    *step = send_to(fd.get(), kVip, AF_INET) == EPERM ? 3 : 4;
  });
  ASSERT_TRUE(eventually([&] { return *step != 0; }));
  has_set("10.9.0.2", 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  *step = 2;
  client.wait();
  EXPECT_EQ(*step, 3) << "also for who has chosen already";
}

TEST_F(UdpTest, OnlyWhoHadARemovedBackendGetsAnother) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000", "10.9.0.3:7001"});
  udp_service(kVip, {"10.9.0.2:7000", "10.9.0.3:7000", "10.9.0.3:7001"});
  apply_all();
  constexpr int kSockets = 48;
  struct Seen {
    std::atomic<int> step, wrong, moved, had_removed;
  };
  Shared<Seen> seen;
  Child client(&*app_group_, &*app_, [&] {
    std::vector<UniqueFd> sockets;
    std::vector<std::string> before;
    for (int i = 0; i < kSockets; ++i) {
      sockets.push_back(udp_socket(AF_INET));
      before.emplace_back(ask(sockets.back().get(), kVip, AF_INET).text);
      seen->had_removed += before.back() == "10.9.0.2:7000" ? 1 : 0;
    }
    seen->step = 1;
    if (!eventually([&] { return seen->step == 2; })) return;
    for (int i = 0; i < kSockets; ++i) {
      const Answer answer = ask(sockets[static_cast<std::size_t>(i)].get(), kVip, AF_INET);
      const std::string now = answer.text;
      if (answer.err != 0 || now == "10.9.0.2:7000") ++seen->wrong;
      if (now != before[static_cast<std::size_t>(i)]) ++seen->moved;
    }
  });
  ASSERT_TRUE(eventually([&] { return seen->step != 0; }));
  udp_service(kVip, {"10.9.0.3:7000", "10.9.0.3:7001"});
  apply_all();
  seen->step = 2;
  client.wait();
  EXPECT_EQ(seen->wrong, 0);
  EXPECT_EQ(seen->moved, seen->had_removed) << "all others keep theirs";
  EXPECT_GT(seen->had_removed, 0);
  EXPECT_LT(seen->had_removed, kSockets);
}

// ---- the mesh's own ------------------------------------------------------------------------

TEST_F(UdpTest, TheMeshIsPolicedAsItsClientAndGoesToServicesBackends) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  has_set("10.9.0.2", 3);
  udp_verdict(3, 0, false, 21);
  udp_service(kVip, {"10.9.0.3:7000"});
  apply_all();
  const auto ask_as_mesh = [&](const char* to) {
    UniqueFd fd = app_->run([&] { return udp_socket(AF_INET); });
    if (const int err = connect_udp(fd.get(), to, AF_INET)) return err;
    if (::send(fd.get(), "x", 1, 0) < 0) return errno;
    return receive(fd.get()).err;
  };
  EXPECT_EQ(ask_as_mesh("10.9.0.2:7000"), kDenied);
  EXPECT_EQ(ask_as_mesh("10.9.0.3:7000"), 0);
  EXPECT_EQ(ask_as_mesh(kVip), 0) << "a resolver may be a service";
  EXPECT_EQ(ask_as_mesh("127.0.0.1:7000"), kDenied);
  UniqueFd open = app_->run([&] { return udp_socket(AF_INET); });
  EXPECT_EQ(send_to(open.get(), "10.9.0.2:7000", AF_INET), kDenied);
  EXPECT_EQ(send_to(open.get(), "127.0.0.1:7000", AF_INET), kDenied);
  EXPECT_EQ(send_to(open.get(), "10.9.0.3:7000", AF_INET), 0);
}

}  // namespace
}  // namespace mesh::test
