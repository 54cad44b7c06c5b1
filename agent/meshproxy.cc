// meshproxy: the node's shared L7 proxy. Wiring only: confinement (proxy/confine.h), then the feeds
// (proxy/feeds.h), which bring everything it serves with.
#include <getopt.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "base/arguments.h"
#include "base/log.h"
#include "feed/privilege.h"
#include "net/reactor.h"
#include "proxy/confine.h"
#include "proxy/feeds.h"

namespace {

using mesh::Errc;
using mesh::Error;
using mesh::Result;
using mesh::UniqueFd;
namespace net = mesh::net;

struct Arguments {
  std::string run_dir = "/run/undermesh";
  std::uint32_t uid = 65530;
  std::uint32_t workers = std::max(1u, std::thread::hardware_concurrency() / 2);
  std::string log_level = "info";
};

Result<Arguments> parse(int argc, char** argv) {
  static constexpr option kOptions[] = {{"run-dir", required_argument, nullptr, 'r'},
                                        {"uid", required_argument, nullptr, 'u'},
                                        {"workers", required_argument, nullptr, 'w'},
                                        {"log-level", required_argument, nullptr, 'l'},
                                        {nullptr, 0, nullptr, 0}};
  Arguments arguments;
  for (int choice = 0; (choice = ::getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    if (choice == 'r') {
      arguments.run_dir = optarg;
    } else if (choice == 'u') {
      MESH_TRY(arguments.uid, mesh::parse_number("--uid", optarg));
    } else if (choice == 'w') {
      MESH_TRY(arguments.workers, mesh::parse_number("--workers", optarg));
    } else if (choice == 'l') {
      arguments.log_level = optarg;
    } else {
      return Error{
          Errc::invalid_argument,
          "usage: meshproxy [--run-dir DIR] [--uid UID] [--workers N] [--log-level LEVEL]"};
    }
  }
  if (arguments.workers == 0 || arguments.workers > 256) {
    return Error{Errc::invalid_argument, "--workers wants 1 to 256"};
  }
  return arguments;
}

Result<UniqueFd> stop_signals() {
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  if (::sigprocmask(SIG_BLOCK, &signals, nullptr) != 0) {
    return mesh::errno_error(errno, "sigprocmask");
  }
  UniqueFd fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return mesh::errno_error(errno, "signalfd");
  return fd;
}

// Waits for a signal, then drains and ends the loop.
net::Task<> end_on_signal(net::Reactor& reactor, UniqueFd signals, mesh::proxy::Feeds& feeds) {
  net::Scope scope(reactor);
  net::IoHandle io;
  if (io.attach(reactor, signals.get(), EPOLLIN)) (void)co_await net::IoReadable(io, scope);
  co_await feeds.close();
  reactor.stop();
}

Result<> run(const Arguments& arguments) {
  MESH_TRY(mesh::init_logging("meshproxy", arguments.log_level));
  (void)mesh::logger("proxy");  // opened here: later nothing can be opened
  (void)mesh::logger("feed");
  MESH_TRY(mesh::feed::raise_file_limit());  // connections, upstream legs, the stock of sockets
  MESH_TRY(auto signals, stop_signals());
  MESH_TRY(auto listener, mesh::proxy::confine(arguments.run_dir + "/proxy.sock", arguments.uid));
  net::Reactor reactor;
  mesh::proxy::Feeds feeds(reactor, arguments.workers, {},
                           {.version = MESH_VERSION, .workers = arguments.workers});
  MESH_TRY(feeds.start(std::move(listener)));
  net::Group last(reactor);
  last.spawn(end_on_signal(reactor, std::move(signals), feeds));
  mesh::logger("proxy")->info("ready workers={} version={}", arguments.workers, MESH_VERSION);
  reactor.run();
  return mesh::success();
}

}  // namespace

int main(int argc, char** argv) {
  auto arguments = parse(argc, argv);
  if (!arguments) {
    std::fprintf(stderr, "meshproxy: %s\n", arguments.error().message.c_str());
    return 2;
  }
  auto ran = run(arguments.value());
  if (!ran) {
    std::fprintf(stderr, "meshproxy: %s\n", ran.error().message.c_str());
    return 1;
  }
  return 0;
}
