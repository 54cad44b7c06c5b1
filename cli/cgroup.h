// The mesh's control groups: <cgroup2>/<name>/mesh (the programs) and
// <cgroup2>/<name>/workloads/<ns>.<name> (sandboxes). By them everything of the mesh is found
// again, whatever was killed. Functions over paths; no state.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mesh::cli {

struct Cgroups {
  std::string mount;  // of cgroup2
  std::string root;   // "<cgroup2>/undermesh"
  std::string mesh() const { return root + "/mesh"; }
  std::string workloads() const { return root + "/workloads"; }
  std::string workload(std::string_view ns, std::string_view name) const {
    return workloads() + "/" + std::string(ns) + "." + std::string(name);
  }
};
Result<Cgroups> find_cgroups(const std::string& name);

Result<> make_cgroup(const std::string& path);                 // with its parents; idempotent
Result<> enter_cgroup(const std::string& path);                // the calling process
std::vector<pid_t> cgroup_processes(const std::string& path);  // empty when there is no such group
bool is_populated(const std::string& path);  // it or a group below it has a process
// Every process below the groups gets SIGTERM, and after `grace` SIGKILL (cgroup.kill, so no fork
// escapes); returns when all are gone, or timed_out after five more seconds. grace 0: SIGKILL.
Result<> end_cgroups(const std::vector<std::string>& paths, std::chrono::milliseconds grace);
Result<> remove_cgroup(const std::string& path);  // with the groups below it; they must be empty
std::vector<std::string> child_cgroups(const std::string& path);  // full paths, sorted

}  // namespace mesh::cli
