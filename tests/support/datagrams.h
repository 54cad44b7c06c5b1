// Datagrams for tests of the kernel's programs: an echo server of another process, which names the
// address that it was asked at, and what a socket sends and gets.
#pragma once

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "base/unique_fd.h"
#include "tests/support/eventually.h"
#include "tests/support/netns.h"

namespace mesh::test {

// Memory that a child process shares.
template <class T>
class Shared {
 public:
  Shared() {
    void* page =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) fixture_failed("mmap");
    value_ = new (page) T{};
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::munmap(value_, sizeof(T)); }
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

inline UniqueFd udp_socket(int family, const std::string& bound_to = "") {
  UniqueFd fd(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (bound_to.empty()) return fd;
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const RawAddress raw = raw_address(endpoint(bound_to), family);
  if (::bind(fd.get(), raw.get(), raw.size) != 0) fixture_failed("bind " + bound_to);
  return fd;
}

inline int send_to(int fd, const std::string& to, int family, const std::string& text = "x") {
  const RawAddress raw = raw_address(endpoint(to), family);
  return ::sendto(fd, text.data(), text.size(), 0, raw.get(), raw.size) < 0 ? errno : 0;
}

// As a child process can return it.
struct Answer {
  int err = 0;
  SocketAddress from;
  char text[64] = {};
};
static_assert(std::is_trivially_copyable_v<Answer>);

inline Answer receive(int fd, int timeout_ms = 10'000) {
  Answer answer;
  pollfd waiting{fd, POLLIN, 0};
  if (::poll(&waiting, 1, timeout_ms) != 1) return {ETIMEDOUT, {}};
  sockaddr_storage raw{};
  socklen_t size = sizeof raw;
  if (::recvfrom(fd, answer.text, sizeof answer.text - 1, 0, reinterpret_cast<sockaddr*>(&raw),
                 &size) < 0)
    return {errno, {}};
  answer.from = socket_address(raw);
  return answer;
}

inline Answer ask(int fd, const std::string& to, int family) {
  if (const int err = send_to(fd, to, family)) return {err, {}};
  return receive(fd);
}

inline int connect_udp(int fd, const std::string& to, int family) {
  const RawAddress raw = raw_address(endpoint(to), family);
  return ::connect(fd, raw.get(), raw.size) == 0 ? 0 : errno;
}

// Answers every datagram with the address that it was asked at, and counts them.
class Echo {
 public:
  Echo(const Cgroup& group, const NetNs& ns, const std::vector<std::string>& addresses)
      : child_(&group, &ns, [&] { serve(addresses); }) {
    if (!eventually([this] { return shared_->is_ready.load(); })) fixture_failed("an echo server");
  }
  std::uint64_t asked() const { return shared_->asked; }

 private:
  struct State {
    std::atomic<bool> is_ready;
    std::atomic<std::uint64_t> asked;
  };

  void serve(const std::vector<std::string>& addresses) const {
    std::vector<UniqueFd> sockets;
    std::vector<pollfd> waiting;
    for (const std::string& address : addresses) {
      sockets.push_back(udp_socket(family_of(endpoint(address)), address));
      waiting.push_back({sockets.back().get(), POLLIN, 0});
    }
    shared_->is_ready = true;
    for (;;) {
      ::poll(waiting.data(), waiting.size(), -1);
      for (std::size_t i = 0; i < waiting.size(); ++i)
        if (waiting[i].revents != 0) answer(waiting[i].fd, addresses[i]);
    }
  }
  void answer(int fd, const std::string& text) const {
    sockaddr_storage from{};
    socklen_t size = sizeof from;
    char ignored[64];
    if (::recvfrom(fd, ignored, sizeof ignored, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from),
                   &size) < 0)
      return;
    ++shared_->asked;
    (void)::sendto(fd, text.data(), text.size(), 0, reinterpret_cast<sockaddr*>(&from), size);
  }

  Shared<State> shared_;
  Child child_;
};

}  // namespace mesh::test
