// When the endpoint fails: what is sent again, what the client is told, who is ejected.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>

#include "tests/support/fake_upstream.h"
#include "tests/support/reviews_fixture.h"

namespace mesh::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using testing::StartsWith;

TEST_F(ProxyTest, AReusedConnectionThatDiesIsReplacedOnce) {
  std::atomic<int> served{0};
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    // One answer a connection, then the second request is read and the connection dropped.
    if (!connection.read()) return;
    ++served;
    connection.send(FakeUpstream::ok("x"));
    connection.read();
  });
  serve({&upstream});
  auto socket = dial();
  for (int i = 0; i < 5; ++i) {
    socket.send(get("/"));
    EXPECT_EQ(socket.read()->status(), 200) << i;
  }
  EXPECT_EQ(served, 5);
  EXPECT_GE(metric("undermesh_requests_retried_total"), 1);
  EXPECT_EQ(metric_at(metric("undermesh_requests_retried_total"), "envoy_cluster_upstream_rq_retry",
                      {kCluster}),
            metric("undermesh_requests_retried_total"));
}

TEST_F(ProxyTest, APostWhoseConnectionDiesIsNotSentTwice) {
  std::atomic<int> posts{0};
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send(FakeUpstream::ok("x"));
    if (connection.read()) ++posts;
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  EXPECT_EQ(socket.read()->status(), 200);
  socket.send(post("data"));
  const auto response = socket.read();
  EXPECT_EQ(response->status(), 503);
  EXPECT_EQ(response->body,
            "upstream connect error or disconnect/reset before headers. reset reason: connection "
            "termination");
  EXPECT_EQ(posts, 1);
}

TEST_F(ProxyTest, ARequestIsNotSentTwiceAfterAnInterimResponse) {
  std::atomic<int> seen{0};
  Gate through;
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send(FakeUpstream::ok("x"));
    if (!connection.read()) return;
    ++seen;
    connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    through.wait();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_EQ(socket.read()->status(), 200);
  socket.send(get("/"));
  const auto interim = socket.read_head();
  ASSERT_TRUE(interim);
  EXPECT_THAT(*interim, StartsWith("HTTP/1.1 103 "));
  through.open();
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 503);
  EXPECT_EQ(seen, 1);
  EXPECT_EQ(upstream.connections(), 1);
}

TEST_F(ProxyTest, AnIdempotentRequestWhoseBodyWasNotTakenIsSentAgain) {
  std::atomic<int> heads{0};
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (heads == 0) {
      connection.read();
      connection.send(FakeUpstream::ok("x"));
      if (connection.read_head()) ++heads;
      return;  // dies with the head of the PUT read
    }
    if (!connection.read_head()) return;
    ++heads;
    connection.send("HTTP/1.1 100 Continue\r\n\r\n");
    std::string body;
    connection.take(5, body);
    connection.send(FakeUpstream::ok(body));
    connection.read();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_EQ(socket.read()->status(), 200);
  socket.send(
      "PUT / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  const auto head = socket.read_head();
  ASSERT_TRUE(head);
  EXPECT_THAT(*head, StartsWith("HTTP/1.1 100 "));
  socket.send("hello");
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->body, "hello");
  EXPECT_EQ(heads, 2);
}

TEST_F(ProxyTest, AnAnswerThatCameBeforeAFailedWriteIsPassedOn) {
  Gate failed;
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send(FakeUpstream::ok("x"));
    connection.read();  // the end
    failed.wait();
    connection.send("HTTP/1.1 429 Early\r\nContent-Length: 3\r\n\r\nbye");
  });
  keep_sockets_ = true;
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_EQ(socket.read()->status(), 200);
  {
    std::lock_guard lock(mutex());
    for (auto& fd : kept_sockets_) ::shutdown(fd.get(), SHUT_WR);  // writes fail from now on
    kept_sockets_.clear();
  }
  socket.send(get("/"));
  EXPECT_EQ(metric_at(1, "envoy_cluster_upstream_rq_active", {kCluster}), 1);
  wait_for_workers();
  failed.open();
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 429);
  EXPECT_EQ(response->body, "bye");
  EXPECT_EQ(upstream.connections(), 1);
}

TEST_F(ProxyTest, InterimResponsesWithoutEndAreA502) {
  std::atomic<bool> was_left{false};
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    while (connection.send("HTTP/1.1 102 Processing\r\n\r\n")) {
    }
    was_left = true;
  });
  serve({&upstream});
  const auto response = ask(get("/"));
  EXPECT_EQ(response.status(), 502);
  EXPECT_EQ(response.interim.size(), options_.limits.interim_responses + 1);
  EXPECT_TRUE(eventually([&] { return was_left.load(); }));
}

TEST_F(ProxyTest, AFreshConnectionThatDiesIsA503WithFlagUC) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) { connection.read(); });
  serve({&upstream});
  EXPECT_EQ(ask(get("/")).status(), 503);
  EXPECT_EQ(upstream.connections(), 1);
  EXPECT_EQ(
      metric_at(1, "istio_requests_total", {"response_code=\"503\"", "response_flags=\"UC\""}), 1);
}

TEST_F(ProxyTest, ARefusedConnectIsA503WithFlagUF) {
  auto gone = std::make_unique<FakeUpstream>([](auto&) { return FakeUpstream::ok("x"); });
  serve({gone.get()});
  gone.reset();
  const auto response = ask(get("/"));
  EXPECT_EQ(response.status(), 503);
  EXPECT_THAT(response.body, HasSubstr("remote connection failure"));
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"UF\""}), 1);
  EXPECT_EQ(metric_at(1, "envoy_cluster_upstream_cx_connect_fail", {kCluster}), 1);
}

TEST_F(ProxyTest, AnEndpointThatSpeaksNoHttpIsA502) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read();
    connection.send("SSH-2.0-OpenSSH_9.2\r\n\r\n");
  });
  serve({&upstream});
  EXPECT_EQ(ask(get("/")).status(), 502);
}

TEST_F(ProxyTest, NoEndpointIsNoHealthyUpstream) {
  serve({});
  const auto response = ask(get("/"));
  EXPECT_EQ(response.status(), 503);
  EXPECT_EQ(response.body, "no healthy upstream");
  EXPECT_EQ(metric_at(1, "istio_requests_total", {"response_flags=\"UH\""}), 1);
}

TEST_F(ProxyTest, NoSocketFromMeshholdIsA503AndComesBack) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x", "connection: close\r\n"); });
  options_.limits.socket_timeout = 300ms;
  sockets_stopped_ = true;
  serve({&upstream});
  EXPECT_EQ(ask(get("/")).status(), 503);
  sockets_stopped_ = false;
  on_main([&] { proxy_->ask_again_for_sockets(); });
  EXPECT_EQ(ask(get("/")).status(), 200);
}

TEST_F(ProxyTest, IPv6SocketsAreAskedForAgainToo) {
  options_.limits.socket_timeout = 100ms;
  sockets_stopped_ = true;
  port_ = client("productpage", kReviews);
  configure(workload("productpage", "10.77.0.2", "app: productpage") + service({}) + R"(---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews-v6, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv6
ports: [{name: http, port: 9080}]
endpoints: [{addresses: ["fd00:77::1"]}]
)");
  on_main([&] { proxy_->ask_again_for_sockets(); });
  wait_for_workers();
  EXPECT_EQ(v6_sockets_wanted_, 0);  // never used
  EXPECT_EQ(ask(get("/")).status(), 503);
  const int wanted = v6_sockets_wanted_;
  EXPECT_GT(wanted, 0);
  on_main([&] { proxy_->ask_again_for_sockets(); });
  EXPECT_TRUE(eventually([&] { return v6_sockets_wanted_ > wanted; }));
}

TEST_F(ProxyTest, AFailingEndpointIsEjectedAndComesBack) {
  std::atomic<bool> failing{true};
  FakeUpstream good([](auto&) { return FakeUpstream::ok("good"); });
  FakeUpstream bad([&](auto&) {
    return failing ? std::string("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
                   : FakeUpstream::ok("bad");
  });
  serve({&good, &bad}, destination_rule(R"(
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection:
      consecutive5xxErrors: 3
      interval: 0.2s
      baseEjectionTime: 0.5s
      maxEjectionPercent: 100
)"));
  const auto ejections = [&](const char* which) {
    return metric(std::string("envoy_cluster_outlier_detection_ejections_") + which, {kCluster});
  };
  int failed = 0;
  for (int i = 0; ejections("enforced_total") == 0 && i < 60; ++i) {
    failed += ask(get("/")).status() == 503;
  }
  failing = false;
  EXPECT_EQ(failed, 3);
  int without = 0;  // answers while it was ejected
  EXPECT_TRUE(eventually([&] {
    const std::string body = ask(get("/")).body;
    if (ejections("active") == 1) {
      EXPECT_EQ(body, "good");
      ++without;
    }
    return body == "bad";
  }));
  EXPECT_GT(without, 0);
  EXPECT_EQ(ejections("active"), 0);
  EXPECT_EQ(ejections("enforced_total"), 1);
}

}  // namespace
}  // namespace mesh::test
