// The real proxy between real sockets: the life of a request, and of those that go wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/fake_upstream.h"
#include "tests/support/proxy_fixture.h"

namespace mesh::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

const SocketAddress kReviews{IpAddress::v4(10, 78, 0, 1), 9080};

std::string workload(const std::string& name, const std::string& address,
                     const std::string& labels) {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: " +
         name + "\n  annotations: {undermesh.io/netns: /proc/1/ns/net, undermesh.io/cgroup: /x}\n" +
         "spec:\n  address: " + address + "\n  labels: {" + labels + "}\n";
}

// Service default/reviews at kReviews; its endpoints are fake upstreams on loopback.
std::string service(const std::vector<const FakeUpstream*>& endpoints) {
  std::string yaml = R"(---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec:
  clusterIP: 10.78.0.1
  ports: [{name: http, port: 9080}]
)";
  for (std::size_t i = 0; i < endpoints.size(); ++i) {
    yaml +=
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: reviews-" +
        std::to_string(i) + "\n  labels: {kubernetes.io/service-name: reviews}\n" +
        "addressType: IPv4\nports: [{name: http, port: " + std::to_string(endpoints[i]->port()) +
        "}]\nendpoints: [{addresses: [10.77.1.1]}]\n";
  }
  return yaml;
}

std::string get(const std::string& path, const std::string& fields = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: reviews:9080\r\n" + fields + "\r\n";
}

class ProxyTest : public ProxyFixture {
 protected:
  // One client "productpage" that dials reviews.
  void serve(const std::vector<const FakeUpstream*>& endpoints, const std::string& rules = "") {
    port_ = client("productpage", kReviews);
    rules_base_ = workload("productpage", "10.77.0.2", "app: productpage") + service(endpoints);
    configure(rules_base_ + rules);
  }
  HttpSocket dial() { return HttpSocket::connect_to(port_); }
  HttpSocket::Message ask(const std::string& request) {
    auto socket = dial();
    socket.send(request);
    return socket.read(request.substr(0, request.find(' '))).value_or(HttpSocket::Message{});
  }
  std::uint16_t port_ = 0;
  std::string rules_base_;
};

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

std::string post(const std::string& body, const std::string& fields = "") {
  return "POST /reviews HTTP/1.1\r\nHost: reviews\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + fields + "\r\n" + body;
}

std::string chunked(const std::string& body, std::size_t piece, const std::string& trailers = "") {
  std::string out;
  for (std::size_t at = 0; at < body.size(); at += piece) {
    const std::string part = body.substr(at, piece);
    char size[20];
    std::snprintf(size, sizeof size, "%zx\r\n", part.size());
    out += size + part + "\r\n";
  }
  return out + "0\r\n" + trailers + "\r\n";
}

std::string virtual_service(const std::string& http) {
  return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n"
         "metadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n" +
         http;
}

std::string destination_rule(const std::string& policy) {
  return "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
         "metadata: {name: reviews}\nspec:\n  host: reviews\n  trafficPolicy:\n" +
         policy;
}

std::string pattern(std::size_t size) {
  std::string text(size, ' ');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (i * 7 + i / 251) % 26);
  return text;
}

const std::string kCluster = "outbound|9080||reviews.default.svc.cluster.local";

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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(50ms);
    return FakeUpstream::ok("late");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  socket.shutdown_write();
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

// --- bodies

TEST_F(ProxyTest, StreamsLargeBodiesBothWays) {
  FakeUpstream upstream([](auto& r) { return FakeUpstream::ok(r.body); });
  serve({&upstream});
  const std::string body = pattern(3'000'000);
  auto socket = dial();
  std::thread writer([&] { socket.send(post(body)); });
  const auto response = socket.read();
  writer.join();
  ASSERT_TRUE(response);
  EXPECT_TRUE(response->complete);
  EXPECT_EQ(response->body, body);
  EXPECT_EQ(upstream.last().field("content-length"), std::to_string(body.size()));
}

TEST_F(ProxyTest, StreamsChunkedBodiesBothWaysWithTrailers) {
  const std::string body = pattern(300'000);
  FakeUpstream upstream([&](auto& r) {
    return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n" +
           chunked(r.body, 777, "X-Sum: 42\r\n");
  });
  serve({&upstream});
  auto socket = dial();
  std::thread writer([&] {
    socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n" +
                chunked(body, 1000, "X-Up: 1\r\n"));
  });
  const auto response = socket.read();
  writer.join();
  ASSERT_TRUE(response);
  EXPECT_TRUE(response->complete);
  EXPECT_EQ(response->body, body);
  EXPECT_THAT(socket.trailers_, testing::ElementsAre(testing::StrCaseEq("X-Sum: 42")));
  EXPECT_EQ(upstream.last().body, body);
}

TEST_F(ProxyTest, ABodyUntilTheEndBecomesChunkedAndTheConnectionGoesOn) {
  const std::string body = pattern(100'000);
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (connection.read()) connection.send("HTTP/1.1 200 OK\r\n\r\n" + body);
  });
  serve({&upstream});
  auto socket = dial();
  for (int i = 0; i < 2; ++i) {
    socket.send(get("/"));
    const auto response = socket.read();
    ASSERT_TRUE(response);
    EXPECT_EQ(response->field("transfer-encoding"), "chunked");
    EXPECT_TRUE(response->complete);
    EXPECT_EQ(response->body, body);
  }
}

TEST_F(ProxyTest, HttpOneZeroGetsItsBodyUntilTheEnd) {
  FakeUpstream upstream([](auto&) {
    return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked("hello", 2);
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("GET / HTTP/1.0\r\n\r\n");
  const std::string all = socket.read_to_end();
  EXPECT_THAT(all, testing::StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(all, testing::EndsWith("\r\n\r\nhello"));
  EXPECT_EQ(upstream.last().field("host"), "reviews.default.svc.cluster.local");
}

TEST_F(ProxyTest, HeadAnd204And304HaveNoBody) {
  FakeUpstream upstream([](auto& r) -> std::string {
    if (r.start_line.starts_with("HEAD")) return "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    if (r.start_line.starts_with("GET /204")) return "HTTP/1.1 204 No Content\r\n\r\n";
    return "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n";
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("HEAD / HTTP/1.1\r\nHost: reviews\r\n\r\n");
  EXPECT_EQ(socket.read("HEAD")->field("content-length"), "1000");
  socket.send(get("/204"));
  EXPECT_EQ(socket.read()->status(), 204);
  socket.send(get("/304"));
  EXPECT_EQ(socket.read()->status(), 304);
  EXPECT_EQ(upstream.connections(), 1);
}

TEST_F(ProxyTest, ASlowReaderSlowsTheEndpointDown) {
  std::atomic<std::size_t> sent{0};
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
    const std::string piece = pattern(100'000);
    for (int i = 0; i < 1000 && connection.send(piece); ++i) sent += piece.size();
  });
  serve({&upstream});
  auto socket = dial();
  const int small = 16 * 1024;
  ::setsockopt(socket.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  socket.send(get("/"));
  std::size_t before = 1;
  eventually([&] {  // until it stands still
    std::this_thread::sleep_for(100ms);
    return before == std::exchange(before, sent.load());
  });
  EXPECT_LT(sent.load(), 30'000'000u);
  EXPECT_LE(metric("undermesh_buffers_in_use"), 2);
  socket.reset();
}

TEST_F(ProxyTest, PassesContinueOnAndBack) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    auto head = connection.read_head();
    EXPECT_THAT(*head, HasSubstr("100-continue"));
    connection.send("HTTP/1.1 100 Continue\r\n\r\n");
    std::string body;
    connection.take(5, body);
    connection.send(FakeUpstream::ok(body));
    connection.read();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(
      "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_THAT(*socket.read_head(), testing::StartsWith("HTTP/1.1 100 "));
  socket.send("hello");
  EXPECT_EQ(socket.read()->body, "hello");
}

TEST_F(ProxyTest, AnAnswerBeforeTheEndOfTheRequestIsPassedOn) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read_head();
    connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 10000000\r\n\r\n" +
              pattern(50'000));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 413);
  EXPECT_EQ(response->body, "big");
  EXPECT_EQ(response->field("connection"), "close");
}

TEST_F(ProxyTest, BodiesMayFlowBothWaysAtOnce) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read_head();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 5; ++i) {
      std::string part;
      if (!connection.take(4, part)) return;
      connection.send("4\r\n" + part + "\r\n");
    }
    connection.send("0\r\n\r\n");
    connection.read();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 20\r\n\r\n");
  socket.send("ping");
  ASSERT_TRUE(socket.read_head());
  for (int i = 0; i < 5; ++i) {
    std::string chunk;
    ASSERT_TRUE(socket.take(9, chunk));
    EXPECT_EQ(chunk, "4\r\nping\r\n");
    if (i < 4) socket.send("ping");
  }
}

TEST_F(ProxyTest, ABodyCutShortIsSeenByTheClient) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_FALSE(response->complete);
}

// --- upgrade

TEST_F(ProxyTest, AWebSocketIsTunnelledBothWays) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    const auto request = connection.read();
    EXPECT_EQ(request->field("upgrade"), "websocket");
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\n\r\nwelcome");
    std::string message;
    connection.take(4, message);
    connection.send("echo:" + message);
    EXPECT_TRUE(connection.is_closed());
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 101);
  EXPECT_EQ(response->field("upgrade"), "websocket");
  std::string text;
  ASSERT_TRUE(socket.take(7, text));
  socket.send("ping");
  ASSERT_TRUE(socket.take(9, text));
  EXPECT_EQ(text, "welcomeecho:ping");
  socket.shutdown_write();
  EXPECT_TRUE(socket.is_closed());
}

// --- when the endpoint fails

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
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send(FakeUpstream::ok("x"));
    if (!connection.read()) return;
    ++seen;
    connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    std::this_thread::sleep_for(50ms);  // the interim response is through before the end
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_EQ(socket.read()->status(), 200);
  socket.send(get("/"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->interim.size(), 1u);
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
  EXPECT_THAT(*head, testing::StartsWith("HTTP/1.1 100 "));
  socket.send("hello");
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->body, "hello");
  EXPECT_EQ(heads, 2);
}

TEST_F(ProxyTest, AnAnswerThatCameBeforeAFailedWriteIsPassedOn) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send(FakeUpstream::ok("x"));
    connection.read();  // the end
    std::this_thread::sleep_for(100ms);
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
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 429);
  EXPECT_EQ(response->body, "bye");
  EXPECT_EQ(upstream.connections(), 1);
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
  EXPECT_EQ(v6_sockets_wanted_, 0);  // never used
  EXPECT_EQ(ask(get("/")).status(), 503);
  const int wanted = v6_sockets_wanted_;
  EXPECT_GT(wanted, 0);
  on_main([&] { proxy_->ask_again_for_sockets(); });
  EXPECT_TRUE(eventually([&] { return v6_sockets_wanted_ > wanted; }));
}

// --- rules

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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(500ms);
    return FakeUpstream::ok("late");
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

// --- circuit breaking

class CircuitBreaker : public ProxyTest {
 protected:
  void serve_limited(FakeUpstream& upstream, const std::string& pool) {
    serve({&upstream}, destination_rule("    connectionPool: " + pool + "\n"));
  }
  struct Outcome {
    int ok = 0, overloaded = 0, other = 0;
  };
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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(2ms);
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, kOneAndOne);
  const auto outcome = load(3, 50);
  EXPECT_EQ(outcome.other, 0);
  EXPECT_GT(outcome.overloaded, 0);
  EXPECT_GT(outcome.ok, 0);
  EXPECT_EQ(outcome.ok, upstream.requests());
  EXPECT_EQ(upstream.most_at_once(), 1);
  EXPECT_EQ(metric_at(outcome.overloaded, "envoy_cluster_upstream_rq_pending_overflow", {kCluster}),
            outcome.overloaded);
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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(1ms);
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, "{tcp: {maxConnections: 2}}");
  const auto outcome = load(8, 20);
  EXPECT_EQ(outcome.ok, 160);
  EXPECT_LE(upstream.most_at_once(), 2);
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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(20ms);
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, "{http: {http2MaxRequests: 1}}");
  const auto outcome = load(4, 5);
  EXPECT_EQ(outcome.other, 0);
  EXPECT_GT(outcome.overloaded, 0);
  EXPECT_EQ(metric_at(outcome.overloaded, "envoy_cluster_upstream_rq_pending_overflow", {kCluster}),
            outcome.overloaded);
}

// A client that is gone gives back what it held: the connection, its place in the line, the
// request.
class GoneClient : public CircuitBreaker {
 protected:
  double count_dc() { return metric("istio_requests_total", {"response_flags=\"DC\""}); }
};

TEST_F(GoneClient, DoesNotHoldTheConnectionWhileTheServiceThinks) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    const auto request = connection.read();
    if (!request) return;
    if (request->start_line.starts_with("GET /slow")) {
      connection.is_closed();  // thinks until it is left
      return;
    }
    connection.send(FakeUpstream::ok("x"));
    connection.read();
  });
  serve_limited(upstream, "{tcp: {maxConnections: 1}}");
  auto slow = dial();
  slow.send(get("/slow"));
  ASSERT_TRUE(eventually([&] { return upstream.connections() == 1; }));
  std::this_thread::sleep_for(50ms);
  slow.reset();
  const auto before = std::chrono::steady_clock::now();
  EXPECT_EQ(ask(get("/")).status(), 200);
  EXPECT_LT(std::chrono::steady_clock::now() - before, 2s);
  EXPECT_TRUE(eventually([&] { return count_dc() == 1; }));
}

TEST_F(GoneClient, LeavesTheLine) {
  std::atomic<bool> go{false};
  FakeUpstream upstream([&](auto&) {
    while (!go) std::this_thread::sleep_for(5ms);
    return FakeUpstream::ok("x");
  });
  serve_limited(upstream, kOneAndOne);
  auto first = dial();
  first.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  auto waiting = dial();
  waiting.send(get("/"));
  EXPECT_TRUE(eventually(
      [&] { return metric("envoy_cluster_upstream_rq_pending_active", {kCluster}) == 1; }));
  waiting.reset();
  EXPECT_TRUE(eventually([&] { return count_dc() == 1; }));
  auto next = dial();
  next.send(get("/"));
  std::this_thread::sleep_for(50ms);
  go = true;
  EXPECT_EQ(first.read()->status(), 200);
  EXPECT_EQ(next.read()->status(), 200);
  EXPECT_EQ(upstream.requests(), 2);
}

TEST_F(GoneClient, IsNotDelayedAnyMore) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream}, virtual_service(R"(
  - fault: {delay: {percentage: {value: 100}, fixedDelay: 20s}}
    route: [{destination: {host: reviews}}]
)"));
  auto socket = dial();
  socket.send(get("/"));
  std::this_thread::sleep_for(100ms);
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

TEST_F(CircuitBreaker, AWaitingRequestGivesUpAtItsTimeout) {
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(400ms);
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
  EXPECT_EQ(slow.read()->status(), 200);
  EXPECT_EQ(upstream.requests(), 1);
}

// --- outlier detection

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
  int failed = 0;
  for (int i = 0; i < 60; ++i) failed += ask(get("/")).status() == 503;
  EXPECT_EQ(failed, 3);
  EXPECT_EQ(bad.requests(), 3);
  EXPECT_EQ(metric_at(1, "envoy_cluster_outlier_detection_ejections_active", {kCluster}), 1);
  failing = false;
  EXPECT_TRUE(eventually([&] { return ask(get("/")).body == "bad"; }));
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

TEST_F(ProxyTest, RequestsOverTheWorkloadsLimitAre503) {
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(300ms);
    return FakeUpstream::ok("x");
  });
  options_.limits.requests = 1;
  serve({&upstream});
  auto a = dial();
  a.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  EXPECT_EQ(ask(get("/")).status(), 503);
  EXPECT_EQ(a.read()->status(), 200);
}

// --- workloads

TEST_F(ProxyTest, ConnectionsOfAnUnknownWorkloadWaitUntilItIsNamed) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  const auto port = client("productpage", kReviews);
  auto socket = HttpSocket::connect_to(port);
  socket.send(get("/"));
  EXPECT_TRUE(socket.is_quiet(100));
  configure(workload("productpage", "10.77.0.2", "app: productpage") + service({&upstream}));
  EXPECT_EQ(socket.read()->status(), 200);
}

TEST_F(ProxyTest, AListenerThatIsRemovedAndAddedAtOnceAccepts) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve({&upstream});
  EXPECT_EQ(ask(get("/")).status(), 200);
  {
    std::lock_guard lock(mutex());  // the worker waits for it in find_destination()
    auto blocker = dial();
    std::this_thread::sleep_for(50ms);
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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(300ms);
    return FakeUpstream::ok("x");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  on_main([&] { proxy_->revoke(2); });
  EXPECT_TRUE(socket.is_closed());
  EXPECT_TRUE(eventually([&] { return metric("undermesh_downstream_connections") == 0; }));
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

const char* const kGatewayYaml = R"(---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: PORT, protocol: HTTP, name: http}, bind: 127.0.0.1, hosts: ["shop.example.com"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: ["shop.example.com"]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /reviews}}]
    route: [{destination: {host: reviews, port: {number: 9080}}}]
)";

TEST_F(ProxyTest, TheGatewayIsTheEdge) {
  workers_ = 2;
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  const auto port = gateway();
  std::string yaml = kGatewayYaml;
  yaml.replace(yaml.find("PORT"), 4, std::to_string(port));
  configure(service({&upstream}) + yaml);
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
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(1ms);
    return FakeUpstream::ok("x");
  });
  port_ = gateway();
  std::string yaml = kGatewayYaml;
  yaml.replace(yaml.find("PORT"), 4, std::to_string(port_));
  configure(service({&upstream}) + yaml +
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
    proxy_->set_tap(true, {.source = "productpage"});
  });
  ASSERT_EQ(ask(get("/reviews/7?a=b", "User-Agent: test\r\n")).status(), 200);
  char line[4096];
  const ssize_t size = ::read(reader.get(), line, sizeof line);
  ASSERT_GT(size, 0);
  const std::string text(line, static_cast<std::size_t>(size));
  EXPECT_THAT(text, HasSubstr("\"GET /reviews/7?a=b HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 "));
  EXPECT_THAT(text, HasSubstr("\"test\""));
  EXPECT_THAT(text, HasSubstr(kCluster));
  EXPECT_THAT(text, testing::EndsWith("default\n"));
  ASSERT_TRUE(eventually([&] {
    std::lock_guard lock(mutex());
    return taps_.size() == 1;
  }));
  EXPECT_EQ(taps_[0].source, "default/productpage");
  EXPECT_EQ(taps_[0].destination, "reviews.default.svc.cluster.local");
  EXPECT_EQ(taps_[0].status, 200);
  EXPECT_EQ(taps_[0].flags, "-");
}

TEST_F(ProxyTest, TheAccessLogNamesTheClientAsTheMeshKnowsIt) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("hello"); });
  const auto edge = gateway();
  port_ = client("productpage", kReviews);
  std::string yaml = kGatewayYaml;
  yaml.replace(yaml.find("PORT"), 4, std::to_string(edge));
  configure(workload("productpage", "10.77.0.2", "app: productpage") + service({&upstream}) + yaml);
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
  auto outside = HttpSocket::connect_to(edge);
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
  EXPECT_THAT(seen.field("traceparent"), testing::StartsWith("00-" + trace + "-"));
}

TEST_F(ProxyTest, DrainsWhatIsInFlight) {
  FakeUpstream upstream([](auto&) {
    std::this_thread::sleep_for(200ms);
    return FakeUpstream::ok("done");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  ASSERT_TRUE(eventually([&] { return upstream.requests() == 1; }));
  std::thread stopper([&] { stop(); });
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->body, "done");
  stopper.join();
}

}  // namespace
}  // namespace mesh::test
