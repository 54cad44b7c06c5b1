// meshhold: makes sockets inside workloads' network namespaces, keeps the listening ones, and hands
// them to meshproxy. Wiring only; what it does is in feed/holder.h.
#include <errno.h>
#include <getopt.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/arguments.h"
#include "base/log.h"
#include "feed/holder.h"
#include "feed/privilege.h"

namespace {

using mesh::Errc;
using mesh::Error;
using mesh::Result;
using mesh::UniqueFd;

// Entering a namespace that a descriptor of another process names, and ports below 1024.
constexpr unsigned kCapabilities[] = {CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_BIND_SERVICE};

struct Arguments {
  mesh::feed::HolderOptions holder;
  std::string log_level = "info";
};

Result<Arguments> parse(int argc, char** argv) {
  static constexpr option kOptions[] = {{"run-dir", required_argument, nullptr, 'r'},
                                        {"proxy-uid", required_argument, nullptr, 'u'},
                                        {"log-level", required_argument, nullptr, 'l'},
                                        {nullptr, 0, nullptr, 0}};
  Arguments arguments;
  arguments.holder.run_dir = "/run/undermesh";
  arguments.holder.proxy_uid = 65530;
  for (int choice = 0; (choice = ::getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    if (choice == 'r') {
      arguments.holder.run_dir = optarg;
    } else if (choice == 'u') {
      MESH_TRY(arguments.holder.proxy_uid, mesh::parse_number("--proxy-uid", optarg));
    } else if (choice == 'l') {
      arguments.log_level = optarg;
    } else {
      return Error{Errc::invalid_argument,
                   "usage: meshhold [--run-dir DIR] [--proxy-uid UID] [--log-level LEVEL]"};
    }
  }
  return arguments;
}

Result<UniqueFd> stop_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  if (::sigprocmask(SIG_BLOCK, &signals, nullptr) != 0)
    return mesh::errno_error(errno, "sigprocmask");
  UniqueFd fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return mesh::errno_error(errno, "signalfd");
  return fd;
}

Result<> serve(const Arguments& arguments) {
  MESH_TRY(mesh::init_logging("meshhold", arguments.log_level));
  MESH_TRY(auto stop, stop_signals());
  MESH_TRY(mesh::feed::raise_file_limit());
  MESH_TRY(mesh::feed::keep_only_capabilities(kCapabilities));
  MESH_TRY(auto holder, mesh::feed::Holder::open(arguments.holder));
  mesh::logger("hold")->info("meshhold is ready run_dir={} proxy_uid={}", arguments.holder.run_dir,
                             arguments.holder.proxy_uid);
  return holder->run(stop.get());
}

}  // namespace

int main(int argc, char** argv) {
  const auto arguments = parse(argc, argv);
  if (!arguments) {
    std::fprintf(stderr, "meshhold: %s\n", arguments.error().message.c_str());
    return 2;
  }
  if (const auto served = serve(arguments.value()); !served) {
    std::fprintf(stderr, "meshhold: %s\n", served.error().message.c_str());
    return 1;
  }
  return 0;
}
