// What follows from a change alone, against what follows from nothing: the state that KernelStates
// keeps and mends is the one that it would compute anew, whatever changes.
#include <gmock/gmock.h>

#include <random>

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
      for (unsigned i = world.pick(3) ? 1 : 4; i > 0; --i) history += world.change() + "; ";
      snapshot = world.compile(snapshot.get());
      const auto clients = world.clients(*snapshot);
      const State followed = states_of_node.compute({*snapshot, acked.get(), current, clients});
      KernelStates anew(numbers);
      const State expected = anew.compute({*snapshot, acked.get(), current, clients});
      const std::string where = "seed " + std::to_string(seed) + ": " + history;
      ASSERT_EQ(followed.workloads, expected.workloads) << where;
      ASSERT_TRUE(followed.services == expected.services) << where;
      ASSERT_TRUE(followed.udp_services == expected.udp_services) << where;
      ASSERT_EQ(followed.slow_listeners, expected.slow_listeners) << where;
      ASSERT_TRUE(followed.peers == expected.peers) << where;
      ASSERT_TRUE(followed.blocks == expected.blocks) << where;
      ASSERT_TRUE(followed.sets == expected.sets) << where;
      ASSERT_TRUE(followed.refusals == expected.refusals) << where;
      states += followed.services == last.services && followed.sets == last.sets ? 0 : 1;
      for (const auto& [id, set] : followed.sets) rows += set.size();
      refusals += followed.refusals.size();
      last = followed;
      if (world.pick(4)) current = followed;  // else it could not be written
      if (world.pick(3) == 0) acked = snapshot;
      if (world.pick(20) == 0) acked = nullptr, current = State();  // all of it is lost
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

}  // namespace
}  // namespace mesh::control
