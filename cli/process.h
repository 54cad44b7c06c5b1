// Processes born in a control group and namespaces, the signals that meshctl passes on to them, and
// what the kernel says of one.
// Single-threaded programs only (a raw clone3).
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::cli {

struct Child {
  pid_t pid = 0;
  UniqueFd pidfd;
};
// As fork(), with clone flags (CLONE_NEWNET, ...), in the control group from its first moment on.
// In the child `body` runs; its result is the exit status.
Result<Child> spawn(const std::string& cgroup, unsigned long flags,
                    const std::function<int()>& body);

// Blocks the signals that a terminal or a service manager ends programs with, and SIGCHLD not; they
// are read from fd(). The destructor restores the mask; so does restore() in a child before exec.
class SignalRelay {
 public:
  static Result<SignalRelay> open();
  SignalRelay(SignalRelay&&) noexcept = default;
  SignalRelay& operator=(SignalRelay&&) = delete;
  ~SignalRelay();

  int fd() const { return fd_.get(); }
  // The next signal that the command did not get by itself: what the terminal sends goes to the
  // whole foreground process group, the command included. 0: none.
  int next() const;
  bool is_pending(int within_ms) const;  // any signal at all, also the terminal's
  void restore() const;

 private:
  SignalRelay(UniqueFd fd, const sigset_t& before) : fd_(std::move(fd)), before_(before) {}
  UniqueFd fd_;
  sigset_t before_;
};

// execvp, with the environment entries "K=V" added. Returns errno.
int execute(const std::vector<std::string>& command, const std::vector<std::string>& environment);
// 127 when there is no such command, 126 when it cannot be run, as a shell has it.
int exit_for_errno(int err);
int exit_for_status(int wait_status);  // 128 + signal

// A number of /proc/PID/stat, by its place in proc(5); none: no such process.
std::optional<std::uint64_t> stat_field(pid_t pid, int number);
// It runs no instruction of its own any more, but may have its files, and so its locks, still.
bool is_ending(pid_t pid);

}  // namespace mesh::cli
