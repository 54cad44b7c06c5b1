#include "datapath/object.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.h"
#include "bpf/shared.h"
#include "datapath/ingress.h"
#include "datapath/libbpf_errors.h"
#include "datapath/links.h"
#include "datapath/packet.h"
#include "mesh.skel.h"
#include "udp.skel.h"

namespace mesh::datapath {
namespace {

namespace fs = std::filesystem;

Logger& log() {
  static Logger instance = logger("datapath");
  return instance;
}

// What the programs at cgroups come from, in the order in which they are loaded.
struct Elf {
  const char* name;
  const void* (*bytes)(std::size_t* size);
};
constexpr Elf kElfs[] = {{"mesh", mesh_bpf__elf_bytes}, {"udp", udp_bpf__elf_bytes}};

std::uint64_t object_hash() {
  std::uint64_t hash = 14695981039346656037ULL;
  for (const Elf& elf : kElfs) {
    std::size_t size = 0;
    const auto* bytes = static_cast<const unsigned char*>(elf.bytes(&size));
    for (std::size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 1099511628211ULL;
  }
  return hash;
}

struct Meta {
  std::uint32_t layout = 0;
  std::uint32_t is_damaged = 0;  // 1: maps were made again, and have not been filled since
  std::uint64_t object = 0;      // 0: programs are not completely pinned
};

// Empty where there is none, or something else is in its place.
UniqueFd pinned(const std::string& path, std::string_view kind) {
  UniqueFd fd(::bpf_obj_get(path.c_str()));
  if (fd && kind_of(fd.get()) != kind) fd.reset();
  return fd;
}

Result<UniqueFd> open_meta(const std::string& pin_dir) {
  std::string path = pin_dir + "/meta";
  UniqueFd fd(::bpf_obj_get(path.c_str()));
  if (fd) return fd;
  if (errno != ENOENT) return errno_error(errno, "open " + path);
  UniqueFd made(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "um_meta", sizeof(std::uint32_t), sizeof(Meta),
                                 1, nullptr));
  if (!made) return errno_error(errno, "create a BPF map (root, or CAP_BPF, is needed)");
  std::uint32_t zero = 0;
  Meta meta{UM_LAYOUT, 0, 0};
  if (::bpf_map_update_elem(made.get(), &zero, &meta, BPF_ANY) != 0)
    return errno_error(errno, "write the layout");
  if (::bpf_obj_pin(made.get(), path.c_str()) != 0) return errno_error(errno, "pin " + path);
  return made;
}

Result<Meta> read_meta(int fd, const std::string& pin_dir) {
  bpf_map_info info{};
  std::uint32_t size = sizeof info, zero = 0;
  Meta meta;
  if (::bpf_obj_get_info_by_fd(fd, &info, &size) == 0 && info.value_size == sizeof meta &&
      ::bpf_map_lookup_elem(fd, &zero, &meta) == 0 && meta.layout != 0)
    return meta;
  return Error{Errc::invalid_argument,
               pin_dir +
                   "/meta does not say of which layout the programs and maps are: detach "
                   "them with 'meshctl disable --all', then start again"};
}

bool is_lasting(std::string_view map) {
  static constexpr std::string_view kLasting[] = {
#define MESH_MAP_NAME(name) #name,
      UM_LASTING_MAPS(MESH_MAP_NAME)
#undef MESH_MAP_NAME
  };
  return std::ranges::find(kLasting, map) != std::end(kLasting);
}

// Layouts up to 2 had all maps in one place.
std::string maps_dir(const std::string& pin_dir, std::uint32_t layout) {
  return pin_dir + "/maps" + (layout > 2 ? "_" + std::to_string(layout) : std::string());
}

std::string map_pin(const std::string& pin_dir, const std::string& map) {
  return (is_lasting(map) ? pin_dir + "/maps" : maps_dir(pin_dir, UM_LAYOUT)) + "/" + map;
}

Result<> need_bpffs(const std::string& dir) {
  struct statfs file_system{};
  if (::statfs(dir.c_str(), &file_system) != 0) return errno_error(errno, "look at " + dir);
  if (file_system.f_type == BPF_FS_MAGIC) return success();
  return Error{Errc::unavailable,
               dir + " is no bpffs: mount one with 'mount -t bpf bpf " + dir + "'"};
}

enum class Place { kThere, kElsewhere, kRemoved };

// An open directory, which was at this path.
Place place_of(int dir, const std::string& path) {
  struct stat ours{}, there{};
  if (::fstat(dir, &ours) != 0 || ours.st_nlink == 0) return Place::kRemoved;
  const bool is_there = ::stat(path.c_str(), &there) == 0 && there.st_dev == ours.st_dev &&
                        there.st_ino == ours.st_ino;
  return is_there ? Place::kThere : Place::kElsewhere;
}

Result<UniqueFd> lock_dir(const std::string& pin_dir) {
  UniqueFd fd(::open(pin_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return errno_error(errno, "open " + pin_dir);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
  if (errno == EWOULDBLOCK)
    return Error{Errc::unavailable, pin_dir +
                                        " belongs to another running process: is a second "
                                        "meshd running?"};
  return errno_error(errno, "lock " + pin_dir);
}

// The size of a map is settled when it is made; a pinned one keeps its own.
Result<> size_map(bpf_map* map, const std::string& pin, std::uint32_t wanted) {
  UniqueFd fd(::bpf_obj_get(pin.c_str()));
  if (fd) {
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    if (::bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0)
      return errno_error(errno, "read the size of " + pin);
    wanted = info.max_entries;
  }
  if (wanted == 0) return success();
  if (int err = ::bpf_map__set_max_entries(map, wanted); err != 0)
    return errno_error(-err, "set the size of " + pin);
  return success();
}

std::uint32_t client_services(const Options& options) { return options.max_services * 4; }

std::uint32_t wanted_size(std::string_view map, const Options& options) {
  if (map == "um_workloads") return options.max_workloads * 2;  // generations
  if (map == "um_workload_records") return options.max_workloads;
  if (map == "um_own_addresses") return options.max_workloads * 4;
  if (map == "um_udp_flows" || map == "um_udp_choices") return options.max_udp_flows;
  if (map == "um_resolvers") return options.max_workloads * 16;
  if (map == "um_services") return options.max_services;
  if (map == "um_client_services") return client_services(options);
  if (map == "um_slots") return options.max_services + client_services(options);
  if (map == "um_members") return options.max_endpoints;
  if (map == "um_peers") return options.max_endpoints * 2;
  if (map == "um_backends") return options.max_endpoints * 2;  // the old and the new, for a moment
  if (map == "um_sets") return options.max_sets * 2 + 1;       // the one that is replaced to wait
  if (map == "um_refusals") return options.max_refusals;
  return 0;  // as in bpf/maps.h
}

struct Close {
  void operator()(bpf_object* object) const { ::bpf_object__close(object); }
};
using BpfObject = std::unique_ptr<bpf_object, Close>;

Result<std::vector<BpfObject>> open_elfs() {
  forget_libbpf_errors();
  std::vector<BpfObject> objects;
  for (const Elf& elf : kElfs) {
    std::size_t size = 0;
    const void* bytes = elf.bytes(&size);
    LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = elf.name);
    objects.emplace_back(::bpf_object__open_mem(bytes, size, &options));
    if (!objects.back()) return libbpf_error(errno, std::string("open the BPF object ") + elf.name);
  }
  return objects;
}

bool has_shape_of(const bpf_map* map, int fd) {
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  return ::bpf_obj_get_info_by_fd(fd, &info, &size) == 0 && info.type == ::bpf_map__type(map) &&
         info.key_size == ::bpf_map__key_size(map) &&
         info.value_size == ::bpf_map__value_size(map) &&
         info.map_flags == ::bpf_map__map_flags(map);
}

// They name each other's entries by numbers, or one says which of the others' are decided by:
// programs at work go on with all of the old ones.
const std::vector<std::string_view> kTogether[] = {
    {"um_services", "um_client_services", "um_slots", "um_backends", "um_members"},
    {"um_config", "um_workloads", "um_sets", "um_peers", "um_blocks"},
};

// Pins that are not what this object's maps must be go; true where all of them are there.
Result<bool> keep_sound_maps(const bpf_object* object, const std::string& pin_dir) {
  std::set<std::string> damaged;
  const bpf_map* map = nullptr;
  while ((map = ::bpf_object__next_map(object, map)) != nullptr) {
    const UniqueFd fd = pinned(map_pin(pin_dir, ::bpf_map__name(map)), "map");
    if (!fd || !has_shape_of(map, fd.get())) damaged.insert(::bpf_map__name(map));
  }
  const bool is_sound = damaged.empty();
  for (const auto& group : kTogether)
    if (std::ranges::any_of(group, [&](auto name) { return damaged.contains(std::string(name)); }))
      damaged.insert(group.begin(), group.end());
  for (const std::string& name : damaged) {
    MESH_TRY(unpin(map_pin(pin_dir, name)));
  }
  return is_sound;
}

Result<std::set<std::uint32_t>> maps_used_by(int program) {
  std::vector<std::uint32_t> ids(64);  // the most that a program may use
  bpf_prog_info info{};
  std::uint32_t size = sizeof info;
  info.nr_map_ids = static_cast<std::uint32_t>(ids.size());
  info.map_ids = reinterpret_cast<std::uintptr_t>(ids.data());
  if (::bpf_obj_get_info_by_fd(program, &info, &size) != 0)
    return errno_error(errno, "read a program's maps");
  return std::set<std::uint32_t>(
      ids.begin(), ids.begin() + std::min<std::ptrdiff_t>(info.nr_map_ids, std::ssize(ids)));
}

Result<std::uint32_t> map_id(int fd) {
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  if (::bpf_obj_get_info_by_fd(fd, &info, &size) != 0) return errno_error(errno, "read a map's id");
  return info.id;
}

// Maps of any layout but ours: of the one that was, or of an upgrade that was taken back.
Result<> remove_other_maps(const std::string& pin_dir) {
  for (const std::string& name : names_in(pin_dir)) {
    const std::string dir = pin_dir + "/" + name;
    if (!name.starts_with("maps_") || dir == maps_dir(pin_dir, UM_LAYOUT)) continue;
    MESH_TRY(detach_tree(dir, nullptr));
  }
  for (const std::string& name : names_in(pin_dir + "/maps")) {
    if (is_lasting(name)) continue;
    MESH_TRY(unpin(pin_dir + "/maps/" + name));
  }
  return success();
}

}  // namespace

std::span<const Hook> workload_hooks() {
  static constexpr Hook kHooks[] = {
      {"sock_ops", "um_sock_ops", BPF_CGROUP_SOCK_OPS},
      {"getpeername4", "um_getpeername4", BPF_CGROUP_INET4_GETPEERNAME},
      {"getpeername6", "um_getpeername6", BPF_CGROUP_INET6_GETPEERNAME},
      {"recvmsg4", "um_recvmsg4", BPF_CGROUP_UDP4_RECVMSG},
      {"recvmsg6", "um_recvmsg6", BPF_CGROUP_UDP6_RECVMSG},
      {"sendmsg4", "um_sendmsg4", BPF_CGROUP_UDP4_SENDMSG},
      {"sendmsg6", "um_sendmsg6", BPF_CGROUP_UDP6_SENDMSG},
      {"connect4", "um_connect4", BPF_CGROUP_INET4_CONNECT},
      {"connect6", "um_connect6", BPF_CGROUP_INET6_CONNECT},
  };
  return kHooks;
}

std::span<const Hook> mesh_hooks() {
  static constexpr Hook kHooks[] = {
      {"sock_create", "um_mesh_sock_create", BPF_CGROUP_INET_SOCK_CREATE},
      {"sock_ops", "um_mesh_sock_ops", BPF_CGROUP_SOCK_OPS},
      {"getsockopt", "um_mesh_getsockopt", BPF_CGROUP_GETSOCKOPT},
      {"sendmsg4", "um_mesh_sendmsg4", BPF_CGROUP_UDP4_SENDMSG},
      {"sendmsg6", "um_mesh_sendmsg6", BPF_CGROUP_UDP6_SENDMSG},
      {"connect4", "um_mesh_connect4", BPF_CGROUP_INET4_CONNECT},
      {"connect6", "um_mesh_connect6", BPF_CGROUP_INET6_CONNECT},
  };
  return kHooks;
}

Result<Object> Object::open(const Options& options) {
  listen_to_libbpf();
  Object object;
  object.pin_dir_ = options.pin_dir;
  MESH_TRY(object.ensure_dirs());
  MESH_TRY(object.meta_, open_meta(options.pin_dir));
  MESH_TRY(auto meta, read_meta(object.meta_.get(), options.pin_dir));
  if (meta.layout != UM_LAYOUT) {
    object.previous_layout_ = meta.layout;
  } else {
    MESH_TRY(remove_other_maps(options.pin_dir));
  }

  MESH_TRY(const auto elfs, open_elfs());
  const bool is_new = names_in(maps_dir(options.pin_dir, UM_LAYOUT)).empty();
  bool is_sound = true;
  for (const BpfObject& elf : elfs) {
    MESH_TRY(const bool has_sound_maps, keep_sound_maps(elf.get(), options.pin_dir));
    is_sound = is_sound && has_sound_maps;
  }
  const std::uint64_t hash = object_hash();
  if (is_sound && meta.is_damaged == 0 && !object.has_previous() && meta.object == hash) {
    MESH_TRY(is_sound, object.take_over());
    if (is_sound) {
      log()->info("kernel programs adopted pins={}", options.pin_dir);
      return object;
    }
  }
  object.is_damaged_ = meta.is_damaged != 0 || (!is_sound && !is_new);
  if (object.is_damaged_)
    log()->warn("pins were damaged and are made again pins={}", options.pin_dir);
  // Until all programs are replaced the pinned ones are of no one object.
  MESH_TRY(object.write_meta(meta.layout, 0));
  for (const BpfObject& elf : elfs) {
    MESH_TRY(object.load(elf.get(), options));
  }
  if (!object.must_change_over()) {
    MESH_TRY(object.write_meta(UM_LAYOUT, hash));
  }
  log()->info("kernel programs loaded pins={} previous_layout={}", options.pin_dir,
              object.previous_layout_);
  return object;
}

Result<> Object::ensure_dirs() {
  const Place place = lock_ ? place_of(lock_.get(), pin_dir_) : Place::kRemoved;
  if (place == Place::kElsewhere)
    return Error{
        Errc::unavailable,
        pin_dir_ + " is not what meshd made: a mount hides it, or it was moved or unmounted"};
  MESH_TRY(need_bpffs(fs::path(pin_dir_).parent_path()));
  for (const char* dir : {"", "/maps", "/programs", "/links"}) {
    MESH_TRY(make_dir(pin_dir_ + dir));
  }
  MESH_TRY(make_dir(maps_dir(pin_dir_, UM_LAYOUT)));
  if (place == Place::kRemoved) {
    MESH_TRY(lock_, lock_dir(pin_dir_));
  }
  return success();
}

Result<std::size_t> Object::restore_pins() {
  MESH_TRY(ensure_dirs());
  std::size_t restored = 0;
  const auto restore = [&restored](const UniqueFd& fd, const std::string& path) -> Result<> {
    MESH_TRY(const bool was_missing, restore_pin(fd.get(), path));
    restored += was_missing ? 1U : 0U;
    return success();
  };
  for (const auto& [name, fd] : maps_) {
    MESH_TRY(restore(fd, map_pin(pin_dir_, name)));
  }
  for (const auto& [name, fd] : programs_) {
    MESH_TRY(restore(fd, pin_dir_ + "/programs/" + name));
  }
  MESH_TRY(restore(meta_, pin_dir_ + "/meta"));  // last: it says that the others are there
  return restored;
}

Result<> Object::write_meta(std::uint32_t layout, std::uint64_t object) {
  const std::uint32_t zero = 0;
  const Meta meta{layout, is_damaged_ ? 1U : 0U, object};
  if (::bpf_map_update_elem(meta_.get(), &zero, &meta, BPF_ANY) != 0)
    return errno_error(errno, "write the layout and hash of the pinned programs");
  return success();
}

UniqueFd Object::previous_map(const std::string& name) const {
  if (!has_previous()) return {};
  return UniqueFd(::bpf_obj_get((maps_dir(pin_dir_, previous_layout_) + "/" + name).c_str()));
}

Result<> Object::retire_previous() {
  is_damaged_ = false;
  MESH_TRY(write_meta(UM_LAYOUT, object_hash()));
  log()->info("changed over to the new maps previous_layout={}",
              std::exchange(previous_layout_, 0));
  return remove_other_maps(pin_dir_);
}

Result<bool> Object::take_over() {
  std::set<std::uint32_t> ours, used;
  for (const std::string& dir : {pin_dir_ + "/maps", maps_dir(pin_dir_, UM_LAYOUT)}) {
    for (const std::string& name : names_in(dir)) {
      UniqueFd fd = pinned(dir + "/" + name, "map");
      if (!fd) {  // none of ours: those were looked at
        MESH_TRY(unpin(dir + "/" + name));
        continue;
      }
      MESH_TRY(auto id, map_id(fd.get()));
      ours.insert(id);
      maps_.emplace(name, std::move(fd));
    }
  }
  bool sound = true;
  for (auto hooks : {workload_hooks(), mesh_hooks()}) {
    for (const Hook& hook : hooks) {
      UniqueFd fd = pinned(pin_dir_ + "/programs/" + hook.program, "prog");
      if (fd) {
        MESH_TRY(auto ids, maps_used_by(fd.get()));
        used.merge(ids);
      }
      sound = sound && fd;
      programs_.emplace(hook.program, std::move(fd));
    }
  }
  // Programs that decide by maps which are no longer the pinned ones would not see what we write.
  if (sound && std::ranges::includes(ours, used)) return true;
  maps_.clear();
  programs_.clear();
  return false;
}

Result<> Object::load(bpf_object* object, const Options& options) {
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, object) {
    std::string name = ::bpf_map__name(map);
    std::string pin = map_pin(pin_dir_, name);
    MESH_TRY(size_map(map, pin, wanted_size(name, options)));
    if (int err = ::bpf_map__set_pin_path(map, pin.c_str()); err != 0)
      return errno_error(-err, "pin " + pin);
  }
  if (int err = ::bpf_object__load(object); err != 0)
    return libbpf_error(-err, "load the BPF programs");
  bpf_object__for_each_map(map, object) {
    UniqueFd fd(::fcntl(::bpf_map__fd(map), F_DUPFD_CLOEXEC, 3));
    if (!fd) return errno_error(errno, "keep a map");
    maps_.emplace(::bpf_map__name(map), std::move(fd));
  }
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, object) {
    std::string name = ::bpf_program__name(program);
    UniqueFd fd(::fcntl(::bpf_program__fd(program), F_DUPFD_CLOEXEC, 3));
    if (!fd) return errno_error(errno, "keep a program");
    MESH_TRY(pin_over(fd.get(), pin_dir_ + "/programs/" + name));
    programs_.emplace(name, std::move(fd));
  }
  return success();
}

Result<std::string> Object::ensure_links_dir(const std::string& set) {
  MESH_TRY(ensure_dirs());
  std::string dir = links_dir(set);
  MESH_TRY(make_dir(dir));
  return dir;
}

Result<> Object::ensure_link(const std::string& dir, const Hook& hook, int cgroup,
                             std::uint64_t id) {
  std::string pin = dir + "/" + hook.name;
  int program = programs_.at(hook.program).get();
  UniqueFd known = pinned(pin, "link");
  if (known) {
    MESH_TRY(auto info, info_of_link(known.get(), pin));
    if (info.cgroup.cgroup_id == id &&
        info.cgroup.attach_type == static_cast<__u32>(hook.attach_type)) {
      MESH_TRY(auto ours, program_id(program));
      if (info.prog_id == ours) return success();
      if (::bpf_link_update(known.get(), program, nullptr) != 0)
        return errno_error(errno, "update the program of " + pin);
      return success();
    }
  } else {
    MESH_TRY(unpin(pin));
  }
  UniqueFd link(
      ::bpf_link_create(program, cgroup, static_cast<bpf_attach_type>(hook.attach_type), nullptr));
  if (!link) {
    int err = errno;
    Error error = errno_error(err, std::string("attach ") + hook.name);
    if (err == EPERM)
      error.message += " (a program of a parent cgroup may be exclusive: see 'meshctl check')";
    return error;
  }
  MESH_TRY(pin_over(link.get(), pin));
  if (known) ::bpf_link_detach(known.get());
  return success();
}

Result<> Object::ensure_links(const std::string& set, std::span<const Hook> hooks,
                              const std::string& cgroup_path) {
  UniqueFd cgroup(::open(cgroup_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat status{};
  if (!cgroup || ::fstat(cgroup.get(), &status) != 0)
    return errno_error(errno, "open cgroup " + cgroup_path);
  MESH_TRY(const std::string dir, ensure_links_dir(set));
  for (const Hook& hook : hooks) {
    Result<> linked = ensure_link(dir, hook, cgroup.get(), status.st_ino);
    if (!linked) return std::move(linked).assume_error().at(cgroup_path);
  }
  return success();
}

bool Object::has_links(const std::string& set) const {
  return ::access((pin_dir_ + "/links/" + set).c_str(), F_OK) == 0;
}

Result<> Object::ensure_ingress(const std::string& set, int netns, std::uint64_t cookie) {
  MESH_TRY(auto program, load_ingress(maps_, cookie));
  MESH_TRY(const std::string dir, ensure_links_dir(set));
  const std::string pin = dir + "/sk_lookup";
  UniqueFd known = pinned(pin, "link");
  if (!known) {
    MESH_TRY(unpin(pin));
  }
  struct stat status{};
  if (::fstat(netns, &status) != 0) return errno_error(errno, "look at a network namespace");
  if (known) {
    MESH_TRY(auto info, info_of_link(known.get(), pin));
    if (info.netns.netns_ino == status.st_ino &&
        ::bpf_link_update(known.get(), program.get(), nullptr) == 0)
      return success();
    ::bpf_link_detach(known.get());  // of a namespace that was
  }
  UniqueFd link(::bpf_link_create(program.get(), netns, BPF_SK_LOOKUP, nullptr));
  if (!link) return errno_error(errno, "attach sk_lookup to the network namespace");
  return pin_over(link.get(), pin);
}

Result<std::string> Object::ensure_packets(const std::string& set, int netns, std::uint64_t cookie,
                                           WorkloadId id) {
  MESH_TRY(const std::string dir, ensure_links_dir(set));
  MESH_TRY(const auto sides, sides_of(netns));
  MESH_TRY(const auto programs, load_packet(maps_, cookie, id));
  MESH_TRY(attach_packets(dir, sides.here, programs));
  return why_uncovered(sides);
}

Result<> Object::remove_packets(const std::string& set) {
  if (!has_links(set)) return success();
  return attach_packets(pin_dir_ + "/links/" + set, {}, {});
}

Result<> Object::remove_links(const std::string& set) {
  std::string dir = pin_dir_ + "/links/" + set;
  // What catches connections goes first.
  for (auto hooks : {workload_hooks(), mesh_hooks()}) {
    for (auto hook = std::make_reverse_iterator(hooks.end());
         hook != std::make_reverse_iterator(hooks.begin()); ++hook) {
      std::string pin = dir + "/" + hook->name;
      UniqueFd link(::bpf_obj_get(pin.c_str()));
      if (link) ::bpf_link_detach(link.get());
    }
  }
  return detach_tree(dir, nullptr);
}

Result<std::vector<std::string>> Object::link_sets() const {
  std::vector<std::string> sets = names_in(pin_dir_ + "/links");
  for (const std::string& stray : sets) {
    if (fs::is_directory(pin_dir_ + "/links/" + stray)) continue;
    MESH_TRY(unpin(pin_dir_ + "/links/" + stray));
  }
  return names_in(pin_dir_ + "/links");
}

// The first error; what can go goes.
Result<> detach_tree(const std::string& dir, std::vector<std::string>* removed) {
  Result<> outcome = success();
  const auto note = [&outcome](Result<> done) {
    if (outcome && !done) outcome = std::move(done);
  };
  for (const std::string& name : names_in(dir)) {
    std::string path = dir + "/" + name;
    if (fs::is_directory(fs::symlink_status(path))) {
      note(detach_tree(path, removed));
      continue;
    }
    // Closing the last reference detaches a link only later; this does at once. Fails on maps and
    // programs, and on a link whose cgroup is gone: nothing to detach.
    UniqueFd object(::bpf_obj_get(path.c_str()));
    if (!detach_filter(dir, name) && object) ::bpf_link_detach(object.get());
    if (auto gone = unpin(path); !gone) {
      note(std::move(gone));
      continue;
    }
    if (removed != nullptr) removed->push_back(path);
  }
  if (::rmdir(dir.c_str()) != 0 && errno != ENOENT) note(errno_error(errno, "remove " + dir));
  return outcome;
}

}  // namespace mesh::datapath
