#include "lifecycle.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "api/messages.h"
#include "base/unique_fd.h"
#include "cgroup.h"
#include "client.h"
#include "datapath/datapath.h"
#include "fast_path.h"
#include "netlink.h"
#include "output.h"
#include "process.h"
#include "sandbox.h"
#include "up_options.h"

namespace mesh::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kReadyDeadline{60};
constexpr std::uint64_t kTooManyRestarts = 6;  // of one program while `up` waits
constexpr milliseconds kGrace{3000};
constexpr const char* kBpffs = "/sys/fs/bpf";

// ---- The run directory --------------------------------------------------------------------------

// `up` and `down` exclude one another: by a lock on the directory of cgroup2, which is always there
// and leaves nothing behind.
Result<UniqueFd> lock_machine() {
  auto mount = datapath::find_cgroup2();
  if (!mount) return UniqueFd();  // nothing can run
  UniqueFd fd(::open(mount.value().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd || ::flock(fd.get(), LOCK_EX) != 0) return errno_error(errno, mount.value());
  return fd;
}

// One that is there keeps its mode: it may be somebody else's.
Result<> make_directory(const std::string& path, mode_t mode) {
  std::error_code ec;
  fs::create_directories(fs::path(path).parent_path(), ec);
  if (ec) return errno_error(ec.value(), path);
  if (::mkdir(path.c_str(), mode) == 0)
    return ::chmod(path.c_str(), mode) == 0 ? Result<>(success()) : errno_error(errno, path);
  if (errno != EEXIST || !fs::is_directory(path, ec)) return errno_error(errno, path);
  return success();
}

// up.json comes first and goes last: it says that a mesh was up here, so that what has the name of
// a file of the mesh is one.
Result<> make_directories(const Environment& environment, const ProgramOptions& options) {
  MESH_TRY(make_directory(environment.run_dir, 0755));  // the sockets have their own modes
  remember(environment, options);
  MESH_TRY(make_directory(environment.run("logs"), 0750));
  return make_directory(environment.state_dir, 0700);
}

// Removes what we know to be ours, in this order, never a whole tree that a wrong --run-dir might
// name; the names that stay are returned.
std::vector<std::string> remove_known(const std::string& directory,
                                      const std::vector<std::string>& known) {
  std::error_code ec;
  for (const auto& name : known) fs::remove_all(directory + "/" + name, ec);
  std::vector<std::string> left;
  for (fs::directory_iterator it(directory, ec), end; !ec && it != end; it.increment(ec))
    left.push_back(it->path().filename());
  if (left.empty()) fs::remove(directory, ec);
  return left;
}

// ---- bpffs --------------------------------------------------------------------------------------

bool is_bpffs(const char* path) {
  struct statfs info{};
  return ::statfs(path, &info) == 0 && info.f_type == BPF_FS_MAGIC;
}

Result<> mount_bpffs(const Environment& environment) {
  if (is_bpffs(kBpffs)) return success();
  std::ofstream(environment.run("mounted-bpffs")) << kBpffs << "\n";  // before: a kill may follow
  MESH_TRY(datapath::ensure_bpffs(kBpffs));
  return success();
}

// A fresh bpffs has two files of the kernel's own.
bool has_pins(const char* path) {
  std::error_code ec;
  for (fs::directory_iterator it(path, ec), end; !ec && it != end; it.increment(ec))
    if (it->path().extension() != ".debug") return true;
  return false;
}

Result<> unmount_bpffs(const Environment& environment) {
  if (!fs::exists(environment.run("mounted-bpffs")) || !is_bpffs(kBpffs)) return success();
  if (has_pins(kBpffs)) {
    std::fprintf(stderr, "note: %s stays mounted: others have pins there\n", kBpffs);
    return success();
  }
  if (::umount2(kBpffs, UMOUNT_NOFOLLOW) != 0)
    return errno_error(errno, "cannot unmount /sys/fs/bpf");
  return success();
}

// ---- up -----------------------------------------------------------------------------------------

// Errors and warnings with their remedies, on stderr; how many errors.
int print_findings(const std::vector<datapath::Finding>& findings) {
  int errors = 0;
  for (const auto& finding : findings) {
    if (finding.level == datapath::Finding::Level::kOk) continue;
    bool is_error = finding.level == datapath::Finding::Level::kError;
    errors += is_error;
    std::fprintf(stderr, "%s: %s: %s\n", is_error ? "error" : "warning", finding.subject.c_str(),
                 finding.message.c_str());
    if (!finding.remedy.empty()) std::fprintf(stderr, "  remedy: %s\n", finding.remedy.c_str());
  }
  return errors;
}

std::string tail_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back("    " + line);
    if (lines.size() > 8) lines.erase(lines.begin());
  }
  return lines.empty() ? "    (empty)" : join(lines, "\n");
}

bool is_ready(const api::Status& status) {
  auto connected = [&](const char* name) {
    auto found = status.programs.find(name);
    return found != status.programs.end() && found->second.connected;
  };
  return status.state != "starting" && connected("meshhold") && connected("meshproxy");
}

Error not_ready(const Environment& environment, const std::string& why) {
  std::string message = "the mesh did not become ready: " + why;
  auto programs = supervised_programs(environment);
  for (const char* name : kPrograms) {
    const auto& program = programs[name];
    if (program.restarts == 0 && program.pid != 0) continue;
    message += "\n  " + std::string(name) +
               " (last: " + (program.last_end.empty() ? "never started" : program.last_end) +
               "), end of " + environment.log_of(name) + ":\n" + tail_of(environment.log_of(name));
  }
  return {Errc::timed_out, message +
                               "\n  `meshctl check` looks for what this machine lacks; "
                               "`meshctl down` ends what was started"};
}

struct Ready {
  api::Status status;
  pid_t supervisor;
};

// Starts a supervisor whenever there is none: one that was killed just now holds its lock until the
// kernel has ended it, and is seen to be none only then.
Result<Ready> wait_ready(const Environment& environment, const ProgramOptions& options) {
  Client client(environment.run_dir);
  auto deadline = Clock::now() + kReadyDeadline;
  auto before = supervised_programs(environment);
  std::string last;
  while (Clock::now() < deadline) {
    auto supervisor = running_supervisor(environment);
    if (!supervisor) {
      MESH_TRY(supervisor, start_supervisor(environment, options));
      before.clear();  // it counts anew
    }
    auto status = client.get<api::Status>("/v1/status", seconds(5));
    const bool is_over = is_ending(*supervisor);
    if (status && is_ready(status.value()) && !is_over)
      return Ready{std::move(status).value(), *supervisor};
    if (is_over)
      last = "the supervisor (pid " + std::to_string(*supervisor) + ") was killed and does not end";
    else if (status)
      last = status.value().reasons.empty() ? "meshd waits for meshhold and meshproxy"
                                            : join(status.value().reasons, "; ");
    else
      last = "meshd does not answer yet";
    for (const auto& [name, program] : supervised_programs(environment))
      if (program.restarts >= before[name].restarts + kTooManyRestarts)
        return not_ready(environment, name + " ends again and again");
    std::this_thread::sleep_for(milliseconds(20));
  }
  return not_ready(environment, last);
}

void print_up(const Ready& ready, bool was_running) {
  const auto& [status, supervisor] = ready;
  Table table({"PROGRAM", "PID", "STATE"});
  table.row({"supervisor", std::to_string(supervisor), "running"});
  for (const char* name : {"meshd", "meshhold", "meshproxy"}) {
    auto found = status.programs.find(name);
    if (found == status.programs.end()) continue;
    table.row({name, found->second.pid == 0 ? "" : std::to_string(found->second.pid),
               found->second.connected ? "running" : "not connected"});
  }
  std::fputs(table.to_string().c_str(), stdout);
  std::printf(
      "\nThe mesh is up%s. Next: meshctl sandbox run NAME -- COMMAND, meshctl apply -f FILE, "
      "meshctl status\n",
      was_running ? " (it was running already)" : "");
  for (const auto& reason : status.reasons) std::fprintf(stderr, "warning: %s\n", reason.c_str());
}

// ---- down ---------------------------------------------------------------------------------------

Result<> end_supervisor(const Environment& environment, const Cgroups& cgroups) {
  auto pid = running_supervisor(environment);
  if (!pid) return success();
  auto members = cgroup_processes(cgroups.mesh());
  if (std::find(members.begin(), members.end(), *pid) != members.end()) ::kill(*pid, SIGKILL);
  auto deadline = Clock::now() + seconds(5);
  while (running_supervisor(environment)) {
    if (Clock::now() > deadline)
      return Error{Errc::timed_out, "the supervisor (pid " + std::to_string(*pid) +
                                        ") does not end; kill -9 it, then repeat"};
    std::this_thread::sleep_for(milliseconds(5));
  }
  return success();
}

// The objects after what was kept of them: without them, that would hold on (Store).
std::vector<std::string> state_files() {
  return {"accepted", "parsed", "objects", "ids.json", "fastpath"};
}

std::vector<std::string> run_files() {
  return {"proxy.sock", "hold.sock",      "meshd.sock",      "hosts",
          "logs",       "supervisor.pid", "supervisor.json", "supervisor.json.new",
          "sandboxes",  "addresses",      "mounted-bpffs",   "resolv.conf",
          "up.json"};
}

void warn_left(const std::string& directory, const std::vector<std::string>& left) {
  std::error_code ec;
  if (fs::exists(directory, ec) && !left.empty())
    std::fprintf(stderr, "note: %s stays: not the mesh's own in it: %s\n", directory.c_str(),
                 join(left, ", ").c_str());
}

// ---- disable ------------------------------------------------------------------------------------

// What attaches, and what would start that again: all but meshhold and meshproxy, also a child of
// the supervisor that is no program yet.
std::vector<pid_t> attaching_processes(const std::string& mesh_cgroup) {
  auto out = cgroup_processes(mesh_cgroup);
  for (const auto& [name, pid] : running_programs(mesh_cgroup))
    if (name != "meshd") std::erase(out, pid);
  return out;
}

Result<bool> end_attaching(const std::string& mesh_cgroup) {
  auto deadline = Clock::now() + seconds(5);
  bool any = false;
  for (auto pids = attaching_processes(mesh_cgroup); !pids.empty();
       pids = attaching_processes(mesh_cgroup)) {
    any = true;
    if (Clock::now() > deadline)
      return Error{Errc::timed_out, "process " + std::to_string(pids[0]) +
                                        " does not end after SIGKILL; repeat this when it has"};
    for (pid_t pid : pids) ::kill(pid, SIGKILL);
    std::this_thread::sleep_for(milliseconds(5));
  }
  return any;
}

}  // namespace

std::optional<bool> is_attached(const Environment& environment) {
  std::error_code ec;
  const std::string links = environment.pin_dir + "/links";
  if (!fs::exists(links, ec) && !ec) return false;
  for (fs::recursive_directory_iterator it(links, ec), end; !ec && it != end; it.increment(ec))
    if (!it->is_directory(ec)) return true;
  if (ec == std::errc::permission_denied) return std::nullopt;
  return false;
}

Result<int> bring_up(Environment environment, ProgramOptions options,
                     const std::set<std::string>& given) {
  MESH_TRY(require_root("meshctl up"));
  MESH_TRY(auto exclusive, lock_machine());
  auto cgroups = find_cgroups(environment.cgroup_name);
  if (print_findings(datapath::check_machine(cgroups ? cgroups.value().mesh() : "")) > 0)
    return Error{Errc::internal, "this machine cannot run the mesh yet; nothing was started"};
  if (!cgroups) return std::move(cgroups).error();
  if (is_populated(cgroups.value().mesh())) {
    MESH_TRY(take_options_of_running(environment, options, given));
  }
  options.cgroup = cgroups.value().root;
  MESH_TRY(make_directories(environment, options));
  MESH_TRY(make_cgroup(cgroups.value().mesh()));
  MESH_TRY(make_cgroup(cgroups.value().workloads()));
  MESH_TRY(mount_bpffs(environment));
  bool was_running = running_programs(cgroups.value().mesh()).size() == std::size(kPrograms);
  MESH_TRY(auto ready, wait_ready(environment, options));
  print_up(ready, was_running);
  return kOk;
}

Result<int> bring_down(Environment environment, bool purge) {
  MESH_TRY(require_root("meshctl down"));
  MESH_TRY(auto exclusive, lock_machine());
  ProgramOptions unused;
  recall(environment, unused);  // the state directory of the mesh that runs
  auto cgroups = find_cgroups(environment.cgroup_name);
  std::size_t programs = 0, sandboxes = 0;
  if (cgroups) {
    MESH_TRY(end_supervisor(environment, cgroups.value()));
    programs = running_programs(cgroups.value().mesh()).size();
    auto workloads = child_cgroups(cgroups.value().workloads());
    MESH_TRY(end_cgroups(workloads, kGrace));
    MESH_TRY(auto stopped, stop_all_sandboxes(environment));
    sandboxes = std::max(workloads.size(), stopped.size());
    MESH_TRY(end_cgroups({cgroups.value().mesh()}, kGrace));
  }
  MESH_TRY(auto detached, datapath::disable_all(environment.pin_dir));
  MESH_TRY(remove_bridge());
  if (cgroups && fs::exists(cgroups.value().root)) {
    MESH_TRY(remove_cgroup(cgroups.value().root));
  }
  MESH_TRY(unmount_bpffs(environment));
  const bool purged = purge && fs::exists(environment.state_dir);
  if (purged) warn_left(environment.state_dir, remove_known(environment.state_dir, state_files()));
  // Last: it remembers the state directory and the mount, should this be interrupted.
  bool had_files = fs::exists(environment.run("up.json"));
  if (had_files) {
    warn_left(environment.run_dir, remove_known(environment.run_dir, run_files()));
  } else {  // an `up` that was killed at its very beginning, or another's directory
    std::error_code not_empty;
    fs::remove(environment.run_dir, not_empty);
  }
  if (programs + sandboxes + detached.size() == 0 && !had_files && !purged)
    std::puts("The mesh was not running; nothing to do.");
  else
    std::printf(
        "The mesh is down: %zu programs, %zu sandboxes and %zu pinned BPF objects removed%s.\n",
        programs, sandboxes, detached.size(), purged ? ", and the stored configuration" : "");
  return kOk;
}

namespace {

// Nothing where there is no mesh.
std::vector<datapath::Finding> check_meshd(const Environment& environment,
                                           const std::string& mesh_cgroup) {
  using Level = datapath::Finding::Level;
  const bool is_there =
      !running_programs(mesh_cgroup).empty() || is_attached(environment).value_or(false);
  if (!is_there) return {};
  const auto answer =
      Client(environment.run_dir).get<api::Status>("/v1/status", std::chrono::seconds(5));
  if (answer) return {{Level::kOk, "meshd", "answers", ""}};
  if (answer.error().code == Errc::permission) return {};
  return {{Level::kWarning, "meshd",
           "does not answer: nothing new is enrolled and no change is applied; what is enrolled is "
           "captured, and policed by the last configuration",
           "meshctl up starts it again; one that hangs: kill it first; logs/meshd.log says more"}};
}

}  // namespace

Result<int> check(const Environment& environment, Format format) {
  auto cgroups = find_cgroups(environment.cgroup_name);
  const std::string mesh_cgroup = cgroups ? cgroups.value().mesh() : "";
  auto findings = datapath::check_machine(mesh_cgroup);
  for (auto& finding : datapath::check_mesh_hooks(environment.pin_dir, mesh_cgroup))
    findings.push_back(std::move(finding));
  for (auto& finding : check_meshd(environment, mesh_cgroup))
    findings.push_back(std::move(finding));
  findings.push_back(check_fast_path(environment));
  static constexpr const char* kLevels[] = {"ok", "warning", "error"};
  Table table({"LEVEL", "SUBJECT", "FINDING"});
  json::array list;
  int errors = 0;
  for (const auto& finding : findings) {
    const char* level = kLevels[static_cast<int>(finding.level)];
    errors += finding.level == datapath::Finding::Level::kError;
    table.row({level, finding.subject, finding.message});
    if (!finding.remedy.empty()) table.row({" ", " ", "-> " + finding.remedy});
    list.push_back({{"level", level},
                    {"subject", finding.subject},
                    {"message", finding.message},
                    {"remedy", finding.remedy}});
  }
  if (format != Format::kTable) {
    std::fputs(render(format, json::object{{"findings", list}}).c_str(), stdout);
  } else {
    std::fputs(table.to_string().c_str(), stdout);
    std::puts(errors == 0
                  ? "\nThis machine can run the mesh."
                  : "\nThis machine cannot run the mesh until the errors above are mended.");
  }
  return errors == 0 ? kOk : kFailed;
}

Result<int> disable_everything(const Environment& environment) {
  MESH_TRY(require_root("meshctl disable"));
  auto cgroups = find_cgroups(environment.cgroup_name);
  // First: a meshd that starts attaches everything. Should that fail, the rest is still tried.
  auto ended = cgroups ? end_attaching(cgroups.value().mesh()) : Result<bool>(false);
  MESH_TRY(auto detached, datapath::disable_all(environment.pin_dir));
  for (const auto& what : detached) std::printf("%s detached\n", what.c_str());
  std::printf("%zu pinned objects removed: no connection is captured or policed by the mesh now.\n",
              detached.size());
  MESH_TRY(auto any, std::move(ended));
  if (any) std::puts("meshd and its supervisor were ended, so it stays like this.");
  if (cgroups && is_populated(cgroups.value().mesh()))
    std::puts(
        "`meshctl up` attaches everything again; `meshctl down` ends the rest, with the "
        "sandboxes.");
  return kOk;
}

Result<int> disable_workload(const Environment& environment, const std::string& ns,
                             const std::string& name) {
  Client client(environment.run_dir);
  MESH_TRY(auto list,
           client.get<api::ObjectList>("/v1/objects?kind=WorkloadEntry&namespace=" +
                                       api::encode_query(ns) + "&name=" + api::encode_query(name)));
  if (list.objects.empty())
    return Error{Errc::not_found, "no WorkloadEntry " + ns + "/" + name +
                                      "; `meshctl get WorkloadEntry -A` shows all"};
  json::value tree(list.objects[0].tree);
  boost::system::error_code ec;
  json::value* annotations = tree.find_pointer("/metadata/annotations", ec);
  json::object* known = annotations ? annotations->if_object() : nullptr;
  if (!known || !known->contains("undermesh.io/netns") ||
      !known->emplace("undermesh.io/enrolment", "disabled").second) {
    std::printf("workloadentry.networking.istio.io/%s is not enrolled\n", name.c_str());
    return kOk;
  }
  api::ApplyRequest request;
  request.objects.push_back({tree.as_object(), "meshctl disable", {}});
  MESH_TRY(auto reply, client.post<api::ApplyReply>("/v1/apply", request));
  for (const auto& result : reply.results)
    if (result.outcome == "refused") return Error{Errc::refused, join(result.problems, "; ")};
  std::printf(
      "workloadentry.networking.istio.io/%s disabled: not captured or policed any more; to "
      "enrol it again, apply it without its annotation undermesh.io/enrolment, or start its "
      "sandbox anew\n",
      name.c_str());
  return kOk;
}

}  // namespace mesh::cli
