#include "datapath/audit.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "datapath/fastpath.h"
#include "datapath/packet.h"

namespace mesh::datapath {
namespace {

constexpr std::size_t kMaxPrograms = 64;

struct Program {
  std::uint32_t id = 0;
  std::string name;
};

Program program_of(int fd) {
  bpf_prog_info info{};
  std::uint32_t size = sizeof info;
  if (fd < 0 || ::bpf_obj_get_info_by_fd(fd, &info, &size) != 0) return {};
  return {info.id, info.name};
}

std::string text_of(std::uint32_t id) {
  const UniqueFd fd(::bpf_prog_get_fd_by_id(id));
  return "program " + std::to_string(id) + " (" + program_of(fd.get()).name + ")";
}

std::optional<bpf_link_info> link_at(const std::string& pin) {
  const UniqueFd link(::bpf_obj_get(pin.c_str()));
  bpf_link_info info{};
  std::uint32_t size = sizeof info;
  if (!link || ::bpf_obj_get_info_by_fd(link.get(), &info, &size) != 0) return std::nullopt;
  return info;
}

// In the order in which they run, those of parents too.
std::vector<std::uint32_t> programs_at(int target, int type, std::uint32_t flags) {
  std::vector<std::uint32_t> ids(kMaxPrograms);
  auto count = static_cast<std::uint32_t>(ids.size());
  if (::bpf_prog_query(target, static_cast<bpf_attach_type>(type), flags, nullptr, ids.data(),
                       &count) != 0)
    count = 0;
  ids.resize(count);
  return ids;
}

// Ours runs, and first; what a parent has after it is named by `meshctl check`.
void look_at_hook(const Hook& hook, const std::string& whose, std::uint32_t ours,
                  std::uint32_t fast_path, int cgroup, LinkFindings& out) {
  const auto name = [&](std::uint32_t id) {
    if (id != fast_path) out.foreign.push_back(text_of(id) + " at " + whose + hook.name);
  };
  for (const std::uint32_t id : programs_at(cgroup, hook.attach_type, 0))
    if (id != ours) name(id);
  const auto running = programs_at(cgroup, hook.attach_type, BPF_F_QUERY_EFFECTIVE);
  const auto at = std::ranges::find(running, ours);
  if (at == running.end()) return;  // a link that is missing, and named as that
  for (auto before = running.begin(); before != at; ++before) name(*before);
}

// whose: "its hook ".
Result<> look_at_hooks(const Object& object, const std::string& set, std::span<const Hook> hooks,
                       const std::string& path, const std::string& whose, LinkFindings& out) {
  const UniqueFd cgroup(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat status{};
  if (!cgroup || ::fstat(cgroup.get(), &status) != 0)
    return errno_error(errno, "open cgroup " + path);
  const auto fast = link_at(fast_path_link(object.pin_dir(), set));
  for (const Hook& hook : hooks) {
    const std::uint32_t ours = program_of(object.program(hook.program)).id;
    const auto link = link_at(object.links_dir(set) + "/" + hook.name);
    if (!link || link->type != BPF_LINK_TYPE_CGROUP || link->prog_id != ours ||
        link->cgroup.cgroup_id != status.st_ino ||
        link->cgroup.attach_type != static_cast<std::uint32_t>(hook.attach_type))
      out.missing.push_back(whose + hook.name);
    look_at_hook(hook, whose, ours, fast ? fast->prog_id : 0, cgroup.get(), out);
  }
  return success();
}

Result<> look_at_namespace(const Object& object, const std::string& set, int netns,
                           LinkFindings& out) {
  struct stat status{};
  if (::fstat(netns, &status) != 0) return errno_error(errno, "look at a network namespace");
  const auto link = link_at(object.links_dir(set) + "/sk_lookup");
  const UniqueFd program(link ? ::bpf_prog_get_fd_by_id(link->prog_id) : -1);
  if (!link || link->type != BPF_LINK_TYPE_NETNS || link->netns.netns_ino != status.st_ino ||
      program_of(program.get()).name != "um_sk_lookup")
    out.missing.emplace_back("its hook sk_lookup");
  for (const std::uint32_t id : programs_at(netns, BPF_SK_LOOKUP, 0))
    if (!link || id != link->prog_id)
      out.foreign.push_back(text_of(id) + " at sk_lookup in its network namespace");
  return success();
}

}  // namespace

Result<LinkFindings> look_at_links(const Object& object, const std::string& set,
                                   const EnrolledWorkload& workload) {
  LinkFindings out;
  MESH_TRY(look_at_hooks(object, set, workload_hooks(), workload.cgroup, "its hook ", out));
  if (workload.netns < 0) return out;
  MESH_TRY(look_at_namespace(object, set, workload.netns, out));
  out.uncovered = std::string();
  if (!workload.strict) return out;
  MESH_TRY(const auto sides, sides_of(workload.netns));
  out.uncovered = why_uncovered(sides);
  for (std::string& missing : missing_packets(object.links_dir(set), sides.here))
    out.missing.push_back(std::move(missing));
  return out;
}

Result<LinkFindings> look_at_mesh_links(const Object& object, const std::string& set,
                                        const std::string& cgroup) {
  LinkFindings out;
  MESH_TRY(look_at_hooks(object, set, mesh_hooks(), cgroup, "the mesh's hook ", out));
  return out;
}

std::vector<Finding> check_mesh_hooks(const std::string& pin_dir, const std::string& cgroup_path) {
  const std::string dir = pin_dir + "/links/mesh/";
  struct stat status{};
  if (::access(dir.c_str(), F_OK) != 0 || ::stat(cgroup_path.c_str(), &status) != 0) return {};
  std::string missing;
  for (const Hook& hook : mesh_hooks()) {
    const auto link = link_at(dir + hook.name);
    if (!link || link->type != BPF_LINK_TYPE_CGROUP || link->cgroup.cgroup_id != status.st_ino)
      missing += (missing.empty() ? "" : ", ") + std::string(hook.name);
  }
  if (missing.empty())
    return {{Finding::Level::kOk, "hooks", "the mesh's own hooks are attached", ""}};
  return {{Finding::Level::kError, "hooks",
           "the mesh's own hooks are not attached: " + missing +
               " (what its proxy does is not policed, or HTTP fails)",
           "meshd attaches them within 10 s; where it does not: logs/meshd.log says why, and "
           "`meshctl up` brings meshd back"}};
}

}  // namespace mesh::datapath
