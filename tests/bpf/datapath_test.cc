// What becomes of a connect: redirected, balanced, refused, left alone.
#include <gmock/gmock.h>

#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

TEST_F(DatapathTest, RedirectsIpv4ToTheProxyWithItsDestination) {
  proxy_serves("10.78.0.1:9080");
  Peer peer = peer_from_app("10.78.0.1:9080", AF_INET);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.78.0.1:9080"));
  UniqueFd accepted = accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  Peer destination = original_destination(accepted.get(), SOL_IP);
  EXPECT_EQ(destination.err, 0);
  EXPECT_EQ(destination.address, at("10.78.0.1:9080"));
  EXPECT_NE(original_destination(accepted.get(), SOL_IPV6).err, 0);
  EXPECT_EQ(count("connects_redirected"), 1);
  EXPECT_EQ(count("accepted_with_destination"), 1);
}

TEST_F(DatapathTest, RedirectsIpv6ToTheProxyWithItsDestination) {
  proxy_serves("[fd78::1]:9080");
  Peer peer = peer_from_app("[fd78::1]:9080", AF_INET6);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("[fd78::1]:9080"));
  UniqueFd accepted = accept_within(proxy6_.get());
  ASSERT_TRUE(accepted);
  Peer destination = original_destination(accepted.get(), SOL_IPV6);
  EXPECT_EQ(destination.err, 0);
  EXPECT_EQ(destination.address, at("[fd78::1]:9080"));
  EXPECT_NE(original_destination(accepted.get(), SOL_IP).err, 0);
}

TEST_F(DatapathTest, RedirectsAMappedAddressToTheIpv4Listener) {
  proxy_serves("10.78.0.1:9080");
  Peer peer = peer_from_app("10.78.0.1:9080", AF_INET6);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.78.0.1:9080"));
  EXPECT_EQ(next_destination(proxy4_, SOL_IP).address, at("10.78.0.1:9080"));
}

TEST_F(DatapathTest, KnowsTheDestinationOfClientsThatBoundTheirAddress) {
  proxied("10.78.0.1:9080", 1);
  proxied("10.78.0.2:9080", 2);
  proxied("[fd78::1]:9080", 3);
  apply_all();
  proxy_lives();
  struct Try {
    const char* from;
    const char* to;
    int listener;
    int level;
  };
  for (const Try& t : {Try{"10.9.0.1:7777", "10.78.0.1:9080", proxy4_.get(), SOL_IP},
                       Try{"127.0.0.1:7777", "10.78.0.2:9080", proxy4_.get(), SOL_IP},
                       Try{"[fd09::1]:7777", "[fd78::1]:9080", proxy6_.get(), SOL_IPV6}}) {
    Child client(&*app_group_, &*app_, [&] {
      SocketAddress from = at(t.from);
      UniqueFd fd = tcp_socket_for(t.to);
      auto source = raw_address(from, family_of(from));
      if (::bind(fd.get(), source.get(), source.size) == 0) (void)connect_socket(fd.get(), t.to);
      ::pause();
    });
    UniqueFd accepted = accept_within(t.listener);
    ASSERT_TRUE(accepted) << t.from;
    EXPECT_EQ(original_destination(accepted.get(), t.level).address, at(t.to)) << t.from;
  }
}

TEST_F(DatapathTest, KnowsTheDestinationOfAClientThatClosedBeforeAccept) {
  proxied("10.78.0.1:9080", 1);
  proxied("[fd78::1]:9080", 2);
  apply_all();
  proxy_lives();
  for (int i = 0; i < 20; ++i) {
    proxy_lives();
    ASSERT_EQ(connect_from_app("10.78.0.1:9080"), 0);
  }
  ASSERT_EQ(connect_from_app("[fd78::1]:9080"), 0);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(next_destination(proxy4_, SOL_IP).address, at("10.78.0.1:9080"));
  }
  EXPECT_EQ(next_destination(proxy6_, SOL_IPV6).address, at("[fd78::1]:9080"));
  EXPECT_EQ(entries_of("um_records"), 0);
}

TEST_F(DatapathTest, TakesBackTheRecordOfAConnectThatNobodyAnswered) {
  proxy_serves("10.78.0.1:9080");
  proxy4_.reset();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(count("records_written"), 1);
  EXPECT_EQ(count("records_unused"), 1);
  EXPECT_EQ(entries_of("um_records"), 0);
}

TEST_F(DatapathTest, GivesNoDestinationToSomeoneWhoDialsTheProxyHimself) {
  apply_all();
  EXPECT_EQ(connect_from_app(kProxy4), 0);
  UniqueFd accepted = accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  EXPECT_NE(original_destination(accepted.get(), SOL_IP).err, 0);
  EXPECT_EQ(count("accepted_without_destination"), 1);
}

TEST_F(DatapathTest, LeavesEveryOtherSocketOptionAlone) {
  proxy_serves("10.78.0.1:9080");
  ASSERT_EQ(connect_from_app("10.78.0.1:9080"), 0);
  UniqueFd accepted = accept_within(proxy4_.get());
  int type = 0;
  socklen_t size = sizeof type;
  EXPECT_EQ(::getsockopt(accepted.get(), SOL_SOCKET, SO_TYPE, &type, &size), 0);
  EXPECT_EQ(type, SOCK_STREAM);
  // Longer than the page that a program sees.
  std::vector<char> name(70000, 'x');
  size = static_cast<socklen_t>(name.size());
  EXPECT_EQ(::getsockopt(accepted.get(), SOL_SOCKET, SO_BINDTODEVICE, name.data(), &size), 0);
  EXPECT_STREQ(name.data(), "lo");
  UniqueFd plain(::socket(AF_INET, SOCK_STREAM, 0));
  int own =
      original_destination(plain.get(), SOL_IP).err;  // the kernel's, with conntrack or without
  EXPECT_TRUE(own == ENOPROTOOPT || own == ENOENT) << own;
  sockaddr_storage small{};
  size = 4;
  EXPECT_NE(::getsockopt(accepted.get(), SOL_IP, 80, &small, &size), 0);
}

TEST_F(DatapathTest, ShowsTheNewPeerAfterAReconnect) {
  proxied("10.78.0.1:9080", 1);
  accept_on_both_servers();
  apply_all();
  proxy_lives();
  Peer peer = in_child(&*app_group_, &*app_, [] {
    UniqueFd fd(dial("10.78.0.1:9080"));
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    if (::connect(fd.get(), &none, sizeof none) != 0) return Peer{errno, {}};
    if (int err = connect_socket(fd.get(), "10.9.0.2:8080"); err != 0) return Peer{err, {}};
    return peer_of(fd.get());
  });
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.9.0.2:8080"));
}

// A number that is given again later, to another policy, must begin at 0.
TEST_F(DatapathTest, ForgetsTheCountersOfPoliciesThatAreGoneAndKeepsTheOthers) {
  accept_on_both_servers();
  has_set("10.9.0.2", 3);
  has_set("10.9.0.3", 4);
  verdict(3, 0, false, 21);
  verdict(4, 0, true, 22);
  state_.sets[4].begin()->second.audit = 23;
  apply_all();
  using Counts = std::map<std::uint32_t, std::uint64_t>;
  for (const std::uint64_t before : {1, 2}) {
    EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
    EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
    const auto counted = must(datapath_->counters());
    EXPECT_EQ(counted.denied_by_policy, (Counts{{21, 1}})) << "it began anew";
    EXPECT_EQ(counted.allowed_by_policy, (Counts{{22, before}}));
    EXPECT_EQ(counted.audited_by_policy, (Counts{{23, 1}})) << "it began anew";
    must(datapath_->forget_policies_but({22}));
    const auto after = must(datapath_->counters());
    EXPECT_EQ(after.denied_by_policy, Counts{});
    EXPECT_EQ(after.audited_by_policy, Counts{});
    EXPECT_EQ(after.allowed_by_policy, (Counts{{22, before}}));
  }
}

TEST_F(DatapathTest, RefusesByPolicyAtOnceAndNamesIt) {
  accept_on_both_servers();
  has_set("10.9.0.2", 3);
  has_set("10.9.0.3", 4);
  verdict(3, 8080, false, 21);
  verdict(3, 0, true, 22);
  verdict(4, 0, true, 23);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080", AF_INET6), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
  EXPECT_FALSE(accept_within(first_.get(), 0));
  auto counters = must(datapath_->counters());
  EXPECT_EQ(counters.totals["connects_denied_policy"], 2);
  EXPECT_EQ(counters.denied_by_policy, (std::map<std::uint32_t, std::uint64_t>{{21, 2}}));
  EXPECT_EQ(counters.allowed_by_policy, (std::map<std::uint32_t, std::uint64_t>{{23, 1}}));
  verdict(3, 8080, true, 21);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(DatapathTest, DeniesWhatASetHasNoVerdictFor) {
  accept_on_both_servers();
  has_set("10.9.0.2", 3);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(count("connects_denied_no_verdict"), 1);
  EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
  EXPECT_EQ(connect_from_app("10.9.0.3:8081"), kRefused);  // nobody listens: not ours
  EXPECT_EQ(count("connects_direct"), 2);
}

TEST_F(DatapathTest, RefusesAProxiedServiceWhoseEveryRouteRefuses) {
  proxied("10.78.0.1:9080", 1);
  state_.refusals[{kApp, 1}] = 5;
  apply_all();
  proxy_lives();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[5], 1);
  EXPECT_FALSE(accept_within(proxy4_.get(), 0));
}

TEST_F(DatapathTest, RefusesWhileTheProxyIsAway) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);  // never stamped
  stamp(now_ns() - 2'500'000'000);
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  stamp(now_ns() + 60'000'000'000);
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(count("connects_refused_proxy_away"), 3);
  proxy_lives();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), 0);
}

TEST_F(DatapathTest, BalancesToTheEndpointsAndShowsTheService) {
  accept_on_both_servers();
  state_.services[at("10.78.0.2:70")] = balanced(2, {"10.9.0.2:8080", "10.9.0.3:8080"});
  apply_all();
  for (int i = 0; i < 40; ++i) {
    Peer peer = peer_from_app("10.78.0.2:70", i % 2 == 0 ? AF_INET : AF_INET6);
    ASSERT_EQ(peer.err, 0);
    EXPECT_EQ(peer.address, at("10.78.0.2:70"));
  }
  int first = 0, second = 0;
  while (accept_within(first_.get(), 0)) ++first;
  while (accept_within(second_.get(), 0)) ++second;
  EXPECT_EQ(first + second, 40);
  EXPECT_GT(first, 0);
  EXPECT_GT(second, 0);
  EXPECT_EQ(count("connects_balanced"), 40);
}

TEST_F(DatapathTest, ChecksThePolicyOfTheEndpointThatItPicks) {
  accept_on_both_servers();
  state_.services[at("10.78.0.2:70")] = balanced(2, {"10.9.0.2:8080"});
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 9);
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), kRefused);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[9], 1);
}

TEST_F(DatapathTest, RefusesAServiceWithoutEndpoints) {
  state_.services[at("10.78.0.2:70")] = balanced(2, {});
  state_.services[at("10.78.0.3:70")] = balanced(3, {"[fd09::2]:8080"});
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), kRefused);
  EXPECT_EQ(connect_from_app("10.78.0.3:70", AF_INET), kRefused);  // no IPv4 endpoint
  EXPECT_EQ(count("connects_refused_no_endpoint"), 2);
}

TEST_F(DatapathTest, TheMeshIsPolicedButNeverRedirected) {
  accept_on_both_servers();
  proxied("10.9.0.3:8080", 1);  // a service address that really exists
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 9);
  apply_all();
  proxy_lives();
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), kDenied);
  EXPECT_EQ(connect_from_mesh("10.9.0.3:8080"), 0);
  EXPECT_TRUE(accept_within(second_.get(), 1000));
  for (const char* forbidden :
       {"127.0.0.1:15001", "[::1]:15001", "169.254.169.254:80", "[fe80::1]:80", "0.0.0.0:80",
        "[::]:80", "224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80"})
    EXPECT_EQ(connect_from_mesh(forbidden), kDenied) << forbidden;
  EXPECT_EQ(count("mesh_connects_refused_address"), 9);
  EXPECT_EQ(count("mesh_connects_denied_policy"), 1);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[9], 1);
  EXPECT_EQ(server_->run([] { return try_connect("10.9.0.1:1"); }), kDenied);
  EXPECT_EQ(count("mesh_connects_denied_unknown_workload"), 1);
}

// Sockets that the mesh made keep their flag where redirecting programs run for them too.
TEST_F(DatapathTest, AFlaggedSocketBelowAWorkloadsCgroupIsNotRedirected) {
  Cgroup inner = Cgroup::create("app/mesh");
  proxied("10.9.0.3:8080", 1);
  accept_on_both_servers();
  must(datapath_->attach_mesh(inner.path()));
  apply_all();
  proxy_lives();
  EXPECT_EQ(in_child(&inner, &*app_, [] { return try_connect("10.9.0.3:8080"); }), 0);
  EXPECT_TRUE(accept_within(second_.get(), 1000));
  EXPECT_FALSE(accept_within(proxy4_.get(), 0));
}

TEST_F(DatapathTest, PassesWhatStaysInTheWorkload) {
  apply_all();
  UniqueFd own = app_->listen("10.9.0.1:8081");
  UniqueFd lo = app_->listen("127.0.0.1:8082");
  UniqueFd own6 = app_->listen("[fd09::1]:8081");
  has_set("10.9.0.1", 3);  // and no verdict
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.1:8081"), 0);
  EXPECT_EQ(connect_from_app("127.0.0.1:8082"), 0);
  EXPECT_EQ(connect_from_app("0.0.0.0:8082"), 0);
  EXPECT_EQ(connect_from_app("[fd09::1]:8081"), 0);
  EXPECT_EQ(count("connects_local"), 4);
}

TEST_F(DatapathTest, PassesUdp) {
  proxied("10.9.0.2:53", 1);
  apply_all();
  Peer peer = in_child(&*app_group_, &*app_, [] {
    UniqueFd fd(::socket(AF_INET, SOCK_DGRAM, 0));
    if (int err = connect_socket(fd.get(), "10.9.0.2:53"); err != 0) return Peer{err, {}};
    return peer_of(fd.get());
  });
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.9.0.2:53"));
}

TEST_F(DatapathTest, RefusesANamespaceThatItDoesNotKnow) {
  apply_all();
  NetNs stranger = NetNs::create();
  UniqueFd lo = stranger.listen("127.0.0.1:80");
  EXPECT_EQ(in_child(&*app_group_, &stranger, [] { return try_connect("127.0.0.1:80"); }),
            kRefused);
  EXPECT_EQ(count("connects_denied_unknown_workload"), 1);
}

// Of a socket that is bound to the veth, from where no proxy is reached: it gives up after a while.
int connect_bound_to_veth(const std::string& to) {
  UniqueFd fd = tcp_socket_for(to);
  timeval limit{2, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "veth0", 5) != 0) return -1;
  return connect_socket(fd.get(), to);
}

TEST_F(DatapathTest, TakesASocketOffItsDevice) {
  proxied("10.78.0.1:9080", 1);
  proxy_serves("[fd78::1]:9080");
  for (const char* to : {"10.78.0.1:9080", "[fd78::1]:9080"}) {
    EXPECT_EQ(in_child(&*app_group_, &*app_, [&] { return connect_bound_to_veth(to); }), 0) << to;
  }
}

// Only root may take a socket off its device: the others are refused, not left hanging.
TEST_F(DatapathTest, RefusesASocketThatItCannotTakeOffItsDevice) {
  proxy_serves("10.78.0.1:9080");
  int err = in_child(&*app_group_, &*app_, [&] {
    return ::setuid(65530) == 0 ? connect_bound_to_veth("10.78.0.1:9080") : -2;
  });
  EXPECT_EQ(err, kRefused);
  EXPECT_EQ(count("connects_refused_bound_device"), 1);
}

}  // namespace
}  // namespace mesh::test
