// TCP on the reactor: streams, listeners, and connecting a socket that someone else made.
//
// No socket is made here: the proxy may not. Descriptors must be (or become, where said) non-
// blocking. One thread.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/address.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "net/reactor.h"
#include "net/stream.h"
#include "net/task.h"

namespace mesh::net {

class TcpStream final : public Stream {
 public:
  // A connected socket (TCP or Unix), non-blocking.
  static Result<std::unique_ptr<TcpStream>> adopt(Reactor& reactor, UniqueFd fd);

  Io try_read(std::span<char> into) override;
  Io try_write(std::span<const iovec> from) override;
  bool is_readable() const override { return io_.readable || !fd_; }
  void wait_readable(Waiter& waiter) override;
  void wait_writable(Waiter& waiter) override;
  bool is_broken() const override { return io_.failed || !fd_; }
  // The peer ended its side, as seen without asking; in good order unless is_broken().
  bool is_ended() const { return io_.peer_closed || is_broken(); }
  // Runs `waiter` when the peer ends its side or breaks off, whoever reads or writes. May be
  // for nothing.
  void wait_end(Waiter& waiter) { waiter.wait_at(io_.end); }
  void shutdown_write() override;
  void close() override;

  int fd() const { return fd_.get(); }
  // Makes close() send a reset: the peer cannot mistake it for an orderly end.
  void reset_on_close();

 private:
  friend class Connect;
  friend Task<Result<std::unique_ptr<TcpStream>>> connect(Reactor& reactor, UniqueFd fd,
                                                          SocketAddress address, Scope& scope);
  UniqueFd fd_;
  IoHandle io_;
};

class Listener {
 public:
  // A listening, non-blocking socket; other processes and workers may hold it too.
  static Result<std::unique_ptr<Listener>> adopt(Reactor& reactor, UniqueFd fd);
  ~Listener();

  struct Accept : Waiter {
    Accept(Listener& listener, Scope& scope) : Waiter(&run), listener_(listener), scope_(scope) {}
    bool await_ready();
    void await_suspend(std::coroutine_handle<> caller);
    Result<UniqueFd> await_resume();

   private:
    static void run(Waiter& waiter);
    bool attempt();
    Listener& listener_;
    Scope& scope_;
    std::coroutine_handle<> caller_;
    std::optional<Errc> refused_;
    UniqueFd fd_;
    int error_ = 0;
  };
  // The next connection, non-blocking. Errors: the scope's; exhausted (out of descriptors or
  // memory: wait a little and try again).
  Accept accept(Scope& scope) { return Accept(*this, scope); }
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  IoHandle io_;
};

// Connects `fd`, a fresh unconnected TCP socket of the address's family (v4 for an IPv4 address).
// Errors: refused, unavailable, timed_out, permission, ... as the kernel or the scope says.
Task<Result<std::unique_ptr<TcpStream>>> connect(Reactor& reactor, UniqueFd fd,
                                                 SocketAddress address, Scope& scope);

Result<> set_non_blocking(int fd);
Result<> set_no_delay(int fd);
Result<SocketAddress> local_address(int fd);
Result<SocketAddress> peer_address(int fd);
// Where the client wanted to go before it was redirected (SO_ORIGINAL_DST, both families).
Result<SocketAddress> original_destination(int fd);
// Which resolver the client meant that asked the responder at 127.53.0.x (the local address of the
// datagram, or of the connection). `fd` is any of the responder's sockets in its namespace.
// not_found: that address stands for none.
Result<SocketAddress> original_resolver(int fd, const IpAddress& asked_at);

}  // namespace mesh::net
