// FakeUpstream: a scripted HTTP/1.1 server on loopback, for integration tests.
//
// One thread a connection. The script sees each request (head and body as received) and returns
// the bytes to answer with; it may also drive the socket itself. Counts what a proxy's promises are
// about: connections, how many were open at once, requests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/address.h"
#include "base/unique_fd.h"
#include "tests/support/gate.h"

namespace mesh::test {

// A blocking socket with the little of HTTP that tests need.
class HttpSocket {
 public:
  explicit HttpSocket(UniqueFd fd) : fd_(std::move(fd)) {
    const timeval patience{kPatience.count(), 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  // Nullopt where nobody listens.
  static std::optional<HttpSocket> try_connect(std::uint16_t port) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) return std::nullopt;
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return HttpSocket(std::move(fd));
  }
  static HttpSocket connect_to(std::uint16_t port) {
    auto socket = try_connect(port);
    return socket ? std::move(*socket) : HttpSocket(UniqueFd());
  }

  struct Message {
    std::string start_line, head, body;
    std::vector<std::string> interim;  // start lines of 1xx responses before it
    bool complete = false;             // the body ended as its framing says
    int status() const { return start_line.size() > 12 ? std::atoi(start_line.c_str() + 9) : 0; }
    // The value of the first field of this name; "" without one.
    std::string field(std::string_view name) const {
      std::string_view rest = head;
      while (!rest.empty()) {
        const auto end = rest.find("\r\n");
        const std::string_view line = rest.substr(0, end);
        if (line.size() > name.size() && line[name.size()] == ':' &&
            strncasecmp(line.data(), name.data(), name.size()) == 0) {
          auto value = line.substr(name.size() + 1);
          while (!value.empty() && value.front() == ' ') value.remove_prefix(1);
          return std::string(value);
        }
        if (end == std::string_view::npos) break;
        rest.remove_prefix(end + 2);
      }
      return "";
    }
    bool has(std::string_view name) const {
      return ("\r\n" + lower(head)).find("\r\n" + lower(name) + ":") != std::string::npos;
    }
    static std::string lower(std::string_view text) {
      std::string result(text);
      for (char& c : result) c = static_cast<char>(std::tolower(c));
      return result;
    }
  };

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  // The next message; nullopt where the peer ended before a whole head. `request`: its method.
  std::optional<Message> read(std::string_view request_method = "GET") {
    Message message;
    while (true) {
      auto head = read_head();
      if (!head) return std::nullopt;
      const auto line_end = head->find("\r\n");
      message.start_line = head->substr(0, line_end);
      message.head = head->substr(line_end + 2);
      if (message.start_line.starts_with("HTTP/1.1 1") && message.status() != 101) {
        message.interim.push_back(message.start_line);
        continue;
      }
      break;
    }
    const bool is_response = message.start_line.starts_with("HTTP/");
    const int status = message.status();
    if (is_response &&
        (request_method == "HEAD" || status == 204 || status == 304 || status == 101)) {
      message.complete = true;
    } else if (Message::lower(message.field("transfer-encoding")) == "chunked") {
      message.complete = read_chunked(message.body);
    } else if (message.has("content-length")) {
      const auto size = std::strtoull(message.field("content-length").c_str(), nullptr, 10);
      message.complete = take(size, message.body);
    } else if (is_response) {
      while (fill()) {
      }
      message.body = std::exchange(buffer_, {});
      message.complete = true;
    } else {
      message.complete = true;
    }
    return message;
  }
  // Until the peer ends; what came.
  std::string read_to_end() {
    while (fill()) {
    }
    return std::exchange(buffer_, {});
  }
  bool is_closed() {  // waits for the end
    if (!buffer_.empty()) return false;
    return !fill() && errno != EAGAIN;
  }
  bool is_quiet() {  // nothing to read now, nor has the peer ended
    pollfd p{fd_.get(), POLLIN, 0};
    return buffer_.empty() && ::poll(&p, 1, 0) == 0;
  }
  ::tcp_info tcp_info() const {
    ::tcp_info info{};
    socklen_t size = sizeof info;
    ::getsockopt(fd_.get(), IPPROTO_TCP, TCP_INFO, &info, &size);
    return info;
  }
  void shutdown_write() { ::shutdown(fd_.get(), SHUT_WR); }
  void reset() {
    const linger now{1, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
    fd_.reset();
  }
  void close() { fd_.reset(); }
  int fd() const { return fd_.get(); }
  std::string& buffered() { return buffer_; }
  bool fill() {
    char bytes[65536];
    const ssize_t n = ::recv(fd_.get(), bytes, sizeof bytes, 0);
    if (n <= 0) {
      if (n == 0) errno = 0;
      return false;
    }
    buffer_.append(bytes, static_cast<std::size_t>(n));
    return true;
  }
  std::optional<std::string> read_head() {
    while (true) {
      const auto end = buffer_.find("\r\n\r\n");
      if (end != std::string::npos) {
        std::string head = buffer_.substr(0, end + 2);
        buffer_.erase(0, end + 4);
        return head;
      }
      if (!fill()) return std::nullopt;
    }
  }
  bool take(std::size_t size, std::string& into) {
    while (buffer_.size() < size) {
      if (!fill()) {
        into += std::exchange(buffer_, {});
        return false;
      }
    }
    into += buffer_.substr(0, size);
    buffer_.erase(0, size);
    return true;
  }

 private:
  bool read_chunked(std::string& into) {
    while (true) {
      std::string line;
      while (buffer_.find("\r\n") == std::string::npos) {
        if (!fill()) return false;
      }
      line = buffer_.substr(0, buffer_.find("\r\n"));
      buffer_.erase(0, line.size() + 2);
      const auto size = std::strtoull(line.c_str(), nullptr, 16);
      if (size == 0) break;
      if (!take(size, into)) return false;
      std::string end;
      if (!take(2, end)) return false;
    }
    while (true) {  // trailers
      while (buffer_.find("\r\n") == std::string::npos) {
        if (!fill()) return false;
      }
      const std::string line = buffer_.substr(0, buffer_.find("\r\n"));
      buffer_.erase(0, line.size() + 2);
      if (line.empty()) return true;
      trailers_.push_back(line);
    }
  }
  UniqueFd fd_;
  std::string buffer_;

 public:
  std::vector<std::string> trailers_;
};

class FakeUpstream {
 public:
  using Message = HttpSocket::Message;
  // Returns the bytes of the answer; empty: close the connection without one.
  using Script = std::function<std::string(const Message& request)>;
  // Drives a whole connection.
  using Raw = std::function<void(HttpSocket& connection)>;

  explicit FakeUpstream(Script script) : FakeUpstream(Raw{}, std::move(script)) {}
  static FakeUpstream raw(Raw raw) { return FakeUpstream(std::move(raw), Script{}); }
  ~FakeUpstream() {
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);
    acceptor_.join();
    std::list<std::thread> threads;
    {
      std::lock_guard lock(mutex_);
      for (int fd : open_fds_) ::shutdown(fd, SHUT_RDWR);
      threads.swap(threads_);
    }
    for (auto& thread : threads) thread.join();
  }

  static std::string ok(std::string_view body, std::string_view fields = "") {
    return "HTTP/1.1 200 OK\r\ncontent-length: " + std::to_string(body.size()) + "\r\n" +
           std::string(fields) + "\r\n" + std::string(body);
  }

  std::uint16_t port() const { return port_; }
  SocketAddress address() const { return {IpAddress::v4(127, 0, 0, 1), port_}; }
  int connections() const { return connections_; }
  int most_at_once() const { return most_; }
  int requests() const { return requests_; }
  std::vector<Message> seen() const {
    std::lock_guard lock(mutex_);
    return seen_;
  }
  Message last() const {
    std::lock_guard lock(mutex_);
    return seen_.empty() ? Message{} : seen_.back();
  }

 private:
  FakeUpstream(Raw raw, Script script) : raw_(std::move(raw)), script_(std::move(script)) {
    listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(listener_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at);
    ::listen(listener_.get(), 128);
    socklen_t size = sizeof at;
    ::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&at), &size);
    port_ = ntohs(at.sin_port);
    acceptor_ = std::thread([this] { accept_all(); });
  }
  void accept_all() {
    while (!stopping_) {
      const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      ++connections_;
      const int now = ++open_;
      int most = most_;
      while (now > most && !most_.compare_exchange_weak(most, now)) {
      }
      std::lock_guard lock(mutex_);
      open_fds_.push_back(fd);
      threads_.emplace_back([this, fd] { serve(fd); });
    }
  }
  void serve(int fd) {
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    {
      HttpSocket connection{UniqueFd(fd)};
      if (raw_) {
        raw_(connection);
      } else {
        while (auto request = connection.read()) {
          ++requests_;
          {
            std::lock_guard lock(mutex_);
            seen_.push_back(*request);
          }
          const std::string answer = script_(*request);
          if (answer.empty() || !connection.send(answer)) break;
          if (Message::lower(request->field("connection")) == "close") break;
        }
      }
      std::lock_guard lock(mutex_);
      std::erase(open_fds_, fd);
      --open_;  // before the close is seen by the peer
    }
  }

  Raw raw_;
  Script script_;
  UniqueFd listener_;
  std::uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0}, open_{0}, most_{0}, requests_{0};
  mutable std::mutex mutex_;
  std::vector<Message> seen_;
  std::vector<int> open_fds_;
  std::list<std::thread> threads_;
  std::thread acceptor_;
};

}  // namespace mesh::test
