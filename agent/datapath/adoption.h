// What an earlier meshd left in the kernel, as a State: by what it wrote in the maps of this layout
// (values), and what is to be had from those of another, while the programs of that one are at
// work.
#pragma once

#include <cstdint>
#include <set>

#include "base/result.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/object.h"

namespace mesh::datapath {

EnrolledWorkload adopted(WorkloadId id, const um_workload_record& record);
// Of a workload that `state` has; others are passed over. `order`: its place among the addresses.
void adopt_address(const um_own_key& key, std::uint32_t order, State& state);

// Of another layout (object.has_previous()): what every one says in the same words: who is
// enrolled, and what the proxy serves. The rest follows from the configuration. invalid_argument: a
// map of it cannot be read, with the remedy.
Result<State> adopt_previous(const Object& object);
// The namespaces, by cookie, that have a row in the layout that was; none where there was none.
Result<std::set<std::uint64_t>> previous_cookies(const Object& object);

}  // namespace mesh::datapath
