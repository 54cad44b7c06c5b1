// The kernel's counters, summed over CPUs, from the descriptors of um_counters and
// um_policy_counts.
#pragma once

#include "base/result.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

Result<Counters> read_counters(int counters, int policy_counts);

}  // namespace mesh::datapath
