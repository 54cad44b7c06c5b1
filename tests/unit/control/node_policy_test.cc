// Node: policies: when they hold, and how often they were used.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

using testing::HasSubstr;

class NodePolicyTest : public NodeTest {
 protected:
  void have_two_workloads() {
    machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
    outcome(workload("a", "10.77.0.1"));
    outcome(workload("b", "10.77.0.2"));
  }
  void enrol_one_of_two() {
    connect();
    have_two_workloads();
    answer_enrol(id_of("a"));
  }
};

TEST_F(NodePolicyTest, APolicyHoldsAtOnceWithTheProxyAway) {
  enrol_one_of_two();
  acknowledge();
  proxy_.connected = false;
  node_->proxy_events().on_lost({Errc::reset, "gone"});
  EXPECT_THAT(outcome(deny("b")), testing::StartsWith("created"));
  EXPECT_FALSE(verdict(id_of("a"), IpAddress::v4(10, 77, 0, 2)).allowed);
}

TEST_F(NodePolicyTest, TheKernelIsToldWhoIsStrict) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(strict_workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  answer_enrol(id_of("b"));
  EXPECT_TRUE(datapath_.state.workloads.at(id_of("a")).strict);
  EXPECT_FALSE(datapath_.state.workloads.at(id_of("b")).strict);
}

TEST_F(NodePolicyTest, AStrictWorkloadWhosePacketsAreNotPolicedIsNamed) {
  connect();
  enrol("a", "10.77.0.1");
  answer_enrol(1);
  acknowledge();
  ASSERT_EQ(state_of("a"), "enrolled");
  const std::string why = "strict, but its packets are not policed: no veth";
  datapath_.not_covered[id_of("a")] = why;
  EXPECT_EQ(state_of("a"), "enrolled: " + why);
  const api::Status status = node_->status(now_);
  EXPECT_EQ(status.state, "degraded");
  EXPECT_THAT(status.reasons, testing::Contains("workload default/a: " + why));
}

const std::string kBroken = "kind: [";
std::string policy_text(const std::string& app, const std::string& spec) {
  return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"
         "spec: {selector: {matchLabels: {app: " +
         app + "}}, " + spec + "}\n";
}

TEST_F(NodePolicyTest, WhatARefusedPolicyDeniesStaysDeniedWhenItsFileBreaks) {
  have_two_workloads();
  add_file("p.yaml", policy_text("b", "rules: [{}]"));
  EXPECT_TRUE(may_reach("a", "b"));
  add_file("p.yaml", policy_text("b", "action: CUSTOM, rules: [{}]"));
  EXPECT_FALSE(may_reach("a", "b"));
  add_file("p.yaml", kBroken);
  EXPECT_FALSE(may_reach("a", "b")) << "not the version that was accepted before";
  restart();
  EXPECT_FALSE(may_reach("a", "b"));
  EXPECT_EQ(node_->status(now_ + std::chrono::minutes(1)).state, "degraded");
  add_file("p.yaml", policy_text("b", "rules: [{}]"));
  EXPECT_TRUE(may_reach("a", "b"));
}

TEST_F(NodePolicyTest, APolicyThatWasNeverAcceptedDeniesOnWhenItsFileBreaks) {
  have_two_workloads();
  add_file("p.yaml", policy_text("b", "action: CUSTOM"));
  add_file("p.yaml", kBroken);
  EXPECT_FALSE(may_reach("a", "b"));
  restart();
  EXPECT_FALSE(may_reach("a", "b"));
  add_file("p.yaml", "");
  EXPECT_TRUE(may_reach("a", "b"));
  add_file("p.yaml", kBroken);
  restart();
  EXPECT_TRUE(may_reach("a", "b")) << "it was deleted";
}

TEST_F(NodePolicyTest, APolicyInTwoFilesDeniesWhatBothSelect) {
  have_two_workloads();
  outcome(workload("c", "10.77.0.3"));
  add_file("1.yaml", policy_text("b", ""));
  add_file("2.yaml", policy_text("c", "rules: [{}]"));
  EXPECT_FALSE(may_reach("a", "b"));
  EXPECT_FALSE(may_reach("a", "c"));
  EXPECT_THAT(node_->status(now_).reasons,
              testing::Contains(testing::AllOf(HasSubstr("1.yaml"), HasSubstr("2.yaml"))));
  add_file("1.yaml", kBroken);
  EXPECT_FALSE(may_reach("a", "b")) << "also when one of them can no longer be read";
  restart();
  EXPECT_FALSE(may_reach("a", "b"));
  EXPECT_FALSE(may_reach("a", "c"));
  add_file("1.yaml", "");
  EXPECT_TRUE(may_reach("a", "b"));
  EXPECT_TRUE(may_reach("a", "c"));
}

TEST_F(NodePolicyTest, CountersOfAFormerPolicyThatCannotBeForgottenAreTriedAgain) {
  connect();
  outcome(deny("b"));
  constexpr std::uint32_t kOfNobody = 4242;
  enrol("b", "10.77.0.2");
  acknowledge();
  datapath_.counts.denied_by_policy[kOfNobody] = 1;
  datapath_.fail_at = 2;  // after the state is applied
  remove("AuthorizationPolicy", "deny-b");
  EXPECT_TRUE(datapath_.counts.denied_by_policy.contains(kOfNobody));
  node_->tick(now_, 0);
  EXPECT_FALSE(datapath_.counts.denied_by_policy.contains(kOfNobody));
}

TEST_F(NodePolicyTest, APolicyInTwoFilesIsNamedWithBoth) {
  const std::string both = "/s/objects/1.yaml and /s/objects/2.yaml";
  add_file("1.yaml", policy_text("b", ""));
  add_file("2.yaml", policy_text("b", ""));
  const auto reasons = node_->status(now_).reasons;
  EXPECT_THAT(reasons,
              testing::Contains(testing::MatchesRegex(
                  "/s/objects/2.yaml:[0-9]: AuthorizationPolicy default/p: metadata.name: is also "
                  "in /s/objects/1.yaml; an object has one owner: remove it from all but one")));
  const json::object tree = config::parse_objects(policy_text("c", ""), "").value().at(0).tree;
  EXPECT_EQ(outcome(tree), "refused; AuthorizationPolicy default/p: is defined in " + both +
                               "; an object has one owner: remove it from all but one");
  const auto reply = node_->remove({{{"AuthorizationPolicy", "default", "p"}}}, now_);
  EXPECT_THAT(reply.results.at(0).problems,
              testing::ElementsAre("AuthorizationPolicy default/p: is defined in " + both +
                                   "; remove it there"));
}

TEST_F(NodePolicyTest, CountersGoToTheProxyWithTheirPolicies) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(deny("a"));
  answer_enrol(1);
  const auto number = verdict(1, IpAddress::v4(10, 77, 0, 1)).policy;
  datapath_.counts.denied_by_policy[number] = 3;
  node_->tick(now_, 1234);
  const auto counters = messages(feed::kKernelCounters).back();
  EXPECT_EQ(counters.at("denied_by_policy").at(0).at("policy").as_string(),
            "AuthorizationPolicy default/deny-a");
  EXPECT_EQ(counters.at("denied_by_policy").at(0).at("count").to_number<int>(), 3);
}

TEST_F(NodePolicyTest, AuditPoliciesAreCountedInStatusForTheProxyAndInTheListOfPolicies) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/far", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("far", "10.77.0.9"));
  const auto policy = [this](const std::string& name, json::object rule) {
    outcome(json::object{{"apiVersion", "security.istio.io/v1"},
                         {"kind", "AuthorizationPolicy"},
                         {"metadata", {{"name", name}}},
                         {"spec", {{"action", "AUDIT"}, {"rules", json::array{std::move(rule)}}}}});
  };
  policy("watch", {});
  policy("broken",
         {{"from", json::array{json::object{{"source", {{"trustDomains", json::array{"x"}}}}}}}});
  answer_enrol(id_of("a"));
  const auto number = verdict(id_of("a"), IpAddress::v4(10, 77, 0, 1)).audit;
  ASSERT_NE(number, 0U);
  datapath_.counts.audited_by_policy[number] = 4;
  node_->tick(now_, 1234);
  const auto counters = messages(feed::kKernelCounters).back();
  EXPECT_EQ(counters.at("audited_by_policy").at(0).at("policy").as_string(),
            "AuthorizationPolicy default/watch");
  EXPECT_EQ(counters.at("audited_by_policy").at(0).at("count").to_number<int>(), 4);
  const auto status = node_->status(now_);
  ASSERT_EQ(status.policies.size(), 1U);
  EXPECT_EQ(status.policies[0].audited, 4U);
  const api::Dump list = node_->policies();
  ASSERT_EQ(list.rows.size(), 2U);
  for (const auto& row : list.rows) {
    const bool is_broken = row.at("name").as_string() == "broken";
    EXPECT_EQ(row.at("state").as_string(), is_broken ? "refused: audits nothing" : "accepted");
    EXPECT_EQ(row.at("audited").to_number<int>(), is_broken ? 0 : 4);
    EXPECT_EQ(row.at("reason").as_string().empty(), !is_broken);
    EXPECT_EQ(row.at("selects_here").to_number<int>(), 1) << "of two, one is not enrolled";
    EXPECT_EQ(row.at("selects").as_string(), "default/a,default/far");
  }
}

TEST_F(NodePolicyTest, APolicyThatIsDeletedTakesItsCountersAlong) {
  enrol_one_of_two();
  outcome(deny("b"));
  const auto number_of = [this] {
    const auto& names = numbers_->names(Space::kPolicy);
    return names.size() == 1 ? names.begin()->second : 0;
  };
  const std::uint32_t first = number_of();
  datapath_.counts.denied_by_policy[first] = 3;
  ASSERT_EQ(node_->policy_counts().size(), 1U);
  machine_.cgroups["/cg/a"] = false;
  node_->on_cgroups_changed(now_);
  EXPECT_EQ(node_->policy_counts().size(), 1U) << "it is still there, with nobody to decide about";
  restart();
  EXPECT_EQ(node_->policy_counts().size(), 1U);
  remove("AuthorizationPolicy", "deny-b");
  EXPECT_THAT(node_->policy_counts(), testing::IsEmpty());
  EXPECT_THAT(datapath_.counts.denied_by_policy, testing::IsEmpty());
  machine_.cgroups["/cg/a"] = true;
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"));
  outcome(deny("b"));
  EXPECT_GT(number_of(), first) << "no number is given twice";
  EXPECT_THAT(node_->policy_counts(), testing::IsEmpty()) << "it begins at 0";
}

TEST_F(NodePolicyTest, WhatIsDeniedByTheModeIsCountedAsLongAsItIsDenied) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(strict_workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  const auto& names = numbers_->names(Space::kPolicy);
  ASSERT_EQ(names.size(), 1U);
  datapath_.counts.denied_by_policy[names.begin()->second] = 3;
  outcome(deny("b"));
  remove("AuthorizationPolicy", "deny-b");
  ASSERT_EQ(node_->policy_counts().size(), 1U) << "no policy's, but in use";
  EXPECT_EQ(node_->policy_counts()[0].denied, 3U);
}

TEST_F(NodePolicyTest, TheNumbersOfWhatIsGoneAreForgotten) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"));
  const auto known = [this] {
    std::size_t names = 0;
    for (std::size_t i = 0; i < kSpaces; ++i)
      names += numbers_->names(Space{static_cast<std::uint8_t>(i)}).size();
    return names;
  };
  const std::size_t before = known();
  for (int i = 0; i < 20; ++i) {
    outcome(service("s" + std::to_string(i), i % 2 == 0 ? "http" : "tcp"));
    outcome(deny("a"));
    acknowledge();
    EXPECT_GT(known(), before);
    remove("AuthorizationPolicy", "deny-a");
    remove("Service", "s" + std::to_string(i));
    acknowledge();
    EXPECT_EQ(known(), before) << i;
  }
}

// What was connecting while the policy changed is open 2 s later.
TEST_F(NodePolicyTest, ConnectionsThatAPolicyForbidsAreLookedForAgain) {
  enrol_one_of_two();
  const auto looks_of = [this](int ticks) {
    const int before = datapath_.looks_for_forbidden;
    for (int i = 0; i < ticks; ++i) node_->tick(now_, 0);
    return datapath_.looks_for_forbidden - before;
  };
  outcome(deny("b"));
  EXPECT_EQ(looks_of(3), 1) << "one was at once";
  datapath_.cannot_end = true;
  remove("AuthorizationPolicy", "deny-b");
  outcome(deny("b"));
  EXPECT_EQ(looks_of(3), 3);
  datapath_.cannot_end = false;
  EXPECT_EQ(looks_of(5), 2);
}

// Its set is another, though it lets in the same as before.
TEST_F(NodePolicyTest, WhatAWorkloadHasOpenIsLookedAtAsItBecomesStrict) {
  enrol_one_of_two();
  outcome(object("NetworkPolicy", "networking.k8s.io/v1", "nobody",
                 {{"podSelector", json::object{}}, {"policyTypes", {"Ingress"}}}));
  for (int i = 0; i < 3; ++i) node_->tick(now_, 0);
  const int before = datapath_.looks_for_forbidden;
  node_->tick(now_, 0);
  ASSERT_EQ(datapath_.looks_for_forbidden, before);
  outcome(strict_workload("a", "10.77.0.1"));
  EXPECT_EQ(datapath_.looks_for_forbidden, before + 1);
  EXPECT_TRUE(datapath_.state.workloads.at(id_of("a")).strict);
}

}  // namespace
}  // namespace mesh::control
