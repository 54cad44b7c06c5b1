// PeerLink: the Peer over a Unix socket and Asio. Dials until somebody listens who is the right
// user, and again after each loss. A resource; lives on the io_context's one thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "control/peer.h"

namespace mesh::control {

class PeerLink final : public Peer {
 public:
  PeerLink(boost::asio::io_context& io, std::string path, std::uint32_t uid, std::string name);
  void start(PeerEvents& events);  // `events` outlives this

  bool is_connected() const override { return channel_.has_value(); }
  std::uint64_t pid() const override { return channel_ ? pid_ : 0; }
  void send(std::string_view payload, feed::Fds fds) override;

 private:
  void dial();
  void dial_later();
  void wait_readable();
  void wait_writable();
  void lose(const Error& why);

  std::string path_;
  std::uint32_t uid_;
  std::string name_;
  PeerEvents* events_ = nullptr;
  boost::asio::posix::stream_descriptor descriptor_;  // a duplicate of the channel's, for waiting
  boost::asio::steady_timer timer_;
  std::optional<feed::Channel> channel_;
  std::uint64_t connection_ = 0;  // waits of an earlier connection do nothing
  bool is_writing_ = false;
  std::uint64_t pid_ = 0;
  std::string last_error_;
};

}  // namespace mesh::control
