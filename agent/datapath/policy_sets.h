// PolicySets: um_sets, a map of verdicts for each policy set, and a mirror of what they hold.
//
// A set that changes is written into a map of its own, which then takes the place of the old one:
// programs see the one or the other. The descriptor is borrowed. One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "base/result.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/map.h"

namespace mesh::datapath {

class PolicySets {
 public:
  using Verdicts = std::map<um_verdict_key, um_verdict, ByteOrder>;
  using Entries = std::map<SetId, Verdicts>;

  explicit PolicySets(int fd) : fd_(fd) {}

  const Entries& entries() const { return entries_; }
  Result<> read();
  // What `wanted` is to become, with what the sets say now of classes that they will not name any
  // more: for as long as somebody still is of such a class.
  Entries with_old_classes(const Entries& wanted) const;
  // As Map has them.
  bool take_changed() { return std::exchange(changed_, false); }
  std::map<SetId, int> put(const Entries& wanted);
  Result<> keep_only(const Entries& wanted);
  // As membarrier(2) does, where that does not: a replaced set has the kernel wait for programs.
  Result<> wait_for_programs();

 private:
  int fd_;
  Entries entries_;
  bool changed_ = false;
};

// Ports are cut into prefixes.
PolicySets::Verdicts kernel_verdicts(const PolicySet& set);
PolicySet user_verdicts(const PolicySets::Verdicts& verdicts);

}  // namespace mesh::datapath
