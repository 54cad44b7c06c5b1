#include "feed/namespace_sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace mesh::feed {
namespace {

constexpr int kBacklog = 4096;  // the namespace's net.core.somaxconn is the other bound
constexpr int kDatagramBuffer = 1 << 20;
constexpr Refusal kFine{};

Refusal failed(int error) { return {HoldStatus::kUnavailable, error}; }

UniqueFd new_socket(bool v6, int type) {
  return UniqueFd(::socket(v6 ? AF_INET6 : AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}
UniqueFd tcp_socket(bool v6) { return new_socket(v6, SOCK_STREAM); }

std::uint64_t netns_cookie(int socket) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  return ::getsockopt(socket, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

bool set_option(int fd, int level, int name, int value) {
  return ::setsockopt(fd, level, name, &value, sizeof value) == 0;
}

bool is_datagram(int fd) {
  int type = 0;
  socklen_t size = sizeof type;
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_DGRAM;
}

bool is_loopback_up() {
  const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, "lo", IFNAMSIZ - 1);
  return fd && ::ioctl(fd.get(), SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_UP) != 0;
}

struct RawAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
};

RawAddress to_raw(const SocketAddress& address, bool v6) {
  RawAddress raw;
  const auto& bytes = address.ip.bytes();
  if (v6) {
    auto* to = reinterpret_cast<sockaddr_in6*>(&raw.storage);
    to->sin6_family = AF_INET6;
    to->sin6_port = htons(address.port);
    std::memcpy(&to->sin6_addr, bytes.data(), bytes.size());
    raw.size = sizeof *to;
  } else {
    auto* to = reinterpret_cast<sockaddr_in*>(&raw.storage);
    to->sin_family = AF_INET;
    to->sin_port = htons(address.port);
    std::memcpy(&to->sin_addr, bytes.data() + 12, 4);
    raw.size = sizeof *to;
  }
  return raw;
}

// Binding to lo: with route_localnet=1 a neighbour reaches 127.0.0.1 and would be taken for the
// workload. The first SO_BINDTODEVICE of a socket needs no CAP_NET_RAW (since 5.7).
bool bind_to_loopback(int fd) {
  return ::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", sizeof "lo") == 0;
}

Refusal make_listener(const SocketAddress& address, bool v6, bool only_loopback_device,
                      UniqueFd& made) {
  const bool both_families = v6 && address.ip.is_unspecified();
  UniqueFd fd = tcp_socket(v6);
  if (!fd) return failed(errno);
  if (only_loopback_device && !bind_to_loopback(fd.get())) return failed(errno);
  if (v6 && !set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, both_families ? 0 : 1))
    return failed(errno);
  if (!set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1)) return failed(errno);
  const RawAddress raw = to_raw(address, v6);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&raw.storage), raw.size) != 0 ||
      ::listen(fd.get(), kBacklog) != 0)
    return errno == EADDRINUSE ? Refusal{HoldStatus::kPortTaken, errno} : failed(errno);
  made = std::move(fd);
  return kFine;
}

// A UDP socket on lo that says with each datagram which of its addresses it was sent to.
Refusal make_receiver(const SocketAddress& address, UniqueFd& made) {
  UniqueFd fd = new_socket(false, SOCK_DGRAM);
  if (!fd || !bind_to_loopback(fd.get()) || !set_option(fd.get(), IPPROTO_IP, IP_PKTINFO, 1))
    return failed(errno);
  set_option(fd.get(), SOL_SOCKET, SO_RCVBUF, kDatagramBuffer);  // as much of it as we may have
  const RawAddress raw = to_raw(address, false);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&raw.storage), raw.size) != 0)
    return errno == EADDRINUSE ? Refusal{HoldStatus::kPortTaken, errno} : failed(errno);
  made = std::move(fd);
  return kFine;
}

IpAddress loopback(bool v6) {
  if (!v6) return IpAddress::v4(127, 0, 0, 1);
  IpAddress::Bytes bytes{};
  bytes[15] = 1;
  return IpAddress(bytes);
}

}  // namespace

Result<NamespaceSockets> NamespaceSockets::open() {
  NamespaceSockets made;
  made.own_.reset(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!made.own_) return errno_error(errno, "open /proc/self/ns/net");
  const UniqueFd probe = tcp_socket(false);
  if (!probe) return errno_error(errno, "socket");
  made.own_cookie_ = netns_cookie(probe.get());
  if (made.own_cookie_ == 0) return errno_error(errno, "SO_NETNS_COOKIE (Linux 5.14 or later)");
  return made;
}

template <class Make>
Refusal NamespaceSockets::within(int netns, const Make& make) const {
  if (netns < 0) return make();
  if (::setns(netns, CLONE_NEWNET) != 0) return failed(errno);
  const Refusal refusal = make();
  if (::setns(own_.get(), CLONE_NEWNET) != 0) {
    std::perror("meshhold: cannot return to its own network namespace");
    std::abort();
  }
  return refusal;
}

Refusal NamespaceSockets::inspect(int netns, std::uint64_t& cookie) const {
  if (::ioctl(netns, NS_GET_NSTYPE) != CLONE_NEWNET) return {HoldStatus::kNotANamespace, 0};
  struct stat theirs{};
  struct stat ours{};
  if (::fstat(netns, &theirs) != 0 || ::fstat(own_.get(), &ours) != 0) return failed(errno);
  if (theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino)
    return {HoldStatus::kHostNamespace, 0};
  return within(netns, [&cookie]() -> Refusal {
    const UniqueFd probe = tcp_socket(false);
    if (!probe) return failed(errno);
    cookie = netns_cookie(probe.get());
    return cookie != 0 ? kFine : failed(errno);
  });
}

Refusal NamespaceSockets::make_outbound_listeners(int netns, Fds& listeners) const {
  return within(netns, [&listeners]() -> Refusal {
    if (!is_loopback_up()) return {HoldStatus::kLoopbackDown, 0};
    UniqueFd v4;
    if (const Refusal refusal = make_listener({loopback(false), kOutboundPort}, false, true, v4);
        refusal.status != HoldStatus::kOk)
      return refusal;
    UniqueFd v6;
    // Not bound to lo (decisions/0002): it could not answer a client that bound another address of
    // its own, and Linux drops by itself what arrives for ::1 from elsewhere.
    const Refusal refusal = make_listener({loopback(true), kOutboundPort}, true, false, v6);
    const bool has_no_v6 = refusal.error == EADDRNOTAVAIL || refusal.error == EAFNOSUPPORT;
    if (refusal.status != HoldStatus::kOk && !has_no_v6) return refusal;
    listeners.push_back(std::move(v4));
    if (v6) listeners.push_back(std::move(v6));
    return kFine;
  });
}

Refusal NamespaceSockets::make_dns_listeners(int netns, bool wants_udp, bool wants_tcp,
                                             Fds& listeners) const {
  return within(netns, [&]() -> Refusal {
    const SocketAddress address{IpAddress::v4(0, 0, 0, 0), kDnsPort};
    UniqueFd udp, tcp;
    Refusal refusal = kFine;
    if (wants_udp) refusal = make_receiver(address, udp);
    if (wants_tcp && refusal.status == HoldStatus::kOk)
      refusal = make_listener(address, false, true, tcp);
    if (refusal.status != HoldStatus::kOk) return refusal;
    if (udp) listeners.push_back(std::move(udp));
    if (tcp) listeners.push_back(std::move(tcp));
    return kFine;
  });
}

Refusal NamespaceSockets::make_host_listener(const SocketAddress& address, bool v6,
                                             UniqueFd& listener) const {
  const Refusal refusal = make_listener(address, v6, false, listener);
  const bool has_no_v6 = refusal.error == EADDRNOTAVAIL || refusal.error == EAFNOSUPPORT;
  if (!has_no_v6 || !v6 || !address.ip.is_unspecified()) return refusal;
  return make_listener({IpAddress::v4(0, 0, 0, 0), address.port}, false, false, listener);
}

Refusal NamespaceSockets::make_sockets(int netns, std::uint8_t family, bool datagram,
                                       std::uint32_t count, Fds& sockets) const {
  return within(netns, [&]() -> Refusal {
    while (sockets.size() < count) {
      UniqueFd fd = new_socket(family == kFamily6, datagram ? SOCK_DGRAM : SOCK_STREAM);
      if (!fd) return failed(errno);
      sockets.push_back(std::move(fd));
    }
    return kFine;
  });
}

std::optional<ListenerIdentity> identify_listener(int fd) {
  int type = 0;
  socklen_t size = sizeof type;
  if (::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 ||
      (type != SOCK_STREAM && type != SOCK_DGRAM))
    return std::nullopt;
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return std::nullopt;
  char device[IFNAMSIZ] = {};
  socklen_t device_size = sizeof device;
  ListenerIdentity identity;
  identity.netns_cookie = netns_cookie(fd);
  identity.datagram = type == SOCK_DGRAM;
  identity.on_loopback = ::getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &device_size) == 0 &&
                         std::strcmp(device, "lo") == 0;
  if (storage.ss_family == AF_INET) {
    const auto* from = reinterpret_cast<const sockaddr_in*>(&storage);
    std::array<std::uint8_t, 4> b{};
    std::memcpy(b.data(), &from->sin_addr, b.size());
    identity.address = {IpAddress::v4(b[0], b[1], b[2], b[3]), ntohs(from->sin_port)};
  } else if (storage.ss_family == AF_INET6) {
    const auto* from = reinterpret_cast<const sockaddr_in6*>(&storage);
    IpAddress::Bytes bytes{};
    std::memcpy(bytes.data(), &from->sin6_addr, bytes.size());
    identity.address = {IpAddress(bytes), ntohs(from->sin6_port)};
    identity.v6 = true;
  } else {
    return std::nullopt;
  }
  return identity;
}

// SO_REUSEADDR is on while it listens: accepted sockets inherit it, so that their TIME_WAITs do not
// keep the next listener from the port. It is off while connections are refused: nobody else may
// bind there then.
Result<> accept_connections(int listener) {
  if (is_datagram(listener)) return success();
  if (!set_option(listener, SOL_SOCKET, SO_REUSEADDR, 1) || ::listen(listener, kBacklog) != 0)
    return errno_error(errno, "listen");
  return success();
}

void refuse_connections(int listener) {
  if (is_datagram(listener)) return;
  set_option(listener, SOL_SOCKET, SO_REUSEADDR, 0);
  ::shutdown(listener, SHUT_RDWR);
}

}  // namespace mesh::feed
