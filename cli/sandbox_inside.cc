#include "sandbox_inside.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "dns/resolve.h"
#include "netlink.h"

namespace mesh::cli {
namespace {

Result<> configure_links(const InsideOptions& options) {
  MESH_TRY(auto netlink, Netlink::open());
  MESH_TRY(netlink.set_up("lo"));
  MESH_TRY(netlink.add_address("eth0", {address_v4(options.number), 16}));
  if (options.ipv6) {
    MESH_TRY(netlink.add_address("eth0", {address_v6(options.number), 64}));
  }
  MESH_TRY(netlink.set_up("eth0"));
  MESH_TRY(netlink.add_default_route("eth0", address_v4(kBridgeNumber)));
  // The mesh answers for a service's address before any route is asked. Where it is not asked (a
  // workload that is disabled) a connect fails at once and does not leave by eth0.
  MESH_TRY(netlink.add_unreachable_route(options.services));
  MESH_TRY(netlink.add_unreachable_route({dns::kMeshResolver, 32}));
  if (options.ipv6) {
    MESH_TRY(netlink.add_default_route("eth0", address_v6(kBridgeNumber)));
  }
  return success();
}

// Where the machine has no /etc/resolv.conf (or a link that leads nowhere) to mount ours on: a
// layer with that file alone is put over /etc, which is read-only then. Nothing is written on the
// machine.
Result<> add_resolver_file(const InsideOptions& options) {
  std::ifstream in(options.resolv_file);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const std::string layer = std::filesystem::path(options.resolv_file).parent_path();
  const auto failed = [] {
    return errno_error(errno,
                       "this machine has no /etc/resolv.conf, and the sandbox cannot be given one "
                       "(make an empty one: touch /etc/resolv.conf)");
  };
  if (::mount("none", layer.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755") != 0)
    return failed();
  {
    UniqueFd out(::open(options.resolv_file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    if (!out || ::write(out.get(), text.data(), text.size()) < 0) return failed();
  }
  const std::string layers = "lowerdir=" + layer + ":/etc";
  if (::mount("none", "/etc", "overlay", 0, layers.c_str()) != 0) return failed();
  if (::umount2(layer.c_str(), MNT_DETACH) != 0) return failed();
  return success();
}

Result<> mount_resolver_file(const InsideOptions& options) {
  const char* at = "/etc/resolv.conf";
  if (::mount(options.resolv_file.c_str(), at, nullptr, MS_BIND, nullptr) == 0) return success();
  if (errno == ENOENT) return add_resolver_file(options);
  return errno_error(errno, "cannot mount " + options.resolv_file + " on " + at);
}

// Against accidents, not a boundary: the command is root in the host's user namespace, and may
// undo each of these (docs/security.md).
Result<> cover_the_mesh(const InsideOptions& options) {
  for (const std::string& directory : options.hidden)
    if (::access(directory.c_str(), F_OK) == 0 &&
        ::mount("none", directory.c_str(), "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY,
                "mode=0755,size=4k") != 0)
      return errno_error(errno, "cannot hide " + directory);
  constexpr unsigned long kReadOnly =
      MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
  if (::mount(nullptr, options.cgroup_mount.c_str(), nullptr, kReadOnly, nullptr) != 0)
    return errno_error(errno, "cannot make " + options.cgroup_mount + " read-only");
  return success();
}

Result<> configure_mounts(const InsideOptions& options) {
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
    return errno_error(errno, "cannot make the sandbox's mounts its own");
  if (::mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) != 0)
    return errno_error(errno, "cannot mount /proc");
  MESH_TRY(mount_resolver_file(options));
  return cover_the_mesh(options);  // last: these files are in the run directory
}

Result<> configure(const InsideOptions& options) {
  MESH_TRY(configure_links(options));
  return configure_mounts(options);
}

// In the command's process: says its pid by its credentials, becomes the command, or writes errno.
[[noreturn]] void become_command(int control, int failure, const SignalRelay& signals,
                                 const InsideOptions& options) {
  signals.restore();
  sigset_t child;
  ::sigemptyset(&child);
  ::sigaddset(&child, SIGCHLD);
  ::sigprocmask(SIG_UNBLOCK, &child, nullptr);
  send_notice(control, Note::kStarted);
  int err = execute(options.command, options.environment);
  if (::write(failure, &err, sizeof err) < 0) ::_exit(1);
  ::_exit(exit_for_errno(err));
}

// The command's pid once it runs as itself: the pipe closes with exec.
Result<pid_t> start_command(int control, const SignalRelay& signals, const InsideOptions& options) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error(errno, "pipe");
  UniqueFd from(ends[0]), to(ends[1]);
  pid_t command = ::fork();
  if (command < 0) return errno_error(errno, "fork");
  if (command == 0) become_command(control, to.get(), signals, options);
  to.reset();
  int err = 0;
  ssize_t n;
  do n = ::read(from.get(), &err, sizeof err);
  while (n < 0 && errno == EINTR);
  if (n != sizeof err) return command;
  send_notice(control, Note::kFailed, err,
              "cannot run " + options.command[0] + ": " + std::strerror(err));
  return errno_error(err, options.command[0]);
}

// Reaps what ended; the wait status of the command when it is among them, else -1.
int reap(pid_t command) {
  int result = -1;
  for (int status = 0;;) {
    pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return result;
    if (pid == command) result = status;
  }
}

int attend(int control, int child_signals, pid_t command) {
  pollfd polls[2] = {{control, POLLIN, 0}, {child_signals, POLLIN, 0}};
  for (;;) {
    if (::poll(polls, 2, -1) < 0 && errno != EINTR) return 1;
    if (polls[1].revents != 0) {
      signalfd_siginfo info;
      while (::read(child_signals, &info, sizeof info) == sizeof info) {
      }
      int status = reap(command);
      if (status >= 0) {
        send_notice(control, Note::kEnded, status);
        return 0;
      }
    }
    if (polls[0].revents == 0) continue;
    Notice notice = receive_notice(control);
    if (notice.note == Note::kGone) return 1;
    if (notice.note == Note::kSignal) ::kill(command, notice.number);
  }
}

UniqueFd open_child_signals() {
  sigset_t child;
  ::sigemptyset(&child);
  ::sigaddset(&child, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &child, nullptr);
  return UniqueFd(::signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK));
}

}  // namespace

bool send_notice(int fd, Note note, int number, const std::string& text) {
  std::string message(1, static_cast<char>(note));
  message.append(reinterpret_cast<const char*>(&number), sizeof number);
  message += text.substr(0, 2000);
  return ::send(fd, message.data(), message.size(), MSG_NOSIGNAL) >= 0;
}

Notice receive_notice(int fd) {
  char bytes[4096];
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
  iovec part{bytes, sizeof bytes};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do n = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  Notice out;
  if (n < static_cast<ssize_t>(1 + sizeof out.number)) return out;
  out.note = static_cast<Note>(bytes[0]);
  std::memcpy(&out.number, bytes + 1, sizeof out.number);
  out.text.assign(bytes + 1 + sizeof out.number,
                  static_cast<std::size_t>(n) - 1 - sizeof out.number);
  for (cmsghdr* head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_CREDENTIALS) continue;
    ucred credentials;
    std::memcpy(&credentials, CMSG_DATA(head), sizeof credentials);
    out.sender = credentials.pid;
  }
  return out;
}

int live_inside(int control, const SignalRelay& signals, const InsideOptions& options) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::prctl(PR_SET_NAME, "sandbox-init");
  UniqueFd child_signals = open_child_signals();
  if (receive_notice(control).note != Note::kConfigure) return 1;
  if (auto configured = configure(options); !configured) {
    send_notice(control, Note::kFailed, 0, configured.error().message);
    return 1;
  }
  send_notice(control, Note::kReady);
  if (receive_notice(control).note != Note::kRun) return 1;
  auto command = start_command(control, signals, options);
  if (!command) return 1;
  send_notice(control, Note::kRunning);
  return attend(control, child_signals.get(), command.value());
}

}  // namespace mesh::cli
