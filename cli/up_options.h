// The options that `meshctl up` was given, in <run dir>/up.json: the next `up`, `down` and the
// sandboxes must know them.
#pragma once

#include <set>
#include <string>

#include "base/address.h"
#include "base/result.h"
#include "environment.h"
#include "supervisor.h"

namespace mesh::cli {

void remember(const Environment& environment, const ProgramOptions& options);
// Those of the `up` before, over the ones that are there; false when there was none.
bool recall(Environment& environment, ProgramOptions& options);

// For a mesh that runs: its own options, in place of those given now. Refused where one of `given`
// ("--workers", ...: what the caller named) is another than the mesh has, where it runs in another
// run directory, or where what was remembered there is gone.
Result<> take_options_of_running(Environment& environment, ProgramOptions& options,
                                 const std::set<std::string>& given);

// Where services without a clusterIP get their addresses from. IPv4, of /28 or larger.
Result<IpBlock> parse_service_cidr(const std::string& text);
IpBlock service_block(const Environment& environment);  // of the mesh of this run directory

}  // namespace mesh::cli
