// A closed-loop HTTP/1.1 load: C connections, each sends the next request when its answer is
// complete.
//
// usage: bench_load ADDRESS PORT HOST BODY_SIZE CONNECTIONS REQUESTS WARM_UP [reconnect]
// Prints one JSON line: {"requests", "errors", "seconds", "cpu_us", "p50_us", "p99_us"}; WARM_UP
// requests come before the measured ones. "reconnect": a new connection for every request. A
// request has 9 fields and about 450 bytes. The caller reads other processes' CPU time around the
// measured part: "ready" is printed after the warm-up, and the measured part starts when a line
// arrives on stdin.
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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
#include <vector>

#include "base/address.h"

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  mesh::SocketAddress address;
  std::string request;
  std::size_t connections = 1;
  bool reconnect = false;
};

struct Connection {
  int fd = -1;
  Clock::time_point start;
  std::size_t head_bytes = 0;  // of the answer; 0: not complete yet
  std::size_t wanted = 0;
  std::size_t received = 0;
  std::string head;
};

struct Tally {
  std::size_t done = 0;
  std::size_t errors = 0;
  std::vector<std::uint32_t> latency_us;
};

class Load {
 public:
  Load(const Options& options)
      : options_(options), epoll_(::epoll_create1(0)), connections_(options.connections) {}

  Tally run(std::size_t requests) {
    Tally tally;
    tally.latency_us.reserve(requests);
    started_ = 0;
    limit_ = requests;
    for (Connection& c : connections_)
      if (started_ < limit_) start(c);
    while (tally.done + tally.errors < requests) wait(tally);
    return tally;
  }

 private:
  void connect(Connection& c) {
    c.fd = ::socket(AF_INET6, SOCK_STREAM, 0);
    sockaddr_in6 sa{};
    sa.sin6_family = AF_INET6;
    sa.sin6_port = htons(options_.address.port);
    std::memcpy(&sa.sin6_addr, options_.address.ip.bytes().data(), 16);
    if (::connect(c.fd, reinterpret_cast<sockaddr*>(&sa), sizeof sa) != 0) {
      std::perror("bench_load: connect");
      std::exit(1);
    }
    int on = 1;
    ::setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::fcntl(c.fd, F_SETFL, O_NONBLOCK);
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = &c}};
    ::epoll_ctl(epoll_, EPOLL_CTL_ADD, c.fd, &event);
  }

  void start(Connection& c) {
    ++started_;
    c.start = Clock::now();
    if (c.fd < 0) connect(c);
    c.head.clear();
    c.head_bytes = c.wanted = c.received = 0;
    if (::send(c.fd, options_.request.data(), options_.request.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(options_.request.size())) {
      std::perror("bench_load: send");
      std::exit(1);
    }
  }

  void wait(Tally& tally) {
    epoll_event events[64];
    int n = ::epoll_wait(epoll_, events, 64, 10'000);
    if (n == 0) {
      std::fprintf(stderr, "bench_load: no answer for 10 s\n");
      std::exit(1);
    }
    for (int i = 0; i < n; ++i) read(*static_cast<Connection*>(events[i].data.ptr), tally);
  }

  void read(Connection& c, Tally& tally) {
    static char buffer[65536];
    for (;;) {
      ssize_t n = ::recv(c.fd, buffer, sizeof buffer, 0);
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) return failed(c, tally);
      take(c, buffer, static_cast<std::size_t>(n));
      if (c.head_bytes != 0 && c.received == c.wanted) return finished(c, tally);
      if (static_cast<std::size_t>(n) < sizeof buffer) return;
    }
  }

  static void take(Connection& c, const char* data, std::size_t n) {
    if (c.head_bytes != 0) {
      c.received += n;
      return;
    }
    c.head.append(data, n);
    std::size_t end = c.head.find("\r\n\r\n");
    if (end == std::string::npos) return;
    c.head_bytes = end + 4;
    c.received = c.head.size() - c.head_bytes;
    const char* length = ::strcasestr(c.head.c_str(), "content-length:");
    c.wanted = length ? std::strtoul(length + 15, nullptr, 10) : 0;
  }

  void finished(Connection& c, Tally& tally) {
    bool good = c.head.compare(0, 12, "HTTP/1.1 200") == 0;
    auto taken = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - c.start);
    good ? ++tally.done : ++tally.errors;
    tally.latency_us.push_back(static_cast<std::uint32_t>(taken.count()));
    if (options_.reconnect) close(c);
    if (started_ < limit_) start(c);
  }

  void failed(Connection& c, Tally& tally) {
    ++tally.errors;
    close(c);
    if (started_ < limit_) start(c);
  }

  static void close(Connection& c) {
    ::close(c.fd);
    c.fd = -1;
  }

  const Options& options_;
  int epoll_;
  std::vector<Connection> connections_;
  std::size_t started_ = 0;
  std::size_t limit_ = 0;
};

std::string make_request(const std::string& host, const std::string& size) {
  return "GET /" + size + " HTTP/1.1\r\nhost: " + host +
         "\r\nuser-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
         "bench/1.0\r\n"
         "accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
         "accept-language: en-GB,en;q=0.5\r\naccept-encoding: gzip, deflate\r\n"
         "cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n"
         "cache-control: no-cache\r\nreferer: http://productpage/productpage?u=normal\r\n"
         "x-forwarded-user: 4711\r\n\r\n";
}

double cpu_us() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  auto us = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 8) {
    std::fprintf(
        stderr,
        "usage: bench_load ADDRESS PORT HOST BODY_SIZE CONNECTIONS REQUESTS WARM_UP [reconnect]\n");
    return 2;
  }
  std::string ip = argv[1];
  auto address = mesh::SocketAddress::parse(
      (ip.find(':') == std::string::npos ? ip : "[" + ip + "]") + ":" + argv[2]);
  if (address.has_error()) {
    std::fprintf(stderr, "bench_load: %s\n", address.error().message.c_str());
    return 2;
  }
  Options options{address.value(), make_request(argv[3], argv[4]),
                  std::strtoul(argv[5], nullptr, 10), argc > 8};
  Load load(options);
  load.run(std::strtoul(argv[7], nullptr, 10));
  std::printf("ready\n");
  std::fflush(stdout);
  (void)std::getchar();
  double cpu = cpu_us();
  auto start = Clock::now();
  Tally tally = load.run(std::strtoul(argv[6], nullptr, 10));
  double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  cpu = cpu_us() - cpu;
  std::sort(tally.latency_us.begin(), tally.latency_us.end());
  auto percentile = [&](double p) {
    if (tally.latency_us.empty()) return 0u;
    auto index = static_cast<std::size_t>(p * static_cast<double>(tally.latency_us.size() - 1));
    return tally.latency_us[index];
  };
  std::printf(
      "{\"requests\": %zu, \"errors\": %zu, \"seconds\": %.6f, \"cpu_us\": %.0f, \"p50_us\": %u, "
      "\"p99_us\": %u}\n",
      tally.done, tally.errors, seconds, cpu, percentile(0.5), percentile(0.99));
  return 0;
}
