// The same-node fast path: what it moves, back-pressure, order, and its self-test; and that a naive
// program falls into each hazard.
#include <gmock/gmock.h>

#include <algorithm>
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
