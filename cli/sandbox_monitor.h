// The monitor of one sandbox: its parent, from the claim of its name to the end of its command.
//
// It makes what the sandbox needs (control group, link, WorkloadEntry), starts the command once the
// workload is enrolled, and clears everything away at the end, whatever failed.
#pragma once

#include <string>

#include "base/result.h"
#include "client.h"
#include "environment.h"
#include "sandbox.h"

namespace mesh::cli {

// In this process, until the command ends; its exit status.
Result<int> monitor(const Environment& environment, const SandboxSpec& spec);
// In a process of its own, with spec.log for its output; 0 once the command runs.
Result<int> monitor_detached(const Environment& environment, const SandboxSpec& spec);

// The WorkloadEntry of a sandbox; none there: success.
Result<> delete_entry(const Client& client, const std::string& ns, const std::string& name);

}  // namespace mesh::cli
