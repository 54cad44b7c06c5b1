// bpf progs, maps and stats: what is in the kernel of the mesh. They read the pins, so they work
// with meshd dead; root only. bpf flows asks meshd.
#pragma once

#include <chrono>

#include "base/result.h"
#include "environment.h"

namespace mesh::cli {

Result<int> bpf_programs(const Environment& environment, Format format);
Result<int> bpf_maps(const Environment& environment, Format format);
// Totals since the maps were made; with a span, what happens during it: the counters' growth, and
// how often each program runs and how long.
Result<int> bpf_stats(const Environment& environment, std::chrono::seconds span, Format format);
// wide: of a table, the policy, the own end and the socket too.
Result<int> bpf_flows(const Environment& environment, bool wide, Format format);

}  // namespace mesh::cli
