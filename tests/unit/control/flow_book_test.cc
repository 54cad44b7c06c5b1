#include "control/flow_book.h"

#include <gtest/gtest.h>
#include <netinet/tcp.h>

namespace mesh::control {
namespace {

namespace json = boost::json;
using datapath::Flow;
using std::chrono::seconds;

SocketAddress at(const char* text) { return SocketAddress::parse(text).value(); }

Flow flow(std::uint64_t cookie, Flow::Kind kind, std::uint64_t sent, std::uint64_t received) {
  Flow made;
  made.kind = kind;
  made.cookie = cookie;
  made.workload = 7;
  made.is_established = true;
  made.local = at("10.9.0.1:40000");
  made.remote = at("10.9.0.2:8080");
  made.service = at("10.78.0.2:70");
  made.started = seconds(100);
  made.ended = seconds(103);
  made.sent = sent;
  made.received = received;
  return made;
}
Flow closed(std::uint64_t cookie, std::uint64_t sent, std::uint64_t received) {
  return flow(cookie, Flow::Kind::kClosed, sent, received);
}
Flow open(std::uint64_t cookie, std::uint64_t sent, std::uint64_t received) {
  return flow(cookie, Flow::Kind::kOpen, sent, received);
}

class FlowBookTest : public testing::Test {
 protected:
  void add(const std::vector<Flow>& ended) { book_.add(ended, seconds(110), 1'000'000, rules_); }
  json::object take() {
    auto message = book_.take();
    return message ? *message : json::object();
  }
  // opened, closed, sent, received of the only edge.
  std::string sums() {
    const json::object message = take();
    if (message.empty() || message.at("edges").get_array().empty()) return "none";
    EXPECT_EQ(message.at("edges").get_array().size(), 1);
    const json::object& edge = message.at("edges").get_array()[0].get_object();
    std::string text;
    for (const char* name : {"opened", "closed", "sent", "received"})
      text += (text.empty() ? "" : " ") + json::serialize(edge.at(name));
    return text;
  }
  FlowBook book_;
  FlowBook::Rules rules_ = {{21, {"default/db", 3}}};
};

TEST_F(FlowBookTest, ShortConnectionsCountWhenTheyEnd) {
  EXPECT_FALSE(book_.take());
  add({closed(1, 10, 20), closed(2, 1, 2)});
  EXPECT_EQ(sums(), "2 2 11 22");
  EXPECT_EQ(sums(), "none");
}

TEST_F(FlowBookTest, LongConnectionsCountWhileTheyLiveAndOnce) {
  book_.see_open({});
  book_.see_open({open(1, 100, 1)});
  EXPECT_EQ(sums(), "1 0 100 1");
  book_.see_open({open(1, 150, 1)});
  EXPECT_EQ(sums(), "0 0 50 0");
  add({closed(1, 160, 5)});
  EXPECT_EQ(sums(), "0 1 10 4");
}

TEST_F(FlowBookTest, WhatEndsBetweenTheTwoLooksIsCountedOnce) {
  book_.see_open({});
  book_.see_open({open(1, 100, 1)});
  EXPECT_EQ(sums(), "1 0 100 1");
  book_.see_open({});
  add({closed(1, 160, 5)});
  EXPECT_EQ(sums(), "0 1 60 4");
}

TEST_F(FlowBookTest, AConnectionWhoseEndWasLostIsForgotten) {
  book_.see_open({});
  book_.see_open({open(1, 100, 1)});
  EXPECT_EQ(sums(), "1 0 100 1");
  book_.see_open({});
  book_.see_open({});
  book_.see_open({open(1, 7, 1)});  // told anew: it is not known
  EXPECT_EQ(sums(), "1 0 7 1");
}

TEST_F(FlowBookTest, WhatAnotherMeshdToldOfIsNotToldAgain) {
  book_.see_open({open(1, 100, 1)});
  EXPECT_EQ(sums(), "none");
  add({closed(1, 160, 5)});
  EXPECT_EQ(sums(), "0 1 60 4");
}

TEST_F(FlowBookTest, ARecordTellsTimePolicyAndReason) {
  Flow denied = closed(0, 0, 0);
  denied.kind = Flow::Kind::kDenied;
  denied.local.reset();
  denied.policy = 21;
  denied.reason = "connects_denied_policy";
  add({denied});
  const json::object message = take();
  EXPECT_TRUE(message.at("edges").get_array().empty());
  const json::object& record = message.at("records").get_array()[0].get_object();
  EXPECT_EQ(record.at("start_ms"), 990'000);
  EXPECT_EQ(record.at("duration_ms"), 3000);
  EXPECT_EQ(record.at("local"), "");
  EXPECT_EQ(record.at("remote"), "10.9.0.2:8080");
  EXPECT_EQ(record.at("policy"), "default/db");
  EXPECT_EQ(record.at("rule"), 3);
  EXPECT_EQ(record.at("reason"), "connects_denied_policy");
}

TEST_F(FlowBookTest, ARecordTellsHowItEnded) {
  const auto end = [&](std::uint8_t tcp_state, bool is_inbound, const std::string& reason = "") {
    Flow flow = closed(1, 1, 1);
    flow.tcp_state = tcp_state;
    flow.is_inbound = is_inbound;
    flow.reason = reason;
    add({flow});
    const json::object message = take();
    const json::object& record = message.at("records").get_array()[0].get_object();
    EXPECT_EQ(record.contains("reason"), !reason.empty());
    return std::string(record.at("end").as_string());
  };
  for (const std::uint8_t state : {TCP_FIN_WAIT2, TCP_CLOSING}) {
    EXPECT_EQ(end(state, false), "closed_by_client");
    EXPECT_EQ(end(state, true), "closed_by_server");
  }
  EXPECT_EQ(end(TCP_LAST_ACK, false), "closed_by_server");
  EXPECT_EQ(end(TCP_LAST_ACK, true), "closed_by_client");
  for (const std::uint8_t state : {TCP_ESTABLISHED, TCP_CLOSE_WAIT, TCP_FIN_WAIT1})
    EXPECT_EQ(end(state, true), "reset");
  EXPECT_EQ(end(TCP_ESTABLISHED, true, "connections_ended_by_policy"), "reset");
  Flow unanswered = closed(1, 0, 0);
  unanswered.is_established = false;
  unanswered.tcp_state = TCP_SYN_SENT;
  add({unanswered});
  EXPECT_FALSE(take().at("records").get_array()[0].get_object().contains("end"));
}

TEST_F(FlowBookTest, IsBoundedAndSaysWhatItDropped) {
  std::vector<Flow> many;
  for (std::uint32_t i = 0; i < FlowBook::kMaxEdges + 10; ++i) {
    many.push_back(closed(i + 1, 1, 1));
    many.back().remote->ip =
        IpAddress::v4(10, 8, static_cast<std::uint8_t>(i >> 8U), static_cast<std::uint8_t>(i));
  }
  add(many);
  const json::object message = take();
  EXPECT_EQ(message.at("edges").get_array().size(), FlowBook::kMaxEdges);
  EXPECT_EQ(message.at("records").get_array().size(), FlowBook::kMaxRecords);
  EXPECT_EQ(message.at("dropped"), 10 + many.size() - FlowBook::kMaxRecords);
}

TEST(DumpFlows, HasTcpByItsBytesAndThenUdpByWhoTalkedLast) {
  config::Snapshot snapshot;
  config::Service service;
  service.host = "db.default.svc.cluster.local";
  snapshot.service_by_address.emplace(at("10.78.0.2:70").ip,
                                      std::make_shared<const config::Service>(service));
  config::Workload workload;
  workload.name = {"default", "client"};
  Client client;
  client.kernel.id = 7;
  client.workload = std::make_shared<const config::Workload>(workload);
  Flow busy = open(2, 500, 0);
  busy.policy = 21;
  busy.retransmits = 4;
  datapath::UdpFlow asked{7, 4000, false, false, at("10.9.0.2:53"), at("10.78.0.2:53"), seconds(9)};
  datapath::UdpFlow asks{7, 53, true, true, at("10.9.0.3:4000"), std::nullopt, seconds(2)};
  const api::Dump dump = dump_flows({open(1, 1, 2), busy}, {asked, asks}, snapshot, {client},
                                    {{21, {"NetworkPolicy default/db", 3}}});
  ASSERT_EQ(dump.rows.size(), 4U);
  const auto text = [&dump](std::size_t row, const char* member) {
    const json::value* value = dump.rows[row].if_contains(member);
    return value ? json::serialize(*value) : "none";
  };
  EXPECT_EQ(text(0, "cookie"), "2");
  EXPECT_EQ(text(0, "protocol"), "\"TCP\"");
  EXPECT_EQ(text(0, "retransmits"), "4");
  EXPECT_EQ(text(0, "policy") + text(0, "rule"), "\"NetworkPolicy default/db\"3");
  EXPECT_EQ(text(1, "policy"), "none");
  EXPECT_EQ(text(2, "direction"), "\"in\"");
  EXPECT_EQ(text(2, "destination") + text(2, "peer"), "\"*:53\"\"10.9.0.3:4000\"");
  EXPECT_EQ(text(2, "state"), "\"connected\"");
  EXPECT_EQ(text(3, "destination"), "\"db.default.svc.cluster.local:53\"");
  EXPECT_EQ(text(3, "quiet_seconds"), "9");
  for (std::size_t row = 0; row < 4; ++row) {
    EXPECT_EQ(text(row, "workload"), "\"default/client\"");
    EXPECT_EQ(text(row, "verdict"), "\"allowed\"");
  }
}

}  // namespace
}  // namespace mesh::control
