// What is pinned of the mesh, for people who look: programs and where they are attached, maps and
// how full they are, counters. Reads only; works beside a running meshd, and with meshd dead. Needs
// root. not_found where nothing is pinned.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

// Programs of one name: those that have an instance for each namespace are added up.
struct ProgramUse {
  std::string name, type;
  std::uint32_t instances = 0;
  std::vector<std::string> links;           // below links/: "mesh/connect4", "7/sk_lookup"
  std::uint32_t verified_instructions = 0;  // what the verifier walked; the largest instance
  std::uint64_t machine_bytes = 0;
  // Since the program was loaded, while somebody had run statistics enabled; else 0.
  std::uint64_t runs = 0, run_nanoseconds = 0;
};
Result<std::vector<ProgramUse>> pinned_programs(const std::string& pin_dir);

struct MapUse {
  std::string name, type;
  bool outlives_upgrades = false;
  std::optional<std::uint64_t> entries;  // not of storages of sockets: they cannot be walked
  std::uint64_t max_entries = 0;         // 0: unbounded
  std::uint64_t bytes = 0;               // memory charged now, inner maps with it
};
Result<std::vector<MapUse>> pinned_maps(const std::string& pin_dir);

Result<Counters> pinned_counters(const std::string& pin_dir);

// The kernel counts runs and their time while the descriptor is open, of all programs of the
// machine (some 20 ns a run).
Result<UniqueFd> count_runs();

}  // namespace mesh::datapath
