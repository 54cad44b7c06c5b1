#include "datapath/canary.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/clone.h"
#include "bpf/shared.h"

namespace mesh::datapath {
namespace {

// How the child ends: 0, or the errno of the connect that was not captured, with this bit where it
// was by IPv6. No errno of connect is as high as these two.
constexpr int kBySix = 128;
constexpr int kLetThrough = 127, kNoNamespace = 126;

// The child shares nothing with this process's threads, so it does no more than system calls.
int connect_error(int family) {
  const int fd = ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return errno == EAFNOSUPPORT ? UM_CANARY_ERROR : errno;
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_port = htons(UM_CANARY_PORT);
  in.sin_addr.s_addr = htonl(UM_CANARY_ADDRESS);
  sockaddr_in6 in6{};
  in6.sin6_family = AF_INET6;
  in6.sin6_port = in.sin_port;
  in6.sin6_addr.s6_addr[10] = in6.sin6_addr.s6_addr[11] = 0xff;
  std::memcpy(&in6.sin6_addr.s6_addr[12], &in.sin_addr, 4);
  const int result = family == AF_INET
                         ? ::connect(fd, reinterpret_cast<const sockaddr*>(&in), sizeof in)
                         : ::connect(fd, reinterpret_cast<const sockaddr*>(&in6), sizeof in6);
  return result == 0 || errno == EINPROGRESS ? kLetThrough : errno;
}

[[noreturn]] void fly(int netns) {
  if (::setns(netns, CLONE_NEWNET) != 0) ::_exit(kNoNamespace);
  if (const int error = connect_error(AF_INET); error != UM_CANARY_ERROR) ::_exit(error);
  if (const int error = connect_error(AF_INET6); error != UM_CANARY_ERROR) ::_exit(kBySix | error);
  ::_exit(0);
}

// The pidfd of a child in this group; none, and errno.
UniqueFd send_into(const std::string& cgroup, int netns) {
  const UniqueFd group(::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!group) return {};
  Clone child = clone_into(group.get(), 0);
  if (child.pid == 0) fly(netns);
  return std::move(child.pidfd);
}

// A group whose children have controllers takes no process itself.
UniqueFd send_below(const std::string& cgroup, int netns) {
  UniqueFd pidfd = send_into(cgroup, netns);
  if (pidfd || errno != EBUSY) return pidfd;
  std::error_code gone;
  for (std::filesystem::directory_iterator at(cgroup, gone), end; !gone && at != end;
       at.increment(gone)) {
    if (!at->is_directory(gone)) continue;
    if (UniqueFd below = send_below(at->path(), netns)) return below;
  }
  errno = EBUSY;
  return {};
}

Result<> outcome_of(int code) {
  if (code == 0) return success();
  if (code == kNoNamespace)
    return Error{Errc::unavailable, "a canary could not enter its network namespace"};
  const int error = code & ~kBySix;
  return Error{Errc::refused,
               std::string("a connect from inside it by ") +
                   ((code & kBySix) != 0 ? "IPv6" : "IPv4") + " was not captured (" +
                   (error == kLetThrough ? "it was let through" : std::strerror(error)) + ")"};
}

}  // namespace

Result<Canary> Canary::send(int netns, const std::string& cgroup, Clock::time_point now) {
  UniqueFd pidfd = send_below(cgroup, netns);
  if (!pidfd) return errno_error(errno, "send a canary into " + cgroup);
  return Canary(std::move(pidfd), now);
}

Canary::~Canary() {
  if (!pidfd_) return;
  ::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0);
  siginfo_t info{};
  while (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) != 0 &&
         errno == EINTR) {
  }
}

std::optional<Result<>> Canary::outcome(Clock::time_point now) {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG) != 0) {
    pidfd_.reset();
    return Result<>(errno_error(errno, "wait for a canary"));
  }
  if (info.si_pid == 0) {
    if (now - sent_ < kPatience) return std::nullopt;
    return Result<>(Error{Errc::timed_out, "a canary did not come back in time"});
  }
  pidfd_.reset();
  if (info.si_code != CLD_EXITED)
    return Result<>(Error{Errc::unavailable, "a canary was killed on its way"});
  return outcome_of(info.si_status);
}

}  // namespace mesh::datapath
