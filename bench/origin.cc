// A tiny epoll HTTP/1.1 server: the peer behind every proxy that is measured.
//
// usage: bench_origin PORT      on all addresses; GET /N answers 200 with N bytes of body (N up to
// 16 MiB). Keep-alive, pipelining, one thread. It reads a request only as far as the blank line,
// and ends the connection after one with `connection: close` (spelt so).
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

namespace {

constexpr std::size_t kLargestBody = 16u << 20;

struct Connection {
  std::string in;
  std::string out;
  std::size_t sent = 0;
  bool last = false;  // no request follows
};

int listen_on(std::uint16_t port) {
  int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int off = 0;
  int on = 1;
  ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 sa{};
  sa.sin6_family = AF_INET6;
  sa.sin6_port = htons(port);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&sa), sizeof sa) != 0 || ::listen(fd, 1024) != 0) {
    std::perror("bench_origin: bind or listen");
    std::exit(1);
  }
  return fd;
}

// The answer to the request head at the front of `in`; false when it is not complete yet.
bool answer_one(Connection& c) {
  std::size_t end = c.in.find("\r\n\r\n");
  if (end == std::string::npos) return false;
  c.last =
      std::string_view(c.in).substr(0, end).find("\r\nconnection: close") != std::string_view::npos;
  std::size_t slash = c.in.find('/');
  std::size_t size = slash < end ? std::strtoul(c.in.c_str() + slash + 1, nullptr, 10) : 0;
  size = std::min(size, kLargestBody);
  c.out += "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: ";
  c.out += std::to_string(size);
  c.out += c.last ? "\r\nconnection: close\r\n\r\n" : "\r\n\r\n";
  c.out.append(size, 'x');
  c.in.erase(0, end + 4);
  return true;
}

// False when the connection is over.
bool serve(int fd, Connection& c) {
  char buffer[16384];
  for (;;) {
    ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return false;
    if (n < 0) break;
    c.in.append(buffer, static_cast<std::size_t>(n));
    while (answer_one(c)) {
    }
    if (static_cast<std::size_t>(n) < sizeof buffer) break;
  }
  while (c.sent < c.out.size()) {
    ssize_t n = ::send(fd, c.out.data() + c.sent, c.out.size() - c.sent, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN;
    c.sent += static_cast<std::size_t>(n);
  }
  c.out.clear();
  c.sent = 0;
  return !c.last;
}

}  // namespace

int main(int argc, char** argv) {
  auto port = argc == 2 ? std::strtoul(argv[1], nullptr, 10) : 0;
  if (port == 0 || port > 65535) {
    std::fprintf(stderr, "usage: bench_origin PORT\n");
    return 2;
  }
  int listener = listen_on(static_cast<std::uint16_t>(port));
  int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  epoll_event add{.events = EPOLLIN, .data = {.fd = listener}};
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &add);
  std::unordered_map<int, std::unique_ptr<Connection>> connections;
  epoll_event events[64];
  for (;;) {
    int n = ::epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < n; ++i) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        int accepted = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (accepted < 0) continue;
        int on = 1;
        ::setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        epoll_event both{.events = EPOLLIN | EPOLLOUT | EPOLLET, .data = {.fd = accepted}};
        ::epoll_ctl(epoll, EPOLL_CTL_ADD, accepted, &both);
        connections.emplace(accepted, std::make_unique<Connection>());
      } else if (auto it = connections.find(fd);
                 it != connections.end() && !serve(fd, *it->second)) {
        connections.erase(it);
        ::close(fd);
      }
    }
  }
}
