#include "control/peer_link.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <chrono>
#include <utility>

#include "base/log.h"

namespace mesh::control {
namespace {

namespace asio = boost::asio;

constexpr std::chrono::milliseconds kRedial{20};

Logger log() {
  static const Logger made = logger("control");
  return made;
}

std::uint64_t peer_pid(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return 0;
  return static_cast<std::uint64_t>(peer.pid);
}

}  // namespace

PeerLink::PeerLink(asio::io_context& io, std::string path, std::uint32_t uid, std::string name)
    : path_(std::move(path)), uid_(uid), name_(std::move(name)), descriptor_(io), timer_(io) {}

void PeerLink::start(PeerEvents& events) {
  events_ = &events;
  dial();
}

void PeerLink::dial() {
  auto dialled = feed::dial_unix(path_, uid_);
  if (!dialled) {
    if (dialled.error().code == Errc::permission && dialled.error().message != last_error_)
      log()->error("a peer is not to be trusted peer={} error={}", name_, dialled.error().message);
    last_error_ = dialled.error().message;
    return dial_later();
  }
  const int duplicate = ::fcntl(dialled.value().get(), F_DUPFD_CLOEXEC, 3);
  if (duplicate < 0) return dial_later();
  pid_ = peer_pid(dialled.value().get());
  channel_.emplace(std::move(dialled).value());
  descriptor_.assign(duplicate);
  is_writing_ = false;
  last_error_.clear();
  ++connection_;
  log()->info("connected peer={}", name_);
  wait_readable();
  events_->on_connected();
}

void PeerLink::dial_later() {
  timer_.expires_after(kRedial);
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error && !channel_) dial();
  });
}

void PeerLink::wait_readable() {
  descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                         [this, connection = connection_](const boost::system::error_code& error) {
                           if (error || connection != connection_ || !channel_) return;
                           auto received =
                               channel_->receive([this](std::string_view payload, feed::Fds fds) {
                                 return events_->on_frame(payload, std::move(fds));
                               });
                           events_->on_drained();
                           if (!received) return lose(received.error());
                           wait_readable();
                         });
}

void PeerLink::wait_writable() {
  if (is_writing_) return;
  is_writing_ = true;
  descriptor_.async_wait(asio::posix::stream_descriptor::wait_write,
                         [this, connection = connection_](const boost::system::error_code& error) {
                           if (error || connection != connection_ || !channel_) return;
                           is_writing_ = false;
                           if (auto sent = channel_->flush(); !sent) return lose(sent.error());
                           if (channel_->wants_write()) wait_writable();
                         });
}

void PeerLink::send(std::string_view payload, feed::Fds fds) {
  if (!channel_) return;
  auto sent = channel_->send_bytes(payload, std::move(fds));
  if (!sent) {
    // Not from within send(): the caller is in the middle of something.
    asio::post(timer_.get_executor(), [this, connection = connection_, why = sent.error()] {
      if (connection == connection_ && channel_) lose(why);
    });
    return;
  }
  if (channel_->wants_write()) wait_writable();
}

void PeerLink::lose(const Error& why) {
  log()->warn("lost peer={} reason={}", name_, why.message);
  last_error_ = why.message;
  ++connection_;
  channel_.reset();
  boost::system::error_code ignored;
  descriptor_.close(ignored);
  events_->on_lost(why);
  if (!channel_) dial_later();
}

}  // namespace mesh::control
