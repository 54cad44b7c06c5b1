// Node: who is told of a change, in which order, and when.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

using testing::HasSubstr;

TEST_F(NodeTest, TheKernelPointsAtTheProxyAfterItsAcknowledgement) {
  connect();
  EXPECT_EQ(outcome(service("reviews")), "created");
  EXPECT_EQ(last_update().at("put").as_array().size(), 1U);
  EXPECT_FALSE(is_proxied());
  acknowledge();
  EXPECT_TRUE(is_proxied());
}

TEST_F(NodeTest, RemovalGoesTheOtherWayRound) {
  connect();
  outcome(service("reviews"));
  acknowledge();
  proxy_.payloads.clear();
  remove("Service", "reviews");
  EXPECT_FALSE(datapath_.state.services.contains(kVip)) << "before the proxy acknowledged";
  EXPECT_EQ(last_update().at("delete").as_array().size(), 1U);
}

TEST_F(NodeTest, TheMachinesNewAddressesAreNoticed) {
  connect();
  machine_.addresses = {IpAddress::v4(192, 0, 2, 1)};
  node_->tick(now_, 0);
  EXPECT_EQ(node_->snapshot()->node_addresses, machine_.addresses);
}

TEST_F(NodeTest, OnlyOneUpdateIsInFlightAndTheNextHasWhatCameMeanwhile) {
  connect();
  proxy_.payloads.clear();
  outcome(service("reviews"));
  outcome(service("ratings"));
  outcome(service("details"));
  EXPECT_EQ(messages(feed::kUpdate).size(), 1U);
  from_proxy({{"type", "ack"}, {"version", last_update().at("version")}});
  EXPECT_EQ(messages(feed::kUpdate).size(), 2U);
  EXPECT_EQ(last_update().at("put").as_array().size(), 2U);
}

TEST_F(NodeTest, ARefusalOfTheProxyStopsThePublicationAndIsAnError) {
  connect();
  proxy_.payloads.clear();
  outcome(service("reviews"));
  from_proxy({{"type", "nack"},
              {"version", last_update().at("version")},
              {"problems", json::array{{{"kind", "Service"},
                                        {"namespace", "default"},
                                        {"name", "reviews"},
                                        {"message", "no"}}}}});
  EXPECT_FALSE(is_proxied());
  const auto status = node_->status(now_);
  EXPECT_EQ(status.state, "degraded");
  EXPECT_THAT(status.reasons, testing::Contains(HasSubstr("refused by meshproxy: no")));
  outcome(service("ratings"));
  EXPECT_TRUE(last_update().at("reset").as_bool()) << "the next one starts from nothing";
  EXPECT_EQ(last_update().at("put").as_array().size(), 2U);
}

TEST_F(NodeTest, AnOldAcknowledgementMeansNothing) {
  connect();
  outcome(service("reviews"));
  from_proxy({{"type", "ack"}, {"version", 0}});
  EXPECT_FALSE(is_proxied());
}

TEST_F(NodeTest, TheProxyIsToldWhatChangedAlone) {
  connect();
  outcome(service("one", "http"));
  outcome(service("two", "http"));
  acknowledge();
  const auto told = [this] {
    acknowledge();
    const json::object update = messages(feed::kUpdate).back();
    std::string text;
    for (const json::value& object : update.at("put").as_array())
      text += "+" + std::string(object.at("metadata").at("name").as_string());
    for (const json::value& key : update.at("delete").as_array())
      text += "-" + std::string(key.at("name").as_string());
    return text;
  };
  outcome(service("one", "tcp"));
  EXPECT_EQ(told(), "+one");
  remove("Service", "two");
  EXPECT_EQ(told(), "-two");
  outcome(service("three", "http"));
  EXPECT_EQ(told(), "+three");
}

TEST_F(NodeTest, ManyThatAreEnrolledAtOnceAreToldAtOnce) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  const int applies = datapath_.applies;
  const auto version = node_->version();
  say_enrolled(id_of("a"));
  say_enrolled(id_of("b"));
  EXPECT_EQ(datapath_.applies, applies);
  node_->hold_events().on_drained();
  EXPECT_EQ(datapath_.applies, applies + 1);
  EXPECT_EQ(node_->version(), version + 1);
  EXPECT_TRUE(datapath_.state.workloads.contains(id_of("a")));
  EXPECT_TRUE(datapath_.state.workloads.contains(id_of("b")));
  node_->hold_events().on_drained();
  EXPECT_EQ(datapath_.applies, applies + 1) << "nothing is due";
}

TEST_F(NodeTest, ARestartKeepsTheKernelsStateUntilThePeersAreHeard) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  outcome(service("reviews"));
  outcome(deny("b"));
  answer_enrol(id_of("a"));
  answer_enrol(id_of("b"));
  answer_enrol(1);
  acknowledge();
  const datapath::State before = datapath_.state;
  ASSERT_EQ(before.workloads.size(), 3U);
  hold_.connected = proxy_.connected = false;
  datapath_.history.clear();
  restart();
  ASSERT_FALSE(datapath_.history.empty());
  for (const auto& state : datapath_.history) {
    EXPECT_EQ(state.workloads, before.workloads);
    EXPECT_EQ(state.services, before.services);
    EXPECT_EQ(state.sets, before.sets);
    EXPECT_EQ(state.peers, before.peers);
    EXPECT_EQ(state.refusals, before.refusals);
  }
  EXPECT_THAT(state_of("a"), testing::StartsWith("pending"));
}

TEST_F(NodeTest, MeshholdIsOnlyToldToDropTheRestOnceTheProxyAcknowledged) {
  connect_hold();
  EXPECT_TRUE(held(feed::HoldType::kSync).empty());
  connect_proxy();
  acknowledge();
  EXPECT_EQ(held(feed::HoldType::kSync).size(), 1U);
}

TEST_F(NodeTest, AGatewayListensOnceTheProxyHasItAndStopsBeforeItLosesIt) {
  connect();
  const auto gateway =
      object("Gateway", "networking.istio.io/v1", "front",
             {{"selector", {{"istio", "ingressgateway"}}},
              {"servers",
               json::array{{{"port", {{"number", 8080}, {"name", "http"}, {"protocol", "HTTP"}}},
                            {"bind", "127.0.0.1"},
                            {"hosts", {"*"}}}}}});
  EXPECT_EQ(outcome(gateway), "created");
  EXPECT_EQ(held(feed::HoldType::kHostListener).size(), 1U) << "metrics";
  acknowledge();
  EXPECT_EQ(held(feed::HoldType::kHostListener).back().port, 8080);
  remove("Gateway", "front");
  EXPECT_EQ(held(feed::HoldType::kEndHostListener).size(), 1U) << "before the acknowledgement";
}

TEST_F(NodeTest, MeshholdIsToldWhenTheProxyHangsAndWhenItWorksAgain) {
  using std::chrono::milliseconds;
  now_ = Node::Clock::now();
  connect();
  const auto told = [this](milliseconds later, int looks = 1) {
    hold_.payloads.clear();
    std::string text;
    now_ += later;
    for (int i = 0; i < looks; ++i) node_->watch_proxy(now_);
    for (const feed::HoldMessage& message : held(feed::HoldType::kProxyState))
      text += message.status == feed::HoldStatus::kOk ? "works " : "hangs ";
    return text;
  };
  EXPECT_EQ(told(milliseconds(500), 2), "") << "it just came";
  datapath_.stamp_heartbeat(now_);
  EXPECT_EQ(told(milliseconds(500)), "works ");
  EXPECT_EQ(told(milliseconds(500)), "") << "once";
  EXPECT_EQ(told(milliseconds(2000)), "") << "one look may be our own fault";
  EXPECT_EQ(told(milliseconds(500)), "hangs ");
  EXPECT_THAT(node_->status(now_).reasons, testing::Contains(HasSubstr("meshproxy hangs")));
  hold_.connected = false;
  connect_hold();
  EXPECT_EQ(told(milliseconds(500)), "hangs ") << "the next meshhold is told too";
  datapath_.stamp_heartbeat(now_ + milliseconds(500));
  EXPECT_EQ(told(milliseconds(500)), "works ");
  proxy_.connected = false;
  node_->proxy_events().on_lost({Errc::reset, "gone"});
  EXPECT_EQ(told(milliseconds(5000), 2), "") << "meshhold sees for itself that it is gone";
}

TEST_F(NodeTest, AFailedWriteToTheKernelIsToldAndTriedAgain) {
  connect();
  datapath_.fail_at = 1;
  outcome(service("reviews", "tcp"));
  EXPECT_EQ(node_->status(now_).state, "degraded");
  EXPECT_FALSE(datapath_.state.services.contains(kVip));
  node_->tick(now_, 0);
  EXPECT_TRUE(datapath_.state.services.contains(kVip));
  acknowledge();
  EXPECT_EQ(node_->status(now_).state, "ready");
}

}  // namespace
}  // namespace mesh::control
