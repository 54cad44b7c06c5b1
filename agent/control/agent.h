// Agent: the loop of meshd. Wires Node to the sockets, signals, timers and inotify, and runs until
// it is told to stop. What it leaves behind goes on: programs, maps, listeners, the proxy.
#pragma once

#include <cstdint>
#include <string>

#include "base/address.h"
#include "base/result.h"

namespace mesh::control {

struct AgentOptions {
  std::string run_dir = "/run/undermesh";
  std::string state_dir = "/var/lib/undermesh";
  std::string cgroup;  // <cgroup2>/undermesh, with mesh/ and workloads/ below it
  std::string pin_dir = "/sys/fs/bpf/undermesh";
  std::string access_log;
  std::uint32_t proxy_uid = 65530;
  IpBlock service_range{IpAddress::v4(10, 78, 0, 0), 16};
  std::string version;
};

// Returns when SIGTERM or SIGINT came.
Result<> run_agent(const AgentOptions& options);

}  // namespace mesh::control
