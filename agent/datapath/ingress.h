// The program of one workload's network namespace (bpf/ingress.bpf.c): an instance for each.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::datapath {

// Loads it over these maps, by name. Needs root.
Result<UniqueFd> load_ingress(const std::map<std::string, UniqueFd>& maps,
                              std::uint64_t netns_cookie);

}  // namespace mesh::datapath
