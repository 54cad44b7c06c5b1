#include "cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/unique_fd.h"
#include "datapath/datapath.h"

namespace mesh::cli {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

Result<> write_file(const std::string& path, std::string_view text) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return errno_error(errno, path);
  if (::write(fd.get(), text.data(), text.size()) < 0) return errno_error(errno, path);
  return success();
}

bool any_populated(const std::vector<std::string>& paths) {
  return std::any_of(paths.begin(), paths.end(), is_populated);
}

bool wait_empty(const std::vector<std::string>& paths, milliseconds within) {
  auto deadline = Clock::now() + within;
  while (any_populated(paths)) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

void signal_below(const std::string& path, int signal) {
  for (pid_t pid : cgroup_processes(path)) ::kill(pid, signal);
  for (const auto& child : child_cgroups(path)) signal_below(child, signal);
}

void kill_below(const std::string& path) {
  if (write_file(path + "/cgroup.kill", "1")) return;
  signal_below(path, SIGKILL);  // a kernel before 5.14
}

}  // namespace

Result<Cgroups> find_cgroups(const std::string& name) {
  MESH_TRY(auto mount, datapath::find_cgroup2());
  return Cgroups{mount, mount + "/" + name};
}

Result<> make_cgroup(const std::string& path) {
  std::error_code ec;
  fs::create_directories(path, ec);
  if (ec) return errno_error(ec.value(), "cannot make the control group " + path);
  return success();
}

Result<> enter_cgroup(const std::string& path) {
  auto written = write_file(path + "/cgroup.procs", "0");
  if (!written) return std::move(written).error().at("cannot enter the control group");
  return success();
}

std::vector<pid_t> cgroup_processes(const std::string& path) {
  std::vector<pid_t> out;
  std::ifstream file(path + "/cgroup.procs");
  for (pid_t pid = 0; file >> pid;)
    if (pid > 0) out.push_back(pid);
  return out;
}

bool is_populated(const std::string& path) {
  std::ifstream file(path + "/cgroup.events");
  for (std::string key, value; file >> key >> value;)
    if (key == "populated") return value == "1";
  return false;
}

Result<> end_cgroups(const std::vector<std::string>& paths, milliseconds grace) {
  if (grace.count() > 0) {
    for (const auto& path : paths) signal_below(path, SIGTERM);
    if (wait_empty(paths, grace)) return success();
  }
  for (const auto& path : paths)
    if (is_populated(path)) kill_below(path);
  if (wait_empty(paths, milliseconds(5000))) return success();
  std::string alive;
  for (const auto& path : paths)
    for (pid_t pid : cgroup_processes(path)) alive += " " + std::to_string(pid);
  return Error{Errc::timed_out, "processes do not end after SIGKILL:" + alive +
                                    "; the kernel's log (dmesg) may say what holds them"};
}

Result<> remove_cgroup(const std::string& path) {
  for (const auto& child : child_cgroups(path)) {
    MESH_TRY(remove_cgroup(child));
  }
  for (int attempt = 0;; ++attempt) {
    if (::rmdir(path.c_str()) == 0 || errno == ENOENT) return success();
    if (errno != EBUSY || attempt == 200 || is_populated(path))
      return errno_error(errno, "cannot remove the control group " + path);
    std::this_thread::sleep_for(milliseconds(5));  // the last process is being reaped
  }
}

std::vector<std::string> child_cgroups(const std::string& path) {
  std::vector<std::string> out;
  std::error_code ec;
  for (fs::directory_iterator it(path, ec), end; !ec && it != end; it.increment(ec))
    if (it->is_directory(ec)) out.push_back(it->path());
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace mesh::cli
