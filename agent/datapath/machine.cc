#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "datapath/datapath.h"
#include "datapath/fastpath.h"
#include "datapath/object.h"

#ifndef BPF_F_PREORDER
#define BPF_F_PREORDER (1U << 6)
#endif

namespace mesh::datapath {
namespace {

namespace fs = std::filesystem;
using Level = Finding::Level;

bool is_bpffs(const std::string& dir) {
  struct statfs status{};
  return ::statfs(dir.c_str(), &status) == 0 && status.f_type == BPF_FS_MAGIC;
}

// /proc/self/mounts writes blanks in paths as \040.
std::string unescaped(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

Finding ok(std::string subject, std::string message) {
  return {Level::kOk, std::move(subject), std::move(message), {}};
}
Finding warning(std::string subject, std::string message, std::string remedy) {
  return {Level::kWarning, std::move(subject), std::move(message), std::move(remedy)};
}
Finding error(std::string subject, std::string message, std::string remedy) {
  return {Level::kError, std::move(subject), std::move(message), std::move(remedy)};
}

Finding check_root() {
  if (::geteuid() == 0) return ok("root", "running as root");
  return error("root", "not running as root: BPF programs cannot be loaded",
               "run meshctl with sudo");
}

Finding check_kernel() {
  utsname name{};
  int major = 0, minor = 0;
  ::uname(&name);
  std::string release = name.release;
  if (std::sscanf(name.release, "%d.%d", &major, &minor) != 2 || major < 6 ||
      (major == 6 && minor < 1))
    return error("kernel", "Linux " + release + " is older than 6.1",
                 "boot a kernel of 6.1 or later");
  return ok("kernel", "Linux " + release);
}

Finding check_btf() {
  const char* path = "/sys/kernel/btf/vmlinux";
  if (::access(path, R_OK) == 0) return ok("btf", path);
  return error("btf", std::string("the kernel has no type information at ") + path,
               "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as the distributions' are");
}

Finding check_bpffs() {
  if (is_bpffs("/sys/fs/bpf")) return ok("bpffs", "mounted at /sys/fs/bpf");
  if (fs::exists("/sys/fs/bpf"))
    return ok("bpffs", "not mounted at /sys/fs/bpf: 'meshctl up' mounts it");
  return error("bpffs", "/sys/fs/bpf does not exist", "mount sysfs at /sys");
}

Finding check_lo() {
  UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "lo");
  if (fd && ::ioctl(fd.get(), SIOCGIFFLAGS, &request) == 0 && (request.ifr_flags & IFF_UP) != 0)
    return ok("lo", "the loopback device is up");
  return error("lo", "the loopback device is down: redirected connections would hang",
               "ip link set lo up");
}

Finding check_limits() {
  constexpr rlim_t kWanted = 16384;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  std::string have = std::to_string(limit.rlim_max) + " open files";
  if (limit.rlim_max == RLIM_INFINITY) have = "any number of open files";
  if (limit.rlim_max >= kWanted) return ok("limits", "a process may have " + have);
  return warning("limits", "a process may have only " + have,
                 "raise the hard limit (ulimit -Hn) to " + std::to_string(kWanted) + " or more");
}

struct HookType {
  bpf_attach_type attach;
  bpf_prog_type program;
  const char* name;
};
constexpr std::array<HookType, 11> kHookTypes = {{
    {BPF_CGROUP_INET4_CONNECT, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "connect4"},
    {BPF_CGROUP_INET6_CONNECT, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "connect6"},
    {BPF_CGROUP_INET4_GETPEERNAME, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "getpeername4"},
    {BPF_CGROUP_INET6_GETPEERNAME, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "getpeername6"},
    {BPF_CGROUP_UDP4_SENDMSG, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "sendmsg4"},
    {BPF_CGROUP_UDP6_SENDMSG, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "sendmsg6"},
    {BPF_CGROUP_UDP4_RECVMSG, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "recvmsg4"},
    {BPF_CGROUP_UDP6_RECVMSG, BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "recvmsg6"},
    {BPF_CGROUP_SOCK_OPS, BPF_PROG_TYPE_SOCK_OPS, "sock_ops"},
    {BPF_CGROUP_GETSOCKOPT, BPF_PROG_TYPE_CGROUP_SOCKOPT, "getsockopt"},
    {BPF_CGROUP_INET_SOCK_CREATE, BPF_PROG_TYPE_CGROUP_SOCK, "sock_create"},
}};

struct Attached {
  std::uint32_t flags = 0;
  std::vector<std::uint32_t> programs;
};

Attached attached(int cgroup, bpf_attach_type type, std::uint32_t query) {
  Attached out;
  out.programs.resize(64);
  auto count = static_cast<std::uint32_t>(out.programs.size());
  if (::bpf_prog_query(cgroup, type, query, &out.flags, out.programs.data(), &count) != 0)
    count = 0;
  out.programs.resize(count);
  return out;
}

std::string name_of_program(std::uint32_t id) {
  UniqueFd fd(::bpf_prog_get_fd_by_id(id));
  bpf_prog_info info{};
  std::uint32_t size = sizeof info;
  std::string text = "program " + std::to_string(id);
  if (fd && ::bpf_obj_get_info_by_fd(fd.get(), &info, &size) == 0 && info.name[0] != '\0')
    text += std::string(" (") + info.name + ")";
  return text;
}

std::string names_of(const std::vector<std::uint32_t>& programs) {
  std::string text;
  for (std::uint32_t id : programs) text += (text.empty() ? "" : ", ") + name_of_program(id);
  return text;
}

// The cgroup itself or the nearest one above it that exists, and everything up to the root.
std::vector<std::string> from_the_root_down(const std::string& root, const std::string& path) {
  std::vector<std::string> chain = {root};
  std::string relative = fs::path(path).lexically_relative(root).string();
  if (relative.starts_with("..")) return chain;
  std::istringstream parts(relative);
  for (std::string part, at = root; std::getline(parts, part, '/');) {
    if (part == "." || part.empty()) continue;
    at += "/" + part;
    if (!fs::is_directory(at)) break;
    chain.push_back(at);
  }
  return chain;
}

// Attaches a program that does nothing to a scratch cgroup and looks at what runs before it: no
// query tells the order that a parent asked for.
class Probe {
 public:
  explicit Probe(const std::string& parent)
      : dir_(parent + "/undermesh-check-" + std::to_string(::getpid())) {
    if (::mkdir(dir_.c_str(), 0755) == 0)
      fd_.reset(::open(dir_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd_) error_ = errno;
  }
  ~Probe() { ::rmdir(dir_.c_str()); }
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  int error() const { return error_; }  // why there is no scratch cgroup

  struct Outcome {
    int err = 0;
    std::vector<std::uint32_t> before;  // run before ours, though attached above
  };
  Outcome try_hook(const HookType& hook) const {
    const bpf_insn instructions[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K,
         .dst_reg = BPF_REG_0,
         .src_reg = 0,
         .off = 0,
         .imm = 1},
        {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};
    LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = hook.attach);
    UniqueFd program(
        ::bpf_prog_load(hook.program, "um_check", "Apache-2.0", instructions, 2, &options));
    if (!program) return {errno, {}};
    UniqueFd link(::bpf_link_create(program.get(), fd_.get(), hook.attach, nullptr));
    if (!link) return {errno, {}};
    bpf_prog_info info{};
    std::uint32_t size = sizeof info;
    ::bpf_obj_get_info_by_fd(program.get(), &info, &size);
    Outcome outcome;
    for (std::uint32_t id : attached(fd_.get(), hook.attach, BPF_F_QUERY_EFFECTIVE).programs) {
      if (id == info.id) break;
      outcome.before.push_back(id);
    }
    ::bpf_link_detach(link.get());
    return outcome;
  }

 private:
  std::string dir_;
  UniqueFd fd_;
  int error_ = 0;
};

void check_level(const std::string& cgroup, const HookType& hook, std::vector<Finding>& out) {
  UniqueFd fd(::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return;
  Attached found = attached(fd.get(), hook.attach, 0);
  if (found.programs.empty()) return;
  std::string what = std::string(hook.name) + " at " + cgroup + ": " + names_of(found.programs);
  if (found.flags & BPF_F_ALLOW_MULTI)
    out.push_back(ok("programs", what + " (allows others)"));
  else if (found.flags & BPF_F_ALLOW_OVERRIDE)
    out.push_back(warning("programs", what + " would be replaced by ours below it (ALLOW_OVERRIDE)",
                          "attach that program with BPF_F_ALLOW_MULTI"));
  else
    out.push_back(error("programs", what + " is exclusive: ours cannot be attached below it",
                        "attach that program with BPF_F_ALLOW_MULTI, or end what attached it"));
}

void check_programs(const std::string& root, const std::string& path, std::vector<Finding>& out) {
  if (::geteuid() != 0) {
    out.push_back(warning("programs", "not looked at: only root may list them",
                          "run meshctl check with sudo"));
    return;
  }
  std::vector<std::string> chain = from_the_root_down(root, path);
  Probe probe(chain.back());
  if (probe.error() != 0) {
    out.push_back(
        error("programs",
              "a cgroup cannot be made below " + chain.back() + ": " + std::strerror(probe.error()),
              "mount cgroup2 so that it can be written"));
    return;
  }
  for (const HookType& hook : kHookTypes) {
    for (const std::string& cgroup : chain) check_level(cgroup, hook, out);
    Probe::Outcome outcome = probe.try_hook(hook);
    std::string at = std::string(hook.name) + " below " + chain.back();
    if (outcome.err != 0)
      out.push_back(error("programs",
                          at + ": a program cannot be attached: " + std::strerror(outcome.err),
                          outcome.err == EPERM
                              ? "end the exclusive program above, or see whether BPF is locked down"
                              : "use a kernel with CONFIG_CGROUP_BPF=y"));
    else if (!outcome.before.empty())
      out.push_back(
          warning("programs",
                  at + ": " + names_of(outcome.before) + " would run before ours (BPF_F_PREORDER)",
                  "attach that program without BPF_F_PREORDER, or make sure that it "
                  "leaves the destinations of enrolled workloads alone"));
  }
  bool clean = std::none_of(out.begin(), out.end(), [](const Finding& finding) {
    return finding.subject == "programs" && finding.level != Level::kOk;
  });
  if (clean)
    out.push_back(ok("programs", "ours can be attached below " + chain.back() + " and run first"));
}

}  // namespace

Result<std::string> find_cgroup2() {
  std::ifstream mounts("/proc/self/mounts");
  std::string device, where, type, rest;
  while (mounts >> device >> where >> type && std::getline(mounts, rest))
    if (type == "cgroup2") return unescaped(where);
  return Error{Errc::not_found,
               "no cgroup2 file system is mounted: mount one with 'mkdir -p /sys/fs/cgroup/unified "
               "&& mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified'"};
}

Result<bool> ensure_bpffs(const std::string& dir) {
  if (is_bpffs(dir)) return false;
  if (::mount("bpf", dir.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") != 0)
    return errno_error(errno, "mount a bpffs at " + dir);
  return true;
}

Result<std::vector<std::string>> disable_all(const std::string& pin_dir) {
  std::vector<std::string> removed;
  if (::access(pin_dir.c_str(), F_OK) != 0) {
    if (errno == ENOENT) return removed;
    return errno_error(errno, "look at " + pin_dir);
  }
  if (!is_bpffs(pin_dir))
    return Error{Errc::invalid_argument, pin_dir + " is not on a bpffs: nothing was removed"};
  // Links before the programs and maps, which a meshd that starts now would otherwise take over.
  if (fs::exists(pin_dir + "/links")) {
    MESH_TRY(detach_tree(pin_dir + "/links", &removed));
  }
  MESH_TRY(FastPath::remove(pin_dir, &removed));
  MESH_TRY(detach_tree(pin_dir, &removed));
  return removed;
}

std::vector<Finding> check_machine(const std::string& cgroup_path) {
  std::vector<Finding> out = {check_root(), check_kernel(), check_btf(), check_bpffs()};
  Result<std::string> root = find_cgroup2();
  if (root) {
    out.push_back(ok("cgroup2", "mounted at " + root.value()));
    check_programs(root.value(), cgroup_path.empty() ? root.value() : cgroup_path, out);
  } else {
    out.push_back(error("cgroup2", "no cgroup2 file system is mounted",
                        "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"));
  }
  out.push_back(check_lo());
  out.push_back(check_limits());
  return out;
}

}  // namespace mesh::datapath
