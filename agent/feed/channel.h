// Channel: framed messages with file descriptors over one Unix stream socket.
//
// A frame is a header (u32 length of the payload, u32 number of descriptors, both little-endian)
// and the payload; its descriptors travel with its first byte (SCM_RIGHTS). Non-blocking and tied
// to no reactor: poll fd() for reading, and for writing while wants_write(). Bounded both ways; a
// malformed frame, a descriptor that got lost (MSG_CTRUNC: the process is at RLIMIT_NOFILE) or a
// queue that is full is an error of the channel: drop it and let the peer dial again.
// A resource; one thread at a time. Descriptors given to send() belong to the channel.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::feed {

using Fds = std::vector<UniqueFd>;

inline constexpr std::size_t kFrameHeader = 8;
inline constexpr std::size_t kMaxFrame = 16U << 20U;
inline constexpr std::size_t kMaxQueued = 64U << 20U;
inline constexpr std::size_t kMaxFds = 64;  // in one frame; the kernel's own limit is 253

// Frames out of a byte stream and a queue of descriptors: the part of a Channel without a socket.
class FrameDecoder {
 public:
  using Handler = std::function<Result<>(std::string_view payload, Fds fds)>;

  void add_fd(UniqueFd fd) { fds_.push_back(std::move(fd)); }
  // Appends the bytes and hands out every frame that is complete. An error, also one that the
  // handler returns, is final.
  Result<> feed(std::string_view bytes, const Handler& handler);

 private:
  std::string buffer_;
  std::deque<UniqueFd> fds_;
};

class Channel {
 public:
  using Handler = FrameDecoder::Handler;
  using JsonHandler = std::function<Result<>(boost::json::object message, Fds fds)>;

  explicit Channel(UniqueFd socket);  // makes it non-blocking and close-on-exec

  int fd() const { return socket_.get(); }
  bool wants_write() const { return !queue_.empty(); }
  std::size_t queued_bytes() const { return queued_; }

  // Queues one frame and writes what the socket takes. exhausted: over a limit, nothing is queued.
  Result<> send_bytes(std::string_view payload, Fds fds = {});
  Result<> send(const boost::json::value& message, Fds fds = {});
  // Writes what the socket takes; errors: the peer is gone.
  Result<> flush();

  // Reads what is there, at most about 4 MiB, and hands out complete frames. true: there may be
  // more (an edge-triggered caller calls again), false: all read. Error reset "the peer closed the
  // channel" at the end of the stream. The handler may send() but must not destroy the channel.
  Result<bool> receive(const Handler& handler);
  // The same for frames that must be JSON objects.
  Result<bool> receive_json(const JsonHandler& handler);

 private:
  struct Outgoing {
    std::string bytes;
    std::size_t offset = 0;
    Fds fds;
  };
  UniqueFd socket_;
  FrameDecoder decoder_;
  std::deque<Outgoing> queue_;
  std::size_t queued_ = 0;
};

// One payload as a JSON object: at most 64 levels deep.
Result<boost::json::object> parse_message(std::string_view payload);

// The user id of the peer: for an accepted socket the one that dialled, for a dialled one the one
// that called listen() (not its later id).
Result<std::uint32_t> peer_uid(int socket);

// Listens on a Unix stream socket at `path` with `mode`, replacing a dead one; an error when
// somebody still listens there. Non-blocking.
Result<UniqueFd> listen_unix(const std::string& path, unsigned mode);
// Dials it; refused when nobody listens, permission when the listener is not `uid`. Does not wait.
Result<UniqueFd> dial_unix(const std::string& path, std::uint32_t uid);
// Accepts one peer of user `uid`; others are closed (permission). unavailable: nobody waits.
Result<UniqueFd> accept_unix(int listener, std::uint32_t uid);

}  // namespace mesh::feed
