#include "datapath/pins.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>
#include <string_view>

#include "bpf/shared.h"
#include "datapath/counters.h"
#include "datapath/links.h"
#include "datapath/object.h"

namespace mesh::datapath {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> pins_below(const std::string& dir) {
  std::vector<std::string> paths;
  std::error_code gone;
  for (fs::recursive_directory_iterator at(dir, gone), end; !gone && at != end; at.increment(gone))
    if (!at->is_directory(gone)) paths.push_back(at->path().string());
  std::ranges::sort(paths);
  return paths;
}

Result<> need_pins(const std::string& pin_dir) {
  std::error_code ec;
  if (fs::exists(pin_dir + "/meta", ec)) return success();
  if (ec) return errno_error(ec.value(), "look at " + pin_dir);
  return Error{Errc::not_found, "nothing of the mesh is pinned below " + pin_dir +
                                    ": it is not running, or was disabled; `meshctl up` starts it"};
}

template <class Info>
bool read_info(int fd, Info& info) {
  std::uint32_t size = sizeof info;
  return ::bpf_obj_get_info_by_fd(fd, &info, &size) == 0;
}

const char* type_name(const char* libbpf_name) { return libbpf_name ? libbpf_name : "unknown"; }

class Programs {
 public:
  // Each of the kernel's programs once, however often it is pinned or linked. The kernel knows no
  // more than 15 letters of a name, a pin all.
  void add(int fd, const std::string& pinned_as = {}) {
    bpf_prog_info info{};
    if (!read_info(fd, info)) return;
    const std::string name = pinned_as.empty() ? info.name : pinned_as;
    if (!known_.emplace(info.id, name).second) return;
    ProgramUse& use = uses_[name];
    use.name = name;
    use.type = type_name(::libbpf_bpf_prog_type_str(static_cast<bpf_prog_type>(info.type)));
    ++use.instances;
    use.verified_instructions = std::max(use.verified_instructions, info.verified_insns);
    use.machine_bytes += info.jited_prog_len;
    use.runs += info.run_cnt;
    use.run_nanoseconds += info.run_time_ns;
  }
  // A link, or the program of a filter, which has none (clsact).
  void add_attached(const std::string& name, int fd) {
    if (kind_of(fd) == "prog") {
      add(fd);
      if (const auto id = program_id(fd)) add_place(name, id.value());
      return;
    }
    bpf_link_info info{};
    if (!read_info(fd, info)) return;
    const UniqueFd program(::bpf_prog_get_fd_by_id(info.prog_id));
    if (program) add(program.get());
    add_place(name, info.prog_id);
  }
  // Where a program is at work that was added before.
  void add_place(const std::string& name, std::uint32_t program) {
    if (const auto known = known_.find(program); known != known_.end())
      uses_[known->second].links.push_back(name);
  }
  std::vector<ProgramUse> all() {
    std::vector<ProgramUse> list;
    for (auto& [name, use] : uses_) list.push_back(std::move(use));
    return list;
  }

 private:
  std::map<std::uint32_t, std::string> known_;  // names by id
  std::map<std::string, ProgramUse> uses_;
};

// Nothing pins the fast path's programs but the links of one of them: they are known by the maps,
// which are theirs alone. Sockets that joined keep a program that was; it is in no map any more.
class FastPathPrograms {
 public:
  explicit FastPathPrograms(const std::string& pin_dir)
      : links_dir_(pin_dir + "/fastpath/links/"),
        maps_dir_(pin_dir + "/fastpath/maps_" + std::to_string(UM_LAYOUT)) {}

  void add_to(Programs& programs) const {
    const std::set<std::uint32_t> maps = own_maps();
    if (maps.empty()) return;
    std::uint32_t id = 0;
    while (::bpf_prog_get_next_id(id, &id) == 0)
      if (const UniqueFd fd(::bpf_prog_get_fd_by_id(id)); fd && uses_one_of(fd.get(), maps))
        programs.add(fd.get(), full_name(fd.get()));
    for (const std::string& pin : pins_below(links_dir_))
      if (const UniqueFd fd(::bpf_obj_get(pin.c_str())); fd)
        programs.add_attached(pin.substr(links_dir_.size()) + "/fastpath", fd.get());
    add_program_of_map(programs);
  }

 private:
  std::set<std::uint32_t> own_maps() const {
    std::set<std::uint32_t> ids;
    for (const std::string& pin : pins_below(maps_dir_)) {
      const UniqueFd fd(::bpf_obj_get(pin.c_str()));
      bpf_map_info info{};
      if (fd && read_info(fd.get(), info)) ids.insert(info.id);
    }
    return ids;
  }
  static bool uses_one_of(int program, const std::set<std::uint32_t>& maps) {
    std::array<std::uint32_t, 64> used{};
    bpf_prog_info info{};
    info.map_ids = reinterpret_cast<std::uintptr_t>(used.data());
    info.nr_map_ids = used.size();
    if (!read_info(program, info)) return false;
    const auto end = used.begin() + std::min<std::size_t>(info.nr_map_ids, used.size());
    return std::any_of(used.begin(), end, [&](std::uint32_t id) { return maps.contains(id); });
  }
  static std::string full_name(int program) {
    bpf_prog_info info{};
    if (!read_info(program, info)) return {};
    const std::string known = info.name;
    for (const std::string_view name : {"um_fast_sock_ops", "um_fast_msg", "um_fast_join"})
      if (name.starts_with(known)) return std::string(name);
    return known;
  }
  void add_program_of_map(Programs& programs) const {
    const UniqueFd peers(::bpf_obj_get((maps_dir_ + "/um_fast_peers").c_str()));
    std::uint32_t flags = 0, id = 0, count = 1;
    if (peers && ::bpf_prog_query(peers.get(), BPF_SK_MSG_VERDICT, 0, &flags, &id, &count) == 0 &&
        count == 1)
      programs.add_place("um_fast_peers", id);
  }

  std::string links_dir_, maps_dir_;
};

// "memlock" of a map: what its memory is charged at, entries that are allocated one by one too.
std::uint64_t memory_of(int fd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
  for (std::string word; info >> word;) {
    std::uint64_t bytes = 0;
    if (word == "memlock:" && info >> bytes) return bytes;
  }
  return 0;
}

bool is_array(std::uint32_t type) {
  return type == BPF_MAP_TYPE_ARRAY || type == BPF_MAP_TYPE_PERCPU_ARRAY;
}

// Another process may change it meanwhile: never more than there can be.
std::optional<std::uint64_t> entries_of(int fd, const bpf_map_info& info) {
  if (is_array(info.type)) return info.max_entries;
  if (info.type == BPF_MAP_TYPE_SK_STORAGE || info.type == BPF_MAP_TYPE_RINGBUF)
    return std::nullopt;
  std::vector<std::byte> key(info.key_size), next(info.key_size);
  std::uint64_t entries = 0;
  for (const void* at = nullptr;
       entries < info.max_entries && ::bpf_map_get_next_key(fd, at, next.data()) == 0;
       at = key.data()) {
    key = next;
    ++entries;
  }
  return entries;
}

// Generations may share one.
std::uint64_t memory_of_inner_maps(int fd, std::uint32_t key_size) {
  std::set<std::uint32_t> ids;
  std::vector<std::byte> key(key_size), next(key_size);
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, next.data()) == 0;
       at = key.data()) {
    key = next;
    std::uint32_t id = 0;
    if (::bpf_map_lookup_elem(fd, key.data(), &id) == 0) ids.insert(id);
  }
  std::uint64_t bytes = 0;
  for (const std::uint32_t id : ids)
    if (const UniqueFd inner(::bpf_map_get_fd_by_id(id)); inner) bytes += memory_of(inner.get());
  return bytes;
}

std::string current_maps_dir(const std::string& pin_dir) {
  return pin_dir + "/maps_" + std::to_string(UM_LAYOUT);
}

}  // namespace

Result<std::vector<ProgramUse>> pinned_programs(const std::string& pin_dir) {
  MESH_TRY(need_pins(pin_dir));
  Programs programs;
  for (const std::string& pin : pins_below(pin_dir + "/programs"))
    if (const UniqueFd fd(::bpf_obj_get(pin.c_str())); fd)
      programs.add(fd.get(), fs::path(pin).filename());
  const std::string links = pin_dir + "/links/";
  for (const std::string& pin : pins_below(links))
    if (const UniqueFd fd(::bpf_obj_get(pin.c_str())); fd)
      programs.add_attached(pin.substr(links.size()), fd.get());
  FastPathPrograms(pin_dir).add_to(programs);
  return programs.all();
}

Result<std::vector<MapUse>> pinned_maps(const std::string& pin_dir) {
  MESH_TRY(need_pins(pin_dir));
  std::vector<MapUse> uses;
  for (const std::string& pin : pins_below(pin_dir)) {
    const std::string dir = fs::path(pin).parent_path().filename();
    if (!dir.starts_with("maps")) continue;
    const UniqueFd fd(::bpf_obj_get(pin.c_str()));
    bpf_map_info info{};
    if (!fd || !read_info(fd.get(), info)) continue;
    MapUse use;
    use.name = fs::path(pin).filename();
    use.type = type_name(::libbpf_bpf_map_type_str(static_cast<bpf_map_type>(info.type)));
    use.outlives_upgrades = dir == "maps";
    use.entries = entries_of(fd.get(), info);
    use.max_entries = info.max_entries;
    use.bytes = memory_of(fd.get());
    if (info.type == BPF_MAP_TYPE_HASH_OF_MAPS)
      use.bytes += memory_of_inner_maps(fd.get(), info.key_size);
    uses.push_back(std::move(use));
  }
  std::ranges::sort(uses, {}, &MapUse::name);
  return uses;
}

Result<Counters> pinned_counters(const std::string& pin_dir) {
  MESH_TRY(need_pins(pin_dir));
  const std::string dir = current_maps_dir(pin_dir);
  const UniqueFd counters(::bpf_obj_get((dir + "/um_counters").c_str()));
  const UniqueFd policies(::bpf_obj_get((dir + "/um_policy_counts").c_str()));
  if (!counters || !policies) return errno_error(errno, "open the counters below " + dir);
  return read_counters(counters.get(), policies.get());
}

Result<UniqueFd> count_runs() {
  UniqueFd fd(::bpf_enable_stats(BPF_STATS_RUN_TIME));
  if (!fd) return errno_error(errno, "have the kernel count the runs of BPF programs");
  return fd;
}

}  // namespace mesh::datapath
