#include "control/kernel_state.h"

#include <gtest/gtest.h>

#include <cmath>
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
      if (elsewhere_.contains(name.name)) continue;
      datapath::EnrolledWorkload kernel;
      kernel.id = id;
      kernel.netns_cookie = id + 1000;
      kernel.addresses = workload->addresses;
      kernel.bypasses_proxy = workload->bypasses_proxy;
      clients.push_back({kernel, workload});
      ids_[name.name] = id++;
    }
    return kernel_state({*snapshot_, acked, current_, clients}, numbers_);
  }
  const datapath::VerdictEntry* verdict(const State& state, const std::string& client,
                                        const char* address, std::uint16_t port = 0) {
    const IpAddress ip = IpAddress::parse(address).value();
    const auto peer = state.peers.find(ip);
    if (peer == state.peers.end() || peer->second.ingress == 0) return nullptr;
    const datapath::EnrolledWorkload& from = state.workloads.at(ids_[client]);
    return datapath::find_verdict(state.sets.at(peer->second.ingress),
                                  ip.is_v4() ? from.class4 : from.class6, datapath::Transport::kTcp,
                                  port);
  }
  // What the kernel says at the server's end of what comes from an address.
  const datapath::VerdictEntry* arrival(const State& state, const char* from,
                                        const std::string& server, std::uint16_t port = 80) {
    const IpAddress ip = IpAddress::parse(from).value();
    datapath::ClassId peer = 0;
    int bits = -1;
    for (const auto& [block, id] : state.blocks)
      if (block.contains(ip) && block.prefix_length > bits) {
        peer = id;
        bits = block.prefix_length;
      }
    if (const auto known = state.peers.find(ip); known != state.peers.end())
      peer = known->second.peer;
    const datapath::SetId set = state.workloads.at(ids_[server]).ingress;
    if (set == 0) return nullptr;
    return datapath::find_verdict(state.sets.at(set), peer, datapath::Transport::kTcp, port);
  }

  test::MemoryFiles files_;
  Numbers numbers_{files_, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  config::WorkloadPtr gateway_;
  config::SnapshotPtr snapshot_;
  State current_;
  std::map<std::string, std::uint32_t> ids_;
  std::set<std::string> elsewhere_;  // workloads that are on no node of ours
};

TEST_F(KernelState, AProxiedServiceIsPointedAtTheProxyOnceItHasIt) {
  const State before = build(kHttp);
  ASSERT_EQ(before.services.size(), 1U);
  EXPECT_EQ(before.services.at(at("10.78.0.1:9080")).kind, ServiceEntry::Kind::kBalance);
  EXPECT_TRUE(before.services.at(at("10.78.0.1:9080")).columns.empty()) << "refuses at once";
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

TEST_F(KernelState, WhoBypassesTheProxyHasTheEndpointsOfWhatIsProxied) {
  const std::string rules = R"(---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec: {hosts: [reviews], http: [{fault: {abort: {httpStatus: 500, percentage: {value: 100}}}, route: [{destination: {host: reviews}}]}]}
)";
  const std::string free =
      "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: free, "
      "annotations: {undermesh.io/on-proxy-failure: bypass}}\nspec: {address: 10.77.0.9}\n";
  const std::string text = kHttp + rules + free;
  const auto acked = snapshot_of(kWorkloads + text);
  const State state = build(text, acked.get());
  const ServiceEntry& entry = state.services.at(at("10.78.0.1:9080"));
  EXPECT_EQ(entry.kind, ServiceEntry::Kind::kProxy);
  ASSERT_TRUE(entry.of_clients);
  ASSERT_EQ(entry.of_clients->size(), 1U);
  EXPECT_EQ(entry.of_clients->at(ids_["free"]).size(), 2U);
}

TEST_F(KernelState, ATcpServiceIsBalancedAtOnceAndKeepsThatUntilTheProxyHasIt) {
  const State tcp = build(kTcp);
  const ServiceEntry& entry = tcp.services.at(at("10.78.0.1:9080"));
  EXPECT_EQ(entry.kind, ServiceEntry::Kind::kBalance);
  EXPECT_EQ(entry.columns.size(), 2U);
  current_ = tcp;
  EXPECT_EQ(build(kHttp).services, tcp.services) << "now HTTP, not acknowledged yet";
  const auto acked = snapshot_of(kWorkloads + kHttp);
  current_ = build(kHttp, acked.get());
  EXPECT_EQ(build(kTcp, acked.get()).services, tcp.services) << "and back at once";
}

// Of a million connections, how many go to each endpoint ("-": nowhere).
std::map<std::string, long> chances(const datapath::Columns& columns) {
  std::map<std::string, double> sums;
  const auto text = [](const std::optional<SocketAddress>& endpoint) {
    return endpoint ? endpoint->to_string() : std::string("-");
  };
  for (const datapath::Column& column : columns) {
    const double first = (column.threshold + 1.0) / 4294967296.0;
    sums[text(column.first)] += first;
    sums[text(column.second)] += 1 - first;
  }
  std::map<std::string, long> rounded;
  for (const auto& [endpoint, sum] : sums)
    if (sum != 0) rounded[endpoint] = std::lround(sum / static_cast<double>(columns.size()) * 1e6);
  return rounded;
}
using Chances = std::map<std::string, long>;

const std::string kWeighted = service("weighted", "10.78.0.2", "{name: tcp, port: 9080}");
std::string tcp_routes(const std::string& rules) {
  return "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: "
         "reviews}\nspec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, "
         "labels: {version: v2}}, {name: v7, labels: {version: v7}}]}\n---\napiVersion: "
         "networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: {hosts: "
         "[reviews], tcp: " +
         rules + "}\n";
}
std::string to(const std::string& subset, int weight) {
  return "{destination: {host: reviews, subset: " + subset +
         "}, weight: " + std::to_string(weight) + "}";
}

TEST_F(KernelState, EndpointsOfTcpHaveTheirExactWeights) {
  const auto of = [&](std::uint32_t v3, std::uint32_t v4) {
    const State state =
        build(kTcp + weighted("v3", "10.77.1.1", v3) + weighted("v4", "10.77.1.2", v4) + kWeighted);
    return chances(state.services.at(at("10.78.0.2:9080")).columns);
  };
  const auto both = [](long a, long b) {
    return Chances{{"10.77.1.1:9080", a}, {"10.77.1.2:9080", b}};
  };
  EXPECT_EQ(of(0, 0), both(500'000, 500'000));
  EXPECT_EQ(of(80, 20), both(800'000, 200'000));
  EXPECT_EQ(of(100, 33), both(751'880, 248'120));
  EXPECT_EQ(of(999'999, 1), both(999'999, 1));
}

TEST_F(KernelState, SubsetsOfTcpHaveTheirSharesWhateverTheirSize) {
  const State state =
      build(kTcp + entry("v1b", "10.77.0.5", "x") +
            tcp_routes("[{route: [" + to("v1", 1) + ", " + to("v2", 2) + ", " + to("v7", 1) +
                       ", {destination: {host: gone}, weight: 4}]}]"));
  EXPECT_EQ(chances(state.services.at(at("10.78.0.1:9080")).columns),
            (Chances{{"10.77.0.2:9080", 125'000}, {"10.77.0.3:9080", 250'000}, {"-", 625'000}}));
}

TEST_F(KernelState, ATcpServiceWhoseSubsetIsEmptyHasNoEndpoint) {
  const State state = build(kTcp + tcp_routes("[{route: [" + to("v7", 1) + "]}]"));
  EXPECT_TRUE(state.services.at(at("10.78.0.1:9080")).columns.empty());
}

TEST_F(KernelState, RoutesThatDependOnTheClientAreKeptForEach) {
  const State state =
      build(kTcp + tcp_routes("[{match: [{sourceLabels: {app: productpage}}], route: [" +
                              to("v1", 1) + "]}, {route: [" + to("v2", 1) + "]}]"));
  const ServiceEntry& entry = state.services.at(at("10.78.0.1:9080"));
  EXPECT_TRUE(entry.columns.empty());
  ASSERT_TRUE(entry.of_clients);
  EXPECT_EQ(entry.of_clients->size(), 4U);
  EXPECT_EQ(chances(entry.of_clients->at(ids_["productpage"])),
            (Chances{{"10.77.0.2:9080", 1'000'000}}));
  EXPECT_EQ(chances(entry.of_clients->at(ids_["ratings"])),
            (Chances{{"10.77.0.3:9080", 1'000'000}}));
}

// Of a service with an address in each family, by TCP and by UDP.
TEST_F(KernelState, ASocketGoesToTheEndpointsOfItsFamily) {
  const std::string dual =
      "---\napiVersion: v1\nkind: Service\nmetadata: {name: dual}\nspec: {clusterIPs: [10.78.0.9, "
      "'fd78::9'], selector: {app: dual}, ports: [{name: tcp, port: 70}, {name: udp, protocol: "
      "UDP, "
      "port: 53}]}\n";
  const std::string four = entry("v6", "10.77.1.7", "dual"), six = entry("v7", "'fd00::7'", "dual");
  const State both = build(dual + four + six);
  EXPECT_EQ(chances(both.services.at(at("10.78.0.9:70")).columns),
            (Chances{{"10.77.1.7:70", 1'000'000}}));
  EXPECT_EQ(chances(both.services.at(at("[fd78::9]:70")).columns),
            (Chances{{"[fd00::7]:70", 1'000'000}}));
  EXPECT_EQ(chances(both.udp_services.at(at("10.78.0.9:53")).columns),
            (Chances{{"10.77.1.7:53", 1'000'000}}));
  EXPECT_EQ(chances(both.udp_services.at(at("[fd78::9]:53")).columns),
            (Chances{{"[fd00::7]:53", 1'000'000}}));
  // TCP has a mapped address left where there is nobody else, UDP has not.
  const State fours = build(dual + four);
  EXPECT_EQ(chances(fours.services.at(at("[fd78::9]:70")).columns),
            (Chances{{"10.77.1.7:70", 1'000'000}}));
  EXPECT_TRUE(fours.udp_services.at(at("[fd78::9]:53")).columns.empty());
  const State sixes = build(dual + six);
  EXPECT_TRUE(sixes.services.at(at("10.78.0.9:70")).columns.empty());
  EXPECT_TRUE(sixes.udp_services.at(at("10.78.0.9:53")).columns.empty());
}

TEST_F(KernelState, ARemovedServiceIsGoneAtOnce) {
  const auto acked = snapshot_of(kWorkloads + kHttp);
  current_ = build(kHttp, acked.get());
  EXPECT_TRUE(build("", acked.get()).services.empty());
}

TEST_F(KernelState, WithoutAPolicyThereIsNothingToDecide) {
  const State state = build(kHttp);
  EXPECT_TRUE(state.peers.empty());
  EXPECT_TRUE(state.sets.empty());
}

TEST_F(KernelState, APolicyDecidesForEachClient) {
  const State state = build(kHttp + policy("reviews", kOnlyProductpage));
  EXPECT_EQ(state.peers.size(), 3U) << "two that it selects, and the one that it allows";
  EXPECT_EQ(state.sets.size(), 1U);
  EXPECT_TRUE(verdict(state, "productpage", "10.77.0.2")->allowed);
  EXPECT_FALSE(verdict(state, "ratings", "10.77.0.2")->allowed);
  EXPECT_FALSE(verdict(state, "v1", "10.77.0.3")->allowed) << "one replica to the other";
  EXPECT_EQ(verdict(state, "ratings", "10.77.0.1"), nullptr);
  const auto rules = policy_rules(numbers_);
  EXPECT_EQ(rules.at(verdict(state, "productpage", "10.77.0.2")->policy).rule, 0);
  EXPECT_EQ(rules.at(verdict(state, "ratings", "10.77.0.2")->policy).policy,
            "AuthorizationPolicy default/reviews");
  EXPECT_EQ(rules.at(verdict(state, "ratings", "10.77.0.2")->policy).rule, -1);
}

TEST_F(KernelState, PortsThatARuleNamesHaveTheirOwnVerdict) {
  const State state =
      build(policy("ports",
                   "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{to: "
                   "[{operation: {ports: ['9080']}}]}]}"));
  EXPECT_FALSE(verdict(state, "ratings", "10.77.0.2", 9080)->allowed);
  EXPECT_TRUE(verdict(state, "ratings", "10.77.0.2")->allowed);
  EXPECT_TRUE(verdict(state, "ratings", "10.77.0.2", 9079)->allowed);
  EXPECT_TRUE(verdict(state, "ratings", "10.77.0.2", 9081)->allowed);
  EXPECT_EQ(state.sets.begin()->second.size(), 3U) << "TCP, one port of it, UDP";
}

TEST_F(KernelState, AServiceIsRefusedWhenAllItsEndpointsAre) {
  const auto acked = snapshot_of(kWorkloads + kHttp);
  const State all = build(kHttp + policy("reviews", kOnlyProductpage), acked.get());
  const std::uint32_t id = all.services.at(at("10.78.0.1:9080")).id;
  EXPECT_TRUE(all.refusals.contains({ids_["ratings"], id}));
  EXPECT_FALSE(all.refusals.contains({ids_["productpage"], id}));

  const State some = build(
      kHttp + policy("v1", "{selector: {matchLabels: {version: v1}}, action: ALLOW}"), acked.get());
  EXPECT_FALSE(some.refusals.contains({ids_["ratings"], id})) << "v2 may be reached";
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

TEST_F(KernelState, DestinationsWithOtherPoliciesHaveAnotherSetAndKeepTheirNumbers) {
  const std::string second =
      policy("v1", "{selector: {matchLabels: {version: v1}}, action: ALLOW}");
  const auto v1 = IpAddress::v4(10, 77, 0, 2), v2 = IpAddress::v4(10, 77, 0, 3);
  const State one = build(policy("reviews", kOnlyProductpage));
  EXPECT_EQ(one.peers.at(v1).ingress, one.peers.at(v2).ingress);
  const State two = build(policy("reviews", kOnlyProductpage) + second);
  EXPECT_NE(two.peers.at(v1).ingress, two.peers.at(v2).ingress);
  EXPECT_EQ(two.peers.at(v2), one.peers.at(v2));
}

TEST_F(KernelState, TheServersEndJudgesByTheAddressThatSomethingComesFrom) {
  const State state = build(policy("reviews", kOnlyProductpage));
  EXPECT_TRUE(arrival(state, "10.77.0.1", "v1")->allowed);
  EXPECT_FALSE(arrival(state, "10.77.0.4", "v1")->allowed);
  EXPECT_FALSE(arrival(state, "192.0.2.1", "v1")->allowed) << "a stranger";
  EXPECT_EQ(arrival(state, "192.0.2.1", "ratings"), nullptr) << "no policy";
}

TEST_F(KernelState, StrangersAreKnownByTheBlocksThatTheyAreIn) {
  const State state = build(
      policy("p",
             "{selector: {matchLabels: {app: reviews}}, action: ALLOW, rules: [{from: [{source: "
             "{ipBlocks: "
             "['10.0.0.0/8', '192.0.2.0/24'], notIpBlocks: ['192.0.2.128/25', '10.77.0.4']}}]}]}"));
  EXPECT_EQ(state.blocks.size(), 4U);
  EXPECT_TRUE(arrival(state, "192.0.2.1", "v1")->allowed);
  EXPECT_FALSE(arrival(state, "192.0.2.200", "v1")->allowed);
  EXPECT_FALSE(arrival(state, "198.51.100.1", "v1")->allowed);
  EXPECT_FALSE(arrival(state, "2001:db8::1", "v1")->allowed);
  EXPECT_TRUE(arrival(state, "10.200.0.1", "v1")->allowed);
  EXPECT_TRUE(arrival(state, "10.77.0.1", "v1")->allowed) << "a workload in a block";
  EXPECT_FALSE(arrival(state, "10.77.0.4", "v1")->allowed) << "a workload in a block within it";
}

TEST_F(KernelState, BlocksAreOneHoweverTheyAreWritten) {
  const State state = build(policy(
      "p",
      "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{from: [{source: {ipBlocks: "
      "['192.0.2.5/24', '192.0.2.0/24', '192.0.2.77/24']}}]}]}"));
  ASSERT_EQ(state.blocks.size(), 1U);
  EXPECT_EQ(state.blocks.begin()->first.to_string(), "192.0.2.0/24");
  EXPECT_FALSE(arrival(state, "192.0.2.1", "v1")->allowed);
}

TEST_F(KernelState, TheWidestBlocksOfIpv6LeaveIpv4Out) {
  const State state = build(policy("p",
                                   "{selector: {matchLabels: {app: reviews}}, action: ALLOW, "
                                   "rules: [{from: [{source: {ipBlocks: "
                                   "['::/0']}}]}]}"));
  EXPECT_EQ(state.blocks.at(IpBlock::parse("0.0.0.0/0").value()), 0U);
  EXPECT_NE(state.blocks.at(IpBlock::parse("::/0").value()), 0U);
}

TEST_F(KernelState, WhatIsInNoBlockIsJudgedAsThat) {
  const State state = build(
      policy("p",
             "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{from: [{source: "
             "{notIpBlocks: ['10.0.0.0/8']}}]}]}"));
  EXPECT_FALSE(arrival(state, "192.0.2.1", "v1")->allowed);
  EXPECT_FALSE(arrival(state, "2001:db8::1", "v1")->allowed);
  EXPECT_TRUE(arrival(state, "10.9.9.9", "v1")->allowed);
  EXPECT_TRUE(arrival(state, "10.77.0.4", "v1")->allowed);
}

constexpr const char* kNetworkPolicy =
    "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: net}\nspec: ";

TEST_F(KernelState, ANetworkPolicyDecidesWhatArrivesAndForItsClientsAlready) {
  const State state = build(std::string(kNetworkPolicy) +
                            "{podSelector: {matchLabels: {app: reviews}}, ingress: [{from: "
                            "[{podSelector: {matchLabels: {app: ratings}}}], ports: [{port: 9080, "
                            "endPort: 9090}]}]}");
  EXPECT_TRUE(verdict(state, "ratings", "10.77.0.2", 9085)->allowed);
  EXPECT_FALSE(verdict(state, "ratings", "10.77.0.2", 9091)->allowed);
  EXPECT_FALSE(verdict(state, "productpage", "10.77.0.2", 9085)->allowed);
  EXPECT_TRUE(arrival(state, "10.77.0.4", "v1", 9080)->allowed);
  EXPECT_FALSE(arrival(state, "192.0.2.1", "v1", 9080)->allowed);
  EXPECT_EQ(policy_rules(numbers_).at(verdict(state, "ratings", "10.77.0.2", 9085)->policy).policy,
            "NetworkPolicy default/net");
}

TEST_F(KernelState, ANetworkPolicyForEgressIsASetOfTheClient) {
  const State state = build(std::string(kNetworkPolicy) +
                            "{podSelector: {matchLabels: {app: ratings}}, policyTypes: [Egress], "
                            "egress: [{to: [{podSelector: {matchLabels: {app: reviews}}}]}, {to: "
                            "[{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}], ports: "
                            "[{protocol: UDP, port: 53}]}]}");
  const datapath::EnrolledWorkload& ratings = state.workloads.at(ids_["ratings"]);
  EXPECT_EQ(ratings.ingress, 0U);
  ASSERT_NE(ratings.egress, 0U);
  EXPECT_EQ(state.workloads.at(ids_["v1"]).egress, 0U);
  const auto out = [&](const char* to, datapath::Transport transport, std::uint16_t port) {
    const IpAddress ip = IpAddress::parse(to).value();
    datapath::ClassId peer = 0;
    int bits = -1;
    for (const auto& [block, id] : state.blocks)
      if (block.contains(ip) && block.prefix_length > bits) {
        peer = id;
        bits = block.prefix_length;
      }
    if (const auto known = state.peers.find(ip); known != state.peers.end())
      peer = known->second.peer;
    return datapath::find_verdict(state.sets.at(ratings.egress), peer, transport, port)->allowed;
  };
  EXPECT_TRUE(out("10.77.0.2", datapath::Transport::kTcp, 1));
  EXPECT_TRUE(out("10.77.0.3", datapath::Transport::kUdp, 1));
  EXPECT_FALSE(out("10.77.0.1", datapath::Transport::kTcp, 9080));
  EXPECT_TRUE(out("192.0.2.1", datapath::Transport::kUdp, 53));
  EXPECT_FALSE(out("192.0.2.1", datapath::Transport::kTcp, 53));
  EXPECT_FALSE(out("192.0.2.200", datapath::Transport::kUdp, 53));
  EXPECT_FALSE(out("198.51.100.1", datapath::Transport::kUdp, 53));
}

TEST_F(KernelState, ClassesOfManyReplicasAreOne) {
  std::string replicas;
  for (int i = 1; i <= 50; ++i)
    replicas += "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: r" +
                std::to_string(i) + "}\nspec: {address: 10.77.2." + std::to_string(i) +
                ", serviceAccount: productpage}\n";
  const State state = build(replicas + policy("reviews", kOnlyProductpage));
  EXPECT_EQ(state.sets.begin()->second.size(), 4U) << "strangers and productpage, TCP and UDP";
  EXPECT_TRUE(arrival(state, "10.77.2.50", "v1")->allowed);
}

TEST_F(KernelState, AnAuditPolicyIsCountedAndChangesNothing) {
  const State state = build(
      policy("watch",
             "{selector: {matchLabels: {app: reviews}}, action: AUDIT, rules: [{from: [{source: "
             "{principals: [cluster.local/ns/default/sa/ratings]}}]}]}"));
  const auto* seen = verdict(state, "ratings", "10.77.0.2");
  ASSERT_NE(seen, nullptr);
  EXPECT_TRUE(seen->allowed);
  EXPECT_EQ(policy_rules(numbers_).at(seen->audit).policy, "AuthorizationPolicy default/watch");
  EXPECT_EQ(verdict(state, "productpage", "10.77.0.2")->audit, 0U);
}

TEST_F(KernelState, ADisabledServiceAndItsEndpointsStayOffTheFastPath) {
  const std::string disabled =
      "---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews, annotations: "
      "{undermesh.io/fastpath: disabled}}\nspec: {clusterIP: 10.78.0.1, selector: {app: reviews}, "
      "ports: [{name: tcp, port: 9080}, {name: dns, port: 53, protocol: UDP}]}\n";
  EXPECT_EQ(
      build(disabled).slow_listeners,
      (std::set<SocketAddress>{at("10.78.0.1:9080"), at("10.77.0.2:9080"), at("10.77.0.3:9080")}));
  EXPECT_TRUE(build(kTcp).slow_listeners.empty());
}

TEST_F(KernelState, AnExcludedPortAndItsEndpointsAloneStayOffTheFastPath) {
  const std::string excluded =
      "---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews, annotations: "
      "{undermesh.io/fastpath-exclude-ports: '9081'}}\nspec: {clusterIP: 10.78.0.1, selector: "
      "{app: "
      "reviews}, ports: [{name: tcp, port: 9080}, {name: tcp-b, port: 9081, targetPort: 81}]}\n";
  EXPECT_EQ(
      build(excluded).slow_listeners,
      (std::set<SocketAddress>{at("10.78.0.1:9081"), at("10.77.0.2:81"), at("10.77.0.3:81")}));
}

TEST_F(KernelState, ADisabledServicesEndpointsElsewhereAreNotCountedAmongThem) {
  const std::string disabled =
      "---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews, annotations: "
      "{undermesh.io/fastpath: disabled}}\nspec: {clusterIP: 10.78.0.1, selector: {app: reviews}, "
      "ports: [{name: tcp, port: 9080}]}\n";
  elsewhere_ = {"v2"};
  EXPECT_EQ(build(disabled).slow_listeners,
            (std::set<SocketAddress>{at("10.78.0.1:9080"), at("10.77.0.2:9080")}));
}

// So many services, each with an endpoint of its own and a policy that names one client. `moved`:
// the address of the first one's endpoint; `allowed`: the first one's client.
std::string world_of(unsigned count, const std::string& moved = "10.80.0.1",
                     const std::string& allowed = "reviews") {
  std::string text = service("client", "10.78.255.1", "{name: tcp, port: 80}");
  for (unsigned i = 0; i < count; ++i) {
    const std::string name = "s" + std::to_string(i), last = std::to_string(i + 1);
    text += entry(name + "-1", i == 0 ? moved : "10.80.0." + last, name);
    text += service(name, "10.78.1." + last, "{name: tcp, port: 80}");
    text += policy(name, "{selector: {matchLabels: {app: " + name +
                             "}}, action: ALLOW, rules: [{from: [{source: {principals: "
                             "[cluster.local/ns/default/sa/" +
                             (i == 0 ? allowed : "productpage") + "]}}]}]}");
  }
  return text;
}

// How many entries of the kernel's maps one state has other than another.
std::size_t entries_changed(const State& before, const State& now) {
  std::size_t changed = 0;
  const auto count = [&changed](const auto* was, const auto* is) {
    changed += was != nullptr && is != nullptr && *was == *is ? 0U : 1U;
  };
  for (const auto services : {&State::services, &State::udp_services})
    each_difference(before.*services, now.*services, [&](const auto* was, const auto* is) {
      changed += 1 + (was ? was->second.columns.size() : 0) + (is ? is->second.columns.size() : 0);
    });
  each_difference(before.sets, now.sets, [&](const auto* was, const auto* is) {
    changed += 1 + (was ? was->second.size() : 0) + (is ? is->second.size() : 0);
  });
  each_difference(before.peers, now.peers, count);
  each_difference(before.refusals, now.refusals, count);
  const auto in_both = [&](const auto& a, const auto& b) {
    for (const auto& [key, value] : a)
      if (const auto other = b.find(key); other == b.end()) ++changed;
    for (const auto& [key, value] : b)
      if (const auto other = a.find(key); other == a.end() || !(other->second == value)) ++changed;
  };
  in_both(before.workloads, now.workloads);
  in_both(before.blocks, now.blocks);
  return changed;
}

TEST_F(KernelState, AChangeIsAsManyEntriesHoweverMuchThereIs) {
  std::vector<std::size_t> moves, rules;
  elsewhere_ = {"productpage", "v2"};  // v1 is of reviews
  for (const unsigned count : {8U, 80U}) {
    for (unsigned i = 0; i < count; ++i) elsewhere_.insert("s" + std::to_string(i) + "-1");
    current_ = build(world_of(count));
    const State moved = build(world_of(count, "10.80.9.9"));
    moves.push_back(entries_changed(current_, moved));
    current_ = moved;
    rules.push_back(entries_changed(moved, build(world_of(count, "10.80.9.9", "ratings"))));
    current_ = {};
  }
  EXPECT_EQ(moves[0], moves[1]);
  EXPECT_EQ(rules[0], rules[1]);
  EXPECT_GE(moves[0], 3U) << "an address out, one in, and the service's row";
  EXPECT_LE(moves[0], 8U);
  EXPECT_GE(rules[0], 1U);
  EXPECT_LE(rules[0], 16U);
}

}  // namespace
}  // namespace mesh::control
