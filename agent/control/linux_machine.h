// LinuxMachine: the Machine over /proc and cgroupfs, with one inotify descriptor for every
// cgroup.events and for the store's directories.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "base/unique_fd.h"
#include "control/workloads.h"

namespace mesh::control {

class LinuxMachine final : public Machine {
 public:
  // sandbox_root: only groups below it are ever removed.
  static Result<std::unique_ptr<LinuxMachine>> open(std::string sandbox_root);

  std::vector<IpAddress> node_addresses() override;
  Result<UniqueFd> open_netns(const std::string& path) override;
  Result<std::vector<IpAddress>> addresses_in(int netns) override;
  Result<std::vector<std::uint64_t>> look_at_cgroup(const std::string& cgroup) override;
  std::optional<bool> is_populated(const std::string& cgroup) override;
  std::vector<std::string> sandbox_groups() override;
  Result<> remove_cgroup(const std::string& cgroup) override;
  void watch_cgroup(const std::string& cgroup) override;
  void unwatch_cgroup(const std::string& cgroup) override;

  // Watches a directory and all below it (again after each change: directories come and go).
  void watch_tree(const std::string& directory);
  int inotify() const { return inotify_.get(); }
  struct Changes {
    bool cgroups = false;
    bool files = false;
  };
  Changes read_changes();  // what happened since; does not wait

 private:
  LinuxMachine(std::string sandbox_root, UniqueFd inotify);

  std::string sandbox_root_;
  UniqueFd inotify_;
  std::map<std::string, int> cgroup_watches_;  // path -> watch
  std::map<int, std::string> directory_watches_;
};

}  // namespace mesh::control
