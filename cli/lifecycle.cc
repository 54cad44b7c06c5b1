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
#include "netlink.h"
#include "output.h"
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

Result<> make_directories(const Environment& environment) {
  std::error_code ec;
  fs::create_directories(environment.run("logs"), ec);
  if (ec) return errno_error(ec.value(), environment.run("logs"));
  fs::permissions(environment.run_dir, fs::perms(0755), ec);  // the sockets have their own
  fs::permissions(environment.run("logs"), fs::perms(0750), ec);
  fs::create_directories(environment.state_dir, ec);
  if (ec) return errno_error(ec.value(), environment.state_dir);
  fs::permissions(environment.state_dir, fs::perms(0700), ec);
  return success();
}

// Removes what we know to be ours, never a whole tree that a wrong --run-dir might name; the names
// that stay are returned.
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

Result<api::Status> wait_ready(const Environment& environment) {
  Client client(environment.run_dir);
  auto deadline = Clock::now() + kReadyDeadline;
  auto before = supervised_programs(environment);
  std::string last;
  while (Clock::now() < deadline) {
    auto status = client.get<api::Status>("/v1/status", seconds(5));
    if (status && is_ready(status.value())) return status;
    if (status)
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

void print_up(const api::Status& status, std::optional<pid_t> supervisor, bool was_running) {
  Table table({"PROGRAM", "PID", "STATE"});
  if (supervisor) table.row({"supervisor", std::to_string(*supervisor), "running"});
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

std::vector<std::string> state_files() { return {"objects", "accepted", "parsed", "ids.json"}; }

std::vector<std::string> run_files(const Environment& environment) {
  std::vector<std::string> out = {
      "proxy.sock",     "hold.sock",           "meshd.sock", "hosts",     "logs",
      "supervisor.pid", "supervisor.json",     "sandboxes",  "addresses", "up.json",
      "mounted-bpffs",  "supervisor.json.new", "resolv.conf"};
  std::error_code ec;
  for (fs::directory_iterator it(environment.run_dir, ec), end; !ec && it != end; it.increment(ec))
    if (it->is_socket(ec)) out.push_back(it->path().filename());
  return out;
}

void warn_left(const std::string& directory, const std::vector<std::string>& left) {
  std::error_code ec;
  if (fs::exists(directory, ec) && !left.empty())
    std::fprintf(stderr, "note: %s stays: not the mesh's own in it: %s\n", directory.c_str(),
                 join(left, ", ").c_str());
}

// meshd attaches only when it starts: the supervisor starts it again. One that does not answer yet
// is on its way.
Result<> restart_detached(const Environment& environment) {
  if (!Client(environment.run_dir).get<api::Version>("/v1/version", seconds(5))) return success();
  auto meshd = detached_meshd(environment);
  if (!meshd) return success();
  std::fputs("Nothing is attached (`meshctl disable --all`): meshd starts again\n", stderr);
  ::kill(*meshd, SIGKILL);
  auto deadline = Clock::now() + seconds(5);
  while (::kill(*meshd, 0) == 0 && Clock::now() < deadline)
    std::this_thread::sleep_for(milliseconds(5));
  return success();
}

bool has_bpf_maps(pid_t pid) {
  std::error_code ec;
  const std::string fds = "/proc/" + std::to_string(pid) + "/fd";
  for (fs::directory_iterator it(fs::path(fds), ec), end; !ec && it != end; it.increment(ec)) {
    std::error_code closed;
    if (fs::read_symlink(it->path(), closed) == "anon_inode:bpf-map") return true;
  }
  return false;
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

std::optional<pid_t> detached_meshd(const Environment& environment) {
  auto cgroups = find_cgroups(environment.cgroup_name);
  if (!cgroups || is_attached(environment) != false) return std::nullopt;
  auto running = running_programs(cgroups.value().mesh());
  auto meshd = running.find("meshd");
  if (meshd == running.end() || !has_bpf_maps(meshd->second)) return std::nullopt;
  return meshd->second;
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
  MESH_TRY(make_directories(environment));
  remember(environment, options);
  MESH_TRY(make_cgroup(cgroups.value().mesh()));
  MESH_TRY(make_cgroup(cgroups.value().workloads()));
  MESH_TRY(mount_bpffs(environment));
  bool was_running = running_programs(cgroups.value().mesh()).size() == std::size(kPrograms);
  MESH_TRY(restart_detached(environment));
  auto supervisor = running_supervisor(environment);
  if (!supervisor) {
    MESH_TRY(supervisor, start_supervisor(environment, options));
  }
  MESH_TRY(auto status, wait_ready(environment));
  print_up(status, supervisor, was_running);
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
  if (purge) warn_left(environment.state_dir, remove_known(environment.state_dir, state_files()));
  // Last: it remembers the state directory and the mount, should this be interrupted.
  bool had_files = fs::exists(environment.run_dir);
  warn_left(environment.run_dir, remove_known(environment.run_dir, run_files(environment)));
  if (programs + sandboxes + detached.size() == 0 && !had_files)
    std::puts("The mesh was not running; nothing to do.");
  else
    std::printf(
        "The mesh is down: %zu programs, %zu sandboxes and %zu pinned BPF objects removed%s.\n",
        programs, sandboxes, detached.size(), purge ? ", and the stored configuration" : "");
  return kOk;
}

Result<int> check(const Environment& environment, Format format) {
  auto cgroups = find_cgroups(environment.cgroup_name);
  auto findings = datapath::check_machine(cgroups ? cgroups.value().mesh() : "");
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
  MESH_TRY(auto detached, datapath::disable_all(environment.pin_dir));
  for (const auto& what : detached) std::printf("%s detached\n", what.c_str());
  std::printf("%zu pinned objects removed: no connection is captured or policed by the mesh now.\n",
              detached.size());
  auto cgroups = find_cgroups(environment.cgroup_name);
  if (cgroups && is_populated(cgroups.value().mesh()))
    std::puts(
        "The mesh's programs still run: `meshctl down` ends them, with their sandboxes; `meshctl "
        "up` attaches everything again.");
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
  if (!annotations || !annotations->is_object() ||
      annotations->as_object().erase("undermesh.io/netns") == 0) {
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
      "enrol it again, apply it with its annotation undermesh.io/netns, or start its sandbox "
      "anew\n",
      name.c_str());
  return kOk;
}

}  // namespace mesh::cli
