#include "datapath/policy_maps.h"

#include <algorithm>

namespace mesh::datapath {
namespace {

// A generation's share of a map.
std::size_t half_of(int fd) {
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  return ::bpf_obj_get_info_by_fd(fd, &info, &size) == 0 ? info.max_entries / 2 : 0;
}

template <class Key, class Value>
Map<Key, Value> map_of(const Object& object, const char* name, std::uint32_t generation) {
  return {object.map(name), name, generation, half_of(object.map(name))};
}

bool is_same(const PolicySets::Entries& a, const PolicySets::Entries& b) {
  return a.size() == b.size() &&
         each_difference(a, b, is_same_set, [](const auto*, const auto*) { return false; });
}

}  // namespace

PolicyMaps::Generation::Generation(const Object& object, std::uint32_t number)
    : workloads(map_of<um_workload_key, um_workload>(object, "um_workloads", number)),
      // One of the sets is replaced to wait for programs.
      sets(object.map("um_sets"), number, half_of(object.map("um_sets"))),
      peers(map_of<um_peer_key, um_peer>(object, "um_peers", number)),
      blocks(map_of<um_block_key, std::uint32_t>(object, "um_blocks", number)) {}

Result<> PolicyMaps::Generation::read() {
  MESH_TRY(workloads.read());
  MESH_TRY(sets.read());
  MESH_TRY(peers.read());
  return blocks.read();
}

PolicyMaps::PolicyMaps(const Object& object)
    : generations_{Generation(object, 0), Generation(object, 1)} {}

Result<> PolicyMaps::read(std::uint32_t active) {
  active_ = active;
  MESH_TRY(generations_[0].read());
  return generations_[1].read();
}

bool PolicyMaps::holds(const Entries& wanted) const {
  const Generation& now = generations_[active_];
  return datapath::is_same(now.workloads.entries(), wanted.workloads) &&
         is_same(now.sets.entries(), wanted.sets) &&
         datapath::is_same(now.peers.entries(), wanted.peers) &&
         datapath::is_same(now.blocks.entries(), wanted.blocks);
}

std::uint64_t PolicyMaps::writes() const {
  return generations_[0].writes() + generations_[1].writes();
}

PolicyMaps::Entries PolicyMaps::entries() const {
  const Generation& now = generations_[active_];
  return {now.workloads.entries(), now.sets.entries(), now.peers.entries(), now.blocks.entries()};
}

// What goes makes room first: nobody misses it.
Result<PolicyMaps::LeftOut> PolicyMaps::prepare(const Entries& wanted) {
  Generation& next = generations_[other()];
  MESH_TRY(next.workloads.keep_only(wanted.workloads));
  MESH_TRY(next.sets.keep_only(wanted.sets));
  MESH_TRY(next.peers.keep_only(wanted.peers));
  MESH_TRY(next.blocks.keep_only(wanted.blocks));
  LeftOut left_out;
  left_out.sets = next.sets.put(wanted.sets, generations_[active_].sets);
  left_out.peers = next.peers.put(wanted.peers);
  left_out.blocks = next.blocks.put(wanted.blocks);
  left_out.workloads = next.workloads.put(wanted.workloads);
  return left_out;
}

Result<> PolicyMaps::sweep() {
  const Generation& now = generations_[active_];
  Generation& before = generations_[other()];
  MESH_TRY(before.workloads.keep_only(now.workloads.entries()));
  MESH_TRY(before.sets.keep_only(now.sets.entries()));
  MESH_TRY(before.peers.keep_only(now.peers.entries()));
  return before.blocks.keep_only(now.blocks.entries());
}

}  // namespace mesh::datapath
