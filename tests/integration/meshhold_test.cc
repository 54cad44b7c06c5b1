// meshhold: what it makes in a namespace, for whom, and what it refuses.
#include <arpa/inet.h>
#include <netinet/in.h>

#include <cstring>
#include <fstream>
#include <map>

#include "tests/support/meshhold_fixture.h"

namespace mesh::feed {
namespace {

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

// A workload's namespace, which has 10.1.0.1, and one beside it.
std::pair<NetNs, NetNs> neighbours() {
  std::pair out{NetNs::create(), NetNs::create()};
  test::join_veth(out.first, "10.1.0.1/24", out.second, "10.1.0.2/24");
  return out;
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
  const auto [ns, neighbour] = neighbours();
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

// Whoever asks at a loopback address asks the responder: nobody in the workload can be there too,
// nor in the place of the proxy.
TEST_F(MeshHold, NobodyInTheWorkloadBindsAPortOfTheMesh) {
  const auto [ns, neighbour] = neighbours();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  const auto bound = [&](int type, const char* to, int option, const char* device) {
    return ns.run([&]() -> std::pair<int, UniqueFd> {
      const SocketAddress address = test::endpoint(to);
      const int family = test::family_of(address);
      UniqueFd fd(::socket(family, type | SOCK_CLOEXEC, 0));
      const int on = 1;
      if (option != 0) ::setsockopt(fd.get(), SOL_SOCKET, option, &on, sizeof on);
      if (device) ::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device, 5);
      const auto raw = test::raw_address(address, family);
      const bool is_bound = ::bind(fd.get(), raw.get(), raw.size) == 0 &&
                            (type == SOCK_DGRAM || ::listen(fd.get(), 1) == 0);
      return {is_bound ? 0 : errno, std::move(fd)};
    });
  };
  for (const int type : {SOCK_DGRAM, SOCK_STREAM})
    for (const char* to : {"127.0.0.1:15053", "127.53.0.9:15053", "0.0.0.0:15053", "[::]:15053"})
      for (const int option : {0, SO_REUSEADDR, SO_REUSEPORT})
        EXPECT_EQ(bound(type, to, option, nullptr).first, EADDRINUSE)
            << type << " " << to << " " << option;
  // At another device than lo: nothing that is asked at a loopback address comes there.
  const auto elsewhere = bound(SOCK_DGRAM, "0.0.0.0:15053", 0, "veth0");
  EXPECT_EQ(elsewhere.first, 0);
  send_datagram(ns, "127.53.0.9:15053");
  char byte = 0;
  EXPECT_LT(::recv(elsewhere.second.get(), &byte, 1, MSG_DONTWAIT), 0);
  // Nothing of the mesh listens at 15006, and nothing is sent there.
  EXPECT_EQ(connect_in(ns, "127.0.0.1:15006"), ECONNREFUSED);
  EXPECT_EQ(bound(SOCK_STREAM, "0.0.0.0:15006", 0, nullptr).first, 0) << "as any other port";
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
  const auto [ns, neighbour] = neighbours();
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
  const auto [ns, neighbour] = neighbours();
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
  const Received refused = enrolled(meshd, 9, shared.fd());
  EXPECT_EQ(refused.message.status, HoldStatus::kShared);
  EXPECT_EQ(refused.message.detail, 8U) << "whose it is";

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
