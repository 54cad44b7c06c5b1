// UDP, live: what is sent, what arrives, what answers; and services.
#include <gmock/gmock.h>
#include <poll.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "datapath/byte_order.h"
#include "tests/support/datagrams.h"
#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

constexpr datapath::WorkloadId kServer = 8;
constexpr datapath::ClassId kServerClass = 80;
constexpr datapath::SetId kIn = 5, kOut = 6;  // the server's, where it is enrolled
constexpr const char* kVip = "10.78.0.2:70";

// In an emulated machine a tenth will do.
int times(int usual) { return std::getenv("MESH_TEST_SMALL") == nullptr ? usual : usual / 10; }

class UdpTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    server_group_.emplace(Cgroup::create("server"));
    elsewhere_.emplace(Cgroup::create("elsewhere"));
  }
  void udp_verdict(datapath::SetId set, std::uint16_t port, bool allowed, std::uint32_t policy,
                   datapath::ClassId peer = kAppClass) {
    const std::uint16_t last = port == 0 ? 65535 : port;
    state_.sets[set][{peer, datapath::Transport::kUdp, port, last}] = {allowed, policy, 0};
  }
  void enrol_server() {
    datapath::EnrolledWorkload& server = state_.workloads[kServer] =
        workload(kServer, *server_, server_group_->path());
    server.class4 = server.class6 = kServerClass;
    server.addresses = {ip("10.9.0.2"), ip("10.9.0.3"), ip("fd09::2")};
  }
  datapath::EnrolledWorkload& app() { return state_.workloads.at(kApp); }
  datapath::EnrolledWorkload& server() { return state_.workloads.at(kServer); }
  void udp_service(const std::string& address, const std::vector<std::string>& backends) {
    std::vector<datapath::Share> shares;
    for (const std::string& backend : backends) shares.push_back({at(backend), 1});
    state_.udp_services[at(address)] = {3, ServiceEntry::Kind::kBalance,
                                        datapath::columns_of(shares)};
  }
  std::unique_ptr<Echo> echo(const std::vector<std::string>& addresses) {
    return std::make_unique<Echo>(state_.workloads.contains(kServer) ? *server_group_ : *elsewhere_,
                                  *server_, addresses);
  }
  template <class Work>
  auto in_app(Work work) {
    return in_child(&*app_group_, &*app_, work);
  }
  Answer ask_from_app(const std::string& to, int family = 0) {
    return in_app([&] {
      const int own = family == 0 ? family_of(at(to)) : family;
      return ask(udp_socket(own).get(), to, own);
    });
  }
  Answer ask_connected(const std::string& to, int family = 0) {
    return in_app([&] {
      const int own = family == 0 ? family_of(at(to)) : family;
      UniqueFd fd = udp_socket(own);
      if (const int err = connect_udp(fd.get(), to, own)) return Answer{err, {}};
      if (::send(fd.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(fd.get());
    });
  }
  // Somebody in the application's namespace who is not enrolled. Connected: a refusal is told him.
  Answer stranger_asks(const std::string& to, const std::string& from = "") {
    return in_child(&*elsewhere_, &*app_, [&] {
      const int own = family_of(at(to));
      UniqueFd fd = udp_socket(own, from);
      if (const int err = connect_udp(fd.get(), to, own)) return Answer{err, {}};
      if (::send(fd.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(fd.get());
    });
  }

  // What passed was long ago.
  void age_flows() {
    constexpr std::uint64_t kAge = UM_UDP_LASTS_NS + 1;
    ASSERT_TRUE(eventually([] { return now_ns() > kAge; })) << "this machine has just started";
    UniqueFd flows = map("um_udp_flows");
    um_udp_flow_key key{};
    for (const void* at = nullptr; ::bpf_map_get_next_key(flows.get(), at, &key) == 0; at = &key) {
      um_udp_flow flow{};
      ASSERT_EQ(::bpf_map_lookup_elem(flows.get(), &key, &flow), 0);
      flow.used = now_ns() - kAge;
      ASSERT_EQ(::bpf_map_update_elem(flows.get(), &key, &flow, BPF_EXIST), 0);
    }
  }
  // Between 10.9.0.2:7000 of the server and 10.9.0.1:4000.
  static um_udp_flow_key key_of_the_asker() {
    return {kServer, htons(7000), 0, datapath::kernel_destination(at("10.9.0.1:4000"), UM_UDP)};
  }
  um_udp_flow flow_of_the_asker() {
    const um_udp_flow_key key = key_of_the_asker();
    um_udp_flow flow{};
    EXPECT_EQ(::bpf_map_lookup_elem(map("um_udp_flows").get(), &key, &flow), 0);
    return flow;
  }
  void write_flow_of_the_asker(const um_udp_flow& flow) {
    const um_udp_flow_key key = key_of_the_asker();
    EXPECT_EQ(::bpf_map_update_elem(map("um_udp_flows").get(), &key, &flow, BPF_ANY), 0);
  }

  std::optional<Cgroup> server_group_, elsewhere_;
};

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

// ---- arriving ------------------------------------------------------------------------------

TEST_F(UdpTest, ArrivalsAreJudgedWhoeverSends) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000", "10.9.0.2:7001", "[fd09::2]:7000"});
  this->server().ingress = kIn;
  udp_verdict(kIn, 0, false, 52, 0);
  udp_verdict(kIn, 7001, true, 51, 0);
  apply_all();
  EXPECT_EQ(stranger_asks("10.9.0.2:7000").err, kRefused);
  EXPECT_EQ(stranger_asks("[fd09::2]:7000").err, kRefused);
  EXPECT_EQ(server->asked(), 0);
  EXPECT_EQ(stranger_asks("10.9.0.2:7001").err, 0);
  EXPECT_EQ(server->asked(), 1);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[52], 2);
}

TEST_F(UdpTest, AServerMayAnswerWhomItMayNotAsk) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000", "[fd09::2]:7000"});
  this->server().ingress = kIn;
  this->server().egress = kOut;
  udp_verdict(kIn, 0, true, 51, 0);
  udp_verdict(kOut, 0, false, 62, 0);
  apply_all();
  EXPECT_EQ(stranger_asks("10.9.0.2:7000").err, 0);
  EXPECT_EQ(stranger_asks("[fd09::2]:7000").err, 0);
  EXPECT_EQ(count("datagrams_answered"), 2);
  const auto send = [&](const char* to) {
    return in_child(&*server_group_, &*server_, [&] {
      return send_to(udp_socket(AF_INET, "10.9.0.2:7005").get(), to, AF_INET);
    });
  };
  EXPECT_EQ(send("10.9.0.1:4000"), EPERM) << "nobody asked";
  EXPECT_EQ(stranger_asks("10.9.0.2:7000", "10.9.0.1:4000").err, 0);
  EXPECT_EQ(send("10.9.0.1:4000"), EPERM) << "another port of the server was asked";
}

// Also where the server has no policy of its own, but the client has.
TEST_F(UdpTest, AServerMayAnswerAClientThatLetsNobodyIn) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000"});
  app().ingress = 7;
  has_set("10.9.0.1", 7);
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, 0);
  EXPECT_EQ(ask_connected("10.9.0.2:7000").err, 0);
  EXPECT_EQ(count("arrivals_answered"), 1) << "what is connected is not looked up";
  EXPECT_EQ(in_child(&*server_group_, &*server_,
                     [] { return send_to(udp_socket(AF_INET).get(), "10.9.0.1:4000", AF_INET); }),
            EPERM);
}

TEST_F(UdpTest, AClientGetsAnswersOnlyFromWhomItAsked) {
  const auto server = echo({"10.9.0.2:7000"});
  app().ingress = 7;
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  struct Result {
    Answer asked, unasked;
  };
  const Result result = in_app([&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
    Result out{ask(fd.get(), "10.9.0.2:7000", AF_INET), {}};
    out.unasked = in_child(&*elsewhere_, &*server_, [] {
      UniqueFd other = udp_socket(AF_INET, "10.9.0.2:7009");
      if (connect_udp(other.get(), "10.9.0.1:4000", AF_INET) != 0) return Answer{-1, {}};
      if (::send(other.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(other.get());
    });
    return out;
  });
  EXPECT_EQ(result.asked.err, 0);
  EXPECT_EQ(result.unasked.err, kRefused);
}

// The record stays; what it permits is the direction that began, by what holds now.
TEST_F(UdpTest, ARevocationEndsAnswersToo) {
  enrol_server();
  this->server().ingress = kIn;
  this->server().egress = kOut;
  udp_verdict(kIn, 0, true, 51, 0);
  udp_verdict(kOut, 0, false, 62, 0);
  apply_all();
  Shared<std::atomic<int>> step;
  Child server(&*server_group_, &*server_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
    *step = 1;
    const Answer asked = receive(fd.get(), 30'000);
    const std::string who = asked.from.to_string();
    if (send_to(fd.get(), who, AF_INET) == 0) *step = 2;
    if (!eventually([&] { return *step == 3; })) return;
    *step = send_to(fd.get(), who, AF_INET) == EPERM ? 4 : 5;
  });
  ASSERT_TRUE(eventually([&] { return *step == 1; }));
  EXPECT_EQ(stranger_asks("10.9.0.2:7000").err, 0);
  ASSERT_TRUE(eventually([&] { return *step != 1; }));
  udp_verdict(kIn, 0, false, 51, 0);
  apply_all();
  *step = 3;
  server.wait();
  EXPECT_EQ(*step, 4);
}

// It answers all the time, which its own policy permits: that makes no server of who asks.
TEST_F(UdpTest, AnswersMakeNoAskerAServer) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000"});
  this->server().ingress = kIn;
  udp_verdict(kIn, 0, true, 51, 0);
  apply_all();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stranger_asks("10.9.0.2:7000", "10.9.0.1:4000").err, 0);
  udp_verdict(kIn, 0, false, 51, 0);
  apply_all();
  EXPECT_EQ(stranger_asks("10.9.0.2:7000", "10.9.0.1:4000").err, kRefused);
  EXPECT_EQ(server->asked(), 3);
}

TEST_F(UdpTest, NothingForbiddenArrivesAfterAnAcknowledgement) {
  enrol_server();
  this->server().ingress = kIn;
  udp_verdict(kIn, 0, true, 51, 0);
  apply_all();
  struct Seen {
    // Odd: denied and acknowledged.
    std::atomic<std::uint64_t> epoch, wrong, sent, got;
    std::atomic<bool> is_ready;
  };
  Shared<Seen> seen;
  Child server(&*server_group_, &*server_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
    seen->is_ready = true;
    for (;;) {
      std::uint64_t epoch = 0;
      sockaddr_storage from{};
      socklen_t size = sizeof from;
      if (::recvfrom(fd.get(), &epoch, sizeof epoch, 0, reinterpret_cast<sockaddr*>(&from),
                     &size) != sizeof epoch)
        continue;
      ++seen->got;
      // Sent and received while it was denied.
      if (epoch % 2 == 1 && seen->epoch == epoch) ++seen->wrong;
      (void)::sendto(fd.get(), &epoch, sizeof epoch, 0, reinterpret_cast<sockaddr*>(&from), size);
    }
  });
  ASSERT_TRUE(eventually([&] { return seen->is_ready.load(); }));
  Child client(&*elsewhere_, &*app_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
    const RawAddress to = raw_address(at("10.9.0.2:7000"), AF_INET);
    for (;;) {
      const std::uint64_t epoch = seen->epoch;
      (void)::sendto(fd.get(), &epoch, sizeof epoch, 0, to.get(), to.size);
      ++seen->sent;
    }
  });
  const auto wait_for = [&](std::atomic<std::uint64_t>& what, std::uint64_t more) {
    const std::uint64_t until = what + more;
    const auto deadline = now_ns() + 60'000'000'000;
    while (what < until && now_ns() < deadline) std::this_thread::yield();
    EXPECT_GE(what, until);
  };
  for (int i = 0; i < times(40); ++i) {
    udp_verdict(kIn, 0, false, 52, 0);
    apply_all();
    ++seen->epoch;
    wait_for(seen->sent, 50);
    ++seen->epoch;
    udp_verdict(kIn, 0, true, 51, 0);
    apply_all();
    wait_for(seen->got, 1);
  }
  EXPECT_EQ(seen->wrong, 0);
}

// ---- connected sockets and changes of policy -----------------------------------------------

// What it may send is not asked any more; so it is ended.
TEST_F(UdpTest, ConnectedSocketsThatANewPolicyForbidsAreEnded) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000", "[fd09::2]:7000"});
  apply_all();
  struct Seen {
    std::atomic<int> step, forbidden, forbidden6, mapped, fine;
  };
  Shared<Seen> seen;
  Child client(&*app_group_, &*app_, [&] {
    const auto connected = [](const char* to, int family) {
      UniqueFd fd = udp_socket(family);
      (void)connect_udp(fd.get(), to, family);
      return fd;
    };
    const auto send_error = [](const UniqueFd& fd) {
      return ::send(fd.get(), "x", 1, 0) < 0 ? errno : 0;
    };
    UniqueFd forbidden = connected("10.9.0.2:7000", AF_INET),
             fine = connected("10.9.0.3:7000", AF_INET);
    UniqueFd forbidden6 = connected("[fd09::2]:7000", AF_INET6);
    UniqueFd mapped = connected("10.9.0.2:7000", AF_INET6);
    if (send_error(forbidden) == 0 && send_error(forbidden6) == 0 && send_error(mapped) == 0 &&
        send_error(fine) == 0)
      seen->step = 1;
    if (!eventually([&] { return seen->step == 2; })) return;
    seen->forbidden = send_error(forbidden);
    seen->forbidden6 = send_error(forbidden6);
    seen->mapped = send_error(mapped);
    seen->fine = send_error(fine);
  });
  ASSERT_TRUE(eventually([&] { return seen->step != 0; }));
  for (const char* address : {"10.9.0.2", "fd09::2"}) has_set(address, 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  must(datapath_->end_forbidden(state_));
  const std::uint64_t before = server->asked();
  seen->step = 2;
  client.wait();
  EXPECT_NE(seen->forbidden, 0);
  EXPECT_NE(seen->forbidden6, 0);
  EXPECT_NE(seen->mapped, 0);
  EXPECT_EQ(seen->fine, 0);
  EXPECT_EQ(count("connections_ended_by_policy"), 3);
  ASSERT_TRUE(eventually([&] { return server->asked() >= before + 1; }));
  EXPECT_EQ(server->asked(), before + 1);
}

// A server that connects to who asked it is judged as the server.
TEST_F(UdpTest, AConnectedAnswererIsJudgedByItsIngressPolicy) {
  enrol_server();
  this->server().ingress = kIn;
  this->server().egress = kOut;
  udp_verdict(kIn, 0, true, 51, 0);
  udp_verdict(kOut, 0, false, 62, 0);
  apply_all();
  struct Seen {
    std::atomic<int> step, connected, kept, ended;
  };
  Shared<Seen> seen;
  Child server(&*server_group_, &*server_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
    seen->step = 1;
    const Answer asked = receive(fd.get(), 30'000);
    seen->connected = connect_udp(fd.get(), asked.from.to_string(), AF_INET);
    (void)::send(fd.get(), "x", 1, 0);
    seen->step = 2;
    if (!eventually([&] { return seen->step == 3; })) return;
    seen->kept = ::send(fd.get(), "x", 1, 0) < 0 ? errno : 0;
    seen->step = 4;
    if (!eventually([&] { return seen->step == 5; })) return;
    seen->ended = ::send(fd.get(), "x", 1, 0) < 0 ? errno : 0;
  });
  ASSERT_TRUE(eventually([&] { return seen->step == 1; }));
  Child asker(&*elsewhere_, &*app_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
    (void)send_to(fd.get(), "10.9.0.2:7000", AF_INET);
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return seen->step == 2; }));
  EXPECT_EQ(seen->connected, 0);
  age_flows();  // what it sends by now, no program sees
  must(datapath_->end_forbidden(state_));
  seen->step = 3;
  ASSERT_TRUE(eventually([&] { return seen->step == 4; }));
  EXPECT_EQ(seen->kept, 0);
  udp_verdict(kIn, 0, false, 51, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  seen->step = 5;
  server.wait();
  EXPECT_NE(seen->ended, 0);
}

// Somebody asked there once; that it connected is its own doing, by its own right.
TEST_F(UdpTest, WhoConnectsLongAfterAQuestionIsJudgedByItsEgressPolicy) {
  enrol_server();
  this->server().ingress = kIn;
  this->server().egress = kOut;
  udp_verdict(kIn, 0, true, 51, 0);
  for (const bool knows_port : {true, false}) {
    udp_verdict(kOut, 0, true, 61, 0);
    apply_all();
    Shared<std::atomic<int>> step;
    Child server(&*server_group_, &*server_, [&] {
      UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
      *step = 1;
      const Answer asked = receive(fd.get(), 30'000);
      *step = 2;
      if (!eventually([&] { return *step == 3; })) return;
      if (connect_udp(fd.get(), asked.from.to_string(), AF_INET) == 0) *step = 4;
      if (!eventually([&] { return *step == 5; })) return;
      *step = ::send(fd.get(), "x", 1, 0) < 0 ? 6 : 7;
    });
    ASSERT_TRUE(eventually([&] { return *step == 1; }));
    Child asker(&*elsewhere_, &*app_, [&] {
      UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
      (void)send_to(fd.get(), "10.9.0.2:7000", AF_INET);
      ::pause();
    });
    ASSERT_TRUE(eventually([&] { return *step == 2; }));
    age_flows();
    *step = 3;
    ASSERT_TRUE(eventually([&] { return *step == 4; }));
    EXPECT_EQ(flow_of_the_asker().began, UM_BEGAN_HERE);
    if (!knows_port) {  // as where the kernel gave it that port only after the connect was judged
      um_udp_flow flow{};
      flow.began = UM_BEGAN_THERE;
      flow.used = now_ns();
      write_flow_of_the_asker(flow);
      age_flows();
    }
    udp_verdict(kOut, 0, false, 62, 0);
    apply_all();
    must(datapath_->end_forbidden(state_));
    *step = 5;
    server.wait();
    EXPECT_EQ(*step, 6) << knows_port;
  }
}

// ---- limits and deaths ---------------------------------------------------------------------

// An old record goes; who asks again is answered again, and nobody else. Which one goes is the
// kernel's approximation of the least recently used: in so small a map it may be one that waits for
// its answer, as it was seen on 6.12.
TEST_F(UdpTest, MoreFlowsThanRecordsLetNobodyIn) {
  datapath_.reset();
  must(datapath::disable_all(options_.pin_dir));
  options_.max_udp_flows = 256;
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  enrol_server();
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  udp_service(kVip, {"10.9.0.2:7000", "10.9.0.3:7000"});
  app().ingress = 7;
  has_set("10.9.0.1", 7);
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  const int wrong = in_app([&] {
    const auto is_answered = [](int fd) {
      for (int tries = 0; tries < 5; ++tries)
        if (ask(fd, kVip, AF_INET).from == at(kVip)) return true;
      return false;
    };
    int failed = 0;
    std::vector<UniqueFd> sockets;
    for (int i = 0; i < 600; ++i) {
      sockets.push_back(udp_socket(AF_INET));
      if (!is_answered(sockets.back().get())) ++failed;
    }
    for (const UniqueFd& fd : sockets)
      if (!is_answered(fd.get())) ++failed;
    return failed;
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(entries_of("um_udp_flows"), 256);
  EXPECT_EQ(in_child(&*server_group_, &*server_,
                     [] { return send_to(udp_socket(AF_INET).get(), "10.9.0.1:4000", AF_INET); }),
            EPERM);
}

TEST_F(UdpTest, GoesOnWithoutItsOwner) {
  udp_service(kVip, {"10.9.0.3:7000"});
  has_set("10.9.0.2", 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  datapath_.reset();  // and then the server's process: it must not inherit the lock
  auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, EPERM);
  EXPECT_EQ(ask_from_app(kVip).from, at(kVip));
  server.reset();
  open();
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, EPERM);
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
