// The lab's exercises as people write them: examples/bookinfo compiled, then asked.
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <map>

#include "config/object.h"
#include "routing/route_table.h"

namespace mesh::routing {
namespace {

constexpr std::string_view kWorkload = R"(
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: NAME, labels: {app: APP, version: VERSION}}
spec:
  address: 10.77.0.NUMBER
  labels: {app: APP, version: VERSION}
)";

class BookInfoTest : public testing::Test {
 protected:
  BookInfoTest() {
    add_file("services.yaml");
    add_file("destination-rules.yaml");
    int number = 1;
    for (const auto& [app, version] :
         std::initializer_list<std::pair<std::string, std::string>>{{"productpage", "v1"},
                                                                    {"details", "v1"},
                                                                    {"ratings", "v1"},
                                                                    {"reviews", "v1"},
                                                                    {"reviews", "v2"},
                                                                    {"reviews", "v3"}}) {
      std::string text(kWorkload);
      const std::map<std::string, std::string> words = {{"NAME", app + "-" + version},
                                                        {"APP", app},
                                                        {"VERSION", version},
                                                        {"NUMBER", std::to_string(number++)}};
      for (const auto& [word, value] : words)
        for (std::size_t at; (at = text.find(word)) != std::string::npos;)
          text.replace(at, word.size(), value);
      add(text, "workload");
    }
  }

  void add_file(const std::string& name) {
    std::ifstream file(MESH_SOURCE_DIR "/examples/bookinfo/config/" + name);
    add({std::istreambuf_iterator<char>(file), {}}, name);
  }
  void add(const std::string& text, const std::string& name) {
    auto parsed = config::parse_objects(text, name);
    ASSERT_TRUE(parsed.has_value()) << name << parsed.error().message;
    for (auto& object : parsed.value()) {
      const auto same = [&](const auto& known) { return known->key == object.key; };
      std::erase_if(objects, same);
      objects.push_back(std::make_shared<const config::Object>(std::move(object)));
    }
  }
  void apply(const std::string& name) {
    add_file(name);
    const auto compiled = config::compile(objects, 1, {});
    for (const auto& problem : compiled.problems)
      EXPECT_EQ(problem.severity, config::Problem::Severity::kWarning) << problem.to_string();
    snapshot = compiled.snapshot;
  }

  Decision ask(std::string_view host, std::string_view user = "",
               std::string_view from = "productpage-v1") {
    const config::Workload& workload = *snapshot->workloads.at({"default", std::string(from)});
    const auto service =
        snapshot->services.find("" + std::string(host) + ".default.svc.cluster.local");
    const Client client{&workload, nullptr, 9080, service->second.get()};
    struct {
      std::string_view name, value;
    } const fields[] = {{"End-User", user}};
    const RequestView request{.method = "GET",
                              .path = "/x/0",
                              .query = {},
                              .host = host,
                              .authority = host,
                              .fields = FieldList(fields, user.empty() ? 0 : 1)};
    return decide(*snapshot, client, request, random);
  }
  std::string subset(std::string_view user = "") {
    const Decision decision = ask("reviews", user);
    return decision.cluster ? decision.cluster->subset : "-";
  }

  std::vector<config::ObjectPtr> objects;
  config::SnapshotPtr snapshot;
  Random random{5};
};

TEST_F(BookInfoTest, EverythingToV1) {
  apply("virtual-service-all-v1.yaml");
  EXPECT_EQ(subset(), "v1");
  EXPECT_EQ(ask("ratings").cluster->subset, "v1");
  ASSERT_EQ(ask("reviews").cluster->endpoints.size(), 1u);
  EXPECT_EQ(ask("reviews").cluster->endpoints[0].workload->name.name, "reviews-v1");
}

TEST_F(BookInfoTest, WithoutRulesEveryVersionIsInReach) {
  apply("services.yaml");
  EXPECT_EQ(ask("reviews").cluster->endpoints.size(), 3u);
}

TEST_F(BookInfoTest, JasonGetsV2) {
  apply("virtual-service-reviews-jason-v2-v3.yaml");
  EXPECT_EQ(subset("jason"), "v2");
  EXPECT_EQ(subset("Jason"), "v3");
  EXPECT_EQ(subset(), "v3");
}

TEST_F(BookInfoTest, SharesAreKept) {
  const std::pair<const char*, double> cases[] = {{"80-20", 0.2}, {"90-10", 0.1}, {"50-50", 0.5}};
  for (const auto& [name, share] : cases) {
    apply(std::string("virtual-service-reviews-") + name + ".yaml");
    std::map<std::string, int> got;
    for (int i = 0; i < 2000; ++i) ++got[subset()];
    ASSERT_EQ(got.size(), 2u) << name;
    EXPECT_NEAR(got.begin()->second, 2000 * (1 - share), 4 * std::sqrt(2000 * share * (1 - share)))
        << name;
  }
}

TEST_F(BookInfoTest, FaultsHitWhomTheyShould) {
  apply("ratings-delay-7s.yaml");
  EXPECT_EQ(ask("ratings", "jason").delay.count(), 7000);
  EXPECT_EQ(ask("ratings").delay.count(), 0);
  EXPECT_EQ(ask("ratings").kind, Decision::Kind::kRoute);
  apply("ratings-abort-500.yaml");
  EXPECT_EQ(ask("ratings", "jason").abort_status, 500);
  EXPECT_EQ(ask("ratings").abort_status, 0);
  apply("details-abort-555.yaml");
  EXPECT_EQ(ask("details").abort_status, 555);
}

TEST_F(BookInfoTest, TheGatewayLetsThePagesPathsIn) {
  apply("gateway.yaml");
  const config::Workload gateway{.name = {"istio-system", "undermesh-gateway"}};
  const SocketAddress listener{IpAddress::v4(127, 0, 0, 1), 8080};
  const Client client{&gateway, &listener, 8080, nullptr};
  const auto kind = [&](std::string_view path) {
    const RequestView request{.method = "GET",
                              .path = path,
                              .query = {},
                              .host = "localhost",
                              .authority = "localhost:8080"};
    return decide(*snapshot, client, request, random).kind;
  };
  for (const char* path : {"/productpage", "/static/x.css", "/login", "/api/v1/products/0"})
    EXPECT_EQ(kind(path), Decision::Kind::kRoute) << path;
  for (const char* path : {"/", "/productpage/", "/reviews/0"})
    EXPECT_EQ(kind(path), Decision::Kind::kNoRoute) << path;
}

}  // namespace
}  // namespace mesh::routing
