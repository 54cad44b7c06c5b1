#include "net/reactor.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <thread>
#include <vector>

#include "tests/support/fake_stream.h"

using namespace std::chrono_literals;
namespace net = mesh::net;
using mesh::Errc;
using mesh::Result;

namespace {

class ReactorTest : public testing::Test {
 protected:
  net::Reactor reactor;
  net::Scope scope{reactor};
  net::Group group{reactor};

  // Turns the reactor until the group is empty; fails the test after a generous time.
  void finish() {
    const auto give_up = net::Clock::now() + 10s;
    while (group.size() > 0 && net::Clock::now() < give_up) reactor.run_once(100ms);
    ASSERT_EQ(group.size(), 0u);
  }
};

net::Task<int> add(int a, int b) { co_return a + b; }
net::Task<int> sum(int n) {
  int total = 0;
  for (int i = 0; i < n; ++i) total = co_await add(total, 1);
  co_return total;
}
net::Task<> store(net::Task<int> task, int* into) { *into = co_await std::move(task); }
net::Task<> nap(net::Scope& scope, net::Clock::duration time, Result<>* result) {
  *result = co_await net::sleep_for(scope, time);
}
net::Task<> wait_in_line(net::WaitQueue& queue, net::Scope& scope, int id, std::vector<int>* log) {
  auto result = co_await queue.wait(scope);
  log->push_back(result ? id : -id);
}
net::Task<> wait_for(net::Group& inner, bool* done) {
  co_await inner.wait();
  *done = true;
}

}  // namespace

TEST_F(ReactorTest, TasksTransferWithoutGrowingTheStack) {
  int result = 0;
  group.spawn(store(sum(1'000'000), &result));
  EXPECT_EQ(result, 1'000'000);
}

TEST_F(ReactorTest, SleepEndsAfterItsTime) {
  Result<> result = mesh::Error{};
  const auto before = net::Clock::now();
  group.spawn(nap(scope, 20ms, &result));
  finish();
  EXPECT_TRUE(result);
  EXPECT_GE(net::Clock::now() - before, 20ms);
}

net::Task<> read_one(net::Stream& stream, net::Scope& scope, net::IdleClock& idle, Result<>* into) {
  char byte = 0;
  auto read = co_await stream.read_some({&byte, 1}, scope, idle);
  *into = read ? Result<>(mesh::success()) : Result<>(read.error());
}

TEST_F(ReactorTest, WhatMovesGivesAllThatShareAnIdleClockMoreTime) {
  auto [near, far] = mesh::test::FakeStream::make_pair(reactor);
  net::IdleClock idle(20ms, reactor.now());
  Result<> read = mesh::success(), slept = mesh::Error{};
  group.spawn(read_one(*near, scope, idle, &read));
  idle.moved(reactor.now() + 1h);
  net::Group sleepers(reactor);
  sleepers.spawn(nap(scope, 60ms, &slept));
  while (sleepers.size() > 0) reactor.run_once(100ms);
  EXPECT_EQ(group.size(), 1u);  // still waits
  net::IdleClock quiet(20ms, reactor.now());
  Result<> other = mesh::success();
  group.spawn(read_one(*far, scope, quiet, &other));
  while (group.size() > 1) reactor.run_once(100ms);
  EXPECT_EQ(other.error().code, Errc::timed_out);
  scope.cancel();
  finish();
}

net::Task<> yield_until(net::Scope& scope, bool* seen, int* yields) {
  while (!*seen && *yields < 100'000) {
    if (++*yields == 2) scope.reactor().post([seen] { *seen = true; });
    (void)co_await net::yield(scope);
  }
}

TEST_F(ReactorTest, AYieldLetsEventsComeFirst) {
  bool seen = false;
  int yields = 0;
  group.spawn(yield_until(scope, &seen, &yields));
  finish();
  EXPECT_LE(yields, 4);
}

TEST_F(ReactorTest, CancellingAScopeReachesEverythingBelow) {
  Result<> a = mesh::success(), b = mesh::success();
  net::Scope child(scope);
  net::Scope grandchild(child);
  group.spawn(nap(child, 1h, &a));
  group.spawn(nap(grandchild, 1h, &b));
  scope.cancel(Errc::reset);
  EXPECT_EQ(group.size(), 2u);  // resumed by the reactor, not by cancel()
  finish();
  EXPECT_EQ(a.error().code, Errc::reset);
  EXPECT_EQ(b.error().code, Errc::reset);
}

TEST_F(ReactorTest, ADeadlineAboveIsInherited) {
  Result<> result = mesh::success();
  net::Scope child(scope);
  child.expires_after(1h);
  scope.expires_after(20ms);
  group.spawn(nap(child, 30min, &result));
  finish();
  EXPECT_EQ(result.error().code, Errc::timed_out);
}

TEST_F(ReactorTest, AWaitOnACancelledScopeFailsAtOnce) {
  scope.cancel(Errc::timed_out);
  net::Scope child(scope);
  Result<> result = mesh::success();
  group.spawn(nap(child, 1h, &result));
  EXPECT_EQ(group.size(), 0u);
  EXPECT_EQ(result.error().code, Errc::timed_out);
}

TEST_F(ReactorTest, ADestroyedTaskEndsItsWait) {
  Result<> result = mesh::success();
  {
    auto task = nap(scope, 20ms, &result);
    // As an awaiting coroutine would start it.
    std::move(task).operator co_await().await_suspend(std::noop_coroutine()).resume();
    EXPECT_TRUE(reactor.timers().next());
  }
  EXPECT_FALSE(reactor.timers().next());
  scope.cancel();
  EXPECT_TRUE(result);
}

TEST_F(ReactorTest, AQueueWakesInOrderAndForgetsTheCancelled) {
  net::WaitQueue queue;
  std::vector<int> log;
  net::Scope second(scope);
  group.spawn(wait_in_line(queue, scope, 1, &log));
  group.spawn(wait_in_line(queue, second, 2, &log));
  group.spawn(wait_in_line(queue, scope, 3, &log));
  second.cancel();
  reactor.run_once(0ms);
  EXPECT_EQ(log, (std::vector{-2}));
  EXPECT_TRUE(queue.notify_one(reactor));
  EXPECT_TRUE(queue.notify_one(reactor));
  EXPECT_FALSE(queue.notify_one(reactor));
  finish();
  EXPECT_EQ(log, (std::vector{-2, 1, 3}));
}

TEST_F(ReactorTest, AGroupIsWaitedForUntilItsLastTaskEnds) {
  net::Group inner(reactor);
  Result<> a = mesh::success(), b = mesh::success();
  bool done = false;
  inner.spawn(nap(scope, 1ms, &a));
  inner.spawn(nap(scope, 30ms, &b));
  group.spawn(wait_for(inner, &done));
  EXPECT_FALSE(done);
  finish();
  EXPECT_TRUE(done);
  EXPECT_EQ(inner.size(), 0u);
}

TEST_F(ReactorTest, PostRunsInOrderFromOtherThreads) {
  std::vector<int> log;
  std::jthread other([&] {
    for (int i = 0; i < 100; ++i) reactor.post([&log, i] { log.push_back(i); });
    reactor.stop();
  });
  reactor.run();
  ASSERT_EQ(log.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(log[static_cast<std::size_t>(i)], i);
}

namespace {

net::Task<> read_all(net::Stream& stream, net::Scope& scope, std::string* into, Result<>* result) {
  char buffer[7];
  while (true) {
    auto n = co_await stream.read_some(buffer, scope);
    if (!n) {
      *result = n.error();
      co_return;
    }
    if (n.value() == 0) co_return;
    into->append(buffer, n.value());
  }
}

net::Task<> write_everything(net::Stream& stream, net::Scope& scope, std::string text,
                             Result<>* result) {
  iovec parts[] = {{text.data(), 3}, {text.data() + 3, 0}, {text.data() + 3, text.size() - 3}};
  *result = co_await stream.write_all(parts, scope);
  stream.shutdown_write();
}

}  // namespace

TEST_F(ReactorTest, AStreamCarriesEverythingThroughASmallPipe) {
  auto [left, right] = mesh::test::FakeStream::make_pair(reactor, 5);
  const std::string text(1000, 'x');
  std::string got;
  Result<> wrote = mesh::Error{}, read = mesh::success();
  group.spawn(write_everything(*left, scope, text, &wrote));
  group.spawn(read_all(*right, scope, &got, &read));
  finish();
  EXPECT_TRUE(wrote);
  EXPECT_TRUE(read);
  EXPECT_EQ(got, text);
}

TEST_F(ReactorTest, ACancelledReadLeavesTheStreamUsable) {
  auto [left, right] = mesh::test::FakeStream::make_pair(reactor);
  std::string got;
  Result<> wrote = mesh::Error{}, first = mesh::success(), second = mesh::success();
  net::Scope attempt(scope);
  group.spawn(read_all(*right, attempt, &got, &first));
  attempt.expires_after(10ms);
  finish();
  EXPECT_EQ(first.error().code, Errc::timed_out);
  group.spawn(write_everything(*left, scope, "hello", &wrote));
  group.spawn(read_all(*right, scope, &got, &second));
  finish();
  EXPECT_TRUE(second);
  EXPECT_EQ(got, "hello");
}

TEST_F(ReactorTest, AStalledReadTimesOutAndTheScopeLives) {
  auto [left, right] = mesh::test::FakeStream::make_pair(reactor);
  Result<> result = mesh::success();
  auto reading = [](net::Stream& s, net::Scope& sc, Result<>* r) -> net::Task<> {
    char byte[1];
    auto n = co_await s.read_some(byte, sc, 20ms);
    if (!n) *r = n.error();
  };
  group.spawn(reading(*right, scope, &result));
  finish();
  EXPECT_EQ(result.error().code, Errc::timed_out);
  EXPECT_FALSE(scope.is_cancelled());
}

TEST_F(ReactorTest, EveryFailingOperationEndsBothSides) {
  for (std::size_t fail_at = 1; fail_at < 20; ++fail_at) {
    mesh::test::FakeStream::Faults faults{.fail_at = fail_at};
    auto [left, right] = mesh::test::FakeStream::make_pair(reactor, 5, &faults);
    std::string got;
    Result<> wrote = mesh::success(), read = mesh::success();
    net::Scope attempt(scope);
    group.spawn(write_everything(*left, attempt, "hello world, and more", &wrote));
    group.spawn(read_all(*right, attempt, &got, &read));
    for (int i = 0; i < 50 && group.size() > 0; ++i) reactor.run_once(0ms);
    attempt.cancel();
    finish();
    if (faults.operations >= fail_at) {
      EXPECT_FALSE(wrote && read) << fail_at;
    }
  }
}

// Its event has been used up: what is there is found by asking, and where that fails, by reading.
TEST_F(ReactorTest, WhatWasDrainedByAShortReadIsLookedAtAgainAlsoWhereTheKernelRefusesToSay) {
  for (const bool is_refused : {false, true}) {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    const mesh::UniqueFd own(pair[0]), other(pair[1]);
    ASSERT_EQ(::send(other.get(), "x", 1, 0), 1);
    net::IoHandle handle;
    ASSERT_TRUE(handle.attach(reactor, own.get(), EPOLLIN));
    reactor.run_once(0ms);
    ASSERT_TRUE(handle.readable);
    handle.drained_by_short_read();
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    const rlimit none{0, files.rlim_max};  // poll(2) asks for no more than that: EINVAL
    if (is_refused) ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    const auto give_up = net::Clock::now() + 10s;
    while (!handle.readable && net::Clock::now() < give_up) reactor.run_once(100ms);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
    EXPECT_TRUE(handle.readable) << is_refused;
    handle.detach(own.get());
  }
}
