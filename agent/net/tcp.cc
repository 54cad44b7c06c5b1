#include "net/tcp.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "net/raw_address.h"

namespace mesh::net {

namespace {

constexpr int kResolver = 0x554d0000;  // UM_SO_RESOLVER of bpf/shared.h
constexpr int kResolvers = 64;         // UM_DNS_SLOTS
constexpr int kOriginalDst = 80;       // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST

// recv and send, but no cancellation points: glibc 2.36 marks its thread before and after each of
// those, which is 1 % of a small request; nobody cancels a thread here.
ssize_t receive(int fd, std::span<char> into) {
  return ::syscall(SYS_recvfrom, fd, into.data(), into.size(), 0, nullptr, nullptr);
}
ssize_t send(int fd, const iovec& from) {
  return ::syscall(SYS_sendto, fd, from.iov_base, from.iov_len, MSG_NOSIGNAL, nullptr, 0);
}

}  // namespace

Result<std::unique_ptr<TcpStream>> TcpStream::adopt(Reactor& reactor, UniqueFd fd) {
  auto stream = std::make_unique<TcpStream>();
  stream->fd_ = std::move(fd);
  stream->io_.readable = stream->io_.writable = true;  // unknown: try
  MESH_TRY(stream->io_.attach(reactor, stream->fd_.get()));
  return stream;
}

// A short read or write means "drained" or "full", and the next event says when that changes; so a
// request costs no call that only answers EAGAIN. Not after the peer's end was reported: its event
// is used up, and the end must be read. (A socket of the fast path may read short with bytes left
// in its other queue: so the reactor asks the quiet ones once more.)
Io TcpStream::try_read(std::span<char> into) {
  if (!fd_) return {0, ECONNRESET};
  if (!io_.readable) return {0, EAGAIN};
  ssize_t n = 0;
  do {
    n = receive(fd_.get(), into);
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    if (errno != EAGAIN) return {0, errno};
    io_.readable = false;
    return {0, EAGAIN};
  }
  if (static_cast<std::size_t>(n) < into.size() && !io_.peer_closed && !io_.failed) {
    io_.drained_by_short_read();
  }
  if (n == 0) {  // the end, read before its event came
    io_.readable = true;
    io_.peer_closed = true;
  }
  return {static_cast<std::size_t>(n), 0};
}

Io TcpStream::try_write(std::span<const iovec> from) {
  if (!fd_) return {0, ECONNRESET};
  if (!io_.writable) return {0, EAGAIN};
  std::size_t total = 0;
  for (const iovec& part : from) total += part.iov_len;
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(from.data());
  message.msg_iovlen = std::min<std::size_t>(from.size(), 1024);  // UIO_MAXIOV
  ssize_t n = 0;
  do {
    n = from.size() == 1 ? send(fd_.get(), from[0]) : ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    if (errno != EAGAIN) return {0, errno};
    io_.writable = false;
    return {0, EAGAIN};
  }
  if (static_cast<std::size_t>(n) < total && from.size() <= 1024 && !io_.failed) {
    io_.writable = false;
  }
  return {static_cast<std::size_t>(n), 0};
}

void TcpStream::wait_readable(Waiter& waiter) {
  if (!fd_) return;  // close() woke it; the next attempt fails
  waiter.wait_at(io_.reader);
}

void TcpStream::wait_writable(Waiter& waiter) {
  if (!fd_) return;
  waiter.wait_at(io_.writer);
}

void TcpStream::shutdown_write() {
  if (fd_) ::shutdown(fd_.get(), SHUT_WR);
}

void TcpStream::close() {
  if (!fd_) return;
  io_.detach();
  fd_.reset();
}

void TcpStream::reset_on_close() {
  const linger now{.l_onoff = 1, .l_linger = 0};
  if (fd_) ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

Result<std::unique_ptr<Listener>> Listener::adopt(Reactor& reactor, UniqueFd fd) {
  auto listener = std::make_unique<Listener>();
  listener->fd_ = std::move(fd);
  listener->io_.readable = true;
  MESH_TRY(listener->io_.attach(reactor, listener->fd_.get(), EPOLLIN));
  return listener;
}

Listener::~Listener() { io_.detach(fd_.get()); }

bool Listener::Accept::attempt() {
  const int fd = ::accept4(listener_.fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    fd_.reset(fd);
    return true;
  }
  // What a connection that went away in the backlog leaves is not an error of the listener.
  switch (errno) {
    case EAGAIN:
      listener_.io_.readable = false;
      return false;
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
      return attempt();
    default:
      error_ = errno;
      return true;
  }
}

bool Listener::Accept::await_ready() {
  if (scope_.is_cancelled()) {
    refused_ = scope_.cancelled();
    return true;
  }
  return listener_.io_.readable && attempt();
}

void Listener::Accept::await_suspend(std::coroutine_handle<> caller) {
  caller_ = caller;
  wait_at(listener_.io_.reader);
  join(scope_);
}

void Listener::Accept::run(Waiter& waiter) {
  auto& self = static_cast<Accept&>(waiter);
  if (self.cancelled()) {
    self.refused_ = self.cancelled();
  } else if (!self.attempt()) {
    return self.wait_at(self.listener_.io_.reader);
  }
  self.leave();
  self.caller_.resume();
}

Result<UniqueFd> Listener::Accept::await_resume() {
  if (refused_) return cancelled_error(*refused_);
  if (error_ != 0) return errno_error(error_, "accept");
  return std::move(fd_);
}

// Waits until a connect under way is decided.
class Connect : public StreamOp<Connect> {
 public:
  Connect(TcpStream& stream, Scope& scope) : StreamOp(stream, scope, {}), tcp_(stream) {}
  Result<> await_resume() const {
    if (refused_) return cancelled_error(*refused_);
    return success();
  }

 private:
  friend class StreamOp<Connect>;
  bool attempt() const { return tcp_.io_.writable; }
  void arm() { stream_.wait_writable(*this); }
  TcpStream& tcp_;
};

Task<Result<std::unique_ptr<TcpStream>>> connect(Reactor& reactor, UniqueFd fd,
                                                 SocketAddress address, Scope& scope) {
  RawAddress raw = to_raw(address);
  const int started = ::connect(fd.get(), raw.get(), raw.size);
  const int error = started == 0 ? 0 : errno;
  if (error != 0 && error != EINPROGRESS) {
    co_return errno_error(error, "connect " + address.to_string());
  }
  MESH_CO_TRY(auto stream, TcpStream::adopt(reactor, std::move(fd)));
  if (error == EINPROGRESS) {
    stream->io_.readable = stream->io_.writable = false;
    MESH_CO_TRY(co_await Connect(*stream, scope));
    if (stream->io_.failed) {
      int reason = 0;
      socklen_t size = sizeof reason;
      ::getsockopt(stream->fd_.get(), SOL_SOCKET, SO_ERROR, &reason, &size);
      if (reason == 0) reason = ECONNRESET;  // connected, and broken off since
      co_return errno_error(reason, "connect " + address.to_string());
    }
  }
  co_return std::move(stream);
}

Result<> set_non_blocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return errno_error(errno, "fcntl O_NONBLOCK");
  }
  return success();
}

Result<> set_no_delay(int fd) {
  const int on = 1;
  if (::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) {
    return errno_error(errno, "setsockopt TCP_NODELAY");
  }
  return success();
}

Result<SocketAddress> local_address(int fd) {
  RawAddress raw;
  if (::getsockname(fd, raw.get(), &raw.size) != 0) return errno_error(errno, "getsockname");
  return from_raw(raw);
}

Result<SocketAddress> peer_address(int fd) {
  RawAddress raw;
  if (::getpeername(fd, raw.get(), &raw.size) != 0) return errno_error(errno, "getpeername");
  return from_raw(raw);
}

Result<SocketAddress> original_destination(int fd) {
  RawAddress raw;
  if (::getsockopt(fd, IPPROTO_IP, kOriginalDst, raw.get(), &raw.size) == 0) return from_raw(raw);
  const int error = errno;
  raw.size = sizeof(sockaddr_storage);
  if (::getsockopt(fd, IPPROTO_IPV6, kOriginalDst, raw.get(), &raw.size) == 0) return from_raw(raw);
  return errno_error(error, "no original destination");
}

Result<SocketAddress> original_resolver(int fd, const IpAddress& asked_at) {
  const std::uint8_t* bytes = asked_at.bytes().data() + 12;
  const int slot = bytes[3];
  RawAddress raw;
  if (asked_at.is_v4() && bytes[0] == 127 && bytes[1] == 53 && bytes[2] == 0 && slot < kResolvers &&
      ::getsockopt(fd, IPPROTO_IP, kResolver + slot, raw.get(), &raw.size) == 0)
    return from_raw(raw);
  return Error{Errc::not_found, asked_at.to_string() + " stands for no resolver"};
}

}  // namespace mesh::net
