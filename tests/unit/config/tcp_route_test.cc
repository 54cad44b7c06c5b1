// TCP routes of both APIs, and where a connection may go by them.
#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const std::string kWorld = R"(---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: 10.78.0.1, selector: {app: db}, ports: [{name: sql, port: 3306}, {name: admin, port: 3307}, {name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: old}
spec: {clusterIP: 10.78.0.2, selector: {app: old}, ports: [{name: sql, port: 5}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: shop}
spec: {clusterIP: 10.78.0.3, selector: {app: far}, ports: [{name: sql, port: 3306}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db}
spec: {host: db, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: page, labels: {app: page}}
spec: {address: 10.77.0.1}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {address: 10.77.0.2}
)";

std::string virtual_service(std::string_view tcp, std::string_view rest = "") {
  return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n"
         "spec: {hosts: [db], tcp: " +
         std::string(tcp) + std::string(rest) + "}\n";
}

std::string tcp_route(std::string_view rules, std::string_view parent = "",
                      std::string_view ns = "", std::string_view name = "r") {
  return "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns.empty() ? "default" : ns) +
         "}\nspec: {parentRefs: [{group: '', kind: Service, name: db, namespace: default" +
         std::string(parent) + "}], rules: " + std::string(rules) + "}\n";
}

constexpr auto kDb = "db.default.svc.cluster.local";

// "outbound|..|..=weight" of each, "-" for those that are refused.
std::vector<std::string> backends(const Compiled& compiled, ObjectName client,
                                  std::uint16_t port = 3306) {
  const Snapshot& snapshot = *compiled.snapshot;
  const Service& service = *snapshot.services.at(kDb);
  std::vector<std::string> texts;
  for (const TcpBackend& backend : tcp_backends(snapshot, *snapshot.workloads.at(client), service,
                                                {service.addresses.at(0), port}))
    texts.push_back((backend.cluster ? backend.cluster->name.substr(9) : "-") + "=" +
                    std::to_string(backend.weight));
  return texts;
}
const ObjectName kPage{"default", "page"}, kCart{"shop", "cart"};

bool depends(const Compiled& compiled, std::uint16_t port = 3306) {
  return is_client_dependent(*compiled.snapshot, *compiled.snapshot->services.at(kDb), port);
}

const std::string kOwn = "3306||db.default.svc.cluster.local=1";
const std::string kV1 = "3306|v1|db.default.svc.cluster.local";
const std::string kOld = "5||old.default.svc.cluster.local";

TEST(TcpRoutes, WithoutAnyAConnectionGoesToTheServiceItself) {
  auto compiled = compile_text(kWorld);
  EXPECT_THAT(backends(compiled, kPage), ElementsAre(kOwn));
  EXPECT_THAT(backends(compiled, kPage, 9), IsEmpty());
  EXPECT_FALSE(depends(compiled));
}

TEST(TcpRoutes, OfAVirtualServiceHaveWeightsAndSubsets) {
  auto compiled = compile_text(
      kWorld + virtual_service("[{route: [{destination: {host: db, subset: v1}, weight: 3}, "
                               "{destination: {host: old, port: {number: 5}}, weight: 1}, "
                               "{destination: {host: old}, weight: 0}]}]"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_THAT(backends(compiled, kPage), ElementsAre(kV1 + "=3", kOld + "=1"));
  EXPECT_THAT(backends(compiled, kPage, 3307),
              ElementsAre("3307|v1|db.default.svc.cluster.local=3", kOld + "=1"));
  EXPECT_FALSE(depends(compiled));
}

TEST(TcpRoutes, OfAVirtualServiceMatchByPortSubnetLabelsAndNamespace) {
  const std::string route = "route: [{destination: {host: old}}]";
  struct {
    std::string match;
    bool page, cart, depends;
  } cases[] = {
      {"[{port: 3306}]", true, true, false},
      {"[{port: 3307}]", false, false, false},
      {"[{destinationSubnets: [10.78.0.0/16]}]", true, true, false},
      {"[{destinationSubnets: [10.79.0.0/16, 10.78.0.1]}]", true, true, false},
      {"[{destinationSubnets: [10.79.0.0/16]}]", false, false, false},
      {"[{sourceLabels: {app: page}}]", true, false, true},
      {"[{sourceNamespace: shop}]", false, true, true},
      {"[{sourceNamespace: shop, port: 3307}]", false, false, true},
      {"[{sourceNamespace: shop}, {sourceLabels: {app: page}}]", true, true, true},
      {"[{gateways: [edge]}]", false, false, false},
      {"[{gateways: [mesh], port: 3306}]", true, true, false},
      {"[{}]", true, true, false},
  };
  for (const auto& c : cases) {
    auto compiled =
        compile_text(kWorld + virtual_service("[{match: " + c.match + ", " + route + "}]"));
    const auto expected = [](bool matched) { return matched ? kOld + "=1" : kOwn; };
    EXPECT_THAT(backends(compiled, kPage), ElementsAre(expected(c.page))) << c.match;
    EXPECT_THAT(backends(compiled, kCart), ElementsAre(expected(c.cart))) << c.match;
    EXPECT_EQ(depends(compiled), c.depends) << c.match;
  }
}

TEST(TcpRoutes, TakeTheFirstRuleThatMatches) {
  auto compiled = compile_text(
      kWorld + virtual_service("[{match: [{sourceNamespace: shop}], route: [{destination: {host: "
                               "old}}]}, {route: [{destination: {host: db, subset: v1}}]}]"));
  EXPECT_THAT(backends(compiled, kPage), ElementsAre(kV1 + "=1"));
  EXPECT_THAT(backends(compiled, kCart), ElementsAre(kOld + "=1"));
}

TEST(TcpRoutes, RefuseTheShareOfWhatIsNotThere) {
  auto compiled = compile_text(
      kWorld + virtual_service("[{route: [{destination: {host: db, subset: v9}, weight: 1}, "
                               "{destination: {host: gone}, weight: 2}, {destination: {host: db}, "
                               "weight: 3}]}]"));
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre(HasSubstr("spec.tcp[0].route[0].destination.subset: no DestinationRule "
                                    "has the subset 'v9' of db.default.svc.cluster.local yet; its "
                                    "share of the connections is refused"),
                          HasSubstr("spec.tcp[0].route[1].destination.host: no Service is named "
                                    "gone.default.svc.cluster.local yet; its share of the "
                                    "connections is refused")));
  EXPECT_THAT(backends(compiled, kPage),
              ElementsAre("-=1", "-=2", "3306||" + std::string(kDb) + "=3"));
}

TEST(TcpRoutes, StandBesideHttpRoutes) {
  auto compiled =
      compile_text(kWorld + virtual_service("[{route: [{destination: {host: old}}]}]",
                                            ", http: [{route: [{destination: {host: db}}]}]"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_THAT(backends(compiled, kPage), ElementsAre(kOld + "=1"));
}

TEST(TcpRoutes, DependOnTheClientWhereItsNamespaceHasSubsetsOfItsOwn) {
  const std::string own =
      "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, "
      "namespace: shop}\nspec: {host: db.default.svc.cluster.local, subsets: [{name: v3}]}\n";
  auto subset = compile_text(kWorld + own +
                             virtual_service("[{route: [{destination: {host: db, subset: v1}}]}]"));
  EXPECT_THAT(backends(subset, kPage), ElementsAre(kV1 + "=1"));
  EXPECT_THAT(backends(subset, kCart), ElementsAre("-=1"));
  EXPECT_TRUE(depends(subset));
  auto whole =
      compile_text(kWorld + own + virtual_service("[{route: [{destination: {host: db}}]}]"));
  EXPECT_FALSE(depends(whole));
}

TEST(TcpRoutes, OfTheGatewayApiHaveWeightsAndRefuseTheShareOfWhatIsMissing) {
  auto compiled = compile_text(
      kWorld + tcp_route("[{backendRefs: [{name: db, port: 3306, weight: 3}, {name: old, port: 5}, "
                         "{name: gone, port: 1, weight: 2}, {name: old, port: 6}, {name: far, "
                         "namespace: shop, port: 3306}, {name: old, port: 5, weight: 0}]}]"));
  EXPECT_THAT(backends(compiled, kPage),
              ElementsAre("3306||" + std::string(kDb) + "=3", kOld + "=1", "-=2", "-=1",
                          "3306||far.shop.svc.cluster.local=1"));
  EXPECT_FALSE(depends(compiled));
  auto nowhere = compile_text(kWorld + tcp_route("[{}]"));
  EXPECT_THAT(texts_of(nowhere.problems), ElementsAre(HasSubstr("every connection is refused")));
  EXPECT_THAT(backends(nowhere, kPage), IsEmpty());
}

TEST(TcpRoutes, OfTheGatewayApiMayBeForOnePort) {
  const std::string rules = "[{backendRefs: [{name: old, port: 5}]}]";
  for (const char* parent :
       {", port: 3306", ", sectionName: sql", ", sectionName: sql, port: 3306"}) {
    auto compiled = compile_text(kWorld + tcp_route(rules, parent));
    EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
    EXPECT_THAT(backends(compiled, kPage), ElementsAre(kOld + "=1")) << parent;
    EXPECT_THAT(backends(compiled, kPage, 3307),
                ElementsAre("3307||db.default.svc.cluster.local=1"));
  }
  for (const char* parent :
       {", port: 1", ", sectionName: x", ", sectionName: sql, port: 3307", ", sectionName: http"}) {
    auto compiled = compile_text(kWorld + tcp_route(rules, parent));
    EXPECT_THAT(
        texts_of(compiled.problems),
        ElementsAre(HasSubstr("spec.parentRefs[0]: db.default.svc.cluster.local has no such "
                              "TCP port")));
    EXPECT_THAT(backends(compiled, kPage), ElementsAre(kOwn)) << parent;
  }
}

TEST(TcpRoutes, OfAConsumerAreForItsOwnClientsAndGoFirst) {
  const std::string to_old = "[{backendRefs: [{name: old, namespace: default, port: 5}]}]";
  const std::string to_far = "[{backendRefs: [{name: far, namespace: shop, port: 3306}]}]";
  auto compiled = compile_text(kWorld + tcp_route(to_old, "", "default", "a") +
                               tcp_route(to_far, "", "shop", "b") +
                               virtual_service("[{route: [{destination: {host: db}}]}]"));
  EXPECT_THAT(backends(compiled, kPage), ElementsAre(kOld + "=1"));
  EXPECT_THAT(backends(compiled, kCart), ElementsAre("3306||far.shop.svc.cluster.local=1"));
  EXPECT_TRUE(depends(compiled));
}

TEST(TcpRoutes, TheOldestOfOnePortWins) {
  auto compiled = compile_text(
      kWorld + tcp_route("[{backendRefs: [{name: old, port: 5}]}]", ", port: 3306", "", "a") +
      tcp_route("[{backendRefs: [{name: db, port: 3307}]}]", ", port: 3306", "", "b"));
  EXPECT_THAT(backends(compiled, kPage), ElementsAre(kOld + "=1"));
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre(HasSubstr("TCPRoute default/b: spec.parentRefs[0]: "
                                    "db.default.svc.cluster.local is already routed by TCPRoute "
                                    "default/a, which is older")));
}

TEST(TcpRoutes, AreReadInBothVersionsAndRefusedWithPlaceAndRemedy) {
  std::string alpha = tcp_route("[{backendRefs: [{name: old, port: 5}]}]");
  alpha.replace(alpha.find("io/v1"), 5, "io/v1alpha2");
  EXPECT_THAT(validate_text(alpha), IsEmpty());
  const auto route = [](std::string_view spec) {
    return "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {name: r}\nspec: "
           "{" +
           std::string(spec) + "}\n";
  };
  const std::string parent = "parentRefs: [{group: '', kind: Service, name: db}]";
  const std::pair<std::string, std::string_view> cases[] = {
      {parent, "spec.rules: is required"},
      {"rules: [{}]", "spec.parentRefs: is required"},
      {"parentRefs: [{name: edge}], rules: [{}]",
       "spec.parentRefs[0].kind: Gateway is not supported yet; write group: \"\" and kind: "
       "Service"},
      {"parentRefs: [{kind: Service, name: db}], rules: [{}]",
       "spec.parentRefs[0].group: must be \"\" for a Service, not 'gateway.networking.k8s.io'"},
      {"parentRefs: [{group: '', kind: Service}], rules: [{}]",
       "spec.parentRefs[0].name: is required"},
      {parent + ", rules: [{backendRefs: [{name: a}]}]",
       "spec.rules[0].backendRefs[0].port: is required for a Service"},
      {parent + ", rules: [{backendRefs: [{kind: Bucket, group: x, name: a, port: 1}]}]",
       "spec.rules[0].backendRefs[0].kind: Bucket is not supported yet; backends are Services"},
      {parent + ", rules: [{backendRefs: [{name: a, port: 1, weight: -1}]}]",
       "spec.rules[0].backendRefs[0].weight: must be a whole number from 0 to 1000000, not -1 (a "
       "number)"},
      {parent + ", rules: [{matches: []}]", "spec.rules[0].matches: unknown field"},
  };
  for (const auto& [spec, expected] : cases)
    EXPECT_THAT(validate_text(route(spec)),
                testing::Contains(
                    HasSubstr("error t.yaml:4: TCPRoute default/r: " + std::string(expected))))
        << spec;
}

}  // namespace
}  // namespace mesh::config
