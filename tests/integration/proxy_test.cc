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

}  // namespace
}  // namespace mesh::test
