// What recompile() makes of changes, against what compile() makes of the same objects.
#include <gmock/gmock.h>

#include <algorithm>
#include <random>

#include "config/object.h"
#include "config/objects.h"
#include "tests/support/policy_cases.h"

namespace mesh::config {
namespace {

namespace json = boost::json;
using policy_cases::Case;
using policy_cases::Generator;

constexpr unsigned kWorlds = 120;
constexpr int kSteps = 60;

std::vector<std::string> texts_of(const std::vector<Problem>& problems) {
  std::vector<std::string> texts;
  for (const Problem& problem : problems) texts.push_back(problem.to_string());
  return texts;
}

// Workloads change most; what they concern, and what has nothing to do with them, now and then.
class World {
 public:
  explicit World(unsigned seed) : seed_(seed), random_(seed) {
    for (const ObjectPtr& object : generated()) put(object->tree);
    options_.node_addresses = {IpAddress::parse("10.0.0.1").value()};
    if (pick(2)) options_.service_range = IpBlock::parse("10.5.0.0/24").value();
    Workload gateway;
    gateway.name = {"books", "gateway"};
    gateway.labels = {{"app", "page"}};
    gateway.addresses = options_.node_addresses;
    if (pick(2)) options_.gateway_workload = std::make_shared<const Workload>(gateway);
    for (int i = 0; i < 4; ++i) change_service();
  }
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_()) % n; }
  const CompileOptions& options() const { return options_; }

  // Sorted by key; what did not change is the same object.
  std::vector<ObjectPtr> objects() const {
    std::vector<ObjectPtr> objects;
    for (const auto& [key, object] : objects_) objects.push_back(object);
    return objects;
  }
  std::string change() {
    if (pick(15)) return change_workload();
    switch (pick(5)) {
      case 0:
        return change_service();
      case 1:
        return change_rule();
      case 2:
        return change_entry();
      case 3:
        return change_slice();
      default:
        return change_other();
    }
  }

 private:
  std::vector<ObjectPtr> generated() {
    return Generator(seed_ * 1000 + pick(1000)).world().objects();
  }
  std::string choose(std::initializer_list<const char*> words) {
    return *(words.begin() + pick(static_cast<unsigned>(words.size())));
  }
  void put(json::object tree) {
    auto object = std::make_shared<const Object>(make_object(std::move(tree)).value());
    objects_[object->key] = object;
  }
  static json::object object(const char* kind, const char* version, const std::string& ns,
                             const std::string& name, json::object spec) {
    return {{"apiVersion", version},
            {"kind", kind},
            {"metadata", {{"name", name}, {"namespace", ns}, {"labels", json::object()}}},
            {"spec", std::move(spec)}};
  }

  std::string change_workload() {
    const std::string name = "w" + std::to_string(pick(8));
    std::string ns = choose({"books", "shop", "bank"});
    for (const auto& [key, object] : objects_)
      if (key.kind == "WorkloadEntry" && key.name == name) ns = key.ns;
    const ObjectKey key{"WorkloadEntry", ns, name};
    if (pick(5) == 0) {
      objects_.erase(key);
      return "removed " + name;
    }
    json::object entry = object(
        "WorkloadEntry", "networking.istio.io/v1", ns, name,
        {{"address", pick(25) ? "10.77.1." + std::to_string(10 * (name.back() - '0') + pick(3))
                              : choose({"10.5.0.1", "10.96.0.1", "10.0.0.1", "10.77.1.11"})},
         {"labels", {{"app", choose({"page", "db", "cache"})}}},
         {"serviceAccount", choose({"default", "page"})},
         {"weight", static_cast<int>(1 + pick(2))}});
    if (pick(15)) entry["spec"].as_object()["ports"] = {{"http", pick(2) ? 80 : 81}};
    json::object annotations;
    if (pick(3) == 0) annotations["undermesh.io/mode"] = pick(12) ? "strict" : "odd";
    if (pick(3) == 0)
      annotations["undermesh.io/addresses"] = "fd77::" + name.substr(1) + std::to_string(pick(2));
    if (pick(2)) {
      annotations["undermesh.io/netns"] = "/run/netns/" + name;
      annotations["undermesh.io/cgroup"] =
          pick(12) ? "/cg/" + name : choose({"/cg", "/cg/w1", "/cg/w2/x"});
      if (pick(4) == 0) annotations["undermesh.io/enrolment"] = "disabled";
    }
    entry["metadata"].as_object()["annotations"] = std::move(annotations);
    put(std::move(entry));
    return "workload " + name;
  }
  std::string change_service() {
    const std::string name = choose({"one", "two", "three"}), ns = choose({"books", "shop"});
    if (pick(5) == 0) {
      objects_.erase({"Service", ns, name});
      return "removed service " + name;
    }
    json::object spec = {
        {"clusterIP",
         "10.96.0." + std::to_string(pick(12) ? (ns == "shop" ? 10U : 20U) + name.size() +
                                                    (name == "one" ? 5 : 0)
                                              : 1)},
        {"ports", json::array{{{"name", choose({"http", "tcp"})},
                               {"port", 80},
                               {"targetPort", pick(3) ? json::value(80) : json::value("http")}}}}};
    if (pick(5)) spec["selector"] = {{"app", choose({"page", "db"})}};
    put(object("Service", "v1", ns, name, std::move(spec)));
    return "service " + name;
  }
  std::string change_rule() {
    const std::string ns = choose({"books", "shop"});
    if (pick(2)) {
      objects_.erase({"DestinationRule", ns, "rule"});
      return "no rule";
    }
    put(object("DestinationRule", "networking.istio.io/v1", ns, "rule",
               {{"host", choose({"one", "two.shop", "*.svc.cluster.local"})},
                {"subsets", json::array{{{"name", "p"}, {"labels", {{"app", "page"}}}}}}}));
    return "rule";
  }
  std::string change_entry() {
    if (pick(2)) {
      objects_.erase({"ServiceEntry", "shop", "entry"});
      return "no entry";
    }
    json::object spec = {
        {"hosts", {"api.example.com"}},
        {"addresses", {"10.96.1.1"}},
        {"ports", json::array{{{"name", "tcp"}, {"number", 80}, {"protocol", "TCP"}}}},
        {"location", "MESH_INTERNAL"},
        {"resolution", "STATIC"}};
    if (pick(2))
      spec["workloadSelector"] = {{"labels", {{"app", "page"}}}};
    else
      spec["endpoints"] = json::array{{{"address", "10.77.1." + std::to_string(pick(80))}}};
    put(object("ServiceEntry", "networking.istio.io/v1", "shop", "entry", std::move(spec)));
    return "entry";
  }
  std::string change_slice() {
    if (pick(3) == 0) {
      objects_.erase({"EndpointSlice", "books", "one"});
      return "no slice";
    }
    json::object slice = object("EndpointSlice", "discovery.k8s.io/v1", "books", "one", {});
    slice.erase("spec");
    slice["metadata"].as_object()["labels"] = {{"kubernetes.io/service-name", "one"}};
    slice["addressType"] = "IPv4";
    slice["ports"] = json::array{{{"name", choose({"http", "tcp"})}, {"port", 80}}};
    slice["endpoints"] = json::array{
        json::object{{"addresses", json::array{"10.77.1." + std::to_string(pick(80))}}}};
    put(std::move(slice));
    return "slice";
  }
  std::string change_other() {
    if (pick(4) == 0) {
      options_.node_addresses = {IpAddress::parse(pick(2) ? "10.0.0.1" : "10.0.0.2").value()};
      return "node";
    }
    if (pick(2)) {
      json::object tree = object("Namespace", "v1", "", choose({"books", "shop"}), {});
      tree.erase("spec");
      tree["metadata"].as_object().erase("namespace");
      tree["metadata"].as_object()["annotations"] = {
          {"undermesh.io/mode", pick(2) ? "strict" : "permissive"}};
      put(std::move(tree));
      return "namespace";
    }
    std::erase_if(objects_, [](const auto& item) { return is_policy(item.first); });
    for (const ObjectPtr& object : generated())
      if (is_policy(object->key)) put(object->tree);
    if (pick(6) == 0)
      put(object("AuthorizationPolicy", "security.istio.io/v1", "books", "l7",
                 {{"selector", {{"matchLabels", {{"app", choose({"page", "db"})}}}}},
                  {"action", "DENY"},
                  {"rules",
                   json::array{{{"to", json::array{{{"operation", {{"methods", {"GET"}}}}}}}}}}}));
    return "policies";
  }

  unsigned seed_;
  std::mt19937 random_;
  CompileOptions options_;
  std::map<ObjectKey, ObjectPtr> objects_;
};

TEST(Recompile, SaysWhatCompileSays) {
  int followed = 0, others = 0, moved = 0;
  for (unsigned seed = 0; seed < kWorlds; ++seed) {
    World world(seed);
    std::vector<ObjectPtr> before = world.objects();
    Compiled last = compile(before, 1, world.options());
    std::string history;
    for (int step = 0; step < kSteps; ++step) {
      for (unsigned i = world.pick(3) ? 1 : 3; i > 0; --i) history += world.change() + "; ";
      const auto objects = world.objects();
      const auto version = static_cast<std::uint64_t>(step) + 2;
      const auto now = recompile(last, before, objects, version, world.options());
      if (!now) {
        ++others;
        last = compile(objects, version, world.options(), last.snapshot.get());
        before = objects;
        continue;
      }
      ++followed;
      // It lends its parts where they are the same.
      const Compiled expected = compile(objects, version, world.options(), now->snapshot.get());
      const Snapshot &a = *now->snapshot, &b = *expected.snapshot;
      const std::string where = "seed " + std::to_string(seed) + ": " + history;
      ASSERT_EQ(texts_of(now->problems), texts_of(expected.problems)) << where;
      ASSERT_TRUE(now->refused == expected.refused) << where;
      ASSERT_EQ(a.version, b.version);
      ASSERT_TRUE(a.workloads == b.workloads) << where;
      ASSERT_TRUE(a.workload_by_address == b.workload_by_address) << where;
      ASSERT_TRUE(a.workload_by_cgroup == b.workload_by_cgroup) << where;
      ASSERT_TRUE(a.services == b.services) << where;
      ASSERT_TRUE(a.service_by_address == b.service_by_address) << where;
      ASSERT_TRUE(a.external_names == b.external_names) << where;
      ASSERT_TRUE(a.clusters == b.clusters) << where;
      ASSERT_TRUE(a.client_clusters == b.client_clusters) << where;
      ASSERT_TRUE(a.client_hosts == b.client_hosts) << where;
      ASSERT_TRUE(a.virtual_services == b.virtual_services) << where;
      ASSERT_TRUE(a.tcp_routes == b.tcp_routes) << where;
      ASSERT_TRUE(a.mesh_hosts == b.mesh_hosts) << where;
      ASSERT_TRUE(a.gateway_servers == b.gateway_servers) << where;
      ASSERT_TRUE(a.policies == b.policies) << where;
      ASSERT_TRUE(a.network_policies == b.network_policies) << where;
      ASSERT_TRUE(a.policies_in == b.policies_in) << where;
      ASSERT_TRUE(a.network_policies_in == b.network_policies_in) << where;
      ASSERT_TRUE(a.namespaces == b.namespaces) << where;
      ASSERT_TRUE(a.node_addresses == b.node_addresses) << where;
      moved += a.clusters == last.snapshot->clusters ? 0 : 1;
      for (const auto& [name, cluster] : last.snapshot->clusters)
        if (const auto same = a.clusters.find(name); *same->second == *cluster)
          ASSERT_EQ(same->second, cluster) << where;
      for (const auto& [name, workload] : last.snapshot->workloads)
        if (const auto same = a.workloads.find(name);
            same != a.workloads.end() && *same->second == *workload)
          ASSERT_EQ(same->second, workload) << where;
      last = *now;
      before = objects;
    }
  }
  EXPECT_GT(followed, 300);
  EXPECT_GT(others, 300);
  EXPECT_GT(moved, 100) << "endpoints must have come and gone";
}

}  // namespace
}  // namespace mesh::config
