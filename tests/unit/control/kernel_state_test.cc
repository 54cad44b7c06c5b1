#include "control/kernel_state.h"

#include <gtest/gtest.h>

#include <string>

#include "config/object.h"
#include "tests/support/memory_files.h"

namespace mesh::control {
namespace {

using datapath::ServiceEntry;
using datapath::State;

config::SnapshotPtr snapshot_of(const std::string& text, config::WorkloadPtr gateway = nullptr) {
  std::vector<config::ObjectPtr> objects;
  auto parsed = config::parse_objects(text, "test.yaml");
  EXPECT_TRUE(parsed) << parsed.error().message;
  for (auto& object : parsed.value())
    objects.push_back(std::make_shared<const config::Object>(std::move(object)));
  config::CompileOptions options;
  options.gateway_workload = std::move(gateway);
  const auto compiled = config::compile(objects, 1, options);
  for (const auto& problem : compiled.problems)
    if (problem.severity == config::Problem::Severity::kError &&
        problem.object.kind != "AuthorizationPolicy")
      ADD_FAILURE() << problem.to_string();
  return compiled.snapshot;
}

std::string entry(const std::string& name, const std::string& address, const std::string& app) {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " + name +
         "}\nspec: {address: " + address + ", serviceAccount: " + app + ", labels: {app: " + app +
         ", version: " + name + "}}\n";
}
std::string weighted(const std::string& name, const std::string& address, std::uint32_t weight) {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " + name +
         "}\nspec: {address: " + address + ", weight: " + std::to_string(weight) +
         ", labels: {app: weighted}}\n";
}
std::string service(const std::string& app, const std::string& ip, const std::string& port) {
  return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + app +
         "}\nspec: {clusterIP: " + ip + ", selector: {app: " + app + "}, ports: [" + port + "]}\n";
}
std::string policy(const std::string& name, const std::string& spec) {
  return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " +
         name + "}\nspec: " + spec + "\n";
}

const std::string kWorkloads =
    entry("productpage", "10.77.0.1", "productpage") + entry("v1", "10.77.0.2", "reviews") +
    entry("v2", "10.77.0.3", "reviews") + entry("ratings", "10.77.0.4", "ratings");
const std::string kHttp = service("reviews", "10.78.0.1", "{name: http, port: 9080}");
const std::string kTcp = service("reviews", "10.78.0.1", "{name: tcp, port: 9080}");
const std::string kOnlyProductpage =
    "{selector: {matchLabels: {app: reviews}}, action: ALLOW, rules: [{from: [{source: "
    "{principals: [cluster.local/ns/default/sa/productpage]}}]}]}";

SocketAddress at(const char* text) { return SocketAddress::parse(text).value(); }

class KernelState : public testing::Test {
 protected:
  State build(const std::string& text, const config::Snapshot* acked = nullptr) {
    snapshot_ = snapshot_of(kWorkloads + text, gateway_);
    std::vector<Client> clients;
    std::uint32_t id = 10;
    for (const auto& [name, workload] : snapshot_->workloads) {
      clients.push_back({{id, id + 1000, "/cg/" + name.name, workload->addresses}, workload});
      ids_[name.name] = id++;
    }
    return kernel_state({*snapshot_, acked, current_, clients}, numbers_);
  }
  const datapath::VerdictEntry* verdict(const State& state, const std::string& client,
                                        const char* address, std::uint16_t port = 0) {
    const auto group = state.endpoints.find(IpAddress::parse(address).value());
    if (group == state.endpoints.end()) return nullptr;
    const auto found = state.verdicts.find({ids_[client], group->second, 0, port});
    return found == state.verdicts.end() ? nullptr : &found->second;
  }

  test::MemoryFiles files_;
  Numbers numbers_{files_, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  config::WorkloadPtr gateway_;
  config::SnapshotPtr snapshot_;
  State current_;
  std::map<std::string, std::uint32_t> ids_;
};

TEST_F(KernelState, AProxiedServiceIsPointedAtTheProxyOnceItHasIt) {
  const State before = build(kHttp);
  ASSERT_EQ(before.services.size(), 1U);
  EXPECT_EQ(before.services.at(at("10.78.0.1:9080")).kind, ServiceEntry::Kind::kBalance);
  EXPECT_TRUE(before.services.at(at("10.78.0.1:9080")).endpoints.empty()) << "refuses at once";
  current_ = before;
  EXPECT_EQ(build(kHttp).services, before.services);
  const auto acked = snapshot_of(kWorkloads + kHttp);
  const State state = build(kHttp, acked.get());
  ASSERT_EQ(state.services.size(), 1U);
  EXPECT_EQ(state.services.at(at("10.78.0.1:9080")).kind, ServiceEntry::Kind::kProxy);
}

TEST_F(KernelState, AServiceThatIsPointedThereStaysSoWithoutAnAcknowledgement) {
  const auto acked = snapshot_of(kWorkloads + kHttp);
  current_ = build(kHttp, acked.get());
  EXPECT_EQ(build(kHttp).services, current_.services) << "meshd restarted";
}

TEST_F(KernelState, ATcpServiceIsBalancedAtOnceAndKeepsThatUntilTheProxyHasIt) {
  const State tcp = build(kTcp);
  const ServiceEntry& entry = tcp.services.at(at("10.78.0.1:9080"));
  EXPECT_EQ(entry.kind, ServiceEntry::Kind::kBalance);
  EXPECT_EQ(entry.endpoints.size(), 2U);
  current_ = tcp;
  EXPECT_EQ(build(kHttp).services, tcp.services) << "now HTTP, not acknowledged yet";
  const auto acked = snapshot_of(kWorkloads + kHttp);
  current_ = build(kHttp, acked.get());
  EXPECT_EQ(build(kTcp, acked.get()).services, tcp.services) << "and back at once";
}

TEST_F(KernelState, BackendsOfTcpAreRepeatedByTheirReducedWeights) {
  const auto count = [&](std::uint32_t v1, std::uint32_t v2) {
    const State state =
        build(kTcp + weighted("v3", "10.77.1.1", v1) + weighted("v4", "10.77.1.2", v2) +
              service("weighted", "10.78.0.2", "{name: tcp, port: 9080}"));
    std::map<SocketAddress, std::size_t> counts;
    for (const auto& backend : state.services.at(at("10.78.0.2:9080")).endpoints) ++counts[backend];
    return std::pair(counts[at("10.77.1.1:9080")], counts[at("10.77.1.2:9080")]);
  };
  EXPECT_EQ(count(0, 0), std::pair(1UL, 1UL));
  EXPECT_EQ(count(80, 20), std::pair(4UL, 1UL));
  EXPECT_EQ(count(50, 75), std::pair(2UL, 3UL));
  EXPECT_EQ(count(100, 33), std::pair(64UL, 21UL)) << "at most 64";
  EXPECT_EQ(count(1'000'000, 1), std::pair(64UL, 1UL));
}

TEST_F(KernelState, ARemovedServiceIsGoneAtOnce) {
  const auto acked = snapshot_of(kWorkloads + kHttp);
  current_ = build(kHttp, acked.get());
  EXPECT_TRUE(build("", acked.get()).services.empty());
}

TEST_F(KernelState, WithoutAPolicyThereIsNothingToDecide) {
  const State state = build(kHttp);
  EXPECT_TRUE(state.endpoints.empty());
  EXPECT_TRUE(state.verdicts.empty());
}

TEST_F(KernelState, APolicyDecidesForEachClient) {
  const State state = build(kHttp + policy("reviews", kOnlyProductpage));
  EXPECT_EQ(state.endpoints.size(), 2U);
  EXPECT_TRUE(verdict(state, "productpage", "10.77.0.2")->allowed);
  EXPECT_FALSE(verdict(state, "ratings", "10.77.0.2")->allowed);
  EXPECT_FALSE(verdict(state, "v1", "10.77.0.3")->allowed) << "one replica to the other";
  EXPECT_EQ(verdict(state, "ratings", "10.77.0.1"), nullptr);
  const auto rules = policy_rules(numbers_);
  EXPECT_EQ(rules.at(verdict(state, "productpage", "10.77.0.2")->policy).rule, 0);
  EXPECT_EQ(rules.at(verdict(state, "ratings", "10.77.0.2")->policy).policy, "default/reviews");
  EXPECT_EQ(rules.at(verdict(state, "ratings", "10.77.0.2")->policy).rule, -1);
}

TEST_F(KernelState, PortsThatARuleNamesHaveTheirOwnVerdict) {
  const State state =
      build(policy("ports",
                   "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{to: "
                   "[{operation: {ports: ['9080']}}]}]}"));
  EXPECT_FALSE(verdict(state, "ratings", "10.77.0.2", 9080)->allowed);
  EXPECT_TRUE(verdict(state, "ratings", "10.77.0.2")->allowed);
  EXPECT_EQ(verdict(state, "ratings", "10.77.0.2", 1), nullptr) << "the port that stood for others";
}

TEST_F(KernelState, AServiceIsRefusedWhenAllItsEndpointsAre) {
  const auto acked = snapshot_of(kWorkloads + kHttp);
  const State all = build(kHttp + policy("reviews", kOnlyProductpage), acked.get());
  const std::uint32_t id = all.services.at(at("10.78.0.1:9080")).id;
  EXPECT_FALSE(all.verdicts.at({ids_["ratings"], 0, id, 0}).allowed);
  EXPECT_FALSE(all.verdicts.contains({ids_["productpage"], 0, id, 0}));

  const State some = build(
      kHttp + policy("v1", "{selector: {matchLabels: {version: v1}}, action: ALLOW}"), acked.get());
  EXPECT_FALSE(some.verdicts.contains({ids_["ratings"], 0, id, 0})) << "v2 may be reached";
}

TEST_F(KernelState, ARefusedPolicyDeniesWhatItSelects) {
  const State state =
      build(policy("broken", "{selector: {matchLabels: {app: reviews}}, action: CUSTOM}"));
  ASSERT_NE(verdict(state, "productpage", "10.77.0.2"), nullptr);
  EXPECT_FALSE(verdict(state, "productpage", "10.77.0.2")->allowed);
}

TEST_F(KernelState, EachVersionOfAPolicyThatIsThereTwiceHoldsForWhatItSelects) {
  const State state =
      build(policy("p", "{selector: {matchLabels: {app: reviews}}, action: ALLOW, rules: [{}]}") +
            policy("p", "{selector: {matchLabels: {app: ratings}}, action: ALLOW, rules: [{}]}"));
  EXPECT_TRUE(verdict(state, "productpage", "10.77.0.2")->allowed);
  EXPECT_FALSE(verdict(state, "productpage", "10.77.0.4")->allowed) << "the refused one";
}

TEST_F(KernelState, APolicyOnAddressesIsJudgedInEachFamilyAndForTheGateway) {
  const auto dual = [](const std::string& name, const std::string& n) {
    return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: " +
           name + ", annotations: {undermesh.io/addresses: 'fd77::" + n +
           "'}}\nspec: {address: 10.77.1." + n + ", labels: {app: " + name + "}}\n";
  };
  config::Workload gateway;
  gateway.name = {"default", "gateway"};
  gateway_ = std::make_shared<const config::Workload>(gateway);
  const State state = build(
      dual("server", "1") + dual("client", "2") +
      policy("p",
             "{selector: {matchLabels: {app: server}}, action: DENY, rules: [{from: [{source: "
             "{ipBlocks: ['fd77::2']}}]}]}"));
  EXPECT_TRUE(verdict(state, "client", "10.77.1.1")->allowed);
  EXPECT_FALSE(verdict(state, "client", "fd77::1")->allowed) << "not its first address";
  EXPECT_TRUE(verdict(state, "ratings", "10.77.1.1")->allowed);
  EXPECT_FALSE(verdict(state, "ratings", "fd77::1")->allowed) << "an address that nobody told us";
  EXPECT_FALSE(verdict(state, "gateway", "10.77.1.1")->allowed);
}

TEST_F(KernelState, DestinationsWithOtherPoliciesAreAnotherGroupAndKeepTheirNumbers) {
  const std::string second =
      policy("v1", "{selector: {matchLabels: {version: v1}}, action: ALLOW}");
  const State one = build(policy("reviews", kOnlyProductpage));
  EXPECT_EQ(one.endpoints.at(IpAddress::v4(10, 77, 0, 2)),
            one.endpoints.at(IpAddress::v4(10, 77, 0, 3)));
  const State two = build(policy("reviews", kOnlyProductpage) + second);
  EXPECT_NE(two.endpoints.at(IpAddress::v4(10, 77, 0, 2)),
            two.endpoints.at(IpAddress::v4(10, 77, 0, 3)));
  EXPECT_EQ(two.endpoints.at(IpAddress::v4(10, 77, 0, 3)),
            one.endpoints.at(IpAddress::v4(10, 77, 0, 3)));
}

}  // namespace
}  // namespace mesh::control
