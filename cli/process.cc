#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>

#include "base/clone.h"

namespace mesh::cli {
namespace {

constexpr int kRelayed[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

}  // namespace

Result<Child> spawn(const std::string& cgroup, unsigned long flags,
                    const std::function<int()>& body) {
  UniqueFd group(::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!group) return errno_error(errno, "control group " + cgroup);
  Clone child = clone_into(group.get(), flags);
  if (child.pid < 0) return errno_error(errno, "cannot start a process in " + cgroup);
  if (child.pid == 0) ::_exit(body());
  return Child{child.pid, std::move(child.pidfd)};
}

Result<SignalRelay> SignalRelay::open() {
  sigset_t relayed, before;
  ::sigemptyset(&relayed);
  for (int signal : kRelayed) ::sigaddset(&relayed, signal);
  ::sigprocmask(SIG_BLOCK, &relayed, &before);
  UniqueFd fd(::signalfd(-1, &relayed, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return errno_error(errno, "signalfd");
  return SignalRelay(std::move(fd), before);
}

SignalRelay::~SignalRelay() {
  if (fd_) restore();
}

void SignalRelay::restore() const { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

int SignalRelay::next() const {
  signalfd_siginfo info;
  while (::read(fd_.get(), &info, sizeof info) == sizeof info)
    if (info.ssi_code <= 0) return static_cast<int>(info.ssi_signo);  // SI_USER and its like
  return 0;
}

bool SignalRelay::is_pending(int within_ms) const {
  pollfd poll{fd_.get(), POLLIN, 0};
  return ::poll(&poll, 1, within_ms) > 0;
}

int execute(const std::vector<std::string>& command, const std::vector<std::string>& environment) {
  for (const auto& entry : environment) {
    std::size_t equals = entry.find('=');
    ::setenv(entry.substr(0, equals).c_str(), entry.substr(equals + 1).c_str(), 1);
  }
  std::vector<char*> argv;
  for (const auto& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  ::execvp(argv[0], argv.data());
  return errno;
}

int exit_for_errno(int err) { return err == ENOENT || err == ENOTDIR ? 127 : 126; }

int exit_for_status(int wait_status) {
  return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

std::optional<std::uint64_t> stat_field(pid_t pid, int number) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text(std::istreambuf_iterator<char>(file), {});
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string skipped;
  for (int i = 3; i < number; ++i) fields >> skipped;
  std::uint64_t value = 0;
  if (!(fields >> value)) return std::nullopt;
  return value;
}

// The kernel takes the SIGKILL from what is pending before it sets the flag: so they are looked at
// in this order.
bool is_ending(pid_t pid) {
  constexpr std::uint64_t kKilled = 1U << (SIGKILL - 1);      // among those pending
  constexpr std::uint64_t kExiting = 0x4, kSignaled = 0x400;  // PF_EXITING, PF_SIGNALED
  constexpr int kFlags = 9, kPending = 31;
  const auto pending = stat_field(pid, kPending), flags = stat_field(pid, kFlags);
  return !pending || !flags || (*pending & kKilled) != 0 || (*flags & (kExiting | kSignaled)) != 0;
}

}  // namespace mesh::cli
