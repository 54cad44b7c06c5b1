// Namespaces and cgroups for tests that need root: anonymous (nothing is named or mounted), so
// everything vanishes with the test process, also after kill -9; only empty cgroup directories
// below <cgroup2>/undermesh-test-<pid> then remain, until the next test makes one.
//
//   NetNs client = NetNs::create();                       // lo is up
//   join_veth(client, "10.1.0.1/24", server, "10.1.0.2/24");
//   client.run([&] { ... });                              // on a thread inside the namespace
//   UniqueFd l = server.listen("10.1.0.2:80");            // belongs to that namespace for ever
//   Cgroup group = Cgroup::create("app");
//   int err = in_child(&group, &client, [] { return try_connect("10.1.0.2:80"); });
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>

#include "base/address.h"
#include "base/unique_fd.h"
#include "tests/support/links.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace mesh::test {

inline bool is_root() { return ::geteuid() == 0; }

// "10.0.0.1:80" as the sockaddr of a socket of `family` (an AF_INET6 socket gets the mapped form).
struct RawAddress {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
inline RawAddress raw_address(const SocketAddress& address, int family) {
  RawAddress raw;
  if (family == AF_INET) {
    auto* in = reinterpret_cast<sockaddr_in*>(&raw.storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(address.port);
    std::memcpy(&in->sin_addr, address.ip.bytes().data() + 12, 4);
    raw.size = sizeof *in;
  } else {
    auto* in = reinterpret_cast<sockaddr_in6*>(&raw.storage);
    in->sin6_family = AF_INET6;
    in->sin6_port = htons(address.port);
    std::memcpy(&in->sin6_addr, address.ip.bytes().data(), 16);
    raw.size = sizeof *in;
  }
  return raw;
}
inline SocketAddress socket_address(const sockaddr_storage& raw) {
  if (raw.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(raw);
    std::uint8_t b[4];
    std::memcpy(b, &in.sin_addr, 4);
    return {IpAddress::v4(b[0], b[1], b[2], b[3]), ntohs(in.sin_port)};
  }
  const auto& in = reinterpret_cast<const sockaddr_in6&>(raw);
  IpAddress::Bytes bytes;
  std::memcpy(bytes.data(), &in.sin6_addr, 16);
  return {IpAddress(bytes), ntohs(in.sin6_port)};
}
inline int family_of(const SocketAddress& address) {
  return address.ip.is_v4() ? AF_INET : AF_INET6;
}
inline SocketAddress endpoint(const std::string& text) {
  auto parsed = SocketAddress::parse(text);
  if (!parsed) fixture_failed("address " + text);
  return parsed.value();
}

// A TCP connect in the caller's namespace: the connected socket, or -errno.
inline int dial(const std::string& to, int family = 0, int timeout_ms = 5000) {
  SocketAddress address = endpoint(to);
  if (family == 0) family = family_of(address);
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return -errno;
  RawAddress raw = raw_address(address, family);
  if (::connect(fd.get(), raw.get(), raw.size) != 0) {
    if (errno != EINPROGRESS) return -errno;
    pollfd waiting{fd.get(), POLLOUT, 0};
    if (::poll(&waiting, 1, timeout_ms) == 0) return -ETIMEDOUT;
    int err = 0;
    socklen_t size = sizeof err;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &size);
    if (err != 0) return -err;
  }
  ::fcntl(fd.get(), F_SETFL, 0);
  return fd.release();
}
// The same, and closes: 0 or errno.
inline int try_connect(const std::string& to, int family = 0, int timeout_ms = 5000) {
  int fd = dial(to, family, timeout_ms);
  if (fd < 0) return -fd;
  ::close(fd);
  return 0;
}

class NetNs {
 public:
  static NetNs create() {
    NetNs made;
    std::thread([&made] {
      if (::unshare(CLONE_NEWNET) != 0) fixture_failed("unshare(CLONE_NEWNET)");
      made.fd_.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    }).join();
    if (!made.fd_) fixture_failed("open the namespace");
    made.set_up("lo");
    return made;
  }

  int fd() const { return fd_.get(); }
  // A path that other programs of this test can open while this object lives.
  std::string path() const {
    return "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(fd_.get());
  }

  // Runs `work` to its end on a new thread inside the namespace; returns what it returns.
  template <class Work>
  auto run(Work work) const -> decltype(work()) {
    using Value = decltype(work());
    if constexpr (std::is_void_v<Value>) {
      std::thread([&] { enter(), work(); }).join();
    } else {
      Value value{};
      std::thread([&] { enter(), value = work(); }).join();
      return value;
    }
  }
  // Moves the calling thread (for forked children) for good.
  void enter() const {
    if (::setns(fd_.get(), CLONE_NEWNET) != 0) fixture_failed("setns");
  }
  void command(const std::string& line) const {
    if (run([&] { return std::system(line.c_str()); }) != 0) fixture_failed(line);
  }
  void set_up(const std::string& device) const {
    run([&] { set_link_up(device); });
  }
  void add_address(const std::string& device, const std::string& with_prefix) const {
    const std::size_t slash = with_prefix.find('/');
    const auto address = IpAddress::parse(with_prefix.substr(0, slash));
    if (!address || slash == std::string::npos) fixture_failed("address " + with_prefix);
    const int prefix = std::atoi(with_prefix.c_str() + slash + 1);
    run([&] { add_link_address(device, {address.value(), prefix}); });
  }

  std::uint64_t cookie() const {
    return run([] {
      UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      std::uint64_t value = 0;
      socklen_t size = sizeof value;
      if (::getsockopt(fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &value, &size) != 0)
        fixture_failed("SO_NETNS_COOKIE");
      return value;
    });
  }
  // A listener of this namespace and of the caller's cgroup; `device` binds it to one ("lo").
  UniqueFd listen(const std::string& at, const std::string& device = "", int backlog = 128) const {
    return run([&] {
      SocketAddress address = endpoint(at);
      UniqueFd fd(::socket(family_of(address), SOCK_STREAM | SOCK_CLOEXEC, 0));
      int on = 1;
      ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      if (family_of(address) == AF_INET6)
        ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
      if (!device.empty() && ::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device.c_str(),
                                          static_cast<socklen_t>(device.size())) != 0)
        fixture_failed("SO_BINDTODEVICE " + device);
      RawAddress raw = raw_address(address, family_of(address));
      if (::bind(fd.get(), raw.get(), raw.size) != 0) fixture_failed("bind " + at);
      if (::listen(fd.get(), backlog) != 0) fixture_failed("listen " + at);
      return fd;
    });
  }

 private:
  NetNs() = default;
  UniqueFd fd_;
};

// A veth pair with one address (and prefix) at each end; further ones with add_address. The device
// is called `name` at both ends.
inline void join_veth(const NetNs& a, const std::string& address_a, const NetNs& b,
                      const std::string& address_b, const std::string& name = "veth0") {
  a.run([&] { add_veth(name, name, b.fd()); });
  for (const auto& [ns, address] : {std::pair(&a, &address_a), std::pair(&b, &address_b)}) {
    ns->set_up(name);
    ns->add_address(name, *address);
  }
}

// accept() with a deadline; an empty fd when nothing came.
inline UniqueFd accept_within(int listener, int timeout_ms = 5000) {
  pollfd waiting{listener, POLLIN, 0};
  if (::poll(&waiting, 1, timeout_ms) != 1) return {};
  return UniqueFd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
}

// The mount point of cgroup2, by file-system type; empty where there is none.
inline std::string cgroup2_mount() {
  std::ifstream mounts("/proc/self/mounts");
  std::string device, where, type, rest;
  while (mounts >> device >> where >> type && std::getline(mounts, rest))
    if (type == "cgroup2") return where;
  return {};
}

inline constexpr std::string_view kTestGroups = "/undermesh-test-";  // and the test's pid

// What killed tests left. Never a group with processes: rmdir refuses that.
inline void remove_groups_of_the_dead(const std::string& mount) {
  namespace fs = std::filesystem;
  std::error_code ec;
  for (const auto& group : fs::directory_iterator(mount, ec)) {
    std::string name = "/" + group.path().filename().string();
    if (!name.starts_with(kTestGroups)) continue;
    pid_t pid = std::atoi(name.c_str() + kTestGroups.size());
    if (pid <= 0 || ::kill(pid, 0) == 0 || errno != ESRCH) continue;
    for (const auto& below : fs::directory_iterator(group, ec)) ::rmdir(below.path().c_str());
    ::rmdir(group.path().c_str());
  }
}

// A scratch cgroup, removed at the end (its processes must have ended or left by then).
class Cgroup {
 public:
  static Cgroup create(const std::string& name) {
    std::string mount = cgroup2_mount();
    remove_groups_of_the_dead(mount);
    std::string parent = mount + std::string(kTestGroups) + std::to_string(::getpid());
    if (::mkdir(parent.c_str(), 0755) != 0 && errno != EEXIST) fixture_failed("mkdir " + parent);
    Cgroup made;
    made.path_ = parent + "/" + name;
    made.parent_ = parent;
    if (::mkdir(made.path_.c_str(), 0755) != 0) fixture_failed("mkdir " + made.path_);
    return made;
  }
  Cgroup(Cgroup&& other) noexcept
      : path_(std::exchange(other.path_, {})), parent_(std::move(other.parent_)) {}
  Cgroup& operator=(Cgroup&&) = delete;
  ~Cgroup() {
    if (path_.empty()) return;
    // A process that was just killed may still be on its way out.
    for (int i = 0; ::rmdir(path_.c_str()) != 0 && errno == EBUSY && i < 200; ++i) ::usleep(10'000);
    ::rmdir(parent_.c_str());
  }
  const std::string& path() const { return path_; }
  void enter(pid_t pid = ::getpid()) const { move_to(path_, pid); }
  static void move_to(const std::string& path, pid_t pid) {
    std::ofstream procs(path + "/cgroup.procs");
    procs << pid << std::flush;
    if (!procs) fixture_failed("move to " + path);
  }

 private:
  Cgroup() = default;
  std::string path_;
  std::string parent_;
};

// A child process in a cgroup and a namespace (either may be null), killed and reaped at the end.
class Child {
 public:
  template <class Work>
  Child(const Cgroup* cgroup, const NetNs* ns, Work work) {
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) fixture_failed("fork");
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (cgroup != nullptr) cgroup->enter();
    if (ns != nullptr) ns->enter();
    work();
    ::_exit(0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { kill(); }
  pid_t pid() const { return pid_; }
  void kill() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    wait();
  }
  int wait() {
    int status = 0;
    if (pid_ > 0 && ::waitpid(pid_, &status, 0) != pid_) fixture_failed("waitpid");
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
};

// Runs `work` in a child process and returns its (trivially copyable) result.
template <class Work>
auto in_child(const Cgroup* cgroup, const NetNs* ns, Work work) -> decltype(work()) {
  using Value = decltype(work());
  static_assert(std::is_trivially_copyable_v<Value>);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) fixture_failed("pipe");
  UniqueFd reader(ends[0]), writer(ends[1]);
  Child child(cgroup, ns, [&] {
    Value value = work();
    if (::write(writer.get(), &value, sizeof value) != sizeof value) fixture_failed("write");
  });
  writer.reset();
  Value value{};
  if (::read(reader.get(), &value, sizeof value) != sizeof value) fixture_failed("child's result");
  child.wait();
  return value;
}

}  // namespace mesh::test
