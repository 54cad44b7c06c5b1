#include "net/udp.h"

#include <array>
#include <cerrno>
#include <utility>

#include "net/raw_address.h"

namespace mesh::net {
namespace {

constexpr std::size_t kControlSize = 128;

IpAddress local_of(msghdr& message) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
      in_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      return from_raw(info.ipi_addr);
    }
    if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
      in6_pktinfo info{};
      std::memcpy(&info, CMSG_DATA(c), sizeof info);
      return from_raw(info.ipi6_addr);
    }
  }
  return {};
}

template <class Info>
void put_control(msghdr& message, int level, int type, const Info& info) {
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = level;
  c->cmsg_type = type;
  c->cmsg_len = CMSG_LEN(sizeof info);
  std::memcpy(CMSG_DATA(c), &info, sizeof info);
  message.msg_controllen = CMSG_SPACE(sizeof info);
}

Result<> send_message(int fd, msghdr& message) {
  ssize_t n = 0;
  do {
    n = ::sendmsg(fd, &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return n < 0 ? Result<>(errno_error(errno, "sendmsg")) : Result<>(success());
}

}  // namespace

Result<std::unique_ptr<UdpSocket>> UdpSocket::adopt(Reactor& reactor, UniqueFd fd) {
  auto socket = std::make_unique<UdpSocket>();
  socket->fd_ = std::move(fd);
  socket->io_.readable = true;  // unknown: try
  MESH_TRY(socket->io_.attach(reactor, socket->fd_.get(), EPOLLIN));
  return socket;
}

bool UdpSocket::Receive::attempt() {
  RawAddress from;
  iovec part{into_.data(), into_.size()};
  alignas(cmsghdr) std::array<char, kControlSize> control{};
  msghdr message{};
  message.msg_name = from.get();
  message.msg_namelen = from.size;
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t n = 0;
  do {
    n = ::recvmsg(socket_.fd_.get(), &message, 0);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && errno == EAGAIN) {
    socket_.io_.readable = false;
    return false;
  }
  if (n < 0) {
    error_ = errno;
    return true;
  }
  datagram_.size = static_cast<std::size_t>(n);
  datagram_.is_cut = (message.msg_flags & MSG_TRUNC) != 0;
  datagram_.local = local_of(message);
  if (auto peer = from_raw(from)) datagram_.peer = peer.value();
  return true;
}

bool UdpSocket::Receive::await_ready() {
  if (scope_.is_cancelled()) {
    refused_ = scope_.cancelled();
    return true;
  }
  return socket_.io_.readable && attempt();
}

void UdpSocket::Receive::await_suspend(std::coroutine_handle<> caller) {
  caller_ = caller;
  wait_at(socket_.io_.reader);
  join(scope_);
}

void UdpSocket::Receive::run(Waiter& waiter) {
  auto& self = static_cast<Receive&>(waiter);
  if (self.cancelled()) {
    self.refused_ = self.cancelled();
  } else if (!self.attempt()) {
    return self.wait_at(self.socket_.io_.reader);
  }
  self.leave();
  self.caller_.resume();
}

Result<Datagram> UdpSocket::Receive::await_resume() {
  if (refused_) return cancelled_error(*refused_);
  if (error_ != 0) return errno_error(error_, "recvmsg");
  return datagram_;
}

Result<> UdpSocket::send(std::span<const std::uint8_t> bytes) {
  iovec part{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return send_message(fd_.get(), message);
}

Result<> UdpSocket::send(std::span<const std::uint8_t> bytes, const SocketAddress& peer,
                         const IpAddress& local) {
  RawAddress to = to_raw(peer);
  iovec part{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<char, kControlSize> control{};
  msghdr message{};
  message.msg_name = to.get();
  message.msg_namelen = to.size;
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const auto& bytes_of = local.bytes();
  if (local.is_v4()) {
    in_pktinfo info{};
    std::memcpy(&info.ipi_spec_dst, bytes_of.data() + 12, 4);
    put_control(message, IPPROTO_IP, IP_PKTINFO, info);
  } else {
    in6_pktinfo info{};
    std::memcpy(&info.ipi6_addr, bytes_of.data(), 16);
    put_control(message, IPPROTO_IPV6, IPV6_PKTINFO, info);
  }
  return send_message(fd_.get(), message);
}

Result<std::unique_ptr<UdpSocket>> connect_udp(Reactor& reactor, UniqueFd fd,
                                               const SocketAddress& address) {
  RawAddress raw = to_raw(address);
  if (::connect(fd.get(), raw.get(), raw.size) != 0)
    return errno_error(errno, "connect " + address.to_string());
  return UdpSocket::adopt(reactor, std::move(fd));
}

}  // namespace mesh::net
