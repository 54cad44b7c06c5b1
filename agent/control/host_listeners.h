// HostListeners: the listeners that meshhold keeps in the host's own namespace: the gateway's, and
// the one of /metrics. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/unique_fd.h"
#include "config/snapshot.h"
#include "control/peer.h"
#include "feed/hold.h"

namespace mesh::control {

inline constexpr std::uint16_t kMetricsPort = 15020;

class HostListeners {
 public:
  explicit HostListeners(Peer& hold) : hold_(hold) {}

  // The binds of the gateways that the proxy has and that are still wanted.
  void reconcile(const std::set<SocketAddress>& gateway_binds);
  void on_hold_connected();
  void on_hold_message(const feed::HoldMessage& message, feed::Fds fds);
  // "cannot listen on 127.0.0.1:8080: ..."
  std::vector<std::string> problems() const;

 private:
  using Key = std::pair<feed::ListenerKind, SocketAddress>;
  struct Listener {
    UniqueFd fd;  // a duplicate, for the next meshhold
    std::string problem;
  };
  void ask(const Key& key, const Listener& listener);

  Peer& hold_;
  std::map<Key, Listener> listeners_;
};

std::set<SocketAddress> gateway_binds(const config::Snapshot& wanted,
                                      const config::Snapshot& acked);

}  // namespace mesh::control
