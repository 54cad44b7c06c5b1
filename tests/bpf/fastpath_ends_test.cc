// The same-node fast path: whose data it is and whose connection it was; and that a naive program
// mixes them up.
#include <gmock/gmock.h>

#include <cerrno>
#include <functional>

#include "tests/support/fastpath_fixture.h"

namespace mesh::test {
namespace {

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

}  // namespace
}  // namespace mesh::test
