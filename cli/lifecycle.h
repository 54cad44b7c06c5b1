// up, down, check and disable: this machine's mesh as a whole. Each may be repeated, and may follow
// a kill -9 of anything at any moment.
#pragma once

#include <sys/types.h>

#include <optional>
#include <set>
#include <string>

#include "base/result.h"
#include "environment.h"
#include "supervisor.h"

namespace mesh::cli {

// `given`: the options that the caller named ("--workers"); a mesh that runs with others refuses.
Result<int> bring_up(Environment environment, ProgramOptions options,
                     const std::set<std::string>& given);
Result<int> bring_down(Environment environment, bool purge);
Result<int> check(const Environment& environment, Format format);
// Ends meshd and the supervisor, so that nothing is attached again before the next `up`.
Result<int> disable_everything(const Environment& environment);
// Whether anything of the mesh is attached in the kernel, meshd alive or dead; nothing where the
// caller may not look.
std::optional<bool> is_attached(const Environment& environment);
// Takes one workload out of the mesh: its WorkloadEntry keeps everything but its netns annotation.
Result<int> disable_workload(const Environment& environment, const std::string& ns,
                             const std::string& name);

}  // namespace mesh::cli
