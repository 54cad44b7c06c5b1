#include "supervisor.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>

#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>

#include "base/log.h"
#include "base/unique_fd.h"
#include "cgroup.h"
#include "file_lock.h"
#include "json_file.h"
#include "process.h"
#include "restart_policy.h"

namespace mesh::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using std::chrono::duration_cast;
using std::chrono::milliseconds;

constexpr off_t kLogLimit = 16 << 20;
constexpr milliseconds kLogInterval{5000};

// (<sys/pidfd.h> of glibc 2.36 forgets extern "C".)
UniqueFd open_pidfd(pid_t pid) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

std::string words_for(int status) {
  if (WIFEXITED(status)) return "exit " + std::to_string(WEXITSTATUS(status));
  int signal = WTERMSIG(status);
  return "signal " + std::to_string(signal) + " (" + ::strsignal(signal) + ")";
}

std::string executable_of(pid_t pid) {
  char target[PATH_MAX];
  std::string link = "/proc/" + std::to_string(pid) + "/exe";
  ssize_t n = ::readlink(link.c_str(), target, sizeof target);
  if (n <= 0) return "";
  std::string_view path(target, static_cast<std::size_t>(n));
  if (path.ends_with(" (deleted)")) path.remove_suffix(10);
  return std::string(path.substr(path.rfind('/') + 1));
}

// The end of a log that grew past the limit becomes <name>.1, and the log starts over. Its writers
// append, so they go on at its beginning; a line that is written meanwhile may be lost.
void bound_log(const std::string& path) {
  UniqueFd log(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  off_t size = log ? ::lseek(log.get(), 0, SEEK_END) : 0;
  if (size <= kLogLimit) return;
  constexpr int kAfresh = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC;
  UniqueFd end(::open((path + ".1").c_str(), kAfresh, 0640));
  for (off_t from = size - kLogLimit; end && from < size;)
    if (::sendfile(end.get(), log.get(), &from, static_cast<std::size_t>(size - from)) <= 0) break;
  if (::ftruncate(log.get(), 0) != 0) logger("supervisor")->warn("log not cut path={}", path);
}

UniqueFd open_log(const std::string& path) {
  return UniqueFd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640));
}

// Becomes the program; only what is safe between fork and exec.
[[noreturn]] void become(const std::vector<char*>& argv, int log_fd) {
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  int null = ::open("/dev/null", O_RDONLY);
  ::dup2(null, STDIN_FILENO);
  ::dup2(log_fd, STDOUT_FILENO);
  ::dup2(log_fd, STDERR_FILENO);
  ::close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
  ::execv(argv[0], argv.data());
  const char* why = std::strerror(errno);
  for (const char* part : {"cannot run ", static_cast<const char*>(argv[0]), ": ", why, "\n"})
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  ::_exit(127);
}

class Supervisor {
 public:
  Supervisor(const Environment& environment, const ProgramOptions& options)
      : environment_(environment), options_(options), log_(logger("supervisor")) {
    for (const char* name : kPrograms) programs_.push_back({.name = name});
  }

  [[noreturn]] void run() {
    adopt();
    for (;;) {
      bound_logs();
      for (Program& program : programs_)
        if (!program.pidfd && Clock::now() >= program.start_at) start(program);
      wait();
    }
  }

 private:
  struct Program {
    std::string name;
    pid_t pid = 0;
    UniqueFd pidfd;
    bool is_child = false;  // else adopted: its exit status is its new parent's
    Clock::time_point started{}, start_at{};
    RestartPolicy policy{};
    std::uint64_t restarts = 0;
    std::string last_end{};
  };

  void adopt() {
    auto running = running_programs(options_.cgroup + "/mesh");
    for (Program& program : programs_) {
      auto [first, last] = running.equal_range(program.name);
      for (; first != last && !program.pidfd; ++first) {
        program.pidfd = open_pidfd(first->second);
        if (!program.pidfd) continue;
        program.pid = first->second;
        program.started = Clock::now();
        log_->info("program adopted name={} pid={}", program.name, program.pid);
      }
    }
    write_state();
  }

  void start(Program& program) {
    auto words = command_of(program.name, environment_, options_);
    std::vector<char*> argv;
    for (auto& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    program.started = Clock::now();
    auto child = spawn_logged(program, argv);
    if (!child) {
      failed_to_start(program, child.error());
      return;
    }
    program.pid = child.value().pid;
    program.pidfd = std::move(child.value().pidfd);
    program.is_child = true;
    log_->info("program started name={} pid={}", program.name, program.pid);
    write_state();
  }

  Result<Child> spawn_logged(const Program& program, const std::vector<char*>& argv) {
    UniqueFd log_fd = open_log(environment_.log_of(program.name));
    if (!log_fd) return errno_error(errno, environment_.log_of(program.name));
    return spawn(options_.cgroup + "/mesh", 0, [&]() -> int { become(argv, log_fd.get()); });
  }

  void failed_to_start(Program& program, const Error& error) {
    program.last_end = "cannot start: " + error.message;
    log_->error("program cannot be started name={} reason={}", program.name, program.last_end);
    schedule(program);
  }

  void schedule(Program& program) {
    auto ran = duration_cast<milliseconds>(Clock::now() - program.started);
    auto delay = program.policy.ended_after(ran);
    program.start_at = Clock::now() + delay;
    program.pidfd.reset();
    program.pid = 0;
    ++program.restarts;
    log_->warn("program ended name={} how={} ran_ms={} restart_in_ms={}", program.name,
               program.last_end, ran.count(), delay.count());
    write_state();
  }

  // All in the directory: also of detached sandboxes, whose commands write there by themselves.
  void bound_logs() {
    if (Clock::now() < logs_at_) return;
    logs_at_ = Clock::now() + kLogInterval;
    std::error_code ec;
    for (fs::directory_iterator it(environment_.run("logs"), ec), end; !ec && it != end;
         it.increment(ec))
      if (it->path().extension() == ".log" && it->is_regular_file(ec)) bound_log(it->path());
  }

  void wait() {
    std::array<pollfd, std::size(kPrograms)> polls{};
    auto next = logs_at_;
    for (std::size_t i = 0; i < programs_.size(); ++i) {
      polls[i] = {programs_[i].pidfd.get(), POLLIN, 0};
      if (!programs_[i].pidfd) next = std::min(next, programs_[i].start_at);
    }
    auto left = duration_cast<milliseconds>(next - Clock::now()).count() + 1;
    int timeout = static_cast<int>(std::max<std::int64_t>(0, left));
    if (::poll(polls.data(), polls.size(), timeout) <= 0) return;
    for (std::size_t i = 0; i < programs_.size(); ++i)
      if (polls[i].revents != 0) ended(programs_[i]);
  }

  void ended(Program& program) {
    int status = 0;
    if (program.is_child && ::waitpid(program.pid, &status, 0) == program.pid)
      program.last_end = words_for(status);
    else
      program.last_end = "ended";
    program.is_child = false;
    schedule(program);
  }

  // For `status`, and for `up`, which waits for the programs: replaced, never rewritten in place.
  void write_state() {
    json::object programs;
    for (const Program& program : programs_)
      programs[program.name] = {
          {"pid", program.pid}, {"restarts", program.restarts}, {"last_end", program.last_end}};
    std::string path = environment_.run("supervisor.json");
    {
      std::ofstream file(path + ".new", std::ios::trunc);
      file << json::serialize(json::object{{"programs", programs}}) << "\n";
    }
    if (::rename((path + ".new").c_str(), path.c_str()) != 0)
      log_->warn("state not written path={} reason={}", path, std::strerror(errno));
  }

  Environment environment_;
  ProgramOptions options_;
  Logger log_;
  std::vector<Program> programs_;
  Clock::time_point logs_at_{};
};

}  // namespace

std::vector<std::string> command_of(const std::string& program, const Environment& environment,
                                    const ProgramOptions& options) {
  std::vector<std::string> out = {options.bin_dir + "/" + program, "--run-dir", environment.run_dir,
                                  "--log-level", options.log_level};
  auto add = [&](std::string option, std::string value) {
    if (value.empty()) return;
    out.push_back(std::move(option));
    out.push_back(std::move(value));
  };
  std::string uid = std::to_string(options.proxy_uid);
  if (program == "meshhold") add("--proxy-uid", uid);
  if (program == "meshproxy") {
    add("--uid", uid);
    if (options.workers > 0) add("--workers", std::to_string(options.workers));
  }
  if (program == "meshd") {
    add("--state-dir", environment.state_dir);
    add("--cgroup", options.cgroup);
    add("--proxy-uid", uid);
    add("--access-log", options.access_log);
    add("--service-cidr", options.service_cidr);
  }
  return out;
}

std::vector<std::string> supervise_arguments(const Environment& environment,
                                             const ProgramOptions& options) {
  std::vector<std::string> out = {"supervise",
                                  "--run-dir",
                                  environment.run_dir,
                                  "--state-dir",
                                  environment.state_dir,
                                  "--cgroup-name",
                                  environment.cgroup_name,
                                  "--proxy-uid",
                                  std::to_string(options.proxy_uid),
                                  "--log-level",
                                  options.log_level};
  auto add = [&](std::string option, std::string value) {
    if (value.empty()) return;
    out.push_back(std::move(option));
    out.push_back(std::move(value));
  };
  if (options.workers > 0) add("--workers", std::to_string(options.workers));
  add("--access-log", options.access_log);
  add("--service-cidr", options.service_cidr);
  return out;
}

Result<> supervise(const Environment& environment, const ProgramOptions& options) {
  std::string path = environment.run("supervisor.pid");
  UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!lock) return errno_error(errno, path);
  if (!try_lock(lock.get()))
    return Error{Errc::refused, "another supervisor runs (its lock on " + path + " is held)"};
  MESH_TRY(enter_cgroup(options.cgroup + "/mesh"));
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  ::prctl(PR_SET_NAME, "mesh-supervisor");
  std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(lock.get(), 0) != 0 || ::write(lock.get(), pid.data(), pid.size()) < 0)
    return errno_error(errno, path);
  Supervisor(environment, options).run();
}

std::optional<pid_t> running_supervisor(const Environment& environment) {
  std::string path = environment.run("supervisor.pid");
  if (!is_locked(path)) return std::nullopt;
  pid_t pid = 0;
  std::ifstream(path) >> pid;
  if (pid <= 0) return std::nullopt;
  return pid;
}

Result<pid_t> start_supervisor(const Environment& environment, const ProgramOptions& options) {
  std::vector<std::string> words = supervise_arguments(environment, options);
  words.insert(words.begin(), "/proc/self/exe");
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::string self = fs::read_symlink("/proc/self/exe");
  argv[0] = self.data();
  UniqueFd log_fd = open_log(environment.log_of("supervisor"));
  if (!log_fd) return errno_error(errno, environment.log_of("supervisor"));
  // The words of an earlier one are not to be taken for its own, between its lock and its first.
  if (::truncate(environment.run("supervisor.pid").c_str(), 0) != 0 && errno != ENOENT)
    return errno_error(errno, environment.run("supervisor.pid"));
  if (::unlink(environment.run("supervisor.json").c_str()) != 0 && errno != ENOENT)
    return errno_error(errno, environment.run("supervisor.json"));
  pid_t middle = ::fork();
  if (middle < 0) return errno_error(errno, "fork");
  if (middle == 0) {  // twice, so that init adopts it and nobody waits for it
    ::setsid();
    if (::chdir("/") != 0) ::_exit(1);
    pid_t last = ::fork();
    if (last != 0) ::_exit(last < 0 ? 1 : 0);
    become(argv, log_fd.get());
  }
  int status = 0;
  ::waitpid(middle, &status, 0);
  auto deadline = Clock::now() + std::chrono::seconds(10);
  while (Clock::now() < deadline) {
    if (auto pid = running_supervisor(environment)) return *pid;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return Error{Errc::timed_out,
               "the supervisor did not start; see " + environment.log_of("supervisor")};
}

std::map<std::string, SupervisedProgram> supervised_programs(const Environment& environment) {
  std::map<std::string, SupervisedProgram> out;
  auto written = read_json_file(environment.run("supervisor.json"));
  const json::value* programs = written ? written->if_contains("programs") : nullptr;
  if (!programs || !programs->is_object()) return out;
  for (const auto& [name, item] : programs->as_object()) {
    const json::object* program = item.if_object();
    if (!program) continue;
    SupervisedProgram& entry = out[std::string(name)];
    read_member(*program, "pid", entry.pid);
    read_member(*program, "restarts", entry.restarts);
    read_member(*program, "last_end", entry.last_end);
  }
  return out;
}

std::multimap<std::string, pid_t> running_programs(const std::string& mesh_cgroup) {
  std::multimap<std::string, pid_t> out;
  for (pid_t pid : cgroup_processes(mesh_cgroup)) {
    std::string name = executable_of(pid);
    for (const char* known : kPrograms)
      if (name == known) out.emplace(name, pid);
  }
  return out;
}

}  // namespace mesh::cli
