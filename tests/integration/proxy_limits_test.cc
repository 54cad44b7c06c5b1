// Limits: circuit breaking, clients that are gone, time and number, input that is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support/fake_upstream.h"
#include "tests/support/reviews_fixture.h"

namespace mesh::test {
namespace {

using namespace std::chrono_literals;

// --- circuit breaking

constexpr const char* kOverflow = "envoy_cluster_upstream_rq_pending_overflow";

class CircuitBreaker : public ProxyTest {
 protected:
  void serve_limited(FakeUpstream& upstream, const std::string& pool) {
    serve({&upstream}, destination_rule("    connectionPool: " + pool + "\n"));
  }
  struct Outcome {
    int ok = 0, overloaded = 0, other = 0;
  };
  // Some request has been refused; waits for the first.
  bool overflowed() {
    return eventually([&] { return metric(kOverflow, {kCluster}) > 0; });
  }
  Outcome load(int clients, int requests_each) {
    std::mutex mutex;
    Outcome outcome;
    std::vector<std::thread> threads;
    for (int c = 0; c < clients; ++c) {
      threads.emplace_back([&] {
        auto socket = dial();
        for (int i = 0; i < requests_each; ++i) {
          socket.send(get("/"));
          const auto response = socket.read();
          std::lock_guard lock(mutex);
          if (response && response->status() == 200) {
            ++outcome.ok;
          } else if (response && response->status() == 503 &&
                     response->field("x-envoy-overloaded") == "true") {
            ++outcome.overloaded;
          } else {
            ++outcome.other;
          }
        }
      });
    }
    for (auto& thread : threads) thread.join();
    return outcome;
  }
};

const char* const kOneAndOne = "{tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}";

TEST_F(CircuitBreaker, OneClientIsNeverRefused) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve_limited(upstream, kOneAndOne);
  const auto outcome = load(1, 100);
  EXPECT_EQ(outcome.ok, 100);
  EXPECT_EQ(upstream.most_at_once(), 1);
}

TEST_F(CircuitBreaker, ThreeClientsAreRefusedInPartAndTheServerSeesOneConnection) {
  FakeUpstream upstream([&](auto&) {
    EXPECT_TRUE(overflowed());
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, kOneAndOne);
  const auto outcome = load(3, 50);
  EXPECT_EQ(outcome.other, 0);
  EXPECT_GT(outcome.overloaded, 0);
  EXPECT_GT(outcome.ok, 0);
  EXPECT_EQ(outcome.ok, upstream.requests());
  EXPECT_EQ(upstream.most_at_once(), 1);
  EXPECT_EQ(metric_at(outcome.overloaded, kOverflow, {kCluster}), outcome.overloaded);
  EXPECT_EQ(metric_at(outcome.overloaded, "istio_requests_total", {"response_flags=\"UO\""}),
            outcome.overloaded);
}

TEST_F(CircuitBreaker, OneRequestAConnectionNeverOverlapsAtTheServer) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve_limited(upstream, "{tcp: {maxConnections: 1}, http: {maxRequestsPerConnection: 1}}");
  const auto outcome = load(4, 25);
  EXPECT_EQ(outcome.ok, 100);
  EXPECT_EQ(upstream.connections(), 100);
  EXPECT_EQ(upstream.most_at_once(), 1);
}

TEST_F(CircuitBreaker, WithoutAPendingLimitRequestsWait) {
  Gate six_wait;
  FakeUpstream upstream([&](auto&) {
    six_wait.wait();
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, "{tcp: {maxConnections: 2}}");
  std::thread watcher([&] {
    EXPECT_EQ(metric_at(6, kPending, {kCluster}), 6);
    six_wait.open();
  });
  const auto outcome = load(8, 20);
  watcher.join();
  EXPECT_EQ(outcome.ok, 160);
  EXPECT_EQ(upstream.most_at_once(), 2);
}

TEST_F(CircuitBreaker, ConnectionsMoveBetweenEndpointsAtTheLimit) {
  FakeUpstream a([](auto&) { return FakeUpstream::ok("a"); });
  FakeUpstream b([](auto&) { return FakeUpstream::ok("b"); });
  serve({&a, &b}, destination_rule("    loadBalancer: {simple: ROUND_ROBIN}\n"
                                   "    connectionPool: {tcp: {maxConnections: 1}}\n"));
  auto socket = dial();
  for (int i = 0; i < 20; ++i) {
    socket.send(get("/"));
    ASSERT_EQ(socket.read()->status(), 200);
  }
  EXPECT_EQ(a.requests(), 10);
  EXPECT_EQ(b.requests(), 10);
}

TEST_F(CircuitBreaker, ActiveRequestsAreLimitedToo) {
  FakeUpstream upstream([&](auto&) {
    EXPECT_TRUE(overflowed());
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, "{http: {http2MaxRequests: 1}}");
  const auto outcome = load(4, 5);
  EXPECT_EQ(outcome.other, 0);
  EXPECT_GT(outcome.overloaded, 0);
  EXPECT_EQ(metric_at(outcome.overloaded, kOverflow, {kCluster}), outcome.overloaded);
}

TEST_F(CircuitBreaker, AWaitingRequestGivesUpAtItsTimeout) {
  Gate gave_up;
  FakeUpstream upstream([&](auto&) {
    gave_up.wait();
    return FakeUpstream::ok("x");
  });
  serve({&upstream}, destination_rule("    connectionPool: {tcp: {maxConnections: 1}}\n") +
                         virtual_service("  - match: [{uri: {prefix: /quick}}]\n    timeout: 0.1s\n"
                                         "    route: [{destination: {host: reviews}}]\n"
                                         "  - route: [{destination: {host: reviews}}]\n"));
  auto slow = dial();
  slow.send(get("/slow"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  EXPECT_EQ(ask(get("/quick")).status(), 504);
  EXPECT_EQ(ask("POST /quick HTTP/1.1\r\nHost: reviews\r\nContent-Length: 2\r\n\r\nhi").status(),
            504);
  auto half = dial();  // the rest of its body is not read while it waits
  half.send("POST /quick HTTP/1.1\r\nHost: reviews\r\nContent-Length: 5\r\n\r\nhi");
  EXPECT_EQ(half.read().value_or(HttpSocket::Message{}).status(), 504);
  gave_up.open();
  EXPECT_EQ(slow.read()->status(), 200);
  EXPECT_EQ(upstream.requests(), 1);
}

// --- clients that are gone

// A client that is gone gives back what it held: the connection, its place in the line, the
// request.
class GoneClient : public CircuitBreaker {
 protected:
  double count_dc() { return metric("istio_requests_total", {"response_flags=\"DC\""}); }
};

TEST_F(GoneClient, DoesNotHoldTheConnectionWhileTheServiceThinks) {
  Gate thinks;
  std::atomic<bool> was_left{false};
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    const auto request = connection.read();
    if (!request) return;
    if (request->start_line.starts_with("GET /slow")) {
      thinks.open();
      was_left = connection.is_closed();
      return;
    }
    connection.send(FakeUpstream::ok("x"));
    connection.read();
  });
  serve_limited(upstream, "{tcp: {maxConnections: 1}}");
  auto slow = dial();
  slow.send(get("/slow"));
  ASSERT_TRUE(thinks.wait());
  slow.reset();
  EXPECT_EQ(ask(get("/")).status(), 200);
  EXPECT_TRUE(was_left);
  EXPECT_TRUE(eventually([&] { return count_dc() == 1; }));
}

// A client with a time-out of its own closes, and sends no reset before something comes.
TEST_F(GoneClient, ThatClosedInGoodOrderHoldsTheConnectionNotForLong) {
  Gate thinks;
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    const auto request = connection.read();
    if (!request) return;
    if (request->start_line.starts_with("GET /slow")) {
      thinks.open();
      EXPECT_TRUE(connection.is_closed());
      return;
    }
    connection.send(FakeUpstream::ok("x"));
    connection.read();
  });
  options_.limits.half_closed = 50ms;
  serve_limited(upstream, "{tcp: {maxConnections: 1}}");
  auto slow = dial();
  slow.send(get("/slow"));
  ASSERT_TRUE(thinks.wait());
  slow.close();
  EXPECT_EQ(ask(get("/")).status(), 200);
  EXPECT_TRUE(eventually([&] { return count_dc() == 1; }));
}

TEST_F(GoneClient, LeavesTheLine) {
  Gate go;
  FakeUpstream upstream([&](auto&) {
    go.wait();
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, kOneAndOne);
  auto first = dial();
  first.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  auto waiting = dial();
  waiting.send(get("/"));
  EXPECT_EQ(metric_at(1, kPending, {kCluster}), 1);
  waiting.reset();
  EXPECT_TRUE(eventually([&] { return count_dc() == 1; }));
  auto next = dial();
  next.send(get("/"));
  EXPECT_EQ(metric_at(1, kPending, {kCluster}), 1);
  go.open();
  EXPECT_EQ(first.read()->status(), 200);
  EXPECT_EQ(next.read()->status(), 200);
  EXPECT_EQ(upstream.requests(), 2);
}

TEST_F(GoneClient, IsNotDelayedAnyMore) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream}, virtual_service(R"(
  - fault: {delay: {percentage: {value: 100}, fixedDelay: 300s}}
    route: [{destination: {host: reviews}}]
)"));
  auto socket = dial();
  socket.send(get("/"));
  EXPECT_EQ(metric_at(1, "undermesh_buffers_in_use"), 1);  // the delayed request's
  socket.reset();
  EXPECT_TRUE(eventually([&] {
    return metric("istio_requests_total", {"response_flags=\"DC,DI\""}) +
               metric("istio_requests_total", {"response_flags=\"DI,DC\""}) ==
           1;
  }));
  EXPECT_EQ(upstream.requests(), 0);
}

TEST_F(GoneClient, MidUploadAfterTheResponseBeganIsFlaggedDC) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read_head();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n");
    connection.is_closed();
    connection.read_to_end();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 20\r\n\r\nabc");
  ASSERT_TRUE(socket.read_head());
  socket.shutdown_write();  // 17 bytes are missing
  EXPECT_TRUE(eventually([&] { return count_dc() == 1; }));
}

// --- limits and bad input

TEST_F(ProxyTest, BadInputIsRefusedAndTheConnectionEnds) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  const std::pair<const char*, int> cases[] = {
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a\r\n folded: 1\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
       400},
      {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400},
      {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501},
      {"nonsense\r\n\r\n", 400},
      {"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
      {"CONNECT reviews:9080 HTTP/1.1\r\nHost: reviews:9080\r\n\r\n", 501},
  };
  for (const auto& [input, status] : cases) {
    auto socket = dial();
    socket.send(input);
    const auto response = socket.read();
    ASSERT_TRUE(response) << input;
    EXPECT_EQ(response->status(), status) << input;
    EXPECT_TRUE(socket.is_closed()) << input;
  }
  EXPECT_EQ(upstream.requests(), 0);
  auto socket = dial();
  socket.send("GET / HTTP/1.1\r\nHost: a\r\nx: " + std::string(100'000, 'x'));
  EXPECT_EQ(socket.read()->status(), 431);
}

TEST_F(ProxyTest, ABadChunkIsA400AndNeverReachesTheServiceWhole) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  auto socket = dial();
  socket.send(
      "POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n");
  EXPECT_EQ(socket.read()->status(), 400);
  EXPECT_EQ(upstream.requests(), 0);
}

TEST_F(ProxyTest, ABadChunkAfterTheResponseBeganIsFlaggedDPE) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read_head();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n");
    connection.read_to_end();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  ASSERT_TRUE(socket.read_head());
  socket.send("zz\r\n");
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"DPE\""}), 1);
}

TEST_F(ProxyTest, ASlowHeadIsA408) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  options_.limits.head_timeout = 100ms;
  serve({&upstream});
  auto socket = dial();
  socket.send("GET / HTTP/1.1\r\nHost:");
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 408);
  EXPECT_TRUE(socket.is_closed());
}

TEST_F(ProxyTest, IdleConnectionsEnd) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  options_.limits.idle_timeout = 100ms;
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_TRUE(socket.read());
  EXPECT_TRUE(socket.is_closed());
}

TEST_F(ProxyTest, IdleUpstreamConnectionsEnd) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream}, destination_rule("    connectionPool: {http: {idleTimeout: 0.1s}}\n"));
  EXPECT_EQ(ask(get("/")).status(), 200);
  EXPECT_TRUE(
      eventually([&] { return metric("envoy_cluster_upstream_cx_active", {kCluster}) == 0; }));
}

TEST_F(ProxyTest, ConnectionsOverTheWorkloadsLimitAreReset) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  options_.limits.connections = 2;
  serve({&upstream});
  auto a = dial(), b = dial();
  for (auto* socket : {&a, &b}) {
    socket->send(get("/"));
    ASSERT_TRUE(socket->read());
  }
  auto c = dial();
  c.send(get("/"));
  EXPECT_FALSE(c.read());
  EXPECT_EQ(metric_at(1, "undermesh_connections_refused_total"), 1);
}

TEST_F(ProxyTest, HeadsThatAreNotFinishedCountAsBuffers) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  options_.limits.buffer_bytes = 2 * sizeof(net::BufferBlock);
  serve({&upstream});
  auto a = dial(), b = dial(), c = dial();
  a.send("GET / HT");
  b.send("GET / HT");
  EXPECT_EQ(metric_at(2, "undermesh_buffers_in_use"), 2);
  c.send(get("/"));
  EXPECT_FALSE(c.read());
  EXPECT_EQ(metric_at(1, "undermesh_requests_refused_total"), 1);
  a.close();
  b.close();
  EXPECT_EQ(metric_at(0, "undermesh_buffers_in_use"), 0);
  EXPECT_EQ(ask(get("/")).status(), 200);
}

TEST_F(ProxyTest, RequestsOverTheWorkloadsLimitAre503) {
  Gate refused;
  FakeUpstream upstream([&](auto&) {
    refused.wait();
    return FakeUpstream::ok("x");
  });
  options_.limits.requests = 1;
  serve({&upstream});
  auto a = dial();
  a.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  EXPECT_EQ(ask(get("/")).status(), 503);
  refused.open();
  EXPECT_EQ(a.read()->status(), 200);
}

}  // namespace
}  // namespace mesh::test
