// A process that holds the lock of its socket (it sends from a page that nobody brings) holds up
// neither what else is asked of the kernel's sockets nor who asks.
#include "datapath/socket_work.h"

#include <gtest/gtest.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "datapath/connections.h"
#include "tests/support/eventually.h"
#include "tests/support/missing_page.h"
#include "tests/support/netns.h"

namespace {

// What looking at one socket fails with; 0: it does not.
std::atomic<int> look_error{0};
// Called before each such look.
std::function<void()> before_look;

bool is_look(const void* data, size_t size) {
  if (size < sizeof(nlmsghdr)) return false;
  const auto* header = static_cast<const nlmsghdr*>(data);
  return header->nlmsg_type == SOCK_DIAG_BY_FAMILY && (header->nlmsg_flags & NLM_F_DUMP) == 0;
}

}  // namespace

// In the place of the C library's, for all of this program.
ssize_t send(int fd, const void* data, size_t size, int flags) {
  const int error = look_error;
  if ((error != 0 || before_look) && is_look(data, size)) {
    if (before_look) before_look();
    if (error != 0) {
      errno = error;
      return -1;
    }
  }
  return ::syscall(SYS_sendto, fd, data, size, flags, nullptr, 0);
}

namespace mesh::datapath {
namespace {

using test::HeldSocket;
using test::NetNs;

// Before 6.9 one lock of the whole machine is held while sock_diag ends a socket (sock_diag_mutex).
bool is_diag_locked_as_a_whole() {
  utsname name{};
  int major = 0, minor = 0;
  return ::uname(&name) != 0 || std::sscanf(name.release, "%d.%d", &major, &minor) != 2 ||
         major < 6 || (major == 6 && minor < 9);
}

class SocketWorkTest : public testing::Test {
 protected:
  SocketWorkTest() {
    ns_.add_address("lo", "10.1.0.1/32");
    listener_ = ns_.listen("10.1.0.1:7000");
  }

  UniqueFd connect() const {
    return ns_.run([] { return UniqueFd(test::dial("10.1.0.1:7000")); });
  }
  Ended end_all() {
    return end_connections(work_, ns_.fd(), Transport::kTcp,
                           [](const Connection&) { return Fate::kEnds; });
  }
  std::size_t count() {
    std::size_t open = 0;
    const auto listed = for_each_connection(work_, ns_.fd(), -1,
                                            [&](const Connection&, const TcpCounts&) { ++open; });
    EXPECT_TRUE(listed);
    return open;
  }
  // Under the socket's lock, as sock_diag's counts are.
  std::vector<int> look(int socket, std::vector<std::uint64_t> keys) {
    return work_.run(ns_.fd(), std::move(keys), socket, [socket](int, std::size_t) {
      tcp_info info{};
      socklen_t size = sizeof info;
      return ::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? 0 : errno;
    });
  }

  const NetNs ns_ = NetNs::create();
  UniqueFd listener_;
  SocketWork work_;
};

TEST_F(SocketWorkTest, OneLockedSocketHoldsUpNoOthersEnd) {
  const UniqueFd first = connect(), second = connect(), third = connect();
  ASSERT_EQ(count(), 6U);  // both ends of each
  std::optional<HeldSocket> held(std::in_place, second.get());
  const Ended ended = end_all();
  ASSERT_TRUE(ended.failure);
  EXPECT_EQ(ended.failure->code, Errc::timed_out) << ended.failure->message;
  if (!is_diag_locked_as_a_whole()) {
    EXPECT_EQ(ended.not_ended, 1U);
    EXPECT_EQ(count(), 1U);
    const Ended again = end_all();
    EXPECT_EQ(again.not_ended, 1U);
    EXPECT_EQ(again.ended.size(), 0U);
  }
  held.reset();
  EXPECT_TRUE(test::eventually([&] { return !end_all().failure && count() == 0; }));
}

// A server is not known from a client so, but none of them ends for want of memory.
TEST_F(SocketWorkTest, WhatCannotBeLookedAtIsNotEnded) {
  const UniqueFd client = connect(), server = test::accept_within(listener_.get());
  ASSERT_TRUE(server);
  const auto end_who_accepted = [this] {
    return end_connections(work_, ns_.fd(), Transport::kTcp,
                           [](const Connection&) { return Fate::kEndsUnlessItConnected; });
  };
  look_error = ENOBUFS;
  const Ended none = end_who_accepted();
  look_error = 0;
  EXPECT_EQ(none.ended.size(), 0U);
  EXPECT_EQ(none.not_ended, 2U);
  EXPECT_TRUE(none.failure);
  EXPECT_EQ(count(), 2U);
  const Ended ended = end_who_accepted();
  EXPECT_EQ(ended.ended.size(), 1U);
  EXPECT_EQ(ended.not_ended, 0U);
  EXPECT_FALSE(ended.failure);
}

TEST_F(SocketWorkTest, WhoSendsAsFastAsItIsLookedAtIsKnownInAPause) {
  using Clock = std::chrono::steady_clock;
  const UniqueFd client = connect(), server = test::accept_within(listener_.get());
  ASSERT_TRUE(server);
  // Who looks has none of our files, so another thread writes.
  std::atomic<bool> is_due{false}, is_over{false};
  std::thread writer([&] {
    while (!is_over)
      if (is_due && ::write(client.get(), "x", 1) == 1) is_due = false;
  });
  auto last = Clock::now();
  before_look = [&] {
    is_due = Clock::now() - last < std::chrono::microseconds(900);
    while (is_due) continue;
    last = Clock::now();
  };
  const Ended ended =
      end_connections(work_, ns_.fd(), Transport::kTcp, [](const Connection& connection) {
        return connection.remote.port == 7000 ? Fate::kEndsUnlessItConnected : Fate::kStays;
      });
  before_look = nullptr;
  is_over = true;
  writer.join();
  EXPECT_EQ(ended.ended.size(), 0U);
  EXPECT_EQ(count(), 2U);
}

TEST_F(SocketWorkTest, WhatWaitsIsNotBegunTwice) {
  const UniqueFd socket = connect();
  EXPECT_EQ(look(socket.get(), {1, 2}), (std::vector<int>{0, 0}));
  std::optional<HeldSocket> held(std::in_place, socket.get());
  EXPECT_EQ(look(socket.get(), {1}), (std::vector<int>{EBUSY}));
  EXPECT_EQ(look(socket.get(), {1}), (std::vector<int>{EBUSY}));
  held.reset();
  EXPECT_TRUE(test::eventually([&] { return look(socket.get(), {1}) == std::vector<int>{0}; }));
}

TEST_F(SocketWorkTest, SoManyWaitAndNoMore) {
  const UniqueFd socket = connect();
  std::vector<std::uint64_t> keys(SocketWork::kMaxWaiting + 8);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = i;
  const auto begun = std::make_shared<std::atomic<std::size_t>>(0);
  std::optional<HeldSocket> held(std::in_place, socket.get());
  const auto outcomes =
      work_.run(ns_.fd(), keys, socket.get(), [=, fd = socket.get()](int, std::size_t) {
        ++*begun;
        tcp_info info{};
        socklen_t size = sizeof info;
        return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? 0 : errno;
      });
  EXPECT_EQ(outcomes, std::vector<int>(keys.size(), EBUSY));
  EXPECT_EQ(begun->load(), SocketWork::kMaxWaiting);
  const NetNs other = NetNs::create();
  EXPECT_EQ(work_.run(other.fd(), {1}, -1, [](int, std::size_t) { return 0; }), std::vector<int>{0})
      << "another namespace is not held up";
  held.reset();
  EXPECT_TRUE(test::eventually([&] { return look(socket.get(), {99}) == std::vector<int>{0}; }));
}

// A lock file, say, which the next meshd waits for.
TEST_F(SocketWorkTest, WhoWaitsKeepsNoFilesOpen) {
  const UniqueFd socket = connect();
  std::optional<HeldSocket> held(std::in_place, socket.get());
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd reader(ends[0]);
  {
    const UniqueFd writer(ends[1]);
    EXPECT_EQ(look(socket.get(), {1}), (std::vector<int>{EBUSY}));
  }
  pollfd ended{reader.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&ended, 1, 20'000), 1);
  EXPECT_NE(ended.revents & POLLHUP, 0) << "the thread that waits has it open";
}

TEST_F(SocketWorkTest, ANamespaceThatIsNoneIsAnError) {
  const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(work_.run(file.get(), {1, 2}, -1, [](int, std::size_t) { return 0; }),
            (std::vector<int>{EINVAL, EINVAL}));
}

}  // namespace
}  // namespace mesh::datapath
