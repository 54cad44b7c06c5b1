// Sockets of other network namespaces, made by a single-threaded process with CAP_SYS_ADMIN.
//
// Each call enters the namespace, makes what is asked and returns to the process's own; where the
// way back fails the process ends, since everything after it would happen in a stranger's
// namespace. Sockets are non-blocking and close-on-exec and belong to their namespace for ever.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/address.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "feed/channel.h"
#include "feed/hold.h"

namespace mesh::feed {

// Why something could not be made, as it is told to meshd.
struct Refusal {
  HoldStatus status = HoldStatus::kOk;
  int error = 0;  // errno of the failed step, or what else `detail` is of that status
};

class NamespaceSockets {
 public:
  static Result<NamespaceSockets> open();

  std::uint64_t own_cookie() const { return own_cookie_; }
  // Checks that the descriptor is a network namespace other than our own, and reads its cookie.
  Refusal inspect(int netns, std::uint64_t& cookie) const;
  // 127.0.0.1 (bound to lo) and [::1], port 15001, listening; without the second where the
  // namespace has no IPv6 loopback.
  Refusal make_outbound_listeners(int netns, Fds& listeners) const;
  // For DNS: UDP and TCP at port 15053 of every IPv4 loopback address, bound to lo. Which of these
  // addresses was reached tells which resolver was meant. Those that are wanted.
  Refusal make_dns_listeners(int netns, bool wants_udp, bool wants_tcp, Fds& listeners) const;
  // A listener at `address` in our own namespace; "::" is every address of both families.
  Refusal make_host_listener(const SocketAddress& address, bool v6, UniqueFd& listener) const;
  // Unconnected TCP or UDP sockets; netns -1: our own namespace.
  Refusal make_sockets(int netns, std::uint8_t family, bool datagram, std::uint32_t count,
                       Fds& sockets) const;

 private:
  template <class Make>
  Refusal within(int netns, const Make& make) const;

  UniqueFd own_;
  std::uint64_t own_cookie_ = 0;
};

// What a TCP listener or a bound UDP socket is; nullopt when it is none of that.
struct ListenerIdentity {
  std::uint64_t netns_cookie = 0;
  SocketAddress address;
  bool v6 = false;
  bool on_loopback = false;  // bound to the device
  bool datagram = false;     // UDP
};
std::optional<ListenerIdentity> identify_listener(int fd);

// listen(): also opens a listener again that refuse_connections() closed. Nothing to do for UDP.
Result<> accept_connections(int listener);
// Resets what waits in the backlog and refuses what comes, until accept_connections().
void refuse_connections(int listener);

}  // namespace mesh::feed
