#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::IsEmpty;
using testing::SizeIs;

std::string policy(std::string_view spec, std::string_view name = "p",
                   std::string_view ns = "books") {
  return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) + "}\nspec: {" + std::string(spec) +
         "}\n";
}

// reviews is HTTP, db is TCP; clients productpage and ratings.
const std::string kBooks = R"(---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: books}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: books}
spec: {selector: {app: db}, ports: [{name: mysql, port: 3306}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews, namespace: books}
spec: {address: 10.77.0.1, labels: {app: reviews}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db, namespace: books}
spec: {address: 10.77.0.2, labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: productpage, namespace: books}
spec: {address: 10.77.0.3, labels: {app: productpage}, serviceAccount: productpage}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: ratings, namespace: books}
spec: {address: 10.77.0.4, labels: {app: ratings}, serviceAccount: ratings}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: shop, namespace: shop}
spec: {address: 10.77.0.5, labels: {app: shop}}
)";

std::string verdict(const Compiled& compiled, ObjectName client, ObjectName server,
                    std::uint16_t port = 9080) {
  const auto& workloads = compiled.snapshot->workloads;
  Verdict result = authorize(*compiled.snapshot, *workloads.at(client), *workloads.at(server),
                             {workloads.at(server)->addresses.front(), port});
  return (result.allowed ? "allowed " : "denied ") + result.policy +
         (result.policy.empty() ? "" : "[" + std::to_string(result.rule) + "]");
}

constexpr auto kPage = "productpage";
ObjectName books(std::string_view name) { return {"books", std::string(name)}; }

TEST(Authorization, AllowsWithoutPolicies) {
  EXPECT_EQ(verdict(compile_text(kBooks), books(kPage), books("reviews")), "allowed ");
}

TEST(Authorization, AllowsWhatAnAllowPolicyNamesAndNothingElse) {
  auto compiled = compile_text(
      kBooks + policy("selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: "
                      "{principals: [cluster.local/ns/books/sa/productpage]}}]}]"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "allowed AuthorizationPolicy books/p[0]");
  EXPECT_EQ(verdict(compiled, books("ratings"), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
  EXPECT_EQ(verdict(compiled, books("ratings"), books("db")), "allowed ");
  EXPECT_EQ(verdict(compiled, books("reviews"), books("reviews")), "allowed ") << "itself";
}

TEST(Authorization, DeniesFirst) {
  auto compiled = compile_text(
      kBooks + policy("rules: [{}]", "everyone") +
      policy("action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}, {from: [{source: "
             "{namespaces: [shop]}}]}]",
             "no-shop"));
  EXPECT_EQ(verdict(compiled, {"shop", "shop"}, books("reviews")),
            "denied AuthorizationPolicy books/no-shop[1]");
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "allowed AuthorizationPolicy books/everyone[0]");
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews"), 1),
            "denied AuthorizationPolicy books/no-shop[0]");
}

TEST(Authorization, NothingMatchesWithoutRules) {
  EXPECT_EQ(verdict(compile_text(kBooks + policy("")), books(kPage), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
  EXPECT_EQ(verdict(compile_text(kBooks + policy("action: DENY")), books(kPage), books("reviews")),
            "allowed ");
}

TEST(Authorization, OfTheRootNamespaceIsEverywhere) {
  auto compiled =
      compile_text(kBooks + policy("selector: {matchLabels: {app: reviews}}", "p", "istio-system") +
                   policy("", "q", "other"));
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "denied AuthorizationPolicy istio-system/p[-1]");
  EXPECT_EQ(verdict(compiled, books(kPage), books("db")), "allowed ");
}

TEST(Authorization, TakesTheAddressThatTheClientUses) {
  auto compiled =
      compile_text(kBooks + policy("rules: [{from: [{source: {ipBlocks: [10.77.0.0/30]}}]}]"));
  const Snapshot& snapshot = *compiled.snapshot;
  const Workload& page = *snapshot.workloads.at(books(kPage));
  const Workload& reviews = *snapshot.workloads.at(books("reviews"));
  EXPECT_TRUE(authorize(snapshot, page, reviews, {reviews.addresses[0], 1}).allowed);
  EXPECT_FALSE(authorize(snapshot, {&page, IpAddress::parse("fd77::3").value()}, {&reviews, {}},
                         Transport::kTcp, 1)
                   .allowed);
  EXPECT_EQ(verdict(compiled, books("ratings"), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
}

TEST(Authorization, AsksForEveryAddressThatTheClientMayUse) {
  auto compiled = compile_text(kBooks + policy("action: DENY, rules: [{from: [{source: {ipBlocks: "
                                               "[10.77.1.4, 'fd77::4']}}]}]"));
  const Snapshot& snapshot = *compiled.snapshot;
  const Workload& reviews = *snapshot.workloads.at(books("reviews"));
  Workload client;
  client.name = {"books", "client"};
  const auto allowed = [&](std::vector<const char*> addresses, const char* to) {
    client.addresses.clear();
    for (const char* text : addresses) client.addresses.push_back(IpAddress::parse(text).value());
    return authorize(snapshot, client, reviews, {IpAddress::parse(to).value(), 1}).allowed;
  };
  EXPECT_TRUE(allowed({"10.77.1.3"}, "10.77.0.1"));
  EXPECT_FALSE(allowed({"10.77.1.3", "10.77.1.4"}, "10.77.0.1")) << "not only the first";
  EXPECT_FALSE(allowed({"10.77.1.3", "fd77::4"}, "fd77::1")) << "the family that is used";
  EXPECT_TRUE(allowed({"10.77.1.3", "fd77::4"}, "10.77.0.1"));
}

TEST(Authorization, AnAddressThatIsNotKnownOpensNothing) {
  const Workload gateway{.name = {"istio-system", "gateway"}};
  const std::pair<const char*, bool> cases[] = {
      {"action: DENY, rules: [{from: [{source: {ipBlocks: [192.0.2.1]}}]}]", false},
      {"action: DENY, rules: [{from: [{source: {notIpBlocks: [192.0.2.1]}}]}]", false},
      {"action: DENY, rules: [{when: [{key: source.ip, values: [192.0.2.1]}]}]", false},
      {"action: DENY, rules: [{from: [{source: {ipBlocks: [192.0.2.1], namespaces: [x]}}]}]", true},
      {"rules: [{from: [{source: {ipBlocks: ['::/0']}}]}]", false},
      {"rules: [{from: [{source: {notIpBlocks: [192.0.2.1]}}]}]", false},
      {"rules: [{from: [{source: {namespaces: [istio-system]}}]}]", true},
  };
  for (const auto& [spec, expected] : cases) {
    auto compiled = compile_text(kBooks + policy(spec));
    EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
    const Workload& reviews = *compiled.snapshot->workloads.at(books("reviews"));
    EXPECT_EQ(authorize(*compiled.snapshot, gateway, reviews, {reviews.addresses[0], 9080}).allowed,
              expected)
        << spec;
  }
}

TEST(Authorization, AStrangerIsInNoListOfIdentities) {
  const std::pair<const char*, bool> matches[] = {
      {"principals: ['*']", false},
      {"namespaces: ['*']", false},
      {"serviceAccounts: [books/default]", false},
      {"notPrincipals: ['*']", true},
      {"notPrincipals: [cluster.local/ns/books/sa/ratings]", true},
      {"notNamespaces: ['*']", true},
      {"notServiceAccounts: [books/default]", true},
      {"ipBlocks: [192.0.2.0/24]", true},
      {"ipBlocks: [192.0.3.0/24]", false},
      {"notIpBlocks: [192.0.2.7]", false},
      {"notPrincipals: ['*'], ipBlocks: [192.0.2.0/24]", true},
      {"principals: ['*'], ipBlocks: [192.0.2.0/24]", false},
  };
  const Peer stranger{nullptr, IpAddress::v4(192, 0, 2, 7)};
  for (const auto& [source, expected] : matches)
    for (const bool denies : {false, true}) {
      auto compiled =
          compile_text(kBooks + policy(std::string(denies ? "action: DENY, " : "") +
                                       "rules: [{from: [{source: {" + source + "}}]}]"));
      EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
      const Workload& reviews = *compiled.snapshot->workloads.at(books("reviews"));
      const Verdict got = authorize(*compiled.snapshot, stranger, {&reviews, reviews.addresses[0]},
                                    Transport::kTcp, 9080);
      EXPECT_EQ(got.allowed, expected != denies) << source;
    }
}

TEST(Authorization, OfWhatStrangersServeIsNoneOfOurs) {
  auto compiled = compile_text(kBooks + policy("", "p", "istio-system"));
  const Workload& page = *compiled.snapshot->workloads.at(books(kPage));
  EXPECT_TRUE(authorize(*compiled.snapshot, {&page, page.addresses[0]},
                        {nullptr, IpAddress::v4(192, 0, 2, 7)}, Transport::kTcp, 443)
                  .allowed);
}

TEST(Authorization, SpeaksOfTcpOnly) {
  auto compiled = compile_text(kBooks + policy(""));
  const Workload& page = *compiled.snapshot->workloads.at(books(kPage));
  const Workload& reviews = *compiled.snapshot->workloads.at(books("reviews"));
  const Peer client{&page, page.addresses[0]}, server{&reviews, reviews.addresses[0]};
  EXPECT_FALSE(authorize(*compiled.snapshot, client, server, Transport::kTcp, 53).allowed);
  EXPECT_TRUE(authorize(*compiled.snapshot, client, server, Transport::kUdp, 53).allowed);
}

TEST(Authorization, OfAStrictWorkloadIsDeniedUnlessSomethingLetsItIn) {
  std::string world = kBooks;
  const std::string plain = "metadata: {name: reviews, namespace: books}\nspec: {address";
  world.replace(world.find(plain), plain.size(),
                "metadata: {name: reviews, namespace: books, annotations: {undermesh.io/mode: "
                "strict}}\nspec: {address");
  const std::string network =
      "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: net, "
      "namespace: "
      "books}\nspec: {podSelector: {}, policyTypes: ";
  const std::string page = "from: [{source: {principals: ['*/sa/productpage']}}]";
  struct {
    std::string policies, tcp, udp;
  } cases[] = {
      {"", "denied default of strict workloads", "denied default of strict workloads"},
      {policy("action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}]"),
       "denied default of strict workloads", "denied default of strict workloads"},
      {policy("action: DENY, rules: [{}]"), "denied AuthorizationPolicy books/p",
       "denied AuthorizationPolicy books/p"},
      {policy("action: AUDIT, rules: [{}]"), "denied default of strict workloads",
       "denied default of strict workloads"},
      {policy("rules: [{" + page + "}]"), "allowed AuthorizationPolicy books/p",
       "allowed AuthorizationPolicy books/p"},
      {policy("rules: [{to: [{operation: {ports: ['1']}}]}]"), "denied AuthorizationPolicy books/p",
       "denied AuthorizationPolicy books/p"},
      {network + "[Egress], egress: [{}]}\n", "denied default of strict workloads",
       "denied default of strict workloads"},
      {network + "[Ingress], ingress: [{ports: [{port: 9080}]}]}\n",
       "allowed NetworkPolicy books/net", "denied NetworkPolicy books/net"},
  };
  for (const auto& c : cases) {
    auto compiled = compile_text(world + c.policies);
    EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
    const auto& workloads = compiled.snapshot->workloads;
    const auto ask = [&](std::string_view server, Transport transport) {
      const Verdict got = authorize(*compiled.snapshot, {workloads.at(books(kPage)).get(), {}},
                                    {workloads.at(books(server)).get(), {}}, transport, 9080);
      return (got.allowed ? "allowed " : "denied ") + got.policy;
    };
    EXPECT_EQ(ask("reviews", Transport::kTcp), c.tcp) << c.policies;
    EXPECT_EQ(ask("reviews", Transport::kUdp), c.udp) << c.policies;
    EXPECT_NE(ask("db", Transport::kUdp), "denied default of strict workloads");
    EXPECT_TRUE(authorize(*compiled.snapshot, {workloads.at(books("reviews")).get(), {}},
                          {workloads.at(books("reviews")).get(), {}}, Transport::kUdp, 1)
                    .allowed)
        << "itself";
  }
}

TEST(Authorization, AnAuditPolicyIsNamedAndChangesNothing) {
  const std::string audit = policy(
      "action: AUDIT, rules: [{to: [{operation: {ports: ['1']}}]}, {from: [{source: "
      "{principals: ['*/sa/productpage']}}]}]",
      "audit");
  struct {
    std::string others, expected;
  } cases[] = {
      {"", "allowed "},
      {policy("", "none"), "denied AuthorizationPolicy books/none[-1]"},
      {policy("rules: [{}]", "all"), "allowed AuthorizationPolicy books/all[0]"},
      {policy("action: DENY, rules: [{}]", "deny"), "denied AuthorizationPolicy books/deny[0]"},
  };
  for (const auto& c : cases) {
    auto compiled = compile_text(kBooks + audit + c.others);
    EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
    EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")), c.expected);
    EXPECT_EQ(verdict(compiled, books("ratings"), books("reviews")), c.expected);
    const auto& workloads = compiled.snapshot->workloads;
    const auto audit_of = [&](std::string_view client) {
      return authorize(*compiled.snapshot, {workloads.at(books(client)).get(), {}},
                       {workloads.at(books("reviews")).get(), {}}, Transport::kTcp, 9080)
          .audit;
    };
    EXPECT_EQ(audit_of(kPage), (Verdict::Audit{"AuthorizationPolicy books/audit", 1}))
        << c.expected;
    EXPECT_EQ(audit_of("ratings"), std::nullopt);
  }
}

TEST(Authorization, ARefusedAuditPolicyAuditsNothing) {
  auto compiled = compile_text(kBooks + policy("action: AUDIT, rules: [{}], extra: 1"));
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre(testing::HasSubstr("spec.extra: unknown field"),
                          testing::HasSubstr(
                              "the policy is refused: it audits nothing until it is mended")));
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")), "allowed ");
}

TEST(Authorization, AnAuditPolicyLeavesOutHttpFieldsOnTcpPorts) {
  auto compiled = compile_text(
      kBooks +
      policy("selector: {matchLabels: {app: db}}, action: AUDIT, rules: [{to: [{operation: "
             "{methods: [GET]}}]}]"));
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre(testing::HasSubstr("so the rule audits more")));
  const auto& workloads = compiled.snapshot->workloads;
  EXPECT_EQ(authorize(*compiled.snapshot, {workloads.at(books(kPage)).get(), {}},
                      {workloads.at(books("db")).get(), {}}, Transport::kTcp, 3306)
                .audit,
            (Verdict::Audit{"AuthorizationPolicy books/p", 0}));
}

TEST(Authorization, ConditionsAreAnded) {
  auto compiled = compile_text(
      kBooks + policy("rules: [{from: [{source: {namespaces: [books, shop]}}], when: [{key: "
                      "source.principal, notValues: ['*/sa/ratings']}, {key: destination.port, "
                      "values: ['9080']}, {key: source.ip, values: [10.77.0.0/16]}]}]"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "allowed AuthorizationPolicy books/p[0]");
  EXPECT_EQ(verdict(compiled, books("ratings"), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews"), 9081),
            "denied AuthorizationPolicy books/p[-1]");
}

TEST(Authorization, AccountsWithoutNamespaceAreThePolicys) {
  auto compiled = compile_text(
      kBooks + policy("rules: [{from: [{source: {serviceAccounts: [ratings, shop/default]}}]}]"));
  EXPECT_EQ(verdict(compiled, books("ratings"), books("reviews")),
            "allowed AuthorizationPolicy books/p[0]");
  EXPECT_EQ(verdict(compiled, {"shop", "shop"}, books("reviews")),
            "allowed AuthorizationPolicy books/p[0]");
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
}

TEST(Authorization, RefusedPoliciesDenyWhatTheySelect) {
  struct {
    std::string_view spec;
    bool whole_namespace;
  } cases[] = {
      {"selector: {matchLabels: {app: reviews}}, rules: [{}], action: CUSTOM, provider: {name: x}",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{}], extra: 1", false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{form: []}]", false},
      {"selector: {matchLabels: {app: reviews}}, rules: x", false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{}]}]", false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {}}]}]", false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{to: [{operation: {methods: [GET]}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{to: [{operation: {paths: "
       "[/x]}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{when: [{key: 'request.headers[x]', "
       "values: "
       "[a]}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{when: [{key: connection.sni, values: "
       "[a]}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {ipBlocks: [x]}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {remoteIpBlocks: "
       "[10.0.0.0/8]}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{to: [{operation: {ports: [80]}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{to: [{operation: {ports: ['80-90']}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {principals: "
       "['spiffe://cluster.local/ns/a/sa/b']}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {principals: "
       "['a*b']}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {serviceAccounts: "
       "['a/*']}}]}]",
       false},
      {"selector: {matchLabels: {app: reviews}}, rules: [{from: [{source: {serviceAccounts: [a], "
       "namespaces: [b]}}]}]",
       false},
      {"targetRefs: [{kind: Service, name: reviews}], rules: [{}]", true},
      {"selector: {matchLabels: {app: reviews}}, targetRef: {kind: Service, name: x}, rules: [{}]",
       true},
      {"selector: reviews, rules: [{}]", true},
      {"selector: {matchLabel: {app: reviews}}, rules: [{}]", true},
      {"selector: {matchLabels: {app: 5}}, rules: [{}]", true},
      {"selector: {matchLabels: {app: 'rev*'}}, rules: [{}]", true},
      {"slector: {matchLabels: {app: reviews}}, rules: [{}]", true},
  };
  for (const auto& c : cases) {
    auto compiled = compile_text(kBooks + policy(c.spec));
    EXPECT_THAT(compiled.refused, SizeIs(1)) << c.spec;
    EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
              "denied AuthorizationPolicy books/p[-1]")
        << c.spec;
    EXPECT_EQ(verdict(compiled, books(kPage), books("db")),
              c.whole_namespace ? "denied AuthorizationPolicy books/p[-1]" : "allowed ")
        << c.spec;
    EXPECT_EQ(verdict(compiled, books(kPage), {"shop", "shop"}), "allowed ") << c.spec;
  }
}

TEST(Authorization, WithoutAReadableSpecDeniesTheNamespace) {
  auto compiled = compile_text(
      kBooks +
      "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, "
      "namespace: books}\nspec: [1]\n");
  EXPECT_EQ(verdict(compiled, books(kPage), books("db")), "denied AuthorizationPolicy books/p[-1]");
}

TEST(Authorization, OfAnUnknownVersionDenies) {
  std::string text = policy("selector: {matchLabels: {app: reviews}}, rules: [{}]");
  text.replace(text.find("istio.io/v1"), 11, "istio.io/v9");
  auto compiled = compile_text(kBooks + text);
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
  EXPECT_EQ(verdict(compiled, books(kPage), books("db")), "allowed ");
}

TEST(Authorization, InTwoFilesDeniesWhatTheSecondSelects) {
  std::string open = policy("selector: {matchLabels: {app: reviews}}, rules: [{}]");
  auto compiled = compile_text(kBooks + open + open);
  EXPECT_THAT(compiled.refused, SizeIs(1));
  EXPECT_EQ(verdict(compiled, books(kPage), books("reviews")),
            "denied AuthorizationPolicy books/p[-1]");
}

TEST(Authorization, SaysWhereAndThatItDenies) {
  EXPECT_THAT(
      validate_text(R"(apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p}
spec:
  rules:
  - to:
    - operation:
        methods: [GET]
)"),
      ElementsAre("error t.yaml:8: AuthorizationPolicy default/p: "
                  "spec.rules[0].to[0].operation.methods: not supported yet on HTTP ports "
                  "(only L4 is authorised); remove the field",
                  "error t.yaml:1: AuthorizationPolicy default/p: the policy is refused: it "
                  "denies every connection to what it selects until it is mended or "
                  "deleted"));
}

TEST(Authorization, ABadFieldIsNotAlsoAnEmptySourceOrOperation) {
  struct {
    std::string_view rule;
    std::string error;
  } cases[] = {
      {"from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]",
       "from[0].source.remoteIpBlocks: not supported yet; use ipBlocks"},
      {"from: [{source: {ipBlocks: [10.0.0.0/33]}}]",
       "from[0].source.ipBlocks: the prefix length must be 0..32, not as in '10.0.0.0/33'"},
      {"from: [{source: {ipBlocks: ['fd00::/129']}}]",
       "from[0].source.ipBlocks: the prefix length must be 0..128, not as in 'fd00::/129'"},
      {"from: [{source: {principal: [a]}}]",
       "from[0].source.principal: unknown field (did you mean principals?)"},
      {"from: [{source: {}}]", "from[0].source: must not be empty"},
      {"from: [{source: {principals: [], namespaces: null}}]", "from[0].source: must not be empty"},
      {"to: [{operation: {port: ['80']}}]",
       "to[0].operation.port: unknown field (did you mean ports?)"},
      {"to: [{operation: {ports: []}}]", "to[0].operation: must not be empty"},
      {"when: [{key: source.ip, values: [7]}]",
       "when[0].values[0]: must be a string, not 7 (a number); write it in quotes"},
      {"when: [{key: source.ip, values: []}]", "when[0]: must have values or notValues"},
  };
  for (const auto& c : cases) {
    auto texts = validate_text(policy("rules: [{" + std::string(c.rule) + "}]"));
    ASSERT_THAT(texts, SizeIs(2)) << c.rule;  // and that the policy denies
    EXPECT_THAT(texts[0], EndsWith(": spec.rules[0]." + c.error));
  }
}

TEST(Authorization, OfTcpPortsTakesHttpFieldsAsIstio) {
  const std::string select = "selector: {matchLabels: {app: db}}, ";
  const std::string methods = "to: [{operation: {methods: [GET]}}]";
  const std::string page = "from: [{source: {principals: ['*/sa/productpage']}}]";
  auto allow = compile_text(kBooks + policy(select + "rules: [{" + page + ", " + methods +
                                            "}, {from: "
                                            "[{source: {principals: ['*/sa/ratings']}}]}]"));
  EXPECT_THAT(allow.refused, IsEmpty());
  EXPECT_EQ(verdict(allow, books(kPage), books("db")), "denied AuthorizationPolicy books/p[-1]")
      << "never matches";
  EXPECT_EQ(verdict(allow, books("ratings"), books("db")),
            "allowed AuthorizationPolicy books/p[1]");
  EXPECT_THAT(texts_of(allow.problems), SizeIs(1));
  auto deny = compile_text(
      kBooks + policy(select + "action: DENY, rules: [{" + page + ", " + methods + "}]"));
  EXPECT_EQ(verdict(deny, books(kPage), books("db")), "denied AuthorizationPolicy books/p[0]")
      << "the field is left out";
  EXPECT_EQ(verdict(deny, books("ratings"), books("db")), "allowed ");
  auto claims = compile_text(
      kBooks +
      policy(select + "action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"));
  EXPECT_EQ(verdict(claims, books("ratings"), books("db")),
            "denied AuthorizationPolicy books/p[0]");
}

TEST(Authorization, WithHttpFieldsIsRefusedWhileItSelectsNothing) {
  auto compiled = compile_text(kBooks + policy("selector: {matchLabels: {app: new}}, rules: [{to: "
                                               "[{operation: {methods: [GET]}}]}]"));
  EXPECT_THAT(compiled.refused, SizeIs(1));
  EXPECT_TRUE(compiled.snapshot->policies.at(0)->refused);
}

}  // namespace
}  // namespace mesh::config
