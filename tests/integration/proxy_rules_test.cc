// Rules at work: routes, header operations, faults, time-outs, and their change.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/support/fake_upstream.h"
#include "tests/support/reviews_fixture.h"

namespace mesh::test {
namespace {

using namespace std::chrono_literals;

TEST_F(ProxyTest, RoutesByHeaderAndEditsHeaders) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x", "x-secret: 1\r\n"); });
  serve({&upstream}, virtual_service(R"(
  - name: jason
    match: [{headers: {end-user: {exact: jason}}}]
    headers:
      request: {set: {x-who: jason}, remove: [x-drop]}
      response: {add: {x-added: "yes"}, remove: [x-secret]}
    route: [{destination: {host: reviews}}]
  - name: rest
    route: [{destination: {host: reviews}}]
)"));
  auto response = ask(get("/", "end-user: jason\r\nx-drop: 1\r\n"));
  EXPECT_EQ(response.field("x-added"), "yes");
  EXPECT_FALSE(response.has("x-secret"));
  EXPECT_EQ(upstream.last().field("x-who"), "jason");
  EXPECT_FALSE(upstream.last().has("x-drop"));
  response = ask(get("/", "end-user: anna\r\n"));
  EXPECT_FALSE(response.has("x-added"));
}

TEST_F(ProxyTest, ARequestThatNoRuleMatchesIsA404) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream}, virtual_service(R"(
  - match: [{uri: {prefix: /api}}]
    route: [{destination: {host: reviews}}]
)"));
  EXPECT_EQ(ask(get("/api/x")).status(), 200);
  EXPECT_EQ(ask(get("/other")).status(), 404);
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"NR\""}), 1);
}

TEST_F(ProxyTest, AnUnknownSubsetIsA503WithFlagNC) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream}, virtual_service("  - route: [{destination: {host: reviews, subset: v9}}]\n"));
  EXPECT_EQ(ask(get("/")).status(), 503);
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"NC\""}), 1);
}

TEST_F(ProxyTest, AbortAndDelayFaults) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream}, virtual_service(R"(
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 555}}
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /both}}]
    fault:
      delay: {percentage: {value: 100}, fixedDelay: 0.1s}
      abort: {percentage: {value: 100}, httpStatus: 500}
    route: [{destination: {host: reviews}}]
  - fault: {delay: {percentage: {value: 100}, fixedDelay: 0.1s}}
    route: [{destination: {host: reviews}}]
)"));
  auto response = ask(get("/abort"));
  EXPECT_EQ(response.status(), 555);
  EXPECT_EQ(response.body, "fault filter abort");
  EXPECT_EQ(upstream.requests(), 0);
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(ask(get("/")).status(), 200);
  EXPECT_GE(std::chrono::steady_clock::now() - before, 100ms);
  EXPECT_EQ(ask(get("/both")).status(), 500);
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"FI\""}), 1);
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"DI\""}), 1);
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"DI,FI\""}), 1);
}

TEST_F(ProxyTest, TheRoutesTimeoutIsA504) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read();
    connection.is_closed();  // thinks until it is left
  });
  serve({&upstream},
        virtual_service("  - timeout: 0.1s\n    route: [{destination: {host: reviews}}]\n"));
  auto socket = dial();
  socket.send(get("/"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 504);
  EXPECT_EQ(response->body, "upstream request timeout");
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"UT\""}), 1);
  // With a body too: the time begins when all of it is sent.
  socket.send(post("data"));
  EXPECT_EQ(socket.read()->status(), 504);
}

TEST_F(ProxyTest, AChangeOfRulesAppliesToTheNextRequestOfAConnection) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  EXPECT_EQ(socket.read()->status(), 200);
  configure(rules_base_ + virtual_service(R"(
  - fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: reviews}}]
)"));
  socket.send(get("/"));
  EXPECT_EQ(socket.read()->status(), 418);
  configure(rules_base_);
  socket.send(get("/"));
  EXPECT_EQ(socket.read()->status(), 200);
  EXPECT_EQ(upstream.connections(), 1);  // the pool lives through changes
}

}  // namespace
}  // namespace mesh::test
