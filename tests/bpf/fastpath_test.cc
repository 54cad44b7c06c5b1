// The same-node fast path: each hazard of redirecting between sockets, and that a naive program
// falls into it.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>

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
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  ASSERT_TRUE(receives(pair.server.get(), 0, 50'003));
  ASSERT_TRUE(send_all(pair.server.get(), 7, 1'000));
  ASSERT_TRUE(receives(pair.client.get(), 7, 1'000));
  const um_fast_socket client = storage_of(pair.client.get());
  const um_fast_socket server = storage_of(pair.server.get());
  EXPECT_EQ(client.state, UM_FAST_REDIRECT);
  EXPECT_EQ(server.state, UM_FAST_REDIRECT);
  EXPECT_EQ(client.sent_bytes, 50'003U);
  EXPECT_EQ(client.received_bytes, 1'000U);
  EXPECT_EQ(server.sent_bytes, 1'000U);
  EXPECT_EQ(server.received_bytes, 50'003U);
}

TEST_F(FastPathTest, ServesIpv6) {
  real();
  UniqueFd listener = server_->listen("[fd09::2]:8080");
  Pair pair = joined("[fd09::2]:8080", listener.get());
  ASSERT_TRUE(send_all(pair.client.get(), 0, 5'000));
  ASSERT_TRUE(receives(pair.server.get(), 0, 5'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 5'000U);
}

// The other leg of a proxied connection: a socket of the mesh's own, from the client's namespace.
TEST_F(FastPathTest, TheProxysWayToTheServerJoins) {
  real();
  mesh_group_->enter();
  Pair pair{socket_in(*app_), {}};
  app_group_->enter();
  ASSERT_TRUE(is_of_the_mesh(pair.client.get()));
  ASSERT_EQ(connect_socket(pair.client.get(), kListener), 0);
  pair.server = accept_within(listener_.get());
  ASSERT_TRUE(pair.server);
  ASSERT_FALSE(is_of_the_mesh(pair.server.get())) << "the server's";
  ASSERT_TRUE(settle(pair));
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003) && receives(pair.server.get(), 0, 50'003));
  ASSERT_TRUE(send_all(pair.server.get(), 7, 1'000) && receives(pair.client.get(), 7, 1'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 50'003U);
  EXPECT_EQ(storage_of(pair.server.get()).sent_bytes, 1'000U);
}

// In the records of what is open and of what was closed, at both ends.
TEST_F(FastPathTest, BytesPastTcpAreInTheRecordsOfConnections) {
  const auto is_counted = [this](const datapath::Flow& flow) {
    const std::uint64_t asked = greeted_ + 50'003, answered = greeted_ + 77;
    return flow.is_inbound ? flow.sent == answered && flow.received == asked
                           : flow.sent == asked && flow.received == answered;
  };
  real();
  must(datapath_->take_flows());
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  ASSERT_TRUE(receives(pair.server.get(), 0, 50'003));
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
    ASSERT_TRUE(settle(pair));
    const std::size_t taken = taken_unread(pair.client.get(), piece, kFarTooMuch);
    EXPECT_LT(taken, 4U * 2U * kBuffer) << piece;
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_LE(storage_of(pair.client.get()).sent_bytes, 2U * kBuffer) << piece;
    EXPECT_TRUE(receives(pair.server.get(), 0, taken)) << piece;
  }
}

// The kernel takes 712 bytes more for each, and charges them to nobody.
TEST_F(FastPathTest, FewSmallMessagesWaitAtAReceiver) {
  real();
  set_buffers(listener_);
  const Pair pair = joined();
  for (int message = 0; message < 4 * kBuffer / 1024; ++message)
    ASSERT_EQ(::send(pair.client.get(), pattern_at(0), 1, MSG_NOSIGNAL), 1);
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_GT(storage_of(pair.client.get()).sent_bytes, 8U);
  EXPECT_LE(storage_of(pair.client.get()).sent_bytes, kBuffer / 1024U);
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
    Pair pair = joined(to, listener.get());
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

// What it has not read yet waits in another queue than what comes from then on. And what went by
// TCP until both had joined is read before anything goes past it.
TEST_F(FastPathTest, WaitsUntilTheReaderHasTakenWhatCameByTcp) {
  constexpr std::size_t kSize = 4'000;
  std::uint64_t sent = 0, got = 0;
  real();
  const Pair pair = connected();
  const auto send_more = [&] {
    ASSERT_TRUE(send_all(pair.client.get(), sent, kSize));
    sent += kSize;
  };
  const auto read_all = [&] {
    ASSERT_TRUE(receives(pair.server.get(), got, sent - got));
    got = sent;
  };
  const auto state = [&] { return storage_of(pair.client.get()).state; };
  do_not_block(pair);
  for (int trip = 0; trip < kMostTrips; ++trip) ASSERT_TRUE(exchange(pair));
  send_more();
  must(datapath_->let_settled_join(state_));
  EXPECT_TRUE(has_joined(pair.client.get()));
  EXPECT_FALSE(has_joined(pair.server.get()));
  send_more();  // its 1st and its 2nd: there is nobody
  send_more();
  read_all();
  must(datapath_->let_settled_join(state_));  // it has asked again
  EXPECT_TRUE(has_joined(pair.server.get()));
  send_more();  // the 3rd does not look
  send_more();  // the 4th does
  EXPECT_EQ(state(), UM_FAST_UNDECIDED);
  read_all();
  for (int message = 5; message <= 7; ++message) send_more();
  EXPECT_EQ(state(), UM_FAST_UNDECIDED);
  read_all();
  send_more();
  EXPECT_EQ(state(), UM_FAST_REDIRECT);
  read_all();
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, kSize);
}

// With TCP_DEFER_ACCEPT the server's socket is not there before the client's first data. `join`: of
// an end that has sent something.
bool keeps_order_with_deferred_accept(const UniqueFd& listener, int client,
                                      const std::function<void(int)>& join) {
  const int seconds = 20;
  ::setsockopt(listener.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  if (connect_socket(client, "10.9.0.2:8080") != 0 || !send_all(client, 0, 4'000)) return false;
  join(client);
  const UniqueFd server = accept_within(listener.get());
  if (!server || !send_all(server.get(), 0, 1) || !receives(client, 0, 1)) return false;
  join(server.get());
  return send_all(client, 4'000, 4'000) && send_all(client, 8'000, 4'000) &&
         receives(server.get(), 0, 12'000);
}

TEST_F(FastPathTest, KeepsTheOrderOfWhatCameBeforeThePeer) {
  real();
  asks_at_once();
  const UniqueFd client = socket_in(*app_);
  const auto join = [&](int end) {
    ::fcntl(end, F_SETFL, O_NONBLOCK);
    for (int patience = 0; patience < 2'000 && storage_of(end).state == kNeverAsked; ++patience)
      ::usleep(10'000);  // until it is acknowledged
    must(datapath_->let_settled_join(state_));
    EXPECT_EQ(has_joined(end), end == client.get()) << "the server has not read all";
  };
  EXPECT_TRUE(keeps_order_with_deferred_accept(listener_, client.get(), join));
}

TEST_F(FastPathTest, ANaiveOneMixesUpTheOrder) {
  naive();
  const UniqueFd client = socket_in(*app_);
  EXPECT_FALSE(keeps_order_with_deferred_accept(listener_, client.get(), [](int) {}));
}

TEST_F(FastPathTest, KeepsTheOrderAfterDataInTheSyn) {
  server_->command("sysctl -qw net.ipv4.tcp_fastopen=3");
  app_->command("sysctl -qw net.ipv4.tcp_fastopen=3");
  const int queue = 16;
  ::setsockopt(listener_.get(), IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof queue);
  real();
  const SocketAddress to = at(kListener);
  const RawAddress raw = raw_address(to, AF_INET);
  for (int round = 0; round < 3; ++round) {  // the first asks for a cookie
    Pair pair{socket_in(*app_), {}};
    ASSERT_EQ(::sendto(pair.client.get(), pattern_at(0), 500, MSG_FASTOPEN, raw.get(), raw.size),
              500);
    pair.server = accept_within(listener_.get());
    ASSERT_TRUE(pair.server);
    ASSERT_TRUE(send_all(pair.client.get(), 500, 1'000));
    EXPECT_TRUE(receives(pair.server.get(), 0, 1'500)) << round;
    EXPECT_TRUE(settle(pair)) << round;
    ASSERT_TRUE(send_all(pair.client.get(), 3'000, 1'000));
    EXPECT_TRUE(receives(pair.server.get(), 3'000, 1'000)) << round;
  }
}

void disconnect(const UniqueFd& socket) {
  sockaddr unspecified{};
  unspecified.sa_family = AF_UNSPEC;
  ASSERT_EQ(::connect(socket.get(), &unspecified, sizeof unspecified), 0) << std::strerror(errno);
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

using Join = std::function<bool(const Pair&)>;
bool as_it_is(const Pair&) { return true; }

// The same addresses and ports in two namespaces. True: each gets its own. The second one's server
// comes into being with the first data, so that for a while there is only the first one's.
bool are_told_apart(const NetNs& a, int proxy_a, const NetNs& b, int proxy_b, const Join& join) {
  const int seconds = 20;
  ::setsockopt(proxy_b, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  Pair in_a{client_of_7777(a), {}}, in_b;
  in_a.server = accept_within(proxy_a);
  if (!join(in_a)) return false;
  in_b.client = client_of_7777(b);
  if (!send_all(in_b.client.get(), 1'000, 500)) return false;
  in_b.server = accept_within(proxy_b);
  if (!in_b.server || !receives(in_b.server.get(), 1'000, 500) || !join(in_b)) return false;
  return send_all(in_a.client.get(), 0, 500) && receives(in_a.server.get(), 0, 500) &&
         send_all(in_b.server.get(), 2'000, 500) && receives(in_b.client.get(), 2'000, 500);
}

TEST_F(FastPathTest, TellsEqualTuplesOfTwoNamespacesApart) {
  real();
  EXPECT_TRUE(are_told_apart(*app_, proxy4_.get(), *server_, other_proxy_.get(),
                             [this](const Pair& pair) { return settle(pair); }));
  EXPECT_EQ(count("fastpath_joined"), 4U);
  EXPECT_EQ(count("fastpath_redirected"), 2U);
}

TEST_F(FastPathTest, ANaiveOneDeliversToTheOtherNamespace) {
  naive();
  EXPECT_FALSE(are_told_apart(*app_, proxy4_.get(), *server_, other_proxy_.get(), as_it_is));
}

// Nothing is lost of what waits at a socket while its like joins in another namespace.
bool survives_its_like(const NetNs& a, int proxy_a, const NetNs& b, int proxy_b, const Join& join) {
  Pair in_a{client_of_7777(a), {}};
  in_a.server = accept_within(proxy_a);
  if (!join(in_a) || !send_all(in_a.client.get(), 0, 50'003)) return false;
  Pair in_b{client_of_7777(b), {}};
  in_b.server = accept_within(proxy_b);
  if (!in_b.server || !join(in_b)) return false;
  ::shutdown(in_a.client.get(), SHUT_WR);
  return receives(in_a.server.get(), 0, 50'003);
}

TEST_F(FastPathTest, WhatWaitsSurvivesItsLikeInAnotherNamespace) {
  real();
  EXPECT_TRUE(survives_its_like(*app_, proxy4_.get(), *server_, other_proxy_.get(),
                                [this](const Pair& pair) { return settle(pair); }));
}

TEST_F(FastPathTest, ANaiveOneThatReplacesEntriesLosesData) {
  naive();
  EXPECT_FALSE(survives_its_like(*app_, proxy4_.get(), *server_, other_proxy_.get(), as_it_is));
}

// The next connection of the same addresses and ports, while the former one's sockets are open.
TEST_F(FastPathTest, NeverReplacesALiveEntry) {
  real();
  const Pair old = joined();
  ASSERT_TRUE(send_all(old.client.get(), 0, 50'003));
  ASSERT_EQ(storage_of(old.client.get()).sent_bytes, 50'003U);
  sockaddr_in source{};
  socklen_t size = sizeof source;
  ASSERT_EQ(::getsockname(old.client.get(), reinterpret_cast<sockaddr*>(&source), &size), 0);
  disconnect(old.client);
  Pair next{socket_in(*app_), {}};
  ASSERT_EQ(::bind(next.client.get(), reinterpret_cast<sockaddr*>(&source), size), 0)
      << std::strerror(errno);
  ASSERT_EQ(connect_socket(next.client.get(), kListener), 0);
  next.server = accept_within(listener_.get());
  ASSERT_TRUE(next.server);
  do_not_block(next);
  live(next);
  EXPECT_EQ(storage_of(next.client.get()).state, UM_FAST_STAYS);
  EXPECT_EQ(storage_of(next.server.get()).state, UM_FAST_STAYS);
  EXPECT_TRUE(receives(old.server.get(), 0, 50'003));
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
  Pair pair{socket_in(other_app), {}};
  app_group_->enter();
  EXPECT_EQ(connect_socket(client.get(), kListener), kRefused);
  ASSERT_EQ(connect_socket(pair.client.get(), kListener), 0);
  pair.server = accept_within(listener.get());
  ASSERT_TRUE(pair.server);
  do_not_block(pair);
  live(pair);
  EXPECT_FALSE(has_joined(pair.server.get()));
}

TEST_F(FastPathTest, GoesByTcpWhereTheOtherEndIsNot) {
  Cgroup::move_to(home_, ::getpid());
  const UniqueFd stranger = server_->listen("10.9.0.2:9000");  // of no enrolled cgroup
  app_group_->enter();
  real();
  Pair pair = connected("10.9.0.2:9000", stranger.get());
  do_not_block(pair);
  live(pair);
  ASSERT_TRUE(has_joined(pair.client.get()));
  ASSERT_FALSE(has_joined(pair.server.get()));
  ASSERT_TRUE(send_all(pair.client.get(), 0, 5'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 5'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 0U);
}

TEST_F(FastPathTest, ANaiveOneRefusesWhatHasNoOtherEnd) {
  Cgroup::move_to(home_, ::getpid());
  const UniqueFd stranger = server_->listen("10.9.0.2:9000");
  app_group_->enter();
  naive(true);
  Pair pair = connected("10.9.0.2:9000", stranger.get());
  EXPECT_FALSE(send_all(pair.client.get(), 0, 5'000));
}

// ---- whose connection it was ---------------------------------------------------------------

TEST_F(FastPathTest, AnEndedConnectionMovesNothing) {
  real();
  const Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000) && receives(pair.server.get(), 0, 1'000));
  ASSERT_TRUE(send_all(pair.server.get(), 0, 1'000) && receives(pair.client.get(), 0, 1'000));
  app_->command("ss -K dst 10.9.0.2 dport = 8080 >/dev/null 2>&1");
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(pair.client.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  ASSERT_EQ(error, ECONNABORTED);
  EXPECT_EQ(::send(pair.client.get(), pattern_at(0), 100, MSG_NOSIGNAL), -1);
  ::send(pair.server.get(), pattern_at(0), 100, MSG_NOSIGNAL);
  char byte = 0;
  EXPECT_LE(::recv(pair.client.get(), &byte, 1, MSG_DONTWAIT), 0);
  EXPECT_LE(::recv(pair.server.get(), &byte, 1, MSG_DONTWAIT), 0);
}

TEST_F(FastPathTest, SendsNothingAfterItsEnd) {
  real();
  const Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000) && receives(pair.server.get(), 0, 1'000));
  ::shutdown(pair.client.get(), SHUT_WR);
  EXPECT_EQ(::send(pair.client.get(), pattern_at(0), 100, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
  EXPECT_TRUE(send_all(pair.server.get(), 0, 1'000) && receives(pair.client.get(), 0, 1'000));
}

// What it has not read would be read of its next connection; the kernel keeps it until the close.
TEST_F(FastPathTest, ASocketThatHasJoinedConnectsToNobodyElse) {
  real();
  const UniqueFd other = server_->listen("10.9.0.2:8090");
  int refused = 0;
  for (const bool is_off : {false, true}) {
    const Pair old = joined();
    ASSERT_TRUE(send_all(old.server.get(), 0, 1'000));
    ASSERT_EQ(storage_of(old.server.get()).sent_bytes, 1'000U);
    if (is_off) must(datapath_->switch_fast_path(false));
    disconnect(old.client);
    EXPECT_EQ(connect_socket(old.client.get(), "10.9.0.2:8090"), EPERM);
    EXPECT_EQ(count("connects_refused_fast_path"), static_cast<std::uint64_t>(++refused));
    pollfd waiting{other.get(), POLLIN, 0};
    EXPECT_EQ(::poll(&waiting, 1, 0), 0);
    ::send(old.server.get(), pattern_at(0), 100, MSG_NOSIGNAL);
  }
}

// One that had asked to join asks for its next connection, not for the one that it had.
TEST_F(FastPathTest, ASocketThatConnectsAnewBeforeItJoinedIsAnother) {
  real();
  Pair pair = connected();
  do_not_block(pair);
  for (int trip = 0; trip < kMostTrips; ++trip) ASSERT_TRUE(exchange(pair));
  ASSERT_EQ(storage_of(pair.client.get()).state, UM_FAST_SETTLED);
  disconnect(pair.client);
  ::fcntl(pair.client.get(), F_SETFL, 0);
  const UniqueFd other = server_->listen("10.9.0.2:8090");
  ASSERT_EQ(connect_socket(pair.client.get(), "10.9.0.2:8090"), 0);
  pair.server = accept_within(other.get());
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  must(datapath_->let_settled_join(state_));
  EXPECT_FALSE(has_joined(pair.client.get()));
  ASSERT_TRUE(settle(pair));
  EXPECT_EQ(storage_of(pair.client.get()).peer.remote_port,
            storage_of(pair.server.get()).peer.local_port);
  ASSERT_TRUE(send_all(pair.client.get(), 5'000, 1'000) &&
              receives(pair.server.get(), 5'000, 1'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 1'000U);
  EXPECT_EQ(storage_of(pair.server.get()).received_bytes, 1'000U);
}

// The kernel keeps a socket's callbacks from one connection to the next.
TEST_F(FastPathTest, ASocketThatConnectsAnewToWhereNobodyJoinsDoesNot) {
  real();
  Pair pair = connected();
  ASSERT_TRUE(exchange(pair));
  disconnect(pair.client);
  const UniqueFd own = app_->listen("127.0.0.1:5000");
  ASSERT_EQ(connect_socket(pair.client.get(), "127.0.0.1:5000"), 0);
  pair.server = accept_within(own.get());
  ASSERT_TRUE(pair.server);
  do_not_block(pair);
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
}

// ---- on and off ----------------------------------------------------------------------------

TEST_F(FastPathTest, SwitchedOffKeepsWhatIsOutstanding) {
  real();
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  ASSERT_EQ(storage_of(pair.client.get()).sent_bytes, 50'003U);
  must(datapath_->switch_fast_path(false));
  ASSERT_TRUE(send_all(pair.client.get(), 50'003, 50'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 100'003));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 50'003U);
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir + "/fastpath"));
  const Pair later = connected();
  do_not_block(later);
  live(later);
  EXPECT_FALSE(has_joined(later.client.get()));

  must(datapath_->switch_fast_path(true));
  ASSERT_TRUE(send_all(pair.client.get(), 100'003, 1'000));
  EXPECT_TRUE(receives(pair.server.get(), 100'003, 1'000));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  joined();
}

TEST_F(FastPathTest, ANaiveOneThatDeletesEntriesLosesData) {
  naive();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  const int map = ::bpf_map__fd(naive_->maps.sockets);
  std::array<std::uint32_t, 4> key{};
  while (::bpf_map_get_next_key(map, nullptr, &key) == 0) ::bpf_map_delete_elem(map, &key);
  ::shutdown(pair.client.get(), SHUT_WR);
  EXPECT_FALSE(receives(pair.server.get(), 0, 50'003));
}

TEST_F(FastPathTest, EmergencyDetachmentKeepsWhatIsOutstanding) {
  real();
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  must(datapath::disable_all(options_.pin_dir));
  ASSERT_TRUE(send_all(pair.client.get(), 50'003, 50'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 100'003));
}

TEST_F(FastPathTest, AnotherMeshdFindsItOnAndSockets) {
  real();
  Pair pair = joined();
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
  const Pair later = joined();
  ASSERT_TRUE(send_all(later.client.get(), 0, 1'000));
  EXPECT_TRUE(receives(later.server.get(), 0, 1'000));
  EXPECT_EQ(storage_of(later.client.get()).sent_bytes, 1'000U);
}

// As an upgrade to other shapes leaves them, and takes them away.
TEST_F(FastPathTest, SocketsOfAnotherLayoutGoByTcpOnceItIsOffOrGone) {
  for (const bool is_upgrade : {false, true}) {
    real();
    const Pair pair = joined();
    ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000));
    ASSERT_EQ(storage_of(pair.client.get()).sent_bytes, 1'000U);
    datapath_.reset();
    const std::string fast = options_.pin_dir + "/fastpath/maps_78";
    ASSERT_EQ(::rename(maps_of_fast_path().c_str(), fast.c_str()), 0);
    const std::string layout = options_.pin_dir + "/maps_";
    ASSERT_EQ(::rename((layout + std::to_string(UM_LAYOUT)).c_str(), (layout + "78").c_str()), 0);
    write_meta(78);
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    apply_all();
    must(datapath_->switch_fast_path(is_upgrade));
    ASSERT_TRUE(send_all(pair.client.get(), 1'000, 1'000));
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_TRUE(receives(pair.server.get(), 0, 2'000));
    disconnect(pair.client);
    EXPECT_EQ(connect_socket(pair.client.get(), kListener), EPERM) << "it has joined all the same";
  }
}

// ---- which connections join ----------------------------------------------------------------

TEST_F(FastPathTest, ShortConnectionsStayOut) {
  real();
  const Pair pair = connected();
  do_not_block(pair);
  for (int trip = 0; trip < 7; ++trip) {
    ASSERT_TRUE(exchange(pair));
    must(datapath_->let_settled_join(state_));
  }
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  EXPECT_TRUE(settle(pair));
}

// As meshd does while nobody has told it of the namespace.
TEST_F(FastPathTest, WhoAskedIsNotForgottenWhereNobodyCanLook) {
  real();
  const Pair pair = connected();
  do_not_block(pair);
  for (int trip = 0; trip < kMostTrips; ++trip) ASSERT_TRUE(exchange(pair));
  auto unknown = state_;
  for (auto& [id, workload] : unknown.workloads) workload.netns = -1;
  must(datapath_->let_settled_join(unknown));
  EXPECT_FALSE(has_joined(pair.client.get()));
  const UniqueFd no_namespace(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (auto& [id, workload] : unknown.workloads) workload.netns = no_namespace.get();
  EXPECT_FALSE(datapath_->let_settled_join(unknown));
  must(datapath_->let_settled_join(state_));
  EXPECT_TRUE(has_joined(pair.client.get()));
  EXPECT_TRUE(has_joined(pair.server.get()));
}

// The kernel's reader of a joined socket may say EAGAIN to who blocks.
TEST_F(FastPathTest, WhoBlocksStaysOut) {
  real();
  for (const bool is_server : {false, true}) {
    const Pair pair = connected();
    do_not_block(pair);
    const int blocks = (is_server ? pair.server : pair.client).get();
    ::fcntl(blocks, F_SETFL, 0);
    live(pair);
    EXPECT_EQ(storage_of(blocks).state, UM_FAST_STAYS);
    ::fcntl(blocks, F_SETFL, O_NONBLOCK);
    live(pair);
    EXPECT_EQ(storage_of(blocks).state, UM_FAST_STAYS);
    EXPECT_EQ(storage_of((is_server ? pair.client : pair.server).get()).sent_bytes, 0U);
  }
}

// ---- who does not join ---------------------------------------------------------------------

TEST_F(FastPathTest, ExcludedWorkloadsAndListenersStayByTcp) {
  const auto stays_out = [this] {
    const Pair pair = connected();
    do_not_block(pair);
    live(pair);
    return !has_joined(pair.client.get()) && !has_joined(pair.server.get());
  };
  real();
  state_.slow_listeners = {at(kListener)};
  apply_all();
  EXPECT_TRUE(stays_out());
  state_.slow_listeners.clear();
  state_.workloads[kServer].fast_path = false;
  apply_all();
  EXPECT_TRUE(stays_out());
  state_.workloads[kServer].fast_path = true;
  apply_all();
  joined();
}

// Who joins is judged as a connection asks, not only as it is made.
TEST_F(FastPathTest, AnExclusionHoldsForConnectionsThatHaveNotAskedYet) {
  real();
  const Pair pair = connected(), other = connected();
  for (const Pair* early : {&pair, &other}) {
    do_not_block(*early);
    ASSERT_TRUE(exchange(*early));
  }
  state_.slow_listeners = {at(kListener)};
  apply_all();
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  EXPECT_EQ(storage_of(pair.server.get()).state, kNeverAsked);
  state_.slow_listeners.clear();
  apply_all();
  EXPECT_TRUE(settle(other));
}

// Its hooks go on meanwhile.
TEST_F(FastPathTest, ARestartForgetsNobodyWhoStaysOut) {
  state_.slow_listeners = {at(kListener)};
  apply_all();
  real();
  const UniqueFd map(::bpf_obj_get((maps_of_fast_path() + "/um_fast_config").c_str()));
  ASSERT_TRUE(map);
  std::atomic<bool> is_over = false;
  std::atomic<int> looks = 0, forgotten = 0;
  std::thread watcher([&] {
    const std::uint32_t zero = 0;
    um_fast_config config{};
    for (; !is_over; ++looks)
      if (::bpf_map_lookup_elem(map.get(), &zero, &config) != 0 ||
          config.flags != (UM_FAST_ON | UM_FAST_HAS_EXCLUDED))
        ++forgotten;
  });
  for (const bool is_told_first : {true, false}) {
    datapath_.reset();
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    if (is_told_first) apply_all();
    real();
    apply_all();
    for (int again = 0; again < 300; ++again) real();  // as a start does it
  }
  is_over = true;
  watcher.join();
  EXPECT_GT(looks, 0);
  EXPECT_EQ(forgotten, 0);
  const Pair pair = connected();
  do_not_block(pair);
  live(pair);
  EXPECT_FALSE(has_joined(pair.client.get()));
}

TEST_F(FastPathTest, IsOffWhereWhoStaysOutDoesNotFit) {
  real();
  for (int i = 0; i <= 65'536; ++i)
    state_.slow_listeners.insert(
        {ip(i % 2 == 0 ? "10.9.0.2" : "10.9.0.3"), static_cast<std::uint16_t>(i / 2)});
  apply_all();
  EXPECT_THAT(datapath_->why_fast_path_stopped(), testing::HasSubstr("um_fast_excluded"));
  EXPECT_EQ(config_now().flags & UM_FAST_ON, 0U);
  const Pair pair = connected();
  do_not_block(pair);
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  must(datapath_->switch_fast_path(false));  // as meshd does then
  state_.slow_listeners.clear();
  apply_all();
  real();
  EXPECT_EQ(datapath_->why_fast_path_stopped(), "");
  joined();
}

TEST_F(FastPathTest, WhoFindsNoRoomGoesOnByTcp) {
  real();
  const Pair full = connected();
  const UniqueFd peers(::bpf_obj_get((maps_of_fast_path() + "/um_fast_peers").c_str()));
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  ASSERT_EQ(::bpf_obj_get_info_by_fd(peers.get(), &info, &size), 0);
  // One socket by as many names as there is room for: the kernel takes it twice where no program
  // is.
  std::uint32_t program = 0, programs = 1, flags = 0;
  ASSERT_EQ(::bpf_prog_query(peers.get(), BPF_SK_MSG_VERDICT, 0, &flags, &program, &programs), 0);
  const UniqueFd verdict(::bpf_prog_get_fd_by_id(program));
  ASSERT_EQ(::bpf_prog_detach2(verdict.get(), peers.get(), BPF_SK_MSG_VERDICT), 0);
  const auto socket = static_cast<std::uint64_t>(full.client.get());
  um_fast_key key{};
  for (std::uint32_t i = 0; i < info.max_entries; ++i) {
    key.netns_cookie = ~std::uint64_t{i};
    ASSERT_EQ(::bpf_map_update_elem(peers.get(), &key, &socket, BPF_ANY), 0) << errno;
  }
  ASSERT_EQ(::bpf_prog_attach(verdict.get(), peers.get(), BPF_SK_MSG_VERDICT, 0), 0);
  const Pair pair = connected();
  do_not_block(pair);
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_STAYS);
  EXPECT_EQ(storage_of(pair.server.get()).state, UM_FAST_STAYS);
  EXPECT_EQ(count("fastpath_joined"), 0);
  EXPECT_EQ(count("fastpath_not_joined"), 2);
  std::thread sender([&] { EXPECT_TRUE(send_all(pair.client.get(), 0, 8U << 20)); });
  EXPECT_TRUE(receives(pair.server.get(), 0, 8U << 20));
  sender.join();
  EXPECT_EQ(count("fastpath_redirected"), 0);
  for (std::uint32_t i = 0; i < info.max_entries; ++i) {  // the kernel takes seconds for so many
    key.netns_cookie = ~std::uint64_t{i};
    ASSERT_EQ(::bpf_map_delete_elem(peers.get(), &key), 0);
  }
  joined();
}

TEST_F(FastPathTest, TheWayToTheProxyOfAnExcludedServiceStaysByTcp) {
  state_.slow_listeners = {at("10.78.0.1:9080")};
  proxied("10.78.0.1:9080", 1);
  proxied("10.78.0.2:9080", 2);
  apply_all();
  proxy_lives();
  real();
  const Pair excluded = connected("10.78.0.1:9080", proxy4_.get());
  do_not_block(excluded);
  live(excluded);
  EXPECT_FALSE(has_joined(excluded.client.get()));
  joined("10.78.0.2:9080", proxy4_.get());
}

TEST_F(FastPathTest, AWorkloadsOwnLoopbackIsLeftAlone) {
  real();
  const UniqueFd own = app_->listen("127.0.0.1:5000");
  const Pair pair = connected("127.0.0.1:5000", own.get());
  do_not_block(pair);
  live(pair);
  EXPECT_FALSE(has_joined(pair.client.get()));
}

TEST_F(FastPathTest, TlsStaysByTcp) {
  real();
  for (const char kind : {char{22}, char{23}}) {  // a handshake; data of one that was before
    const Pair pair = joined();
    const std::array<char, 64> record = {kind, 3, 1, 0, 59};
    ASSERT_EQ(::send(pair.client.get(), record.data(), record.size(), 0), 64);
    std::array<char, 64> got{};
    pollfd waiting{pair.server.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&waiting, 1, 20'000), 1);
    ASSERT_EQ(::recv(pair.server.get(), got.data(), got.size(), 0), 64);
    EXPECT_EQ(got, record);
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 0U);
  }
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
