#include "sandbox_monitor.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <optional>

#include "api/messages.h"
#include "base/unique_fd.h"
#include "cgroup.h"
#include "dns/resolve.h"
#include "netlink.h"
#include "output.h"
#include "process.h"
#include "sandbox_inside.h"
#include "sandbox_record.h"
#include "up_options.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kClaimPatience{3000};
constexpr seconds kEnrolDeadline{60};
constexpr const char* kWorkloadApi = "networking.istio.io/v1";

bool has_ipv6() { return ::access("/proc/net/if_inet6", F_OK) == 0; }

Result<> ensure_bridge() {
  MESH_TRY(auto netlink, Netlink::open());
  MESH_TRY(auto present, netlink.find_link(kBridge));
  if (present) return success();
  auto created = netlink.create_bridge(kBridge, link_address(kBridgeNumber));
  if (!created) {
    MESH_TRY(auto by_another, netlink.find_link(kBridge));
    return by_another ? Result<>(success()) : created;  // two first sandboxes at once
  }
  MESH_TRY(netlink.add_address(kBridge, {address_v4(kBridgeNumber), 16}));
  if (has_ipv6()) {
    MESH_TRY(netlink.add_address(kBridge, {address_v6(kBridgeNumber), 64}));
  }
  return success();
}

// Mounted into every sandbox: the host's name servers cannot be reached from inside. Written anew
// each time, in place: an earlier version may have left another.
Result<> write_resolver_file(const Environment& environment) {
  const std::string path = environment.run("resolv.conf");
  const std::string text =
      "# The mesh answers for its own names; there are no others.\nnameserver " +
      dns::kMeshResolver.to_string() + "\noptions timeout:2 attempts:3\n";
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
  if (!fd || ::pwrite(fd.get(), text.data(), text.size(), 0) < 0 ||
      ::ftruncate(fd.get(), static_cast<off_t>(text.size())) != 0)
    return errno_error(errno, path);
  return success();
}

Result<> delete_link(AddressNumber number) {
  MESH_TRY(auto netlink, Netlink::open());
  return netlink.delete_link(link_name(number));
}

// A WorkloadEntry that someone wrote by hand is not ours to replace.
Result<> check_no_stranger(const Client& client, const SandboxSpec& spec) {
  MESH_TRY(auto list, client.get<api::ObjectList>("/v1/objects?kind=WorkloadEntry&namespace=" +
                                                  spec.ns + "&name=" + spec.name));
  for (const auto& object : list.objects) {
    json::value tree(object.tree);
    boost::system::error_code ec;
    const json::value* mark = tree.find_pointer("/metadata/annotations/undermesh.io~1sandbox", ec);
    if (!mark || !mark->is_string() || mark->as_string() != "true")
      return Error{Errc::refused, "WorkloadEntry " + spec.ns + "/" + spec.name +
                                      " exists and is no sandbox; choose another name, or `meshctl "
                                      "delete WorkloadEntry " +
                                      spec.name + " -n " + spec.ns + "`"};
  }
  return success();
}

// One sandbox from its claim to the end of its command; the destructor clears everything away.
class Sandbox {
 public:
  Sandbox(const Environment& environment, const SandboxSpec& spec, SandboxClaim claim,
          const SignalRelay& signals)
      : environment_(environment),
        spec_(spec),
        client_(environment.run_dir),
        claim_(std::move(claim)),
        signals_(signals) {
    record_.ns = spec.ns;
    record_.name = spec.name;
    record_.command = spec.command;
    record_.log = spec.detach ? spec.log : "";
    record_.monitor_pid = ::getpid();
    record_.started = ::time(nullptr);
  }
  Sandbox(const Sandbox&) = delete;
  ~Sandbox() { clear(); }

  Result<> start();      // returns when the command runs
  Result<int> finish();  // waits for its end, passing signals in; the exit status
  const SandboxRecord& record() const { return record_; }
  // Of a command that could not be executed, as a shell has it.
  std::optional<int> failed_exit() const { return failed_exit_; }

 private:
  Result<> prepare();
  Result<> start_first_process();
  Result<> connect_link();
  Result<> enrol();
  Result<> run_command();
  Result<Notice> expect(Note note);
  Error failure_of(const Notice& notice);
  Result<> check_not_interrupted(int within_ms);
  void clear();

  const Environment& environment_;
  const SandboxSpec& spec_;
  Client client_;
  SandboxClaim claim_;
  const SignalRelay& signals_;
  SandboxRecord record_;
  Cgroups cgroups_;
  std::string cgroup_;
  UniqueFd control_;
  Child first_;
  bool has_link_ = false, has_entry_ = false;
  std::optional<int> failed_exit_;
};

Result<> Sandbox::prepare() {
  MESH_TRY(check_no_stranger(client_, spec_));
  MESH_TRY(cgroups_, find_cgroups(environment_.cgroup_name));
  std::string path = cgroups_.workload(spec_.ns, spec_.name);
  MESH_TRY(end_cgroups({path}, milliseconds(0)));  // of a monitor that was killed just now
  MESH_TRY(make_cgroup(path));
  cgroup_ = path;
  MESH_TRY(write_resolver_file(environment_));
  MESH_TRY(ensure_bridge());
  MESH_TRY(claim_.allocate_address(record_));
  record_.addresses = {address_v4(record_.number).to_string()};
  if (has_ipv6()) record_.addresses.push_back(address_v6(record_.number).to_string());
  return success();
}

Result<> Sandbox::start_first_process() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return errno_error(errno, "socketpair");
  UniqueFd outside(ends[0]), inside(ends[1]);
  int on = 1;
  ::setsockopt(outside.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
  InsideOptions options{record_.number,
                        has_ipv6(),
                        service_block(environment_),
                        environment_.run("resolv.conf"),
                        {environment_.run_dir, "/sys/fs/bpf"},
                        cgroups_.mount,
                        spec_.command,
                        spec_.environment};
  auto body = [&] {
    outside.reset();
    ::close(claim_.fd());  // the claim is the monitor's: it must end with it
    return live_inside(inside.get(), signals_, options);
  };
  for (int attempt = 0;; ++attempt) {
    auto child = spawn(cgroup_, CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID, body);
    if (child) {
      first_ = std::move(child).value();
      break;
    }
    // meshd may just have removed the empty group of an earlier sandbox of this name.
    if (attempt == 5) return std::move(child).error();
    MESH_TRY(make_cgroup(cgroup_));
  }
  control_ = std::move(outside);
  record_.first_pid = first_.pid;
  return success();
}

Result<> Sandbox::connect_link() {
  std::string path = "/proc/" + std::to_string(first_.pid) + "/ns/net";
  UniqueFd netns(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!netns) return errno_error(errno, path);
  MESH_TRY(auto netlink, Netlink::open());
  // A namespace that is still dying may hold the link of this address's last user.
  MESH_TRY(netlink.delete_link(link_name(record_.number)));
  has_link_ = true;
  MESH_TRY(netlink.create_veth(link_name(record_.number), kBridge, "eth0", netns.get(),
                               host_link_address(record_.number), link_address(record_.number)));
  if (!send_notice(control_.get(), Note::kConfigure)) return errno_error(errno, "sandbox");
  MESH_TRY(expect(Note::kReady));
  return success();
}

Result<> Sandbox::enrol() {
  json::object annotations = {
      {"undermesh.io/sandbox", "true"},
      {"undermesh.io/netns", "/proc/" + std::to_string(first_.pid) + "/ns/net"},
      {"undermesh.io/cgroup", cgroup_},
      {"undermesh.io/addresses", join(record_.addresses, ",")}};
  for (const auto& [key, value] : spec_.annotations) annotations[key] = value;
  json::object labels;
  for (const auto& [key, value] : spec_.labels) labels[key] = value;
  json::object spec = {{"address", record_.addresses[0]}};
  if (!labels.empty()) spec["labels"] = labels;
  if (!spec_.service_account.empty()) spec["serviceAccount"] = spec_.service_account;
  api::ApplyRequest request;
  request.objects.push_back(
      {{{"apiVersion", kWorkloadApi},
        {"kind", "WorkloadEntry"},
        {"metadata", {{"name", spec_.name}, {"namespace", spec_.ns}, {"annotations", annotations}}},
        {"spec", spec}},
       "sandbox " + spec_.name,
       {}});
  has_entry_ = true;
  MESH_TRY(auto reply, client_.post<api::ApplyReply>("/v1/apply", request));
  for (const auto& result : reply.results)
    if (result.outcome == "refused")
      return Error{Errc::refused, "meshd refused the workload: " + join(result.problems, "; ")};
  std::string target =
      "/v1/workloads?wait=" + api::encode_query(spec_.ns + "/" + spec_.name) + "&seconds=1";
  using Workloads = std::vector<api::WorkloadStatus>;
  std::string last = "meshd does not know it";
  for (auto deadline = Clock::now() + kEnrolDeadline; Clock::now() < deadline;) {
    auto list = client_.get<api::WorkloadList>(target);
    if (!list && list.error().code != Errc::unavailable) return std::move(list).error();
    if (!list) last = list.error().message;  // meshd is being restarted, and will know it again
    for (const auto& workload : list ? list.value().workloads : Workloads{}) {
      if (workload.ns != spec_.ns || workload.name != spec_.name) continue;
      if (workload.state == "enrolled") return success();
      last = workload.reason.empty() ? workload.state : workload.reason;
      if (workload.state == "failed")
        return Error{Errc::refused, "the workload cannot be enrolled: " + last};
    }
    MESH_TRY(check_not_interrupted(!list || list.value().workloads.empty() ? 50 : 0));
  }
  return Error{Errc::timed_out, "the workload was not enrolled within " +
                                    std::to_string(kEnrolDeadline.count()) + " s (" + last +
                                    "); `meshctl status` says what meshd waits for"};
}

Result<> Sandbox::check_not_interrupted(int within_ms) {
  if (signals_.is_pending(within_ms))
    return Error{Errc::internal, "interrupted before the command was started"};
  return success();
}

Result<> Sandbox::run_command() {
  send_notice(control_.get(), Note::kRun);
  MESH_TRY(auto started, expect(Note::kStarted));
  record_.command_pid = started.sender;
  Notice running = receive_notice(control_.get());
  // kGone: the command ran, and the first process was killed at once; finish() tells how.
  if (running.note == Note::kFailed) return failure_of(running);
  return claim_.write(record_);
}

Result<Notice> Sandbox::expect(Note note) {
  Notice notice = receive_notice(control_.get());
  if (notice.note == note) return notice;
  if (notice.note == Note::kFailed) return failure_of(notice);
  return Error{Errc::internal, "the sandbox's first process ended before the command was started"};
}

Error Sandbox::failure_of(const Notice& notice) {
  if (notice.number != 0) failed_exit_ = exit_for_errno(notice.number);
  return {Errc::internal, notice.text};
}

Result<> Sandbox::start() {
  MESH_TRY(prepare());
  MESH_TRY(start_first_process());
  MESH_TRY(connect_link());
  MESH_TRY(claim_.write(record_));
  MESH_TRY(enrol());
  return run_command();
}

Result<int> Sandbox::finish() {
  pollfd polls[2] = {{control_.get(), POLLIN, 0}, {signals_.fd(), POLLIN, 0}};
  for (;;) {
    if (::poll(polls, 2, -1) < 0 && errno != EINTR) return errno_error(errno, "poll");
    if (polls[1].revents != 0)
      while (int signal = signals_.next()) send_notice(control_.get(), Note::kSignal, signal);
    if (polls[0].revents == 0) continue;
    Notice notice = receive_notice(control_.get());
    if (notice.note == Note::kEnded) return exit_for_status(notice.number);
    if (notice.note != Note::kGone) continue;
    int status = 0;  // killed: the kernel took the rest of its namespace with it
    ::waitpid(first_.pid, &status, 0);
    first_ = {};
    return exit_for_status(status);
  }
}

void Sandbox::clear() {
  control_.reset();  // the first process ends with it, and the kernel ends the others
  if (first_.pid > 0) {
    auto ended = end_cgroups({cgroup_}, milliseconds(0));
    ::waitpid(first_.pid, nullptr, 0);
  }
  if (has_entry_) {  // not there: meshd saw the end first
    auto gone = delete_entry(client_, spec_.ns, spec_.name);
  }
  if (has_link_) auto deleted = delete_link(record_.number);
  if (!cgroup_.empty()) auto removed = remove_cgroup(cgroup_);
}

Result<SandboxClaim> claim(const Environment& environment, const SandboxSpec& spec) {
  // A sandbox that lives is said at once; one that is just ending is awaited.
  MESH_TRY(auto cgroups, find_cgroups(environment.cgroup_name));
  bool alive = is_populated(cgroups.workload(spec.ns, spec.name));
  return SandboxClaim::take(environment, spec.ns, spec.name,
                            alive ? milliseconds(0) : kClaimPatience);
}

Result<int> run_monitor(const Environment& environment, const SandboxSpec& spec,
                        const std::function<bool(const SandboxRecord&)>& on_running) {
  MESH_TRY(auto taken, claim(environment, spec));
  MESH_TRY(auto signals, SignalRelay::open());
  Sandbox sandbox(environment, spec, std::move(taken), signals);
  if (auto started = sandbox.start(); !started) {
    if (!sandbox.failed_exit()) return std::move(started).error();
    std::fprintf(stderr, "error: %s\n", started.error().message.c_str());
    if (spec.detach) return std::move(started).error();
    return *sandbox.failed_exit();
  }
  if (!on_running(sandbox.record())) return 1;
  return sandbox.finish();
}

// What the monitor tells the caller of --detach through a pipe: one line of JSON.
void report(int pipe, const json::object& message) {
  std::string line = json::serialize(message) + "\n";
  if (::write(pipe, line.data(), line.size()) < 0) return;
}

[[noreturn]] void detached_monitor(const Environment& environment, const SandboxSpec& spec,
                                   UniqueFd pipe) {
  ::setsid();
  ::signal(SIGPIPE, SIG_IGN);
  UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  UniqueFd log(::open(spec.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
  if (!log) {
    report(pipe.get(), {{"error", errno_error(errno, spec.log).message}, {"code", 1}});
    ::_exit(1);
  }
  ::dup2(null.get(), STDIN_FILENO);
  ::dup2(log.get(), STDOUT_FILENO);
  ::dup2(log.get(), STDERR_FILENO);
  auto ended = run_monitor(environment, spec, [&](const SandboxRecord& record) {
    std::string line = json::serialize(json::object{{"address", record.addresses[0]},
                                                    {"pid", record.command_pid}}) +
                       "\n";
    bool heard = ::write(pipe.get(), line.data(), line.size()) > 0;  // else the caller gave up
    pipe.reset();
    return heard;
  });
  if (!ended && pipe)
    report(pipe.get(), {{"error", ended.error().message}, {"code", exit_code(ended.error())}});
  ::_exit(ended ? ended.value() : 1);
}

}  // namespace

Result<> delete_entry(const Client& client, const std::string& ns, const std::string& name) {
  MESH_TRY(client.post<api::ApplyReply>(
      "/v1/delete", api::DeleteRequest{{{"WorkloadEntry", ns, name}}}, seconds(10)));
  return success();
}

Result<int> monitor(const Environment& environment, const SandboxSpec& spec) {
  return run_monitor(environment, spec, [](const SandboxRecord&) { return true; });
}

Result<int> monitor_detached(const Environment& environment, const SandboxSpec& spec) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_error(errno, "pipe");
  UniqueFd from(ends[0]), to(ends[1]);
  std::fflush(nullptr);
  pid_t pid = ::fork();
  if (pid < 0) return errno_error(errno, "fork");
  if (pid == 0) {
    from.reset();
    detached_monitor(environment, spec, std::move(to));
  }
  to.reset();
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = ::read(from.get(), buffer, sizeof buffer)) != 0;) {
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
    if (n < 0 && errno != EINTR) break;
    if (text.ends_with('\n')) break;
  }
  auto message = api::parse_body(text);
  if (!message) return Error{Errc::internal, "the sandbox's monitor ended early; see " + spec.log};
  const json::object& told = message.value().as_object();
  if (const json::value* error = told.if_contains("error")) {
    std::fprintf(stderr, "error: %s\n", error->as_string().c_str());
    return static_cast<int>(told.at("code").to_number<int>());
  }
  std::printf("sandbox/%s started: address %s, pid %s, log %s\n", spec.name.c_str(),
              cell(told.at("address")).c_str(), cell(told.at("pid")).c_str(), spec.log.c_str());
  return 0;
}

}  // namespace mesh::cli
