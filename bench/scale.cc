// Scale: a node that knows many services, endpoints and policies, from the files of its store to
// the maps of this machine's kernel. Prints one JSON object. Needs root.
//
// usage: bench_scale SERVICES ENDPOINTS POLICIES CLIENTS CHANGES
//
// Everything is as in meshd but the two peers: meshhold's answers and meshproxy's acknowledgements
// are made here, at once. The store is on a tmpfs: what fsync costs is another question. An event
// begins when the loop has been told that files changed; it is in the kernel when the last apply()
// that it causes returns.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "control/node.h"
#include "feed/messages.h"
#include "tests/support/netns.h"

namespace mesh::bench {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using Clock = std::chrono::steady_clock;
using test::Cgroup;
using test::NetNs;

[[noreturn]] void fail(const std::string& why) { throw std::runtime_error(why); }
void must(const Result<>& result) {
  if (!result) fail(result.error().message);
}
template <class T>
T must(Result<T> result) {
  if (!result) fail(result.error().message);
  return std::move(result).assume_value();
}

double seconds(Clock::duration passed) { return std::chrono::duration<double>(passed).count(); }
double rounded(double value) { return std::round(value * 1000) / 1000; }

struct Size {
  unsigned services = 0, endpoints = 0, policies = 0, clients = 0, changes = 0;
};

// --- what is configured

constexpr unsigned kServicesOfANamespace = 50;
constexpr const char* kTarget = "10.9.0.2";  // an endpoint that is really there
constexpr std::uint16_t kPort = 80;

class World {
 public:
  World(Size size, std::string directory) : size_(size), directory_(std::move(directory)) {
    fs::create_directories(directory_);
  }

  unsigned namespaces() const { return std::max(1U, size_.services / kServicesOfANamespace); }
  static std::string ns(unsigned n) { return "team-" + std::to_string(n); }
  std::string ns_of(unsigned service) const { return ns(service % namespaces()); }
  static std::string app(unsigned service) { return "app-" + std::to_string(service); }

  void write_all(const std::vector<NetNs>& clients, const std::vector<Cgroup>& groups) {
    std::vector<json::array> files(namespaces());
    for (unsigned n = 0; n < namespaces(); ++n)
      files[n].push_back(
          object("Namespace", "v1", "", ns(n), {}, {{"tier", n % 3 ? "back" : "front"}}));
    for (unsigned i = 0; i < size_.services; ++i) files[i % namespaces()].push_back(service(i));
    for (unsigned i = size_.changes; i < size_.endpoints; ++i)
      files[i % size_.services % namespaces()].push_back(endpoint(i));
    for (unsigned i = 1; i < size_.policies; ++i) files[i % namespaces()].push_back(policy(i));
    for (unsigned n = 0; n < namespaces(); ++n) write(ns(n), std::move(files[n]));
    for (unsigned i = 0; i < size_.changes; ++i) write_endpoint(i, false);
    write_policy(false);
    for (unsigned i = 0; i < clients.size(); ++i)
      write("client-" + std::to_string(i), {client(i, clients[i].path(), groups[i].path())});
    write("target", {object("Service", "v1", ns(0), "target",
                            {{"clusterIP", target_service()},
                             {"selector", {{"app", "target"}}},
                             {"ports", {{{"name", "tcp"}, {"port", kPort}}}}}),
                     workload("target", ns(0), kTarget, "target")});
  }
  // One endpoint, in a file of its own, at one address or another.
  void write_endpoint(unsigned i, bool moved) {
    write("endpoint-" + std::to_string(i), {endpoint(i, moved)});
  }
  // The policy of the first service.
  void write_policy(bool changed) { write("policy", {authorization(0, changed)}); }
  static std::string target_service() { return "10.96.255.254"; }

 private:
  static std::string ip(unsigned network, unsigned number) {
    return std::to_string(network + (number >> 16U)) + "." + std::to_string(number >> 8U & 255U) +
           "." + std::to_string(number & 255U);
  }
  static json::object object(const char* kind, const char* version, const std::string& ns,
                             const std::string& name, json::object spec, json::object labels = {},
                             json::object annotations = {}) {
    json::object metadata = {
        {"name", name}, {"labels", std::move(labels)}, {"annotations", std::move(annotations)}};
    if (!ns.empty()) metadata["namespace"] = ns;
    return {{"apiVersion", version},
            {"kind", kind},
            {"metadata", std::move(metadata)},
            {"spec", std::move(spec)}};
  }

  // One of five speaks HTTP, and so goes through the proxy.
  json::object service(unsigned i) const {
    return object(
        "Service", "v1", ns_of(i), "svc-" + std::to_string(i),
        {{"clusterIP", "10." + ip(96, i + 1)},
         {"selector", {{"app", app(i)}}},
         {"ports",
          {{{"name", i % 5 == 0 ? "http" : "tcp"}, {"port", kPort}, {"targetPort", 8080}}}}});
  }
  static json::object workload(const std::string& name, const std::string& ns,
                               const std::string& address, const std::string& app,
                               json::object annotations = {}) {
    return object("WorkloadEntry", "networking.istio.io/v1", ns, name,
                  {{"address", address},
                   {"labels", {{"app", app}, {"version", "v1"}}},
                   {"serviceAccount", app}},
                  {}, std::move(annotations));
  }
  json::object endpoint(unsigned i, bool moved = false) const {
    const unsigned s = i % size_.services;
    return workload("pod-" + std::to_string(i), ns_of(s),
                    "10." + ip(128, moved ? i + 1 + size_.endpoints : i + 1), app(s));
  }
  json::object client(unsigned i, const std::string& netns, const std::string& cgroup) const {
    const unsigned s = i % size_.services;
    return workload("client-" + std::to_string(i), ns_of(s),
                    i == 0 ? "10.9.0.1" : "10.200.0." + std::to_string(i), app(s),
                    {{"undermesh.io/netns", netns}, {"undermesh.io/cgroup", cgroup}});
  }

  std::string principal(unsigned service) const {
    const unsigned s = service % size_.services;
    return "cluster.local/ns/" + ns_of(s) + "/sa/" + app(s);
  }
  json::object policy(unsigned i) const {
    return i % 2 == 0 ? authorization(i, false) : network(i);
  }
  // Who may call a service: three others by identity, at its port; some by namespace; some deny a
  // block.
  json::object authorization(unsigned i, bool changed) const {
    const unsigned s = i % size_.services;
    json::object source;
    const bool denies = i % 10 == 8;
    if (denies)
      source = {{"ipBlocks", {"172.16." + std::to_string(i % 256) + ".0/24"}}};
    else if (i % 10 == 6)
      source = {{"namespaces", {ns_of(s), ns(i % namespaces())}}};
    else
      source = {
          {"principals", {principal(s + 1), principal(s + 7), principal(s + (changed ? 12 : 11))}}};
    return object("AuthorizationPolicy", "security.istio.io/v1", ns_of(s),
                  "authz-" + std::to_string(i),
                  {{"selector", {{"matchLabels", {{"app", app(s)}}}}},
                   {"action", denies ? "DENY" : "ALLOW"},
                   {"rules",
                    {{{"from", {{{"source", std::move(source)}}}},
                      {"to", {{{"operation", {{"ports", {"8080"}}}}}}}}}}});
  }
  json::object network(unsigned i) const {
    const unsigned s = i % size_.services;
    json::array from;
    if (i % 10 == 9)
      from = {{{"ipBlock", {{"cidr", "0.0.0.0/0"}, {"except", {"10.0.0.0/8", "172.16.0.0/12"}}}}}};
    else if (i % 10 == 7)
      from = {{{"namespaceSelector", {{"matchLabels", {{"tier", "front"}}}}},
               {"podSelector", {{"matchLabels", {{"app", app(s + 3)}}}}}}};
    else
      from = {{{"podSelector", {{"matchLabels", {{"app", app(s + namespaces())}}}}}},
              {{"namespaceSelector",
                {{"matchLabels", {{"kubernetes.io/metadata.name", ns(i % namespaces())}}}}}}};
    return object(
        "NetworkPolicy", "networking.k8s.io/v1", ns_of(s), "net-" + std::to_string(i),
        {{"podSelector", {{"matchLabels", {{"app", app(s)}}}}},
         {"policyTypes", {"Ingress"}},
         {"ingress",
          {{{"from", std::move(from)}, {"ports", {{{"protocol", "TCP"}, {"port", 8080}}}}}}}});
  }

  void write(const std::string& name, json::array items) {
    const json::object list = {{"apiVersion", "v1"}, {"kind", "List"}, {"items", std::move(items)}};
    const std::string path = directory_ + "/" + name + ".json";
    std::ofstream(path + "~") << list << std::flush;
    fs::rename(path + "~", path);
  }

  Size size_;
  std::string directory_;
};

// --- what is around the node

class QuietPeer final : public control::Peer {
 public:
  bool connected = false;
  std::uint64_t bytes = 0;
  std::deque<feed::HoldMessage> enrolments;  // of meshhold alone
  bool is_connected() const override { return connected; }
  std::uint64_t pid() const override { return 1; }
  void send(std::string_view payload, feed::Fds) override {
    bytes += payload.size();
    if (payload.size() != sizeof(feed::HoldMessage)) return;
    auto message = feed::parse_hold_message(payload);
    if (message && message.value().type == feed::HoldType::kEnrol)
      enrolments.push_back(message.value());
  }
};

class QuietMachine final : public control::Machine {
 public:
  std::vector<IpAddress> node_addresses() override { return {IpAddress::v4(10, 0, 0, 1)}; }
  Result<UniqueFd> open_netns(const std::string& path) override {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return errno_error(errno, "open " + path);
    return fd;
  }
  Result<std::vector<IpAddress>> addresses_in(int) override { return std::vector<IpAddress>(); }
  Result<std::vector<std::uint64_t>> look_at_cgroup(const std::string&) override {
    return std::vector<std::uint64_t>();
  }
  std::optional<bool> is_populated(const std::string&) override { return true; }
  std::vector<std::string> sandbox_groups() override { return {}; }
  Result<> remove_cgroup(const std::string&) override { return success(); }
  void watch_cgroup(const std::string&) override {}
  void unwatch_cgroup(const std::string&) override {}
};

// Tells when apply() returned last.
class TimedDatapath final : public datapath::Datapath {
 public:
  explicit TimedDatapath(datapath::Datapath& inner) : inner_(inner) {}
  Clock::time_point applied{};
  Clock::duration applying{};
  unsigned applies = 0;

  Result<> attach_mesh(const std::string& cgroup) override { return inner_.attach_mesh(cgroup); }
  Result<std::map<datapath::WorkloadId, Error>> apply(const datapath::State& state) override {
    const auto began = Clock::now();
    auto result = inner_.apply(state);
    applied = Clock::now();
    applying += applied - began;
    ++applies;
    return result;
  }
  const datapath::Misfits& misfits() const override { return inner_.misfits(); }
  const std::map<datapath::WorkloadId, std::string>& uncovered() const override {
    return inner_.uncovered();
  }
  Result<std::vector<datapath::Difference>> audit(
      const datapath::EnrolledWorkload& workload) override {
    return inner_.audit(workload);
  }
  Result<std::vector<datapath::Difference>> audit_mesh() override { return inner_.audit_mesh(); }
  Result<> send_canary(const datapath::EnrolledWorkload& workload, Clock::time_point now) override {
    return inner_.send_canary(workload, now);
  }
  std::map<datapath::WorkloadId, Result<>> take_canaries(Clock::time_point now) override {
    return inner_.take_canaries(now);
  }
  Result<> end_forbidden(const datapath::State& state) override {
    return inner_.end_forbidden(state);
  }
  Result<> end_removed(const datapath::State& state) override { return inner_.end_removed(state); }
  Result<std::vector<datapath::Flow>> take_flows() override { return inner_.take_flows(); }
  Result<std::vector<datapath::Flow>> open_flows(const datapath::State& state) override {
    return inner_.open_flows(state);
  }
  Result<std::vector<datapath::UdpFlow>> udp_flows() override { return inner_.udp_flows(); }
  Result<datapath::Counters> counters() override { return inner_.counters(); }
  Result<> forget_policies_but(const std::set<std::uint32_t>& numbers) override {
    return inner_.forget_policies_but(numbers);
  }
  Result<datapath::State> adopt() override { return inner_.adopt(); }
  Result<> switch_fast_path(bool on) override { return inner_.switch_fast_path(on); }
  const std::string& why_fast_path_stopped() const override {
    return inner_.why_fast_path_stopped();
  }
  Result<> start_fast_path_test(Clock::time_point now) override {
    return inner_.start_fast_path_test(now);
  }
  std::optional<Result<>> take_fast_path_test(Clock::time_point now) override {
    return inner_.take_fast_path_test(now);
  }
  Result<> let_settled_join(const datapath::State& state) override {
    return inner_.let_settled_join(state);
  }
  Result<UniqueFd> heartbeat_map() override { return inner_.heartbeat_map(); }

 private:
  datapath::Datapath& inner_;
};

// A node with its store and the kernel's maps; what it is destroyed leaves, the next one adopts.
class Meshd {
 public:
  Meshd(const std::string& state_dir, const datapath::Options& options,
        const std::string& mesh_cgroup, const std::map<std::string, std::uint64_t>& cookies)
      : cookies_(cookies),
        files_(control::posix_files()),
        store_(*files_, state_dir, Random(1), [] { return "2026-01-01T00:00:00Z"; }),
        numbers_(*files_, state_dir + "/ids.json", IpBlock::parse("10.97.0.0/16").value()),
        kernel_(must(datapath::open_kernel_datapath(options))),
        datapath_(*kernel_),
        fast_path_(datapath_, *files_, state_dir + "/fastpath") {
    must(kernel_->attach_mesh(mesh_cgroup));
    node_.emplace(
        control::NodeOptions{"bench", "node", "", ""},
        control::NodeParts{store_, numbers_, datapath_, machine_, hold_, proxy_, fast_path_},
        config::CompileOptions());
  }

  // Until the kernel has everything, the proxied services among it.
  json::object load() {
    const auto began = Clock::now();
    must(node_->start(began));
    const auto started = Clock::now();
    hold_.connected = true;
    node_->hold_events().on_connected();
    enrol();
    const auto enrolled = Clock::now();
    proxy_.connected = true;
    node_->proxy_events().on_connected();
    const auto told = Clock::now();
    acknowledge();
    const auto status = node_->status(Clock::now());
    for (const auto* texts : {&status.snapshot.problems, &status.reasons})
      if (!texts->empty() && !texts->front().starts_with("meshproxy")) fail(texts->front());
    return {{"start_s", rounded(seconds(started - began))},
            {"enrol_s", rounded(seconds(enrolled - started))},
            {"tell_proxy_s", rounded(seconds(told - enrolled))},
            {"acknowledge_s", rounded(seconds(Clock::now() - told))},
            {"load_s", rounded(seconds(Clock::now() - began))},
            {"of_it_apply_s", rounded(seconds(datapath_.applying))}};
  }
  // Returns the milliseconds until the kernel had it; then the proxy hears of it and acknowledges.
  double change() {
    const unsigned before = datapath_.applies;
    const auto began = Clock::now();
    node_->on_store_changed(began);
    if (datapath_.applies == before) fail("a change of a file brought nothing to the kernel");
    const double ms = seconds(datapath_.applied - began) * 1000;
    acknowledge();
    return ms;
  }
  double tick() {
    const auto began = Clock::now();
    node_->tick(began, 0);
    return seconds(Clock::now() - began) * 1000;
  }
  std::uint64_t writes() { return must(kernel_->counters()).totals.at("map_entries_written"); }
  const config::Snapshot& snapshot() const { return *node_->snapshot(); }
  datapath::Datapath& kernel() { return *kernel_; }

 private:
  void enrol() {
    std::map<std::uint32_t, std::string> names;
    for (const auto& workload : node_->workloads().workloads) names[workload.id] = workload.name;
    while (!hold_.enrolments.empty()) {
      feed::HoldMessage message = hold_.enrolments.front();
      hold_.enrolments.pop_front();
      const std::string name = names[message.workload];
      if (!cookies_.contains(name)) continue;  // the gateway
      message.type = feed::HoldType::kEnrolled;
      message.netns_cookie = cookies_.at(name);
      message.families = feed::kHasFamily4;
      must(node_->hold_events().on_frame(feed::as_bytes(message), {}));
    }
    node_->hold_events().on_drained();
  }
  void acknowledge() {
    const json::object ack = {{"type", feed::kAck}, {"version", node_->version()}};
    must(node_->proxy_events().on_frame(json::serialize(ack), {}));
  }

  const std::map<std::string, std::uint64_t>& cookies_;
  std::unique_ptr<control::Files> files_;
  control::Store store_;
  control::Numbers numbers_;
  std::unique_ptr<datapath::Datapath> kernel_;
  TimedDatapath datapath_;
  control::FastPathSwitch fast_path_;
  QuietMachine machine_;
  QuietPeer hold_, proxy_;
  std::optional<control::Node> node_;
};

// --- figures

json::object distribution(std::vector<double> values) {
  if (values.empty()) fail("nothing was measured");
  std::ranges::sort(values);
  const auto at = [&](double share) {
    return rounded(
        values[static_cast<std::size_t>(share * static_cast<double>(values.size() - 1))]);
  };
  return {{"median", at(0.5)}, {"p99", at(0.99)}, {"largest", at(1)}, {"changes", values.size()}};
}

// /proc/self/fdinfo: from kernel 6.4 on what is really used.
std::uint64_t memory_of(int fd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("memlock:")) return std::stoull(line.substr(8));
  return 0;
}

std::uint64_t memory_of_sets(int fd, std::uint64_t& sets) {
  std::uint64_t key = 0, next = 0, bytes = 0;
  std::set<std::uint32_t> seen;
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &key) {
    key = next;
    std::uint32_t id = 0;
    if (::bpf_map_lookup_elem(fd, &key, &id) != 0 || !seen.insert(id).second) continue;
    UniqueFd set(::bpf_map_get_fd_by_id(id));
    if (set) bytes += memory_of(set.get());
  }
  sets = seen.size();
  return bytes;
}

json::object map_memory(const std::string& pin_dir) {
  json::object by_map;
  std::uint64_t total = 0, sets = 0;
  for (const auto& pin : fs::recursive_directory_iterator(pin_dir)) {
    if (!pin.is_regular_file() || !pin.path().parent_path().filename().string().starts_with("maps"))
      continue;
    UniqueFd fd(::bpf_obj_get(pin.path().c_str()));
    if (!fd) continue;
    std::uint64_t bytes = memory_of(fd.get());
    if (pin.path().filename() == "um_sets") bytes += memory_of_sets(fd.get(), sets);
    total += bytes;
    if (bytes >= 1U << 20U) by_map[pin.path().filename().string()] = bytes >> 10U;
  }
  return {{"total_kb", total >> 10U}, {"policy_sets", sets}, {"over_1mb_kb", std::move(by_map)}};
}

std::uint64_t resident_kb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:")) return std::stoull(line.substr(6));
  return 0;
}

double cpu_us() {
  timespec spent{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
  return static_cast<double>(spent.tv_sec) * 1e6 + static_cast<double>(spent.tv_nsec) / 1e3;
}

// CPU microseconds of a connect and the close, at the client's end; below 0: refused.
double connect_cost(const Cgroup* group, const NetNs& client, const std::string& to) {
  return test::in_child(group, &client, [&] {
    constexpr int kRounds = 7, kConnects = 300;
    std::vector<double> rounds;
    for (int round = 0; round < kRounds; ++round) {
      const double began = cpu_us();
      for (int i = 0; i < kConnects; ++i) {
        const int fd = test::dial(to);
        if (fd < 0) return static_cast<double>(fd);
        const linger reset{1, 0};  // no TIME_WAIT: ports do not run out
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        ::close(fd);
      }
      rounds.push_back((cpu_us() - began) / kConnects);
    }
    std::ranges::sort(rounds);
    return rounds[kRounds / 2];
  });
}

json::object connect_costs(const Cgroup& group, const Cgroup& outside, const NetNs& client,
                           const NetNs& server) {
  const std::string port = ":" + std::to_string(kPort);
  const UniqueFd listener = server.listen(kTarget + port, "", 4096);
  const test::Child acceptor(&outside, nullptr, [&] {
    for (;;) ::close(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  });
  json::object costs;
  const auto measure = [&](const char* name, const Cgroup& from, const std::string& to) {
    const double us = connect_cost(&from, client, to + port);
    if (us < 0)
      fail(std::string("connect ") + name + ": errno " + std::to_string(static_cast<int>(-us)));
    costs[name] = rounded(us);
  };
  measure("no_mesh_us", outside, kTarget);
  measure("to_endpoint_us", group, kTarget);
  measure("to_service_us", group, World::target_service());
  return costs;
}

// --- all of it

Size parse_size(int count, char** arguments) {
  Size size;
  unsigned* fields[] = {&size.services, &size.endpoints, &size.policies, &size.clients,
                        &size.changes};
  if (count != 6) fail("usage: bench_scale SERVICES ENDPOINTS POLICIES CLIENTS CHANGES");
  for (std::size_t i = 0; i < std::size(fields); ++i) {
    const std::string_view text = arguments[i + 1];
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), *fields[i]);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || *fields[i] == 0)
      fail("not a number above 0: " + std::string(text));
  }
  if (size.endpoints <= size.changes || size.services > 60'000 || size.endpoints > 1'000'000)
    fail("needs more endpoints than changes, at most 60000 services and 1000000 endpoints");
  return size;
}

std::string scratch_directory() {
  if (::unshare(CLONE_NEWNS) != 0) fail("unshare: needs root");
  ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  char name[] = "/tmp/undermesh-bench-XXXXXX";
  if (::mkdtemp(name) == nullptr || ::mount("tmpfs", name, "tmpfs", 0, nullptr) != 0)
    fail("mount a tmpfs");
  return name;
}

json::object run(const Size& size, const std::string& scratch) {
  std::vector<NetNs> namespaces;
  std::vector<Cgroup> groups;
  std::map<std::string, std::uint64_t> cookies;
  const Cgroup mesh_group = Cgroup::create("mesh"), outside = Cgroup::create("outside");
  for (unsigned i = 0; i < size.clients; ++i) {
    namespaces.push_back(NetNs::create());
    groups.push_back(Cgroup::create("client-" + std::to_string(i)));
    cookies["client-" + std::to_string(i)] = namespaces.back().cookie();
  }
  const NetNs server = NetNs::create();
  join_veth(namespaces[0], "10.9.0.1/24", server, std::string(kTarget) + "/24");
  World world(size, scratch + "/state/objects");
  world.write_all(namespaces, groups);

  datapath::Options options;
  options.pin_dir = scratch + "/bpf/pins";
  fs::create_directory(scratch + "/bpf");
  must(datapath::ensure_bpffs(scratch + "/bpf"));
  std::optional<Meshd> meshd(std::in_place, scratch + "/state", options, mesh_group.path(),
                             cookies);
  json::object figures = {{"services", size.services},
                          {"endpoints", size.endpoints},
                          {"policies", size.policies},
                          {"enrolled", size.clients}};
  figures["first_load"] = meshd->load();
  figures["first_load"].as_object()["map_entries_written"] = meshd->writes();
  if (meshd->snapshot().workloads.size() < size.endpoints)
    fail("endpoints are missing in the snapshot");

  std::vector<double> times, writes;
  const auto measure = [&](const char* name, unsigned changes, auto change) {
    times.clear(), writes.clear();
    for (unsigned i = 0; i < changes; ++i) {
      const auto before = meshd->writes();
      change(i);
      times.push_back(meshd->change());
      writes.push_back(static_cast<double>(meshd->writes() - before));
    }
    figures[name] = {{"to_kernel_ms", distribution(times)},
                     {"map_entries_written", distribution(writes)}};
  };
  measure("endpoint_change", size.changes, [&](unsigned i) { world.write_endpoint(i, true); });
  measure("policy_change", std::max(1U, size.changes / 10),
          [&](unsigned i) { world.write_policy(i % 2 == 0); });
  figures["tick_ms"] = rounded(std::min({meshd->tick(), meshd->tick(), meshd->tick()}));
  figures["maps"] = map_memory(options.pin_dir);
  figures["connect"] = connect_costs(groups[0], outside, namespaces[0], server);
  figures["resident_kb"] = resident_kb();
  meshd.reset();
  meshd.emplace(scratch + "/state", options, mesh_group.path(), cookies);
  figures["restart"] = meshd->load();
  meshd.reset();
  must(datapath::disable_all(options.pin_dir));
  return figures;
}

}  // namespace
}  // namespace mesh::bench

int main(int count, char** arguments) {
  using namespace mesh::bench;
  std::string scratch;
  int failed = 0;
  try {
    const Size size = parse_size(count, arguments);
    scratch = scratch_directory();
    std::puts(boost::json::serialize(run(size, scratch)).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_scale: %s\n", error.what());
    failed = 1;
  }
  ::umount2((scratch + "/bpf").c_str(), MNT_DETACH);
  ::umount2(scratch.c_str(), MNT_DETACH);
  ::rmdir(scratch.c_str());
  return failed;
}
