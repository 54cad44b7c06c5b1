// DestinationRule, Gateway, Service, WorkloadEntry, EndpointSlice: what is read, what is refused.
#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::EndsWith;
using testing::IsEmpty;
using testing::Pair;
using testing::StartsWith;

std::string object(std::string_view kind, std::string_view rest) {
  std::string group = kind == "Service"         ? "v1"
                      : kind == "EndpointSlice" ? "discovery.k8s.io/v1"
                                                : "networking.istio.io/v1";
  return "apiVersion: " + group + "\nkind: " + std::string(kind) + "\nmetadata: {name: o}\n" +
         std::string(rest);
}

struct Case {
  std::string_view kind, rest;
  std::vector<std::string> problems;  // without file, kind and name
};

std::vector<std::string> short_texts(const std::string& text) {
  std::vector<std::string> texts;
  for (std::string problem : validate_text(text)) {
    std::size_t file = problem.find("t.yaml:");
    std::size_t name = problem.find(" default/o: ");
    std::size_t kind = problem.rfind(": ", name);
    texts.push_back(problem.substr(0, file) + problem.substr(file + 7, kind - file - 7) + ": " +
                    problem.substr(name + 12));
  }
  return texts;
}

TEST(Kinds, AreRefusedWithPlaceAndRemedy) {
  const Case cases[] = {
      {"DestinationRule", "spec: {}\n", {"error 4: spec.host: is required"}},
      {"DestinationRule",
       "spec: {host: a, subset: []}\n",
       {"error 4: spec.subset: unknown field (did you mean subsets?)"}},
      {"DestinationRule",
       "spec: {host: a, workloadSelector: {matchLabels: {a: b}}}\n",
       {"error 4: spec.workloadSelector: not supported yet; remove the field"}},
      {"DestinationRule",
       "spec:\n  host: a\n  trafficPolicy:\n    tls: {mode: ISTIO_MUTUAL}\n",
       {"error 7: spec.trafficPolicy.tls: not supported yet; remove it, or write mode: DISABLE "
        "(connections are plain text)"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}\n",
       {"error 4: spec.trafficPolicy.loadBalancer.consistentHash: not supported yet; remove the "
        "field"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}\n",
       {"error 4: spec.trafficPolicy.loadBalancer.simple: PASSTHROUGH is not supported yet; use "
        "LEAST_REQUEST"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {loadBalancer: {simple: FAST}}}\n",
       {"error 4: spec.trafficPolicy.loadBalancer.simple: must be LEAST_REQUEST, ROUND_ROBIN or "
        "RANDOM, not 'FAST'"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {loadBalancer: {warmup: {duration: 1s}, localityLbSetting: "
       "{enabled: true}}}}\n",
       {"error 4: spec.trafficPolicy.loadBalancer.warmup: not supported yet; remove the field",
        "error 4: spec.trafficPolicy.loadBalancer.localityLbSetting: not supported yet; remove the "
        "field"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {connectionPool: {http: {maxRetries: 3, h2UpgradePolicy: "
       "UPGRADE}, tcp: {maxConnections: -1, connectTimeout: 0s}}}}\n",
       {"error 4: spec.trafficPolicy.connectionPool.tcp.maxConnections: must be a whole number "
        "from "
        "0 to 2147483647, not -1 (a number)",
        "error 4: spec.trafficPolicy.connectionPool.tcp.connectTimeout: must be from 1ms to "
        "87600h, "
        "not '0s'",
        "error 4: spec.trafficPolicy.connectionPool.http.maxRetries: not supported yet; remove the "
        "field",
        "error 4: spec.trafficPolicy.connectionPool.http.h2UpgradePolicy: not supported yet; "
        "remove "
        "the field"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {outlierDetection: {maxEjectionPercent: 101, "
       "outlierDetectionHttpErrorCodes: [500]}}}\n",
       {"error 4: spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes: not "
        "supported "
        "yet; remove the field",
        "error 4: spec.trafficPolicy.outlierDetection.maxEjectionPercent: must be a whole number "
        "from 0 to 100, not 101 (a number)"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 3}}}\n",
       {"warning 4: spec.trafficPolicy.outlierDetection.consecutiveErrors: is deprecated, and read "
        "as consecutive5xxErrors"}},
      {"DestinationRule",
       "spec: {host: a, subsets: [{name: v1}, {name: v1}, {labels: {a: b}}]}\n",
       {"error 4: spec.subsets[1].name: is given twice",
        "error 4: spec.subsets[2].name: is required"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {portLevelSettings: [{loadBalancer: {simple: RANDOM}}]}}\n",
       {"error 4: spec.trafficPolicy.portLevelSettings[0].port: needs a number"}},
      {"DestinationRule",
       "spec: {host: a, trafficPolicy: {tunnel: {}, proxyProtocol: {}, "
       "retryBudget: {}}}\n",
       {"error 4: spec.trafficPolicy.tunnel: not supported yet; remove the field",
        "error 4: spec.trafficPolicy.proxyProtocol: not supported yet; remove the field",
        "error 4: spec.trafficPolicy.retryBudget: not supported yet; remove the field"}},
      // Gateway
      {"Gateway", "spec: {}\n", {"error 4: spec.servers: is required"}},
      {"Gateway",
       "spec: {servers: [{port: {number: 443, protocol: HTTPS}, hosts: [a], tls: {mode: "
       "SIMPLE}}]}\n",
       {"error 4: spec.servers[0].tls: not supported yet; remove the field",
        "error 4: spec.servers[0].port.protocol: HTTPS is not supported yet; use HTTP"}},
      {"Gateway",
       "spec: {servers: [{port: {number: 80, protocol: http, targetPort: 81}, hosts: "
       "[]}]}\n",
       {"error 4: spec.servers[0].port.targetPort: not supported yet; remove the field",
        "error 4: spec.servers[0].port.protocol: must be HTTP, not 'http'",
        "error 4: spec.servers[0].hosts: is required"}},
      {"Gateway",
       "spec: {servers: [{port: {number: 80, protocol: HTTP}, bind: unix:///x, hosts: "
       "['a/', 'x/*.b']}]}\n",
       {"error 4: spec.servers[0].bind: not an IP address: 'unix:///x'; Unix sockets are not "
        "supported yet",
        "error 4: spec.servers[0].hosts[0]: must be [namespace/]host, with '*' or '*.suffix', not "
        "'a/'"}},
      {"Gateway",
       "spec: {servers: [{hosts: [a]}]}\n",
       {"error 4: spec.servers[0].port: is required"}},
      // WorkloadEntry
      {"WorkloadEntry", "spec: {}\n", {"error 4: spec.address: is required"}},
      {"WorkloadEntry",
       "spec: {address: 127.0.0.1}\n",
       {"error 4: spec.address: unspecified, loopback, link-local, metadata and multicast "
        "addresses are not "
        "endpoints"}},
      {"WorkloadEntry",
       "spec: {address: '::'}\n",
       {"error 4: spec.address: unspecified, loopback, link-local, metadata and multicast "
        "addresses are not endpoints"}},
      {"WorkloadEntry",
       "spec: {address: 224.0.0.1}\n",
       {"error 4: spec.address: unspecified, loopback, link-local, metadata and multicast "
        "addresses are not endpoints"}},
      {"WorkloadEntry",
       "spec: {address: 169.254.169.254}\n",
       {"error 4: spec.address: unspecified, loopback, link-local, metadata and multicast "
        "addresses are not "
        "endpoints"}},
      {"WorkloadEntry",
       "spec: {address: '::ffff:127.0.0.1'}\n",
       {"error 4: spec.address: unspecified, loopback, link-local, metadata and multicast "
        "addresses are not "
        "endpoints"}},
      {"WorkloadEntry",
       "spec: {address: vm.example.com}\n",
       {"error 4: spec.address: not an IP address: 'vm.example.com'; names and Unix sockets are "
        "not "
        "supported yet"}},
      {"WorkloadEntry",
       "spec: {address: 10.0.0.1, network: net, locality: a/b, ports: {http: x}}\n",
       {"error 4: spec.network: not supported yet; remove the field",
        "error 4: spec.locality: not supported yet; remove the field",
        "error 4: spec.ports.http: must be a whole number from 1 to 65535, not 'x'"}},
      {"WorkloadEntry",
       "spec: {address: 10.0.0.1, serviceAccount: a/b, labels: {v: 1}}\n",
       {"error 4: spec.labels.v: must be a string, not 1 (a number); write it in quotes",
        "error 4: spec.serviceAccount: must be the name of a service account"}},
      // core kinds are read leniently, but what is used must make sense
      {"Service", "spec: {ports: [{port: 80, name: http, nodePort: 30000, foo: bar}], x: y}\n", {}},
      {"Service",
       "spec: {ports: [{name: http}], clusterIP: x}\n",
       {"error 4: spec.ports[0].port: is required",
        "error 4: spec.clusterIP: not an IP address: 'x'"}},
      {"Service",
       "spec: {ports: [{port: 80}, {port: 80}]}\n",
       {"error 4: spec.ports[1].port: is given twice"}},
      {"Service",
       "spec: {clusterIP: 127.0.0.1}\n",
       {"error 4: spec.clusterIP: a service cannot have the address 127.0.0.1"}},
      {"Service",
       "spec: {ports: [{port: 80, name: grpc-web-x}, {port: 81, appProtocol: "
       "kubernetes.io/h2c}]}\n",
       {"warning 4: spec.ports[0].name: grpc-web is carried as TCP for now: balanced by "
        "connection, "
        "without HTTP routes",
        "warning 4: spec.ports[1].appProtocol: kubernetes.io/h2c is carried as TCP for now: "
        "balanced "
        "by connection, without HTTP routes"}},
      {"Service", "spec: {ports: [{port: 53, protocol: UDP}], sessionAffinity: ClientIP}\n", {}},
      {"Service",
       "spec: {ports: [{port: 53, protocol: SCTP}, {port: 54, protocol: x}, {port: 1, protocol: "
       "UDP}, {port: 1, protocol: UDP}, {port: 1}]}\n",
       {"error 4: spec.ports[0].protocol: SCTP is not supported; use TCP or UDP",
        "error 4: spec.ports[1].protocol: must be TCP or UDP, not 'x'",
        "error 4: spec.ports[3].port: is given twice"}},
      {"Service",
       "spec: {sessionAffinity: Cookie}\n",
       {"error 4: spec.sessionAffinity: must be None or ClientIP, not 'Cookie'"}},
      {"Service",
       "spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: "
       "86401}}}\n",
       {"error 4: spec.sessionAffinityConfig.clientIP.timeoutSeconds: must be a whole number from "
        "1 "
        "to 86400, not 86401 (a number)"}},
      {"Service", "spec: {type: ExternalName, externalName: a.b}\n", {}},
      {"Service", "spec: {type: ExternalName}\n", {"error 4: spec.externalName: is required"}},
      {"Service",
       "spec: {type: ExternalName, externalName: 'a b'}\n",
       {"error 4: spec.externalName: must be a DNS name"}},
      {"EndpointSlice",
       "endpoints: [{addresses: [127.0.0.1]}, {addresses: [x]}]\n",
       {"warning 3: metadata.labels: the label kubernetes.io/service-name is missing: the slice "
        "belongs to no service",
        "error 4: endpoints[0].addresses: unspecified, loopback, link-local, metadata and "
        "multicast addresses "
        "are not endpoints",
        "error 4: endpoints[1].addresses: not an IP address: 'x'"}},
      {"ServiceEntry",
       "spec: {hosts: [x], ports: [{number: 1, name: a}], resolution: STATIC, endpoints: "
       "[{address: 10.0.0.1}]}\n",
       {}},
      {"ServiceEntry", "spec: {resolution: STATIC}\n", {"error 4: spec.hosts: is required"}},
      {"ServiceEntry",
       "spec: {hosts: [x], resolution: STATIC}\n",
       {"error 4: spec.ports: is required"}},
      {"ServiceEntry",
       "spec: {hosts: [x, 'a b', X, '*.y', z.svc.cluster.local], resolution: STATIC, ports: "
       "[{number: 1, name: a}]}\n",
       {"error 4: spec.hosts: 'a b' must be a DNS name", "error 4: spec.hosts: 'X' is given twice",
        "error 4: spec.hosts: '*.y' names no single host, which resolution NONE alone takes",
        "error 4: spec.hosts: 'z.svc.cluster.local' is a name of the cluster's own: write a "
        "Service"}},
      {"ServiceEntry",
       "spec: {hosts: [x], ports: [{number: 1, name: a}], resolution: DYNAMIC_DNS}\n",
       {"error 4: spec.resolution: DYNAMIC_DNS is not supported yet; use STATIC, DNS or NONE",
        "warning 4: spec.resolution: NONE: connections go to the address that they ask for, "
        "without routes; names are left to the workload's own resolver"}},
      {"ServiceEntry",
       "spec: {hosts: [x], ports: [{number: 1, name: a}], resolution: DNS}\n",
       {"error 4: spec.resolution: DNS without endpoints by address is not supported yet; use "
        "NONE, which leaves the name to the workload's own resolver, or write endpoints"}},
      {"ServiceEntry",
       "spec: {hosts: [x], ports: [{number: 1, name: a}], resolution: DNS, endpoints: [{address: "
       "db.example.com}]}\n",
       {"error 4: spec.endpoints[0].address: not an IP address: 'db.example.com'; names and Unix "
        "sockets are not supported yet"}},
      {"ServiceEntry",
       "spec: {hosts: [x, w], addresses: [10.0.0.1], ports: [{number: 1, name: a, protocol: X}, "
       "{name: b}], resolution: STATIC, exportTo: ['.'], location: HERE, subjectAltNames: [a]}\n",
       {"error 4: spec.subjectAltNames: not supported yet; remove the field",
        "error 4: spec.location: must be MESH_EXTERNAL or MESH_INTERNAL, not 'HERE'",
        "error 4: spec.exportTo: '.' is not supported yet, only '*' (clients of every namespace); "
        "remove the field",
        "error 4: spec.ports[0].protocol: must be HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, "
        "MONGO or UDP, not 'X'",
        "error 4: spec.ports[1].number: is required",
        "error 4: spec.addresses: is for one host alone: without it each host has an address of "
        "its own, else write an entry for each"}},
      {"ServiceEntry",
       "spec: {hosts: [x], addresses: [10.0.0.0/8, 127.0.0.1], ports: [{number: 1, name: a}], "
       "resolution: STATIC, endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: "
       "b}}}\n",
       {"error 4: spec.addresses: 10.0.0.0/8 is more than one address, which resolution NONE alone "
        "takes",
        "error 4: spec.addresses: a service cannot have the address 127.0.0.1",
        "error 4: spec.workloadSelector: cannot be there together with endpoints"}},
      // kinds
      {"Sidecar", "spec: {}\n", {"error 2: kind: the kind Sidecar is not supported yet"}},
      {"VirtualServce",
       "spec: {}\n",
       {"error 2: kind: the kind VirtualServce is unknown (did you mean VirtualService?)"}},
      {"Banana", "spec: {}\n", {"error 2: kind: the kind Banana is unknown"}},
  };
  for (const Case& c : cases)
    EXPECT_EQ(short_texts(object(c.kind, c.rest)), c.problems) << c.kind << " " << c.rest;
}

TEST(Kinds, AreReadInEachOfTheirVersions) {
  auto check = [](std::string_view version, std::string_view kind) {
    return validate_text("apiVersion: " + std::string(version) + "\nkind: " + std::string(kind) +
                         "\nmetadata: {name: o}\nspec: {host: a}\n");
  };
  for (std::string_view version :
       {"networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"})
    EXPECT_THAT(check(version, "DestinationRule"), IsEmpty());
  EXPECT_THAT(check("networking.istio.io/v2", "DestinationRule"),
              ElementsAre("error t.yaml:1: DestinationRule default/o: apiVersion: "
                          "'networking.istio.io/v2' is not supported for DestinationRule; use "
                          "networking.istio.io/v1"));
  EXPECT_THAT(check("gateway.networking.k8s.io/v1", "Gateway"),
              ElementsAre("error t.yaml:1: Gateway default/o: apiVersion: "
                          "'gateway.networking.k8s.io/v1' is not supported for Gateway; use "
                          "networking.istio.io/v1"));
  EXPECT_THAT(check("networking.istio.io/", "Gateway").size(), 1);
  EXPECT_THAT(check("serving.knative.dev/v1", "Service").size(), 1);
  EXPECT_THAT(check("v1", "Namespace"), IsEmpty());
}

TEST(Kinds, AcceptWhatMeansWhatHappensAnyway) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {"DestinationRule",
       "spec: {host: a, exportTo: ['.'], trafficPolicy: {tls: {mode: DISABLE}, loadBalancer: "
       "{localityLbSetting: {enabled: false}}, connectionPool: {http: {h2UpgradePolicy: DEFAULT, "
       "useClientProtocol: false, maxConcurrentStreams: 0}}}}\n"},
      {"DestinationRule", "spec: {host: '*.a.local', trafficPolicy: {tls: {}}}\n"},
      {"Gateway",
       "spec: {servers: [{port: {number: 80, protocol: HTTP, name: x}, hosts: ['*', ./a, "
       "x/b]}]}\n"},
      {"WorkloadEntry", "spec: {address: 10.0.0.1, network: '', weight: 0}\n"},
  };
  for (const auto& [kind, rest] : cases)
    EXPECT_THAT(short_texts(object(kind, rest)), IsEmpty()) << rest;
}

TEST(Service, KnowsHttpByNameAndAppProtocol) {
  auto compiled = compile_text(object("Service", R"(spec:
  clusterIP: 10.78.0.1
  clusterIPs: [10.78.0.1, "fd78::1"]
  ports:
  - {port: 1, name: http}
  - {port: 2, name: HTTP-web}
  - {port: 3, name: httpx}
  - {port: 4, name: web, appProtocol: http}
  - {port: 5, name: http, appProtocol: tcp}
  - {port: 6, name: http2}
  - {port: 7, targetPort: 80}
  - {port: 8, targetPort: web}
)"));
  const Service& service = *compiled.snapshot->services.at("o.default.svc.cluster.local");
  std::vector<int> http;
  for (const ServicePort& port : service.ports)
    if (port.protocol == Protocol::kHttp) http.push_back(port.port);
  EXPECT_THAT(http, ElementsAre(1, 2, 4));
  EXPECT_EQ(service.find_port(1)->target, "1");
  EXPECT_EQ(service.find_port(7)->target, "80");
  EXPECT_EQ(service.find_port(8)->target, "web");
  EXPECT_EQ(service.addresses.size(), 2u);
  EXPECT_EQ(compiled.snapshot->service_by_address.at(IpAddress::parse("fd78::1").value())->host,
            service.host);
}

TEST(Service, HasUdpPortsBesideTcpPortsOfTheSameNumber) {
  auto compiled = compile_text(object("Service", R"(spec:
  selector: {app: dns}
  ports:
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353}
  - {name: dns-tcp, port: 53}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w}
spec: {address: 10.0.0.1, labels: {app: dns}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, labels: {kubernetes.io/service-name: o}}
ports: [{name: dns, port: 54, protocol: UDP}, {name: dns-tcp, port: 55}, {name: dns, port: 56}]
endpoints: [{addresses: [10.0.0.2]}]
)"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  const Snapshot& snapshot = *compiled.snapshot;
  const std::string host = "o.default.svc.cluster.local";
  const Service& service = *snapshot.services.at(host);
  EXPECT_EQ(service.find_port(53)->name, "dns-tcp");
  EXPECT_EQ(service.find_port(53, Transport::kUdp)->name, "dns");
  const auto endpoints = [&](Transport transport) {
    std::vector<std::string> texts;
    for (const auto& e : snapshot.find_cluster("default", host, 53, "", transport)->endpoints)
      texts.push_back(e.address.to_string());
    return texts;
  };
  EXPECT_THAT(endpoints(Transport::kUdp), ElementsAre("10.0.0.1:5353", "10.0.0.2:54"));
  EXPECT_THAT(endpoints(Transport::kTcp), ElementsAre("10.0.0.1:53", "10.0.0.2:55"));
  EXPECT_EQ(snapshot.find_cluster("default", host, 53, "", Transport::kUdp)->name,
            "outbound|53/udp||" + host);
}

TEST(Service, KeepsClientsAtTheirEndpointsWhereItSaysSo) {
  const auto affinity = [](std::string_view spec) {
    auto compiled = compile_text(object("Service", "spec: {" + std::string(spec) + "}\n"));
    return compiled.snapshot->services.at("o.default.svc.cluster.local")->affinity;
  };
  EXPECT_EQ(affinity("sessionAffinity: None"), std::nullopt);
  EXPECT_EQ(affinity("sessionAffinity: ClientIP"), std::chrono::hours(3));
  EXPECT_EQ(affinity("sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: "
                     "{timeoutSeconds: 9}}"),
            std::chrono::seconds(9));
}

TEST(Service, IsHeadlessOrANameElsewhere) {
  auto headless = compile_text(object("Service", "spec: {clusterIP: None}\n"));
  EXPECT_TRUE(headless.snapshot->services.at("o.default.svc.cluster.local")->headless);
  auto external = compile_text(
      object("Service",
             "spec: {type: ExternalName, externalName: DB.example.com., ports: [{port: 1}]}\n"));
  EXPECT_THAT(external.snapshot->services, IsEmpty());
  EXPECT_THAT(external.snapshot->external_names,
              ElementsAre(Pair("o.default.svc.cluster.local", "db.example.com")));
}

TEST(Service, ResetsConnectionsToEndpointsThatAreGoneWhereItSaysSo) {
  const auto text = [](std::string_view annotation) {
    return "apiVersion: v1\nkind: Service\nmetadata:\n  name: o\n  annotations:\n    "
           "undermesh.io/" +
           std::string(annotation) + "\n    other.io/x: z\nspec: {}\n";
  };
  const std::string host = "o.default.svc.cluster.local";
  EXPECT_FALSE(
      compile_text(object("Service", "spec: {}\n")).snapshot->services.at(host)->resets_on_removal);
  EXPECT_TRUE(compile_text(text("on-endpoint-removal: reset"))
                  .snapshot->services.at(host)
                  ->resets_on_removal);
  EXPECT_THAT(validate_text(text("on-endpoint-removal: keep")),
              ElementsAre("error t.yaml:6: Service default/o: "
                          "metadata.annotations[\"undermesh.io/on-endpoint-removal\"]: must be "
                          "reset, not 'keep'; without it connections are left alone"));
  const auto warnings = [&](const std::string& spec) {
    std::string all = text("on-endpoint-removal: reset");
    all.replace(all.find("spec: {}"), 8, "spec: " + spec);
    return validate_text(all);
  };
  const std::string at =
      "warning t.yaml:6: Service default/o: "
      "metadata.annotations[\"undermesh.io/on-endpoint-removal\"]: has no effect";
  EXPECT_THAT(warnings("{ports: [{name: tcp, port: 70}]}"), IsEmpty());
  EXPECT_THAT(warnings("{ports: [{name: http, port: 80}, {name: tcp, port: 70}]}"),
              ElementsAre(at + " on HTTP port 80: a request in flight to an endpoint that is gone "
                               "may end, and no other is sent there"));
  std::string among_others = text("on-endpoint-removal: reset\n    undermesh.io/unknown: x");
  among_others.replace(among_others.find("spec: {}"), 8, "spec: {clusterIP: None}");
  EXPECT_THAT(validate_text(among_others),
              testing::UnorderedElementsAre(testing::HasSubstr("has no effect"),
                                            testing::HasSubstr("undermesh.io/unknown")))
      << "warned of once, whatever else is there";
  EXPECT_THAT(warnings("{ports: [{name: dns, port: 53, protocol: UDP}]}"),
              ElementsAre(at + " on UDP port 53"));
  EXPECT_THAT(warnings("{clusterIP: None, ports: [{name: tcp, port: 70}]}"),
              ElementsAre(at + ": clients of a headless Service connect to its endpoints"));
  EXPECT_THAT(warnings("{type: ExternalName, externalName: a.example}"),
              ElementsAre(at + ": an ExternalName is a name alone"));
  EXPECT_THAT(validate_text(text("mode: strict")),
              ElementsAre("error t.yaml:6: Service default/o: "
                          "metadata.annotations[\"undermesh.io/mode\"]: not supported; remove the "
                          "annotation"));
}

TEST(WorkloadEntry, TheControlGroupIsAPlainAbsolutePath) {
  for (const char* path : {"", "x", "/", "/sys/fs/cgroup/", "/sys/fs/cgroup/a/..", "/a/../b",
                           "/a/./b", "//sys/fs/cgroup/a", "../a"}) {
    auto compiled = compile_text(std::string(R"(apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: a
  annotations: {undermesh.io/netns: /proc/1/ns/net, undermesh.io/cgroup: ")") +
                                 path + "\"}\nspec: {address: 10.77.0.5}\n");
    EXPECT_THAT(texts_of(compiled.problems),
                ElementsAre(testing::HasSubstr("must be the absolute path of a control group")))
        << path;
  }
}

std::string entry_with(const std::string& annotations) {
  return "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: a\n"
         "  annotations: {" +
         annotations + "}\nspec: {address: 10.77.0.5}\n";
}

TEST(WorkloadEntry, TheNetworkNamespaceIsAnAbsolutePath) {
  for (const char* path : {"", "blue", "proc/1/ns/net", "./blue"})
    EXPECT_THAT(validate_text(entry_with("undermesh.io/cgroup: /cg/a, undermesh.io/netns: \"" +
                                         std::string(path) + "\"")),
                ElementsAre("error t.yaml:5: WorkloadEntry default/a: "
                            "metadata.annotations[\"undermesh.io/netns\"]: must be the absolute "
                            "path of a network namespace, as /run/netns/NAME or /proc/PID/ns/net, "
                            "not '" +
                            std::string(path) + "'"));
}

TEST(WorkloadEntry, HasBothAPlaceForItsProcessesAndForItsNetworkOrNeither) {
  EXPECT_THAT(validate_text(entry_with("undermesh.io/netns: /run/netns/a")),
              ElementsAre("error t.yaml:5: WorkloadEntry default/a: "
                          "metadata.annotations[\"undermesh.io/netns\"]: needs "
                          "undermesh.io/cgroup too: a workload of this machine has both "
                          "annotations, one of another neither"));
  EXPECT_THAT(validate_text(entry_with("undermesh.io/cgroup: /cg/a")),
              ElementsAre(testing::HasSubstr("needs undermesh.io/netns too")));
  EXPECT_THAT(validate_text(entry_with("")), IsEmpty());
}

TEST(WorkloadEntry, MayBeOfThisMachineAndNotEnrolled) {
  const std::string place = "undermesh.io/netns: /run/netns/a, undermesh.io/cgroup: /cg/a";
  const std::string disabled = "undermesh.io/enrolment: disabled";
  const auto compiled = compile_text(entry_with(place + ", " + disabled));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  const Workload& workload = *compiled.snapshot->workloads.at({"default", "a"});
  EXPECT_FALSE(workload.is_local());
  EXPECT_EQ(workload.cgroup, "/cg/a");
  EXPECT_THAT(validate_text(entry_with(place + ", undermesh.io/enrolment: never")),
              ElementsAre(testing::HasSubstr("must be disabled, not 'never'")));
  EXPECT_THAT(validate_text(entry_with(disabled)),
              ElementsAre(testing::AllOf(testing::StartsWith("warning"),
                                         testing::HasSubstr("has no effect"))));
}

TEST(WorkloadEntry, ReadsAnnotationsAndAccount) {
  auto compiled = compile_text(R"(apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata:
  name: reviews-v1
  labels: {app: x, zone: a}
  annotations:
    undermesh.io/netns: /proc/1/ns/net
    undermesh.io/cgroup: /sys/fs/cgroup/x
    undermesh.io/sandbox: "true"
    undermesh.io/addresses: "10.77.0.5,fd77::5"
    other.io/x: z
spec:
  address: 10.77.0.5
  labels: {app: reviews}
  serviceAccount: bookinfo-reviews
  ports: {http: 9081}
  weight: 3
)");
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  const Workload& workload = *compiled.snapshot->workloads.at({"default", "reviews-v1"});
  EXPECT_EQ(workload.principal(), "cluster.local/ns/default/sa/bookinfo-reviews");
  EXPECT_THAT(workload.labels, ElementsAre(Pair("app", "reviews"), Pair("zone", "a")));
  EXPECT_EQ(workload.addresses.size(), 2u);
  EXPECT_TRUE(workload.is_local());
  EXPECT_EQ(workload.weight, 3u);
  EXPECT_THAT(workload.ports, ElementsAre(Pair("http", 9081)));
  EXPECT_EQ(compiled.snapshot->workload_by_address.at(IpAddress::parse("fd77::5").value())->name,
            workload.name);
}

TEST(WorkloadEntry, HasAMode) {
  const auto text = [](std::string_view mode) {
    return "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: o\n  "
           "annotations:\n    undermesh.io/mode: " +
           std::string(mode) + "\nspec: {address: 10.0.0.1}\n";
  };
  EXPECT_TRUE(compile_text(text("strict")).snapshot->workloads.at({"default", "o"})->strict);
  EXPECT_FALSE(compile_text(text("permissive")).snapshot->workloads.at({"default", "o"})->strict);
  EXPECT_THAT(validate_text(text("Strict")),
              ElementsAre("error t.yaml:6: WorkloadEntry default/o: "
                          "metadata.annotations[\"undermesh.io/mode\"]: must be strict or "
                          "permissive, not 'Strict'"));
}

TEST(Namespace, HasTheModeOfWorkloadsThatHaveNone) {
  const auto world = [](std::string_view annotation) {
    std::string text = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations:\n";
    text += "    undermesh.io/" + std::string(annotation) + "\n    other.io/x: z\n";
    int last = 0;
    for (const char* name :
         {"shop/plain ", "shop/open permissive", "shop/closed strict", "b/other "}) {
      const std::string_view all = name;
      const auto slash = all.find('/'), space = all.find(' ');
      text += "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: " +
              std::string(all.substr(slash + 1, space - slash - 1)) +
              "\n  namespace: " + std::string(all.substr(0, slash)) + "\n";
      if (space + 1 < all.size())
        text += "  annotations: {undermesh.io/mode: " + std::string(all.substr(space + 1)) + "}\n";
      text += "spec: {address: 10.0.0." + std::to_string(++last) + "}\n";
    }
    return text;
  };
  const auto strict = [&](std::string_view annotation) {
    std::vector<std::string> names;
    const auto snapshot = compile_text(world(annotation)).snapshot;
    for (const auto& [name, workload] : snapshot->workloads)
      if (workload->strict) names.push_back(name.name);
    return names;
  };
  EXPECT_THAT(strict("mode: strict"), ElementsAre("closed", "plain"));
  EXPECT_THAT(strict("mode: permissive"), ElementsAre("closed"));
  // Refused, and strict until it is right.
  EXPECT_THAT(strict("mode: Strict"), ElementsAre("closed", "plain"));
  EXPECT_THAT(texts_of(compile_text(world("mode: Strict")).problems),
              ElementsAre("error t.yaml:6: Namespace shop: "
                          "metadata.annotations[\"undermesh.io/mode\"]: must be strict or "
                          "permissive, not 'Strict'"));
  EXPECT_THAT(texts_of(compile_text(world("sandbox: x")).problems),
              ElementsAre("error t.yaml:6: Namespace shop: "
                          "metadata.annotations[\"undermesh.io/sandbox\"]: not supported; remove "
                          "the annotation"));
}

TEST(WorkloadEntry, SaysWhatItDoesWithoutTheProxy) {
  const auto text = [](const char* what) {
    return "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: o\n  "
           "annotations:\n    undermesh.io/on-proxy-failure: " +
           std::string(what) + "\nspec: {address: 10.0.0.1}\n";
  };
  const auto bypasses = [&](const char* what) {
    return compile_text(text(what)).snapshot->workloads.at({"default", "o"})->bypasses_proxy;
  };
  EXPECT_TRUE(bypasses("bypass"));
  EXPECT_FALSE(bypasses("refuse"));
  EXPECT_THAT(validate_text(text("open")),
              ElementsAre("error t.yaml:6: WorkloadEntry default/o: "
                          "metadata.annotations[\"undermesh.io/on-proxy-failure\"]: must be bypass "
                          "or refuse, not 'open'"));
}

TEST(FastPath, IsDisabledByAnAnnotationOnWorkloadsAndServices) {
  const auto text = [](const char* kind, const char* spec, const char* value) {
    return std::string("apiVersion: ") + kind +
           "\nmetadata:\n  name: o\n  annotations:\n    undermesh.io/fastpath: " + value +
           "\nspec: " + spec + "\n";
  };
  constexpr const char* kEntry = "networking.istio.io/v1\nkind: WorkloadEntry";
  constexpr const char* kService = "v1\nkind: Service";
  const auto entry = compile_text(text(kEntry, "{address: 10.0.0.1}", "disabled"));
  EXPECT_FALSE(entry.snapshot->workloads.at({"default", "o"})->fast_path);
  constexpr const char* kPort = "{ports: [{port: 80}]}";
  const auto service = compile_text(text(kService, kPort, "disabled"));
  EXPECT_TRUE(service.snapshot->services.at("o.default.svc.cluster.local")->has_slow_port());
  const auto plain = compile_text(object("Service", std::string("spec: ") + kPort + "\n"));
  EXPECT_FALSE(plain.snapshot->services.at("o.default.svc.cluster.local")->has_slow_port());
  EXPECT_THAT(validate_text(text(kService, "{}", "enabled")),
              ElementsAre("error t.yaml:6: Service default/o: "
                          "metadata.annotations[\"undermesh.io/fastpath\"]: must be disabled, not "
                          "'enabled'; without it connections may join"));
}

TEST(FastPath, PortsOfAServiceAreExcludedByNumber) {
  const auto text = [](const char* value) {
    return std::string(
               "apiVersion: v1\nkind: Service\nmetadata:\n  name: o\n  annotations:\n    "
               "undermesh.io/fastpath-exclude-ports: ") +
           value +
           "\nspec: {ports: [{name: a, port: 80}, {name: b, port: 81}, {name: c, port: 82}, {name: "
           "d, port: 82, protocol: UDP}, {name: e, port: 53, protocol: UDP}]}\n";
  };
  std::map<std::string, bool> may_join;
  const auto compiled = compile_text(text("\"80, 82\""));
  for (const auto& port : compiled.snapshot->services.at("o.default.svc.cluster.local")->ports)
    may_join[port.name] = port.fast_path;
  EXPECT_THAT(may_join, ElementsAre(Pair("a", false), Pair("b", true), Pair("c", false),
                                    Pair("d", true), Pair("e", true)));
  for (const char* wrong : {"\"8080\"", "\"53\"", "a", "\"\"", "\"80,\"", "\"+80\"", "\"080\""})
    EXPECT_THAT(
        validate_text(text(wrong)),
        ElementsAre(
            AllOf(StartsWith("error t.yaml:6: Service default/o: "
                             "metadata.annotations[\"undermesh.io/fastpath-exclude-ports\"]: '"),
                  EndsWith("' is no TCP port of this service; write port numbers of it, separated "
                           "by commas"))))
        << wrong;
}

TEST(FastPath, AnExternalNameWithPortsToExcludeIsToldOnce) {
  EXPECT_THAT(validate_text("apiVersion: v1\nkind: Service\nmetadata:\n  name: o\n  annotations:\n"
                            "    undermesh.io/fastpath-exclude-ports: '80'\n"
                            "spec: {type: ExternalName, externalName: a.example}\n"),
              ElementsAre("error t.yaml:6: Service default/o: "
                          "metadata.annotations[\"undermesh.io/fastpath-exclude-ports\"]: '80' is "
                          "no TCP port of this service; write port numbers of it, separated by "
                          "commas"));
}

TEST(WorkloadEntry, RefusesAnnotationsOfOursThatDoNothing) {
  EXPECT_THAT(validate_text("apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  "
                            "name: o\n  annotations:\n    undermesh.io/bypass: "
                            "always\nspec: {address: 10.0.0.1}\n"),
              ElementsAre("error t.yaml:6: WorkloadEntry default/o: "
                          "metadata.annotations[\"undermesh.io/bypass\"]: not supported; "
                          "remove the annotation"));
}

}  // namespace
}  // namespace mesh::config
