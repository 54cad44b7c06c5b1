// UDP, live, and the redirect of what is asked of port 53. The test is the responder.
#include <gmock/gmock.h>

#include <string>

#include "net/tcp.h"
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

  UniqueFd responder_;
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

}  // namespace
}  // namespace mesh::test
