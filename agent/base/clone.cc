#include "base/clone.h"

#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace mesh {

Clone clone_into(int cgroup, std::uint64_t flags) {
  int pidfd = -1;
  clone_args args{};
  args.flags = flags | CLONE_INTO_CGROUP | CLONE_PIDFD;
  args.exit_signal = SIGCHLD;
  args.pidfd = reinterpret_cast<std::uintptr_t>(&pidfd);
  args.cgroup = static_cast<std::uint64_t>(cgroup);
  const long pid = ::syscall(SYS_clone3, &args, sizeof args);
  return {static_cast<pid_t>(pid), UniqueFd(pidfd)};
}

}  // namespace mesh
