// Sandboxes: workloads of this machine, each a command in a network, mount and PID namespace and a
// control group of its own, enrolled in the mesh before the command starts.
//
// The monitor (`meshctl sandbox run`, or what --detach leaves behind) is the parent: it passes
// signals in and the exit status out, and clears everything away at the end. If it is killed, the
// kernel ends the sandbox, and meshd drops its WorkloadEntry and control group.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "environment.h"

namespace mesh::cli {

struct SandboxSpec {
  std::string ns = "default";
  std::string name;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> annotations;
  std::string service_account;
  std::vector<std::string> environment;  // "K=V"
  std::vector<std::string> command;
  bool detach = false;
  std::string log;  // with detach; empty: <run dir>/logs/sandbox-<name>.log
};

// Of sandboxes and namespaces: a DNS label. invalid_argument otherwise; the functions below expect
// that it was asked.
Result<> check_name(const std::string& text);

// All need root. The exit status of the command, or 0 with detach.
Result<int> run_sandbox(const Environment& environment, const SandboxSpec& spec);
// Runs a command inside a sandbox; its exit status.
Result<int> exec_in_sandbox(const Environment& environment, const std::string& ns,
                            const std::string& name, const std::vector<std::string>& command,
                            const std::vector<std::string>& extra_environment);
// Ends its processes, and returns when nothing of it is left. not_found when there is none.
Result<> stop_sandbox(const Environment& environment, const std::string& ns,
                      const std::string& name);
Result<std::vector<std::string>> stop_all_sandboxes(const Environment& environment);
Result<int> list_sandboxes(const Environment& environment, Format format);

// What is left of a sandbox whose monitor died: link and control group. For `down` and `stop`.
Result<> remove_bridge();

}  // namespace mesh::cli
