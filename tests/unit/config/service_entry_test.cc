// ServiceEntry: what it adds to the names, addresses and destinations of the mesh.
#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string entry(std::string_view spec, std::string_view name = "e",
                  std::string_view status = "") {
  return "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " +
         std::string(name) + ", namespace: shop}\nspec: " + std::string(spec) + "\n" +
         std::string(status);
}

constexpr std::string_view kPartner =
    "{hosts: [API.partner.example.], addresses: [203.0.113.7], resolution: STATIC, location: "
    "MESH_EXTERNAL, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: "
    "5432, name: sql, protocol: TCP}, {number: 53, name: dns, protocol: UDP}], endpoints: "
    "[{address: 198.51.100.1, labels: {version: v1}, weight: 3}, {address: 198.51.100.2, labels: "
    "{version: v2}, ports: {sql: 6432}}]}";

std::vector<std::string> endpoints(const Compiled& compiled, std::string_view cluster) {
  const auto found = compiled.snapshot->clusters.find(cluster);
  if (found == compiled.snapshot->clusters.end()) return {"no cluster"};
  std::vector<std::string> texts;
  for (const Endpoint& one : found->second->endpoints)
    texts.push_back(one.address.to_string() + "=" + std::to_string(one.weight) +
                    (one.workload ? " " + one.workload->name.to_string() : ""));
  return texts;
}

TEST(ServiceEntry, IsAServiceOfItsOwnNameAndEndpoints) {
  const Compiled compiled = compile_text(entry(kPartner));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  const Service& service = *compiled.snapshot->services.at("api.partner.example");
  EXPECT_EQ(service.object(), "ServiceEntry shop/e");
  EXPECT_EQ(service.display_name(), "api.partner.example");
  EXPECT_THAT(service.addresses, ElementsAre(IpAddress::v4(203, 0, 113, 7)));
  EXPECT_EQ(compiled.snapshot->service_by_address.at(service.addresses[0])->host, service.host);
  EXPECT_EQ(service.find_port(80)->protocol, Protocol::kHttp);
  EXPECT_EQ(service.find_port(5432)->protocol, Protocol::kTcp);
  EXPECT_THAT(endpoints(compiled, "outbound|80||api.partner.example"),
              ElementsAre("198.51.100.1:8080=3", "198.51.100.2:8080=1"));
  EXPECT_THAT(endpoints(compiled, "outbound|5432||api.partner.example"),
              ElementsAre("198.51.100.1:5432=3", "198.51.100.2:6432=1"));
  EXPECT_THAT(endpoints(compiled, "outbound|53/udp||api.partner.example"),
              ElementsAre("198.51.100.1:53=3", "198.51.100.2:53=1"));
}

TEST(ServiceEntry, HasTheAnnotationsOfAService) {
  const auto annotated = [](std::string_view spec, const std::string& annotations) {
    std::string text = entry(spec);
    text.replace(text.find("namespace: shop}"), 16,
                 "namespace: shop, annotations: {undermesh.io/" + annotations + "}}");
    return text;
  };
  const Compiled compiled = compile_text(
      annotated(kPartner, "on-endpoint-removal: reset, undermesh.io/fastpath: disabled"));
  const std::string where =
      "warning t.yaml:4: ServiceEntry shop/e: "
      "metadata.annotations[\"undermesh.io/on-endpoint-removal\"]";
  const std::string at = where + ": has no effect";
  EXPECT_THAT(texts_of(compiled.problems),
              ElementsAre(at + " on HTTP port 80: a request in flight to an endpoint that is gone "
                               "may end, and no other is sent there",
                          at + " on UDP port 53"));
  const Service& service = *compiled.snapshot->services.at("api.partner.example");
  EXPECT_TRUE(service.resets_on_removal);
  EXPECT_TRUE(service.has_slow_port());
  const std::string none = ": has no effect: the mesh gives resolution NONE no endpoints";
  EXPECT_THAT(
      validate_text(annotated("{hosts: [a.example], resolution: NONE, ports: [{number: 443, "
                              "name: tls, protocol: TLS}]}",
                              "on-endpoint-removal: reset, undermesh.io/fastpath: disabled")),
      testing::IsSupersetOf({where + none,
                             "warning t.yaml:4: ServiceEntry shop/e: "
                             "metadata.annotations[\"undermesh.io/fastpath\"]" +
                                 none}));
  EXPECT_THAT(validate_text(annotated(kPartner, "mode: strict")),
              ElementsAre("error t.yaml:4: ServiceEntry shop/e: "
                          "metadata.annotations[\"undermesh.io/mode\"]: not supported; remove the "
                          "annotation"));
}

TEST(ServiceEntry, IsADestinationOfRoutesAndRules) {
  const Compiled compiled = compile_text(entry(kPartner) + R"(---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: shop}
spec: {host: api.partner.example, subsets: [{name: two, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec: {hosts: [api.partner.example], http: [{route: [{destination: {host: api.partner.example, subset: two}}]}]}
)");
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_THAT(endpoints(compiled, "outbound|80|two|api.partner.example"),
              ElementsAre("198.51.100.2:8080=1"));
  ASSERT_NE(compiled.snapshot->find_mesh_routes("api.partner.example"), nullptr);
}

TEST(ServiceEntry, SelectsWorkloadsOfItsNamespace) {
  const Compiled compiled = compile_text(
      entry("{hosts: [legacy.example], resolution: STATIC, location: MESH_INTERNAL, ports: "
            "[{number: 80, name: http, protocol: HTTP}], workloadSelector: {labels: {app: vm}}}") +
      R"(---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, namespace: shop, labels: {app: vm}}
spec: {address: 10.77.0.9, ports: {http: 8000}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: other, labels: {app: vm}}
spec: {address: 10.77.0.10}
)");
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  EXPECT_THAT(endpoints(compiled, "outbound|80||legacy.example"),
              ElementsAre("10.77.0.9:8000=1 shop/vm"));
}

// Whoever listens at the address is judged as who he is, whatever the entry calls him.
TEST(ServiceEntry, AnEndpointThatIsAWorkloadKeepsItsIdentity) {
  const Compiled compiled = compile_text(
      entry("{hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: http}], "
            "endpoints: [{address: 10.77.0.9, labels: {version: v9}}]}") +
      R"(---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: real, labels: {version: v1}}
spec: {address: 10.77.0.9}
)");
  EXPECT_THAT(endpoints(compiled, "outbound|80||a.example"),
              ElementsAre("10.77.0.9:80=1 default/real"));
}

TEST(ServiceEntry, EachHostHasTheAddressThatItWasGiven) {
  const std::string spec =
      "{hosts: [a.example, b.example], resolution: STATIC, ports: [{number: 80, name: http, "
      "protocol: HTTP}], endpoints: [{address: 198.51.100.1}]}";
  const Compiled compiled = compile_text(
      entry(spec, "e",
            "status: {addresses: [{value: 10.78.0.2, host: b.example}, {value: 10.78.0.1, host: "
            "a.example}, {value: x, host: a.example}]}"));
  EXPECT_THAT(texts_of(compiled.problems), IsEmpty());
  const auto& services = compiled.snapshot->services;
  EXPECT_THAT(services.at("a.example")->addresses, ElementsAre(IpAddress::v4(10, 78, 0, 1)));
  EXPECT_THAT(services.at("b.example")->addresses, ElementsAre(IpAddress::v4(10, 78, 0, 2)));
  EXPECT_THAT(compile_text(entry(spec)).snapshot->services.at("a.example")->addresses, IsEmpty());
}

TEST(ServiceEntry, IsNeverASlicesService) {
  const Compiled compiled = compile_text(entry(kPartner, "db") + R"(---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 1}]
endpoints: [{addresses: [10.77.0.66]}]
)");
  EXPECT_THAT(endpoints(compiled, "outbound|5432||api.partner.example"),
              ElementsAre("198.51.100.1:5432=3", "198.51.100.2:6432=1"));
}

// Refused whole: none of its hosts is there.
TEST(ServiceEntry, TheOlderKeepsAHost) {
  const Compiled compiled = compile_text(
      entry("{hosts: [a.example], resolution: STATIC, ports: [{number: 80, name: http}], "
            "endpoints: [{address: 198.51.100.1}]}",
            "a") +
      entry("{hosts: [c.example, a.example], resolution: STATIC, ports: [{number: 80, name: "
            "http}], endpoints: [{address: 198.51.100.2}]}",
            "b"));
  EXPECT_THAT(
      texts_of(compiled.problems),
      ElementsAre(HasSubstr("shop/b: spec.hosts: a.example is already a host of ServiceEntry "
                            "shop/a")));
  EXPECT_FALSE(compiled.snapshot->services.contains("c.example"));
  EXPECT_THAT(endpoints(compiled, "outbound|80||a.example"), ElementsAre("198.51.100.1:80=1"));
}

TEST(ServiceEntry, LeavesWhatResolutionNoneNamesAlone) {
  const Compiled compiled = compile_text(
      entry("{hosts: ['*.example.com'], addresses: [192.0.2.0/24], ports: [{number: 443, name: "
            "tls, protocol: TLS}]}"));
  EXPECT_THAT(compiled.refused, IsEmpty());
  EXPECT_THAT(texts_of(compiled.problems), ElementsAre(HasSubstr("warning")));
  EXPECT_THAT(compiled.snapshot->services, IsEmpty());
}

}  // namespace
}  // namespace mesh::config
