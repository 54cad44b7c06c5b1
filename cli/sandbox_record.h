// Which sandboxes there are: one file each, <run dir>/sandboxes/<ns>.<name>, locked by its monitor
// (`meshctl sandbox run`) as long as that lives. An unlocked file is a dead monitor's and is
// cleared away by whoever comes next.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "addresses.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "environment.h"

namespace mesh::cli {

struct SandboxRecord {
  std::string ns;
  std::string name;
  AddressNumber number = 0;
  pid_t first_pid = 0;    // its first process; the namespaces are those of /proc/<pid>/ns
  pid_t command_pid = 0;  // the command
  pid_t monitor_pid = 0;
  std::int64_t started = 0;  // seconds since the epoch
  std::vector<std::string> addresses;
  std::vector<std::string> command;
  std::string log;

  std::string full_name() const { return ns + "/" + name; }
};

// The right to be the sandbox of this name; given up (and the file removed) by the destructor.
class SandboxClaim {
 public:
  // Waits at most `patience` for a monitor that is just ending.
  static Result<SandboxClaim> take(const Environment& environment, const std::string& ns,
                                   const std::string& name, std::chrono::milliseconds patience);
  SandboxClaim(SandboxClaim&&) noexcept = default;
  SandboxClaim& operator=(SandboxClaim&&) = delete;
  ~SandboxClaim();

  // Chooses an address, in turn, and writes the record with it.
  Result<> allocate_address(SandboxRecord& record);
  Result<> write(const SandboxRecord& record);
  int fd() const { return fd_.get(); }

 private:
  SandboxClaim(const Environment& environment, std::string path, UniqueFd fd)
      : environment_(environment), path_(std::move(path)), fd_(std::move(fd)) {}

  Environment environment_;
  std::string path_;
  UniqueFd fd_;
};

std::vector<SandboxRecord> live_sandboxes(const Environment& environment);  // with a live monitor
std::optional<SandboxRecord> find_sandbox(const Environment& environment, const std::string& ns,
                                          const std::string& name);
// Removes the file of a monitor that was killed.
void clear_dead_record(const Environment& environment, const std::string& ns,
                       const std::string& name);
// Until its monitor has gone; false after `within`.
bool wait_monitor_gone(const Environment& environment, const std::string& ns,
                       const std::string& name, std::chrono::milliseconds within);

}  // namespace mesh::cli
