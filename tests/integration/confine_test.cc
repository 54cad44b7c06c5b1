// What a confined meshproxy can still do: the attempts run in a forked child under the very filter
// of the release build, and the real program is read through /proc.
#include "proxy/confine.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>

namespace mesh::proxy {
namespace {

constexpr std::uint32_t kUid = 65530;

class Confine : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    std::string name = "/tmp/confine_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override {
    if (dir_.empty()) return;
    ::unlink(socket().c_str());
    ::rmdir(dir_.c_str());
  }
  std::string socket() const { return dir_ + "/proxy.sock"; }

  // The errno of `attempt` in a confined child; 0: it worked; -1: the child could not be confined.
  int attempt_errno(const std::function<long()>& attempt) {
    pid_t child = ::fork();
    if (child == 0) {
      if (!confine(socket(), kUid)) ::_exit(255);
      errno = 0;
      ::_exit(attempt() < 0 ? errno : 0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) == 255) return -1;
    return WEXITSTATUS(status);
  }

 private:
  std::string dir_;
};

TEST_F(Confine, KeepsNoWayOut) {
  struct Way {
    const char* name;
    std::function<long()> attempt;
  };
  const int self_net = ::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  const Way ways[] = {
      {"socket(AF_INET)", [] { return ::socket(AF_INET, SOCK_STREAM, 0); }},
      {"socket(AF_UNIX)", [] { return ::socket(AF_UNIX, SOCK_STREAM, 0); }},
      {"socket(AF_PACKET)", [] { return ::socket(AF_PACKET, SOCK_RAW, 0); }},
      {"socketpair",
       [] {
         int fds[2];
         return ::socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
       }},
      {"io_uring_setup",
       [] {
         io_uring_params p{};
         return ::syscall(SYS_io_uring_setup, 4, &p);
       }},
      {"bpf",
       [] {
         bpf_attr a{};
         return ::syscall(SYS_bpf, BPF_PROG_GET_NEXT_ID, &a, sizeof a);
       }},
      {"setns", [=] { return ::setns(self_net, CLONE_NEWNET); }},
      {"unshare", [] { return ::unshare(CLONE_NEWUSER); }},
      {"execve",
       [] {
         char* none[] = {nullptr};
         return ::execve("/bin/true", none, none);
       }},
      {"execveat",
       [] {
         char* none[] = {nullptr};
         return ::syscall(SYS_execveat, AT_FDCWD, "/bin/true", none, none, 0);
       }},
      {"ptrace", [] { return ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr); }},
      {"process_vm_readv",
       [] { return ::syscall(SYS_process_vm_readv, ::getpid(), nullptr, 0, nullptr, 0, 0); }},
      {"setuid(0)", [] { return ::setuid(0); }},
      {"fork", [] { return ::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr); }},
      {"mount", [] { return ::syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, nullptr); }},
      {"bind", [] { return ::bind(0, nullptr, 0); }},
      {"kill", [] { return ::kill(1, 0); }},
      {"pidfd_getfd", [] { return ::syscall(SYS_pidfd_getfd, 0, 0, 0); }},
      {"memfd_create", [] { return ::syscall(SYS_memfd_create, "x", 0); }},
      {"keyctl", [] { return ::syscall(SYS_keyctl, 0, 0); }},
      {"perf_event_open", [] { return ::syscall(SYS_perf_event_open, nullptr, 0, 0, 0, 0); }},
      {"userfaultfd", [] { return ::syscall(SYS_userfaultfd, 0); }},
#ifndef MESH_SANITIZED
      {"open", [] { return ::open("/etc/passwd", O_RDONLY); }},
      {"openat2", [] { return ::syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", nullptr, 0); }},
      {"stat",
       [] {
         struct stat s;
         return ::stat("/etc/passwd", &s);
       }},
      {"mmap(PROT_EXEC)",
       [] {
         void* p = ::mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
         return p == MAP_FAILED ? -1L : 0L;
       }},
      {"prctl(PR_SET_SECCOMP)", [] { return ::prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); }},
#endif
  };
  for (const Way& way : ways) EXPECT_EQ(attempt_errno(way.attempt), EPERM) << way.name;
  ::close(self_net);
}

TEST_F(Confine, StillServes) {
  EXPECT_EQ(attempt_errno([] {
              std::string text;
              std::thread thread([&] { text = "threads and memory work"; });
              thread.join();
              return text.empty() ? -1L : 0L;
            }),
            0);
}

TEST_F(Confine, RefusesToRunAsRoot) {
  auto refused = confine(socket(), 0);
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().code, Errc::permission);
}

std::string status_field(pid_t pid, const std::string& field) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(field + ":")) {
      std::istringstream words(line.substr(field.size() + 1));
      std::string word;
      std::string all;
      while (words >> word) all += (all.empty() ? "" : " ") + word;
      return all;
    }
  return "absent";
}

// The program that is shipped, as the kernel sees it.
TEST_F(Confine, LeavesTheRealProgramWithoutAnyPower) {
  std::string dir = socket().substr(0, socket().rfind('/'));
  pid_t pid = ::fork();
  if (pid == 0) {
    ::execl(MESH_BIN_DIR "/meshproxy", "meshproxy", "--run-dir", dir.c_str(), "--uid", "65530",
            "--workers", "2", "--log-level", "error", nullptr);
    ::_exit(127);
  }
  auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (status_field(pid, "Seccomp") != "2" && std::chrono::steady_clock::now() < end) {
    ASSERT_EQ(::waitpid(pid, nullptr, WNOHANG), 0) << "meshproxy ended by itself";
    std::this_thread::yield();
  }
  EXPECT_EQ(status_field(pid, "Seccomp"), "2");
  EXPECT_EQ(status_field(pid, "NoNewPrivs"), "1");
  EXPECT_EQ(status_field(pid, "Uid"), "65530 65530 65530 65530");
  EXPECT_EQ(status_field(pid, "Gid"), "65530 65530 65530 65530");
  EXPECT_EQ(status_field(pid, "Groups"), "");
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"})
    EXPECT_EQ(status_field(pid, set), "0000000000000000") << set;
  std::ifstream devices("/proc/" + std::to_string(pid) + "/net/dev");
  std::string all((std::istreambuf_iterator<char>(devices)), {});
  EXPECT_THAT(all, testing::HasSubstr("lo:"));
  EXPECT_THAT(all, testing::Not(testing::HasSubstr("eth")));
  EXPECT_THAT(all, testing::Not(testing::HasSubstr("undermesh")));
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

}  // namespace
}  // namespace mesh::proxy
