#include "control/agent.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <ctime>
#include <fstream>
#include <random>
#include <utility>

#include "base/log.h"
#include "control/admin_server.h"
#include "control/fast_path.h"
#include "control/linux_machine.h"
#include "control/node.h"
#include "control/peer_link.h"
#include "datapath/datapath.h"

namespace mesh::control {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;

constexpr auto kTick = 2s;
constexpr auto kWatch = 500ms;
constexpr auto kSettleFiles = 50ms;  // an editor writes, renames, writes again

std::string now_text() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

std::uint64_t unix_ms() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                        std::chrono::system_clock::now().time_since_epoch())
                                        .count());
}

Random seeded_random() {
  std::random_device device;
  return Random(std::uint64_t{device()} << 32U | device());
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

config::CompileOptions compile_options(const IpBlock& service_range) {
  config::Workload gateway;
  gateway.name = {"istio-system", "undermesh-gateway"};
  gateway.labels = {{"istio", "ingressgateway"}, {"app", "istio-ingressgateway"}};
  gateway.service_account = "istio-ingressgateway-service-account";
  config::CompileOptions options;
  options.gateway_workload = std::make_shared<const config::Workload>(std::move(gateway));
  options.service_range = service_range;
  return options;
}

class Agent {
 public:
  Agent(const AgentOptions& options, std::unique_ptr<datapath::Datapath> datapath,
        std::unique_ptr<LinuxMachine> machine)
      : options_(options),
        datapath_(std::move(datapath)),
        machine_(std::move(machine)),
        files_(posix_files()),
        store_(*files_, options.state_dir, seeded_random(), now_text),
        numbers_(*files_, options.state_dir + "/ids.json", options.service_range),
        hold_(io_, options.run_dir + "/hold.sock", 0, "meshhold"),
        proxy_(io_, options.run_dir + "/proxy.sock", options.proxy_uid, "meshproxy"),
        fast_path_(*datapath_, *files_, options.state_dir + "/fastpath"),
        node_({options.version, host_name(), options.cgroup + "/workloads", options.access_log},
              {store_, numbers_, *datapath_, *machine_, hold_, proxy_, fast_path_},
              compile_options(options.service_range)),
        admin_(io_, node_),
        inotify_(io_, machine_->inotify()),
        tick_(io_),
        watch_(io_),
        settle_(io_),
        stop_(io_, SIGTERM, SIGINT),
        reopen_(io_, SIGHUP) {}
  ~Agent() { inotify_.release(); }  // the machine's
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  Result<> run() {
    MESH_TRY(datapath_->attach_mesh(options_.cgroup + "/mesh"));
    MESH_TRY(node_.start(Node::Clock::now()));
    machine_->watch_tree(store_.objects_directory());
    hold_.start(node_.hold_events());
    proxy_.start(node_.proxy_events());
    MESH_TRY(admin_.listen(options_.run_dir + "/meshd.sock"));
    wait_inotify();
    wait_tick();
    wait_watch();
    wait_reopen();
    stop_.async_wait([this](const boost::system::error_code&, int) { io_.stop(); });
    logger("control")->info("meshd is ready run_dir={} state_dir={}", options_.run_dir,
                            options_.state_dir);
    io_.run();
    return success();
  }

 private:
  void wait_inotify() {
    inotify_.async_wait(asio::posix::stream_descriptor::wait_read,
                        [this](const boost::system::error_code& error) {
                          if (error) return;
                          const auto changes = machine_->read_changes();
                          if (changes.files) settle_files();
                          if (changes.cgroups) node_.on_cgroups_changed(Node::Clock::now());
                          wait_inotify();
                        });
  }
  void settle_files() {
    settle_.expires_after(kSettleFiles);
    settle_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      machine_->watch_tree(store_.objects_directory());
      node_.on_store_changed(Node::Clock::now());
    });
  }
  void wait_tick() {
    tick_.expires_after(kTick);
    tick_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      node_.tick(Node::Clock::now(), unix_ms());
      wait_tick();
    });
  }
  void wait_watch() {
    watch_.expires_after(kWatch);
    watch_.async_wait([this](const boost::system::error_code& error) {
      if (error) return;
      node_.watch_proxy(Node::Clock::now());
      node_.report_flows(unix_ms());
      node_.audit(Node::Clock::now());
      node_.watch_fast_path(Node::Clock::now());
      wait_watch();
    });
  }
  void wait_reopen() {
    reopen_.async_wait([this](const boost::system::error_code& error, int) {
      if (error) return;
      node_.reopen_access_log();
      wait_reopen();
    });
  }

  AgentOptions options_;
  asio::io_context io_{1};
  std::unique_ptr<datapath::Datapath> datapath_;
  std::unique_ptr<LinuxMachine> machine_;
  std::unique_ptr<Files> files_;
  Store store_;
  Numbers numbers_;
  PeerLink hold_, proxy_;
  FastPathSwitch fast_path_;
  Node node_;
  AdminServer admin_;
  asio::posix::stream_descriptor inotify_;
  asio::steady_timer tick_, watch_, settle_;
  asio::signal_set stop_, reopen_;
};

}  // namespace

Result<> run_agent(const AgentOptions& options) {
  ::umask(022);
  datapath::Options kernel;
  kernel.pin_dir = options.pin_dir;
  kernel.service_range = options.service_range;
  MESH_TRY(auto datapath, datapath::open_kernel_datapath(kernel));
  MESH_TRY(auto machine, LinuxMachine::open(options.cgroup + "/workloads"));
  Agent agent(options, std::move(datapath), std::move(machine));
  return agent.run();
}

}  // namespace mesh::control
