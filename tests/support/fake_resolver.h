// FakeResolver: a name server on loopback, UDP and TCP at one port, that says what a test lets it.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/address.h"
#include "base/unique_fd.h"
#include "tests/support/bind_both.h"

namespace mesh::test {

class FakeResolver {
 public:
  struct Seen {
    std::string bytes;
    std::uint16_t port = 0;  // of the sender
    bool by_tcp = false;
  };
  // The datagrams (or messages) that answer a query, in this order.
  using Handler = std::function<std::vector<std::string>(const Seen&)>;

  explicit FakeResolver(Handler handler) : handler_(std::move(handler)) {
    const std::uint16_t port = bind_both(INADDR_LOOPBACK, 0, udp_, tcp_);
    const int buffer = 1 << 20;
    ::setsockopt(udp_.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    EXPECT_EQ(::listen(tcp_.get(), 64), 0);
    address_ = {IpAddress::v4(127, 0, 0, 1), port};
    stop_.reset(::eventfd(0, EFD_CLOEXEC));
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeResolver() {
    ::eventfd_write(stop_.get(), 1);
    thread_.join();
  }
  const SocketAddress& address() const { return address_; }
  std::vector<Seen> seen() {
    std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  std::vector<std::string> answers(Seen seen) {
    std::lock_guard lock(mutex_);
    seen_.push_back(seen);
    return handler_(seen);
  }
  void serve() {
    while (true) {
      pollfd waiting[3] = {
          {stop_.get(), POLLIN, 0}, {udp_.get(), POLLIN, 0}, {tcp_.get(), POLLIN, 0}};
      ::poll(waiting, 3, -1);
      if (waiting[0].revents != 0) return;
      if (waiting[1].revents != 0) serve_datagram();
      if (waiting[2].revents != 0) serve_connection();
    }
  }
  void serve_datagram() {
    char bytes[65536];
    sockaddr_in from{};
    socklen_t size = sizeof from;
    const ssize_t n =
        ::recvfrom(udp_.get(), bytes, sizeof bytes, 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (n < 0) return;
    for (const std::string& answer :
         answers({{bytes, static_cast<std::size_t>(n)}, ntohs(from.sin_port), false}))
      ::sendto(udp_.get(), answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from),
               size);
  }
  void serve_connection() {
    const UniqueFd fd(::accept(tcp_.get(), nullptr, nullptr));
    unsigned char size[2];
    if (::recv(fd.get(), size, 2, MSG_WAITALL) != 2) return;
    std::string query(static_cast<std::size_t>(size[0] << 8 | size[1]), '\0');
    if (::recv(fd.get(), query.data(), query.size(), MSG_WAITALL) !=
        static_cast<ssize_t>(query.size()))
      return;
    for (const std::string& answer : answers({query, 0, true})) {
      std::string message = {static_cast<char>(answer.size() >> 8),
                             static_cast<char>(answer.size())};
      message += answer;
      ::send(fd.get(), message.data(), message.size(), MSG_NOSIGNAL);
    }
  }

  Handler handler_;
  UniqueFd udp_, tcp_, stop_;
  SocketAddress address_;
  std::mutex mutex_;
  std::vector<Seen> seen_;
  std::thread thread_;
};

}  // namespace mesh::test
