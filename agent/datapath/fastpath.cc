#include "datapath/fastpath.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <string_view>

#include "bpf/fastpath.h"
#include "datapath/byte_order.h"
#include "datapath/libbpf_errors.h"
#include "datapath/links.h"
#include "datapath/map.h"
#include "datapath/object.h"
#include "fastpath.skel.h"

namespace mesh::datapath {
namespace {

// What joining costs is what about four round trips gain (bench: l4-roundtrip); who has lived for
// twice as many is likely to live for as many more.
constexpr std::uint32_t kMinTrips = 8;

constexpr std::array<std::string_view, 5> kOwnMaps = {
    "um_fast_peers", "um_fast_settled", "um_fast_addresses", "um_fast_excluded", "um_fast_config"};

struct SkeletonDeleter {
  void operator()(fastpath_bpf* skeleton) const { fastpath_bpf__destroy(skeleton); }
};
using Skeleton = std::unique_ptr<fastpath_bpf, SkeletonDeleter>;

std::string base_dir(const std::string& pin_dir) { return pin_dir + "/fastpath"; }
std::string maps_dir(const std::string& dir) { return dir + "/maps_" + std::to_string(UM_LAYOUT); }

Result<> make_dirs(const std::string& dir) {
  for (const std::string& made : {dir, maps_dir(dir), dir + "/links"}) {
    MESH_TRY(make_dir(made));
  }
  return success();
}

bool is_own(std::string_view map) {
  for (const std::string_view own : kOwnMaps)
    if (map == own) return true;
  return false;
}

// The maps of a layout serve the sockets that joined with them, pinned or not.
Result<> switch_off(const std::string& maps) {
  const UniqueFd config(::bpf_obj_get((maps + "/um_fast_config").c_str()));
  if (!config) return success();
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  const std::uint32_t zero = 0;
  if (::bpf_obj_get_info_by_fd(config.get(), &info, &size) == 0) {
    const std::vector<char> off(info.value_size);
    if (::bpf_map_update_elem(config.get(), &zero, off.data(), BPF_ANY) == 0) return success();
  }
  return errno_error(errno, "switch the fast path off: " + maps);
}

Result<> switch_off_layouts(const std::string& dir) {
  Result<> outcome = success();
  for (const std::string& name : names_in(dir)) {
    if (!name.starts_with("maps_")) continue;
    if (auto off = switch_off(dir + "/" + name); !off) outcome = std::move(off);
  }
  return outcome;
}

Result<> remove_other_layouts(const std::string& dir) {
  for (const std::string& name : names_in(dir)) {
    if (!name.starts_with("maps_") || dir + "/" + name == maps_dir(dir)) continue;
    MESH_TRY(switch_off(dir + "/" + name));
    MESH_TRY(detach_tree(dir + "/" + name, nullptr));
  }
  return success();
}

Result<Skeleton> load(const std::string& dir, const std::map<std::string, UniqueFd>& shared) {
  forget_libbpf_errors();
  Skeleton skeleton(fastpath_bpf__open());
  if (!skeleton) return libbpf_error(errno, "open the BPF object of the fast path");
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj) {
    const std::string name = ::bpf_map__name(map);
    const auto theirs = shared.find(name);
    const int err = is_own(name)
                        ? ::bpf_map__set_pin_path(map, (maps_dir(dir) + "/" + name).c_str())
                    : theirs != shared.end() ? ::bpf_map__reuse_fd(map, theirs->second.get())
                                             : 0;  // its own constants
    if (err != 0) return libbpf_error(-err, "share map " + name);
  }
  if (int err = fastpath_bpf__load(skeleton.get()); err != 0)
    return libbpf_error(-err, "load the BPF programs of the fast path");
  return skeleton;
}

// Maps that none of its programs asks for much are small: they are made for a moment. The self-test
// has some hundred sockets.
Result<Skeleton> load_copy() {
  forget_libbpf_errors();
  Skeleton skeleton(fastpath_bpf__open());
  if (!skeleton) return libbpf_error(errno, "open the BPF object of the fast path");
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj) {
    const auto type = ::bpf_map__type(map);
    if (type == BPF_MAP_TYPE_SOCKHASH)
      ::bpf_map__set_max_entries(map, 1024);
    else if (type == BPF_MAP_TYPE_HASH || type == BPF_MAP_TYPE_LRU_HASH)
      ::bpf_map__set_max_entries(map, 64);
  }
  if (int err = fastpath_bpf__load(skeleton.get()); err != 0)
    return libbpf_error(-err, "load the BPF programs of the fast path");
  return skeleton;
}

Result<UniqueFd> duplicate(int fd) {
  UniqueFd kept(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!kept) return errno_error(errno, "keep a program or map of the fast path");
  return kept;
}

// Few entries, and other processes' are none: the map is read each time.
template <class Key, class Value>
Result<> write_all(Map<Key, Value>& map, const char* name,
                   const typename Map<Key, Value>::Entries& wanted) {
  MESH_TRY(map.read());
  MESH_TRY(map.keep_only(wanted));
  const auto failed = map.put(wanted);
  if (failed.empty()) return success();
  return errno_error(failed.begin()->second, std::string("write map ") + name);
}

std::uint32_t id_of_program(int fd) {
  bpf_prog_info info{};
  std::uint32_t size = sizeof info;
  return ::bpf_obj_get_info_by_fd(fd, &info, &size) == 0 ? info.id : 0;
}

// One that was detached is at no cgroup.
bool is_linked(const std::string& pin, int program, std::uint64_t cgroup) {
  const UniqueFd link(::bpf_obj_get(pin.c_str()));
  if (!link) return false;
  const auto info = info_of_link(link.get(), pin);
  return info && info.value().type == BPF_LINK_TYPE_CGROUP &&
         info.value().cgroup.cgroup_id == cgroup &&
         info.value().cgroup.attach_type == BPF_CGROUP_SOCK_OPS &&
         info.value().prog_id == id_of_program(program);
}

// One that is there at this cgroup gets the program.
Result<> ensure_link(const std::string& pin, int program, const std::string& path) {
  const UniqueFd cgroup(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat status{};
  if (!cgroup && errno == ENOENT) return success();  // its workload is about to end
  if (!cgroup || ::fstat(cgroup.get(), &status) != 0)
    return errno_error(errno, "open cgroup " + path);
  const UniqueFd known(::bpf_obj_get(pin.c_str()));
  if (known) {
    MESH_TRY(auto info, info_of_link(known.get(), pin));
    if (info.type == BPF_LINK_TYPE_CGROUP && info.cgroup.cgroup_id == status.st_ino &&
        ::bpf_link_update(known.get(), program, nullptr) == 0)
      return success();
    ::bpf_link_detach(known.get());
  }
  const UniqueFd link(::bpf_link_create(program, cgroup.get(), BPF_CGROUP_SOCK_OPS, nullptr));
  if (!link) return errno_error(errno, "attach the fast path to " + path);
  return pin_over(link.get(), pin);
}

Result<UniqueFd> make_iterator(const fastpath_bpf& skeleton) {
  UniqueFd link(::bpf_link_create(::bpf_program__fd(skeleton.progs.um_fast_join), 0, BPF_TRACE_ITER,
                                  nullptr));
  if (!link) return errno_error(errno, "make the fast path's iterator");
  return link;
}

}  // namespace

std::string why_no_fast_path() {
  utsname name{};
  int major = 0, minor = 0;
  ::uname(&name);
  if (std::sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
      (major > 6 || (major == 6 && minor >= 13)))
    return {};
  return std::string("Linux ") + name.release +
         " does not charge redirected data to its receiver: 6.13 does";
}

std::string fast_path_link(const std::string& pin_dir, const std::string& name) {
  return base_dir(pin_dir) + "/links/" + name;
}

Result<FastPathCopy> copy_of_fast_path(int cgroup) {
  MESH_TRY(auto skeleton, load_copy());
  FastPathCopy copy;
  const auto keep = [&](const char* map) {
    return duplicate(::bpf_object__find_map_fd_by_name(skeleton->obj, map));
  };
  MESH_TRY(copy.sockets, keep("um_fast_sockets"));
  MESH_TRY(copy.addresses, keep("um_fast_addresses"));
  MESH_TRY(copy.config, keep("um_fast_config"));
  MESH_TRY(copy.peers, keep("um_fast_peers"));
  if (::bpf_prog_attach(::bpf_program__fd(skeleton->progs.um_fast_msg), copy.peers.get(),
                        BPF_SK_MSG_VERDICT, 0) != 0)
    return errno_error(errno, "attach the fast path's program to its map");
  MESH_TRY(copy.iterator, make_iterator(*skeleton));
  copy.link.reset(::bpf_link_create(::bpf_program__fd(skeleton->progs.um_fast_sock_ops), cgroup,
                                    BPF_CGROUP_SOCK_OPS, nullptr));
  if (!copy.link) return errno_error(errno, "attach the fast path to a control group");
  return copy;
}

int run_fast_path_iterator(int iterator) {
  const UniqueFd run(::bpf_iter_create(iterator));
  char nothing[64];
  ssize_t got = run ? 0 : -1;
  if (run) {
    do {
      got = ::read(run.get(), nothing, sizeof nothing);  // the program writes nothing
    } while (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)));
  }
  return got < 0 ? errno : 0;
}

Result<FastPath> FastPath::open(const std::string& pin_dir,
                                const std::map<std::string, UniqueFd>& shared) {
  if (const std::string why = why_no_fast_path(); !why.empty())
    return Error{Errc::unavailable, why};
  FastPath made;
  made.dir_ = base_dir(pin_dir);
  MESH_TRY(make_dirs(made.dir_));
  MESH_TRY(remove_other_layouts(made.dir_));
  MESH_TRY(auto skeleton, load(made.dir_, shared));
  for (const std::string_view own : kOwnMaps) {
    const std::string name(own);
    MESH_TRY(auto fd, duplicate(::bpf_object__find_map_fd_by_name(skeleton->obj, name.c_str())));
    made.maps_.emplace(name, std::move(fd));
  }
  made.excluded_ = Excluded(made.map("um_fast_excluded"), "um_fast_excluded");
  made.addresses_ = Addresses(made.map("um_fast_addresses"), "um_fast_addresses");
  MESH_TRY(made.sock_ops_, duplicate(::bpf_program__fd(skeleton->progs.um_fast_sock_ops)));
  MESH_TRY(made.iterator_, make_iterator(*skeleton));
  // Sockets keep the program that was there when they joined.
  if (::bpf_prog_attach(::bpf_program__fd(skeleton->progs.um_fast_msg), made.map("um_fast_peers"),
                        BPF_SK_MSG_VERDICT, 0) != 0)
    return errno_error(errno, "attach the fast path's program to its map");
  return made;
}

Result<> FastPath::remove(const std::string& pin_dir, std::vector<std::string>* removed) {
  const std::string dir = base_dir(pin_dir);
  const Result<> off = switch_off_layouts(dir);  // holds, whatever cannot be removed
  const Result<> links = detach_tree(dir + "/links", removed);
  MESH_TRY(off);
  MESH_TRY(links);
  return detach_tree(dir, removed);
}

Result<> FastPath::keep(const FastPathNode& node) {
  Excluded::Entries listeners;
  for (const SocketAddress& listener : node.excluded) listeners[kernel_destination(listener)] = 1;
  Addresses::Entries owners;
  for (const auto& [ip, cookie] : node.addresses) owners[kernel_address(ip)] = cookie;
  Result<> written = write_all(excluded_, "um_fast_excluded", listeners);
  if (written) written = write_all(addresses_, "um_fast_addresses", owners);
  const std::uint32_t excluded = listeners.empty() ? 0U : UM_FAST_HAS_EXCLUDED;
  config_ = {written ? UM_FAST_ON | excluded : 0U, kMinTrips};
  MESH_TRY(write_config());
  return written;
}

Result<> FastPath::link(const std::map<std::string, std::string>& cgroups) {
  Result<> outcome = success();
  const auto note = [&outcome](Result<> done) {
    if (outcome && !done) outcome = std::move(done);
  };
  for (const std::string& name : names_in(dir_ + "/links")) {
    if (cgroups.contains(name)) continue;
    const std::string pin = dir_ + "/links/" + name;
    const UniqueFd link(::bpf_obj_get(pin.c_str()));
    if (link) ::bpf_link_detach(link.get());  // fails where the cgroup is gone
    note(unpin(pin));
  }
  for (const auto& [name, path] : cgroups) {
    note(ensure_link(dir_ + "/links/" + name, sock_ops_.get(), path));
  }
  return outcome;
}

Result<bool> FastPath::restore_link(const std::string& name, const std::string& cgroup) {
  const std::string pin = dir_ + "/links/" + name;
  struct stat status{};
  if (::stat(cgroup.c_str(), &status) != 0 || is_linked(pin, sock_ops_.get(), status.st_ino))
    return false;
  MESH_TRY(make_dirs(dir_));
  MESH_TRY(ensure_link(pin, sock_ops_.get(), cgroup));
  return true;
}

Result<std::size_t> FastPath::restore_pins() const {
  MESH_TRY(make_dirs(dir_));
  std::size_t restored = 0;
  for (const auto& [name, fd] : maps_) {
    MESH_TRY(const bool was_missing, restore_pin(fd.get(), maps_dir(dir_) + "/" + name));
    restored += was_missing ? 1U : 0U;
  }
  return restored;
}

Result<bool> FastPath::restore_config() {
  const std::uint32_t zero = 0;
  um_fast_config config{};
  if (::bpf_map_lookup_elem(map("um_fast_config"), &zero, &config) != 0)
    return errno_error(errno, "read map um_fast_config");
  if (config.flags == config_.flags && config.min_trips == config_.min_trips) return false;
  MESH_TRY(write_config());
  return true;
}

Result<std::size_t> FastPath::restore_some(std::size_t rows) {
  MESH_TRY(const std::size_t excluded, excluded_.restore_some(rows));
  MESH_TRY(const std::size_t addresses, addresses_.restore_some(rows));
  return excluded + addresses;
}

Result<> FastPath::write_config() {
  const std::uint32_t zero = 0;
  if (::bpf_map_update_elem(map("um_fast_config"), &zero, &config_, BPF_ANY) != 0)
    return errno_error(errno, "write map um_fast_config");
  return success();
}

Result<std::vector<std::uint64_t>> FastPath::take_settled() {
  Map<std::uint64_t, std::uint32_t> map(this->map("um_fast_settled"), "um_fast_settled");
  MESH_TRY(map.read());
  std::vector<std::uint64_t> out;
  for (const auto& [cookie, one] : map.entries()) out.push_back(cookie);
  // Taken out first: who asks from now on is asked for again.
  MESH_TRY(map.keep_only({}));
  return out;
}

void FastPath::ask_again(std::uint64_t netns_cookie) {
  const std::uint32_t one = 1;
  ::bpf_map_update_elem(map("um_fast_settled"), &netns_cookie, &one, BPF_ANY);
}

Result<> FastPath::let_join(SocketWork& work, int netns) const {
  constexpr std::uint64_t kWalk = ~std::uint64_t{0} - 1;  // no socket's cookie
  const int iterator = iterator_.get();
  const auto walk = [=](int, std::size_t) { return run_fast_path_iterator(iterator); };
  const int error = work.run(netns, {kWalk}, iterator, walk)[0];
  if (error == EBUSY) return Error{Errc::timed_out, kLockHeld};
  if (error != 0) return errno_error(error, "walk the sockets of a network namespace");
  return success();
}

}  // namespace mesh::datapath
