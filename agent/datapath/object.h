// Object: the loaded BPF programs and maps of the mesh, pinned below one directory:
//   meta                      layout and hash of the object that the pinned programs come from
//   maps/<map>                what lasts as long as connections do (UM_LASTING_MAPS)
//   maps_<layout>/<map>       all other maps
//   programs/<program>        every program
//   links/<workload id>/<hook>, links/<workload id>/sk_lookup, links/mesh/<hook>
//   links/<workload id>/packet_<from|to>_<device>   of strict workloads (datapath/packet.h)
// open() takes over what is pinned; it loads only when nothing is, or when this build's object is
// another one (the maps stay, links are updated in place when they are next ensured).
//
// Where the pins are of another layout, older or newer, its programs go on deciding by its maps
// until these ones are filled and the links are ensured; retire_previous() then ends it. An upgrade
// that stops before is taken up again by the next open() of either version. Pins that are missing
// or no longer what they were are made again in the same way.
//
// The process holds a lock on the directory: a second owner is refused. Needs root. One thread at a
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "datapath/datapath.h"

struct bpf_object;

namespace mesh::datapath {

struct Hook {
  const char* name;     // of the pin
  const char* program;  // in the object
  int attach_type;      // enum bpf_attach_type
};
// In the order of attachment: what catches connections comes last. Detached the other way round.
std::span<const Hook> workload_hooks();
std::span<const Hook> mesh_hooks();

class Object {
 public:
  static Result<Object> open(const Options& options);

  int map(const std::string& name) const { return maps_.at(name).get(); }
  const std::map<std::string, UniqueFd>& maps() const { return maps_; }

  // The maps are not those that the programs at work decide by: they must be filled first, and no
  // link changed before. (Another layout, or pins that were damaged.)
  bool must_change_over() const { return has_previous() || is_damaged_; }
  bool has_previous() const { return previous_layout_ != 0; }
  int program(const std::string& name) const { return programs_.at(name).get(); }
  const std::string& pin_dir() const { return pin_dir_; }
  std::string links_dir(const std::string& set) const { return pin_dir_ + "/links/" + set; }

  // Of the layout that was; none: there is no such map, or no other layout.
  UniqueFd previous_map(const std::string& name) const;
  // Once every link has its new program.
  Result<> retire_previous();

  // The directories that hold the pins, made where somebody removed them. Errc::unavailable: what
  // we pinned is somewhere else now (a mount hides it, or it was moved); what is attached cannot be
  // seen, so nothing may be.
  Result<> ensure_dirs();
  // Pins again what of the maps and programs is not pinned any more; how many were not.
  Result<std::size_t> restore_pins();

  // Has every hook linked to this cgroup and running this object's program, under links/<set>.
  Result<> ensure_links(const std::string& set, std::span<const Hook> hooks,
                        const std::string& cgroup_path);
  // The program that judges what arrives, in the namespace (a descriptor) of this cookie; as a link
  // of the same set.
  Result<> ensure_ingress(const std::string& set, int netns, std::uint64_t cookie);
  // The programs at the host's side of a workload's links; returns why they are not all of its
  // links, empty where they are.
  Result<std::string> ensure_packets(const std::string& set, int netns, std::uint64_t cookie,
                                     WorkloadId id);
  Result<> remove_packets(const std::string& set);
  // What failed half-way is there, too.
  bool has_links(const std::string& set) const;
  Result<> remove_links(const std::string& set);
  Result<std::vector<std::string>> link_sets() const;

 private:
  Result<bool> take_over();  // false: the pinned programs are not all there, or of other maps
  Result<> load(bpf_object* object, const Options& options);
  Result<> write_meta(std::uint32_t layout, std::uint64_t object);
  Result<std::string> ensure_links_dir(const std::string& set);
  Result<> ensure_link(const std::string& dir, const Hook& hook, int cgroup, std::uint64_t id);

  std::string pin_dir_;
  std::uint32_t previous_layout_ = 0;  // 0: the pins are of ours
  bool is_damaged_ = false;
  UniqueFd lock_, meta_;
  std::map<std::string, UniqueFd> maps_;
  std::map<std::string, UniqueFd> programs_;
};

// Replaces the pin at once: there is never a moment without one.
Result<> pin_over(int fd, const std::string& path);

// Detaches the links and filters pinned below dir (also where others hold them), and removes the
// pins. `removed` gets their paths.
Result<> detach_tree(const std::string& dir, std::vector<std::string>* removed);

}  // namespace mesh::datapath
