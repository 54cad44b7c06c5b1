// Meshd: the real meshd and meshhold with the real kernel, against a scripted meshproxy. Root; else
// it skips.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "api/messages.h"
#include "feed/channel.h"
#include "feed/hold.h"
#include "feed/messages.h"
#include "tests/support/eventually.h"
#include "tests/support/netns.h"

namespace mesh::test {

namespace fs = std::filesystem;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;
inline constexpr auto kPatience = std::chrono::seconds(20);

// meshproxy's end of the feed: keeps the objects it is given and acknowledges them.
class FakeProxy {
 public:
  explicit FakeProxy(const std::string& path) : listener_(feed::listen_unix(path, 0600).value()) {}

  // Serves everybody for a moment.
  void serve(int milliseconds = 20) {
    pollfd polled[3] = {{listener_.get(), POLLIN, 0},
                        {meshd_ ? meshd_->fd() : -1, POLLIN, 0},
                        {hold_ ? hold_->fd() : -1, POLLIN, 0}};
    if (::poll(polled, 3, milliseconds) <= 0) return;
    if (polled[0].revents) accept_one();
    if (polled[1].revents && meshd_) read(meshd_);
    if (polled[2].revents && hold_) read_hold();
  }
  template <class Is>
  bool serve_until(Is is) {
    const auto deadline = Clock::now() + kPatience;
    while (!is()) {
      if (Clock::now() > deadline) return false;
      serve();
    }
    return true;
  }

  bool acknowledges = true;
  std::map<std::string, json::object> objects;  // "Kind ns/name"
  std::map<std::uint64_t, std::string> enrolled;
  std::set<std::uint32_t> listeners, revoked;
  json::object options;
  bool has_heartbeat = false;
  bool is_tapped = false;
  std::uint64_t version = 0;
  int updates = 0, resets = 0, syncs = 0, counters = 0;

  void drop() {
    meshd_.reset();
    hold_.reset();
  }
  void send(const json::object& message) { ASSERT_TRUE(meshd_ && meshd_->send(message)); }

 private:
  static std::string key_of(const json::object& tree) {
    const json::object& metadata = tree.at("metadata").as_object();
    return std::string(tree.at("kind").as_string()) + " " +
           std::string(metadata.at("namespace").as_string()) + "/" +
           std::string(metadata.at("name").as_string());
  }
  void accept_one() {
    auto fd = feed::accept_unix(listener_.get(), 0);
    if (!fd) return;
    auto channel = std::make_unique<feed::Channel>(std::move(fd).value());
    std::string role;
    const auto deadline = Clock::now() + kPatience;
    std::vector<std::pair<std::string, feed::Fds>> rest;
    while (role.empty() && Clock::now() < deadline) {
      pollfd waiting{channel->fd(), POLLIN, 0};
      ::poll(&waiting, 1, 1000);
      auto received = channel->receive([&](std::string_view payload, feed::Fds fds) -> Result<> {
        if (role.empty()) {
          role = json::parse({payload.data(), payload.size()}).at("role").as_string();
        } else {
          rest.emplace_back(std::string(payload), std::move(fds));
        }
        return success();
      });
      if (!received) return;
    }
    auto& slot = role == "meshd" ? meshd_ : hold_;
    slot = std::move(channel);
    for (auto& [payload, fds] : rest) {
      if (role == "meshd")
        on_meshd(feed::parse_message(payload).value(), fds.size());
      else
        on_hold(feed::parse_hold_message(payload).value());
    }
  }
  void read(std::unique_ptr<feed::Channel>& channel) {
    auto received = channel->receive_json([this](json::object message, feed::Fds fds) -> Result<> {
      on_meshd(message, fds.size());
      return success();
    });
    if (!received) channel.reset();
  }
  void read_hold() {
    auto received = hold_->receive([this](std::string_view payload, feed::Fds) -> Result<> {
      on_hold(feed::parse_hold_message(payload).value());
      return success();
    });
    if (!received) hold_.reset();
  }
  void on_hold(const feed::HoldMessage& message) {
    if (message.type == feed::HoldType::kListener) listeners.insert(message.workload);
    if (message.type == feed::HoldType::kRevoke) revoked.insert(message.workload);
    if (message.type == feed::HoldType::kSync) ++syncs;
  }
  void on_meshd(const json::object& message, std::size_t fds) {
    const std::string type(message.at("type").as_string());
    if (type == "options") {
      options = message;
      has_heartbeat = fds >= 1;
    } else if (type == "tap") {
      is_tapped = message.at("on").as_bool();
    } else if (type == "dump") {
      ASSERT_TRUE(meshd_->send({{"type", "dump_reply"}, {"id", message.at("id")}, {"body", {}}}));
    } else if (type == "kernel_counters") {
      ++counters;
    } else if (type == "update") {
      ++updates;
      if (message.at("reset").as_bool()) {
        objects.clear();
        ++resets;
      }
      for (const auto& tree : message.at("put").as_array())
        objects[key_of(tree.as_object())] = tree.as_object();
      for (const auto& gone : message.at("delete").as_array())
        objects.erase(std::string(gone.at("kind").as_string()) + " " +
                      std::string(gone.at("namespace").as_string()) + "/" +
                      std::string(gone.at("name").as_string()));
      enrolled.clear();
      for (const auto& item : message.at("enrolled").as_array())
        enrolled[item.at("id").to_number<std::uint64_t>()] = item.at("name").as_string();
      version = message.at("version").to_number<std::uint64_t>();
      if (acknowledges) ASSERT_TRUE(meshd_->send({{"type", "ack"}, {"version", version}}));
    }
  }

  UniqueFd listener_;
  std::unique_ptr<feed::Channel> meshd_, hold_;
};

struct Answer {
  int status = 0;
  std::string body;
};

class Meshd : public testing::Test {
 protected:
  void SetUp() override {
    if (!is_root()) GTEST_SKIP() << "needs root: namespaces, cgroups, BPF";
    char name[] = "/tmp/meshd-test-XXXXXX";
    dir_ = ::mkdtemp(name);
    fs::create_directories(dir_ + "/bpf");
    // A mount namespace of our own: the bpffs and what is pinned in it go with the test.
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(::mount("bpf", (dir_ + "/bpf").c_str(), "bpf", 0, nullptr), 0);
    root_ = cgroup2_mount() + "/undermesh-test-" + std::to_string(::getpid());
    fs::create_directories(root_ + "/mesh");
    fs::create_directories(root_ + "/workloads");
    proxy_ = std::make_unique<FakeProxy>(dir_ + "/proxy.sock");
    start_hold();
    start_meshd();
  }
  void TearDown() override {
    stop(meshd_);
    stop(hold_);
    proxy_.reset();
    if (dir_.empty()) return;
    ::umount2((dir_ + "/bpf").c_str(), MNT_DETACH);
    fs::remove_all(dir_);
    for (const char* group : {"/workloads", "/mesh", ""})
      EXPECT_TRUE(
          eventually([&] { return ::rmdir((root_ + group).c_str()) == 0 || errno == ENOENT; }));
  }

  pid_t spawn(std::vector<std::string> arguments) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    Cgroup::move_to(root_ + "/mesh", ::getpid());
    std::vector<char*> raw;
    for (std::string& argument : arguments) raw.push_back(argument.data());
    raw.push_back(nullptr);
    ::execv(raw[0], raw.data());
    ::_exit(127);
  }
  void start_hold() {
    hold_ = spawn(
        {MESH_BIN_DIR "/meshhold", "--run-dir", dir_, "--proxy-uid", "0", "--log-level", "error"});
  }
  pid_t spawn_meshd() {
    return spawn({MESH_BIN_DIR "/meshd", "--run-dir", dir_, "--state-dir", dir_ + "/state",
                  "--cgroup", root_, "--proxy-uid", "0", "--pin-dir", dir_ + "/bpf/undermesh",
                  "--access-log", dir_ + "/access.log", "--log-level",
                  ::getenv("MESHD_TEST_LOG") ? ::getenv("MESHD_TEST_LOG") : "error"});
  }
  void start_meshd() {
    meshd_ = spawn_meshd();
    ASSERT_TRUE(proxy_->serve_until([&] { return ask("GET", "/v1/version").status == 200; }));
  }
  // One that ends by itself: how, and what it said.
  std::pair<int, std::string> run_meshd() {
    int said[2];
    if (::pipe2(said, O_CLOEXEC) != 0) return {};
    const int own = ::dup(STDERR_FILENO);
    ::dup2(said[1], STDERR_FILENO);
    const pid_t pid = spawn_meshd();
    ::dup2(own, STDERR_FILENO);
    ::close(own);
    ::close(said[1]);
    std::string text;
    char chunk[4096];
    constexpr int kMilliseconds = std::chrono::milliseconds(kPatience).count();
    for (pollfd readable{said[0], POLLIN, 0}; ::poll(&readable, 1, kMilliseconds) == 1;) {
      const ssize_t got = ::read(said[0], chunk, sizeof chunk);
      if (got <= 0) break;
      text.append(chunk, static_cast<std::size_t>(got));
    }
    ::close(said[0]);
    ::kill(pid, SIGKILL);  // one that runs after all
    int status = -1;
    ::waitpid(pid, &status, 0);
    return {status, text};
  }
  static void stop(pid_t& pid) {
    if (pid <= 0) return;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    pid = -1;
  }

  // The admin socket; none: it does not listen.
  UniqueFd dial() const {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (dir_ + "/meshd.sock").c_str());
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fd.reset();
    return fd;
  }
  // One exchange with the admin socket, while the proxy is served.
  Answer ask(const std::string& method, const std::string& target, const std::string& body = "") {
    const UniqueFd fd = dial();
    if (!fd) return {};
    const std::string request =
        method + " " + target +
        " HTTP/1.1\r\nHost: meshd\r\nConnection: close\r\nContent-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return {};
    std::string response;
    const auto deadline = Clock::now() + kPatience;
    while (Clock::now() < deadline) {
      proxy_->serve(2);
      char chunk[65536];
      const ssize_t got = ::recv(fd.get(), chunk, sizeof chunk, MSG_DONTWAIT);
      if (got == 0) break;
      if (got > 0) response.append(chunk, static_cast<std::size_t>(got));
      if (got < 0 && errno != EAGAIN) break;
    }
    const auto split = response.find("\r\n\r\n");
    if (split == std::string::npos) return {};
    return {std::atoi(response.c_str() + 9), response.substr(split + 4)};
  }
  api::ApplyReply apply(std::vector<json::object> trees) {
    api::ApplyRequest request;
    for (auto& tree : trees) request.objects.push_back({std::move(tree), "test.yaml", {}});
    const Answer answer = ask("POST", "/v1/apply", json::serialize(api::to_json(request)));
    EXPECT_EQ(answer.status, 200) << answer.body;
    auto reply = api::from_text<api::ApplyReply>(answer.body);
    EXPECT_TRUE(reply);
    return reply ? reply.value() : api::ApplyReply{};
  }
  std::string outcome_of(json::object tree) {
    const auto reply = apply({std::move(tree)});
    if (reply.results.size() != 1) return "no result";
    std::string text = reply.results[0].outcome;
    for (const std::string& problem : reply.results[0].problems) text += "; " + problem;
    return text;
  }
  void remove(const std::string& kind, const std::string& name) {
    const api::DeleteRequest request{{{kind, "default", name}}};
    EXPECT_EQ(ask("POST", "/v1/delete", json::serialize(api::to_json(request))).status, 200);
  }
  api::Status status() {
    auto status = api::from_text<api::Status>(ask("GET", "/v1/status").body);
    EXPECT_TRUE(status);
    return status ? status.value() : api::Status{};
  }
  std::string state_of(const std::string& name) {
    for (const auto& workload : status().workloads)
      if (workload.name == name) return workload.state;
    return "absent";
  }
  std::string reason_of(const std::string& name) {
    for (const auto& workload : status().workloads)
      if (workload.name == name) return workload.reason;
    return "absent";
  }

  bool becomes(const std::string& name, const std::string& state) {
    return proxy_->serve_until([&] { return state_of(name) == state; });
  }

  std::string dir_, root_;
  std::unique_ptr<FakeProxy> proxy_;
  pid_t hold_ = -1, meshd_ = -1;
};

inline json::object object(const std::string& kind, const std::string& version,
                           const std::string& name, json::object spec,
                           json::object annotations = {}) {
  json::object metadata = {{"name", name}, {"namespace", "default"}};
  if (!annotations.empty()) metadata["annotations"] = std::move(annotations);
  return {{"apiVersion", version},
          {"kind", kind},
          {"metadata", std::move(metadata)},
          {"spec", std::move(spec)}};
}

inline json::object service(const std::string& name, int port = 9080,
                            const std::string& port_name = "http") {
  return object("Service", "v1", name,
                {{"selector", {{"app", name}}},
                 {"ports", json::array{{{"name", port_name}, {"port", port}}}}});
}

inline json::object allow_nobody(const std::string& name, const std::string& app) {
  return object("AuthorizationPolicy", "security.istio.io/v1", name,
                {{"selector", {{"matchLabels", {{"app", app}}}}}, {"action", "ALLOW"}});
}

// A namespace with an address and a process of its own in a cgroup of its own.
struct Sandbox {
  NetNs ns = NetNs::create();
  std::string cgroup;
  std::unique_ptr<Child> process;
  std::string name, address;

  Sandbox(const std::string& root, std::string of_name, std::string at)
      : cgroup(root + "/workloads/default." + of_name),
        name(std::move(of_name)),
        address(std::move(at)) {
    fs::create_directories(cgroup);
    ns.add_address("lo", address + "/32");
    process = std::make_unique<Child>(nullptr, &ns, [this] {
      Cgroup::move_to(cgroup, ::getpid());
      ::pause();
    });
    (void)eventually([this] {
      std::ifstream procs(cgroup + "/cgroup.procs");
      int pid = 0;
      return static_cast<bool>(procs >> pid);
    });
  }
  ~Sandbox() {
    process.reset();
    (void)eventually([this] { return ::rmdir(cgroup.c_str()) == 0 || errno == ENOENT; });
  }
  json::object entry() const {
    return object("WorkloadEntry", "networking.istio.io/v1", name,
                  {{"address", address}, {"labels", {{"app", name}}}, {"serviceAccount", name}},
                  {{"undermesh.io/netns", "/proc/" + std::to_string(process->pid()) + "/ns/net"},
                   {"undermesh.io/cgroup", cgroup},
                   {"undermesh.io/sandbox", "true"}});
  }
  // A connect from a new process of this workload: 0 or errno.
  int connect(const std::string& to) const {
    return in_child(nullptr, &ns, [&] {
      Cgroup::move_to(cgroup, ::getpid());
      return try_connect(to, 0, 2000);
    });
  }
};

}  // namespace mesh::test
