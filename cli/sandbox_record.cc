#include "sandbox_record.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "file_lock.h"
#include "json_file.h"

namespace mesh::cli {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

std::string directory_of(const Environment& environment) { return environment.run("sandboxes"); }

std::string path_of(const Environment& environment, const std::string& ns,
                    const std::string& name) {
  return directory_of(environment) + "/" + ns + "." + name;
}

json::object to_json(const SandboxRecord& r) {
  return {{"namespace", r.ns},
          {"name", r.name},
          {"number", r.number},
          {"first_pid", r.first_pid},
          {"command_pid", r.command_pid},
          {"monitor_pid", r.monitor_pid},
          {"started", r.started},
          {"addresses", json::array(r.addresses.begin(), r.addresses.end())},
          {"command", json::array(r.command.begin(), r.command.end())},
          {"log", r.log}};
}

// None while the monitor has only just made the file.
std::optional<SandboxRecord> read_record(const std::string& path) {
  auto object = read_json_file(path);
  if (!object) return std::nullopt;
  SandboxRecord out;
  read_member(*object, "namespace", out.ns);
  read_member(*object, "name", out.name);
  read_member(*object, "log", out.log);
  read_member(*object, "number", out.number);
  read_member(*object, "first_pid", out.first_pid);
  read_member(*object, "command_pid", out.command_pid);
  read_member(*object, "monitor_pid", out.monitor_pid);
  read_member(*object, "started", out.started);
  read_member(*object, "addresses", out.addresses);
  read_member(*object, "command", out.command);
  if (out.ns.empty() || out.name.empty()) return std::nullopt;
  return out;
}

std::vector<std::string> record_paths(const Environment& environment) {
  std::vector<std::string> out;
  std::error_code ec;
  for (fs::directory_iterator it(directory_of(environment), ec), end; !ec && it != end;
       it.increment(ec))
    out.push_back(it->path());
  std::sort(out.begin(), out.end());
  return out;
}

bool is_same_file(int fd, const std::string& path) {
  struct stat open{}, named{};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
         open.st_ino == named.st_ino && open.st_dev == named.st_dev;
}

// Removes the file if no monitor holds it. Its lock is held meanwhile, so a newcomer that opened it
// sees that the name is gone and starts over.
void clear_if_dead(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (fd && try_lock(fd.get()) && is_same_file(fd.get(), path)) ::unlink(path.c_str());
}

// Written over, then cut: a reader never finds it empty.
Result<> write_all(int fd, std::string_view text) {
  if (::pwrite(fd, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ::ftruncate(fd, static_cast<off_t>(text.size())) != 0)
    return errno_error(errno, "sandbox record");
  return success();
}

}  // namespace

Result<SandboxClaim> SandboxClaim::take(const Environment& environment, const std::string& ns,
                                        const std::string& name, milliseconds patience) {
  std::error_code ec;
  fs::create_directories(directory_of(environment), ec);
  if (!ec) fs::permissions(directory_of(environment), fs::perms(0700), ec);  // commands are private
  if (ec) return errno_error(ec.value(), directory_of(environment));
  std::string path = path_of(environment, ns, name);
  auto deadline = Clock::now() + patience;
  for (;;) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd) return errno_error(errno, path);
    if (try_lock(fd.get())) {
      if (is_same_file(fd.get(), path)) return SandboxClaim(environment, path, std::move(fd));
      continue;
    }
    if (Clock::now() >= deadline) {
      auto record = read_record(path);
      return Error{Errc::refused,
                   "sandbox " + ns + "/" + name + " runs already" +
                       (record ? " (pid " + std::to_string(record->command_pid) + ")" : "") +
                       "; `meshctl sandbox stop " + name + " -n " + ns + "` ends it"};
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
}

SandboxClaim::~SandboxClaim() {
  if (fd_) ::unlink(path_.c_str());
}

Result<> SandboxClaim::allocate_address(SandboxRecord& record) {
  std::string path = environment_.run("addresses");
  UniqueFd turn(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!turn || !lock(turn.get())) return errno_error(errno, path);
  AddressNumber last = kBridgeNumber;
  std::ifstream(path) >> last;
  for (const auto& other : record_paths(environment_))
    if (other != path_) clear_if_dead(other);
  std::set<AddressNumber> used;
  for (const auto& other : live_sandboxes(environment_)) used.insert(other.number);
  auto number = next_address(last, used);
  if (!number)
    return Error{Errc::exhausted, "every address of 10.77.0.0/16 is in use; stop a sandbox"};
  record.number = *number;
  MESH_TRY(write_all(turn.get(), std::to_string(*number) + "\n"));
  return write(record);
}

Result<> SandboxClaim::write(const SandboxRecord& record) {
  return write_all(fd_.get(), json::serialize(to_json(record)) + "\n");
}

std::vector<SandboxRecord> live_sandboxes(const Environment& environment) {
  std::vector<SandboxRecord> out;
  for (const auto& path : record_paths(environment)) {
    if (!is_locked(path)) continue;
    if (auto record = read_record(path)) out.push_back(*std::move(record));
  }
  return out;
}

std::optional<SandboxRecord> find_sandbox(const Environment& environment, const std::string& ns,
                                          const std::string& name) {
  std::string path = path_of(environment, ns, name);
  if (!is_locked(path)) return std::nullopt;
  return read_record(path);
}

void clear_dead_record(const Environment& environment, const std::string& ns,
                       const std::string& name) {
  clear_if_dead(path_of(environment, ns, name));
}

bool wait_monitor_gone(const Environment& environment, const std::string& ns,
                       const std::string& name, milliseconds within) {
  auto deadline = Clock::now() + within;
  while (is_locked(path_of(environment, ns, name))) {
    if (Clock::now() >= deadline) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

}  // namespace mesh::cli
