// Peer: a channel to meshhold or meshproxy, from the side that dials.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string_view>
#include <utility>

#include "base/result.h"
#include "feed/channel.h"

namespace mesh::control {

// What is sent while the peer is away is dropped: its connecting is told, and then all is said
// anew.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual bool is_connected() const = 0;
  virtual std::uint64_t pid() const = 0;  // 0: away
  virtual void send(std::string_view payload, feed::Fds fds) = 0;
};

// Who is told. Calls come from the loop, never from within send().
class PeerEvents {
 public:
  virtual ~PeerEvents() = default;
  virtual void on_connected() = 0;
  virtual void on_lost(const Error& why) = 0;
  // An error ends the connection.
  virtual Result<> on_frame(std::string_view payload, feed::Fds fds) = 0;
  // All frames that were there have been handled; also before on_lost().
  virtual void on_drained() {}
};

inline void send_json(Peer& peer, const boost::json::object& message, feed::Fds fds = {}) {
  peer.send(boost::json::serialize(message), std::move(fds));
}

}  // namespace mesh::control
