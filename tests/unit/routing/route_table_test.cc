// Which rule, destination and fault a request gets.
#include "routing/route_table.h"

#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "tests/unit/routing/world.h"

namespace mesh::routing {
namespace {

using config::HttpMatch;
using Kind = Decision::Kind;
using testing::ElementsAre;
using testing::UnorderedElementsAre;

TEST(Decide, TakesTheFirstRuleThatMatches) {
  World world;
  world.add_rules(full_name("reviews"),
                  {rule("a", {{.uri = prefix("/a")}}, {to("reviews", "v1")}),
                   rule("ab", {{.uri = prefix("/ab")}}, {to("reviews", "v2")}),
                   rule("rest", {}, {to("reviews", "v3")})});
  EXPECT_EQ(world.subset(request("/ab")), "v1");
  EXPECT_EQ(world.subset(request("/c")), "v3");
}

TEST(Decide, TakesAnyOfTheMatchesOfARule) {
  World world;
  world.add_rules(full_name("reviews"),
                  {rule("r", {{.uri = exact("/a")}, {.uri = exact("/b")}}, {to("reviews", "v1")})});
  EXPECT_EQ(world.subset(request("/b")), "v1");
}

TEST(Decide, SaysNoRouteWhereRulesExistAndNoneMatches) {
  World world;
  world.add_rules(full_name("reviews"), {rule("", {{.uri = exact("/a")}}, {to("reviews")})});
  EXPECT_EQ(world.decide(request("/b")).kind, Kind::kNoRoute);
}

TEST(Decide, UsesTheServiceItselfWithoutRules) {
  World world;
  const Decision decision = world.decide(request());
  EXPECT_EQ(decision.kind, Kind::kRoute);
  EXPECT_EQ(decision.cluster->name, "outbound|9080||reviews.default.svc.cluster.local");
  EXPECT_EQ(decision.route_name, "default");
  EXPECT_EQ(decision.virtual_service, nullptr);
}

TEST(Decide, UsesTheServiceItselfWhereNoRuleIsForThisClient) {
  World world;
  world.add_rules(full_name("reviews"),
                  {rule("", {{.source_labels = {{"app", "ratings"}}}}, {to("reviews", "v1")})});
  EXPECT_EQ(world.subset(request()), "");
  world.workload.labels["app"] = "ratings";
  EXPECT_EQ(world.subset(request()), "v1");
}

TEST(Decide, SaysClusterNotFoundForAnUnknownDestination) {
  World world;
  world.add_rules(full_name("reviews"),
                  {rule("", {{.uri = exact("/subset")}}, {to("reviews", "v9")}),
                   rule("", {{.uri = exact("/port")}}, {to("reviews", "", 0, 81)}),
                   rule("", {{.uri = exact("/host")}}, {to("nobody")})});
  for (const char* path : {"/subset", "/port", "/host"})
    EXPECT_EQ(world.decide(request(path)).kind, Kind::kClusterNotFound) << path;
}

TEST(Decide, NamesTheRouteAndTheMatch) {
  World world;
  world.add_rules(full_name("reviews"),
                  {rule("reviews", {{.name = "jason", .uri = exact("/j")}, {.uri = exact("/k")}},
                        {to("reviews")}),
                   rule("", {{.name = "only", .uri = exact("/o")}}, {to("reviews")})});
  std::map<std::string, std::string> names;
  for (const char* path : {"/j", "/k", "/o"})
    append_route_name(world.decide(request(path)), names[path]);
  EXPECT_THAT(names, ElementsAre(std::pair("/j", "reviews.jason"), std::pair("/k", "reviews"),
                                 std::pair("/o", ".only")));
}

TEST(Decide, UsesTheOnlyPortOfTheDestinationElseTheOneAskedFor) {
  World world;
  world.add_service("single", {}, {8000});
  world.add_service("several", {}, {8000, 9080});
  world.add_rules(full_name("reviews"), {rule("", {{.uri = exact("/single")}}, {to("single")}),
                                         rule("", {}, {to("several")})});
  EXPECT_EQ(world.decide(request("/single")).cluster->port, 8000);
  EXPECT_EQ(world.decide(request("/several")).cluster->port, 9080);
}

TEST(Decide, PrefersTheDestinationRulesOfTheClientsNamespace) {
  World world;
  world.add_client_cluster("other", "reviews");
  EXPECT_EQ(
      world.decide(request()).cluster,
      world.snapshot.clusters.find("outbound|9080||reviews.default.svc.cluster.local")->second);
  world.workload.name.ns = "other";
  EXPECT_EQ(world.decide(request()).cluster, world.snapshot.client_clusters.begin()->second);
}

TEST(Decide, CarriesTheTimeoutAndItsReasons) {
  World world;
  auto& rules = world.add_rules(full_name("reviews"), {rule("r", {}, {to("reviews", "v2")})});
  EXPECT_EQ(world.decide(request()).timeout.count(), 0);
  rules.http[0].timeout = config::Milliseconds(500);
  const Decision decision = world.decide(request());
  EXPECT_EQ(decision.timeout.count(), 500);
  EXPECT_EQ(decision.virtual_service, &rules);
  EXPECT_EQ(decision.route, &rules.http[0]);
  EXPECT_EQ(decision.destination, &rules.http[0].destinations[0]);
}

// Hosts --------------------------------------------------------------------------------------

TEST(Host, IsKnownByEveryFormOfAServicesName) {
  World world;
  world.add_service("ratings");
  for (const char* host : {"ratings", "ratings.default", "ratings.default.svc",
                           "ratings.default.svc.cluster.local", "10.78.0.2"}) {
    const Decision decision = world.decide(request("/", host));
    ASSERT_EQ(decision.kind, Kind::kRoute) << host;
    EXPECT_EQ(decision.cluster->service->name.name, "ratings") << host;
  }
}

TEST(Host, InItsShortFormBelongsToTheClientsNamespace) {
  World world;
  world.add_service("ratings.other");
  EXPECT_EQ(world.decide(request("/", "ratings")).cluster->service->name.name, "reviews");
  world.workload.name.ns = "other";
  EXPECT_EQ(world.decide(request("/", "ratings")).cluster->service->name.ns, "other");
}

TEST(Host, OfNoServiceAndNoRuleLeavesItToTheOriginalDestination) {
  World world;
  world.add_rules(full_name("reviews"), {rule("", {}, {to("reviews", "v2")})});
  for (const char* host :
       {"example.com", "", "reviews.", "127.0.0.1", "[::1]", "a.b.c.d.e", "[", "."})
    EXPECT_EQ(world.subset(request("/", host)), "v2") << host;
  Client stranger = world.client();
  stranger.service = nullptr;
  const Decision decision = world.decide(stranger, request("/", "example.com"));
  EXPECT_EQ(decision.kind, Kind::kPassthrough);
  EXPECT_EQ(decision.route_name, "allow_any");
}

TEST(Host, OfTheOriginalDestinationIsNotFoundOnAPortThatItHasNot) {
  World world;
  Client client = world.client();
  client.port = 81;
  EXPECT_EQ(world.decide(client, request()).kind, Kind::kClusterNotFound);
}

TEST(Host, OfAServiceWithoutThisPortLeavesItToTheOriginalDestination) {
  World world;
  world.add_service("ratings", {}, {80});
  world.add_rules(full_name("ratings"), {rule("", {}, {to("ratings", "", 0, 80)})});
  EXPECT_EQ(world.decide(request("/", "ratings")).cluster->service->name.name, "reviews");
}

TEST(Host, MayBeOneThatOnlyRulesKnow) {
  World world;
  world.add_rules("shop.example.com", {rule("", {}, {to("reviews", "v1")})});
  world.add_rules("*.example.com", {rule("", {}, {to("reviews", "v3")})});
  EXPECT_EQ(world.subset(request("/", "shop.example.com")), "v1");
  EXPECT_EQ(world.subset(request("/", "other.example.com")), "v3");
  EXPECT_EQ(world.subset(request("/", "example.com")), "");
}

TEST(Host, IsTooLongToBeAnyonesWithoutHarm) {
  World world;
  EXPECT_EQ(world.subset(request("/", std::string(600, 'a'))), "");
}

// Weights ------------------------------------------------------------------------------------

TEST(Weights, ShareRequestsInProportionWhateverTheirSum) {
  struct {
    std::uint32_t v1, v2, v3;
  } const cases[] = {{80, 20, 0}, {90, 10, 0}, {50, 50, 0}, {1, 1, 2}, {3, 0, 1}};
  constexpr int kRequests = 20'000;
  for (const auto& c : cases) {
    World world;
    world.add_rules(
        full_name("reviews"),
        {rule("", {},
              {to("reviews", "v1", c.v1), to("reviews", "v2", c.v2), to("reviews", "v3", c.v3)})});
    std::map<std::string, int> got;
    for (int i = 0; i < kRequests; ++i) ++got[world.subset(request())];
    const double sum = c.v1 + c.v2 + c.v3;
    for (const auto& [subset, weight] :
         std::map<std::string, std::uint32_t>{{"v1", c.v1}, {"v2", c.v2}, {"v3", c.v3}}) {
      const double share = weight / sum;
      EXPECT_NEAR(got[subset], kRequests * share, 4 * std::sqrt(kRequests * share * (1 - share)))
          << subset << " of " << c.v1 << "/" << c.v2 << "/" << c.v3;
    }
  }
}

TEST(Weights, OfASingleDestinationMeanNothing) {
  World world;
  world.add_rules(full_name("reviews"), {rule("", {}, {to("reviews", "v2", 0)})});
  EXPECT_EQ(world.subset(request()), "v2");
}

// Faults -------------------------------------------------------------------------------------

TEST(Faults, AreRolledEachByItselfInPartsPerMillion) {
  World world;
  auto& rules = world.add_rules(full_name("reviews"), {rule("", {}, {to("reviews")})});
  rules.http[0].fault = {.delay = config::Milliseconds(7000),
                         .delay_ppm = 300'000,
                         .abort_status = 555,
                         .abort_ppm = 100'000};
  constexpr int kRequests = 20'000;
  int delayed = 0, aborted = 0, both = 0;
  for (int i = 0; i < kRequests; ++i) {
    const Decision decision = world.decide(request());
    EXPECT_TRUE(decision.abort_status == 0 || decision.abort_status == 555);
    delayed += decision.delay.count() == 7000;
    aborted += decision.abort_status == 555;
    both += decision.delay.count() != 0 && decision.abort_status != 0;
  }
  const auto near = [&](int got, double share) {
    EXPECT_NEAR(got, kRequests * share, 4 * std::sqrt(kRequests * share * (1 - share))) << share;
  };
  near(delayed, 0.3);
  near(aborted, 0.1);
  near(both, 0.03);
}

TEST(Faults, HappenAlwaysAtAHundredPercentAndNeverAtZero) {
  World world;
  auto& rules = world.add_rules(full_name("reviews"), {rule("", {}, {to("reviews")})});
  rules.http[0].fault = {.delay = config::Milliseconds(2000),
                         .delay_ppm = 1'000'000,
                         .abort_status = 500,
                         .abort_ppm = 0};
  for (int i = 0; i < 1000; ++i) {
    const Decision decision = world.decide(request());
    EXPECT_EQ(decision.delay.count(), 2000);
    EXPECT_EQ(decision.abort_status, 0);
  }
}

// Headers ------------------------------------------------------------------------------------

TEST(HostRewrite, ComesFromSetBeforeAddAndFromTheRouteBeforeTheDestination) {
  World world;
  auto& rules = world.add_rules(full_name("reviews"), {rule("", {}, {to("reviews")})});
  auto& route = rules.http[0];
  EXPECT_EQ(world.decide(request()).host_rewrite, "");
  route.destinations[0].request_headers.add = {{"host", "d.add"}};
  EXPECT_EQ(world.decide(request()).host_rewrite, "d.add");
  route.destinations[0].request_headers.set = {{":authority", "d.set"}};
  EXPECT_EQ(world.decide(request()).host_rewrite, "d.set");
  route.request_headers.add = {{"host", "r.add"}};
  EXPECT_EQ(world.decide(request()).host_rewrite, "r.add");
  route.request_headers.set = {{"x-a", "1"}, {"host", "r.set"}};
  EXPECT_EQ(world.decide(request()).host_rewrite, "r.set");
}

struct Edit {
  std::string_view name, value;
  friend bool operator==(const Edit&, const Edit&) = default;
};

TEST(MergeHeaders, PutsTheRouteBeforeTheDestination) {
  const config::HeaderOperations route{.set = {{"a", "r"}, {"b", "r"}, {"host", "h"}},
                                       .add = {{"c", "r"}, {"a", "r2"}},
                                       .remove = {"x", ":path"}};
  const config::HeaderOperations destination{
      .set = {{"a", "d"}, {":scheme", "s"}}, .add = {{"c", "d"}}, .remove = {"y"}};
  std::vector<Edit> set, add;
  std::vector<std::string_view> remove;
  merge_headers(&route, &destination, set, add, remove);
  EXPECT_THAT(remove, ElementsAre("x", "y"));
  EXPECT_THAT(set, ElementsAre(Edit{"b", "r"}, Edit{"a", "d"}));  // the last set wins
  EXPECT_THAT(add, ElementsAre(Edit{"c", "r"}, Edit{"c", "d"}));
}

TEST(MergeHeaders, TakesOneSideAlone) {
  const config::HeaderOperations route{.set = {{"a", "r"}}};
  std::vector<Edit> set, add;
  std::vector<std::string_view> remove;
  merge_headers<Edit>(&route, nullptr, set, add, remove);
  merge_headers<Edit>(nullptr, &route, set, add, remove);
  EXPECT_THAT(set, ElementsAre(Edit{"a", "r"}, Edit{"a", "r"}));
}

// Gateways -----------------------------------------------------------------------------------

class GatewayTest : public testing::Test {
 protected:
  GatewayTest() {
    world.workload.name = {"istio-system", "undermesh-gateway"};
    server.gateway = {"default", "bookinfo-gateway"};
    server.bind = listener;
    server.hosts = {"*"};
    server.host_namespaces = {"*"};
  }

  config::VirtualServicePtr bind(std::string name, std::vector<config::HttpRoute> http) {
    auto service = std::make_shared<config::VirtualService>();
    service->name = {"default", std::move(name)};
    service->hosts = {"*"};
    service->gateways = {"default/bookinfo-gateway"};
    service->http = std::move(http);
    return service;
  }
  void serve(std::vector<config::VirtualServicePtr> services) {
    server.routes.wildcards = {{"*", {std::move(services)}}};
    world.snapshot.gateway_servers = {server};
  }
  std::string subset(const RequestView& r) {
    return world.subset({&world.workload, &listener, 8080, nullptr}, r);
  }

  World world;
  config::GatewayServer server;
  SocketAddress listener{IpAddress::v4(127, 0, 0, 1), 8080};
};

TEST_F(GatewayTest, RoutesByTheServerOfItsListener) {
  serve({bind("a", {rule("", {{.uri = exact("/productpage")}}, {to("reviews", "v1", 0, 9080)})})});
  EXPECT_EQ(subset(request("/productpage", "example.com")), "v1");
  EXPECT_EQ(subset(request("/other", "example.com")), "-");
  EXPECT_EQ(world.decide({&world.workload, &listener, 8080, nullptr}, request("/other")).kind,
            Kind::kNoRoute);
  const SocketAddress elsewhere{IpAddress::v4(127, 0, 0, 1), 8081};
  EXPECT_EQ(
      world.decide({&world.workload, &elsewhere, 8081, nullptr}, request("/productpage")).kind,
      Kind::kNoRoute);
}

TEST_F(GatewayTest, MergesVirtualServicesOldestFirstWithCatchAllsLast) {
  serve({bind("old", {rule("", {{.uri = prefix("/a")}}, {to("reviews", "v1", 0, 9080)}),
                      rule("", {{.uri = prefix("/")}}, {to("reviews", "v3", 0, 9080)}),
                      rule("", {{.uri = prefix("/dead")}}, {to("reviews", "v1", 0, 9080)})}),
         bind("new", {rule("", {{.uri = prefix("/ab")}}, {to("reviews", "v2", 0, 9080)}),
                      rule("", {{.uri = prefix("/n")}}, {to("reviews", "v2", 0, 9080)}),
                      rule("", {}, {to("reviews", "", 0, 9080)})})});
  EXPECT_EQ(subset(request("/ab")), "v1");
  EXPECT_EQ(subset(request("/n")), "v2");
  EXPECT_EQ(subset(request("/else")), "v3");
  EXPECT_EQ(subset(request("/dead")), "v3");
}

TEST_F(GatewayTest, AsksEachMatchForItsGateways) {
  serve({bind(
      "a", {rule("", {{.gateways = {"mesh"}}}, {to("reviews", "v1", 0, 9080)}),
            rule("", {{.gateways = {"default/bookinfo-gatewa"}}}, {to("reviews", "v1", 0, 9080)}),
            rule("", {{.gateways = {"mesh", "default/bookinfo-gateway"}}},
                 {to("reviews", "v2", 0, 9080)})})});
  EXPECT_EQ(subset(request()), "v2");
}

TEST_F(GatewayTest, DoesNotAskLabelsOfAMatchThatNamesIt) {
  const config::Labels labels = {{"app", "productpage"}};
  serve({bind("a", {rule("", {{.source_labels = labels}}, {to("reviews", "v1", 0, 9080)}),
                    rule("", {{.source_labels = labels, .gateways = {"default/bookinfo-gateway"}}},
                         {to("reviews", "v2", 0, 9080)})})});
  world.workload.labels.clear();
  EXPECT_EQ(subset(request()), "v2");
}

TEST_F(GatewayTest, NeverPassesThrough) {
  serve({});
  EXPECT_EQ(world.decide({&world.workload, &listener, 8080, nullptr}, request()).kind,
            Kind::kNoRoute);
}

// Reachable clusters -------------------------------------------------------------------------

class ReachableTest : public testing::Test {
 protected:
  std::vector<std::string> reachable() {
    std::vector<std::string> names;
    for (const auto& cluster :
         reachable_clusters(world.snapshot, world.workload, *world.service("reviews"), 9080))
      names.push_back(cluster->service->name.name + cluster->subset);
    return names;
  }
  World world;
};

TEST_F(ReachableTest, AreTheServicesOwnWithoutRules) {
  EXPECT_THAT(reachable(), ElementsAre("reviews"));
}

TEST_F(ReachableTest, AreThoseOfEveryRuleForThisClientOnce) {
  world.add_service("ratings");
  world.add_rules(
      full_name("reviews"),
      {rule("", {{.uri = prefix("/a")}}, {to("reviews", "v1", 1), to("reviews", "v2", 0)}),
       rule("", {{.source_labels = {{"app", "x"}}}}, {to("reviews", "v3")}),
       rule("", {{.headers = {{"a", present()}}}}, {to("reviews", "v1")}),
       rule("", {{.uri = prefix("/r")}}, {to("ratings")}),
       rule("", {{.uri = prefix("/gone")}}, {to("nobody")})});
  EXPECT_THAT(reachable(), UnorderedElementsAre("reviewsv1", "ratings"));
}

TEST_F(ReachableTest, EndBehindACatchAll) {
  world.add_rules(full_name("reviews"), {rule("", {{.uri = prefix("/")}}, {to("reviews", "v1")}),
                                         rule("", {}, {to("reviews", "v2")})});
  EXPECT_THAT(reachable(), ElementsAre("reviewsv1"));
}

TEST_F(ReachableTest, AreTheServicesOwnWhereNoRuleIsForThisClient) {
  world.add_rules(full_name("reviews"),
                  {rule("", {{.source_namespace = "other"}}, {to("reviews", "v1")})});
  EXPECT_THAT(reachable(), ElementsAre("reviews"));
}

}  // namespace
}  // namespace mesh::routing
