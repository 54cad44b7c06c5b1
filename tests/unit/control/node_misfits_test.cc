// Node: what did not fit into the kernel, by the names that `policy list` and `status` show.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

const IpAddress kServer = IpAddress::v4(10, 77, 0, 2);

json::object network_policy(const std::string& name, const std::string& app, json::value peer) {
  return object("NetworkPolicy", "networking.k8s.io/v1", name,
                {{"podSelector", {{"matchLabels", {{"app", app}}}}},
                 {"ingress", json::array{{{"from", json::array{std::move(peer)}}}}}});
}

// Two workloads, of which the kernel has room for all until a test says otherwise.
class NodeMisfitsTest : public NodeTest {
 protected:
  NodeMisfitsTest() {
    connect();
    enrol("a", "10.77.0.1");
    enrol("b", kServer.to_string());
    acknowledge();
  }
  // From the next apply() on.
  void leave_out(datapath::Misfits misfits) {
    datapath_.left_out = std::move(misfits);
    outcome(workload("c", "10.77.0.3", "/cg/c" + std::to_string(++changes_) + "/"));
  }
  std::string row_of(const std::string& policy) {
    const api::Dump list = node_->policies();
    for (const json::object& row : list.rows)
      if (row.at("name").as_string() == policy) return std::string(row.at("state").as_string());
    return "absent";
  }
  std::vector<std::string> reasons() { return node_->status(now_).reasons; }

  int changes_ = 0;
};

TEST_F(NodeMisfitsTest, ASetIsNamedByItsPoliciesUntilItFits) {
  outcome(deny("a"));
  outcome(deny("b"));
  outcome(object("AuthorizationPolicy", "security.istio.io/v1", "watch-b",
                 {{"selector", {{"matchLabels", {{"app", "b"}}}}},
                  {"action", "AUDIT"},
                  {"rules", json::array{json::object()}}}));
  const std::string what = "does not fit into the kernel: denies all";
  constexpr datapath::SetId kUnknown = 9999;  // of a state that is over
  leave_out({.sets = {datapath_.state.peers.at(kServer).ingress, kUnknown}});
  EXPECT_EQ(row_of("deny-b"), what);
  EXPECT_EQ(row_of("watch-b"), what) << "nothing is seen where all is denied";
  EXPECT_EQ(row_of("deny-a"), "accepted");
  EXPECT_EQ(node_->status(now_).state, "degraded");
  EXPECT_THAT(reasons(), Contains("AuthorizationPolicy default/deny-b: " + what));
  EXPECT_THAT(reasons(), Contains(HasSubstr("`meshctl bpf maps`"))) << "the remedy";
  EXPECT_THAT(reasons(), Not(Contains(HasSubstr("deny-a"))));
  leave_out({});
  EXPECT_EQ(row_of("deny-b"), "accepted");
  EXPECT_THAT(reasons(), Not(Contains(HasSubstr("fit"))));
}

TEST_F(NodeMisfitsTest, ABlockIsNamedByThePoliciesThatHaveItHoweverTheyWriteIt) {
  const auto block = [](const std::string& cidr, json::array except) -> json::object {
    return {{"ipBlock", {{"cidr", cidr}, {"except", std::move(except)}}}};
  };
  outcome(network_policy("within", "a", block("10.0.0.0/8", {"10.66.0.0/16"})));
  outcome(network_policy("other", "a", block("10.0.0.0/8", {})));
  outcome(object(
      "AuthorizationPolicy", "security.istio.io/v1", "source",
      {{"rules",
        json::array{{{"from", json::array{{{"source", {{"ipBlocks", {"10.66.7.7/16"}}}}}}}}}}}));
  const IpBlock left_out = IpBlock::parse("10.66.0.0/16").value();
  ASSERT_TRUE(datapath_.state.blocks.contains(left_out));
  leave_out({.blocks = {left_out}});
  for (const char* named : {"within", "source"})
    EXPECT_THAT(row_of(named), StartsWith("its address blocks do not fit into the kernel: denies"));
  EXPECT_EQ(row_of("other"), "accepted");
  EXPECT_THAT(reasons(), Contains(StartsWith("NetworkPolicy default/within: its address blocks")));
}

TEST_F(NodeMisfitsTest, APeerIsNamedAndThePoliciesThatSelectItOrSpeakOfIt) {
  outcome(deny("b"));
  outcome(network_policy("from-b", "a",
                         json::object{{"podSelector", {{"matchLabels", {{"app", "b"}}}}}}));
  outcome(workload("d", "10.77.0.4"));
  outcome(deny("d"));
  leave_out({.peers = {kServer}});
  for (const char* named : {"deny-b", "from-b"})
    EXPECT_THAT(row_of(named), HasSubstr("do not fit into the kernel: denies these")) << named;
  EXPECT_EQ(row_of("deny-d"), "accepted");
  EXPECT_THAT(reasons(),
              Contains(StartsWith("workload default/b: its address 10.77.0.2 does not")));
  leave_out({.sets = {datapath_.state.peers.at(kServer).ingress}, .peers = {kServer}});
  EXPECT_EQ(row_of("deny-b"), "does not fit into the kernel: denies all") << "what refuses most";
}

TEST_F(NodeMisfitsTest, APeerOfNoClassOfItsOwnIsNamedByWhatSelectsItAlone) {
  outcome(deny("a"));
  outcome(deny("b"));
  ASSERT_EQ(datapath_.state.peers.at(kServer).peer, 0U) << "as a stranger";
  leave_out({.peers = {kServer, IpAddress::v4(10, 99, 0, 1)}});
  EXPECT_THAT(row_of("deny-b"), HasSubstr("denies these"));
  EXPECT_EQ(row_of("deny-a"), "accepted");
  EXPECT_THAT(reasons(), Contains(StartsWith("address 10.99.0.1: its address 10.99.0.1 does not")));
}

TEST_F(NodeMisfitsTest, ARefusalIsNamedByItsPolicy) {
  outcome(service("b"));
  acknowledge();
  outcome(deny("b"));
  ASSERT_FALSE(datapath_.state.refusals.empty());
  const auto refusal = datapath_.state.refusals.begin()->first;
  leave_out({.refusals = {refusal, {refusal.first, refusal.second + 1000}}});
  EXPECT_THAT(row_of("deny-b"), HasSubstr("its clients are denied all HTTP services"));
  leave_out({.peers = {kServer}, .refusals = {refusal}});
  EXPECT_THAT(row_of("deny-b"), HasSubstr("denies these")) << "what refuses more";
}

TEST_F(NodeMisfitsTest, AServiceIsNamedWithItsPort) {
  outcome(service("b"));
  acknowledge();
  leave_out({.services = {kVip}, .udp_services = {{IpAddress::v4(10, 78, 9, 9), 53}}});
  EXPECT_THAT(reasons(),
              AllOf(Contains(StartsWith("Service default/b: port 9080 does not fit")),
                    Contains(StartsWith("address 10.78.9.9: port 53/udp does not fit"))));
}

TEST_F(NodeMisfitsTest, WhatTheKernelSaysOfTheMapsIsSaidToo) {
  datapath_.refuse.emplace(0, Error{Errc::exhausted, "does not fit; nor that"});
  leave_out({});
  EXPECT_THAT(reasons(), Contains("the kernel: does not fit; nor that"));
}

}  // namespace
}  // namespace mesh::control
