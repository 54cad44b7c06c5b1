// What follows from a change alone, against what follows from nothing: the state that KernelStates
// keeps and mends is the one that it would compute anew, whatever changes.
#include <gmock/gmock.h>

#include <random>

#include "config/objects.h"
#include "control/kernel_state.h"
#include "tests/support/memory_files.h"
#include "tests/support/policy_cases.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using datapath::State;
using policy_cases::Case;
using policy_cases::CaseWorkload;
using policy_cases::Generator;

constexpr unsigned kWorlds = 300;
constexpr int kChanges = 60;

// A world that changes step by step; every kind of input to the kernel's state does.
class ChangingWorld {
 public:
  explicit ChangingWorld(unsigned seed) : seed_(seed), random_(seed), world_(fresh()) {
    options_.node_addresses = {ip("10.0.0.1")};
    config::Workload gateway;
    gateway.name = {"istio-system", "gateway"};
    gateway.addresses = {ip("10.0.0.1")};
    options_.gateway_workload = std::make_shared<const config::Workload>(gateway);
    for (int i = 0; i < 4; ++i) change_service();
    for (const CaseWorkload& workload : world_.workloads)
      if (pick(2)) enrolled_.insert(workload.name);
  }

  // Says what it did.
  std::string change() {
    switch (pick(12)) {
      case 0:
      case 1:
      case 2:
        return change_workload();
      case 3:
        return remove_or_add_workload();
      case 4:
        return swap_addresses();
      case 5:
        return change_policy();
      case 6:
      case 7:
        return change_service();
      case 8:
        return change_slice();
      case 9:
        return change_route();
      case 10:
        return change_enrolment();
      default:
        return change_surroundings();
    }
  }
  config::SnapshotPtr compile(const config::Snapshot* previous) {
    auto objects = world_.objects();
    for (const auto& [key, tree] : others_)
      objects.push_back(std::make_shared<const config::Object>(config::make_object(tree).value()));
    return config::compile(objects, ++version_, options_, previous).snapshot;
  }
  // Some lag behind: of an entry that is another by now, or gone.
  std::vector<Client> clients(const config::Snapshot& snapshot) {
    std::vector<Client> clients;
    const auto add = [&](const config::WorkloadPtr& workload, std::uint32_t id) {
      datapath::EnrolledWorkload kernel;
      kernel.id = id;
      kernel.netns_cookie = 1000 + id;
      kernel.addresses = workload->addresses;
      kernel.bypasses_proxy = workload->bypasses_proxy || bypassing_.contains(workload->name.name);
      clients.push_back({kernel, workload});
    };
    if (is_gateway_enrolled_) add(options_.gateway_workload, 1);
    std::map<std::string, config::WorkloadPtr> now;
    for (const auto& [name, workload] : snapshot.workloads)
      if (enrolled_.contains(name.name)) now.emplace(name.name, workload);
    for (const auto& [name, workload] : last_)
      if (enrolled_.contains(name.name) && pick(5) == 0) now.insert_or_assign(name.name, workload);
    for (const auto& [name, workload] : now)
      add(workload,
          (renumbered_.contains(name) ? 20U : 10U) + static_cast<std::uint32_t>(name.back() - '0'));
    last_ = snapshot.workloads;
    return clients;
  }
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_()) % n; }

 private:
  static IpAddress ip(const char* text) { return IpAddress::parse(text).value(); }
  Case fresh() { return Generator(seed_ * 1000 + static_cast<unsigned>(random_() % 1000)).world(); }
  std::string ns() { return std::vector<std::string>{"books", "shop", "bank"}[pick(3)]; }
  std::string number(unsigned n) { return std::to_string(pick(n)); }

  std::string change_workload() {
    const unsigned i = pick(static_cast<unsigned>(world_.workloads.size()));
    Case other = fresh();
    for (CaseWorkload& candidate : other.workloads)
      if (candidate.name == world_.workloads[i].name) world_.workloads[i] = candidate;
    if (pick(3) == 0)
      world_.workloads[i].addresses[0] = "10." + number(3) + "." + number(3) + "." +
                                         std::to_string(20 + i);   // in other blocks, perhaps
    if (pick(6) == 0) world_.workloads[i].ns = "new" + number(3);  // that no object tells of
    return "workload " + world_.workloads[i].name;
  }
  std::string remove_or_add_workload() {
    if (!away_.empty() && pick(2)) {
      world_.workloads.push_back(away_.back());
      away_.pop_back();
      return "added " + world_.workloads.back().name;
    }
    if (world_.workloads.size() < 2) return "nothing";
    const auto at = world_.workloads.begin() + pick(static_cast<unsigned>(world_.workloads.size()));
    away_.push_back(*at);
    world_.workloads.erase(at);
    return "removed " + away_.back().name;
  }
  std::string swap_addresses() {
    auto& workloads = world_.workloads;
    const auto n = static_cast<unsigned>(workloads.size());
    const unsigned a = pick(n), b = pick(n);
    std::swap(workloads[a].addresses, workloads[b].addresses);
    return "swapped addresses of " + workloads[a].name + " and " + workloads[b].name;
  }
  std::string change_policy() {
    Case other = fresh();
    auto& policies = world_.policies;
    if (!policies.empty() && pick(3) == 0)
      policies.erase(policies.begin() + pick(static_cast<unsigned>(policies.size())));
    else if (!other.policies.empty() && !policies.empty() && pick(2))
      policies[pick(static_cast<unsigned>(policies.size()))] = other.policies.front();
    else if (!other.policies.empty())
      policies.push_back(other.policies.back());
    // Two of one name would be refused.
    for (std::size_t i = 0; i < policies.size(); ++i)
      policies[i]["metadata"].as_object()["name"] = "p" + std::to_string(i);
    return "policies";
  }
  json::object object(const char* kind, const char* version, const std::string& in,
                      const std::string& name, json::object spec, json::object labels = {}) {
    return {{"apiVersion", version},
            {"kind", kind},
            {"metadata", {{"name", name}, {"namespace", in}, {"labels", std::move(labels)}}},
            {"spec", std::move(spec)}};
  }
  std::string change_service() {
    const std::string name = "svc" + number(5);
    if (pick(6) == 0) {
      others_.erase("Service " + name);
      return "removed service " + name;
    }
    json::array ports;
    const char* kinds[] = {"http", "tcp", "http"};
    ports.push_back({{"name", kinds[pick(3)]}, {"port", pick(2) ? 80 : 81}, {"targetPort", 80}});
    if (pick(3) == 0)
      ports.push_back({{"name", "dns"}, {"port", pick(2) ? 53 : 80}, {"protocol", "UDP"}});
    json::object spec = {{"clusterIP", "10.96.0." + std::to_string(1 + pick(7))},
                         {"selector", {{"app", pick(2) ? "page" : "db"}}},
                         {"ports", std::move(ports)}};
    if (pick(4) == 0) spec["sessionAffinity"] = "ClientIP";
    json::object service = object("Service", "v1", ns_of_[name] = ns(), name, spec);
    if (name.back() % 2 == 0)
      service["metadata"].as_object()["annotations"] = {{"undermesh.io/fastpath", "disabled"}};
    others_["Service " + name] = std::move(service);
    return "service " + name;
  }
  std::string change_slice() {
    const std::string name = "svc" + number(5);
    json::array endpoints;
    for (unsigned i = pick(3); i > 0; --i)
      endpoints.push_back(json::object{{"addresses", json::array{"10.5.0." + number(9)}}});
    json::object slice = object("EndpointSlice", "discovery.k8s.io/v1", ns_of_[name], name, {},
                                {{"kubernetes.io/service-name", name}});
    slice["addressType"] = "IPv4";
    slice["ports"] = json::array{{{"name", "tcp"}, {"port", 80}}};
    slice["endpoints"] = std::move(endpoints);
    if (!ns_of_[name].empty()) others_["EndpointSlice " + name] = std::move(slice);
    return "slice of " + name;
  }
  std::string host() {
    const std::string name = "svc" + number(5);
    return name + "." + (ns_of_[name].empty() ? "books" : ns_of_[name]) + ".svc.cluster.local";
  }
  std::string change_route() {
    const std::string of = host();
    switch (pick(5)) {
      case 0:
        others_.erase(pick(2) ? "VirtualService vs" : "TCPRoute tr");
        return "no route";
      case 4: {
        const std::string from = "svc" + number(5), to = "svc" + number(5);
        json::object back = {{"name", to}, {"port", 80}};
        if (!ns_of_[to].empty()) back["namespace"] = ns_of_[to];
        others_["TCPRoute tr"] = object(
            "TCPRoute", "gateway.networking.k8s.io/v1",
            ns_of_[from].empty() ? "books" : ns_of_[from], "tr",
            {{"parentRefs", json::array{{{"group", ""}, {"kind", "Service"}, {"name", from}}}},
             {"rules", json::array{{{"backendRefs", json::array{std::move(back)}}}}}});
        return "TCPRoute of " + from;
      }
      case 1: {
        json::object match = {{"port", 80}};
        if (pick(2)) match["sourceLabels"] = {{"app", "page"}};
        others_["VirtualService vs"] = object(
            "VirtualService", "networking.istio.io/v1", ns(), "vs",
            {{"hosts", {of}},
             {"tcp",
              json::array{{{"match", json::array{match}},
                           {"route", json::array{{{"destination", {{"host", host()}}}}}}}}}});
        return "TCP route of " + of;
      }
      case 2:
        others_["VirtualService vs"] = object(
            "VirtualService", "networking.istio.io/v1", ns(), "vs",
            {{"hosts", {of}},
             {"http",
              json::array{{{"route", json::array{{{"destination", {{"host", host()}}}}}}}}}});
        return "HTTP route of " + of;
      default:
        others_["DestinationRule dr"] =
            object("DestinationRule", "networking.istio.io/v1", ns(), "dr",
                   {{"host", of},
                    {"subsets", json::array{{{"name", "one"}, {"labels", {{"tier", "front"}}}}}}});
        return "rule of " + of;
    }
  }
  std::string change_enrolment() {
    const std::string name = "w" + number(6);
    auto& set = pick(4) ? enrolled_ : pick(2) ? bypassing_ : renumbered_;
    if (set.erase(name) == 0) set.insert(name);
    if (pick(5) == 0) is_gateway_enrolled_ = !is_gateway_enrolled_;
    return "enrolment of " + name;
  }
  std::string change_surroundings() {
    if (pick(2)) {
      world_.namespaces[ns()] = {{"team", pick(2) ? "red" : "blue"}};
      return "namespace";
    }
    options_.node_addresses = {ip("10.0.0.1")};
    if (pick(2)) options_.node_addresses.push_back(ip(pick(2) ? "10.77.0.1" : "192.0.2.1"));
    return "this node's addresses";
  }

  unsigned seed_;
  std::mt19937 random_;
  Case world_;
  config::CompileOptions options_;
  std::map<std::string, json::object> others_;
  std::map<std::string, std::string> ns_of_;
  std::vector<CaseWorkload> away_;
  std::set<std::string> enrolled_, bypassing_, renumbered_;
  decltype(config::Snapshot::workloads) last_;
  bool is_gateway_enrolled_ = true;
  std::uint64_t version_ = 0;
};

void expect_same(const State& followed, const State& expected) {
  ASSERT_EQ(followed.workloads, expected.workloads);
  ASSERT_TRUE(followed.services == expected.services);
  ASSERT_TRUE(followed.udp_services == expected.udp_services);
  ASSERT_EQ(followed.slow_listeners, expected.slow_listeners);
  ASSERT_TRUE(followed.peers == expected.peers);
  ASSERT_TRUE(followed.blocks == expected.blocks);
  ASSERT_TRUE(followed.sets == expected.sets);
  ASSERT_TRUE(followed.refusals == expected.refusals);
}

TEST(KernelStates, FollowEveryChangeAsIfComputedFromNothing) {
  std::size_t rows = 0, refusals = 0, states = 0;
  State last;
  for (unsigned seed = 0; seed < kWorlds; ++seed) {
    test::MemoryFiles files;
    Numbers numbers(files, "/ids.json", IpBlock::parse("10.78.0.0/16").value());
    ChangingWorld world(seed);
    KernelStates states_of_node(numbers);
    State current;
    config::SnapshotPtr snapshot, acked;
    std::string history;
    for (int step = 0; step < kChanges; ++step) {
      constexpr unsigned kAtOnce[] = {0, 1, 1, 1, 1, 4};
      for (unsigned i = kAtOnce[world.pick(6)]; i > 0; --i) history += world.change() + "; ";
      snapshot = world.compile(snapshot.get());
      const auto clients = world.clients(*snapshot);
      const State followed = states_of_node.compute({*snapshot, acked.get(), current, clients});
      KernelStates anew(numbers);
      const State expected = anew.compute({*snapshot, acked.get(), current, clients});
      const std::string where = "seed " + std::to_string(seed) + ": " + history;
      SCOPED_TRACE(where);
      ASSERT_NO_FATAL_FAILURE(expect_same(followed, expected));
      states += followed.services == last.services && followed.sets == last.sets ? 0 : 1;
      for (const auto& [id, set] : followed.sets) rows += set.size();
      refusals += followed.refusals.size();
      last = followed;
      if (world.pick(4)) current = followed;  // else it could not be written
      if (world.pick(3) == 0) acked = snapshot;
      const unsigned lost = world.pick(30);  // of either, or of both
      if (lost == 0 || lost == 1) acked = nullptr;
      if (lost == 1 || lost == 2) current = State();
      if (states_of_node.take_ended())
        for (const Space space : {Space::kSet, Space::kClass, Space::kService})
          numbers.keep_only(space, [&](auto n) { return states_of_node.uses(space, n); });
      for (const Space space : {Space::kSet, Space::kClass, Space::kService})
        for (const auto& [name, number] : numbers.names(space))
          ASSERT_TRUE(anew.uses(space, number)) << name << " is nobody's; " << where;
    }
  }
  // The generator must not have run dry.
  EXPECT_GT(states, kWorlds * kChanges / 3);
  EXPECT_GT(rows, 20'000U);
  EXPECT_GT(refusals, 100U);
}

// --- what snapshots share

// Of many services, so that all that is kept is in many blocks (base/shared_map.h); its workloads
// come, go and move, and recompile() leaves alone what they are not behind.
class LargeWorld {
 public:
  LargeWorld() {
    for (unsigned i = 0; i < kServices; ++i) put_service(i), put_workload(i);
    for (unsigned i = 0; i < 3; ++i)
      put(object("WorkloadEntry", "networking.istio.io/v1", "c" + std::to_string(i),
                 {{"address", "10.70.0." + std::to_string(1 + i)}}));
    for (unsigned i = 0; i < kServices; i += 4)
      put(object("AuthorizationPolicy", "security.istio.io/v1", "p" + std::to_string(i),
                 {{"selector", {{"matchLabels", {{"app", app(i)}}}}},
                  {"action", "DENY"},
                  {"rules", json::array{json::object()}}}));
  }
  static constexpr unsigned kServices = 400;

  unsigned pick(unsigned n) { return static_cast<unsigned>(random_()) % n; }
  void move_workload() {
    const unsigned i = pick(kServices);
    if (pick(4) == 0)
      objects_.set({"WorkloadEntry", "default", "w" + std::to_string(i)}, {});
    else
      put_workload(i);
  }
  void change_service() { put_service(pick(kServices)); }
  void change_enrolment() { enrolled_ = pick(8); }

  // True: it shares what stayed with the one before.
  bool compile() {
    std::optional<config::Compiled> followed;
    if (compiled_.snapshot)
      followed = config::recompile(compiled_, compiled_of_, objects_, ++version_, {});
    compiled_ = followed ? *followed
                         : config::compile({objects_.begin(), objects_.end()}, version_, {},
                                           compiled_.snapshot.get());
    compiled_of_ = objects_;
    return followed.has_value();
  }
  const config::SnapshotPtr& snapshot() const { return compiled_.snapshot; }
  std::vector<Client> clients() const {
    std::vector<Client> clients;
    for (unsigned i = 0; i < 3; ++i) {
      if ((enrolled_ & (1U << i)) == 0) continue;
      const auto& workload = snapshot()->workloads.at({"default", "c" + std::to_string(i)});
      datapath::EnrolledWorkload kernel;
      kernel.id = 10 + i;
      kernel.netns_cookie = 1000 + i;
      kernel.addresses = workload->addresses;
      clients.push_back({kernel, workload});
    }
    return clients;
  }

 private:
  static std::string app(unsigned i) { return "a" + std::to_string(i); }
  static std::string numbered(const char* network, unsigned i) {
    return network + std::to_string(i / 200) + "." + std::to_string(1 + i % 200);
  }
  static json::object object(const char* kind, const char* version, const std::string& name,
                             json::object spec) {
    return {{"apiVersion", version},
            {"kind", kind},
            {"metadata", {{"name", name}, {"namespace", "default"}}},
            {"spec", std::move(spec)}};
  }
  void put(json::object tree) {
    auto made =
        std::make_shared<const config::Object>(config::make_object(std::move(tree)).value());
    objects_.set(made->key, {made});
  }
  void put_workload(unsigned i) {
    put(object("WorkloadEntry", "networking.istio.io/v1", "w" + std::to_string(i),
               {{"address", numbered(pick(2) ? "10.77." : "10.78.", i)},
                {"weight", pick(2) ? 1 : 2},
                {"labels", {{"app", app(pick(3) ? i : pick(kServices))}}}}));
  }
  void put_service(unsigned i) {
    json::array ports = {{{"name", pick(2) ? "http" : "tcp"}, {"port", 80}}};
    if (pick(5) == 0) ports.push_back({{"name", "dns"}, {"port", 53}, {"protocol", "UDP"}});
    json::object service = object("Service", "v1", "s" + std::to_string(i),
                                  {{"clusterIP", numbered("10.96.", i)},
                                   {"selector", {{"app", app(i)}}},
                                   {"ports", std::move(ports)}});
    if (pick(5) == 0)
      service["metadata"].as_object()["annotations"] = {{"undermesh.io/fastpath", "disabled"}};
    put(std::move(service));
  }

  std::mt19937 random_{1};
  config::Objects objects_, compiled_of_;
  config::Compiled compiled_;
  std::uint64_t version_ = 0;
  unsigned enrolled_ = 3;
};

TEST(KernelStates, FollowSnapshotsThatShareWhatStayed) {
  constexpr int kSteps = 200;
  test::MemoryFiles files;
  Numbers numbers(files, "/ids.json", IpBlock::parse("10.79.0.0/16").value());
  LargeWorld world;
  KernelStates states_of_node(numbers);
  State current, last;
  config::SnapshotPtr acked;
  int shared = 0, changed = 0;
  std::size_t refusals = 0;
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE(step);
    const unsigned what = world.pick(20);
    if (what == 0) world.change_service();
    if (what == 1) world.change_enrolment();
    if (what > 2) world.move_workload();
    const bool is_shared = world.compile();
    const auto clients = world.clients();
    const KernelInput input{*world.snapshot(), acked.get(), current, clients};
    const State followed = states_of_node.compute(input);
    ASSERT_NO_FATAL_FAILURE(expect_same(followed, KernelStates(numbers).compute(input)));
    std::size_t looks = 0;
    const auto same = [&](const auto& a, const auto& b) {
      ++looks;
      return a == b;
    };
    each_difference(last.services, followed.services, same,
                    [](const auto*, const auto*) { return true; });
    // Of a workload that moved: two services, each of a block; what the proxy has is new for all.
    shared += is_shared ? 1 : 0;
    changed += is_shared && what > 2 && looks != 0 && looks <= 2 * 64 ? 1 : 0;
    refusals += followed.refusals.size();
    last = followed;
    if (world.pick(4)) current = followed;
    if (world.pick(4) == 0) acked = world.snapshot();
    const unsigned lost = world.pick(40);
    if (lost == 0 || lost == 1) acked = nullptr;
    if (lost == 1 || lost == 2) current = State();
  }
  EXPECT_GT(shared, kSteps * 3 / 4);
  EXPECT_GT(changed, kSteps / 4);
  EXPECT_GT(refusals, 1000U);
}

}  // namespace
}  // namespace mesh::control
