// What a process of the mesh may do: its capabilities and its number of open files. Called by the
// mains before anything else happens, on the only thread.
#pragma once

#include <span>

#include "base/result.h"

namespace mesh::feed {

// Keeps these capabilities (CAP_...), drops every other one from all sets for good, and sets
// no_new_privs.
Result<> keep_only_capabilities(std::span<const unsigned> kept);

// As many open files as may be had: 1,048,576, or without CAP_SYS_RESOURCE the hard limit.
Result<> raise_file_limit();

}  // namespace mesh::feed
