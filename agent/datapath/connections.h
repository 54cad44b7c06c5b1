// The TCP connections and connected UDP sockets of a network namespace: looks at them, and ends
// some (sock_diag(7); the kernel needs CONFIG_INET_DIAG_DESTROY). Needs CAP_SYS_ADMIN, to enter the
// namespace, and CAP_NET_ADMIN there. Blocks for as long as the kernel takes to list them.
#pragma once

#include <cstddef>
#include <functional>

#include "base/address.h"
#include "base/result.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

struct Connection {
  SocketAddress local, remote;
  bool is_inbound = false;  // TCP: somebody listens at the local port
};

// Resets every connection (also one that is just being made) of which `is_forbidden` says so;
// returns how many. Either end of a TCP connection gets a reset, a connected UDP socket an error,
// and it is connected no more. Loopback connections are not asked about.
Result<std::size_t> end_connections(int netns, Transport transport,
                                    const std::function<bool(const Connection&)>& is_forbidden);

}  // namespace mesh::datapath
