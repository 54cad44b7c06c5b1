#include "sandbox.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <set>

#include "api/messages.h"
#include "base/unique_fd.h"
#include "cgroup.h"
#include "client.h"
#include "netlink.h"
#include "output.h"
#include "process.h"
#include "sandbox_monitor.h"
#include "sandbox_record.h"

namespace mesh::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::string default_log(const Environment& environment, const SandboxSpec& spec) {
  std::string prefix = spec.ns == "default" ? "" : spec.ns + ".";
  return environment.log_of("sandbox-" + prefix + spec.name);
}

// In the child of `exec`: into the namespaces, then the command.
int enter_and_execute(int netns, int mntns, const std::string& directory,
                      const SignalRelay& signals, const std::vector<std::string>& command,
                      const std::vector<std::string>& extra_environment) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  int err = 0;
  if (::setns(netns, CLONE_NEWNET) != 0 || ::setns(mntns, CLONE_NEWNS) != 0) {
    err = errno;
    std::fprintf(stderr, "error: cannot enter the sandbox: %s\n", std::strerror(err));
    return 126;
  }
  if (::chdir(directory.c_str()) != 0 && ::chdir("/") != 0) return 126;
  signals.restore();
  err = execute(command, extra_environment);
  std::fprintf(stderr, "error: cannot run %s: %s\n", command[0].c_str(), std::strerror(err));
  return exit_for_errno(err);
}

Result<int> relay_until_end(const Child& child, const SignalRelay& signals) {
  pollfd polls[2] = {{child.pidfd.get(), POLLIN, 0}, {signals.fd(), POLLIN, 0}};
  for (;;) {
    if (::poll(polls, 2, -1) < 0 && errno != EINTR) return errno_error(errno, "poll");
    if (polls[1].revents != 0)
      while (int signal = signals.next()) ::kill(child.pid, signal);
    if (polls[0].revents == 0) continue;
    int status = 0;
    ::waitpid(child.pid, &status, 0);
    return exit_for_status(status);
  }
}

Error no_sandbox(const std::string& ns, const std::string& name) {
  return {Errc::not_found,
          "no sandbox " + ns + "/" + name + " runs; `meshctl sandbox list` shows those that do"};
}

// What a killed monitor could not clear away itself.
Result<> clear_remains(const Environment& environment, const std::string& ns,
                       const std::string& name, const std::string& cgroup) {
  auto deleted = delete_entry(Client(environment.run_dir), ns, name);
  if (!deleted && deleted.error().code != Errc::unavailable) return std::move(deleted).error();
  return remove_cgroup(cgroup);
}

// Also when its monitor hangs: the lock is held, so the pid in the record is still its own.
bool end_monitor(const Environment& environment, const std::string& ns, const std::string& name) {
  if (wait_monitor_gone(environment, ns, name, seconds(15))) return true;
  if (auto record = find_sandbox(environment, ns, name); record && record->monitor_pid > 0)
    ::kill(record->monitor_pid, SIGKILL);
  return wait_monitor_gone(environment, ns, name, seconds(5));
}

Result<> end_sandbox(const Environment& environment, const Cgroups& cgroups, const std::string& ns,
                     const std::string& name) {
  std::string cgroup = cgroups.workload(ns, name);
  MESH_TRY(end_cgroups({cgroup}, milliseconds(0)));
  if (!end_monitor(environment, ns, name))
    return Error{Errc::timed_out, "the monitor of sandbox " + ns + "/" + name +
                                      " does not end; `meshctl sandbox list` shows its pid"};
  clear_dead_record(environment, ns, name);
  if (fs::exists(cgroup)) return clear_remains(environment, ns, name, cgroup);
  return success();
}

}  // namespace

Result<> check_name(const std::string& text) {
  auto is_end = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (!text.empty() && text.size() <= 63 && is_end(text.front()) && is_end(text.back()) &&
      std::all_of(text.begin(), text.end(), [&](char c) { return is_end(c) || c == '-'; }))
    return success();
  return Error{Errc::invalid_argument,
               "'" + text +
                   "': must be at most 63 lower case letters, digits and '-', starting and ending "
                   "with a letter or digit"};
}

Result<int> run_sandbox(const Environment& environment, const SandboxSpec& given) {
  MESH_TRY(require_root("meshctl sandbox run"));
  MESH_TRY(Client(environment.run_dir).get<api::Version>("/v1/version"));
  SandboxSpec spec = given;
  if (std::error_code ec; !fs::exists("/etc/resolv.conf", ec))
    std::fputs(
        "note: this machine has no /etc/resolv.conf; the sandbox has one in a read-only /etc of "
        "its "
        "own, and knows the names of the mesh alone\n",
        stderr);
  if (!spec.detach) return monitor(environment, spec);
  if (spec.log.empty()) spec.log = default_log(environment, spec);
  return monitor_detached(environment, spec);
}

Result<int> exec_in_sandbox(const Environment& environment, const std::string& ns,
                            const std::string& name, const std::vector<std::string>& command,
                            const std::vector<std::string>& extra_environment) {
  MESH_TRY(require_root("meshctl sandbox exec"));
  MESH_TRY(auto cgroups, find_cgroups(environment.cgroup_name));
  std::string cgroup = cgroups.workload(ns, name);
  auto record = find_sandbox(environment, ns, name);
  if (!record || record->first_pid == 0) return no_sandbox(ns, name);
  std::string proc = "/proc/" + std::to_string(record->first_pid) + "/ns/";
  UniqueFd netns(::open((proc + "net").c_str(), O_RDONLY | O_CLOEXEC));
  UniqueFd mntns(::open((proc + "mnt").c_str(), O_RDONLY | O_CLOEXEC));
  UniqueFd pidns(::open((proc + "pid").c_str(), O_RDONLY | O_CLOEXEC));
  auto members = cgroup_processes(cgroup);
  if (!netns || !mntns || !pidns ||
      std::find(members.begin(), members.end(), record->first_pid) == members.end())
    return no_sandbox(ns, name);  // it ended, and the pid may be anyone's by now
  std::error_code ec;
  std::string directory = fs::current_path(ec);
  MESH_TRY(auto signals, SignalRelay::open());
  // Only children are born there; ours may be born here again afterwards.
  UniqueFd own_pidns(::open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC));
  if (!own_pidns || ::setns(pidns.get(), CLONE_NEWPID) != 0)
    return errno_error(errno, "cannot enter the sandbox");
  MESH_TRY(auto child, spawn(cgroup, 0, [&] {
             return enter_and_execute(netns.get(), mntns.get(), directory, signals, command,
                                      extra_environment);
           }));
  if (::setns(own_pidns.get(), CLONE_NEWPID) != 0) return errno_error(errno, "/proc/self/ns/pid");
  netns.reset();  // a descriptor of a namespace keeps it, and its links, alive
  mntns.reset();
  pidns.reset();
  return relay_until_end(child, signals);
}

Result<> stop_sandbox(const Environment& environment, const std::string& ns,
                      const std::string& name) {
  MESH_TRY(require_root("meshctl sandbox stop"));
  MESH_TRY(auto cgroups, find_cgroups(environment.cgroup_name));
  if (!fs::exists(cgroups.workload(ns, name)) && !find_sandbox(environment, ns, name))
    return no_sandbox(ns, name);
  return end_sandbox(environment, cgroups, ns, name);
}

Result<std::vector<std::string>> stop_all_sandboxes(const Environment& environment) {
  MESH_TRY(require_root("meshctl sandbox stop"));
  MESH_TRY(auto cgroups, find_cgroups(environment.cgroup_name));
  std::set<std::pair<std::string, std::string>> names;
  for (const auto& record : live_sandboxes(environment)) names.emplace(record.ns, record.name);
  for (const auto& path : child_cgroups(cgroups.workloads())) {
    std::string base = fs::path(path).filename();
    std::size_t dot = base.find('.');
    if (dot != std::string::npos) names.emplace(base.substr(0, dot), base.substr(dot + 1));
  }
  MESH_TRY(end_cgroups(child_cgroups(cgroups.workloads()), milliseconds(0)));
  std::vector<std::string> out;
  for (const auto& [ns, name] : names) {
    MESH_TRY(end_sandbox(environment, cgroups, ns, name));
    out.push_back(ns == "default" ? name : ns + "/" + name);
  }
  return out;
}

Result<int> list_sandboxes(const Environment& environment, Format format) {
  MESH_TRY(require_root("meshctl sandbox list"));
  std::map<std::pair<std::string, std::string>, std::string> states;
  auto known = Client(environment.run_dir).get<api::WorkloadList>("/v1/workloads");
  if (known)
    for (const auto& w : known.value().workloads) states[{w.ns, w.name}] = w.state;
  auto now = ::time(nullptr);
  Table table({"NAMESPACE", "NAME", "ADDRESS", "STATE", "PID", "AGE", "COMMAND"});
  json::array list;
  for (const auto& record : live_sandboxes(environment)) {
    std::string state = "unknown";
    if (known) {
      auto found = states.find({record.ns, record.name});
      state = found == states.end() ? "starting" : found->second;
    }
    table.row({record.ns, record.name, record.addresses.empty() ? "" : record.addresses[0], state,
               std::to_string(record.command_pid), age(seconds(now - record.started)),
               join(record.command, " ").substr(0, 60)});
    list.push_back({{"namespace", record.ns},
                    {"name", record.name},
                    {"addresses", json::array(record.addresses.begin(), record.addresses.end())},
                    {"state", state},
                    {"pid", record.command_pid},
                    {"first_pid", record.first_pid},
                    {"monitor_pid", record.monitor_pid},
                    {"started", record.started},
                    {"command", json::array(record.command.begin(), record.command.end())},
                    {"log", record.log}});
  }
  if (format != Format::kTable) {
    std::fputs(render(format, json::object{{"sandboxes", list}}).c_str(), stdout);
  } else if (table.empty()) {
    std::puts("No sandbox runs. Start one: meshctl sandbox run NAME -l app=NAME -- COMMAND");
  } else {
    std::fputs(table.to_string().c_str(), stdout);
    if (!known) std::fprintf(stderr, "states unknown: %s\n", known.error().message.c_str());
  }
  return 0;
}

Result<> remove_bridge() {
  MESH_TRY(auto netlink, Netlink::open());
  return netlink.delete_link(kBridge);
}

}  // namespace mesh::cli
