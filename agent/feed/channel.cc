#include "feed/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cstring>
#include <utility>

namespace mesh::feed {
namespace {

constexpr std::size_t kReadChunk = 64U << 10U;
constexpr std::size_t kReadBudget = 4U << 20U;

void put_u32(char* to, std::uint32_t value) {
  for (unsigned i = 0; i < 4; ++i) to[i] = static_cast<char>(value >> (8 * i));
}

std::uint32_t get_u32(const char* from) {
  std::uint32_t value = 0;
  for (unsigned i = 0; i < 4; ++i)
    value |= static_cast<std::uint32_t>(static_cast<unsigned char>(from[i])) << (8 * i);
  return value;
}

Error malformed(std::string_view what) {
  return {Errc::invalid_argument, "malformed frame: " + std::string(what)};
}

Error closed() { return {Errc::reset, "the peer closed the channel"}; }

// A control buffer with room for kMaxFds descriptors.
struct Control {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> bytes;
};

std::size_t write_fds(const Fds& fds, msghdr& message, Control& control) {
  message.msg_control = control.bytes.data();
  message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  for (std::size_t i = 0; i < fds.size(); ++i) {
    const int fd = fds[i].get();
    std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof fd);
  }
  return fds.size();
}

void read_fds(msghdr& message, FrameDecoder& decoder) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      decoder.add_fd(UniqueFd(fd));
    }
  }
}

Result<sockaddr_un> unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error{Errc::invalid_argument,
                 path + ": too long for a Unix socket; use a shorter --run-dir"};
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> unix_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error(errno, "socket(AF_UNIX)");
  return fd;
}

Result<UniqueFd> connect_unix(const std::string& path) {
  MESH_TRY(auto address, unix_address(path));
  MESH_TRY(auto fd, unix_socket());
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return fd;
  return errno_error(errno, "connect " + path);
}

}  // namespace

Result<> FrameDecoder::feed(std::string_view bytes, const Handler& handler) {
  buffer_.append(bytes);
  std::size_t at = 0;
  while (buffer_.size() - at >= kFrameHeader) {
    const std::size_t length = get_u32(buffer_.data() + at);
    const std::size_t count = get_u32(buffer_.data() + at + 4);
    if (length > kMaxFrame) return malformed("longer than 16 MiB");
    if (count > kMaxFds) return malformed("too many descriptors");
    if (buffer_.size() - at - kFrameHeader < length) break;
    if (fds_.size() < count) return malformed("a descriptor is missing");
    Fds fds;
    for (std::size_t i = 0; i < count; ++i) {
      fds.push_back(std::move(fds_.front()));
      fds_.pop_front();
    }
    MESH_TRY(handler(std::string_view(buffer_).substr(at + kFrameHeader, length), std::move(fds)));
    at += kFrameHeader + length;
  }
  buffer_.erase(0, at);
  // Descriptors come with the first byte of their frame: with none begun, or more than one frame's
  // worth of them, nobody announced them.
  if (fds_.size() > kMaxFds || (buffer_.empty() && !fds_.empty()))
    return malformed("descriptors that no frame announced");
  if (buffer_.empty() && buffer_.capacity() > kReadBudget) std::string().swap(buffer_);
  return success();
}

Channel::Channel(UniqueFd socket) : socket_(std::move(socket)) {
  ::fcntl(socket_.get(), F_SETFL, ::fcntl(socket_.get(), F_GETFL) | O_NONBLOCK);
  ::fcntl(socket_.get(), F_SETFD, FD_CLOEXEC);
}

Result<> Channel::send_bytes(std::string_view payload, Fds fds) {
  if (payload.size() > kMaxFrame)
    return Error{Errc::exhausted, "a message of " + std::to_string(payload.size()) +
                                      " bytes does not fit into a frame of 16 MiB"};
  if (fds.size() > kMaxFds)
    return Error{Errc::exhausted,
                 "too many descriptors for one frame: " + std::to_string(fds.size())};
  if (queued_ + payload.size() + kFrameHeader > kMaxQueued)
    return Error{Errc::exhausted, "the peer does not read: 64 MiB are queued for it"};
  Outgoing out;
  out.bytes.resize(kFrameHeader);
  put_u32(out.bytes.data(), static_cast<std::uint32_t>(payload.size()));
  put_u32(out.bytes.data() + 4, static_cast<std::uint32_t>(fds.size()));
  out.bytes.append(payload);
  out.fds = std::move(fds);
  queued_ += out.bytes.size();
  queue_.push_back(std::move(out));
  return flush();
}

Result<> Channel::send(const boost::json::value& message, Fds fds) {
  return send_bytes(boost::json::serialize(message), std::move(fds));
}

Result<> Channel::flush() {
  while (!queue_.empty()) {
    Outgoing& out = queue_.front();
    iovec data{out.bytes.data() + out.offset, out.bytes.size() - out.offset};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    Control control{};
    if (!out.fds.empty()) write_fds(out.fds, message, control);
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return success();
      return errno_error(errno, "send on the channel");
    }
    out.fds.clear();  // they went with the first byte; our copies close here
    out.offset += static_cast<std::size_t>(sent);
    queued_ -= static_cast<std::size_t>(sent);
    if (out.offset == out.bytes.size()) queue_.pop_front();
  }
  return success();
}

Result<bool> Channel::receive(const Handler& handler) {
  std::string chunk(kReadChunk, '\0');
  for (std::size_t total = 0; total < kReadBudget;) {
    iovec data{chunk.data(), chunk.size()};
    msghdr message{};
    Control control{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      return errno_error(errno, "receive on the channel");
    }
    read_fds(message, decoder_);
    if (message.msg_flags & MSG_CTRUNC)
      return Error{Errc::exhausted,
                   "descriptors of a message were lost: raise the limit of open files"};
    if (got == 0) return closed();
    MESH_TRY(decoder_.feed({chunk.data(), static_cast<std::size_t>(got)}, handler));
    total += static_cast<std::size_t>(got);
  }
  return true;
}

Result<bool> Channel::receive_json(const JsonHandler& handler) {
  return receive([&handler](std::string_view payload, Fds fds) -> Result<> {
    MESH_TRY(auto message, parse_message(payload));
    return handler(std::move(message), std::move(fds));
  });
}

Result<boost::json::object> parse_message(std::string_view payload) {
  boost::json::parse_options options;
  options.max_depth = 64;
  boost::json::error_code error;
  boost::json::value value = boost::json::parse(payload, error, {}, options);
  if (error) return malformed("no JSON: " + error.message());
  if (!value.is_object()) return malformed("no JSON object");
  return std::move(value.get_object());
}

Result<std::uint32_t> peer_uid(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return errno_error(errno, "SO_PEERCRED");
  return peer.uid;
}

Result<UniqueFd> listen_unix(const std::string& path, unsigned mode) {
  if (auto other = connect_unix(path); other.has_value())
    return Error{Errc::exhausted, path + ": another process listens there"};
  MESH_TRY(auto address, unix_address(path));
  MESH_TRY(auto fd, unix_socket());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return errno_error(errno, "unlink " + path);
  const mode_t before = ::umask(0777U & ~mode);
  const int bound = ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  const int error = errno;
  ::umask(before);
  if (bound != 0) return errno_error(error, "bind " + path);
  if (::listen(fd.get(), 64) != 0) return errno_error(errno, "listen " + path);
  return fd;
}

Result<UniqueFd> dial_unix(const std::string& path, std::uint32_t uid) {
  MESH_TRY(auto fd, connect_unix(path));
  MESH_TRY(auto owner, peer_uid(fd.get()));
  if (owner != uid)
    return Error{Errc::permission, path + ": the listener is user " + std::to_string(owner) +
                                       ", not user " + std::to_string(uid)};
  return fd;
}

Result<UniqueFd> accept_unix(int listener, std::uint32_t uid) {
  UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!fd) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ECONNABORTED)
      return Error{Errc::unavailable, "nobody waits"};
    return errno_error(errno, "accept");
  }
  MESH_TRY(auto peer, peer_uid(fd.get()));
  if (peer != uid)
    return Error{Errc::permission, "user " + std::to_string(peer) + " may not connect here"};
  return fd;
}

}  // namespace mesh::feed
