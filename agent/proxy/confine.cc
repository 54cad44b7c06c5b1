#include "proxy/confine.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <memory>
#include <string_view>

namespace mesh::proxy {
namespace {

constexpr int kBacklog = 16;

Result<> done_or(int result, std::string_view what) {
  if (result == 0) return success();
  return errno_error(errno, std::string("confine: ") + std::string(what));
}

Result<UniqueFd> bind_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error{Errc::invalid_argument,
                 path + ": too long for a Unix socket: use a shorter --run-dir"};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return errno_error(errno, "confine: socket");
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return errno_error(errno, path);
  mode_t before = ::umask(0177);
  int bound = ::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  ::umask(before);
  if (bound != 0) return errno_error(errno, path);
  return fd;
}

Result<> drop_capabilities() {
  for (int cap = 0; ::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; ++cap) {
    MESH_TRY(done_or(::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0), "dropping the bounding set"));
  }
  return done_or(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
                 "clearing ambient capabilities");
}

Result<> drop_user(std::uint32_t uid) {
  MESH_TRY(done_or(::setgroups(0, nullptr), "dropping groups"));
  MESH_TRY(done_or(::setresgid(uid, uid, uid), "changing group"));
  MESH_TRY(done_or(::setresuid(uid, uid, uid), "changing user"));
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> none{};
  return done_or(static_cast<int>(::syscall(SYS_capset, &header, none.data())),
                 "dropping capabilities");
}

// Everything a running proxy calls; what only needs checking of arguments follows in
// allow_checked().
constexpr std::array kAllowed = {
    // sockets it was given
    SCMP_SYS(accept4),
    SCMP_SYS(connect),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(getsockname),
    SCMP_SYS(getpeername),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(read),
    SCMP_SYS(readv),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(close),
    SCMP_SYS(fcntl),
    SCMP_SYS(fstat),
    SCMP_SYS(lseek),
    // waiting
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(eventfd2),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    // memory
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    // threads
    SCMP_SYS(futex),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(set_tid_address),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(getcpu),
    SCMP_SYS(membarrier),
    SCMP_SYS(gettid),
    SCMP_SYS(getpid),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(restart_syscall),
    // signals and randomness
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigtimedwait),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(tgkill),
    SCMP_SYS(getrandom),
    SCMP_SYS(getrusage),
#ifdef MESH_SANITIZED  // the sanitizers' runtimes read /proc/self and symbolise by themselves
    SCMP_SYS(open),
    SCMP_SYS(openat),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(stat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(mmap),
    SCMP_SYS(mprotect),
    SCMP_SYS(prctl),
    SCMP_SYS(getppid),
    SCMP_SYS(getdents64),
    SCMP_SYS(pipe2),
    SCMP_SYS(getrlimit),
    SCMP_SYS(prlimit64),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
    SCMP_SYS(access),
    SCMP_SYS(arch_prctl),
#endif
};

using Filter = std::unique_ptr<void, decltype(&seccomp_release)>;

int allow(const Filter& filter, int call) {
  return seccomp_rule_add(filter.get(), SCMP_ACT_ALLOW, call, 0);
}

int allow_if(const Filter& filter, int call, scmp_arg_cmp condition) {
  return seccomp_rule_add(filter.get(), SCMP_ACT_ALLOW, call, 1, condition);
}

int allow_checked(const Filter& filter) {
  int failed = 0;
  // No executable memory.
  failed |= allow_if(filter, SCMP_SYS(mmap), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
  failed |= allow_if(filter, SCMP_SYS(mprotect), SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
  // Threads, no processes and no namespaces. clone3 hides its flags: ENOSYS makes glibc use clone.
  failed |=
      allow_if(filter, SCMP_SYS(clone),
               SCMP_A0(SCMP_CMP_MASKED_EQ,
                       CLONE_THREAD | CLONE_NEWNET | CLONE_NEWUSER | CLONE_NEWNS, CLONE_THREAD));
  failed |= seccomp_rule_add(filter.get(), SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
  failed |= allow_if(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, FIONREAD));
  failed |= allow_if(filter, SCMP_SYS(prctl), SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
  // glibc's fstat(): an empty path relative to a descriptor.
  failed |= allow_if(filter, SCMP_SYS(newfstatat), SCMP_A3(SCMP_CMP_EQ, AT_EMPTY_PATH));
  return failed;
}

Result<> install_filter() {
  Filter filter(seccomp_init(SCMP_ACT_ERRNO(EPERM)), &seccomp_release);
  if (filter == nullptr) return Error{Errc::exhausted, "confine: no memory for the seccomp filter"};
  int failed = seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_LOG, 1);
  failed |= seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE,
                             2);  // a binary tree: 60 rules cost as 6
  for (int call : kAllowed) failed |= allow(filter, call);
  failed |= allow_checked(filter);
  if (failed != 0)
    return Error{Errc::internal, "confine: libseccomp refused a rule of the allow-list"};
  int loaded = seccomp_load(filter.get());
  if (loaded != 0) return errno_error(-loaded, "confine: loading the seccomp filter");
  return success();
}

}  // namespace

Result<UniqueFd> confine(const std::string& socket_path, std::uint32_t uid) {
  if (uid == 0)
    return Error{Errc::permission, "confine: uid 0: the proxy must have a user of its own (--uid)"};
  if (::geteuid() != 0) return Error{Errc::permission, "confine: needs root to give its powers up"};
  ::tzset();  // reads a file
  MESH_TRY(auto socket, bind_socket(socket_path));
  MESH_TRY(done_or(::unshare(CLONE_NEWNET), "an empty network namespace"));
  MESH_TRY(drop_capabilities());
  MESH_TRY(drop_user(uid));
  MESH_TRY(done_or(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs"));
  MESH_TRY(done_or(::listen(socket.get(), kBacklog), "listen"));
  MESH_TRY(install_filter());
  return socket;
}

}  // namespace mesh::proxy
