#include "control/linux_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/magic.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <thread>
#include <utility>

#include "base/log.h"
#include "control/files.h"

namespace mesh::control {
namespace {

namespace fs = std::filesystem;

Logger log() {
  static const Logger made = logger("control");
  return made;
}

constexpr std::uint32_t kFileEvents = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE |
                                      IN_CREATE | IN_DELETE_SELF | IN_ONLYDIR;

// Of the group that the directory is, which is its id; nullopt: it is none.
Result<std::optional<std::uint64_t>> cgroup_inode(int directory) {
  struct stat status{};
  struct statfs system{};
  if (::fstat(directory, &status) != 0 || ::fstatfs(directory, &system) != 0)
    return errno_error(errno, "look at a control group");
  if (system.f_type != CGROUP2_SUPER_MAGIC) return std::nullopt;
  return status.st_ino;
}

constexpr int kLookAtDirectory = O_PATH | O_DIRECTORY | O_CLOEXEC;

// Its own, then those of the groups above it, up to where the hierarchy is mounted.
Result<std::vector<std::uint64_t>> cgroup_inodes(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), kLookAtDirectory));
  if (!fd) return errno_error(errno, "open the control group " + path);
  std::vector<std::uint64_t> inodes;
  while (true) {
    MESH_TRY(const auto inode, cgroup_inode(fd.get()));
    if (!inode || (!inodes.empty() && *inode == inodes.back())) break;
    inodes.push_back(*inode);
    fd.reset(::openat(fd.get(), "..", kLookAtDirectory));
    if (!fd) return errno_error(errno, "open a control group above " + path);
  }
  if (inodes.empty()) return Error{Errc::refused, path + ": is no control group (cgroup2)"};
  return inodes;
}

struct InterfaceAddress {
  IpAddress ip;
  bool is_up = false;  // the interface
};

// Of the calling thread's network namespace.
Result<std::vector<InterfaceAddress>> interface_addresses() {
  std::vector<InterfaceAddress> addresses;
  ifaddrs* first = nullptr;
  if (::getifaddrs(&first) != 0) return errno_error(errno, "read the addresses of interfaces");
  for (const ifaddrs* at = first; at; at = at->ifa_next) {
    if (!at->ifa_addr) continue;
    IpAddress::Bytes bytes{};
    if (at->ifa_addr->sa_family == AF_INET) {
      sockaddr_in in;
      std::memcpy(&in, at->ifa_addr, sizeof in);
      bytes[10] = bytes[11] = 0xff;
      std::memcpy(&bytes[12], &in.sin_addr, 4);
    } else if (at->ifa_addr->sa_family == AF_INET6) {
      sockaddr_in6 in;
      std::memcpy(&in, at->ifa_addr, sizeof in);
      std::memcpy(bytes.data(), &in.sin6_addr, bytes.size());
    } else {
      continue;
    }
    addresses.push_back({IpAddress(bytes), (at->ifa_flags & IFF_UP) != 0});
  }
  ::freeifaddrs(first);
  return addresses;
}

}  // namespace

LinuxMachine::LinuxMachine(std::string sandbox_root, UniqueFd inotify)
    : sandbox_root_(std::move(sandbox_root)), inotify_(std::move(inotify)) {}

Result<std::unique_ptr<LinuxMachine>> LinuxMachine::open(std::string sandbox_root) {
  UniqueFd inotify(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify) return errno_error(errno, "inotify_init1 (raise fs.inotify.max_user_instances)");
  return std::unique_ptr<LinuxMachine>(
      new LinuxMachine(std::move(sandbox_root), std::move(inotify)));
}

std::vector<IpAddress> LinuxMachine::node_addresses() {
  std::vector<IpAddress> addresses;
  const auto all = interface_addresses();
  if (!all) {
    log()->warn("this machine's addresses are not known error={}", all.error().message);
    return addresses;
  }
  for (const auto& [ip, is_up] : all.value())
    if (is_up && !ip.is_loopback() && !ip.is_link_local()) addresses.push_back(ip);
  std::ranges::sort(addresses);
  return addresses;
}

Result<UniqueFd> LinuxMachine::open_netns(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return errno_error(errno, "open the network namespace " + path);
  return fd;
}

Result<std::vector<IpAddress>> LinuxMachine::addresses_in(int netns) {
  Result<std::vector<InterfaceAddress>> all = std::vector<InterfaceAddress>();
  std::thread([&] {
    if (::setns(netns, CLONE_NEWNET) == 0)
      all = interface_addresses();
    else
      all = errno_error(errno, "enter a network namespace");
  }).join();
  MESH_TRY(const auto found, std::move(all));
  std::vector<IpAddress> addresses;
  for (const InterfaceAddress& address : found) addresses.push_back(address.ip);
  return addresses;
}

// By what the directories are, not by their names: the same group may be mounted twice.
Result<std::vector<std::uint64_t>> LinuxMachine::look_at_cgroup(const std::string& cgroup) {
  auto looked_at = cgroup_inodes(cgroup);
  if (!looked_at && looked_at.error().code == Errc::not_found)
    return std::vector<std::uint64_t>();  // it ended, or is not yet made
  if (!looked_at) return looked_at;
  const std::string own = directory_of(sandbox_root_);
  std::vector<std::string> refused = {sandbox_root_, own + "/mesh"};
  for (std::string above = own; above != "/" && above != "."; above = directory_of(above))
    refused.push_back(above);
  for (const std::string& group : refused)
    if (const auto own_ids = cgroup_inodes(group);
        own_ids && own_ids.value().front() == looked_at.value().front())
      return Error{Errc::refused, cgroup +
                                      ": is a control group of the mesh itself or one above it; "
                                      "give the workload a group of its own"};
  return looked_at;
}

std::optional<bool> LinuxMachine::is_populated(const std::string& cgroup) {
  const UniqueFd fd(::open((cgroup + "/cgroup.events").c_str(), O_RDONLY | O_CLOEXEC));
  char text[256] = {};
  if (!fd || ::read(fd.get(), text, sizeof text - 1) <= 0) return std::nullopt;
  return std::string_view(text).find("populated 1") != std::string_view::npos;
}

std::vector<std::string> LinuxMachine::sandbox_groups() {
  std::vector<std::string> groups;
  std::error_code error;
  for (fs::directory_iterator at(sandbox_root_, error), end; !error && at != end;
       at.increment(error))
    if (at->is_directory(error)) groups.push_back(at->path().string());
  return groups;
}

Result<> LinuxMachine::remove_cgroup(const std::string& cgroup) {
  if (sandbox_root_.empty() || !cgroup.starts_with(sandbox_root_ + "/") ||
      cgroup.find("/../") != std::string::npos)
    return Error{Errc::permission, cgroup + ": not a sandbox's cgroup"};
  if (::rmdir(cgroup.c_str()) != 0 && errno != ENOENT) return errno_error(errno, "rmdir " + cgroup);
  return success();
}

void LinuxMachine::watch_cgroup(const std::string& cgroup) {
  const std::string file = cgroup + "/cgroup.events";
  const int watch = ::inotify_add_watch(inotify_.get(), file.c_str(), IN_MODIFY | IN_DELETE_SELF);
  if (watch < 0) {  // what changes there is then seen by looking every 2 s
    log()->debug("a cgroup cannot be watched path={} error={}", file, std::strerror(errno));
    return;
  }
  cgroup_watches_[cgroup] = watch;
}

void LinuxMachine::unwatch_cgroup(const std::string& cgroup) {
  const auto at = cgroup_watches_.find(cgroup);
  if (at == cgroup_watches_.end()) return;
  ::inotify_rm_watch(inotify_.get(), at->second);
  cgroup_watches_.erase(at);
}

void LinuxMachine::watch_tree(const std::string& directory) {
  const auto watch = [this](const std::string& path) {
    const int id = ::inotify_add_watch(inotify_.get(), path.c_str(), kFileEvents);
    if (id >= 0)
      directory_watches_[id] = path;
    else
      log()->warn("a directory cannot be watched path={} error={}", path, std::strerror(errno));
  };
  watch(directory);
  std::error_code error;
  for (fs::recursive_directory_iterator at(directory, error), end; !error && at != end;
       at.increment(error))
    if (at->is_directory(error)) watch(at->path().string());
}

LinuxMachine::Changes LinuxMachine::read_changes() {
  Changes changes;
  alignas(inotify_event) char buffer[16384];
  while (true) {
    const ssize_t got = ::read(inotify_.get(), buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return changes;
    for (ssize_t at = 0; at < got;) {
      inotify_event event;
      std::memcpy(&event, buffer + at, sizeof event);
      at += static_cast<ssize_t>(sizeof event + event.len);
      if (event.mask & IN_Q_OVERFLOW) changes.cgroups = changes.files = true;
      const bool is_file = directory_watches_.contains(event.wd);
      if ((event.mask & IN_IGNORED) && is_file) directory_watches_.erase(event.wd);
      (is_file ? changes.files : changes.cgroups) = true;
    }
  }
}

}  // namespace mesh::control
