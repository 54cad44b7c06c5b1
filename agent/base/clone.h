// Processes that begin in a control group.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/unique_fd.h"

namespace mesh {

struct Clone {
  pid_t pid = -1;  // 0: this is the child; -1: there is none, and errno
  UniqueFd pidfd;  // the caller's, who waits for it (SIGCHLD)
};
// As fork(), with clone flags (CLONE_NEWNET, ...), in `cgroup`, an open directory, from its first
// moment on. A raw clone3: in a program with threads the child does no more than system calls.
Clone clone_into(int cgroup, std::uint64_t flags);

}  // namespace mesh
