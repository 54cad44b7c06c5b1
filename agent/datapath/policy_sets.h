// PolicySets: one generation of um_sets, a map of verdicts for each policy set, and a mirror of it.
//
// A set that changes is written into a map of its own, which then takes the place of the old one.
// The same set in both generations is one map. The descriptor is borrowed. One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/map.h"

namespace mesh::datapath {

class PolicySets {
 public:
  using Verdicts = std::map<um_verdict_key, um_verdict, ByteOrder>;
  using VerdictsPtr = std::shared_ptr<const Verdicts>;
  using Entries = SharedMap<SetId, VerdictsPtr>;

  // limit: how many sets there may be.
  PolicySets(int fd, std::uint32_t generation, std::size_t limit)
      : fd_(fd), generation_(generation), limit_(limit) {}

  const Entries& entries() const { return entries_; }
  // Entries written or deleted so far, those of the sets' own maps among them.
  std::uint64_t writes() const { return writes_; }
  Result<> read();
  // As Map's. `other`: the other generation.
  std::map<SetId, int> put(const Entries& wanted, const PolicySets& other);
  Result<> keep_only(const Entries& wanted);
  // As Map's, but a set whose content is another is not seen.
  Result<bool> restore(SetId set, const PolicySets& other);

 private:
  um_set_key key_of(SetId set) const { return {set, generation_}; }
  Result<UniqueFd> map_for(SetId set, const VerdictsPtr& wanted, const PolicySets& other);

  int fd_;
  std::uint32_t generation_;
  std::size_t limit_;
  Entries entries_;
  std::uint64_t writes_ = 0;
};

bool is_same_set(const PolicySets::VerdictsPtr& a, const PolicySets::VerdictsPtr& b);

// As membarrier(2) does, where that does not: the kernel waits for its programs as a set of um_sets
// is replaced.
Result<> replace_a_set(int um_sets);

// Ports are cut into prefixes.
PolicySets::Verdicts kernel_verdicts(const PolicySet& set);
PolicySet user_verdicts(const PolicySets::Verdicts& verdicts);

}  // namespace mesh::datapath
