#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::string policy(std::string_view spec, std::string_view name = "p",
                   std::string_view ns = "books") {
  return "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) + "}\nspec: {" + std::string(spec) +
         "}\n";
}

std::string entry(std::string_view name, std::string_view address, std::string_view labels,
                  std::string_view ns = "books", std::string_view rest = "") {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) +
         "}\nspec: {address: " + std::string(address) + ", labels: {" + std::string(labels) + "}" +
         std::string(rest) + "}\n";
}

const std::string kWorld =
    "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: sales, "
    "kubernetes.io/metadata.name: books}}\n" +
    entry("page", "10.77.0.1", "app: page") +
    entry("db", "10.77.0.2", "app: db, tier: back", "books", ", ports: {sql: 3306, dns: 53}") +
    entry("cache", "10.77.0.3", "app: cache, tier: back", "books", ", ports: {sql: 6379}") +
    entry("cart", "10.77.1.1", "app: cart", "shop") +
    entry("page2", "10.77.1.2", "app: page", "shop");

class World {
 public:
  explicit World(const std::string& policies, const CompileOptions& options = {})
      : compiled_(compile_text(kWorld + policies, options)) {}

  std::vector<std::string> problems() const { return texts_of(compiled_.problems); }
  const Compiled& compiled() const { return compiled_; }

  // A workload by name, or a stranger by address.
  Peer peer(const std::string& name) const {
    for (const auto& [key, workload] : compiled_.snapshot->workloads)
      if (key.name == name) return {workload.get(), workload->addresses.front()};
    return {nullptr, IpAddress::parse(name).value()};
  }
  // "db:3306", "db:53/UDP"
  std::string ask(const std::string& client, const std::string& server) const {
    const std::size_t colon = server.rfind(':');
    const auto port = static_cast<std::uint16_t>(std::stoi(server.substr(colon + 1)));
    const Verdict verdict =
        authorize(*compiled_.snapshot, peer(client), peer(server.substr(0, colon)),
                  server.ends_with("/UDP") ? Transport::kUdp : Transport::kTcp, port);
    return (verdict.allowed ? "allowed " : "denied ") + verdict.policy +
           (verdict.policy.empty() ? "" : "[" + std::to_string(verdict.rule) + "]");
  }
  bool may(const std::string& client, const std::string& server) const {
    return ask(client, server).starts_with("allowed");
  }

 private:
  Compiled compiled_;
};

TEST(NetworkPolicy, WithoutRulesDeniesByDefaultInItsDirections) {
  const World in(policy("podSelector: {matchLabels: {app: db}}"));
  EXPECT_THAT(in.problems(), IsEmpty());
  EXPECT_EQ(in.ask("page", "db:3306"), "denied NetworkPolicy books/p[-1]");
  EXPECT_EQ(in.ask("192.0.2.1", "db:53/UDP"), "denied NetworkPolicy books/p[-1]");
  EXPECT_EQ(in.ask("db", "page:80"), "allowed ");
  EXPECT_EQ(in.ask("page", "cache:80"), "allowed ");
  EXPECT_EQ(in.ask("db", "db:3306"), "allowed ") << "itself";
  const World out(policy("podSelector: {}, policyTypes: [Egress]"));
  EXPECT_EQ(out.ask("page", "db:3306"), "denied NetworkPolicy books/p[-1]");
  EXPECT_EQ(out.ask("page", "192.0.2.1:53/UDP"), "denied NetworkPolicy books/p[-1]");
  EXPECT_EQ(out.ask("cart", "db:3306"), "allowed ");
  EXPECT_EQ(out.ask("page", "page:80"), "allowed ") << "itself";
  const World both(policy("podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]"));
  EXPECT_FALSE(both.may("page", "db:1"));
  EXPECT_FALSE(both.may("db", "page:1"));
}

TEST(NetworkPolicy, TakesItsTypesFromItsRulesWhereItNamesNone) {
  const World open(policy("podSelector: {}, egress: [{}]"));
  EXPECT_FALSE(open.may("cart", "db:1")) << "Ingress is always meant";
  EXPECT_EQ(open.ask("page", "cart:1"), "allowed NetworkPolicy books/p[0]");
  const World empty(policy("podSelector: {}, egress: []"));
  EXPECT_EQ(empty.ask("page", "cart:1"), "allowed ") << "an empty list is no section";
}

// Each rule stands in a policy for db's ingress, or for page's egress.
TEST(NetworkPolicy, MatchesPeersAndPorts) {
  struct {
    std::string_view rule;  // "from" stands for both
    std::vector<std::string> allowed, denied;
  } cases[] = {
      {"", {"page 3306", "cart 1", "192.0.2.1 53/UDP"}, {}},
      {"from: []", {"page 3306", "192.0.2.1 1"}, {}},
      {"from: [{podSelector: {}}]", {"page 1", "cache 1/UDP"}, {"cart 1", "192.0.2.1 1"}},
      {"from: [{podSelector: {matchLabels: {app: page}}}]", {"page 1"}, {"cache 1", "page2 1"}},
      {"from: [{namespaceSelector: {}}]", {"page 1", "cart 1"}, {"192.0.2.1 1"}},
      {"from: [{namespaceSelector: {matchLabels: {team: sales}}}]", {"cart 1"}, {"page 1"}},
      {"from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: books}}}]",
       {"page 1"},
       {"cart 1"}},
      {"from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]",
       {"cart 1"},
       {"page 1"}},
      {"from: [{namespaceSelector: {matchExpressions: [{key: team, operator: DoesNotExist}]}}]",
       {"page 1"},
       {"cart 1"}},
      {"from: [{namespaceSelector: {matchLabels: {team: sales}}, podSelector: {matchLabels: {app: "
       "page}}}]",
       {"page2 1"},
       {"page 1", "cart 1"}},
      {"from: [{namespaceSelector: {matchLabels: {team: sales}}}, {podSelector: {matchLabels: "
       "{app: page}}}]",
       {"page 1", "cart 1", "page2 1"},
       {"cache 1"}},
      {"from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [page, x]}]}}]",
       {"page 1"},
       {"cache 1"}},
      {"from: [{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [back]}]}}]",
       {"page 1"},
       {"cache 1"}},
      {"from: [{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]",
       {"cache 1"},
       {"page 1"}},
      {"from: [{podSelector: {matchLabels: {app: cache}, matchExpressions: [{key: tier, operator: "
       "DoesNotExist}]}}]",
       {},
       {"page 1", "cache 1"}},
      {"from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]",
       {"192.0.2.1 1"},
       {"192.0.2.129 1", "192.0.3.1 1", "page 1", "fd77::1 1"}},
      {"from: [{ipBlock: {cidr: 10.77.0.0/16, except: [10.77.1.0/24]}}]",
       {"page 1", "cache 1"},
       {"cart 1"}},
      {"from: [{ipBlock: {cidr: 0.0.0.0/0}}]", {"192.0.2.1 1", "page 1"}, {"fd77::1 1"}},
      {"from: [{ipBlock: {cidr: '::/0'}}]", {"fd77::1 1"}, {"192.0.2.1 1"}},
      {"ports: [{port: 3306}]", {"page 3306"}, {"page 3306/UDP", "page 3307"}},
      {"ports: [{port: 53, protocol: UDP}]", {"page 53/UDP"}, {"page 53"}},
      {"ports: [{protocol: UDP}]", {"page 1/UDP", "page 9/UDP"}, {"page 1"}},
      {"ports: [{port: 100, endPort: 200}, {port: 7}]",
       {"page 100", "page 150", "page 200", "page 7"},
       {"page 99", "page 201", "page 150/UDP"}},
      {"ports: [{port: 65535, endPort: 65535}]", {"page 65535"}, {"page 65534"}},
      {"from: [{podSelector: {matchLabels: {app: page}}}], ports: [{port: 1}]",
       {"page 1"},
       {"page 2", "cache 1"}},
  };
  for (const auto& c : cases) {
    std::string rule(c.rule);
    const World in(policy("podSelector: {matchLabels: {app: db}}, ingress: [{" + rule + "}]"));
    if (rule.starts_with("from")) rule.replace(0, 4, "to");
    const World out(policy(
        "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{" + rule + "}]"));
    EXPECT_THAT(in.problems(), IsEmpty()) << rule;
    EXPECT_THAT(out.problems(), IsEmpty()) << rule;
    for (const auto* list : {&c.allowed, &c.denied})
      for (const std::string& flow : *list) {
        const std::size_t space = flow.find(' ');
        const std::string peer = flow.substr(0, space), port = ":" + flow.substr(space + 1);
        EXPECT_EQ(in.may(peer, "db" + port), list == &c.allowed) << rule << ": " << flow;
        EXPECT_EQ(out.may("db", peer + port), list == &c.allowed) << rule << ": to " << flow;
      }
  }
}

TEST(NetworkPolicy, TakesNamedPortsFromTheServer) {
  const World in(
      policy("podSelector: {matchLabels: {tier: back}}, ingress: [{ports: [{port: sql}, "
             "{port: dns, protocol: UDP}]}]"));
  EXPECT_THAT(in.problems(), IsEmpty());
  EXPECT_TRUE(in.may("page", "db:3306"));
  EXPECT_FALSE(in.may("page", "db:6379"));
  EXPECT_TRUE(in.may("page", "cache:6379"));
  EXPECT_TRUE(in.may("page", "db:53/UDP"));
  EXPECT_FALSE(in.may("page", "db:53"));
  const World out(
      policy("podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: sql}]}]"));
  EXPECT_TRUE(out.may("page", "db:3306"));
  EXPECT_TRUE(out.may("page", "cache:6379"));
  EXPECT_FALSE(out.may("db", "cache:3306")) << "the client's own port is not meant";
  EXPECT_FALSE(out.may("page", "192.0.2.1:3306"));
}

TEST(NetworkPolicy, PoliciesAndRulesAddUp) {
  const World world(
      policy("podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1}]}, {ports: "
             "[{port: 2}]}]",
             "a") +
      policy("podSelector: {}, ingress: [{ports: [{port: 3}]}]", "b") +
      policy("podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 1, endPort: 3}]}]",
             "c"));
  EXPECT_EQ(world.ask("page", "db:1"), "allowed NetworkPolicy books/a[0]");
  EXPECT_EQ(world.ask("page", "db:2"), "allowed NetworkPolicy books/a[1]");
  EXPECT_EQ(world.ask("page", "db:3"), "allowed NetworkPolicy books/b[0]");
  EXPECT_EQ(world.ask("cart", "db:4"), "denied NetworkPolicy books/a[-1]");
  EXPECT_EQ(world.ask("page", "db:4"), "denied NetworkPolicy books/c[-1]") << "the client is first";
  EXPECT_EQ(world.ask("page", "cache:1"), "denied NetworkPolicy books/b[-1]");
}

TEST(NetworkPolicy, AndAuthorizationPolicyMustBothAllow) {
  const auto authorization = [](std::string_view spec) {
    return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, "
           "namespace: books}\nspec: {" +
           std::string(spec) + "}\n";
  };
  const std::string network = policy(
      "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: "
      "page}}}]}]");
  EXPECT_EQ(World(network + authorization("rules: [{}]")).ask("page", "db:1"),
            "allowed AuthorizationPolicy books/a[0]");
  EXPECT_EQ(World(network + authorization("rules: [{}]")).ask("cache", "db:1"),
            "denied NetworkPolicy books/p[-1]");
  EXPECT_EQ(World(network + authorization("")).ask("page", "db:1"),
            "denied AuthorizationPolicy books/a[-1]");
  EXPECT_EQ(World(network + authorization("")).ask("page", "db:1/UDP"),
            "allowed NetworkPolicy books/p[0]");
}

TEST(NetworkPolicy, LetsInThisNodesOwnAddresses) {
  CompileOptions options;
  options.node_addresses = {IpAddress::v4(10, 77, 0, 254)};
  const World world(policy("podSelector: {}, policyTypes: [Ingress, Egress]"), options);
  EXPECT_TRUE(world.may("10.77.0.254", "db:1"));
  EXPECT_FALSE(world.may("10.77.0.253", "db:1"));
  EXPECT_FALSE(world.may("db", "10.77.0.254:1"));
  const World refused(policy("podSelector: {}, ingress: [{form: []}]"), options);
  EXPECT_FALSE(refused.may("10.77.0.254", "db:1"));
}

TEST(NetworkPolicy, IsRefusedWithPlaceAndRemedy) {
  const auto in = [](std::string_view rule) {
    return "podSelector: {}, ingress: [{" + std::string(rule) + "}]";
  };
  const std::pair<std::string, std::string_view> cases[] = {
      {"podSelecter: {}", "spec.podSelecter: unknown field (did you mean podSelector?)"},
      {"podSelector: {}, policyTypes: [ingress]",
       "spec.policyTypes: must be Ingress, Egress or both, not 'ingress'"},
      {"podSelector: {matchLabels: {a: 1}}",
       "spec.podSelector.matchLabels.a: must be a string, not 1 (a number); write it in quotes"},
      {"podSelector: {matchExpressions: [{key: a, operator: Equals}]}",
       "spec.podSelector.matchExpressions[0].operator: must be In, NotIn, Exists or DoesNotExist, "
       "not 'Equals'"},
      {"podSelector: {matchExpressions: [{key: a, operator: In}]}",
       "spec.podSelector.matchExpressions[0].values: is required with the operator In"},
      {"podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
       "spec.podSelector.matchExpressions[0].values: must be empty with the operator Exists"},
      {"podSelector: {matchExpressions: [{operator: Exists}]}",
       "spec.podSelector.matchExpressions[0].key: is required"},
      {in("to: [{podSelector: {}}]"), "spec.ingress[0].to: unknown field"},
      {in("from: [{}]"),
       "spec.ingress[0].from[0]: must have podSelector, namespaceSelector or ipBlock"},
      {in("from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]"),
       "spec.ingress[0].from[0].ipBlock: cannot stand beside podSelector or namespaceSelector"},
      {in("from: [{ipBlock: {cidr: 10.0.0.1}}]"),
       "spec.ingress[0].from[0].ipBlock.cidr: must be a block of addresses such as 10.0.0.0/8, not "
       "'10.0.0.1'"},
      {in("from: [{ipBlock: {cidr: 10.0.0.0/33}}]"),
       "spec.ingress[0].from[0].ipBlock.cidr: must be a block of addresses such as 10.0.0.0/8, not "
       "'10.0.0.0/33'"},
      {in("from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]"),
       "spec.ingress[0].from[0].ipBlock.except: '11.0.0.0/16' is not a part of 10.0.0.0/8"},
      {in("from: [{ipBlock: {}}]"), "spec.ingress[0].from[0].ipBlock.cidr: is required"},
      {in("ports: [{protocol: SCTP}]"),
       "spec.ingress[0].ports[0].protocol: SCTP is not supported; use TCP or UDP"},
      {in("ports: [{protocol: tcp}]"),
       "spec.ingress[0].ports[0].protocol: must be TCP or UDP, not 'tcp'"},
      {in("ports: [{port: 0}]"),
       "spec.ingress[0].ports[0].port: must be a whole number from 1 to 65535, not 0 (a number)"},
      {in("ports: [{port: '80'}]"),
       "spec.ingress[0].ports[0].port: must be a number, or the name of a port of the server, not "
       "'80'"},
      {in("ports: [{port: 80, endPort: 79}]"),
       "spec.ingress[0].ports[0].endPort: must not be less than port"},
      {in("ports: [{endPort: 79}]"),
       "spec.ingress[0].ports[0].endPort: needs port, the first of the range"},
      {in("ports: [{port: http, endPort: 79}]"),
       "spec.ingress[0].ports[0].endPort: needs a number as port"},
  };
  for (const auto& [spec, expected] : cases) {
    const World world(policy(spec));
    EXPECT_THAT(world.compiled().refused, SizeIs(1)) << spec;
    EXPECT_THAT(world.problems(),
                Contains(HasSubstr("NetworkPolicy books/p: " + std::string(expected))))
        << spec;
  }
  EXPECT_THAT(
      validate_text(policy("podSelector: {},\n  ingress: [{ports: [{protocol: SCTP}]}]")),
      ElementsAre("error t.yaml:6: NetworkPolicy books/p: spec.ingress[0].ports[0].protocol: SCTP "
                  "is not supported; use TCP or UDP",
                  "error t.yaml:2: NetworkPolicy books/p: the policy is refused: it denies every "
                  "connection to and of what it selects until it is mended or deleted"));
}

TEST(NetworkPolicy, ThatIsRefusedDeniesWhatItSelects) {
  struct {
    std::string_view spec;
    std::vector<std::string> denied, allowed;  // "client server"
  } cases[] = {
      // an error in a rule: the directions that it names
      {"podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{}, {form: []}]",
       {"page db"},
       {"db page", "page cache"}},
      {"podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{}, {form: []}]",
       {"db page"},
       {"page db", "page cache"}},
      // no directions, or none that can be read: both
      {"podSelector: {matchLabels: {app: db}}, ingress: [{}, {form: []}]",
       {"page db", "db page"},
       {"page cache"}},
      {"podSelector: {matchLabels: {app: db}}, policyTypes: [Ingres], ingress: [{}]",
       {"page db", "db page"},
       {"page cache"}},
      {"podSelector: {matchLabels: {app: db}}, egres: [{}], ingress: [{}]",
       {"page db", "db page"},
       {"page cache"}},
      // a selector that cannot be read: the whole namespace
      {"podSelector: {matchLabels: {app: 1}}, policyTypes: [Ingress]",
       {"page db", "page cache"},
       {"page cart"}},
      {"podSelecter: {matchLabels: {app: db}}, policyTypes: [Ingress]",
       {"page db", "page cache"},
       {"page cart"}},
      {"podSelector: [], policyTypes: [Ingress]", {"page db", "page cache"}, {"page cart"}},
  };
  for (const auto& c : cases) {
    // Beside one that would allow it all.
    const World world(policy(c.spec) +
                      policy("podSelector: {}, ingress: [{}], egress: [{}]", "open"));
    EXPECT_THAT(world.compiled().refused, SizeIs(1)) << c.spec;
    for (const auto* list : {&c.allowed, &c.denied})
      for (const std::string& flow : *list) {
        const std::size_t space = flow.find(' ');
        EXPECT_EQ(world.may(flow.substr(0, space), flow.substr(space + 1) + ":1"),
                  list == &c.allowed)
            << c.spec << ": " << flow;
      }
  }
}

TEST(NetworkPolicy, InTwoFilesOrOfAnUnknownVersionDenies) {
  const std::string open = policy("podSelector: {matchLabels: {app: db}}, ingress: [{}]");
  EXPECT_FALSE(World(open + open).may("page", "db:1"));
  std::string future = open;
  future.replace(future.find("io/v1"), 5, "io/v9");
  EXPECT_FALSE(World(future).may("page", "db:1"));
  EXPECT_TRUE(World(future).may("page", "cache:1"));
}

TEST(NetworkPolicy, WarnsOfRulesThatItsTypesLeaveOut) {
  EXPECT_THAT(
      World(policy("podSelector: {}, policyTypes: [Ingress], egress: [{}]")).problems(),
      ElementsAre(HasSubstr("spec.egress: has no effect: policyTypes does not name Egress")));
  EXPECT_THAT(World(policy("podSelector: {}, policyTypes: [Egress], ingress: [{}]")).problems(),
              ElementsAre(HasSubstr("spec.ingress: has no effect")));
}

}  // namespace
}  // namespace mesh::config
