// The real proxy between real sockets: connections, workloads, the gateway, what is reported.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/fake_upstream.h"
#include "tests/support/reviews_fixture.h"

namespace mesh::test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

TEST_F(ProxyTest, ProxiesARequestEndToEnd) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("hello"); });
  serve({&upstream});
  const auto response = ask(get("/reviews/1?x=1", "Connection: close, x-hop\r\nX-Hop: 1\r\n"));
  EXPECT_EQ(response.status(), 200);
  EXPECT_EQ(response.body, "hello");
  EXPECT_NE(response.field("x-envoy-upstream-service-time"), "");
  const auto seen = upstream.last();
  EXPECT_EQ(seen.start_line, "GET /reviews/1?x=1 HTTP/1.1");
  EXPECT_EQ(seen.field("host"), "reviews:9080");
  EXPECT_FALSE(seen.has("x-hop"));
  EXPECT_EQ(seen.field("x-forwarded-proto"), "http");
  EXPECT_EQ(seen.field("x-request-id").size(), 36u);
  EXPECT_EQ(seen.field("x-b3-traceid").size(), 32u);
  EXPECT_EQ(seen.field("traceparent").size(), 55u);
}

// --- connections

TEST_F(ProxyTest, KeepsConnectionsOnBothSides) {
  FakeUpstream upstream([](auto& r) { return FakeUpstream::ok(r.start_line); });
  serve({&upstream});
  auto socket = dial();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(socket.send(get("/" + std::to_string(i))));
    const auto response = socket.read();
    ASSERT_TRUE(response);
    EXPECT_EQ(response->body, "GET /" + std::to_string(i) + " HTTP/1.1");
  }
  EXPECT_EQ(upstream.connections(), 1);
  EXPECT_EQ(upstream.requests(), 50);
}

TEST_F(ProxyTest, AnswersPipelinedRequestsInOrder) {
  FakeUpstream upstream([](auto& r) { return FakeUpstream::ok(r.start_line + r.body); });
  serve({&upstream});
  auto socket = dial();
  std::string all;
  for (int i = 0; i < 200; ++i) {
    all += i % 3 == 0 ? post("body" + std::to_string(i)) : get("/" + std::to_string(i));
  }
  std::thread writer([&] { socket.send(all); });
  for (int i = 0; i < 200; ++i) {
    const auto response = socket.read();
    ASSERT_TRUE(response) << i;
    EXPECT_EQ(response->body, i % 3 == 0 ? "POST /reviews HTTP/1.1body" + std::to_string(i)
                                         : "GET /" + std::to_string(i) + " HTTP/1.1");
  }
  writer.join();
}

TEST_F(ProxyTest, ClosesWhereTheClientAsksForIt) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/", "Connection: close\r\n"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->field("connection"), "close");
  EXPECT_TRUE(socket.is_closed());
}

TEST_F(ProxyTest, AClientThatHasEndedItsSideStillGetsItsAnswer) {
  Gate ended;
  FakeUpstream upstream([&](auto&) {
    ended.wait();
    return FakeUpstream::ok("late");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  socket.shutdown_write();
  EXPECT_TRUE(eventually([&] { return socket.tcp_info().tcpi_state == TCP_FIN_WAIT2; }));
  ended.open();
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->body, "late");
  EXPECT_TRUE(socket.is_closed());
}

TEST_F(ProxyTest, AConnectionWithoutADestinationIsResetAndCounted) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  const auto stray = client("productpage", {});
  auto socket = HttpSocket::connect_to(stray);
  socket.send(get("/"));
  EXPECT_TRUE(socket.is_closed());
  EXPECT_EQ(upstream.connections(), 0);
  EXPECT_TRUE(
      eventually([&] { return metric("undermesh_connections_without_destination_total") == 1; }));
}

TEST_F(ProxyTest, AnIdleConnectionHoldsNoBuffer) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  std::vector<HttpSocket> sockets;
  for (int i = 0; i < 20; ++i) {
    sockets.push_back(dial());
    sockets.back().send(get("/"));
    ASSERT_TRUE(sockets.back().read());
  }
  EXPECT_EQ(metric_at(20, "undermesh_downstream_connections"), 20);
  EXPECT_TRUE(eventually([&] { return metric("undermesh_buffers_in_use") == 0; }));
}

TEST_F(ProxyTest, DrainsWhatIsInFlight) {
  Gate draining;
  FakeUpstream upstream([&](auto&) {
    draining.wait();
    return FakeUpstream::ok("done");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  std::thread stopper([&] { stop(); });
  EXPECT_TRUE(eventually([&] { return !HttpSocket::try_connect(port_); }));
  draining.open();
  const auto response = socket.read();
  stopper.join();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->body, "done");
}

// --- workloads

TEST_F(ProxyTest, ConnectionsOfAnUnknownWorkloadWaitUntilItIsNamed) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  const auto port = client("productpage", kReviews);
  auto socket = HttpSocket::connect_to(port);
  socket.send(get("/"));
  wait_for_workers();
  EXPECT_TRUE(socket.is_quiet());
  configure(workload("productpage", "10.77.0.2", "app: productpage") + service({&upstream}));
  EXPECT_EQ(socket.read()->status(), 200);
}

TEST_F(ProxyTest, AListenerThatIsRemovedAndAddedAtOnceAccepts) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  EXPECT_EQ(ask(get("/")).status(), 200);
  {
    std::lock_guard lock(mutex());  // the worker waits for it in find_destination()
    const int before = destinations_asked();
    auto blocker = dial();
    ASSERT_TRUE(eventually([&] { return destinations_asked() > before; }));
    listen_again("productpage", port_);
  }
  EXPECT_EQ(ask(get("/")).status(), 200);
}

TEST_F(ProxyTest, ARevokedWorkloadLosesEverything) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_TRUE(socket.read());
  on_main([&] { proxy_->revoke(2); });
  EXPECT_TRUE(socket.is_closed());
  EXPECT_TRUE(eventually([&] {
    return metric("envoy_cluster_upstream_cx_active", {kCluster}) == 0 &&
           metric("undermesh_downstream_connections") == 0;
  }));
}

TEST_F(ProxyTest, ARequestInFlightEndsWithItsWorkload) {
  Gate ended;
  FakeUpstream upstream([&](auto&) {
    ended.wait();
    return FakeUpstream::ok("x");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  on_main([&] { proxy_->revoke(2); });
  EXPECT_TRUE(socket.is_closed());
  EXPECT_EQ(metric_at(0, "undermesh_downstream_connections"), 0);
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"LR\""}), 1);
  ended.open();
}

TEST_F(ProxyTest, SeveralWorkersServeSeveralWorkloads) {
  workers_ = 3;
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  std::vector<std::uint16_t> ports;
  std::string yaml = service({&upstream});
  for (int i = 0; i < 6; ++i) {
    const std::string name = "client" + std::to_string(i);
    ports.push_back(client(name, kReviews));
    yaml += workload(name, "10.77.0." + std::to_string(10 + i), "app: c");
  }
  configure(yaml);
  std::vector<std::thread> threads;
  std::atomic<int> ok{0};
  for (const auto port : ports) {
    threads.emplace_back([&, port] {
      auto socket = HttpSocket::connect_to(port);
      for (int i = 0; i < 50; ++i) {
        socket.send(get("/"));
        const auto response = socket.read();
        ok += response && response->status() == 200;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(ok, 300);
}

// --- the gateway

// Gateway "edge" at this port of loopback, and its one route, to reviews.
std::string edge(std::uint16_t port) {
  return R"(---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["shop.example.com"]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /reviews}}]
    route: [{destination: {host: reviews, port: {number: 9080}}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{bind: 127.0.0.1, hosts: ["shop.example.com"], port: {protocol: HTTP, name: http, number: )" +
         std::to_string(port) + "}}]\n";
}

TEST_F(ProxyTest, TheGatewayIsTheEdge) {
  workers_ = 2;
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  const auto port = gateway();
  configure(service({&upstream}) + edge(port));
  auto socket = HttpSocket::connect_to(port);
  socket.send(
      "GET /reviews/1 HTTP/1.1\r\nHost: shop.example.com\r\nx-request-id: mine\r\n"
      "x-envoy-retry-on: 5xx\r\nx-forwarded-proto: https\r\nx-forwarded-for: 1.2.3.4\r\n\r\n");
  ASSERT_EQ(socket.read()->status(), 200);
  const auto seen = upstream.last();
  EXPECT_EQ(seen.field("x-forwarded-for"), "1.2.3.4, 127.0.0.1");
  EXPECT_EQ(seen.field("x-forwarded-proto"), "http");
  EXPECT_FALSE(seen.has("x-envoy-retry-on"));
  EXPECT_NE(seen.field("x-request-id"), "mine");
  socket.send("GET /other HTTP/1.1\r\nHost: shop.example.com\r\n\r\n");
  EXPECT_EQ(socket.read()->status(), 404);
  socket.send("GET /reviews HTTP/1.1\r\nHost: other.example.com\r\n\r\n");
  EXPECT_EQ(socket.read()->status(), 404);
}

TEST_F(ProxyTest, WorkersShareTheGatewaysLimits) {
  workers_ = 3;
  Gate five_wait;
  FakeUpstream upstream([&](auto&) {
    five_wait.wait();
    return FakeUpstream::ok("x");
  });
  port_ = gateway();
  configure(service({&upstream}) + edge(port_) +
            destination_rule("    connectionPool: {tcp: {maxConnections: 1}}\n"));
  std::vector<std::thread> threads;
  std::atomic<int> ok{0};
  for (int c = 0; c < 6; ++c) {
    threads.emplace_back([&] {
      auto socket = dial();
      for (int i = 0; i < 10; ++i) {
        socket.send("GET /reviews HTTP/1.1\r\nHost: shop.example.com\r\n\r\n");
        const auto response = socket.read();
        ok += response && response->status() == 200;
      }
    });
  }
  EXPECT_EQ(metric_at(5, kPending, {kCluster}), 5);
  five_wait.open();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(ok, 60);
  EXPECT_EQ(upstream.most_at_once(), 1);
}

// --- what is reported

TEST_F(ProxyTest, ReportsBothSidesWhereTheEndpointIsEnrolledHere) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("hello"); });
  client("reviews-v1", kReviews);  // enrolled
  port_ = client("productpage", kReviews);
  configure(workload("productpage", "10.77.0.2", "app: productpage, version: v1") +
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n"
            "  name: reviews-v1\n  annotations: {undermesh.io/netns: /x, undermesh.io/cgroup: /y}\n"
            "spec:\n  address: 10.77.1.1\n  ports: {http: " +
            std::to_string(upstream.port()) +
            "}\n  labels: {app: reviews, version: v1}\n"
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n"
            "  clusterIP: 10.78.0.1\n  selector: {app: reviews}\n"
            "  ports: [{name: http, port: 9080, targetPort: http}]\n");
  ASSERT_EQ(ask(get("/")).status(), 200);
  const std::vector<std::string> labels = {
      "source_workload=\"productpage\"", "destination_workload=\"reviews-v1\"",
      "destination_service_name=\"reviews\"", "response_code=\"200\""};
  for (const char* reporter : {"reporter=\"source\"", "reporter=\"destination\""}) {
    auto wanted = labels;
    wanted.push_back(reporter);
    EXPECT_TRUE(eventually([&] { return metric("istio_requests_total", wanted) == 1; }))
        << reporter;
    EXPECT_EQ(metric_at(1, "istio_request_duration_milliseconds_count", wanted), 1) << reporter;
  }
  EXPECT_EQ(metric_at(1, "envoy_cluster_upstream_rq_2xx", {kCluster}), 1);
}

TEST_F(ProxyTest, WritesTheAccessLogAndTaps) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("hello"); });
  serve({&upstream});
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]);
  auto writer = std::make_shared<UniqueFd>(ends[1]);
  on_main([&] {
    proxy_->set_access_log(std::move(*writer));
    proxy_->set_tap(true);
  });
  ASSERT_EQ(ask(get("/reviews/7?a=b", "User-Agent: test\r\n")).status(), 200);
  char line[4096];
  ssize_t size = ::read(reader.get(), line, sizeof line);
  ASSERT_GT(size, 0);
  const std::string text(line, static_cast<std::size_t>(size));
  EXPECT_THAT(text, HasSubstr("\"GET /reviews/7?a=b HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 "));
  EXPECT_THAT(text, HasSubstr("\"test\""));
  EXPECT_THAT(text, HasSubstr(kCluster));
  EXPECT_THAT(text, testing::EndsWith("default\n"));
  ask("GET http://reviews:9080/reviews/8?a HTTP/1.1\r\nHost: reviews:9080\r\n\r\n");
  size = ::read(reader.get(), line, sizeof line);
  ASSERT_GT(size, 0);
  EXPECT_THAT(std::string(line, static_cast<std::size_t>(size)),
              HasSubstr("\"GET /reviews/8?a HTTP/1.1\""));
  ASSERT_TRUE(eventually([&] {
    std::lock_guard lock(mutex());
    return taps_.size() == 2;
  }));
  EXPECT_EQ(taps_[1].path, "/reviews/8?a");
  EXPECT_EQ(taps_[0].source, "default/productpage");
  EXPECT_EQ(taps_[0].destination, "reviews.default.svc.cluster.local");
  EXPECT_EQ(taps_[0].status, 200);
  EXPECT_EQ(taps_[0].flags, "-");
}

TEST_F(ProxyTest, AnAccessLogThatNobodyReadsHoldsUpTheLogAlone) {
  constexpr int kRequests = 500;  // more lines than are kept before they are handed over
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("hello"); });
  serve({&upstream});
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]);
  ASSERT_GT(::fcntl(reader.get(), F_SETPIPE_SZ, 4096), 0);
  auto writer = std::make_shared<UniqueFd>(ends[1]);
  on_main([&] { proxy_->set_access_log(std::move(*writer)); });
  wait_for_workers();
  auto socket = dial();
  for (int i = 0; i < kRequests; ++i) {
    socket.send(get("/"));
    ASSERT_TRUE(socket.read());
  }
  auto text = std::async(std::launch::async, [&] { return metrics(); });
  EXPECT_EQ(text.wait_for(kPatience), std::future_status::ready);
  std::string log;
  char bytes[4096];
  while (std::ranges::count(log, '\n') < kRequests) {
    const ssize_t size = ::read(reader.get(), bytes, sizeof bytes);
    ASSERT_GT(size, 0);
    log.append(bytes, static_cast<std::size_t>(size));
  }
}

TEST_F(ProxyTest, TheAccessLogNamesTheClientAsTheMeshKnowsIt) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("hello"); });
  const auto outside_port = gateway();
  port_ = client("productpage", kReviews);
  configure(workload("productpage", "10.77.0.2", "app: productpage") + service({&upstream}) +
            edge(outside_port));
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]);
  auto writer = std::make_shared<UniqueFd>(ends[1]);
  on_main([&] { proxy_->set_access_log(std::move(*writer)); });
  const auto next_line = [&] {
    char line[4096];
    const ssize_t size = ::read(reader.get(), line, sizeof line);
    return std::string(line, static_cast<std::size_t>(size > 0 ? size : 0));
  };
  const auto local_port = [](HttpSocket& socket) {
    const auto address = net::local_address(socket.fd());
    return std::to_string(address.value().port);
  };
  auto socket = dial();
  socket.send(get("/", "x-forwarded-for: 9.9.9.9\r\n"));
  ASSERT_TRUE(socket.read());
  std::string line = next_line();
  EXPECT_THAT(line, HasSubstr(" 10.78.0.1:9080 10.77.0.2:" + local_port(socket) + " "));
  EXPECT_THAT(line, HasSubstr("\"9.9.9.9\""));
  auto outside = HttpSocket::connect_to(outside_port);
  outside.send(
      "GET /reviews HTTP/1.1\r\nHost: shop.example.com\r\nx-forwarded-for: 1.2.3.4\r\n\r\n");
  ASSERT_TRUE(outside.read());
  line = next_line();
  EXPECT_THAT(line, HasSubstr("\"1.2.3.4, 127.0.0.1\""));
  EXPECT_THAT(line, HasSubstr(" 127.0.0.1:" + local_port(outside) + " "));
}

TEST_F(ProxyTest, ContinuesATrace) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736";
  ask(get("/", "traceparent: 00-" + trace + "-00f067aa0ba902b7-01\r\nx-request-id: abc\r\n"));
  const auto seen = upstream.last();
  EXPECT_EQ(seen.field("x-request-id"), "abc");
  EXPECT_EQ(seen.field("x-b3-traceid"), trace);
  EXPECT_EQ(seen.field("x-b3-sampled"), "1");
  EXPECT_EQ(seen.field("x-b3-parentspanid"), "00f067aa0ba902b7");
  EXPECT_THAT(seen.field("traceparent"), StartsWith("00-" + trace + "-"));
}

}  // namespace
}  // namespace mesh::test
