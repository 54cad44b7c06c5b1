// ProxyTest: one client, "productpage", that dials service "reviews" of fake upstreams through the
// real proxy; and the YAML and the bytes that tests of it write.
#pragma once

#include <string>
#include <vector>

#include "tests/support/fake_upstream.h"
#include "tests/support/proxy_fixture.h"

namespace mesh::test {

inline const SocketAddress kReviews{IpAddress::v4(10, 78, 0, 1), 9080};

inline std::string workload(const std::string& name, const std::string& address,
                            const std::string& labels) {
  return "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: " +
         name + "\n  annotations: {undermesh.io/netns: /proc/1/ns/net, undermesh.io/cgroup: /" +
         name + "}\n" + "spec:\n  address: " + address + "\n  labels: {" + labels + "}\n";
}

// Service default/reviews at kReviews; its endpoints are fake upstreams on loopback.
inline std::string service(const std::vector<const FakeUpstream*>& endpoints) {
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

inline std::string get(const std::string& path, const std::string& fields = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: reviews:9080\r\n" + fields + "\r\n";
}

inline std::string post(const std::string& body, const std::string& fields = "") {
  return "POST /reviews HTTP/1.1\r\nHost: reviews\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n" + fields + "\r\n" + body;
}

inline std::string virtual_service(const std::string& http) {
  return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n"
         "metadata: {name: reviews}\nspec:\n  hosts: [reviews]\n  http:\n" +
         http;
}

inline std::string destination_rule(const std::string& policy) {
  return "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
         "metadata: {name: reviews}\nspec:\n  host: reviews\n  trafficPolicy:\n" +
         policy;
}

inline const std::string kCluster = "outbound|9080||reviews.default.svc.cluster.local";
constexpr const char* kPending = "envoy_cluster_upstream_rq_pending_active";

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

}  // namespace mesh::test
