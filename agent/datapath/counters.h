// The kernel's counters, summed over CPUs, from the descriptors of um_counters and
// um_policy_counts.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

// "" for a number that is none.
const char* counter_name(std::uint32_t number);  // um_counter

Result<Counters> read_counters(int counters, int policy_counts);

}  // namespace mesh::datapath
