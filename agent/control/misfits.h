// What did not fit into the kernel, by the names of whom it concerns: for `meshctl status`,
// `meshctl policy list` and the log. Pure.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "config/snapshot.h"
#include "control/kernel_state.h"
#include "datapath/datapath.h"

namespace mesh::control {

struct NamedMisfits {
  // -> what has no room, and what is refused for it; of several things the one that refuses most.
  std::map<std::string, std::string> policies;  // by display_name()
  std::map<std::string, std::string> others;    // "workload ns/name", "Service ns/name", ...

  friend bool operator==(const NamedMisfits&, const NamedMisfits&) = default;
};
// `state` is what was applied, `snapshot` what it was made of.
NamedMisfits name_misfits(const datapath::Misfits& misfits, const datapath::State& state,
                          const config::Snapshot& snapshot,
                          const std::map<std::uint32_t, PolicyRule>& rules);

}  // namespace mesh::control
