#include "datapath/fastpath_trial_ends.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace mesh::datapath {
namespace {

// Bytes that tell their place in a stream; the period is no power of two.
constexpr std::size_t kPeriod = 65521;
struct Buffers {
  char pattern[kPeriod + kLargest];
  char in[kLargest];
};
Buffers buffers;  // no allocation, no stack of that size: the child may have neither

}  // namespace

void fill_pattern() {
  std::uint64_t x = 88172645463325252ULL;
  for (std::size_t i = 0; i < sizeof buffers.pattern; ++i) {
    if (i >= kPeriod) {
      buffers.pattern[i] = buffers.pattern[i - kPeriod];
      continue;
    }
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    buffers.pattern[i] = static_cast<char>(x);
  }
}
const char* pattern_at(std::uint64_t place) { return buffers.pattern + place % kPeriod; }

bool is_ready_within(int fd, short what, int ms) {
  pollfd waiting{fd, what, 0};
  return ::poll(&waiting, 1, ms) == 1;
}

bool send_all(int fd, std::uint64_t from, std::size_t size) {
  for (std::size_t done = 0; done < size;) {
    const ssize_t sent =
        ::send(fd, pattern_at(from + done), std::min(size - done, kLargest), MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN && is_ready_within(fd, POLLOUT)) continue;
    if (sent <= 0) return false;
    done += static_cast<std::size_t>(sent);
  }
  return true;
}

namespace {

// As much as goes of one message, which is larger than our memory.
ssize_t send_huge(int fd, std::uint64_t from, std::size_t size) {
  iovec parts[kHuge / kPeriod + 1];
  msghdr message{};
  message.msg_iov = parts;
  for (std::size_t done = 0; done < size; ++message.msg_iovlen) {
    const std::size_t part = std::min(size - done, kLargest);
    parts[message.msg_iovlen] = {const_cast<char*>(pattern_at(from + done)), part};
    done += part;
  }
  return ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

ssize_t read_some(int fd, std::size_t size) {
  return is_ready_within(fd, POLLIN) ? ::read(fd, buffers.in, size) : -1;
}

}  // namespace

bool receive(int fd, std::uint64_t from, std::size_t size) {
  for (std::size_t done = 0; done < size;) {
    const ssize_t got = read_some(fd, std::min(size - done, sizeof buffers.in));
    if (got <= 0) return false;
    if (std::memcmp(buffers.in, pattern_at(from + done), static_cast<std::size_t>(got)) != 0)
      return false;
    done += static_cast<std::size_t>(got);
  }
  return true;
}

bool has_ended(int fd) { return read_some(fd, 1) == 0; }

bool make_trips(int fd, std::uint64_t from) {
  for (int trip = 0; trip < kTrips; ++trip) {
    const std::size_t size = size_of_trip(trip);
    if (!send_all(fd, from, size) || !receive(fd, from, size)) return false;
    from += size;
  }
  return true;
}

bool exchange_huge(int fd, std::uint64_t from) {
  for (std::size_t sent = 0, got = 0; got < kHuge;) {
    const short what = sent < kHuge ? POLLIN | POLLOUT : POLLIN;
    if (!is_ready_within(fd, what)) return false;
    if (sent < kHuge) {
      const ssize_t more = send_huge(fd, from + sent, kHuge - sent);
      if (more < 0 && errno != EAGAIN) return false;
      sent += more > 0 ? static_cast<std::size_t>(more) : 0;
    }
    const ssize_t more = ::recv(fd, buffers.in, sizeof buffers.in, MSG_DONTWAIT);
    if (more < 0 && errno == EAGAIN) continue;
    if (more <= 0 ||
        std::memcmp(buffers.in, pattern_at(from + got), static_cast<std::size_t>(more)) != 0)
      return false;
    got += static_cast<std::size_t>(more);
  }
  return true;
}

namespace {

// What it sends back is its own pattern: the same bytes, if it got them.
bool send_back(int fd, std::uint64_t from, ssize_t got) {
  const auto size = static_cast<std::size_t>(got);
  return std::memcmp(buffers.in, pattern_at(from), size) == 0 && send_all(fd, from, size);
}

ssize_t take_message(int fd) {
  iovec parts[] = {{buffers.in, 100}, {buffers.in + 100, sizeof buffers.in - 100}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = std::size(parts);
  return is_ready_within(fd, POLLIN) ? ::recvmsg(fd, &message, 0) : -1;
}

// What came past TCP FIONREAD tells. What came by TCP it does not on kernels with 929e30f93125,
// which is a difference that operations.md names, no fault.
ssize_t take_counted(int fd, bool tells_all) {
  if (!is_ready_within(fd, POLLIN)) return -1;
  int there = 0;
  if (::ioctl(fd, FIONREAD, &there) != 0) return -1;
  if (there == 0 && tells_all)  // the end, and nothing else
    return ::recv(fd, buffers.in, 1, MSG_DONTWAIT) == 0 ? 0 : -1;
  const auto size = std::min(static_cast<std::size_t>(there), sizeof buffers.in);
  return ::recv(fd, buffers.in, there == 0 ? sizeof buffers.in : size, MSG_DONTWAIT);
}

// By edges it reads until there is nothing.
ssize_t take_ready(int fd, int epoll, bool by_edges, bool& is_ready) {
  for (;;) {
    if (!is_ready) {
      epoll_event event{};
      if (::epoll_wait(epoll, &event, 1, kWaitMs) != 1) return -1;
    }
    is_ready = by_edges;
    const ssize_t got = ::recv(fd, buffers.in, sizeof buffers.in, MSG_DONTWAIT);
    if (got >= 0 || errno != EAGAIN || !by_edges) return got;
    is_ready = false;
  }
}

ssize_t take_peeked(int fd) {
  if (!is_ready_within(fd, POLLIN)) return -1;
  const ssize_t there = ::recv(fd, buffers.in, sizeof buffers.in, MSG_PEEK);
  if (there <= 0) return there;
  std::memset(buffers.in, 0, static_cast<std::size_t>(there));
  return ::recv(fd, buffers.in, static_cast<std::size_t>(there), MSG_DONTWAIT);
}

ssize_t take(int fd, int epoll, TrialStep reader, bool& is_ready) {
  switch (reader) {
    case TrialStep::kMessage:
      return take_message(fd);
    case TrialStep::kLevel:
    case TrialStep::kEdge:
      return take_ready(fd, epoll, reader == TrialStep::kEdge, is_ready);
    case TrialStep::kPeek:
      return take_peeked(fd);
    default:
      return read_some(fd, sizeof buffers.in);
  }
}

// By edges until there is nothing, else once. 0: it has ended. Below: other bytes.
ssize_t echo_what_is_there(int fd, std::uint64_t begin, std::uint64_t& got, bool all) {
  for (;;) {
    const ssize_t size = ::recv(fd, buffers.in, sizeof buffers.in, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) return 1;
    if (size <= 0) return size;
    if (!send_back(fd, begin + got, size)) return -1;
    got += static_cast<std::uint64_t>(size);
    if (!all) return 1;
  }
}

}  // namespace

bool echo(int fd, TrialStep reader) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = reader == TrialStep::kEdge ? EPOLLIN | EPOLLET : EPOLLIN;
  ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event);
  std::uint64_t got = 0;
  bool is_ready = false;
  for (;;) {
    const bool tells_all = got < kBytesOfTrips;
    const ssize_t size = reader == TrialStep::kPoll ? take_counted(fd, tells_all)
                                                    : take(fd, epoll.get(), reader, is_ready);
    if (size == 0) break;
    if (size < 0 || !send_back(fd, got, size)) return false;
    got += static_cast<std::uint64_t>(size);
  }
  return send_all(fd, got, kTail);
}

std::uint64_t begin_of(int connection) { return static_cast<std::uint64_t>(connection) * 977; }

bool echo_all(const Pair* pairs) {
  const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  std::uint64_t got[kCrowd] = {};
  for (int i = 0; i < kCrowd; ++i) {
    epoll_event event{};
    event.events = i % 2 == 0 ? EPOLLIN | EPOLLET : EPOLLIN;
    event.data.u32 = static_cast<std::uint32_t>(i);
    ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, pairs[i].server.get(), &event);
  }
  for (int open = kCrowd; open > 0;) {
    epoll_event event{};
    if (::epoll_wait(epoll.get(), &event, 1, kWaitMs) != 1) return false;
    const auto i = static_cast<int>(event.data.u32);
    const int fd = pairs[i].server.get();
    const ssize_t last = echo_what_is_there(fd, begin_of(i), got[i], i % 2 == 0);
    if (last < 0) return false;
    if (last > 0) continue;
    ::epoll_ctl(epoll.get(), EPOLL_CTL_DEL, fd, nullptr);
    --open;
  }
  return true;
}

}  // namespace mesh::datapath
