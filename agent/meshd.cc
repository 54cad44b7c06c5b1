// meshd: the node agent. Wiring only; what it does is in control/agent.h.
#include <getopt.h>
#include <linux/capability.h>
#include <signal.h>

#include <cstdio>
#include <string>

#include "base/arguments.h"
#include "base/log.h"
#include "control/agent.h"
#include "datapath/datapath.h"
#include "feed/privilege.h"

#ifndef MESH_VERSION
#define MESH_VERSION "0.1.0"
#endif

namespace {

using mesh::Errc;
using mesh::Error;
using mesh::Result;

// Loading and attaching programs; /proc/<pid>/ns of anybody; files that people put into the store;
// the group of the admin socket.
constexpr unsigned kCapabilities[] = {CAP_BPF,       CAP_PERFMON,    CAP_NET_ADMIN,
                                      CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_DAC_OVERRIDE,
                                      CAP_CHOWN};

struct Arguments {
  mesh::control::AgentOptions agent;
  std::string log_level = "info";
};

constexpr const char* kUsage =
    "usage: meshd [--run-dir DIR] [--state-dir DIR] [--cgroup CGROUP] [--proxy-uid UID] "
    "[--access-log FILE] [--service-cidr BLOCK] [--pin-dir DIR] [--log-level LEVEL]";

Result<mesh::IpBlock> parse_range(std::string_view text) {
  auto block = mesh::IpBlock::parse(text);
  if (!block) return std::move(block).error().at("--service-cidr");
  if (!block.value().base.is_v4() || block.value().prefix_length > 28)
    return Error{Errc::invalid_argument, "--service-cidr: wants an IPv4 block of /28 or larger"};
  const auto& bytes = block.value().base.bytes();
  for (int bit = block.value().prefix_length; bit < 32; ++bit)
    if (bytes[static_cast<std::size_t>(12 + bit / 8)] & 0x80 >> bit % 8)
      return Error{Errc::invalid_argument, "--service-cidr: " + std::string(text) +
                                               " begins inside a block; give its first address"};
  return block;
}

Result<Arguments> parse(int argc, char** argv) {
  static constexpr option kOptions[] = {{"run-dir", required_argument, nullptr, 'r'},
                                        {"state-dir", required_argument, nullptr, 's'},
                                        {"cgroup", required_argument, nullptr, 'c'},
                                        {"proxy-uid", required_argument, nullptr, 'u'},
                                        {"access-log", required_argument, nullptr, 'a'},
                                        {"service-cidr", required_argument, nullptr, 'b'},
                                        {"pin-dir", required_argument, nullptr, 'p'},
                                        {"log-level", required_argument, nullptr, 'l'},
                                        {nullptr, 0, nullptr, 0}};
  Arguments arguments;
  mesh::control::AgentOptions& agent = arguments.agent;
  agent.version = MESH_VERSION;
  for (int choice = 0; (choice = ::getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (choice) {
      case 'r':
        agent.run_dir = optarg;
        break;
      case 's':
        agent.state_dir = optarg;
        break;
      case 'c':
        agent.cgroup = optarg;
        break;
      case 'u': {
        MESH_TRY(agent.proxy_uid, mesh::parse_number("--proxy-uid", optarg));
        break;
      }
      case 'a':
        agent.access_log = optarg;
        break;
      case 'b': {
        MESH_TRY(agent.service_range, parse_range(optarg));
        break;
      }
      case 'p':
        agent.pin_dir = optarg;
        break;
      case 'l':
        arguments.log_level = optarg;
        break;
      default:
        return Error{Errc::invalid_argument, kUsage};
    }
  }
  if (optind != argc) return Error{Errc::invalid_argument, kUsage};
  return arguments;
}

Result<> run(Arguments arguments) {
  MESH_TRY(mesh::init_logging("meshd", arguments.log_level));
  ::signal(SIGPIPE, SIG_IGN);
  MESH_TRY(mesh::feed::raise_file_limit());
  MESH_TRY(mesh::feed::keep_only_capabilities(kCapabilities));
  if (arguments.agent.cgroup.empty()) {
    MESH_TRY(auto root, mesh::datapath::find_cgroup2());
    arguments.agent.cgroup = root + "/undermesh";
  }
  return mesh::control::run_agent(arguments.agent);
}

}  // namespace

int main(int argc, char** argv) {
  auto arguments = parse(argc, argv);
  if (!arguments) {
    std::fprintf(stderr, "meshd: %s\n", arguments.error().message.c_str());
    return 2;
  }
  if (const auto ran = run(std::move(arguments).value()); !ran) {
    std::fprintf(stderr, "meshd: %s\n", ran.error().message.c_str());
    return 1;
  }
  return 0;
}
