// How much work a request is: counts, not times.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/support/allocations.h"
#include "tests/support/proxy_fixture.h"

namespace mesh::test {
namespace {

// Blocking exchanges over plain descriptors: neither side allocates, so what is counted is the
// proxy's.
void answer_all(HttpSocket& connection) {
  static constexpr char kAnswer[] = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
  char bytes[4096];
  while (::recv(connection.fd(), bytes, sizeof bytes, 0) > 0) {
    if (::send(connection.fd(), kAnswer, sizeof kAnswer - 1, MSG_NOSIGNAL) <= 0) return;
  }
}

bool ask(int fd) {
  static constexpr char kRequest[] =
      "GET /reviews/1 HTTP/1.1\r\nHost: reviews:9080\r\nUser-Agent: counting\r\n"
      "Accept: */*\r\nend-user: jason\r\n\r\n";
  if (::send(fd, kRequest, sizeof kRequest - 1, MSG_NOSIGNAL) <= 0) return false;
  char bytes[4096];
  const ssize_t n = ::recv(fd, bytes, sizeof bytes, 0);
  return n > 12 && std::memcmp(bytes + 9, "200", 3) == 0;
}

class ProxyWork : public ProxyFixture {
 protected:
  // Returns the port to dial.
  std::uint16_t serve(const FakeUpstream& upstream) {
    const auto port = client("productpage", {IpAddress::v4(10, 78, 0, 1), 9080});
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
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    headers: {request: {set: {x-who: jason}}}
    route: [{destination: {host: reviews}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: reviews, labels: {kubernetes.io/service-name: reviews}}
addressType: IPv4
endpoints: [{addresses: [10.77.1.1]}]
ports: [{name: http, port: )" +
              std::to_string(upstream.port()) + "}]\n");
    return port;
  }
};

TEST_F(ProxyWork, ARequestOnAKeptConnectionAllocatesNothing) {
  auto upstream = FakeUpstream::raw(&answer_all);
  const auto port = serve(upstream);
  auto socket = HttpSocket::connect_to(port);
  const int fd = socket.fd();
  constexpr std::size_t kRequests = 2000;
  for (std::size_t i = 0; i < 200; ++i) ASSERT_TRUE(ask(fd));
  const std::size_t before = allocations;
  for (std::size_t i = 0; i < kRequests; ++i) ASSERT_TRUE(ask(fd));
  // Housekeeping of the other threads may allocate a little meanwhile; a request may not.
  EXPECT_LT(allocations - before, kRequests / 10);
}

TEST_F(ProxyWork, AnIdleConnectionTakesLessThanAKilobyte) {
  auto upstream = FakeUpstream::raw(&answer_all);
  const auto port = serve(upstream);
  constexpr std::size_t kConnections = 200;
  std::vector<HttpSocket> sockets;
  sockets.reserve(kConnections + 1);
  const auto open_one = [&] {
    sockets.push_back(HttpSocket::connect_to(port));
    return ask(sockets.back().fd());
  };
  ASSERT_TRUE(open_one());  // whatever is there once is there now
  ASSERT_EQ(metric_at(0, "undermesh_buffers_in_use"), 0);
  const std::size_t before = bytes_in_use;
  for (std::size_t i = 0; i < kConnections; ++i) ASSERT_TRUE(open_one());
  ASSERT_EQ(metric_at(0, "undermesh_buffers_in_use"), 0);
  EXPECT_LT(bytes_in_use - before, kConnections * 1024);
}

}  // namespace
}  // namespace mesh::test
