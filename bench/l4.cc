// Connections without a proxy: both ends of l4-roundtrip, l4-connect and l4-stream.
//
// usage: bench_l4 serve PORT       PORT: sends back whatever comes; PORT+1: the same, and ends the
//                                  connection after the first 1024 bytes; PORT+2: takes everything,
//                                  and says one byte at the end. One thread.
//        bench_l4 load ADDRESS PORT roundtrip|connect|stream COUNT WARM_UP
//
// One connection at a time; neither end blocks in the socket itself. load does WARM_UP operations,
// prints "ready", waits for a line, does COUNT more and prints what they took as JSON. An operation
// is 1024 bytes there and back; a connection that does that once; a write of 64 KiB.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/address.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMessage = 1024, kBlock = 65536;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

void wait_for(int fd, short what) {
  pollfd waiting{fd, what, 0};
  if (::poll(&waiting, 1, 60'000) != 1) fail("bench_l4: poll");
}

void send_all(int fd, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t sent = ::send(fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) {
      wait_for(fd, POLLOUT);
      continue;
    }
    if (sent <= 0) fail("bench_l4: send");
    data += sent;
    size -= static_cast<std::size_t>(sent);
  }
}

ssize_t receive(int fd, char* data, std::size_t size) {
  wait_for(fd, POLLIN);
  return ::recv(fd, data, size, 0);
}

// ---- serving

enum class Kind { kEcho, kOnce, kSink };

int listen_on(std::uint16_t port) {
  const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int off = 0, on = 1;
  ::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 sa{};
  sa.sin6_family = AF_INET6;
  sa.sin6_port = htons(port);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&sa), sizeof sa) != 0 || ::listen(fd, 1024) != 0)
    fail("bench_l4: bind or listen");
  return fd;
}

// False: the connection is over.
bool serve_one(int fd, Kind kind) {
  static char buffer[kBlock];
  const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
  if (got < 0 && errno == EAGAIN) return true;
  if (got <= 0) {
    if (kind == Kind::kSink && got == 0) send_all(fd, "!", 1);
    return false;
  }
  if (kind == Kind::kSink) return true;
  send_all(fd, buffer, static_cast<std::size_t>(got));
  return kind == Kind::kEcho;
}

[[noreturn]] void serve(std::uint16_t port) {
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC);
  std::unordered_map<int, Kind> listeners, connections;
  const auto watch = [&](int fd) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  };
  for (const Kind kind : {Kind::kEcho, Kind::kOnce, Kind::kSink}) {
    const int fd = listen_on(static_cast<std::uint16_t>(port + static_cast<int>(kind)));
    listeners[fd] = kind;
    watch(fd);
  }
  for (;;) {
    epoll_event events[64];
    const int n = ::epoll_wait(epoll, events, 64, -1);
    for (int i = 0; i < n; ++i) {
      const int fd = events[i].data.fd;
      if (const auto listener = listeners.find(fd); listener != listeners.end()) {
        const int accepted = ::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (accepted < 0) continue;
        const int on = 1;
        ::setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[accepted] = listener->second;
        watch(accepted);
      } else if (!serve_one(fd, connections.at(fd))) {
        connections.erase(fd);
        ::close(fd);
      }
    }
  }
}

// ---- load

class Load {
 public:
  Load(const mesh::IpAddress& ip, std::uint16_t port, const std::string& work)
      : ip_(ip), port_(port), work_(work), data_(kBlock, 'x') {
    if (work_ != "connect") fd_ = connect(work_ == "stream" ? Kind::kSink : Kind::kEcho);
  }

  void run(std::size_t count, std::vector<std::uint32_t>* taken) {
    for (std::size_t i = 0; i < count; ++i) {
      const auto start = Clock::now();
      if (work_ == "stream")
        send_all(fd_, data_.data(), kBlock);
      else if (work_ == "roundtrip")
        exchange(fd_);
      else
        connect_once();
      if (taken)
        taken->push_back(static_cast<std::uint32_t>(
            std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count()));
    }
  }
  // Of a stream: until all has been read.
  void finish() {
    if (work_ != "stream") return;
    char last = 0;
    ::shutdown(fd_, SHUT_WR);
    if (receive(fd_, &last, 1) != 1) fail("bench_l4: the end of the stream");
  }

 private:
  int connect(Kind kind) const {
    const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in6 sa{};
    sa.sin6_family = AF_INET6;
    sa.sin6_port = htons(static_cast<std::uint16_t>(port_ + static_cast<int>(kind)));
    std::memcpy(&sa.sin6_addr, ip_.bytes().data(), 16);
    if (::connect(fd, reinterpret_cast<sockaddr*>(&sa), sizeof sa) != 0) fail("bench_l4: connect");
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
  }
  void exchange(int fd) const {
    static char buffer[kMessage];
    send_all(fd, data_.data(), kMessage);
    for (std::size_t got = 0; got < kMessage;) {
      const ssize_t more = receive(fd, buffer, kMessage - got);
      if (more <= 0) fail("bench_l4: recv");
      got += static_cast<std::size_t>(more);
    }
  }
  void connect_once() const {
    const int fd = connect(Kind::kOnce);
    exchange(fd);
    char end = 0;
    if (receive(fd, &end, 1) != 0) fail("bench_l4: the end");
    ::close(fd);
  }

  mesh::IpAddress ip_;
  std::uint16_t port_;
  std::string work_;
  std::string data_;
  int fd_ = -1;
};

double cpu_us() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

int load(char** argv) {
  const auto ip = mesh::IpAddress::parse(argv[0]);
  if (!ip) {
    std::fprintf(stderr, "bench_l4: %s\n", ip.error().message.c_str());
    return 2;
  }
  const std::size_t count = std::strtoul(argv[3], nullptr, 10);
  Load load(ip.value(), static_cast<std::uint16_t>(std::strtoul(argv[1], nullptr, 10)), argv[2]);
  load.run(std::strtoul(argv[4], nullptr, 10), nullptr);
  std::printf("ready\n");
  std::fflush(stdout);
  (void)std::getchar();
  std::vector<std::uint32_t> taken;
  taken.reserve(count);
  const double cpu = cpu_us();
  const auto start = Clock::now();
  load.run(count, &taken);
  load.finish();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  std::sort(taken.begin(), taken.end());
  const auto percentile = [&](double p) {
    return taken[static_cast<std::size_t>(p * static_cast<double>(taken.size() - 1))];
  };
  std::printf(
      "{\"requests\": %zu, \"errors\": 0, \"seconds\": %.6f, \"cpu_us\": %.0f, \"p50_us\": %u, "
      "\"p99_us\": %u}\n",
      count, seconds, cpu_us() - cpu, percentile(0.5), percentile(0.99));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "serve" && argc == 3)
    serve(static_cast<std::uint16_t>(std::strtoul(argv[2], nullptr, 10)));
  if (what == "load" && argc == 7) return load(argv + 2);
  std::fprintf(stderr,
               "usage: bench_l4 serve PORT\n"
               "       bench_l4 load ADDRESS PORT roundtrip|connect|stream COUNT WARM_UP\n");
  return 2;
}
