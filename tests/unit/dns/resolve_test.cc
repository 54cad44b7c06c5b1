// Which names are the mesh's, and what it says of them.
#include "dns/resolve.h"

#include "tests/unit/config/support.h"

namespace mesh::dns {
namespace {

using testing::ElementsAre;
using testing::UnorderedElementsAre;

constexpr std::string_view kWorld = R"(---
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {clusterIPs: [10.78.0.1, "fd00:78::1"], selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}, {name: dns, protocol: UDP, port: 53}]}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: bookinfo}
spec: {clusterIP: 10.78.0.2, selector: {app: none}, ports: [{port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: bookinfo}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 3306, targetPort: 5306}, {name: admin, port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: com}
spec: {clusterIP: None, selector: {app: com}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: Web.Example.com}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: reviews.bookinfo.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: round}
spec: {type: ExternalName, externalName: round.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: partner}
spec: {type: ExternalName, externalName: api.partner.example}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner, namespace: shop}
spec: {hosts: [api.partner.example, old], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 198.51.100.1}]}
status: {addresses: [{host: api.partner.example, value: 10.78.0.7}, {host: old, value: 10.78.0.8}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-0, namespace: bookinfo, labels: {app: db}}
spec: {address: 10.77.0.5}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-1, namespace: bookinfo, labels: {app: db}}
spec: {address: 10.77.0.6}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x, namespace: bookinfo, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5307}]
endpoints: [{addresses: [10.77.0.9]}]
)";

class DnsResolve : public testing::Test {
 protected:
  DnsResolve() : compiled_(config::compile_text(std::string(kWorld))) {}

  std::string ask(std::string_view name, std::uint16_t asked = type::kA,
                  std::string_view ns = "default", std::uint32_t turn = 0) const {
    const Resolution found = resolve(*compiled_.snapshot, ns, name, asked, turn);
    switch (found.kind) {
      case Resolution::Kind::kForeign:
        return "foreign";
      case Resolution::Kind::kNoSuchName:
        EXPECT_EQ(found.answer.rcode, Rcode::kNoSuchName);
        EXPECT_EQ(found.answer.zone, "cluster.local");
        return "no such name";
      default:
        break;
    }
    EXPECT_EQ(found.answer.rcode, Rcode::kNoError);
    EXPECT_EQ(found.answer.records.empty(), !found.answer.zone.empty()) << name;
    std::string text;
    for (const Record& record : found.answer.records) {
      if (!text.empty()) text += ", ";
      if (!record.owner.empty()) text += record.owner + " ";
      if (const auto* ip = std::get_if<IpAddress>(&record.data)) text += ip->to_string();
      if (const auto* alias = std::get_if<std::string>(&record.data)) text += "-> " + *alias;
      if (const auto* service = std::get_if<Service>(&record.data))
        text += service->target + ":" + std::to_string(service->port);
    }
    if (found.kind == Resolution::Kind::kElsewhere) text += " then " + found.target;
    return text.empty() ? "nothing" : text;
  }

  config::Compiled compiled_;
};

TEST_F(DnsResolve, KnowsAServiceByEachOfItsNames) {
  for (const char* name :
       {"reviews", "reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"}) {
    EXPECT_EQ(ask(name), "10.78.0.1") << name;
    EXPECT_EQ(ask(name, type::kAaaa), "fd00:78::1") << name;
  }
  EXPECT_EQ(ask("reviews", type::kA, "bookinfo"), "10.78.0.2");
  EXPECT_EQ(ask("reviews.bookinfo"), "10.78.0.2");
  EXPECT_EQ(ask("reviews.default", type::kA, "bookinfo"), "10.78.0.1");
}

TEST_F(DnsResolve, HasNothingRatherThanNoNameForAnotherType) {
  EXPECT_EQ(ask("reviews.bookinfo", type::kAaaa), "nothing");
  for (const std::uint16_t other : std::vector<std::uint16_t>{15, 16, 65})
    EXPECT_EQ(ask("reviews", other), "nothing");
}

TEST_F(DnsResolve, LeavesOtherNamesAlone) {
  for (const char* name : {"",
                           "localhost",
                           "example.com",
                           "www.example.com",
                           "a.b.com",
                           "google.com",
                           "cluster.local",
                           "svc.cluster.local",
                           "default.svc.cluster.local",
                           "other.default.svc.cluster.local",
                           "other",
                           "other.default",
                           "reviews.other",
                           "reviews.default.example.com",
                           "xreviews.default.svc.cluster.local",
                           "reviews.default.svc.xcluster.local",
                           "10-0-0-1.default.pod.cluster.local",
                           "kube-dns.kube-system.svc.cluster.local",
                           "1.0.78.10.in-addr.arpa",
                           "other.reviews",
                           "other.db.bookinfo.svc"})
    EXPECT_EQ(ask(name), "foreign") << name;
  EXPECT_EQ(ask("reviews", type::kA, "other"), "foreign");
}

TEST_F(DnsResolve, DeniesAMeshNameWithASearchSuffixBehindIt) {
  for (const char* name :
       {"reviews.bookinfo.default.svc.cluster.local", "reviews.bookinfo.cluster.local",
        "reviews.default.svc.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.default.svc.cluster.local",
        "reviews.default.svc.cluster.local.svc.cluster.local",
        "db-0.db.bookinfo.default.svc.cluster.local"})
    EXPECT_EQ(ask(name), "no such name") << name;
  EXPECT_EQ(ask("reviews.bookinfo.svc.cluster.local"), "10.78.0.2");
  // What another client's suffix would be says nothing of this one.
  EXPECT_EQ(ask("reviews.bookinfo.shop.svc.cluster.local"), "foreign");
}

TEST_F(DnsResolve, NamesTheEndpointsOfAHeadlessService) {
  EXPECT_EQ(ask("db.bookinfo"), "10.77.0.5, 10.77.0.6, 10.77.0.9");
  EXPECT_EQ(ask("db.bookinfo", type::kA, "default", 1), "10.77.0.6, 10.77.0.9, 10.77.0.5");
  EXPECT_EQ(ask("db.bookinfo", type::kAaaa), "nothing");
  for (const char* name : {"db-1.db.bookinfo.svc.cluster.local", "db-1.db.bookinfo.svc",
                           "db-1.db.bookinfo", "10-77-0-6.db.bookinfo.svc.cluster.local"})
    EXPECT_EQ(ask(name), "10.77.0.6") << name;
  EXPECT_EQ(ask("db-1.db", type::kA, "bookinfo"), "10.77.0.6");
  EXPECT_EQ(ask("db-1.db"), "foreign");
  EXPECT_EQ(ask("db-1.db.bookinfo.svc.cluster.local", type::kAaaa), "nothing");
  EXPECT_EQ(ask("db-2.db.bookinfo.svc.cluster.local"), "no such name");
  EXPECT_EQ(ask("db-0.reviews.default.svc.cluster.local"), "no such name");
}

TEST_F(DnsResolve, NamesThePortsOfAService) {
  const std::string full = ".default.svc.cluster.local";
  EXPECT_EQ(ask("_http._tcp.reviews" + full, type::kSrv), "reviews" + full + ":9080");
  EXPECT_EQ(ask("_dns._udp.reviews" + full, type::kSrv), "reviews" + full + ":53");
  EXPECT_EQ(ask("_dns._tcp.reviews" + full, type::kSrv), "no such name");
  EXPECT_EQ(ask("_http._tcp.reviews" + full), "nothing");
  EXPECT_EQ(ask("reviews", type::kSrv), "reviews" + full + ":9080, reviews" + full + ":53");
  const std::string db = ".db.bookinfo.svc.cluster.local";
  EXPECT_EQ(ask("_sql._tcp" + db, type::kSrv),
            "db-0" + db + ":5306, db-1" + db + ":5306, 10-77-0-9" + db + ":5307");
  EXPECT_EQ(ask("10-77-0-9" + db), "10.77.0.9");
}

TEST_F(DnsResolve, FollowsAnExternalName) {
  EXPECT_EQ(ask("out"), "-> web.example.com then web.example.com");
  EXPECT_EQ(ask("out", type::kAaaa), "-> web.example.com then web.example.com");
  EXPECT_EQ(ask("out", type::kCname), "-> web.example.com");
  EXPECT_EQ(ask("out", 16), "-> web.example.com");
  EXPECT_EQ(ask("alias"),
            "-> reviews.bookinfo.svc.cluster.local, "
            "reviews.bookinfo.svc.cluster.local 10.78.0.2");
  EXPECT_EQ(ask("x.out.default.svc.cluster.local"), "no such name");
  EXPECT_THAT(ask("round"), testing::StartsWith("-> round.default.svc.cluster.local"));
}

TEST_F(DnsResolve, KnowsTheHostsOfAServiceEntry) {
  for (const std::string_view ns : {"default", "shop"}) {
    EXPECT_EQ(ask("api.partner.example", type::kA, ns), "10.78.0.7");
    EXPECT_EQ(ask("old", type::kA, ns), "10.78.0.8");
  }
  EXPECT_EQ(ask("api.partner.example", type::kAaaa), "nothing");
  const Resolution none =
      resolve(*compiled_.snapshot, "default", "api.partner.example", type::kAaaa, 0);
  EXPECT_EQ(none.answer.zone, "api.partner.example");
  EXPECT_EQ(none.object, "ServiceEntry shop/partner");
  EXPECT_EQ(ask("partner"), "-> api.partner.example, api.partner.example 10.78.0.7");
  EXPECT_EQ(ask("api.partner.example.default.svc.cluster.local"), "no such name");
  for (const char* name : {"partner.example", "x.api.partner.example", "_http._tcp.api.partner.x"})
    EXPECT_EQ(ask(name), "foreign") << name;
}

TEST_F(DnsResolve, SaysWhatDecided) {
  EXPECT_EQ(resolve(*compiled_.snapshot, "default", "reviews.bookinfo", 1).object,
            "Service bookinfo/reviews");
}

}  // namespace
}  // namespace mesh::dns
