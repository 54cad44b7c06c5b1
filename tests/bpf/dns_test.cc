// The redirect of what is asked of port 53, live. The test is the responder.
#include <gmock/gmock.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "net/tcp.h"
#include "tests/support/datagrams.h"
#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

constexpr const char* kResponder = "0.0.0.0:15053";

class DnsTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    responder_ = app_->listen(kResponder, "lo");
    state_.workloads[kApp].has_responder = true;
    proxy_lives();
  }
  // Of the next connection at the responder; unknown: no address.
  SocketAddress next_resolver() {
    UniqueFd accepted = accept_within(responder_.get());
    EXPECT_TRUE(accepted) << "no connection";
    if (!accepted) return {};
    const SocketAddress local = must(net::local_address(accepted.get()));
    auto resolver = net::original_resolver(accepted.get(), local.ip);
    return resolver ? resolver.value() : SocketAddress{};
  }

  // The datagrams' end: it learns at which address it was asked, and answers from there, with the
  // resolver that was meant.
  void answer_datagrams() {
    udp_ = app_->run([] {
      UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      const int on = 1;
      ::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "lo", 2);
      ::setsockopt(fd.get(), SOL_IP, IP_PKTINFO, &on, sizeof on);
      const RawAddress raw = raw_address(at(kResponder), AF_INET);
      if (::bind(fd.get(), raw.get(), raw.size) != 0) fixture_failed("bind the responder");
      return fd;
    });
    answering_ = std::thread([this] {
      while (!is_done_) answer_one();
    });
  }
  void TearDown() override {
    is_done_ = true;
    if (answering_.joinable()) answering_.join();
    DatapathTest::TearDown();
  }
  Answer ask_from_app(const std::string& to, int family) {
    return in_child(&*app_group_, &*app_,
                    [&] { return ask(udp_socket(family).get(), to, family); });
  }
  Answer ask_connected(const std::string& to, int family) {
    return in_child(&*app_group_, &*app_, [&] {
      UniqueFd fd = udp_socket(family);
      if (const int err = connect_udp(fd.get(), to, family)) return Answer{err, {}};
      if (peer_of(fd.get()).address != at(to)) return Answer{-1, {}};
      if (::send(fd.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(fd.get());
    });
  }

  UniqueFd responder_, udp_;
  std::atomic<std::uint64_t> answered_{0};

 private:
  void answer_one() {
    pollfd waiting{udp_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 20) != 1) return;
    char text[64];
    iovec piece{text, sizeof text};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(in_pktinfo))] = {};
    sockaddr_storage from{};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (::recvmsg(udp_.get(), &message, 0) < 0) return;
    auto* info = reinterpret_cast<in_pktinfo*>(CMSG_DATA(CMSG_FIRSTHDR(&message)));
    std::uint8_t bytes[4];
    std::memcpy(bytes, &info->ipi_addr, sizeof bytes);
    auto resolver =
        net::original_resolver(udp_.get(), IpAddress::v4(bytes[0], bytes[1], bytes[2], bytes[3]));
    const std::string known = resolver ? resolver.value().to_string() : "nobody";
    info->ipi_spec_dst = info->ipi_addr;
    info->ipi_ifindex = 0;
    std::memcpy(text, known.data(), known.size());
    piece.iov_len = known.size();
    if (::sendmsg(udp_.get(), &message, 0) > 0) ++answered_;
  }

  std::thread answering_;
  std::atomic<bool> is_done_{false};
};

TEST_F(DnsTest, TcpGoesToTheResponderWhichKnowsTheResolver) {
  apply_all();
  for (const char* resolver : {"10.9.0.2:53", "10.9.0.3:53"}) {
    const Peer peer = peer_from_app(resolver, AF_INET);
    EXPECT_EQ(peer.err, 0) << resolver;
    EXPECT_EQ(peer.address, at(resolver)) << "what the application sees";
    EXPECT_EQ(next_resolver(), at(resolver));
  }
  EXPECT_EQ(peer_from_app("10.9.0.2:53", AF_INET6).address, at("10.9.0.2:53"));
  EXPECT_EQ(next_resolver(), at("10.9.0.2:53"));
  EXPECT_EQ(entries_of("um_resolvers"), 2);
  EXPECT_EQ(count("dns_redirected"), 3);
  state_.workloads.erase(kApp);
  apply_all();
  EXPECT_EQ(entries_of("um_resolvers"), 0);
}

TEST_F(DnsTest, AnswersForNoOtherAddressAndNoOtherSocket) {
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:53"), 0);
  UniqueFd accepted = accept_within(responder_.get());
  ASSERT_TRUE(accepted);
  const SocketAddress local = must(net::local_address(accepted.get()));
  EXPECT_TRUE(net::original_resolver(responder_.get(), local.ip))
      << "the listener may be asked too";
  EXPECT_FALSE(net::original_resolver(proxy4_.get(), local.ip)) << "another port";
  for (int i = 0; i < 256; ++i) {
    const IpAddress other = IpAddress::v4(127, 53, 0, static_cast<std::uint8_t>(i));
    if (other != local.ip) EXPECT_FALSE(net::original_resolver(responder_.get(), other)) << i;
  }
  UniqueFd elsewhere = server_->listen(kResponder, "lo");
  EXPECT_FALSE(net::original_resolver(elsewhere.get(), local.ip)) << "another namespace";
}

TEST_F(DnsTest, PolicyJudgesTheWayToTheResolver) {
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 9);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:53"), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.3:53"), 0);
  EXPECT_EQ(next_resolver(), at("10.9.0.3:53"));
  EXPECT_FALSE(accept_within(responder_.get(), 0));
}

TEST_F(DnsTest, GoesToTheResolverWithoutAResponder) {
  UniqueFd resolver = server_->listen("10.9.0.2:53");
  UniqueFd resolver6 = server_->listen("[fd09::2]:53");
  state_.workloads[kApp].has_responder = false;
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:53"), 0);
  state_.workloads[kApp].has_responder = true;
  apply_all();
  stamp(now_ns() - 2'500'000'000);
  EXPECT_EQ(connect_from_app("10.9.0.2:53"), 0);
  EXPECT_EQ(count("dns_left_proxy_away"), 1);
  proxy_lives();
  const int bound = in_child(&*app_group_, &*app_, [&] {
    UniqueFd fd = tcp_socket_for("10.9.0.2:53");
    ::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "veth0", 5);
    return connect_socket(fd.get(), "10.9.0.2:53");
  });
  EXPECT_EQ(bound, 0);
  EXPECT_EQ(count("dns_left_bound_device"), 1);
  EXPECT_EQ(connect_from_app("[fd09::2]:53"), 0);
  EXPECT_EQ(count("dns_left_ipv6"), 1);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(accept_within(resolver.get())) << i;
  EXPECT_TRUE(accept_within(resolver6.get()));
  EXPECT_FALSE(accept_within(responder_.get(), 0));
  // It is written down as every other is.
  std::vector<std::string> services;
  EXPECT_TRUE(eventually([&] {
    for (const datapath::Flow& flow : must(datapath_->take_flows()))
      if (flow.is_established && flow.workload == kApp)
        services.push_back(flow.service->to_string());
    return services.size() == 4;
  }));
  EXPECT_THAT(services, testing::UnorderedElementsAre("10.9.0.2:53", "10.9.0.2:53", "10.9.0.2:53",
                                                      "[fd09::2]:53"));
}

// One on the node, or a cloud's: the responder could not ask it, so it is not asked instead.
TEST_F(DnsTest, GoesToALinkLocalResolverByItself) {
  server_->command("ip addr add 169.254.20.10/32 dev veth0");
  app_->command("ip route add 169.254.20.10/32 dev veth0");
  UniqueFd resolver = server_->listen("169.254.20.10:53");
  apply_all();
  Echo echo(*elsewhere_, *server_, {"169.254.20.10:53"});
  EXPECT_EQ(connect_from_app("169.254.20.10:53"), 0);
  EXPECT_TRUE(accept_within(resolver.get()));
  EXPECT_EQ(count("dns_left_link_local"), 1);
  EXPECT_STREQ(ask_from_app("169.254.20.10:53", AF_INET).text, "169.254.20.10:53");
  EXPECT_STREQ(ask_connected("169.254.20.10:53", AF_INET).text, "169.254.20.10:53");
  EXPECT_EQ(count("dns_left_link_local"), 3);
  EXPECT_FALSE(accept_within(responder_.get(), 0));
}

TEST_F(DnsTest, DatagramsGoToTheResponderAndSeemToComeFromTheResolver) {
  answer_datagrams();
  apply_all();
  for (const int family : {AF_INET, AF_INET6})
    for (const char* resolver : {"10.9.0.2:53", "10.9.0.3:53"}) {
      const Answer answer = ask_from_app(resolver, family),
                   connected = ask_connected(resolver, family);
      EXPECT_STREQ(answer.text, resolver) << family;
      EXPECT_EQ(answer.from, at(resolver)) << family;
      EXPECT_STREQ(connected.text, resolver) << family;
      EXPECT_EQ(connected.from, at(resolver)) << family;
    }
  EXPECT_EQ(count("datagrams_resolved"), 4);
  EXPECT_EQ(count("dns_redirected"), 4);
}

// As musl does: one socket for all resolvers.
TEST_F(DnsTest, OneSocketMayAskSeveralResolvers) {
  answer_datagrams();
  apply_all();
  const int wrong = in_child(&*app_group_, &*app_, [] {
    UniqueFd fd = udp_socket(AF_INET6);
    int failed = 0;
    for (int i = 0; i < 20; ++i)
      for (const char* resolver : {"10.9.0.2:53", "10.9.0.3:53"}) {
        const Answer answer = ask(fd.get(), resolver, AF_INET6);
        if (answer.from != at(resolver) || std::strcmp(answer.text, resolver) != 0) ++failed;
      }
    return failed;
  });
  EXPECT_EQ(wrong, 0);
}

TEST_F(DnsTest, AServiceMayBeTheResolver) {
  answer_datagrams();
  state_.udp_services[at("10.78.0.10:53")] = {4, ServiceEntry::Kind::kBalance,
                                              datapath::columns_of({{at("10.9.0.2:5353"), 1}})};
  apply_all();
  EXPECT_STREQ(ask_from_app("10.78.0.10:53", AF_INET).text, "10.78.0.10:53");
  EXPECT_EQ(ask_connected("10.78.0.10:53", AF_INET).from, at("10.78.0.10:53"));
}

// While the workload lives: the responder comes and goes.
TEST_F(DnsTest, ASocketThatIsConnectedToItsResolverStaysThere) {
  answer_datagrams();
  state_.workloads[kApp].has_responder = false;
  apply_all();
  Echo resolver(*elsewhere_, *server_, {"10.9.0.2:53"});
  for (const int family : {AF_INET, AF_INET6}) {
    state_.workloads[kApp].has_responder = false;
    apply_all();
    Shared<std::atomic<int>> step;
    Child client(&*app_group_, &*app_, [&] {
      UniqueFd fd = udp_socket(family);
      if (connect_udp(fd.get(), "10.9.0.2:53", family) == 0) *step = 1;
      if (!eventually([&] { return *step == 2; })) return;
      const bool is_same = ::send(fd.get(), "x", 1, 0) == 1 && receive(fd.get()).err == 0 &&
                           ask(fd.get(), "10.9.0.2:53", family).err == 0;
      *step = is_same ? 3 : 4;
    });
    ASSERT_TRUE(eventually([&] { return *step != 0; }));
    state_.workloads[kApp].has_responder = true;
    apply_all();
    *step = 2;
    client.wait();
    EXPECT_EQ(*step, 3) << family;
  }
  EXPECT_EQ(answered_, 0);
}

TEST_F(DnsTest, DatagramsThatCannotBeRedirectedGoToTheResolver) {
  answer_datagrams();
  apply_all();
  Echo resolver(*elsewhere_, *server_, {"10.9.0.2:53", "[fd09::2]:53"});
  EXPECT_STREQ(ask_from_app("[fd09::2]:53", AF_INET6).text, "[fd09::2]:53");
  EXPECT_STREQ(ask_connected("[fd09::2]:53", AF_INET6).text, "[fd09::2]:53");
  EXPECT_EQ(count("dns_left_ipv6"), 2);
  const Answer bound = in_child(&*app_group_, &*app_, [] {
    UniqueFd fd = udp_socket(AF_INET);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "veth0", 5);
    return ask(fd.get(), "10.9.0.2:53", AF_INET);
  });
  EXPECT_EQ(bound.err, 0);
  stamp(now_ns() - 2'500'000'000);
  EXPECT_EQ(ask_from_app("10.9.0.2:53", AF_INET).err, 0);
  EXPECT_EQ(count("dns_left_bound_device"), 1);
  EXPECT_EQ(count("dns_left_proxy_away"), 1);
  EXPECT_EQ(resolver.asked(), 4);
  EXPECT_EQ(answered_, 0);
}

TEST_F(DnsTest, PolicyJudgesTheWayOfDatagramsToTheResolver) {
  answer_datagrams();
  has_set("10.9.0.2", 3);
  state_.sets[3][{kAppClass, datapath::Transport::kUdp, 0, 65535}] = {false, 9, 0};
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:53", AF_INET).err, EPERM);
  EXPECT_EQ(ask_connected("10.9.0.2:53", AF_INET).err, kRefused);
  EXPECT_EQ(ask_from_app("10.9.0.3:53", AF_INET).err, 0);
}

TEST_F(DnsTest, AResolverInTheWorkloadIsItsOwnAffair) {
  UniqueFd lo = app_->listen("127.0.0.53:53"), own = app_->listen("10.9.0.1:53");
  apply_all();
  EXPECT_EQ(connect_from_app("127.0.0.53:53"), 0);
  EXPECT_EQ(connect_from_app("10.9.0.1:53"), 0);
  EXPECT_TRUE(accept_within(lo.get()));
  EXPECT_TRUE(accept_within(own.get()));
}

// 64 resolvers at most; who asks more goes to them himself.
TEST_F(DnsTest, BeyondItsSlotsAResolverIsAskedDirectly) {
  apply_all();
  int redirected = 0;
  for (int i = 1; i <= 100; ++i) {
    in_child(&*app_group_, &*app_, [&] {
      const std::string to = "10.9.1." + std::to_string(i) + ":53";
      UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
      return connect_socket(fd.get(), to);
    });
    while (UniqueFd accepted = accept_within(responder_.get(), 0)) {
      const SocketAddress local = must(net::local_address(accepted.get()));
      EXPECT_EQ(must(net::original_resolver(accepted.get(), local.ip)).ip.to_string(),
                "10.9.1." + std::to_string(i));
      ++redirected;
    }
  }
  EXPECT_EQ(redirected, entries_of("um_resolvers"));
  EXPECT_GE(redirected, 32);
  EXPECT_LE(redirected, UM_DNS_SLOTS);
  EXPECT_EQ(count("dns_redirected"), redirected);
  EXPECT_EQ(count("dns_left_no_slot"), 100 - redirected);
}

TEST_F(DnsTest, WhereTheMapOfResolversIsFullTheyAreAskedDirectly) {
  apply_all();
  fill(map("um_resolvers").get());
  in_child(&*app_group_, &*app_, [] {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    return connect_socket(fd.get(), "10.9.1.1:53");
  });
  EXPECT_EQ(count("dns_left_no_slot"), 1);
  EXPECT_EQ(count("dns_redirected"), 0);
  // And are judged as anybody.
  has_set("10.9.1.1", 3);
  verdict(3, 0, false, 9);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.1.1:53"), kRefused);
}

}  // namespace
}  // namespace mesh::test
