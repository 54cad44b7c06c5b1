// Ways round the hooks of sockets: each shows what happens. docs/security.md has a line for each;
// what only packets show is in packet_test.cc.
#include <gmock/gmock.h>
#include <linux/io_uring.h>
#include <netinet/tcp.h>
#include <sys/syscall.h>

#include "tests/support/eventually.h"
#include "tests/support/packets.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

namespace mesh::test {
namespace {

constexpr const char* kService = "10.78.0.1:9080";  // goes to the proxy
constexpr const char* kForbidden = "10.9.0.2:8081";
constexpr const char* kAllowed = "10.9.0.2:8080";

class BypassTest : public BridgedTest {
 protected:
  void SetUp() override {
    BridgedTest::SetUp();
    if (IsSkipped()) return;
    accept_on_both_servers();
    forbidden_ = server_->listen(kForbidden);
    has_set("10.9.0.2", 5);
    verdict(5, 0, true, 51);
    verdict(5, 8081, false, 52);
    state_.workloads[kApp].strict = is_strict();
    proxy_serves(kService);
    if (is_strict()) EXPECT_THAT(datapath_->uncovered(), testing::IsEmpty());
  }
  virtual bool is_strict() const { return false; }
  template <class Work>
  auto in_app(Work work) {
    proxy_lives();
    return in_child(&*app_group_, &*app_, work);
  }
  // Nothing came to the forbidden port, and something did to the proxy, for the service.
  void expect_captured() {
    EXPECT_FALSE(accept_within(forbidden_.get(), 0));
    const Peer to = next_destination(proxy4_, SOL_IP);
    EXPECT_EQ(to.err, 0);
    EXPECT_EQ(to.address, at(kService));
  }

  UniqueFd forbidden_;
};

// Each way for a workload of the default mode and for a strict one, whose packets are judged too:
// what its sockets may do passes there, and nothing that they may not comes that far.
class BypassOfBothModes : public BypassTest, public testing::WithParamInterface<bool> {
 protected:
  bool is_strict() const override { return GetParam(); }
  void TearDown() override {
    if (datapath_)
      for (const auto& [name, total] : must(datapath_->counters()).totals)
        if (name.starts_with("packets_dropped")) EXPECT_EQ(total, 0) << name;
    BypassTest::TearDown();
  }
};
INSTANTIATE_TEST_SUITE_P(Modes, BypassOfBothModes, testing::Bool(),
                         [](const auto& mode) { return mode.param ? "Strict" : "Permissive"; });

int send_fast_open(const std::string& to) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto raw = raw_address(at(to), AF_INET);
  return ::sendto(fd.get(), "early", 5, MSG_FASTOPEN, raw.get(), raw.size) < 0 ? errno : 0;
}

int connect_fast_open(const std::string& to) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  int on = 1;
  if (::setsockopt(fd.get(), IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on) != 0) return errno;
  if (const int error = connect_socket(fd.get(), to); error != 0) return error;
  return ::send(fd.get(), "early", 5, MSG_NOSIGNAL) < 0 ? errno : 0;
}

TEST_P(BypassOfBothModes, FastOpen) {
  for (const auto open : {send_fast_open, connect_fast_open}) {
    EXPECT_EQ(in_app([&] { return open(kForbidden); }), kRefused);
    EXPECT_EQ(in_app([&] { return open(kService); }), 0);
    expect_captured();
  }
}

TEST_P(BypassOfBothModes, MultipathTcp) {
  const auto connect = [](const std::string& to) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_MPTCP));
    return fd ? connect_socket(fd.get(), to) : errno;
  };
  const int refused = in_app([&] { return connect(kForbidden); });
  if (refused == EPROTONOSUPPORT || refused == ENOPROTOOPT)
    GTEST_SKIP() << "this kernel has no MPTCP";
  EXPECT_EQ(refused, kRefused);
  EXPECT_EQ(in_app([&] { return connect(kService); }), 0);
  expect_captured();
}

// IORING_OP_CONNECT of a socket: 0, errno of the connect, or minus errno of the ring.
int connect_by_ring(const std::string& to) {
  io_uring_params params{};
  UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 2, &params)));
  if (!ring) return -errno;
  const auto map = [&](std::size_t size, off_t what) {
    return static_cast<std::uint8_t*>(
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.get(), what));
  };
  std::uint8_t* sq = map(params.sq_off.array + params.sq_entries * 4, IORING_OFF_SQ_RING);
  std::uint8_t* cq =
      map(params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING);
  auto* entries = reinterpret_cast<io_uring_sqe*>(
      map(params.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES));
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto raw = raw_address(at(to), AF_INET);
  entries[0] = {};
  entries[0].opcode = IORING_OP_CONNECT;
  entries[0].fd = fd.get();
  entries[0].addr = reinterpret_cast<std::uintptr_t>(raw.get());
  entries[0].off = raw.size;
  reinterpret_cast<std::uint32_t*>(sq + params.sq_off.array)[0] = 0;
  *reinterpret_cast<volatile std::uint32_t*>(sq + params.sq_off.tail) = 1;
  if (::syscall(SYS_io_uring_enter, ring.get(), 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0) < 0)
    return -errno;
  return -reinterpret_cast<io_uring_cqe*>(cq + params.cq_off.cqes)[0].res;
}

TEST_P(BypassOfBothModes, IoUring) {
  const int refused = in_app([] { return connect_by_ring(kForbidden); });
  if (refused < 0) GTEST_SKIP() << "io_uring is not to be had here: " << std::strerror(-refused);
  EXPECT_EQ(refused, kRefused);
  EXPECT_EQ(in_app([] { return connect_by_ring(kService); }), 0);
  expect_captured();
}

TEST_P(BypassOfBothModes, ConnectTwice) {
  struct Tries {
    int first, second, after;
  };
  const Tries tries = in_app([] {
    UniqueFd fd = tcp_socket_for(kAllowed);
    Tries out{};
    out.first = connect_socket(fd.get(), kForbidden);
    out.second = connect_socket(fd.get(), kForbidden);
    UniqueFd other = tcp_socket_for(kAllowed);
    (void)connect_socket(other.get(), kAllowed);
    out.after = connect_socket(other.get(), kForbidden);
    return out;
  });
  EXPECT_EQ(tries.first, kRefused);
  EXPECT_EQ(tries.second, kRefused);
  EXPECT_NE(tries.after, 0) << "one that is connected stays where it is";
  EXPECT_FALSE(accept_within(forbidden_.get(), 0));
}

TEST_P(BypassOfBothModes, DisconnectAndConnectElsewhere) {
  struct Tries {
    int allowed, forbidden, service;
  };
  const Tries tries = in_app([] {
    UniqueFd fd = tcp_socket_for(kAllowed);
    const auto disconnect = [&] {
      sockaddr none{};
      none.sa_family = AF_UNSPEC;
      ::connect(fd.get(), &none, sizeof none);
    };
    Tries out{};
    out.allowed = connect_socket(fd.get(), kAllowed);
    disconnect();
    out.forbidden = connect_socket(fd.get(), kForbidden);
    disconnect();
    out.service = connect_socket(fd.get(), kService);
    return out;
  });
  EXPECT_EQ(tries.allowed, 0);
  EXPECT_EQ(tries.forbidden, kRefused);
  EXPECT_EQ(tries.service, 0);
  expect_captured();
}

TEST_P(BypassOfBothModes, MarksAndDevices) {
  const auto marked = [](const std::string& to) {
    UniqueFd fd = tcp_socket_for(to);
    const int mark = 0x539;
    if (::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark) != 0) return -errno;
    return connect_socket(fd.get(), to);
  };
  const auto bound = [](const std::string& to) {
    UniqueFd fd = tcp_socket_for(to);
    if (::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "veth0", 5) != 0) return -errno;
    return connect_socket(fd.get(), to);
  };
  for (const auto& way : {std::function<int(const std::string&)>(marked),
                          std::function<int(const std::string&)>(bound)}) {
    EXPECT_EQ(in_app([&] { return way(kForbidden); }), kRefused);
    EXPECT_EQ(in_app([&] { return way(kService); }), 0);
    expect_captured();
  }
}

int bind_and_listen(const std::string& to, bool reuses_port, const char* device = nullptr) {
  UniqueFd fd = tcp_socket_for(to);
  int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (reuses_port) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
  if (device) ::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device, 5);
  const SocketAddress address = at(to);
  const auto raw = raw_address(address, family_of(address));
  if (::bind(fd.get(), raw.get(), raw.size) != 0) return errno;
  return ::listen(fd.get(), 1) == 0 ? 0 : errno;
}

// What is captured goes to 127.0.0.1 and ::1 alone.
TEST_P(BypassOfBothModes, NobodyListensInThePlaceOfTheProxy) {
  for (const bool reuses_port : {false, true})
    for (const char* where : {kProxy4, "0.0.0.0:15001", kProxy6, "[::]:15001"})
      EXPECT_EQ(in_app([&] { return bind_and_listen(where, reuses_port); }), EADDRINUSE)
          << where << reuses_port;
  EXPECT_EQ(in_app([] { return bind_and_listen("10.9.0.1:15001", false); }), 0)
      << "its own address: nothing is sent there";
}

TEST_P(BypassOfBothModes, WhoDialsTheProxyHasNoDestination) {
  EXPECT_EQ(in_app([] { return try_connect(kProxy4); }), 0);
  EXPECT_NE(next_destination(proxy4_, SOL_IP).err, 0) << "the proxy resets it";
  EXPECT_EQ(count("accepted_without_destination"), 1);
  EXPECT_EQ(in_app([] { return try_connect("127.0.0.1:15006"); }), kRefused) << "nobody is there";
}

// A neighbour that sends to the workload's loopback address reaches nothing there: the listener is
// bound to lo.
TEST_F(BypassTest, LoopbackAddressesFromOutside) {
  app_->command("sysctl -qw net.ipv4.conf.all.route_localnet=1");
  Wire app_wire(*app_), server_wire(*server_);
  // Nobody would answer an ARP request of 127.0.0.1.
  app_->command("ip neigh replace 10.9.0.2 dev veth0 lladdr " + text_of(server_wire.mac()));
  const auto dial = [&](std::uint16_t from, std::uint16_t to) {
    server_wire.send(
        frame(app_wire.mac(), server_wire.mac(),
              ip_packet({"10.9.0.2", "127.0.0.1", IPPROTO_TCP, tcp(from, to, kSyn, "<it>")})));
  };
  // The kernel answers the one that listens at every device, and refuses the other.
  UniqueFd everywhere = app_->listen("127.0.0.1:15099");
  const auto answer_to = [&](std::uint16_t from, std::uint16_t to) {
    dial(from, to);
    for (;;) {
      const Bytes answer = server_wire.receive(5000);
      if (answer.empty()) return 0;
      if (answer.size() >= 54 && answer[12] == 8 && answer[13] == 0 && answer[23] == IPPROTO_TCP)
        return answer[47] & (kRst | kSyn);
    }
  };
  EXPECT_EQ(answer_to(4000, 15099), kSyn);
  EXPECT_EQ(answer_to(4002, UM_PROXY_PORT), kRst);
  state_.workloads[kApp].strict = true;
  apply_all();
  const std::uint64_t before = count("packets_dropped_destination");
  dial(4001, UM_PROXY_PORT);
  EXPECT_TRUE(eventually([&] { return count("packets_dropped_destination") == before + 1; }))
      << "strict: dropped";
}

// Protocols that no hook of a socket sees: where the kernel has them, a default workload may use
// them; of a strict one every packet is dropped (packet_test.cc).
TEST_P(BypassOfBothModes, OtherTransports) {
  const auto has = [&](int type, int protocol) {
    return in_app([&] {
      UniqueFd fd(::socket(AF_INET, type | SOCK_CLOEXEC, protocol));
      return fd ? 0 : errno;
    });
  };
  RecordProperty("SCTP", has(SOCK_STREAM, IPPROTO_SCTP) == 0 ? "to be had" : "not here");
  RecordProperty("DCCP", has(SOCK_DCCP, IPPROTO_DCCP) == 0 ? "to be had" : "not here");
  // UDP-Lite, where there is any: what judges UDP refuses it.
  const auto send_lite = [] {
    UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDPLITE));
    if (!fd) return errno;
    const auto raw = raw_address(at(kForbidden), AF_INET);
    return ::sendto(fd.get(), "<it>", 4, 0, raw.get(), raw.size) < 0 ? errno : 0;
  };
  const int error = in_app(send_lite);
  if (error != EPROTONOSUPPORT) {
    EXPECT_EQ(error, EPERM);
  }
}

// Who had an address before lends nobody his rights: neither end takes the next workload there for
// him once the change is acknowledged.
TEST_F(BypassTest, AnAddressThatTheNextWorkloadHas) {
  constexpr datapath::WorkloadId kServer = 8;
  constexpr datapath::ClassId kNextClass = 90;
  NetNs next = NetNs::create();
  Cgroup next_group = Cgroup::create("next");
  plug(next, "to-next", "10.9.0.1/24");
  for (const NetNs* ns : {&*app_, &next})
    ns->command("ip link set veth0 address 02:00:00:00:00:01");
  state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
  state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("10.9.0.3")};
  state_.workloads[kServer].ingress = 5;
  verdict(5, 0, false, 53, 0);
  verdict(5, 0, false, 54, kNextClass);
  for (datapath::WorkloadId id = 20; id < 40; ++id) {
    const bool is_next = id % 2 != 0;
    const NetNs& ns = is_next ? next : *app_;
    const Cgroup& group = is_next ? next_group : *app_group_;
    host_->command(is_next ? "ip link set to-app down; ip link set to-next up"
                           : "ip link set to-next down; ip link set to-app up");
    carries(ns, is_next ? "to-next" : "to-app");
    const datapath::ClassId peer = is_next ? kNextClass : kAppClass;
    std::erase_if(state_.workloads, [](const auto& one) { return one.first != kServer; });
    state_.workloads[id] = workload(id, ns, group.path());
    state_.workloads[id].addresses = {ip("10.9.0.1")};
    state_.workloads[id].class4 = state_.workloads[id].class6 = peer;
    state_.workloads[id].strict = id % 4 >= 2;
    state_.peers[ip("10.9.0.1")] = {peer, 0};
    apply_all();
    const int expected = is_next ? kRefused : 0;
    EXPECT_EQ(in_child(&group, &ns, [] { return try_connect(kAllowed, 0, 30000); }), expected)
        << id << ": the client's end";
    // Not by its hooks: the server's end alone, or the packet program of a strict one.
    if (state_.workloads[id].strict) continue;
    EXPECT_EQ(in_child(&*elsewhere_, &ns, [] { return try_connect(kAllowed, 0, 30000); }), expected)
        << id << ": the server's end";
  }
}

// Who has an address before meshd knows of it: taken for the one who had it, until that one's end
// is acknowledged; then for a stranger, until he is enrolled.
TEST_F(BypassTest, AnAddressBetweenTwoWorkloads) {
  constexpr datapath::WorkloadId kServer = 8, kNext = 9;
  constexpr datapath::ClassId kNextClass = 90, kServerClass = 80;
  NetNs next = NetNs::create();
  Cgroup next_group = Cgroup::create("next");
  state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
  state_.workloads[kServer].addresses = {ip("10.9.0.2")};
  state_.workloads[kServer].class4 = kServerClass;
  state_.workloads[kServer].ingress = 5;
  verdict(5, 0, false, 53, 0);
  verdict(5, 0, false, 54, kNextClass);
  verdict(5, 8081, true, 55, kNextClass);
  state_.peers[ip("10.9.0.2")] = {kServerClass, 5};
  state_.peers[ip("10.9.0.1")] = {kAppClass, 7};
  verdict(7, 0, false, 71, kServerClass);
  apply_all();
  host_->command("ip link set to-app down");
  plug(next, "to-next", "10.9.0.1/24");
  const UniqueFd heard = next.listen("10.9.0.1:7000");
  const auto dial_as_it = [&](const char* to) {
    return in_child(&*elsewhere_, &next, [&] { return try_connect(to, 0, 30000); });
  };
  const auto dial_it = [&] {
    return in_child(&*server_group_, &*server_,
                    [] { return try_connect("10.9.0.1:7000", 0, 30000); });
  };
  EXPECT_EQ(dial_as_it(kAllowed), 0) << "as the one who had it";
  EXPECT_TRUE(accept_within(first_.get()));
  EXPECT_EQ(dial_as_it(kForbidden), kRefused);
  EXPECT_EQ(dial_it(), kRefused) << "who guards it still";
  elsewhere_->enter();
  UniqueFd open = next.run([] { return UniqueFd(test::dial(kAllowed)); });
  mesh_group_->enter();
  ASSERT_GE(open.get(), 0);

  state_.workloads.erase(kApp);
  state_.peers.erase(ip("10.9.0.1"));
  apply_all();
  EXPECT_EQ(dial_as_it(kAllowed), kRefused) << "a stranger";
  EXPECT_EQ(dial_it(), 0) << "nobody guards it";
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 1) << "what it got as the other";
  pollfd end{open.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&end, 1, 30'000), 1);

  state_.workloads[kNext] = workload(kNext, next, next_group.path());
  state_.workloads[kNext].addresses = {ip("10.9.0.1")};
  state_.workloads[kNext].class4 = kNextClass;
  state_.workloads[kNext].ingress = 6;
  verdict(6, 0, false, 61, 0);
  state_.peers[ip("10.9.0.1")] = {kNextClass, 6};
  apply_all();
  EXPECT_EQ(dial_as_it(kAllowed), kRefused);
  EXPECT_EQ(dial_as_it(kForbidden), 0) << "as itself";
  EXPECT_EQ(dial_it(), kRefused) << "by its own policy";
}

}  // namespace
}  // namespace mesh::test
