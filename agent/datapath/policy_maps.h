// PolicyMaps: what policy is decided by - um_workloads, um_sets, um_peers, um_blocks - in two
// generations (bpf/shared.h), and a mirror of both.
//
// prepare() writes the generation that is not active, of which no program knows; the caller makes
// it the active one by one store, waits until no program can remember the other, and says so.
// Programs thus decide by one state or the other, whatever changed. Descriptors are borrowed. One
// thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "base/result.h"
#include "bpf/shared.h"
#include "datapath/map.h"
#include "datapath/object.h"
#include "datapath/policy_sets.h"

namespace mesh::datapath {

class PolicyMaps {
 public:
  // The keys are of no generation (0).
  struct Entries {
    Map<um_workload_key, um_workload>::Entries workloads;
    PolicySets::Entries sets;
    Map<um_peer_key, um_peer>::Entries peers;
    Map<um_block_key, std::uint32_t>::Entries blocks;
  };
  struct LeftOut {  // -> errno
    Map<um_workload_key, um_workload>::Failures workloads;
    std::map<SetId, int> sets;
    Map<um_peer_key, um_peer>::Failures peers;
    Map<um_block_key, std::uint32_t>::Failures blocks;

    // Whether an address that is not found may be one that did not fit.
    bool lost_addresses() const { return !peers.empty() || !blocks.empty(); }
  };

  explicit PolicyMaps(const Object& object);

  // active: the generation that programs decide by.
  Result<> read(std::uint32_t active);
  std::uint32_t active() const { return active_; }
  std::uint32_t other() const { return 1 - active_; }
  // Of the active one.
  bool holds(const Entries& wanted) const;  // these and nothing else
  Entries entries() const;
  const auto& workloads() const { return generations_[active_].workloads.entries(); }

  std::uint64_t writes() const;  // entries written or deleted so far

  // What does not fit is not in the map afterwards; all else is as wanted.
  Result<LeftOut> prepare(const Entries& wanted);
  void set_active(std::uint32_t generation) { active_ = generation; }
  // Entries of the active generation, as Map's.
  Result<bool> restore_workload(std::uint64_t netns_cookie) {
    return generations_[active_].workloads.restore({netns_cookie, 0, 0});
  }
  Result<bool> restore_peer(const um_address& address) {
    return generations_[active_].peers.restore({0, address});
  }
  Result<bool> restore_set(SetId set) {
    return generations_[active_].sets.restore(set, generations_[other()].sets);
  }
  Result<std::size_t> restore_some_peers(std::size_t count) {
    return generations_[active_].peers.restore_some(count);
  }
  Result<std::size_t> restore_some_blocks(std::size_t count) {
    return generations_[active_].blocks.restore_some(count);
  }
  // Frees what only the other generation has: no program can remember it any more.
  Result<> sweep();

 private:
  struct Generation {
    Generation(const Object& object, std::uint32_t number);
    Result<> read();
    std::uint64_t writes() const {
      return workloads.writes() + sets.writes() + peers.writes() + blocks.writes();
    }

    Map<um_workload_key, um_workload> workloads;
    PolicySets sets;
    Map<um_peer_key, um_peer> peers;
    Map<um_block_key, std::uint32_t> blocks;
  };

  Generation generations_[2];
  std::uint32_t active_ = 0;
};

}  // namespace mesh::datapath
