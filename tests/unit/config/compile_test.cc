// What objects become together: endpoints, clusters, gateways, order, sharing.
#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::string service(std::string_view name, std::string_view more = "",
                    std::string_view ns = "default") {
  return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + std::string(name) +
         ", namespace: " + std::string(ns) + "}\nspec: {selector: {app: " + std::string(name) +
         "}, " + std::string(more.empty() ? "ports: [{name: http, port: 9080}]" : more) + "}\n";
}

std::string workload(std::string_view name, std::string_view address, std::string_view labels,
                     std::string_view more = "", std::string_view ns = "default") {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) + "}\nspec: {address: '" +
         std::string(address) + "', labels: {" + std::string(labels) + "}" + std::string(more) +
         "}\n";
}

std::string rule(std::string_view name, std::string_view spec, std::string_view ns = "default",
                 std::string_view created = "") {
  return "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) +
         (created.empty() ? "" : ", creationTimestamp: '" + std::string(created) + "'") +
         "}\nspec: {" + std::string(spec) + "}\n";
}

std::vector<std::string> addresses(const ClusterPtr& cluster) {
  std::vector<std::string> texts;
  if (!cluster) return {"no cluster"};
  for (const Endpoint& endpoint : cluster->endpoints) texts.push_back(endpoint.address.to_string());
  return texts;
}

constexpr std::string_view kReviews = "reviews.default.svc.cluster.local";

const std::string kThreeVersions = service("reviews") +
                                   workload("r1", "10.77.0.1", "app: reviews, version: v1") +
                                   workload("r2", "10.77.0.2", "app: reviews, version: v2") +
                                   workload("r3", "10.77.0.3", "app: reviews, version: v3") +
                                   workload("elsewhere", "10.77.0.9", "app: reviews", "", "other") +
                                   workload("ratings", "10.77.0.4", "app: ratings");

TEST(Compile, SelectsWorkloadsOfTheSameNamespace) {
  auto compiled = compile_text(kThreeVersions);
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_THAT(addresses(compiled.snapshot->find_cluster("default", kReviews, 9080, "")),
              ElementsAre("10.77.0.1:9080", "10.77.0.2:9080", "10.77.0.3:9080"));
  EXPECT_EQ(compiled.snapshot->find_cluster("default", kReviews, 80, ""), nullptr);
  EXPECT_EQ(compiled.snapshot->find_cluster("default", kReviews, 9080, "v1"), nullptr);
}

TEST(Compile, MakesAClusterOfEachSubset) {
  auto compiled = compile_text(kThreeVersions + rule("r",
                                                     "host: reviews, subsets: [{name: v2, labels: "
                                                     "{version: v2}}, {name: v9, labels: "
                                                     "{version: v9}}, {name: all}]"));
  const Snapshot& snapshot = *compiled.snapshot;
  auto v2 = snapshot.find_cluster("default", kReviews, 9080, "v2");
  EXPECT_THAT(addresses(v2), ElementsAre("10.77.0.2:9080"));
  EXPECT_EQ(v2->name, "outbound|9080|v2|reviews.default.svc.cluster.local");
  EXPECT_THAT(addresses(snapshot.find_cluster("default", kReviews, 9080, "v9")), IsEmpty());
  EXPECT_THAT(addresses(snapshot.find_cluster("default", kReviews, 9080, "all")), SizeIs(3));
}

std::string local(const std::string& name, const std::string& group, const std::string& address,
                  const std::string& more = "") {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: " +
         name + "\n  annotations: {undermesh.io/netns: /run/netns/" + name +
         ", undermesh.io/cgroup: " + group + more + "}\nspec: {address: '" + address + "'}\n";
}

TEST(Compile, TwoWorkloadsDoNotShareAControlGroup) {
  const std::string one = local("a", "/cg/a/b", "10.77.0.1");
  const auto said_of = [&](const std::string& group, const std::string& more = "") {
    const auto compiled = compile_text(one + local("z", group, "10.77.0.2", more));
    EXPECT_EQ(compiled.snapshot->workloads.size(), compiled.problems.empty() ? 2U : 1U);
    EXPECT_TRUE(compiled.snapshot->workloads.contains({"default", "a"})) << "it was first";
    return texts_of(compiled.problems);
  };
  const std::string place =
      "error t.yaml:13: WorkloadEntry default/z: metadata.annotations[\"undermesh.io/cgroup\"]: "
      "is ";
  const std::string remedy = "; give each workload a group of its own, beside the other's";
  EXPECT_THAT(said_of("/cg/a/b"),
              ElementsAre(place + "already the control group of default/a" + remedy));
  EXPECT_THAT(said_of("/cg/a/b/c"),
              ElementsAre(place + "below /cg/a/b, the control group of default/a" + remedy));
  EXPECT_THAT(said_of("/cg"),
              ElementsAre(place + "above /cg/a/b, the control group of default/a" + remedy));
  for (const char* group : {"/cg/a/bc", "/cg/a/b-c", "/cg/a/c", "/cg/b", "/b"})
    EXPECT_THAT(said_of(group), IsEmpty()) << group;
  EXPECT_THAT(said_of("/cg/a/b", ", undermesh.io/enrolment: disabled"), IsEmpty());
}

TEST(Compile, AWorkloadHasNoAddressThatServicesAreGiven) {
  CompileOptions options;
  options.service_range = IpBlock::parse("10.78.0.0/16").value();
  for (const std::string& entry :
       {local("a", "/cg/a", "10.78.3.4"), workload("a", "10.78.3.4", "")})
    EXPECT_THAT(texts_of(compile_text(entry, options).problems),
                ElementsAre(HasSubstr("WorkloadEntry default/a: spec.address: 10.78.3.4 is of the "
                                      "block that services get their addresses from "
                                      "(10.78.0.0/16)")));
  EXPECT_THAT(texts_of(compile_text(local("a", "/cg/a", "10.79.0.1"), options).problems),
              IsEmpty());
}

TEST(Compile, AWorkloadOfThisMachineDoesNotHaveTheMachinesAddress) {
  CompileOptions options;
  options.node_addresses = {IpAddress::v4(10, 77, 0, 1)};
  EXPECT_THAT(texts_of(compile_text(local("a", "/cg/a", "10.77.0.1"), options).problems),
              ElementsAre(HasSubstr("spec.address: 10.77.0.1 is this machine's own address")));
  EXPECT_THAT(texts_of(compile_text(workload("a", "10.77.0.1", ""), options).problems), IsEmpty())
      << "a process beside the mesh may be an endpoint";
}

TEST(Compile, ResolvesTargetPorts) {
  std::string ports =
      "ports: [{name: http, port: 1, targetPort: 81}, {name: web, port: 2, targetPort: www}, "
      "{name: http-a, port: 3}]";
  auto compiled = compile_text(
      service("a", ports) + workload("w1", "10.0.0.1", "app: a") +
      workload("w2", "10.0.0.2", "app: a", ", ports: {http: 8081, www: 8082, web: 1}, weight: 5"));
  auto find = [&](std::uint16_t port) {
    return compiled.snapshot->find_cluster("default", "a.default.svc.cluster.local", port, "");
  };
  EXPECT_THAT(addresses(find(1)), ElementsAre("10.0.0.1:81", "10.0.0.2:8081"));
  EXPECT_THAT(addresses(find(2)), ElementsAre("10.0.0.2:8082"));
  EXPECT_THAT(addresses(find(3)), ElementsAre("10.0.0.1:3", "10.0.0.2:3"));
  EXPECT_EQ(find(1)->endpoints[1].weight, 5u);
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre("warning t.yaml:5: Service default/a: spec.ports: port 2: WorkloadEntry "
                          "default/w1 has no port named 'www' in spec.ports; it gets no traffic"));
}

TEST(Compile, TakesEndpointsFromSlices) {
  auto compiled = compile_text(service("a", "ports: [{name: http, port: 80}]") +
                               workload("w", "10.0.0.1", "x: z") + R"(---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: other, port: 1}]
endpoints:
- {addresses: [10.0.0.1], conditions: {ready: true}}
- {addresses: [10.0.0.2]}
- {addresses: [10.0.0.3], conditions: {ready: false}}
)");
  auto cluster = compiled.snapshot->find_cluster("default", "a.default.svc.cluster.local", 80, "");
  EXPECT_THAT(addresses(cluster), ElementsAre("10.0.0.1:8080", "10.0.0.2:8080"));
  EXPECT_EQ(cluster->endpoints[0].workload->name.name, "w");
  EXPECT_EQ(cluster->endpoints[1].workload, nullptr);
}

TEST(Compile, GivesOneAddressToOneWorkload) {
  auto compiled =
      compile_text(workload("b", "10.0.0.1", "") + workload("a", "10.0.0.1", "") +
                   service("s", "clusterIP: 10.0.0.1") + service("t", "clusterIP: 10.0.0.7") +
                   service("u", "clusterIP: 10.0.0.7"));
  EXPECT_THAT(
      texts_of(compiled.problems),
      ElementsAre("error t.yaml:5: WorkloadEntry default/b: spec.address: 10.0.0.1 is already "
                  "the address of default/a; one address is one workload",
                  "error t.yaml:15: Service default/s: spec.clusterIP: 10.0.0.1 is the "
                  "address of a workload",
                  "error t.yaml:25: Service default/u: spec.clusterIP: 10.0.0.7 is already "
                  "the address of t.default.svc.cluster.local"));
  EXPECT_THAT(compiled.refused, SizeIs(3));
  EXPECT_THAT(compiled.snapshot->workloads, SizeIs(1));
}

TEST(Compile, RefusesTheSecondOfTwoObjectsOfOneName) {
  auto objects = objects_of(service("a"), "one.yaml");
  for (auto& object : objects_of(service("a"), "two.yaml")) objects.push_back(object);
  auto compiled = compile(objects, 1, {});
  EXPECT_THAT(
      texts_of(compiled.problems),
      ElementsAre("error two.yaml:4: Service default/a: metadata.name: is also in one.yaml; "
                  "an object has one owner: remove it from all but one"));
}

// ---- DestinationRules

TrafficPolicy policy_of(const Compiled& compiled, std::uint16_t port, std::string_view subset,
                        std::string_view client_ns = "default") {
  auto cluster = compiled.snapshot->find_cluster(client_ns, kReviews, port, subset);
  EXPECT_NE(cluster, nullptr);
  return cluster ? cluster->policy : TrafficPolicy();
}

TEST(DestinationRules, HaveIstiosDefaults) {
  auto compiled = compile_text(
      kThreeVersions + rule("r",
                            "host: reviews, trafficPolicy: {connectionPool: {tcp: {}, http: {}}, "
                            "outlierDetection: {}, loadBalancer: {}}"));
  TrafficPolicy policy = policy_of(compiled, 9080, "");
  EXPECT_EQ(policy.balancer, Balancer::kLeastRequest);
  EXPECT_EQ(policy.pool, ConnectionPool());
  EXPECT_EQ(policy.outlier, OutlierDetection());
  EXPECT_EQ(policy_of(compile_text(kThreeVersions), 9080, ""), TrafficPolicy());
}

TEST(DestinationRules, AreReadInFull) {
  auto compiled = compile_text(kThreeVersions + rule("r", R"(host: reviews, trafficPolicy: {
      loadBalancer: {simple: RANDOM},
      connectionPool: {
        tcp: {maxConnections: 1, connectTimeout: 2s, maxConnectionDuration: 1h, idleTimeout: 3s,
              tcpKeepalive: {probes: 3, time: 10s, interval: 5s}},
        http: {http1MaxPendingRequests: 2, http2MaxRequests: 3, maxRequestsPerConnection: 4}},
      outlierDetection: {consecutive5xxErrors: 7, consecutiveGatewayErrors: 2, interval: 1s,
        splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3,
        baseEjectionTime: 3m, maxEjectionPercent: 100, minHealthPercent: 40}})"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  TrafficPolicy policy = policy_of(compiled, 9080, "");
  EXPECT_EQ(policy.balancer, Balancer::kRandom);
  EXPECT_EQ(policy.pool.max_connections, 1u);
  EXPECT_EQ(policy.pool.connect_timeout, Milliseconds(2000));
  EXPECT_EQ(policy.pool.max_connection_duration, Milliseconds(3'600'000));
  EXPECT_EQ(policy.pool.idle_timeout, Milliseconds(3000));
  EXPECT_EQ(policy.pool.tcp_keepalive->probes, 3u);
  EXPECT_EQ(policy.pool.max_pending_requests, 2u);
  EXPECT_EQ(policy.pool.max_requests, 3u);
  EXPECT_EQ(policy.pool.max_requests_per_connection, 4u);
  EXPECT_EQ(policy.outlier->consecutive_5xx, 7u);
  EXPECT_EQ(policy.outlier->consecutive_gateway, 2u);
  EXPECT_TRUE(policy.outlier->split_local_origin);
  EXPECT_EQ(policy.outlier->consecutive_local_origin, 3u);
  EXPECT_EQ(policy.outlier->interval, Milliseconds(1000));
  EXPECT_EQ(policy.outlier->base_ejection_time, Milliseconds(180'000));
  EXPECT_EQ(policy.outlier->max_ejection_percent, 100u);
  EXPECT_EQ(policy.outlier->min_health_percent, 40u);
}

TEST(DestinationRules, TakeZeroForUnsetAndOff) {
  auto compiled = compile_text(
      kThreeVersions +
      rule("r",
           "host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 0, "
           "idleTimeout: 0s}, http: {http1MaxPendingRequests: 0}}, outlierDetection: "
           "{consecutiveErrors: 9, maxEjectionPercent: 0, consecutiveGatewayErrors: 0}}"));
  TrafficPolicy policy = policy_of(compiled, 9080, "");
  EXPECT_EQ(policy.pool.max_connections, ConnectionPool::kUnlimited);
  EXPECT_EQ(policy.pool.max_pending_requests, ConnectionPool::kUnlimited);
  EXPECT_EQ(policy.pool.idle_timeout, ConnectionPool::kNever);
  EXPECT_EQ(policy.outlier->max_ejection_percent, 10u);
  EXPECT_EQ(policy.outlier->consecutive_5xx, 9u);
}

TEST(DestinationRules, OverrideByBlockAndByPortWholesale) {
  auto compiled = compile_text(
      service("reviews", "ports: [{name: http, port: 9080}, {name: http-b, port: 9081}]") +
      rule("r", R"(host: reviews,
    trafficPolicy: {
      loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 1}},
      portLevelSettings: [{port: {number: 9081}, loadBalancer: {simple: ROUND_ROBIN}}]},
    subsets: [
      {name: plain},
      {name: block, trafficPolicy: {connectionPool: {tcp: {maxConnections: 7}}}},
      {name: port, trafficPolicy: {
         loadBalancer: {simple: ROUND_ROBIN},
         portLevelSettings: [{port: {number: 9080}, outlierDetection: {}}]}}])"));
  EXPECT_EQ(policy_of(compiled, 9080, "").pool.max_connections, 1u);
  EXPECT_EQ(policy_of(compiled, 9081, "").balancer, Balancer::kRoundRobin);
  EXPECT_EQ(policy_of(compiled, 9081, "").pool, ConnectionPool()) << "not inherited by the port";
  EXPECT_EQ(policy_of(compiled, 9080, "plain"), policy_of(compiled, 9080, ""));
  EXPECT_EQ(policy_of(compiled, 9080, "block").balancer, Balancer::kRandom);
  EXPECT_EQ(policy_of(compiled, 9080, "block").pool.max_connections, 7u);
  EXPECT_EQ(policy_of(compiled, 9081, "block").balancer, Balancer::kRoundRobin);
  EXPECT_EQ(policy_of(compiled, 9081, "block").pool.max_connections, 7u);
  EXPECT_EQ(policy_of(compiled, 9080, "port").balancer, Balancer::kLeastRequest);
  EXPECT_EQ(policy_of(compiled, 9080, "port").pool, ConnectionPool());
  EXPECT_TRUE(policy_of(compiled, 9080, "port").outlier.has_value());
  EXPECT_EQ(policy_of(compiled, 9081, "port").balancer, Balancer::kRoundRobin);
  EXPECT_FALSE(policy_of(compiled, 9081, "port").outlier.has_value());
}

std::string limit(int n) {
  return "trafficPolicy: {connectionPool: {tcp: {maxConnections: " + std::to_string(n) + "}}}";
}

TEST(DestinationRules, AreLookedUpInTheClientsThenTheServicesThenTheRootNamespace) {
  const std::string full = "host: reviews.default.svc.cluster.local, ";
  auto connections = [](const Compiled& compiled, std::string_view ns) {
    return policy_of(compiled, 9080, "", ns).pool.max_connections;
  };
  std::string root = rule("root", "host: '*', " + limit(1), "istio-system");
  auto compiled = compile_text(kThreeVersions + root);
  EXPECT_EQ(connections(compiled, "default"), 1u);
  EXPECT_EQ(connections(compiled, "shop"), 1u);
  compiled = compile_text(kThreeVersions + root + rule("r", "host: reviews, " + limit(2)));
  EXPECT_EQ(connections(compiled, "shop"), 2u);
  EXPECT_EQ(connections(compiled, "istio-system"), 1u) << "the client's own namespace first";
  compiled = compile_text(kThreeVersions + root + rule("r", "host: reviews, " + limit(2)) +
                          rule("own", full + limit(3) + ", subsets: [{name: v1}]", "shop"));
  EXPECT_EQ(connections(compiled, "shop"), 3u);
  EXPECT_EQ(connections(compiled, "default"), 2u);
  EXPECT_EQ(connections(compiled, "bank"), 2u);
  EXPECT_NE(compiled.snapshot->find_cluster("shop", kReviews, 9080, "v1"), nullptr);
  EXPECT_EQ(compiled.snapshot->find_cluster("default", kReviews, 9080, "v1"), nullptr);
}

TEST(DestinationRules, OfTheClientHideTheSubsetsOfOthers) {
  auto compiled = compile_text(
      kThreeVersions + rule("r", "host: reviews, subsets: [{name: v1, labels: {version: v1}}]") +
      rule("own", "host: '*.default.svc.cluster.local'", "shop"));
  EXPECT_NE(compiled.snapshot->find_cluster("bank", kReviews, 9080, "v1"), nullptr);
  EXPECT_EQ(compiled.snapshot->find_cluster("shop", kReviews, 9080, "v1"), nullptr);
}

TEST(DestinationRules, PreferTheExactHostThenTheLongestWildcard) {
  std::string wide = rule("a", "host: '*.local', " + limit(1));
  std::string narrow = rule("b", "host: '*.default.svc.cluster.local', " + limit(2));
  std::string exact = rule("c", "host: reviews, " + limit(3));
  EXPECT_EQ(policy_of(compile_text(kThreeVersions + wide), 9080, "").pool.max_connections, 1u);
  EXPECT_EQ(policy_of(compile_text(kThreeVersions + wide + narrow), 9080, "").pool.max_connections,
            2u);
  EXPECT_EQ(policy_of(compile_text(kThreeVersions + wide + narrow + exact), 9080, "")
                .pool.max_connections,
            3u);
}

TEST(DestinationRules, OfOneHostAndNamespaceArePutTogether) {
  auto compiled = compile_text(
      kThreeVersions +
      rule("young", "host: reviews, " + limit(9) + ", subsets: [{name: v1}, {name: v2}]", "default",
           "2024-02-01T00:00:00Z") +
      rule("old",
           "host: reviews.default.svc.cluster.local, " + limit(5) +
               ", subsets: [{name: v1, labels: {version: v1}}]",
           "default", "2024-01-01T00:00:00Z"));
  EXPECT_EQ(policy_of(compiled, 9080, "").pool.max_connections, 5u);
  EXPECT_THAT(addresses(compiled.snapshot->find_cluster("default", kReviews, 9080, "v1")),
              SizeIs(1));
  EXPECT_THAT(addresses(compiled.snapshot->find_cluster("default", kReviews, 9080, "v2")),
              SizeIs(3));
  EXPECT_THAT(texts_of(compiled.problems), SizeIs(2)) << "both are said";
}

TEST(DestinationRules, ForTheirOwnNamespaceAreNotSeenByOthers) {
  auto compiled =
      compile_text(kThreeVersions + rule("root", "host: '*', " + limit(1), "istio-system") +
                   rule("r", "host: reviews, exportTo: ['.'], " + limit(2)));
  EXPECT_EQ(policy_of(compiled, 9080, "", "default").pool.max_connections, 2u);
  EXPECT_EQ(policy_of(compiled, 9080, "", "shop").pool.max_connections, 1u);
}

TEST(DestinationRules, WarnOfWhatHasNoEffect) {
  auto compiled = compile_text(service("db", "ports: [{name: mysql, port: 3306}]") +
                               rule("a", "host: db, " + limit(1)) + rule("b", "host: nobody"));
  EXPECT_THAT(
      texts_of(compiled.problems),
      ElementsAre(
          "warning t.yaml:10: DestinationRule default/a: spec.trafficPolicy: has no effect on "
          "port 3306 of db.default.svc.cluster.local, which the kernel balances as TCP",
          "warning t.yaml:15: DestinationRule default/b: spec.host: no Service is named "
          "nobody.default.svc.cluster.local yet"));
}

// ---- gateways

std::string gateway(std::string_view name, std::string_view spec, std::string_view ns = "default") {
  return "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) +
         "}\nspec: {selector: {istio: ingressgateway}, " + std::string(spec) + "}\n";
}
std::string routes(std::string_view name, std::string_view hosts, std::string_view gateways,
                   std::string_view ns = "default") {
  return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) + "}\nspec: {hosts: [" +
         std::string(hosts) + "], gateways: [" + std::string(gateways) +
         "], http: [{route: [{destination: {host: reviews.default.svc.cluster.local}}]}]}\n";
}
std::vector<std::string> names(const HostRoutes* host) {
  std::vector<std::string> list;
  if (!host) return {"none"};
  for (const auto& service : host->services) list.push_back(service->name.to_string());
  return list;
}

TEST(Gateways, BindVirtualServicesByTheHostsTheyShare) {
  auto compiled = compile_text(
      service("reviews") +
      gateway("g",
              "servers: [{port: {number: 80, protocol: HTTP}, bind: 127.0.0.1, hosts: "
              "['*.example.com', shop/api.test]}]") +
      routes("a", "'*'", "g") + routes("b", "www.example.com, other.org", "default/g", "shop") +
      routes("c", "api.test", "default/g") + routes("d", "api.test", "default/g", "shop"));
  ASSERT_THAT(compiled.snapshot->gateway_servers, SizeIs(1));
  const GatewayServer& server = compiled.snapshot->gateway_servers[0];
  EXPECT_EQ(server.bind.to_string(), "127.0.0.1:80");
  EXPECT_THAT(names(server.routes.find("www.example.com")), ElementsAre("shop/b"));
  EXPECT_THAT(names(server.routes.find("x.example.com")), ElementsAre("default/a"));
  EXPECT_THAT(names(server.routes.find("example.com")), ElementsAre("none"));
  EXPECT_THAT(names(server.routes.find("other.org")), ElementsAre("none"));
  EXPECT_THAT(names(server.routes.find("api.test")), ElementsAre("shop/d"));
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre("warning t.yaml:25: VirtualService default/c: spec.gateways: none of the "
                          "hosts is served by Gateway default/g"));
  EXPECT_EQ(compiled.snapshot->find_mesh_routes("www.example.com"), nullptr);
}

TEST(Gateways, MergeVirtualServicesOldestFirst) {
  auto compiled =
      compile_text(service("reviews") +
                   gateway("g", "servers: [{port: {number: 80, protocol: HTTP}, hosts: ['*']}]") +
                   routes("z", "a.b", "g") + routes("a", "a.b", "g"));
  EXPECT_THAT(names(compiled.snapshot->gateway_servers.at(0).routes.find("a.b")),
              ElementsAre("default/a", "default/z"));
}

TEST(Gateways, OfOtherNodesAreLeftAlone) {
  auto compiled = compile_text(
      "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: e}\nspec: {selector: "
      "{istio: egressgateway}, servers: [{port: {number: 80, protocol: HTTP}, hosts: ['*']}]}\n");
  EXPECT_THAT(compiled.snapshot->gateway_servers, IsEmpty());
  EXPECT_THAT(
      texts_of(compiled.problems),
      ElementsAre("warning t.yaml:4: Gateway default/e: spec.selector: selects no gateway of "
                  "this node"));
}

TEST(Gateways, OnOneAddressAreToldApartByHost) {
  auto compiled = compile_text(
      gateway("a", "servers: [{port: {number: 80, protocol: HTTP}, hosts: ['*']}]") +
      gateway("b", "servers: [{port: {number: 80, protocol: HTTP}, hosts: ['*.x', y.x]}]") +
      gateway("c", "servers: [{port: {number: 81, protocol: HTTP}, hosts: ['z']}]"));
  auto find = [&](std::uint16_t port, std::string_view host) -> std::string {
    auto* server = compiled.snapshot->find_gateway_server({IpAddress(), port}, host);
    return server ? server->gateway.name : "none";
  };
  EXPECT_EQ(find(80, "q"), "a");
  EXPECT_EQ(find(80, "q.x"), "b");
  EXPECT_EQ(find(81, "z"), "c");
  EXPECT_EQ(find(81, "q"), "none");
}

TEST(HostTable, PrefersTheExactHostThenTheLongestWildcard) {
  auto compiled = compile_text(routes("a", "'*.com'", "mesh") + routes("b", "'*.foo.com'", "mesh") +
                               routes("c", "bar.foo.com", "mesh"));
  auto find = [&](std::string_view host) {
    return names(compiled.snapshot->find_mesh_routes(host)).at(0);
  };
  EXPECT_EQ(find("bar.foo.com"), "default/c");
  EXPECT_EQ(find("x.foo.com"), "default/b");
  EXPECT_EQ(find("foo.com"), "default/a");
  EXPECT_EQ(find("com"), "none");
}

// ---- sharing, order, speed

TEST(Compile, SharesWhatDidNotChange) {
  std::string text = kThreeVersions +
                     rule("r",
                          "host: reviews, subsets: [{name: v1, labels: "
                          "{version: v1}}, {name: v2, labels: {version: v2}}]") +
                     routes("v", "reviews", "mesh");
  auto first = compile(objects_of(text), 1, {});
  auto second = compile(objects_of(text + workload("r4", "10.77.0.7", "app: reviews, version: v2")),
                        2, {}, first.snapshot.get());
  EXPECT_EQ(second.snapshot->version, 2u);
  auto find = [](const Compiled& compiled, std::string_view subset) {
    return compiled.snapshot->find_cluster("default", kReviews, 9080, subset);
  };
  EXPECT_EQ(find(first, "v1"), find(second, "v1"));
  EXPECT_NE(find(first, "v2"), find(second, "v2"));
  EXPECT_EQ(first.snapshot->workloads, [&] {
    auto workloads = second.snapshot->workloads;
    workloads.erase({"default", "r4"});
    return workloads;
  }());
  EXPECT_EQ(first.snapshot->virtual_services[0], second.snapshot->virtual_services[0]);
}

TEST(Compile, DoesNotDependOnTheOrderOfObjects) {
  std::string text = kThreeVersions + rule("r", "host: reviews, subsets: [{name: v1}]") +
                     rule("s", "host: reviews, subsets: [{name: v1}]") +
                     routes("b", "reviews", "mesh") + routes("a", "reviews", "mesh");
  auto objects = objects_of(text);
  auto first = compile(objects, 1, {});
  std::reverse(objects.begin(), objects.end());
  auto second = compile(objects, 1, {}, first.snapshot.get());
  EXPECT_EQ(first.snapshot->clusters, second.snapshot->clusters);
  EXPECT_EQ(first.snapshot->virtual_services, second.snapshot->virtual_services);
  EXPECT_EQ(first.snapshot->mesh_hosts, second.snapshot->mesh_hosts);
  EXPECT_EQ(names(second.snapshot->find_mesh_routes(kReviews)).at(0), "default/a");
}

TEST(Compile, LeavesOutWhatIsRefusedAndKeepsTheRest) {
  auto compiled = compile_text(kThreeVersions + rule("r", "host: reviews, nonsense: 1"));
  EXPECT_THAT(compiled.refused, SizeIs(1));
  EXPECT_EQ(compiled.refused.at(0).to_string(), "DestinationRule default/r");
  EXPECT_THAT(addresses(compiled.snapshot->find_cluster("default", kReviews, 9080, "")), SizeIs(3));
}

TEST(Compile, TakesAThousandServicesWithTenThousandEndpoints) {
  std::vector<ObjectPtr> objects;
  auto add = [&](const std::string& text) {
    for (auto& object : objects_of(text)) objects.push_back(object);
  };
  for (int i = 0; i < 1000; ++i) {
    std::string name = "s" + std::to_string(i);
    add(service(name) +
        rule(name, "host: " + name + ", subsets: [{name: v1, labels: {version: v1}}]") +
        routes(name, name, "mesh"));
    std::string all;
    for (int k = 0; k < 10; ++k)
      all += workload(name + "-" + std::to_string(k),
                      "10." + std::to_string(k) + "." + std::to_string(i / 250) + "." +
                          std::to_string(i % 250 + 1),
                      "app: " + name + ", version: v" + std::to_string(k % 2));
    add(all);
  }
  auto first = compile(objects, 1, {});
  auto second = compile(objects, 2, {}, first.snapshot.get());
  EXPECT_THAT(first.refused, IsEmpty());
  EXPECT_EQ(first.snapshot->clusters.size(), 2000u);
  EXPECT_EQ(first.snapshot->clusters, second.snapshot->clusters) << "all shared";
}

TEST(ClusterName, TakesATextThatPointsNowhere) {
  EXPECT_EQ(cluster_name("reviews", 80, std::string_view()), "outbound|80||reviews");
}

}  // namespace
}  // namespace mesh::config
