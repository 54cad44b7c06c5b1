// The real meshhold against a scripted meshd and meshproxy, in real namespaces (root).
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "feed/channel.h"
#include "feed/hold.h"
#include "tests/support/netns.h"

namespace mesh::feed {
namespace {

using test::NetNs;
using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::seconds(10);

struct Received {
  HoldMessage message;
  Fds fds;
};

UniqueFd copy_of(int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

// One end of a channel with meshhold: waits for messages of a type, in order.
class Peer {
 public:
  explicit Peer(UniqueFd socket) : channel_(std::move(socket)) {}

  void send(const HoldMessage& message, Fds fds = {}) {
    const auto sent = channel_.send_bytes(as_bytes(message), std::move(fds));
    EXPECT_TRUE(sent) << (sent ? "" : sent.error().message);
  }
  void send_raw(std::string_view payload) { EXPECT_TRUE(channel_.send_bytes(payload)); }

  std::optional<Received> next(HoldType type, std::chrono::milliseconds patience = kPatience) {
    const auto deadline = Clock::now() + patience;
    while (true) {
      for (auto it = inbox_.begin(); it != inbox_.end(); ++it) {
        if (it->message.type != type) continue;
        Received found = std::move(*it);
        inbox_.erase(it);
        return found;
      }
      if (closed_ || !read_before(deadline)) return std::nullopt;
    }
  }
  bool is_closed_by_peer() {
    const auto deadline = Clock::now() + kPatience;
    while (!closed_ && read_before(deadline)) {
    }
    return closed_;
  }
  std::string hello;  // the first frame that is no HoldMessage

 private:
  bool read_before(Clock::time_point deadline) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd waiting{channel_.fd(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&waiting, 1, static_cast<int>(left.count())) <= 0) return false;
    const auto received = channel_.receive([this](std::string_view payload, Fds fds) -> Result<> {
      if (auto message = parse_hold_message(payload))
        inbox_.push_back({message.value(), std::move(fds)});
      else
        hello = payload;
      return success();
    });
    closed_ = !received.has_value();
    return true;
  }

  Channel channel_;
  std::deque<Received> inbox_;
  bool closed_ = false;
};

HoldMessage enrol(std::uint32_t id) {
  HoldMessage message;
  message.type = HoldType::kEnrol;
  message.workload = id;
  return message;
}

HoldMessage of_type(HoldType type, std::uint32_t id = 0) {
  HoldMessage message;
  message.type = type;
  message.workload = id;
  return message;
}

HoldMessage want(std::uint32_t id, std::uint8_t family, std::uint32_t count) {
  HoldMessage message = of_type(HoldType::kWantSockets, id);
  message.family = family;
  message.count = count;
  return message;
}

class MeshHold : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::is_root()) GTEST_SKIP() << "needs root: namespaces";
    char name[] = "/tmp/meshhold-test-XXXXXX";
    run_dir_ = ::mkdtemp(name);
    proxy_listener_ = listen_unix(run_dir_ + "/proxy.sock", 0600).value();
    start();
  }
  void TearDown() override {
    kill();
    if (!run_dir_.empty()) std::filesystem::remove_all(run_dir_);
  }

  void start() {
    pid_ = ::fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execl(MESH_BIN_DIR "/meshhold", "meshhold", "--run-dir", run_dir_.c_str(), "--proxy-uid",
              "0", "--log-level", "error", nullptr);
      ::_exit(127);
    }
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  Peer connect_meshd() {
    const auto deadline = Clock::now() + kPatience;
    while (true) {
      auto dialled = dial_unix(run_dir_ + "/hold.sock", 0);
      if (dialled) return Peer(std::move(dialled).value());
      if (Clock::now() > deadline) {
        ADD_FAILURE() << dialled.error().message;
        std::abort();
      }
      ::usleep(5'000);
    }
  }
  // Passes over what a meshhold that is dead by now dialled.
  Peer accept_proxy() {
    while (true) {
      pollfd waiting{proxy_listener_.get(), POLLIN, 0};
      EXPECT_EQ(::poll(&waiting, 1, 10'000), 1) << "meshhold did not dial";
      UniqueFd fd = accept_unix(proxy_listener_.get(), 0).value();
      pollfd gone{fd.get(), POLLRDHUP, 0};
      if (::poll(&gone, 1, 0) == 0) return Peer(std::move(fd));
    }
  }

  static Received enrolled(Peer& meshd, std::uint32_t id, int netns, Fds listeners = {}) {
    Fds fds;
    if (netns >= 0) fds.push_back(copy_of(netns));
    for (UniqueFd& listener : listeners) fds.push_back(std::move(listener));
    meshd.send(enrol(id), std::move(fds));
    auto answer = meshd.next(HoldType::kEnrolled);
    EXPECT_TRUE(answer);
    return answer ? std::move(*answer) : Received{};
  }
  static int connect_in(const NetNs& ns, const std::string& to = "127.0.0.1:15001") {
    return ns.run([&] { return test::try_connect(to, 0, 1000); });
  }
  // Closing follows sending, so a moment may pass until the count is what it should be.
  void expect_open_files(std::size_t wanted) const {
    const auto deadline = Clock::now() + kPatience;
    while (open_files() != wanted && Clock::now() < deadline) ::usleep(1'000);
    EXPECT_EQ(open_files(), wanted);
  }
  std::size_t open_files() const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/fd"))
      ++count;
    return count;
  }

  std::string run_dir_;
  UniqueFd proxy_listener_;
  pid_t pid_ = -1;
};

TEST_F(MeshHold, MakesListenersInTheNamespaceAndGivesThemToTheProxy) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  const Received answer = enrolled(meshd, 7, ns.fd());
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.netns_cookie, ns.cookie());
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  EXPECT_EQ(answer.fds.size(), 4U);

  auto v4 = proxy.next(HoldType::kListener);
  auto v6 = proxy.next(HoldType::kListener);
  ASSERT_TRUE(v4 && v6);
  EXPECT_EQ(proxy.hello, kHoldHello);
  EXPECT_EQ(v4->message.family, kFamily4);
  EXPECT_EQ(v6->message.family, kFamily6);
  EXPECT_EQ(v4->message.workload, 7U);
  EXPECT_EQ(v4->message.kind, ListenerKind::kOutbound);
  EXPECT_EQ(v4->message.port, kOutboundPort);
  EXPECT_EQ(connect_in(ns), 0);
  EXPECT_EQ(connect_in(ns, "[::1]:15001"), 0);
  EXPECT_TRUE(test::accept_within(v4->fds.at(0).get()));
  EXPECT_TRUE(test::accept_within(v6->fds.at(0).get()));
}

// What arrives at `receiver`: its text and the address that it was sent to.
std::string datagram_at(int receiver) {
  pollfd waiting{receiver, POLLIN, 0};
  if (::poll(&waiting, 1, 1000) != 1) return "nothing";
  char text[64], control[128];
  iovec part{text, sizeof text};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t size = ::recvmsg(receiver, &message, 0);
  const cmsghdr* info = CMSG_FIRSTHDR(&message);
  if (size < 0 || !info || info->cmsg_type != IP_PKTINFO) return "no address";
  in_pktinfo to{};
  std::memcpy(&to, CMSG_DATA(info), sizeof to);
  char address[INET_ADDRSTRLEN];
  ::inet_ntop(AF_INET, &to.ipi_addr, address, sizeof address);
  return std::string(text, static_cast<std::size_t>(size)) + " to " + address;
}

void send_datagram(const NetNs& ns, const char* to) {
  ns.run([to] {
    const auto address = test::raw_address(test::endpoint(to), AF_INET);
    const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::sendto(fd.get(), "hello", 5, 0, address.get(), address.size), 5);
    return 0;
  });
}

TEST_F(MeshHold, MakesSocketsForDnsOnEveryLoopbackAddressAndOnNoOtherDevice) {
  const NetNs ns = NetNs::create();
  const NetNs neighbour = NetNs::create();
  test::join_veth(ns, "10.1.0.1/24", neighbour, "10.1.0.2/24");
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  std::map<ListenerKind, Received> listeners;
  for (int i = 0; i < 4; ++i) {
    auto listener = proxy.next(HoldType::kListener);
    ASSERT_TRUE(listener);
    listeners[listener->message.kind] = std::move(*listener);
  }
  ASSERT_TRUE(listeners.contains(ListenerKind::kDnsUdp));
  ASSERT_TRUE(listeners.contains(ListenerKind::kDnsTcp));
  const Received& udp = listeners[ListenerKind::kDnsUdp];
  EXPECT_EQ(udp.message.port, kDnsPort);
  EXPECT_EQ(udp.message.family, kFamily4);
  send_datagram(ns, "127.53.0.9:15053");
  EXPECT_EQ(datagram_at(udp.fds.at(0).get()), "hello to 127.53.0.9");
  EXPECT_EQ(connect_in(ns, "127.53.0.9:15053"), 0);
  EXPECT_TRUE(test::accept_within(listeners[ListenerKind::kDnsTcp].fds.at(0).get()));
  // From elsewhere, neither.
  send_datagram(neighbour, "10.1.0.1:15053");
  EXPECT_NE(connect_in(neighbour, "10.1.0.1:15053"), 0);
  send_datagram(ns, "127.53.0.10:15053");
  EXPECT_EQ(datagram_at(udp.fds.at(0).get()), "hello to 127.53.0.10");
}

TEST_F(MeshHold, AWorkloadWhoseDnsPortIsTakenIsHeldWithoutDns) {
  const NetNs ns = NetNs::create();
  const UniqueFd squatter = ns.listen("127.0.0.1:15053");
  Peer meshd = connect_meshd();
  meshd.send(of_type(HoldType::kSync));  // what comes now is new: nothing of ours has its port
  const Received answer = enrolled(meshd, 7, ns.fd());
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasFamily6);
  EXPECT_EQ(answer.message.detail, static_cast<std::uint32_t>(EADDRINUSE));
  EXPECT_EQ(answer.fds.size(), 2U);
}

TEST_F(MeshHold, HandsOutSocketsForDatagramsWhereTheseAreAskedFor) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  for (const std::uint8_t flags : {std::uint8_t{0}, kFlagDatagram}) {
    HoldMessage wanted = want(7, kFamily4, 2);
    wanted.flags = flags;
    proxy.send(wanted);
    auto batch = proxy.next(HoldType::kSockets);
    ASSERT_TRUE(batch);
    EXPECT_EQ(batch->message.flags, flags);
    ASSERT_EQ(batch->fds.size(), 2U);
    int type = 0;
    socklen_t size = sizeof type;
    ASSERT_EQ(::getsockopt(batch->fds[0].get(), SOL_SOCKET, SO_TYPE, &type, &size), 0);
    EXPECT_EQ(type, flags == 0 ? SOCK_STREAM : SOCK_DGRAM);
  }
}

TEST_F(MeshHold, TheListenerIsNotReachedThroughAnotherDevice) {
  const NetNs ns = NetNs::create();
  const NetNs neighbour = NetNs::create();
  test::join_veth(ns, "10.1.0.1/24", neighbour, "10.1.0.2/24");
  ns.command("sysctl -qw net.ipv4.conf.all.route_localnet=1");
  neighbour.command("sysctl -qw net.ipv4.conf.all.route_localnet=1");
  neighbour.command("ip route add 127.0.0.1/32 via 10.1.0.1 dev veth0 table 100");
  neighbour.command("ip rule add pref 0 to 127.0.0.1 lookup 100");
  neighbour.command("ip rule del pref 0 lookup local");
  neighbour.command("ip rule add pref 1 lookup local");
  Peer meshd = connect_meshd();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  const UniqueFd plain = ns.listen("127.0.0.1:15002");
  EXPECT_EQ(connect_in(neighbour, "127.0.0.1:15002"), 0) << "the detour does not work";
  EXPECT_NE(connect_in(neighbour), 0);
}

TEST_F(MeshHold, AClientThatBoundItsOwnAddressReachesTheListener) {
  const NetNs ns = NetNs::create();
  const NetNs neighbour = NetNs::create();
  test::join_veth(ns, "10.1.0.1/24", neighbour, "10.1.0.2/24");
  ns.command("ip addr add fd00::1/64 dev veth0 nodad");
  Peer meshd = connect_meshd();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  struct Case {
    const char* own;
    const char* listener;
  };
  for (const Case& c : {Case{"10.1.0.1:0", "127.0.0.1:15001"}, Case{"[fd00::1]:0", "[::1]:15001"}})
    EXPECT_EQ(ns.run([&c] {
      const SocketAddress to = test::endpoint(c.listener);
      const int family = test::family_of(to);
      const auto bound = test::raw_address(test::endpoint(c.own), family);
      const auto wanted = test::raw_address(to, family);
      const UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const timeval patience{10, 0};
      ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
      if (::bind(fd.get(), bound.get(), bound.size) != 0) return errno;
      return ::connect(fd.get(), wanted.get(), wanted.size) == 0 ? 0 : errno;
    }),
              0)
        << c.own;
}

TEST_F(MeshHold, HandsOutUnconnectedSocketsOfTheNamespaceAndKeepsNone) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  meshd.send(of_type(HoldType::kSync));
  ASSERT_TRUE(proxy.next(HoldType::kSync));
  proxy.send(want(8, kFamily4, 3));  // answered after the listeners' duplicates are closed
  ASSERT_TRUE(proxy.next(HoldType::kSockets));
  const std::size_t before = open_files();
  proxy.send(want(7, kFamily4, kMaxSocketBatch));
  proxy.send(want(7, kFamily6, 3));
  proxy.send(want(8, kFamily4, 3));
  auto batch = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(batch);
  EXPECT_EQ(batch->message.count, kMaxSocketBatch);
  ASSERT_EQ(batch->fds.size(), kMaxSocketBatch);
  for (const UniqueFd& fd : batch->fds) {
    std::uint64_t cookie = 0;
    socklen_t size = sizeof cookie;
    ASSERT_EQ(::getsockopt(fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size), 0);
    EXPECT_EQ(cookie, ns.cookie());
    EXPECT_NE(::fcntl(fd.get(), F_GETFL) & O_NONBLOCK, 0);
  }
  auto v6 = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->message.family, kFamily6);
  EXPECT_EQ(v6->fds.size(), 3U);
  auto unknown = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(unknown);
  EXPECT_EQ(unknown->message.status, HoldStatus::kUnknown);
  EXPECT_EQ(unknown->fds.size(), 0U);
  expect_open_files(before);
}

TEST_F(MeshHold, ARequestWaitsUntilMeshdHasNamedAllWorkloads) {
  const NetNs ns = NetNs::create();
  Peer proxy = accept_proxy();
  proxy.send(want(7, kFamily4, 2));
  proxy.send(want(8, kFamily4, 2));
  Peer meshd = connect_meshd();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  auto sockets = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(sockets);
  EXPECT_EQ(sockets->fds.size(), 2U);
  proxy.send(want(7, kFamily4, 1));  // asked after 8, and answered before it
  sockets = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(sockets);
  EXPECT_EQ(sockets->message.workload, 7U);
  meshd.send(of_type(HoldType::kSync));
  auto unknown = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(unknown);
  EXPECT_EQ(unknown->message.workload, 8U);
  EXPECT_EQ(unknown->message.status, HoldStatus::kUnknown);
}

TEST_F(MeshHold, RefusesANamespaceByName) {
  Peer meshd = connect_meshd();
  const NetNs down = NetNs::create();
  down.command("ip link set lo down");
  EXPECT_EQ(enrolled(meshd, 2, down.fd()).message.status, HoldStatus::kLoopbackDown);

  const UniqueFd own(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(enrolled(meshd, 3, own.get()).message.status, HoldStatus::kHostNamespace);

  const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(enrolled(meshd, 4, file.get()).message.status, HoldStatus::kNotANamespace);
  const UniqueFd mount(::open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(enrolled(meshd, 5, mount.get()).message.status, HoldStatus::kNotANamespace);
  EXPECT_EQ(enrolled(meshd, 6, -1).message.status, HoldStatus::kNotHeld);

  const NetNs shared = NetNs::create();
  EXPECT_EQ(enrolled(meshd, 8, shared.fd()).message.status, HoldStatus::kOk);
  EXPECT_EQ(enrolled(meshd, 9, shared.fd()).message.status, HoldStatus::kShared);

  const NetNs taken = NetNs::create();
  const UniqueFd squatter = taken.listen("127.0.0.1:15001");
  EXPECT_EQ(enrolled(meshd, 7, taken.fd()).message.status, HoldStatus::kPortTaken);
}

TEST_F(MeshHold, WithoutIpv6LoopbackItIsIpv4Only) {
  const NetNs ns = NetNs::create();
  ns.command("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1");
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, ns.fd());
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasDns);
  EXPECT_EQ(answer.fds.size(), 3U);
}

TEST_F(MeshHold, EndClosesEverythingAndRevokesAtTheProxy) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  (void)enrolled(meshd, 6, -1);  // an answer: it has accepted us
  const std::size_t before = open_files();
  {
    const Received answer = enrolled(meshd, 7, ns.fd());
  }
  meshd.send(of_type(HoldType::kEnd, 7));
  auto revoke = proxy.next(HoldType::kRevoke);
  ASSERT_TRUE(revoke);
  EXPECT_EQ(revoke->message.workload, 7U);
  expect_open_files(before);
}

TEST_F(MeshHold, OneThousandWorkloadsLeaveNothing) {
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  std::size_t before = 0;
  for (std::uint32_t id = 2; id < 1002; ++id) {
    const NetNs ns = NetNs::create();
    ASSERT_EQ(enrolled(meshd, id, ns.fd()).message.status, HoldStatus::kOk);
    meshd.send(of_type(HoldType::kEnd, id));
    ASSERT_TRUE(proxy.next(HoldType::kRevoke));
    while (proxy.next(HoldType::kListener, std::chrono::milliseconds(0))) {
    }
    if (id == 2) before = open_files();
  }
  expect_open_files(before);
}

TEST_F(MeshHold, TheNextMeshholdTakesTheListenersBackAndWaitingConnectionsSurvive) {
  const NetNs ns = NetNs::create();
  Fds listeners;
  {
    Peer meshd = connect_meshd();
    listeners = enrolled(meshd, 7, ns.fd()).fds;
  }
  const int waiting = ns.run([] { return test::dial("127.0.0.1:15001"); });
  ASSERT_GE(waiting, 0);
  kill();
  start();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  const Received answer = enrolled(meshd, 7, ns.fd(), std::move(listeners));
  ASSERT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.netns_cookie, ns.cookie());
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  EXPECT_TRUE(test::accept_within(offered->fds.at(0).get())) << "the connection was lost";
  ::close(waiting);
}

void drop_datagrams(Fds& listeners) {
  std::erase_if(listeners, [](const UniqueFd& fd) {
    int type = 0;
    socklen_t size = sizeof type;
    return ::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type == SOCK_DGRAM;
  });
  ASSERT_EQ(listeners.size(), 3U);
}

TEST_F(MeshHold, WhatDnsLacksIsMadeWhereHalfCameBack) {
  const NetNs ns = NetNs::create();
  Fds listeners;
  {
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    listeners = enrolled(meshd, 7, ns.fd()).fds;
    // Before the channel ends: else it dials again, and what it sends waits in a connection that
    // nobody accepts, duplicates of the listeners among it.
    kill();
  }
  start();
  drop_datagrams(listeners);
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, ns.fd(), std::move(listeners));
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  EXPECT_EQ(answer.fds.size(), 4U);
}

TEST_F(MeshHold, RefusesAListenerThatIsNotOfTheNamespace) {
  const NetNs ns = NetNs::create();
  const NetNs other = NetNs::create();
  Peer meshd = connect_meshd();
  Fds foreign;
  foreign.push_back(other.listen("127.0.0.1:15001"));
  EXPECT_EQ(enrolled(meshd, 7, ns.fd(), std::move(foreign)).message.status, HoldStatus::kForeign);
  Fds wrong_port;
  wrong_port.push_back(ns.listen("127.0.0.1:15002"));
  EXPECT_EQ(enrolled(meshd, 7, ns.fd(), std::move(wrong_port)).message.status,
            HoldStatus::kForeign);
}

HoldMessage given_back(const HoldMessage& asked) {
  HoldMessage answer = asked;
  answer.type = HoldType::kGivenBack;
  return answer;
}

TEST_F(MeshHold, WhatOnlyTheProxyStillHasIsTakenBackAndNoConnectionIsLost) {
  const NetNs ns = NetNs::create();
  Fds held_by_proxy;
  {
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    (void)enrolled(meshd, 7, ns.fd());
    for (int i = 0; i < 4; ++i) {
      auto listener = proxy.next(HoldType::kListener);
      ASSERT_TRUE(listener);
      held_by_proxy.push_back(std::move(listener->fds.at(0)));
    }
    kill();  // and meshd with it: nobody else has a duplicate to give back
  }
  const UniqueFd waiting(ns.run([] { return test::dial("127.0.0.1:15001"); }));
  ASSERT_TRUE(waiting) << "the proxy's listener is there all the time";
  start();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(ns.fd()));
  meshd.send(enrol(7), std::move(fds));
  meshd.send(of_type(HoldType::kSync));
  auto asked = proxy.next(HoldType::kGiveBack);
  ASSERT_TRUE(asked);
  EXPECT_EQ(asked->message.workload, 7U);
  EXPECT_EQ(asked->message.kind, ListenerKind::kOutbound);
  EXPECT_FALSE(proxy.next(HoldType::kSync, std::chrono::milliseconds(50)))
      << "the proxy would drop what it is about to give back";
  proxy.send(given_back(asked->message), std::move(held_by_proxy));
  auto answer = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.status, HoldStatus::kOk);
  EXPECT_EQ(answer->message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  ASSERT_EQ(answer->fds.size(), 4U);
  EXPECT_TRUE(proxy.next(HoldType::kListener));
  EXPECT_TRUE(proxy.next(HoldType::kSync));
  EXPECT_FALSE(proxy.next(HoldType::kRevoke, std::chrono::milliseconds(0)));
  EXPECT_TRUE(test::accept_within(answer->fds.at(0).get())) << "what waited is served";
}

TEST_F(MeshHold, WhatDnsLacksIsTakenBackFromTheProxyThatStillHasIt) {
  const NetNs ns = NetNs::create();
  Fds listeners, held_by_proxy;
  {
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    listeners = enrolled(meshd, 7, ns.fd()).fds;
    for (int i = 0; i < 4; ++i) {
      auto listener = proxy.next(HoldType::kListener);
      ASSERT_TRUE(listener);
      held_by_proxy.push_back(std::move(listener->fds.at(0)));
    }
    kill();
  }
  start();
  drop_datagrams(listeners);
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(ns.fd()));
  for (UniqueFd& listener : listeners) fds.push_back(std::move(listener));
  meshd.send(enrol(7), std::move(fds));
  auto asked = proxy.next(HoldType::kGiveBack);
  ASSERT_TRUE(asked);
  proxy.send(given_back(asked->message), std::move(held_by_proxy));
  auto answer = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.status, HoldStatus::kOk);
  EXPECT_EQ(answer->message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  EXPECT_EQ(answer->fds.size(), 4U) << "what meshd and the proxy both brought counts once";
}

// As after a death of all three at once: one of the old sockets ends later than the others.
TEST_F(MeshHold, APortForDnsThatOneBeforeStillHasIsWaitedFor) {
  const NetNs ns = NetNs::create();
  UniqueFd squatter = ns.listen("127.0.0.1:15053");
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(ns.fd()));
  meshd.send(enrol(7), std::move(fds));
  auto asked = proxy.next(HoldType::kGiveBack);
  ASSERT_TRUE(asked) << "it goes without DNS though the port may be its own";
  proxy.send(given_back(asked->message));
  squatter.reset();
  auto answer = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.families, kHasFamily4 | kHasFamily6 | kHasDns);
}

TEST_F(MeshHold, APortForDnsThatStaysTakenIsGivenUp) {
  const NetNs ns = NetNs::create();
  const UniqueFd squatter = ns.listen("127.0.0.1:15053");
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, ns.fd());
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasFamily6);
  EXPECT_EQ(connect_in(ns), 0);
}

TEST_F(MeshHold, TakesNothingBackFromTheProxyThatIsNotItsOwn) {
  struct Case {
    const char* name;
    const char* address;
    bool on_loopback, in_namespace;
  };
  for (const Case& c : {Case{"another port", "127.0.0.1:15002", true, true},
                        Case{"another namespace", "127.0.0.1:15001", true, false},
                        Case{"every device", "127.0.0.1:15001", false, true}}) {
    const NetNs ns = NetNs::create();
    const NetNs other = NetNs::create();
    const UniqueFd squatter = c.in_namespace && std::string_view(c.address).ends_with(":15001")
                                  ? UniqueFd()
                                  : ns.listen("127.0.0.1:15001");
    UniqueFd offered = (c.in_namespace ? ns : other).listen(c.address);
    if (c.on_loopback)
      ASSERT_EQ(::setsockopt(offered.get(), SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), 0);
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    Fds fds;
    fds.push_back(copy_of(ns.fd()));
    meshd.send(enrol(7), std::move(fds));
    auto asked = proxy.next(HoldType::kGiveBack);
    ASSERT_TRUE(asked) << c.name;
    Fds lie;
    lie.push_back(std::move(offered));
    proxy.send(given_back(asked->message), std::move(lie));
    auto answer = meshd.next(HoldType::kEnrolled);
    ASSERT_TRUE(answer) << c.name;
    EXPECT_EQ(answer->message.status, HoldStatus::kForeign) << c.name;
    kill();
    start();
  }
}

TEST_F(MeshHold, ARestartedMeshdGetsTheSameListenersAndSyncEndsTheRest) {
  const NetNs ns = NetNs::create();
  const NetNs forgotten = NetNs::create();
  Peer proxy = accept_proxy();
  {
    Peer meshd = connect_meshd();
    (void)enrolled(meshd, 7, ns.fd());
    (void)enrolled(meshd, 8, forgotten.fd());
  }
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, -1);
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.netns_cookie, ns.cookie());
  EXPECT_EQ(answer.fds.size(), 4U);
  meshd.send(of_type(HoldType::kSync));
  auto revoke = proxy.next(HoldType::kRevoke);
  ASSERT_TRUE(revoke);
  EXPECT_EQ(revoke->message.workload, 8U);
  EXPECT_TRUE(proxy.next(HoldType::kSync));
  EXPECT_EQ(connect_in(ns), 0);
}

TEST_F(MeshHold, ARestartedProxyGetsEverythingAgain) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  {
    Peer proxy = accept_proxy();
    (void)enrolled(meshd, 7, ns.fd());
    ASSERT_TRUE(proxy.next(HoldType::kListener));
  }
  const int waiting = ns.run([] { return test::dial("127.0.0.1:15001"); });
  Peer proxy = accept_proxy();
  auto v4 = proxy.next(HoldType::kListener);
  ASSERT_TRUE(v4);
  EXPECT_TRUE(test::accept_within(v4->fds.at(0).get()));
  EXPECT_TRUE(proxy.next(HoldType::kListener));
  ::close(waiting);
}

TEST_F(MeshHold, AfterTheGraceTheBacklogIsResetAndConnectionsAreRefusedUntilTheNextProxy) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  {
    Peer proxy = accept_proxy();
    (void)enrolled(meshd, 7, ns.fd());
    ASSERT_TRUE(proxy.next(HoldType::kListener));
    proxy_listener_.reset();
  }
  const UniqueFd waiting(ns.run([] { return test::dial("127.0.0.1:15001"); }));
  ASSERT_TRUE(waiting);
  pollfd reset{waiting.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&reset, 1, 10'000), 1);
  char byte = 0;
  EXPECT_EQ(::read(waiting.get(), &byte, 1), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_EQ(connect_in(ns), ECONNREFUSED);
  EXPECT_NE(ns.run([] {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const auto raw = test::raw_address(test::endpoint("127.0.0.1:15001"), AF_INET);
    return ::bind(fd.get(), raw.get(), raw.size);
  }),
            0)
      << "the application took the port while it was closed";

  proxy_listener_ = listen_unix(run_dir_ + "/proxy.sock", 0600).value();
  Peer proxy = accept_proxy();
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  EXPECT_EQ(connect_in(ns), 0);
  EXPECT_TRUE(test::accept_within(offered->fds.at(0).get()));
}

TEST_F(MeshHold, WhileTheProxyHangsConnectionsAreRefusedAlsoThoseThatWait) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  const UniqueFd waiting(ns.run([] { return test::dial("127.0.0.1:15001"); }));
  ASSERT_TRUE(waiting);
  HoldMessage state = of_type(HoldType::kProxyState);
  state.status = HoldStatus::kUnavailable;
  meshd.send(state);
  pollfd reset{waiting.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&reset, 1, 10'000), 1);
  char byte = 0;
  EXPECT_EQ(::read(waiting.get(), &byte, 1), -1);
  EXPECT_EQ(errno, ECONNRESET);
  (void)enrolled(meshd, 7, -1);  // answered when all of them refuse, of which one was the first
  EXPECT_EQ(connect_in(ns), ECONNREFUSED);
  EXPECT_EQ(connect_in(ns, "[::1]:15001"), ECONNREFUSED);
  state.status = HoldStatus::kOk;
  meshd.send(state);
  (void)enrolled(meshd, 7, -1);
  EXPECT_EQ(connect_in(ns), 0);
  EXPECT_TRUE(test::accept_within(offered->fds.at(0).get())) << "it is the same listener";
}

TEST_F(MeshHold, ListensForTheHostAndStopsWhenTold) {
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  HoldMessage request = of_type(HoldType::kHostListener, kGatewayWorkload);
  request.kind = ListenerKind::kGateway;
  request.family = kFamily4;
  request.ip = IpAddress::v4(127, 0, 0, 1).bytes();
  {
    UniqueFd free(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage bound{};
    socklen_t size = sizeof bound;
    const auto raw = test::raw_address(test::endpoint("127.0.0.1:0"), AF_INET);
    ASSERT_EQ(::bind(free.get(), raw.get(), raw.size), 0);
    ASSERT_EQ(::getsockname(free.get(), reinterpret_cast<sockaddr*>(&bound), &size), 0);
    request.port = test::socket_address(bound).port;
  }
  const std::string address = "127.0.0.1:" + std::to_string(request.port);
  meshd.send(request);
  auto answer = meshd.next(HoldType::kHostListening);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.status, HoldStatus::kOk);
  ASSERT_EQ(answer->fds.size(), 1U);
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  EXPECT_EQ(offered->message.kind, ListenerKind::kGateway);
  EXPECT_EQ(offered->message.workload, kGatewayWorkload);
  EXPECT_EQ(test::try_connect(address), 0);

  HoldMessage gateway = enrol(kGatewayWorkload);
  gateway.flags = kFlagHostNamespace;
  meshd.send(gateway);
  auto enrolled_gateway = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(enrolled_gateway);
  EXPECT_EQ(enrolled_gateway->message.status, HoldStatus::kOk);
  EXPECT_EQ(enrolled_gateway->fds.size(), 0U);
  proxy.send(want(kGatewayWorkload, kFamily4, 2));
  auto sockets = proxy.next(HoldType::kSockets);
  ASSERT_TRUE(sockets);
  EXPECT_EQ(sockets->fds.size(), 2U);

  answer->fds.clear();
  offered->fds.clear();
  request.type = HoldType::kEndHostListener;
  meshd.send(request);
  ASSERT_TRUE(proxy.next(HoldType::kRevokeListener));
  EXPECT_EQ(test::try_connect(address), ECONNREFUSED);
}

TEST_F(MeshHold, DropsAPeerThatBreaksTheRules) {
  Peer proxy = accept_proxy();
  proxy.send(enrol(7));
  EXPECT_TRUE(proxy.is_closed_by_peer());
  Peer again = accept_proxy();
  again.send_raw("not a message");
  EXPECT_TRUE(again.is_closed_by_peer());
  Peer with_fd = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(0));
  with_fd.send(want(7, kFamily4, 1), std::move(fds));
  EXPECT_TRUE(with_fd.is_closed_by_peer());
  Peer meshd = connect_meshd();
  meshd.send(want(7, kFamily4, 1));
  EXPECT_TRUE(meshd.is_closed_by_peer());
}

TEST_F(MeshHold, AFloodOfWantsHoldsABoundedNumberOfSockets) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  for (int i = 0; i < 2000; ++i) proxy.send(want(7, kFamily4, kMaxSocketBatch));
  Received fresh = enrolled(meshd, 7, -1);  // it still answers
  EXPECT_EQ(fresh.message.status, HoldStatus::kOk);
  EXPECT_LT(open_files(), 300U);
}

TEST_F(MeshHold, HasThreeCapabilitiesAndNoWayToMore) {
  (void)connect_meshd();
  std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
  std::string text((std::istreambuf_iterator<char>(status)), {});
  // CAP_NET_BIND_SERVICE 10, CAP_SYS_PTRACE 19, CAP_SYS_ADMIN 21
  EXPECT_THAT(text, testing::HasSubstr("CapPrm:\t0000000000280400"));
  EXPECT_THAT(text, testing::HasSubstr("CapEff:\t0000000000280400"));
  EXPECT_THAT(text, testing::HasSubstr("CapBnd:\t0000000000280400"));
  EXPECT_THAT(text, testing::HasSubstr("CapInh:\t0000000000000000"));
  EXPECT_THAT(text, testing::HasSubstr("CapAmb:\t0000000000000000"));
  EXPECT_THAT(text, testing::HasSubstr("NoNewPrivs:\t1"));
}

}  // namespace
}  // namespace mesh::feed
