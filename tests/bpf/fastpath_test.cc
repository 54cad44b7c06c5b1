// The same-node fast path: each hazard of redirecting between sockets, and that a naive program
// falls into it.
#include <gmock/gmock.h>

#include <algorithm>
#include <cerrno>

#include "datapath/fastpath_probe.h"
#include "tests/support/fastpath_fixture.h"

namespace mesh::test {
namespace {

using FastPathGate = DatapathTest;

TEST_F(FastPathGate, StaysOffWhereTheKernelDoesNotChargeTheReceiver) {
  const std::string why = datapath::why_no_fast_path();
  apply_all();
  const Result<> switched = datapath_->switch_fast_path(true);
  EXPECT_EQ(switched.has_value(), why.empty());
  if (switched) return;
  EXPECT_EQ(switched.error().code, Errc::unavailable);
  EXPECT_THAT(switched.error().message, testing::HasSubstr("6.13"));
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir + "/fastpath"));
  must(datapath_->switch_fast_path(false));  // as meshd does after that
}

TEST_F(FastPathTest, MovesDataBothWaysPastTcpAndCountsIt) {
  real();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 100'003));
  ASSERT_TRUE(receives(pair.server.get(), 0, 100'003));
  ASSERT_TRUE(send_all(pair.server.get(), 7, 1'000));
  ASSERT_TRUE(receives(pair.client.get(), 7, 1'000));
  const um_fast_socket client = storage_of(pair.client.get());
  const um_fast_socket server = storage_of(pair.server.get());
  EXPECT_EQ(client.state, UM_FAST_REDIRECT);
  EXPECT_EQ(server.state, UM_FAST_REDIRECT);
  EXPECT_EQ(client.sent_bytes, 100'003U);
  EXPECT_EQ(client.received_bytes, 1'000U);
  EXPECT_EQ(server.sent_bytes, 1'000U);
  EXPECT_EQ(server.received_bytes, 100'003U);
}

TEST_F(FastPathTest, ServesIpv6) {
  real();
  UniqueFd listener = server_->listen("[fd09::2]:8080");
  Pair pair = connected("[fd09::2]:8080", listener.get());
  ASSERT_TRUE(send_all(pair.client.get(), 0, 5'000));
  ASSERT_TRUE(receives(pair.server.get(), 0, 5'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 5'000U);
}

// In the records of what is open and of what was closed, at both ends.
TEST_F(FastPathTest, BytesPastTcpAreInTheRecordsOfConnections) {
  const auto is_counted = [](const datapath::Flow& flow) {
    return flow.is_inbound ? flow.sent == 77 && flow.received == 100'003
                           : flow.sent == 100'003 && flow.received == 77;
  };
  real();
  must(datapath_->take_flows());
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 100'003));
  ASSERT_TRUE(receives(pair.server.get(), 0, 100'003));
  ASSERT_TRUE(send_all(pair.server.get(), 0, 77));
  ASSERT_TRUE(receives(pair.client.get(), 0, 77));
  const auto open = must(datapath_->open_flows(state_));
  EXPECT_EQ(std::ranges::count_if(open, is_counted), 2);
  pair = {};
  std::vector<datapath::Flow> closed;
  for (int patience = 0; patience < 2000 && closed.size() < 2; ++patience) {
    for (auto& flow : must(datapath_->take_flows())) closed.push_back(std::move(flow));
    ::usleep(10'000);
  }
  EXPECT_EQ(std::ranges::count_if(closed, is_counted), 2);
}

// ---- back-pressure -------------------------------------------------------------------------

constexpr int kBuffer = 65'536;  // the kernel makes it twice that

void set_buffers(const UniqueFd& fd) {
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kBuffer, sizeof kBuffer);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &kBuffer, sizeof kBuffer);
}

// What a receiver that never reads takes before its sender would wait, at most `limit`.
std::size_t taken_unread(int client, std::size_t piece, std::size_t limit) {
  std::size_t taken = 0;
  while (taken < limit) {
    const ssize_t sent = ::send(client, pattern_at(taken), piece, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) {
      taken += static_cast<std::size_t>(sent);
      continue;
    }
    // By TCP it takes a moment until what was sent has made room.
    pollfd waiting{client, POLLOUT, 0};
    if (::poll(&waiting, 1, 300) != 1) break;
  }
  return taken;
}

constexpr std::size_t kFarTooMuch = 64U << 20;

TEST_F(FastPathTest, ASenderWaitsForAReceiverThatNeverReads) {
  real();
  std::uint16_t port = 9'000;
  for (const std::size_t piece : {1'000U, 16'384U, 65'536U, 1'048'576U}) {
    const std::string to = "10.9.0.2:" + std::to_string(++port);
    const UniqueFd listener = server_->listen(to);
    set_buffers(listener);
    Pair pair{socket_in(*app_), {}};
    set_buffers(pair.client);
    ASSERT_EQ(connect_socket(pair.client.get(), to), 0);
    pair.server = accept_within(listener.get());
    ASSERT_TRUE(has_joined(pair.client.get()));
    const std::size_t taken = taken_unread(pair.client.get(), piece, kFarTooMuch);
    EXPECT_LT(taken, 4U * 2U * kBuffer) << piece;
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_LE(storage_of(pair.client.get()).sent_bytes, 2U * kBuffer) << piece;
    EXPECT_TRUE(receives(pair.server.get(), 0, taken)) << piece;
  }
}

TEST_F(FastPathTest, ANaiveSenderNeverWaits) {
  naive();
  set_buffers(listener_);
  Pair pair = connected();
  EXPECT_EQ(taken_unread(pair.client.get(), 65'536, kFarTooMuch), kFarTooMuch);
}

TEST_F(FastPathTest, GoesOverToTcpInOrderWhenTheReceiverIsFull) {
  real();
  for (const bool own_buffers : {false, true}) {
    const std::string to = own_buffers ? "10.9.0.2:9001" : "10.9.0.2:9002";
    const UniqueFd listener = server_->listen(to);
    if (own_buffers) set_buffers(listener);
    Pair pair = connected(to, listener.get());
    ASSERT_TRUE(has_joined(pair.client.get()));
    constexpr std::size_t kAll = 8U << 20;
    std::thread sender([&] {
      for (std::size_t sent = 0; sent < kAll; sent += 16'384)
        EXPECT_TRUE(send_all(pair.client.get(), sent, 16'384));
    });
    // The reader lets it fill up first.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (storage_of(pair.client.get()).state != UM_FAST_TCP &&
           std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_TRUE(receives(pair.server.get(), 0, kAll));
    sender.join();
    EXPECT_GT(storage_of(pair.client.get()).sent_bytes, 0U);
  }
}

// ---- order ---------------------------------------------------------------------------------

// With TCP_DEFER_ACCEPT the server's socket is not there before the client's first data.
bool keeps_order_with_deferred_accept(const UniqueFd& listener, int client) {
  const int seconds = 20;
  ::setsockopt(listener.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  if (connect_socket(client, "10.9.0.2:8080") != 0 || !send_all(client, 0, 4'000)) return false;
  const UniqueFd server = accept_within(listener.get());
  return server && send_all(client, 4'000, 4'000) && receives(server.get(), 0, 8'000);
}

TEST_F(FastPathTest, KeepsTheOrderOfWhatCameBeforeThePeer) {
  real();
  const UniqueFd client = socket_in(*app_);
  EXPECT_TRUE(keeps_order_with_deferred_accept(listener_, client.get()));
  EXPECT_EQ(storage_of(client.get()).state, UM_FAST_TCP);
  EXPECT_EQ(storage_of(client.get()).sent_bytes, 0U);
}

TEST_F(FastPathTest, ANaiveOneMixesUpTheOrder) {
  naive();
  const UniqueFd client = socket_in(*app_);
  EXPECT_FALSE(keeps_order_with_deferred_accept(listener_, client.get()));
}

TEST_F(FastPathTest, StaysByTcpAfterDataInTheSyn) {
  server_->command("sysctl -qw net.ipv4.tcp_fastopen=3");
  app_->command("sysctl -qw net.ipv4.tcp_fastopen=3");
  const int queue = 16;
  ::setsockopt(listener_.get(), IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof queue);
  real();
  const SocketAddress to = at(kListener);
  const RawAddress raw = raw_address(to, AF_INET);
  for (int round = 0; round < 3; ++round) {  // the first asks for a cookie
    const UniqueFd client = socket_in(*app_);
    ASSERT_EQ(::sendto(client.get(), pattern_at(0), 500, MSG_FASTOPEN, raw.get(), raw.size), 500);
    const UniqueFd server = accept_within(listener_.get());
    ASSERT_TRUE(server);
    ASSERT_TRUE(send_all(client.get(), 500, 1'000));
    EXPECT_TRUE(receives(server.get(), 0, 1'500)) << round;
    EXPECT_EQ(storage_of(client.get()).sent_bytes, 0U) << round;
  }
}

// ---- whose data it is ----------------------------------------------------------------------

// A connection to the proxy from the same address and port, in whatever namespace.
UniqueFd client_of_7777(const NetNs& ns) {
  const RawAddress source = raw_address(at("127.0.0.1:7777"), AF_INET);
  UniqueFd client = ns.run([] { return tcp_socket_for(kProxy4); });
  EXPECT_EQ(::bind(client.get(), source.get(), source.size), 0);
  EXPECT_EQ(connect_socket(client.get(), kProxy4), 0);
  return client;
}

// The same addresses and ports in two namespaces. True: each gets its own. The second one's server
// comes into being with the first data, so that for a while there is only the first one's.
bool are_told_apart(const NetNs& a, int proxy_a, const NetNs& b, int proxy_b) {
  const int seconds = 20;
  ::setsockopt(proxy_b, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  const UniqueFd client_a = client_of_7777(a);
  const UniqueFd server_a = accept_within(proxy_a);
  const UniqueFd client_b = client_of_7777(b);
  if (!send_all(client_b.get(), 1'000, 500)) return false;
  const UniqueFd server_b = accept_within(proxy_b);
  return server_b && receives(server_b.get(), 1'000, 500) && send_all(client_a.get(), 0, 500) &&
         receives(server_a.get(), 0, 500) && send_all(server_b.get(), 2'000, 500) &&
         receives(client_b.get(), 2'000, 500);
}

TEST_F(FastPathTest, TellsEqualTuplesOfTwoNamespacesApart) {
  real();
  EXPECT_TRUE(are_told_apart(*app_, proxy4_.get(), *server_, other_proxy_.get()));
  EXPECT_EQ(count("fastpath_joined"), 4U);
}

TEST_F(FastPathTest, ANaiveOneDeliversToTheOtherNamespace) {
  naive();
  EXPECT_FALSE(are_told_apart(*app_, proxy4_.get(), *server_, other_proxy_.get()));
}

// Nothing is lost of what waits at a socket while its like joins in another namespace.
bool survives_its_like(const NetNs& a, int proxy_a, const NetNs& b, int proxy_b) {
  const UniqueFd client_a = client_of_7777(a);
  const UniqueFd server_a = accept_within(proxy_a);
  if (!send_all(client_a.get(), 0, 100'003)) return false;
  const UniqueFd client_b = client_of_7777(b);
  const UniqueFd server_b = accept_within(proxy_b);
  ::shutdown(client_a.get(), SHUT_WR);
  return server_b && receives(server_a.get(), 0, 100'003);
}

TEST_F(FastPathTest, NeverReplacesALiveEntry) {
  real();
  EXPECT_TRUE(survives_its_like(*app_, proxy4_.get(), *server_, other_proxy_.get()));
}

TEST_F(FastPathTest, ANaiveOneThatReplacesEntriesLosesData) {
  naive();
  EXPECT_FALSE(survives_its_like(*app_, proxy4_.get(), *server_, other_proxy_.get()));
}

// A third namespace has the server's address too, and is nobody's.
TEST_F(FastPathTest, WhoPretendsToAnAddressDoesNotJoin) {
  real();
  const NetNs stranger = NetNs::create();
  const NetNs other_app = NetNs::create();
  join_veth(other_app, "10.9.0.1/24", stranger, "10.9.0.2/24");
  const UniqueFd listener = stranger.listen(kListener);
  const UniqueFd client = socket_in(other_app);
  // (The hooks of the application's cgroup do not know that namespace, and refuse it.)
  Cgroup::move_to(home_, ::getpid());
  const UniqueFd outside = socket_in(other_app);
  app_group_->enter();
  EXPECT_EQ(connect_socket(client.get(), kListener), kRefused);
  ASSERT_EQ(connect_socket(outside.get(), kListener), 0);
  const UniqueFd accepted = accept_within(listener.get());
  ASSERT_TRUE(accepted);
  EXPECT_FALSE(has_joined(accepted.get()));
  ASSERT_TRUE(send_all(accepted.get(), 0, 1'000));
  EXPECT_TRUE(receives(outside.get(), 0, 1'000));
}

TEST_F(FastPathTest, GoesByTcpWhereTheOtherEndIsNot) {
  Cgroup::move_to(home_, ::getpid());
  const UniqueFd stranger = server_->listen("10.9.0.2:9000");  // of no enrolled cgroup
  app_group_->enter();
  real();
  Pair pair = connected("10.9.0.2:9000", stranger.get());
  ASSERT_TRUE(has_joined(pair.client.get()));
  ASSERT_FALSE(has_joined(pair.server.get()));
  ASSERT_TRUE(send_all(pair.client.get(), 0, 5'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 5'000));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_EQ(count("fastpath_to_tcp_no_peer"), 1U);
}

TEST_F(FastPathTest, ANaiveOneRefusesWhatHasNoOtherEnd) {
  Cgroup::move_to(home_, ::getpid());
  const UniqueFd stranger = server_->listen("10.9.0.2:9000");
  app_group_->enter();
  naive(true);
  Pair pair = connected("10.9.0.2:9000", stranger.get());
  EXPECT_FALSE(send_all(pair.client.get(), 0, 5'000));
}

// ---- on and off ----------------------------------------------------------------------------

TEST_F(FastPathTest, SwitchedOffKeepsWhatIsOutstanding) {
  real();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 100'003));
  ASSERT_EQ(storage_of(pair.client.get()).sent_bytes, 100'003U);
  must(datapath_->switch_fast_path(false));
  ASSERT_TRUE(send_all(pair.client.get(), 100'003, 50'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 150'003));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 100'003U);
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir + "/fastpath"));
  const Pair later = connected();
  EXPECT_FALSE(has_joined(later.client.get()));

  must(datapath_->switch_fast_path(true));
  ASSERT_TRUE(send_all(pair.client.get(), 150'003, 1'000));
  EXPECT_TRUE(receives(pair.server.get(), 150'003, 1'000));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  const Pair anew = connected();
  EXPECT_TRUE(has_joined(anew.client.get()));
}

TEST_F(FastPathTest, ANaiveOneThatDeletesEntriesLosesData) {
  naive();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 100'003));
  const int map = ::bpf_map__fd(naive_->maps.sockets);
  std::array<std::uint32_t, 4> key{};
  while (::bpf_map_get_next_key(map, nullptr, &key) == 0) ::bpf_map_delete_elem(map, &key);
  ::shutdown(pair.client.get(), SHUT_WR);
  EXPECT_FALSE(receives(pair.server.get(), 0, 100'003));
}

TEST_F(FastPathTest, EmergencyDetachmentKeepsWhatIsOutstanding) {
  real();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 100'003));
  must(datapath::disable_all(options_.pin_dir));
  ASSERT_TRUE(send_all(pair.client.get(), 100'003, 50'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 150'003));
}

TEST_F(FastPathTest, AnotherMeshdFindsItOnAndSockets) {
  real();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000));
  datapath_.reset();
  ASSERT_TRUE(send_all(pair.client.get(), 1'000, 1'000));
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  real();
  ASSERT_TRUE(send_all(pair.client.get(), 2'000, 1'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 3'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 3'000U);
  const Pair later = connected();
  ASSERT_TRUE(send_all(later.client.get(), 0, 1'000));
  EXPECT_TRUE(receives(later.server.get(), 0, 1'000));
  EXPECT_EQ(storage_of(later.client.get()).sent_bytes, 1'000U);
}

// ---- which ports pay -----------------------------------------------------------------------

TEST_F(FastPathTest, APortsShortConnectionsStayOutFromThenOn) {
  real();
  EXPECT_TRUE(exchange(kMinTrips - 1));  // nothing is known yet
  closed_connections_are_seen(1);
  const auto ports = must(datapath_->fast_path_ports());
  ASSERT_EQ(ports.size(), 1U);
  EXPECT_EQ(ports[0].listener, at(kListener));
  EXPECT_FALSE(ports[0].joins);
  EXPECT_EQ(ports[0].round_trips, kMinTrips - 1);
  EXPECT_FALSE(exchange(1));
}

TEST_F(FastPathTest, APortWithEnoughRoundTripsGoesOnJoining) {
  real();
  for (std::uint32_t seen = 1; seen <= 3; ++seen) {
    EXPECT_TRUE(exchange(kMinTrips));
    closed_connections_are_seen(seen);
  }
  EXPECT_TRUE(exchange(1));
}

TEST_F(FastPathTest, APortWhoseConnectionsGrowLongJoinsAgain) {
  real();
  EXPECT_TRUE(exchange(1));
  closed_connections_are_seen(1);
  std::uint32_t seen = 1;
  bool joined = false;
  for (int round = 0; round < 20 && !joined; ++round) {
    joined = exchange(20);
    closed_connections_are_seen(++seen);
  }
  EXPECT_TRUE(joined);
}

// ---- who does not join ---------------------------------------------------------------------

TEST_F(FastPathTest, ExcludedWorkloadsAndListenersStayByTcp) {
  real();
  state_.slow_listeners = {at(kListener)};
  apply_all();
  const Pair excluded = connected();
  EXPECT_FALSE(has_joined(excluded.client.get()));
  EXPECT_FALSE(has_joined(excluded.server.get()));
  state_.slow_listeners.clear();
  state_.workloads[kServer].fast_path = false;
  apply_all();
  const Pair of_excluded = connected();
  EXPECT_FALSE(has_joined(of_excluded.client.get()));
  state_.workloads[kServer].fast_path = true;
  apply_all();
  const Pair joined = connected();
  EXPECT_TRUE(has_joined(joined.client.get()));
}

TEST_F(FastPathTest, TheWayToTheProxyOfAnExcludedServiceStaysByTcp) {
  state_.slow_listeners = {at("10.78.0.1:9080")};
  proxied("10.78.0.1:9080", 1);
  proxied("10.78.0.2:9080", 2);
  apply_all();
  proxy_lives();
  real();
  const Pair excluded = connected("10.78.0.1:9080", proxy4_.get());
  EXPECT_FALSE(has_joined(excluded.client.get()));
  const Pair joined = connected("10.78.0.2:9080", proxy4_.get());
  EXPECT_TRUE(has_joined(joined.client.get()));
}

TEST_F(FastPathTest, AWorkloadsOwnLoopbackIsLeftAlone) {
  real();
  const UniqueFd own = app_->listen("127.0.0.1:5000");
  const Pair pair = connected("127.0.0.1:5000", own.get());
  EXPECT_FALSE(has_joined(pair.client.get()));
}

TEST_F(FastPathTest, TlsStaysByTcp) {
  real();
  Pair pair = connected();
  const std::array<char, 64> hello = {22, 3, 1, 0, 59};
  ASSERT_EQ(::send(pair.client.get(), hello.data(), hello.size(), 0), 64);
  std::array<char, 64> got{};
  ASSERT_EQ(::recv(pair.server.get(), got.data(), got.size(), MSG_WAITALL), 64);
  EXPECT_EQ(got, hello);
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 0U);
}

// ---- the self-test -------------------------------------------------------------------------

using datapath::FastPathProbe;

TEST_F(FastPathTest, ItsSelfTestPassesAndLeavesNothing) {
  const Cgroup parent = Cgroup::create("parent");
  const std::string group = parent.path() + "/self-test";
  must(datapath::try_fast_path(group));
  EXPECT_FALSE(std::filesystem::exists(group));
  EXPECT_EQ(count("fastpath_joined"), 0U);  // it has counters of its own
}

TEST_F(FastPathTest, ASelfTestThatHangsHangsNobody) {
  const Cgroup frozen = Cgroup::create("frozen");
  std::ofstream(frozen.path() + "/cgroup.freeze") << 1;
  const std::string group = frozen.path() + "/self-test";
  const auto now = FastPathProbe::Clock::now();
  auto probe = must(FastPathProbe::start(group, now));
  EXPECT_FALSE(probe.outcome(now + std::chrono::seconds(1)));
  const auto outcome = probe.outcome(now + FastPathProbe::kPatience);
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->error().code, Errc::timed_out);
}

TEST_F(FastPathTest, ASelfTestThatIsKilledIsNotPassed) {
  const Cgroup parent = Cgroup::create("parent");
  const std::string group = parent.path() + "/self-test";
  auto probe = must(FastPathProbe::start(group, FastPathProbe::Clock::now()));
  std::ofstream(group + "/cgroup.kill") << 1;
  pollfd ended{probe.pidfd(), POLLIN, 0};
  ASSERT_EQ(::poll(&ended, 1, 20'000), 1);
  const auto outcome = probe.outcome(FastPathProbe::Clock::now());
  ASSERT_TRUE(outcome);
  EXPECT_EQ(outcome->error().code, Errc::unavailable);
}

}  // namespace
}  // namespace mesh::test
