// Who ends a connection, and how: the side that does it first keeps the port busy for a minute.
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "tests/support/fake_upstream.h"
#include "tests/support/proxy_fixture.h"

namespace mesh::test {
namespace {

// Connections on loopback that `from` or `to` (a port; 0: any) ended first, and waits out.
int count_time_wait(std::uint16_t from, std::uint16_t to) {
  std::ifstream table("/proc/net/tcp");
  int count = 0;
  for (std::string line; std::getline(table, line);) {
    unsigned local = 0, remote = 0, state = 0;
    if (std::sscanf(line.c_str(), " %*d: %*x:%x %*x:%x %x", &local, &remote, &state) != 3) continue;
    constexpr unsigned kTimeWait = 6;
    count += state == kTimeWait && (from == 0 || local == from) && (to == 0 || remote == to);
  }
  return count;
}

bool has_peer_ended(const HttpSocket& connection) {
  pollfd end{connection.fd(), POLLIN, 0};
  return ::poll(&end, 1, 0) != 0;
}

// Answers every request; closes after one that says `connection: close`, as servers do. Returns
// whether the proxy had ended the connection by then.
bool serve_and_close(HttpSocket& connection) {
  while (auto request = connection.read()) {
    const std::string option = request->field("connection");
    connection.send(FakeUpstream::ok("[" + option + "]"));
    if (option == "close") return has_peer_ended(connection);
  }
  return true;
}

std::string get(const std::string& fields = "") {
  return "GET / HTTP/1.1\r\nHost: reviews\r\n" + fields + "\r\n";
}

class UpstreamEnd : public ProxyFixture {
 protected:
  void serve(const FakeUpstream& upstream, const std::string& pool) {
    port_ = client("productpage", {IpAddress::v4(10, 78, 0, 1), 9080});
    configure(R"(---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: productpage, annotations: {undermesh.io/netns: /x, undermesh.io/cgroup: /y}}
spec: {address: 10.77.0.2, labels: {app: productpage}}
---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIP: 10.78.0.1, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy: {connectionPool: )" +
              pool + R"(}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints: [{addresses: [10.77.1.1]}]
ports: [{name: http, port: )" +
              std::to_string(upstream.port()) + "}]\n");
  }
  HttpSocket dial() { return HttpSocket::connect_to(port_); }
  std::uint16_t port_ = 0;
};

TEST_F(UpstreamEnd, TheLastRequestOfAConnectionSaysSo) {
  auto upstream = FakeUpstream::raw([](auto& connection) { serve_and_close(connection); });
  serve(upstream, "{http: {maxRequestsPerConnection: 3}}");
  auto socket = dial();
  std::string options;
  for (int i = 0; i < 7; ++i) {
    socket.send(get());
    options += socket.read().value_or(HttpSocket::Message{}).body;
  }
  EXPECT_EQ(options, "[][][close][][][close][]");
  EXPECT_EQ(upstream.connections(), 3);
}

TEST_F(UpstreamEnd, TheServerEndsAConnectionThatIsUsedUp) {
  std::atomic<int> ended_by_proxy{0};
  auto upstream =
      FakeUpstream::raw([&](auto& connection) { ended_by_proxy += serve_and_close(connection); });
  serve(upstream, "{http: {maxRequestsPerConnection: 1}}");
  // The port may have been another server's a moment ago.
  const int before = count_time_wait(0, upstream.port());
  auto socket = dial();
  constexpr int kRequests = 200;
  for (int i = 0; i < kRequests; ++i) {
    socket.send(get());
    ASSERT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 200);
  }
  EXPECT_TRUE(eventually([&] { return metric("envoy_cluster_upstream_cx_active") == 0; }));
  // One or the other where the server's thread was held up for longer than it is waited for.
  EXPECT_LT(ended_by_proxy, kRequests / 10);
  EXPECT_LT(count_time_wait(0, upstream.port()) - before, kRequests / 4);
  EXPECT_GT(count_time_wait(upstream.port(), 0), kRequests / 2);
}

TEST_F(UpstreamEnd, AServerThatSaysItClosesIsWaitedFor) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send(FakeUpstream::ok("x", "connection: close\r\n"));
    pollfd end{connection.fd(), POLLIN, 0};
    ::poll(&end, 1, 20);  // the proxy's, which would be too early
  });
  serve(upstream, "{}");
  auto socket = dial();
  for (int i = 0; i < 20; ++i) {
    socket.send(get());
    ASSERT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 200);
  }
  EXPECT_TRUE(eventually([&] { return metric("envoy_cluster_upstream_cx_active") == 0; }));
  EXPECT_LT(count_time_wait(0, upstream.port()), 5);
}

TEST_F(UpstreamEnd, AServerThatDoesNotCloseIsNotWaitedForLong) {
  FakeUpstream upstream([](auto&) { return FakeUpstream::ok("x"); });
  serve(upstream, "{tcp: {maxConnections: 1}, http: {maxRequestsPerConnection: 1}}");
  auto socket = dial();
  for (int i = 0; i < 3; ++i) {
    socket.send(get());
    ASSERT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 200);
  }
  EXPECT_EQ(upstream.connections(), 3);
  EXPECT_EQ(upstream.most_at_once(), 1);
}

TEST_F(UpstreamEnd, AnUpgradeIsNotToldToClose) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    const auto request = connection.read();
    EXPECT_EQ(request->field("connection"), "upgrade");
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    connection.read_to_end();
  });
  serve(upstream, "{http: {maxRequestsPerConnection: 1}}");
  auto socket = dial();
  socket.send(get("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
  EXPECT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 101);
}

class ClientEnd : public UpstreamEnd {
 protected:
  void expect_refused(const std::string& request) {
    auto socket = dial();
    socket.send(request);
    socket.shutdown_write();
    const auto answer = socket.read();
    ASSERT_TRUE(answer) << request;
    EXPECT_EQ(answer->status(), 400);
    EXPECT_EQ(answer->field("connection"), "close");
    EXPECT_EQ(answer->body, "body cut short");
    EXPECT_EQ(socket.read_to_end(), "");
    EXPECT_EQ(errno, 0) << "the connection ends in good order";
  }
};

TEST_F(ClientEnd, AClientThatEndsWithinItsBodyIsToldSo) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) { connection.read(); });
  serve(upstream, "{}");
  expect_refused("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 20\r\n\r\nabc");
  expect_refused("POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc");
  EXPECT_EQ(metric_at(2, "istio_requests_total", {"response_flags=\"DPE\""}), 2);
  EXPECT_EQ(metric("undermesh_bad_requests_total"), 2);
}

}  // namespace
}  // namespace mesh::test
