// The TCP connections and connected UDP sockets of a network namespace: looks at them, and ends
// some (sock_diag(7); the kernel needs CONFIG_INET_DIAG_DESTROY). Needs CAP_SYS_ADMIN, to enter the
// namespace, and CAP_NET_ADMIN there. Errc::timed_out: one of the sockets is locked for long
// (socket_work.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/address.h"
#include "base/result.h"
#include "datapath/datapath.h"
#include "datapath/socket_work.h"

namespace mesh::datapath {

// Has the kernel load its modules for that (inet_diag, tcp_diag, udp_diag): else the first look
// waits for modprobe(8), which SocketWork cannot tell from a lock. What fails fails the looks, too.
void load_diag_modules();

struct Connection {
  SocketAddress local, remote;
  std::uint64_t cookie = 0;
  std::uint8_t state = 0;  // TCP's
  std::uint32_t mesh = 0;  // um_mesh_socket, where that was asked for; 0: it is not the mesh's own
  // TCP: the other end asks for it, and no process here has a socket of it yet.
  bool is_request = false;
};

// What the kernel counts of a TCP connection, and the fast path of what went past TCP.
struct TcpCounts {
  std::uint64_t sent = 0, received = 0;
  std::uint32_t retransmits = 0;
};

// What is to become of a connection.
enum class Fate : std::uint8_t {
  kStays,
  kEnds,
  kEndsUnlessItConnected,  // TCP: it stays if, by the kernel's counts, this end surely sent the SYN
};

struct [[nodiscard]] Ended {
  std::vector<std::uint64_t> ended;  // by cookie
  std::size_t not_ended = 0;         // although they should have been, or nobody could say whether
  std::optional<Error> failure;      // the first one: of those, or of looking at all
};
// Resets every connection (also one that is just being made) of which `fate_of` says so.
// Either end of a TCP connection gets a reset, a connected UDP socket an error, and it is connected
// no more. Loopback connections are not asked about. `mesh_sockets`: -1, or the map
// um_mesh_sockets, which says whose a socket is.
Ended end_connections(SocketWork& work, int netns, Transport transport,
                      const std::function<Fate(const Connection&)>& fate_of, int mesh_sockets = -1);

// Shows every TCP connection, also one that is just being made, loopback among them.
// `fast_sockets`: the map um_fast_sockets.
Result<> for_each_connection(SocketWork& work, int netns, int fast_sockets,
                             const std::function<void(const Connection&, const TcpCounts&)>& see);

}  // namespace mesh::datapath
