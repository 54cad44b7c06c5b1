// UDP on the reactor: datagrams in and out of a socket that someone else made. One thread.
//
// Sending never waits: what the socket does not take at once is lost, as it is on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/address.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "net/reactor.h"

namespace mesh::net {

struct Datagram {
  std::size_t size = 0;
  SocketAddress peer;
  IpAddress local;      // what it was sent to; :: where the socket was not told to say
  bool is_cut = false;  // there was more than the buffer takes
};

class UdpSocket {
 public:
  // Bound or connected, non-blocking.
  static Result<std::unique_ptr<UdpSocket>> adopt(Reactor& reactor, UniqueFd fd);

  struct Receive : Waiter {
    Receive(UdpSocket& socket, std::span<std::uint8_t> into, Scope& scope)
        : Waiter(&run), socket_(socket), into_(into), scope_(scope) {}
    bool await_ready();
    void await_suspend(std::coroutine_handle<> caller);
    Result<Datagram> await_resume();

   private:
    static void run(Waiter& waiter);
    bool attempt();
    UdpSocket& socket_;
    std::span<std::uint8_t> into_;
    Scope& scope_;
    std::coroutine_handle<> caller_;
    std::optional<Errc> refused_;
    Datagram datagram_;
    int error_ = 0;
  };
  // The next datagram. Errors: the scope's; of a connected socket what the network answered
  // (refused, ...).
  Receive receive(std::span<std::uint8_t> into, Scope& scope) {
    return Receive(*this, into, scope);
  }
  // From a connected socket.
  Result<> send(std::span<const std::uint8_t> bytes);
  // From a bound one, with `local` as the sender's address.
  Result<> send(std::span<const std::uint8_t> bytes, const SocketAddress& peer,
                const IpAddress& local);
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  IoHandle io_;
};

// Connects `fd`, a fresh UDP socket of the address's family: only that peer's datagrams arrive, at
// a port that the kernel picked at random. Errors: permission, refused, ... as the kernel says.
Result<std::unique_ptr<UdpSocket>> connect_udp(Reactor& reactor, UniqueFd fd,
                                               const SocketAddress& address);

}  // namespace mesh::net
