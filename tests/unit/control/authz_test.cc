// authz check, over what the kernel is told: against the reference on generated policies, and what
// it says of ends, names and reasons.
#include "control/authz.h"

#include <gmock/gmock.h>

#include "control/kernel_state.h"
#include "tests/support/memory_files.h"
#include "tests/support/policy_cases.h"

namespace mesh::control {
namespace {

using api::AuthzReply;
using policy_cases::Case;
using policy_cases::CaseFlow;
using policy_cases::Generator;
using policy_cases::Reference;
using testing::ElementsAre;
using testing::HasSubstr;

// A node on which some workloads of a snapshot are enrolled.
class NodeState {
 public:
  NodeState(const std::vector<config::ObjectPtr>& objects, const std::set<std::string>& elsewhere,
            const config::CompileOptions& options = {})
      : compiled_(config::compile(objects, 1, options)) {
    std::uint32_t id = 10;
    for (const auto& [name, workload] : compiled_.snapshot->workloads) {
      if (elsewhere.contains(name.to_string())) continue;
      datapath::EnrolledWorkload kernel;
      kernel.id = id++;
      kernel.netns_cookie = kernel.id;
      kernel.cgroup = "/cg/" + name.name;
      kernel.addresses = workload->addresses;
      clients_.push_back({kernel, workload});
    }
    state_ = kernel_state({*compiled_.snapshot, nullptr, {}, clients_}, numbers_);
    rules_ = policy_rules(numbers_);
  }

  Result<AuthzReply> check(AuthzQuestion question) const {
    return check_authz({{*compiled_.snapshot, state_, clients_},
                        rules_,
                        IpBlock::parse("10.78.0.0/16").value(),
                        compiled_.problems},
                       question);
  }

 private:
  config::Compiled compiled_;
  std::vector<Client> clients_;
  test::MemoryFiles files_;
  Numbers numbers_{files_, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  datapath::State state_;
  std::map<std::uint32_t, PolicyRule> rules_;
};

AuthzQuestion question_of(const CaseFlow& flow) {
  const std::string from = flow.client ? flow.client->ns + "/" + flow.client->name : flow.from;
  const SocketAddress to{IpAddress::parse(flow.to).value(), static_cast<std::uint16_t>(flow.port)};
  return {from, to.to_string(), "default", flow.udp};
}

bool is_audited(const AuthzReply& reply) {
  for (const auto& end : reply.paths.front().ends)
    if (!end.audit.empty()) return true;
  return false;
}

// Its client's own policies do not let it out; the other end is shown all the same.
bool is_held_back(const AuthzReply& reply) {
  const auto& ends = reply.paths.front().ends;
  return !ends.empty() && ends.front().end == "egress" && ends.front().verdict == "DENY";
}

TEST(AuthzCheck, AgreesWithTheReferenceOnGeneratedPoliciesAndFlows) {
  constexpr unsigned kWorlds = 500;
  int denied = 0, audited = 0;
  for (unsigned seed = 0; seed < kWorlds; ++seed) {
    Generator generator(seed);
    const Case world = generator.world();
    // Of a world with an odd number, one workload is on another node.
    const auto& away = world.workloads[seed % world.workloads.size()];
    std::set<std::string> elsewhere;
    if (seed % 2 != 0) elsewhere.insert(away.ns + "/" + away.name);
    const NodeState node(world.objects(), elsewhere, world.options());
    for (int i = 0; i < 10; ++i) {
      const CaseFlow flow = generator.flow(world);
      const AuthzQuestion question = question_of(flow);
      const auto reply = node.check(question);
      ASSERT_TRUE(reply) << reply.error().message;
      const Reference reference(world, flow);
      std::string objects;
      for (const config::ObjectPtr& object : world.objects())
        objects += "\n" + boost::json::serialize(object->tree);
      ASSERT_EQ(reply.value().verdict, reference.allowed() ? "ALLOW" : "DENY")
          << "seed " << seed << ": " << question.from << " to " << question.to
          << (flow.udp ? "/UDP" : "") << "\n"
          << boost::json::serialize(api::to_json(reply.value())) << objects;
      if (!is_held_back(reply.value())) {
        ASSERT_EQ(is_audited(reply.value()), reference.audited())
            << "seed " << seed << ": " << question.from << " to " << question.to << objects;
      }
      denied += reference.allowed() ? 0 : 1;
      audited += reference.audited() ? 1 : 0;
    }
  }
  EXPECT_GT(denied, 1'000);
  EXPECT_LT(denied, 4'000);
  EXPECT_GT(audited, 50);
}

// ---- what it says

std::vector<config::ObjectPtr> objects_of(const std::string& yaml) {
  std::vector<config::ObjectPtr> objects;
  auto parsed = config::parse_objects(yaml, "test.yaml").value();
  for (config::Object& object : parsed)
    objects.push_back(std::make_shared<const config::Object>(std::move(object)));
  return objects;
}

std::string entry(const std::string& name, const std::string& address,
                  const std::string& mode = "permissive") {
  return "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " + name +
         ", namespace: shop, annotations: {undermesh.io/mode: " + mode +
         "}}\nspec: {address: " + address + ", serviceAccount: " + name +
         ", labels: {app: " + name + "}}\n---\n";
}

const std::string kShop = entry("cart", "10.77.0.1") + entry("db", "10.77.0.2") +
                          entry("vault", "10.77.0.3", "strict") + R"(
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.78.0.1, selector: {app: db}, ports: [{name: tcp, port: 70, targetPort: 3306}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.78.0.2, selector: {app: none}, ports: [{name: tcp, port: 70}]}
---
)";

// "verdict, end by policy (audit)" of the only path's ends.
std::vector<std::string> ends_of(const AuthzReply& reply) {
  std::vector<std::string> texts;
  for (const auto& end : reply.paths.at(0).ends)
    texts.push_back(end.end + " " + end.verdict + " by " + end.policy +
                    (end.audit.empty() ? "" : " audit " + end.audit) +
                    (end.enforced ? "" : " elsewhere") + ": " + end.why);
  return texts;
}

TEST(AuthzCheck, SaysForBothEndsWhatDecidesAndWhy) {
  const NodeState node(objects_of(kShop + R"(
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, rules: [{from: [{source: {namespaces: [none]}}]}, {to: [{operation: {ports: ['3306']}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: watch, namespace: shop}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec: {podSelector: {matchLabels: {app: cart}}, policyTypes: [Egress], egress: [{ports: [{port: 3306}]}]}
)"),
                       {});
  const auto reply = node.check({"shop/cart", "db"}).value();
  EXPECT_EQ(reply.verdict, "ALLOW");
  EXPECT_EQ(reply.to, "service db.shop.svc.cluster.local");
  EXPECT_THAT(ends_of(reply),
              ElementsAre("egress ALLOW by NetworkPolicy shop/out[0]: its egress rule 0 matches",
                          "ingress ALLOW by AuthorizationPolicy shop/readers[1] audit "
                          "AuthorizationPolicy shop/watch[0]: its rule 1 matches"));
  const auto denied = node.check({"shop/cart", "workload/shop/db:80"}).value();
  EXPECT_EQ(denied.verdict, "DENY");
  EXPECT_THAT(ends_of(denied),
              ElementsAre("egress DENY by NetworkPolicy shop/out: no egress rule of the "
                          "NetworkPolicies that select it matches: shop/out",
                          "ingress DENY by AuthorizationPolicy shop/readers audit "
                          "AuthorizationPolicy shop/watch[0]: no rule of the ALLOW policies that "
                          "select it matches: shop/readers"));
  const auto strict = node.check({"192.0.2.1", "vault.shop", "shop"});
  EXPECT_FALSE(strict) << "no service is called so";
  const auto vault = node.check({"192.0.2.1", "shop/vault:1", "default", true}).value();
  EXPECT_THAT(ends_of(vault),
              ElementsAre("ingress DENY by default of strict workloads audit AuthorizationPolicy "
                          "shop/watch[0]: its mode is strict, and neither an ALLOW policy nor a "
                          "NetworkPolicy selects it"));
}

TEST(AuthzCheck, ShowsTheRangesOfPortsThatAreTreatedDifferently) {
  const NodeState node(objects_of(kShop + R"(
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: in, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 80, endPort: 90}]}, {ports: [{port: 91}]}]}
)"),
                       {});
  const auto reply = node.check({"cart", "workload/db", "shop"}).value();
  EXPECT_EQ(reply.verdict, "PARTLY");
  std::vector<std::string> ranges;
  for (const auto& path : reply.paths)
    ranges.push_back(std::to_string(path.first_port) + "-" + std::to_string(path.last_port) + " " +
                     path.verdict);
  EXPECT_THAT(ranges, ElementsAre("1-79 DENY", "80-90 ALLOW", "91-91 ALLOW", "92-65535 DENY"));
}

TEST(AuthzCheck, SaysWhoEnforcesAnEndAndWhoIsNobody) {
  const NodeState node(objects_of(kShop + R"(
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none, namespace: shop}
spec: {selector: {matchLabels: {app: db}}}
)"),
                       {"shop/db"});
  const auto away = node.check({"shop/cart", "10.77.0.2:3306"}).value();
  EXPECT_THAT(ends_of(away),
              ElementsAre(HasSubstr("egress ALLOW by : no NetworkPolicy"),
                          HasSubstr("ingress DENY by AuthorizationPolicy shop/none:")))
      << "its client is here, and is refused at the connect";
  const auto stranger = node.check({"192.0.2.1", "workload/shop/db:1"}).value();
  EXPECT_THAT(ends_of(stranger), ElementsAre(HasSubstr(" elsewhere: ")));
  EXPECT_THAT(stranger.notes, ElementsAre(HasSubstr("its own node enforces it")));
  const auto nobody = node.check({"192.0.2.1", "192.0.2.2:1"}).value();
  EXPECT_EQ(nobody.verdict, "ALLOW");
  EXPECT_THAT(nobody.paths.at(0).why, HasSubstr("neither end"));
  EXPECT_FALSE(nobody.destination_known);
  EXPECT_THAT(nobody.notes, ElementsAre("no workload or service of the mesh has this address"));
  const auto outside = node.check({"shop/cart", "192.0.2.2:1"}).value();
  EXPECT_EQ(outside.verdict, "ALLOW");
  const auto read = api::from_json<AuthzReply>(api::to_json(outside));
  EXPECT_FALSE(read.value().destination_known);
  EXPECT_THAT(
      outside.notes,
      ElementsAre("no workload or service of the mesh has this address: only the egress "
                  "policies of shop/cart were asked, not who is there and whom he lets in"));
  for (const char* known : {"10.77.0.2:3306", "10.78.0.1:70", "db:70"}) {
    const auto reply = node.check({"shop/cart", known}).value();
    EXPECT_TRUE(reply.destination_known) << known;
    EXPECT_THAT(reply.notes, testing::Each(testing::Not(HasSubstr("has this address")))) << known;
  }
  EXPECT_EQ(node.check({"shop/cart", "10.77.0.1:5"}).value().paths.at(0).why,
            "a workload may always talk to itself");
  EXPECT_EQ(node.check({"shop/cart", "10.78.0.9:5"}).value().verdict, "DENY")
      << "an address that is no service's";
  for (const auto& [from, to, code] : {std::tuple{"shop/nobody", "db", Errc::not_found},
                                       {"shop/cart", "service/vault", Errc::not_found},
                                       {"shop/cart", "db:71", Errc::not_found},
                                       {"shop/cart", "db:x", Errc::invalid_argument},
                                       {"service/db", "db", Errc::invalid_argument},
                                       {"shop/cart", "empty", Errc::refused}}) {
    const auto refused = node.check({from, to});
    ASSERT_FALSE(refused) << to;
    EXPECT_EQ(refused.error().code, code) << to;
  }
}

}  // namespace
}  // namespace mesh::control
