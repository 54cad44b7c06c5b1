// Where one mesh lives on this machine: directories, control groups, exit codes. Values.
#pragma once

#include <string>

#include "base/result.h"

namespace mesh::cli {

// What meshctl's exit status means (docs: `meshctl --help`).
enum Exit : int {
  kOk = 0,
  kFailed = 1,
  kUsage = 2,
  kNotRunning = 3,
  kNotFound = 4,
  kDegraded = 5,
  kPermission = 6,
  kDenied = 7,  // authz check: not allowed, or not all of it
};
int exit_code(const Error& error);

enum class Format : std::uint8_t { kTable, kJson, kYaml };

struct Environment {
  std::string run_dir = "/run/undermesh";
  std::string state_dir = "/var/lib/undermesh";
  std::string cgroup_name = "undermesh";  // directory below the cgroup2 mount; tests use their own
  std::string pin_dir = "/sys/fs/bpf/undermesh";

  std::string run(std::string_view name) const { return run_dir + "/" + std::string(name); }
  std::string log_of(std::string_view program) const {
    return run_dir + "/logs/" + std::string(program) + ".log";
  }
};

// permission, with the remedy, unless the caller is root. `what`: "meshctl up".
Result<> require_root(std::string_view what);

}  // namespace mesh::cli
