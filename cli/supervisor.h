// The supervisor that `meshctl up` leaves behind: starts meshhold, meshproxy and meshd, and starts
// again what ends. It lives in the mesh's control group and holds the lock on <run
// dir>/supervisor.pid as long as it lives; its own death stops nothing, and the next one takes over
// what runs.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "environment.h"

namespace mesh::cli {

struct ProgramOptions {
  std::string bin_dir;  // where the programs are; that of meshctl
  std::string cgroup;   // <cgroup2>/undermesh
  std::string access_log, service_cidr = "10.78.0.0/16", log_level = "info";
  int workers = 0;  // 0: one for every two processors
  unsigned proxy_uid = 65530;
};

inline constexpr const char* kPrograms[] = {"meshhold", "meshproxy", "meshd"};  // in order of start

// argv of a program (pure).
std::vector<std::string> command_of(const std::string& program, const Environment& environment,
                                    const ProgramOptions& options);
// The options as arguments of `meshctl supervise`, and so of the next supervisor (pure).
std::vector<std::string> supervise_arguments(const Environment& environment,
                                             const ProgramOptions& options);

// Runs as `meshctl supervise` until it is killed; returns only with an error.
Result<> supervise(const Environment& environment, const ProgramOptions& options);

// The supervisor of this run directory; none when its lock is free.
std::optional<pid_t> running_supervisor(const Environment& environment);
// Starts one in a session and control group of its own; returns when it holds its lock.
Result<pid_t> start_supervisor(const Environment& environment, const ProgramOptions& options);

// What it wrote down last: <run dir>/supervisor.json.
struct SupervisedProgram {
  pid_t pid = 0;  // 0: not running now
  std::uint64_t restarts = 0;
  std::string last_end;  // "exit 1", "signal 9 (Killed)"; empty: never ended
};
std::map<std::string, SupervisedProgram> supervised_programs(const Environment& environment);

// The mesh's programs in its control group now, by executable, whoever started them.
std::multimap<std::string, pid_t> running_programs(const std::string& mesh_cgroup);

}  // namespace mesh::cli
