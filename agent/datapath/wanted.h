// Wanted: what the kernel's maps shall hold for a State, in the kernel's own words.
//
// WantedMaps follows one State after the other: what the two share (base/shared_map.h) is not
// looked at, and the entries made of it are shared too. It says what is wanted, whatever became of
// it before: what is there is the maps' to know. One thread at a time.
#pragma once

#include <map>

#include "base/result.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/map.h"
#include "datapath/policy_maps.h"
#include "datapath/services.h"

namespace mesh::datapath {

using Problems = std::map<WorkloadId, Error>;  // 0: of no one workload

struct Wanted {
  PolicyMaps::Entries policy;
  Map<um_own_key, std::uint32_t>::Entries own_addresses;
  Map<std::uint32_t, um_workload_record>::Entries records;
  Services::Entries services;
  Map<um_refusal_key, std::uint32_t>::Entries refusals;
};

class WantedMaps {
 public:
  // problems: workloads that cannot be enrolled, and have no entries.
  Wanted follow(const State& state, Problems& problems);

 private:
  State last_;  // without what is made anew each time: workloads and blocks
  Wanted of_last_;
};

}  // namespace mesh::datapath
