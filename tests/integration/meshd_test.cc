// The real meshd and meshhold with the real kernel, against a scripted meshproxy (root).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "api/messages.h"
#include "feed/channel.h"
#include "feed/hold.h"
#include "feed/messages.h"
#include "tests/support/netns.h"

namespace mesh {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using test::Cgroup;
using test::Child;
using test::NetNs;
using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::seconds(20);

template <class Is>
bool eventually(Is is) {
  const auto deadline = Clock::now() + kPatience;
  while (!is()) {
    if (Clock::now() > deadline) return false;
    ::usleep(10'000);
  }
  return true;
}

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
    if (!test::is_root()) GTEST_SKIP() << "needs root: namespaces, cgroups, BPF";
    char name[] = "/tmp/meshd-test-XXXXXX";
    dir_ = ::mkdtemp(name);
    fs::create_directories(dir_ + "/bpf");
    // A mount namespace of our own: the bpffs and what is pinned in it go with the test.
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(::mount("bpf", (dir_ + "/bpf").c_str(), "bpf", 0, nullptr), 0);
    root_ = test::cgroup2_mount() + "/undermesh-test-" + std::to_string(::getpid());
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
      eventually([&] { return ::rmdir((root_ + group).c_str()) == 0 || errno == ENOENT; });
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

  // One exchange with the admin socket, while the proxy is served.
  Answer ask(const std::string& method, const std::string& target, const std::string& body = "") {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (dir_ + "/meshd.sock").c_str());
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return {};
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

  std::string dir_, root_;
  std::unique_ptr<FakeProxy> proxy_;
  pid_t hold_ = -1, meshd_ = -1;
};

json::object object(const std::string& kind, const std::string& version, const std::string& name,
                    json::object spec, json::object annotations = {}) {
  json::object metadata = {{"name", name}, {"namespace", "default"}};
  if (!annotations.empty()) metadata["annotations"] = std::move(annotations);
  return {{"apiVersion", version},
          {"kind", kind},
          {"metadata", std::move(metadata)},
          {"spec", std::move(spec)}};
}

json::object service(const std::string& name, int port = 9080,
                     const std::string& port_name = "http") {
  return object("Service", "v1", name,
                {{"selector", {{"app", name}}},
                 {"ports", json::array{{{"name", port_name}, {"port", port}}}}});
}

json::object allow_nobody(const std::string& name, const std::string& app) {
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
    eventually([this] {
      std::ifstream procs(cgroup + "/cgroup.procs");
      int pid = 0;
      return static_cast<bool>(procs >> pid);
    });
  }
  ~Sandbox() {
    process.reset();
    eventually([this] { return ::rmdir(cgroup.c_str()) == 0 || errno == ENOENT; });
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
    return test::in_child(nullptr, &ns, [&] {
      Cgroup::move_to(cgroup, ::getpid());
      return test::try_connect(to, 0, 2000);
    });
  }
};

TEST_F(Meshd, PublishesObjects) {
  EXPECT_EQ(outcome_of(service("reviews")), "created");
  EXPECT_TRUE(proxy_->objects.contains("Service default/reviews"));
  EXPECT_EQ(outcome_of(service("reviews")), "unchanged");
  EXPECT_EQ(outcome_of(service("reviews", 9081)), "configured");
  EXPECT_EQ(status().state, "ready") << testing::PrintToString(status().reasons);
  EXPECT_TRUE(proxy_->has_heartbeat);
  EXPECT_TRUE(proxy_->options.at("access_log").as_bool());
  remove("Service", "reviews");
  EXPECT_FALSE(proxy_->objects.contains("Service default/reviews"));
}

TEST_F(Meshd, EnrolsAWorkloadRedirectsItAndEnforcesPolicy) {
  const Sandbox client(root_, "client", "10.9.0.1");
  const Sandbox server(root_, "server", "10.9.0.2");
  EXPECT_EQ(outcome_of(client.entry()), "created");
  EXPECT_EQ(outcome_of(server.entry()), "created");
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }))
      << reason_of("client");
  EXPECT_EQ(proxy_->enrolled.size(), 3U) << "client, server, gateway";
  EXPECT_GE(proxy_->listeners.size(), 2U);
  EXPECT_EQ(outcome_of(service("server")), "created");
  EXPECT_EQ(client.connect("10.78.0.1:9080"), ECONNREFUSED) << "no proxy stamps the heartbeat";
  EXPECT_GE(status().kernel["connects_refused_proxy_away"], 1U);

  EXPECT_EQ(outcome_of(allow_nobody("deny", "server")), "created");
  EXPECT_EQ(client.connect("10.78.0.1:9080"), ECONNREFUSED);
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  ASSERT_TRUE(proxy_->serve_until([&] {
    const auto policies = status().policies;
    return policies.size() == 1 && policies[0].policy == "AuthorizationPolicy default/deny" &&
           policies[0].denied >= 2;
  }));
  remove("AuthorizationPolicy", "deny");
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ENETUNREACH) << "no policy: only no route";
}

TEST_F(Meshd, TheAddressOfARemovedServiceRefusesAtOnce) {
  const Sandbox client(root_, "client", "10.9.0.1");
  apply({client.entry(), service("reviews"), service("db", 5432, "tcp")});
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(client.connect("10.78.0.1:9999"), ECONNREFUSED) << "a port that it does not have";
  remove("Service", "reviews");
  remove("Service", "db");
  for (const char* address : {"10.78.0.1:9080", "10.78.0.2:5432", "10.78.200.1:80"})
    EXPECT_EQ(client.connect(address), ECONNREFUSED) << address;
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ENETUNREACH) << "only no route";
  stop(meshd_);
  EXPECT_EQ(client.connect("10.78.0.1:9080"), ECONNREFUSED) << "also with meshd away";
}

TEST_F(Meshd, ASandboxThatDiesIsRemovedWithItsEntryAndItsGroup) {
  Sandbox client(root_, "client", "10.9.0.1");
  EXPECT_EQ(outcome_of(client.entry()), "created");
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  const std::uint32_t id = status().workloads.at(0).id;
  client.process->kill();
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "absent"; }));
  EXPECT_TRUE(proxy_->serve_until([&] { return proxy_->revoked.contains(id); }));
  EXPECT_TRUE(proxy_->serve_until([&] { return !fs::exists(client.cgroup); }));
  EXPECT_TRUE(proxy_->serve_until([&] { return proxy_->enrolled.size() == 1; }));
}

TEST_F(Meshd, RefusesAWorkloadInTheHostsNamespaceByName) {
  const Sandbox client(root_, "client", "10.9.0.1");
  json::object entry = client.entry();
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/netns"] =
      "/proc/self/ns/net";
  EXPECT_EQ(outcome_of(entry), "created");
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "failed"; }));
  EXPECT_THAT(reason_of("client"), testing::HasSubstr("the host's own"));
}

TEST_F(Meshd, ARestartAdoptsAndPolicyNeverLapses) {
  const Sandbox client(root_, "client", "10.9.0.1");
  const Sandbox server(root_, "server", "10.9.0.2");
  apply({client.entry(), server.entry(), service("server"), allow_nobody("deny", "server")});
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  const auto enrolled = proxy_->enrolled;
  stop(meshd_);
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED) << "while meshd is dead";
  // A client that tries all the time, from before the restart until after it.
  struct Probes {
    std::atomic<int> refused{0}, other{0};
  };
  void* shared =
      ::mmap(nullptr, sizeof(Probes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  Probes& probes = *new (shared) Probes;
  const Child prober(nullptr, &client.ns, [&] {
    Cgroup::move_to(client.cgroup, ::getpid());
    while (true) {
      const bool refused = test::try_connect("10.9.0.2:9080", 0, 2000) == ECONNREFUSED;
      ++(refused ? probes.refused : probes.other);
    }
  });
  const auto more_probes = [&] {
    const int before = probes.refused;
    return eventually([&] { return probes.refused >= before + 20 || probes.other > 0; });
  };
  EXPECT_TRUE(more_probes());
  start_meshd();
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(proxy_->enrolled, enrolled) << "the ids stay";
  EXPECT_EQ(proxy_->revoked.size(), 0U);
  EXPECT_TRUE(more_probes());
  EXPECT_EQ(probes.other, 0) << "connects that were not refused";
}

TEST_F(Meshd, WithoutItsStateDirectoryItDoesNotStartAndPolicyHolds) {
  const Sandbox client(root_, "client", "10.9.0.1");
  const Sandbox server(root_, "server", "10.9.0.2");
  apply({client.entry(), server.entry(), service("server"), allow_nobody("deny", "server")});
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  const auto enrolled = proxy_->enrolled;
  stop(meshd_);
  fs::rename(dir_ + "/state", dir_ + "/unmounted");
  for (const bool is_mount_point_there : {false, true}) {
    if (is_mount_point_there) fs::create_directory(dir_ + "/state");
    const auto [status, said] = run_meshd();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    EXPECT_THAT(said, testing::HasSubstr("the state directory " + dir_ + "/state"));
    EXPECT_FALSE(fs::exists(dir_ + "/state/accepted"));
    EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  }
  fs::remove(dir_ + "/state");
  fs::rename(dir_ + "/unmounted", dir_ + "/state");
  start_meshd();
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(proxy_->enrolled, enrolled);
  EXPECT_EQ(proxy_->revoked.size(), 0U);
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  EXPECT_EQ(status().state, "ready") << testing::PrintToString(status().reasons);
}

TEST_F(Meshd, AKilledMeshholdGetsEverythingBack) {
  const Sandbox client(root_, "client", "10.9.0.1");
  apply({client.entry()});
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  const int syncs = proxy_->syncs;
  stop(hold_);
  start_hold();
  ASSERT_TRUE(proxy_->serve_until([&] { return proxy_->syncs > syncs; }));
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(proxy_->revoked.size(), 0U);
}

TEST_F(Meshd, AProxyThatComesBackGetsEverythingAnew) {
  apply({service("reviews")});
  const int resets = proxy_->resets;
  proxy_->drop();
  ASSERT_TRUE(proxy_->serve_until([&] { return proxy_->resets > resets; }));
  EXPECT_TRUE(proxy_->objects.contains("Service default/reviews"));
}

TEST_F(Meshd, AFileThatPeopleDropIsReadAndOneThatIsBrokenLeavesTheLastVersion) {
  const std::string path = dir_ + "/state/objects/mine.yaml";
  const std::string good =
      "apiVersion: v1\nkind: Service\nmetadata: {name: details}\nspec:\n  selector: {app: "
      "details}\n"
      "  ports: [{name: http, port: 9080}]\n---\n"
      "apiVersion: v1\nkind: Service\nmetadata: {name: ratings}\nspec:\n  selector: {app: "
      "ratings}\n"
      "  ports: [{name: http, port: 9080}]\n";
  std::ofstream(path) << good;
  ASSERT_TRUE(proxy_->serve_until([&] {
    return proxy_->objects.contains("Service default/details") &&
           proxy_->objects.contains("Service default/ratings");
  }));
  std::ofstream(path) << "kind: [";
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "degraded"; }));
  EXPECT_THAT(status().reasons.at(0), testing::HasSubstr("mine.yaml"));
  EXPECT_TRUE(proxy_->objects.contains("Service default/details"));
  stop(meshd_);
  start_meshd();
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "degraded"; }));
  EXPECT_TRUE(proxy_->objects.contains("Service default/details")) << "also after a restart";
  EXPECT_THAT(outcome_of(service("details", 9081)), testing::HasSubstr("is defined in"));
  std::ofstream(path) << good;
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "ready"; }));
}

TEST_F(Meshd, ARefusedPolicyDeniesAndApplySaysSo) {
  const Sandbox client(root_, "client", "10.9.0.1");
  const Sandbox server(root_, "server", "10.9.0.2");
  apply({client.entry(), server.entry()});
  ASSERT_TRUE(proxy_->serve_until([&] { return state_of("client") == "enrolled"; }));
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ENETUNREACH);
  json::object policy = allow_nobody("broken", "server");
  policy["spec"].as_object()["action"] = "CUSTOM";
  EXPECT_THAT(outcome_of(policy), testing::StartsWith("refused; "));
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  EXPECT_EQ(status().state, "degraded");
}

TEST_F(Meshd, RefusesWhatIsNotSupportedAndStoresNothingOfIt) {
  const std::string outcome = outcome_of(object(
      "VirtualService", "networking.istio.io/v1", "reviews",
      {{"hosts", {"reviews"}},
       {"http", json::array{{{"rewrite", {{"uri", "/"}}},
                             {"route", json::array{{{"destination", {{"host", "reviews"}}}}}}}}}}));
  EXPECT_THAT(outcome, testing::StartsWith("refused; test.yaml"));
  EXPECT_THAT(outcome, testing::HasSubstr("spec.http[0].rewrite"));
  EXPECT_FALSE(fs::exists(dir_ + "/state/objects/VirtualService/default.reviews.yaml"));
  EXPECT_EQ(status().state, "ready");
}

TEST_F(Meshd, AnswersBadRequestsWithTheirReason) {
  EXPECT_EQ(ask("GET", "/v1/nothing").status, 404);
  EXPECT_EQ(ask("POST", "/v1/apply", "{").status, 400);
  EXPECT_EQ(ask("POST", "/v1/apply", R"({"objects":3})").status, 400);
  EXPECT_EQ(ask("PUT", "/v1/apply").status, 400);
  EXPECT_EQ(ask("GET", "/v1/dump/everything").status, 404);
  for (const char* what : {"routes", "policies"})
    EXPECT_EQ(ask("GET", std::string("/v1/dump/") + what).status, 200) << what;
}

TEST_F(Meshd, EnrolsAndEndsManyWorkloadsAndLeavesNothing) {
  const auto files = [](pid_t pid) {
    return static_cast<int>(std::distance(
        fs::directory_iterator("/proc/" + std::to_string(pid) + "/fd"), fs::directory_iterator()));
  };
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "ready"; }));
  const auto pins = [this] {
    return std::distance(fs::recursive_directory_iterator(dir_ + "/bpf"),
                         fs::recursive_directory_iterator());
  };
  const auto pins_before = pins();
  const char* cycles = ::getenv("MESHD_TEST_CYCLES");
  int meshd_files = 0, hold_files = 0;
  for (int i = 0; i < (cycles ? std::atoi(cycles) : 30); ++i) {
    Sandbox one(root_, "w" + std::to_string(i), "10.9.1." + std::to_string(i % 250));
    apply({one.entry()});
    ASSERT_TRUE(proxy_->serve_until([&] { return state_of(one.name) == "enrolled"; }))
        << reason_of(one.name);
    if (i % 3 == 0)
      one.process->kill();
    else
      remove("WorkloadEntry", one.name);
    ASSERT_TRUE(proxy_->serve_until([&] { return state_of(one.name) == "absent"; }));
    if (i == 0) {
      meshd_files = files(meshd_);
      hold_files = files(hold_);
    }
  }
  // The first count may have been taken before its workload was let go everywhere.
  EXPECT_TRUE(proxy_->serve_until([&] { return files(meshd_) <= meshd_files; }));
  EXPECT_TRUE(proxy_->serve_until([&] { return files(hold_) <= hold_files; }));
  EXPECT_TRUE(fs::is_empty(dir_ + "/state/objects/WorkloadEntry"));
  EXPECT_TRUE(fs::is_empty(dir_ + "/state/accepted/WorkloadEntry"));
  EXPECT_EQ(pins(), pins_before);
}

TEST_F(Meshd, ReadersLeaveRoomForRootAndSendLittle) {
  fs::permissions(dir_, fs::perms{0755});
  fs::permissions(dir_ + "/meshd.sock", fs::perms{0666});
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  pid_t reader = ::fork();
  if (reader == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (dir_ + "/meshd.sock").c_str());
    bool is_reader = ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
    for (int i = 0; i < 100 && is_reader; ++i) {
      const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
      is_reader = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
      const std::string_view tap = "GET /v1/tap HTTP/1.1\r\nHost: meshd\r\n\r\n";
      (void)!::send(fd, tap.data(), tap.size(), MSG_NOSIGNAL);
    }
    (void)!::write(ready[1], is_reader ? "y" : "n", 1);
    while (true) ::pause();
  }
  char is_reader = 0;
  ASSERT_EQ(::read(ready[0], &is_reader, 1), 1);
  EXPECT_EQ(is_reader, 'y');
  for (int i = 0; i < 20; ++i) EXPECT_EQ(ask("GET", "/v1/version").status, 200) << i;
  stop(reader);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(Meshd, ATapThatDoesNotReadHoldsLittle) {
  UniqueFd tap(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (dir_ + "/meshd.sock").c_str());
  ASSERT_EQ(::connect(tap.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const std::string_view request = "GET /v1/tap HTTP/1.1\r\nHost: meshd\r\n\r\n";
  ASSERT_EQ(::send(tap.get(), request.data(), request.size(), 0), std::ssize(request));
  ASSERT_TRUE(proxy_->serve_until([&] { return proxy_->is_tapped; }));
  for (int i = 0; i < 2000; ++i) {
    proxy_->send({{"type", "tap_event"}, {"path", std::string(4000, 'x')}, {"status", 200}});
    if (i % 100 == 0) EXPECT_EQ(ask("GET", "/v1/version").status, 200) << "all before is read";
  }
  EXPECT_EQ(ask("GET", "/v1/version").status, 200);
  std::size_t bytes = 0;
  char chunk[65536];
  pollfd readable{tap.get(), POLLIN, 0};
  for (ssize_t got = 1; got > 0 && ::poll(&readable, 1, bytes == 0 ? 10'000 : 500) == 1;
       bytes += static_cast<std::size_t>(got))
    got = ::recv(tap.get(), chunk, sizeof chunk, 0);
  EXPECT_GT(bytes, 100'000U);
  EXPECT_LT(bytes, 3'000'000U) << "of 8 MB";
}

TEST_F(Meshd, ABlockOfServiceAddressesBeginsAtItsFirst) {
  for (const char* block : {"10.78.3.0/16", "10.78.0.0/33"}) {
    const pid_t pid = spawn({MESH_BIN_DIR "/meshd", "--service-cidr", block, "--run-dir",
                             "/nowhere", "--pin-dir", "/nowhere", "--log-level", "off"});
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 2) << block;
  }
}

TEST_F(Meshd, AWorkloadHasAGroupOfItsOwn) {
  const NetNs ns = NetNs::create();
  int number = 0;
  for (const std::string& group :
       {test::cgroup2_mount(), root_, root_ + "/mesh", root_ + "/workloads", std::string("/tmp")}) {
    const std::string name = "w" + std::to_string(number++);
    ask("POST", "/v1/apply",
        json::serialize(api::to_json(api::ApplyRequest{
            {{object("WorkloadEntry", "networking.istio.io/v1", name,
                     {{"address", "10.1.0." + std::to_string(number)}},
                     {{"undermesh.io/netns", ns.path()}, {"undermesh.io/cgroup", group}}),
              "test.yaml",
              {}}}})));
    EXPECT_EQ(state_of(name), "failed") << group;
    EXPECT_THAT(reason_of(name), testing::HasSubstr("control group")) << group;
  }
}

}  // namespace
}  // namespace mesh
