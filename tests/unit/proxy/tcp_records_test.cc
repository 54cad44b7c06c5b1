#include "proxy/tcp_records.h"

#include <gmock/gmock.h>

#include "config/object.h"

namespace mesh::proxy {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

constexpr const char* kObjects = R"(---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: 10.78.0.1, selector: {app: db}, ports: [{name: tcp, port: 70, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.78.0.2, selector: {app: db}, ports: [{name: http, port: 80, targetPort: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: page, labels: {app: page, version: v1}}
spec: {address: 10.9.0.1, serviceAccount: page, labels: {app: page, version: v1}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db-1, labels: {app: db}}
spec: {address: 10.9.0.2, serviceAccount: db, labels: {app: db}}
)";

class TcpRecordsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<config::ObjectPtr> objects;
    auto parsed = config::parse_objects(kObjects, "test.yaml");
    ASSERT_TRUE(parsed) << parsed.error().message;
    for (auto& object : parsed.value())
      objects.push_back(std::make_shared<const config::Object>(std::move(object)));
    snapshot_ = config::compile(objects, 1, {}).snapshot;
  }
  void add(const std::string& members) {
    records_.add(json::parse("{" + members + "}").get_object(), snapshot_, enrolled_, lines_);
  }
  std::string metrics() const {
    std::string out;
    records_.write_prometheus(out);
    return out;
  }
  // The value of a metric that has no labels.
  double lost() const {
    const std::string text = metrics();
    return std::stod(text.substr(text.find("\nundermesh_tcp_records_lost_total ") + 34));
  }
  // How many series a metric has.
  int series(const std::string& name) const {
    const std::string text = metrics();
    int count = 0;
    for (auto at = text.find("\n" + name + "{"); at != std::string::npos;
         at = text.find("\n" + name + "{", at + 1))
      ++count;
    return count;
  }
  static std::string edge(const std::string& members) {
    return R"("edges": [{"failed": false, "opened": 2, "closed": 1, "sent": 30, "received": 4,
                         "retransmits": 1, )" +
           members + "}]";
  }
  config::SnapshotPtr snapshot_;
  TcpRecords::Enrolled enrolled_ = {{7, {"default", "page"}}, {9, {"default", "db-1"}}};
  TcpRecords records_;
  std::string lines_;
};

TEST_F(TcpRecordsTest, TheSourceCountsWithTheServiceThatItAskedFor) {
  const std::string out =
      edge(R"("workload": 7, "inbound": false, "service": "10.78.0.1:70", "other": "10.9.0.2")");
  add(out);
  add(out);
  const std::string text = metrics();
  const std::string labels =
      R"({reporter="source",source_workload="page",source_workload_namespace="default",)"
      R"(source_principal="spiffe://cluster.local/ns/default/sa/page",source_app="page",)"
      R"(source_version="v1",source_canonical_service="page",source_canonical_revision="v1",)"
      R"(source_cluster="unknown",destination_workload="db-1",)"
      R"(destination_workload_namespace="default",)"
      R"(destination_principal="spiffe://cluster.local/ns/default/sa/db",destination_app="db",)"
      R"(destination_version="unknown",destination_canonical_service="db",)"
      R"(destination_canonical_revision="latest",destination_cluster="unknown",)"
      R"(destination_service="db.default.svc.cluster.local",destination_service_name="db",)"
      R"(destination_service_namespace="default",request_protocol="tcp",)"
      R"(connection_security_policy="unknown",response_flags="-"})";
  EXPECT_THAT(text, HasSubstr("istio_tcp_connections_opened_total" + labels + " 4\n"));
  EXPECT_THAT(text, HasSubstr("istio_tcp_connections_closed_total" + labels + " 2\n"));
  EXPECT_THAT(text, HasSubstr("istio_tcp_received_bytes_total" + labels + " 60\n"));
  EXPECT_THAT(text, HasSubstr("istio_tcp_sent_bytes_total" + labels + " 8\n"));
}

TEST_F(TcpRecordsTest, TheDestinationCountsWhatArrivesButNotAtHttpPorts) {
  add(edge(R"("workload": 9, "inbound": true, "service": "10.9.0.2:8080", "other": "10.9.0.1")"));
  const std::string text = metrics();
  EXPECT_THAT(text, HasSubstr(R"(reporter="destination",source_workload="page")"));
  EXPECT_THAT(text, HasSubstr(R"(destination_service_name="db")"));
  EXPECT_THAT(text, HasSubstr(R"(connection_security_policy="none")"));
  add(edge(R"("workload": 9, "inbound": true, "service": "10.9.0.2:9080", "other": "10.9.0.1")"));
  EXPECT_EQ(metrics(), text);
}

TEST_F(TcpRecordsTest, StrangersAreUnknownAndWhatIsOfWorkloadsThatEndedIsLost) {
  add(edge(R"("workload": 7, "inbound": false, "service": "192.0.2.1:443", "other": "192.0.2.1")"));
  EXPECT_THAT(metrics(), HasSubstr(R"(destination_workload="unknown")"));
  EXPECT_EQ(lost(), 0);
  const std::string of_nobody =
      edge(R"("workload": 8, "inbound": false, "service": "10.78.0.1:70", "other": "10.9.0.2")");
  add(of_nobody);
  EXPECT_EQ(lost(), 1);
  EXPECT_EQ(series("istio_tcp_connections_opened_total"), 1);
  add(R"("dropped": 5)");
  EXPECT_EQ(lost(), 6);
  snapshot_ = nullptr;  // it came before any configuration
  add(of_nobody);
  EXPECT_EQ(lost(), 7);
}

TEST_F(TcpRecordsTest, TheSeriesOfAWorkloadThatEndedGoAfterAWhile) {
  const auto now = TcpRecords::Time{} + std::chrono::hours(1);
  add(edge(R"("workload": 7, "inbound": false, "service": "10.78.0.1:70", "other": "10.9.0.2")"));
  add(edge(R"("workload": 7, "inbound": false, "service": "192.0.2.1:443", "other": "192.0.2.1")"));
  config::Snapshot without_db = *snapshot_;
  without_db.workloads.erase({"default", "db-1"});
  const auto left_at = [&](const config::Snapshot& snapshot, auto time) {
    records_.forget_ended_workloads(snapshot, time);
    return series("istio_tcp_connections_opened_total");
  };
  EXPECT_EQ(left_at(without_db, now), 2);
  EXPECT_EQ(left_at(*snapshot_, now + std::chrono::minutes(4)), 2);  // it came back
  EXPECT_EQ(left_at(without_db, now + std::chrono::minutes(5)), 2);
  EXPECT_EQ(left_at(without_db, now + std::chrono::minutes(10)), 1);
}

TEST_F(TcpRecordsTest, WhatDoesNotFitIsSummedInOneSeries) {
  auto many = std::make_shared<config::Snapshot>(*snapshot_);
  std::string edges;
  for (std::size_t i = 0; i < TcpRecords::kMaxSeries + 3; ++i) {
    const IpAddress ip =
        IpAddress::v4(10, 8, static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i));
    config::Workload workload;
    workload.name = {"default", "w" + std::to_string(i)};
    many->workload_by_address.insert_or_assign(ip,
                                               std::make_shared<const config::Workload>(workload));
    edges += (i == 0 ? "" : ",") +
             std::string(R"({"workload": 7, "inbound": false, "opened": 2,)") +
             R"("service": "10.78.0.1:70", "other": ")" + ip.to_string() + "\"}";
  }
  snapshot_ = many;
  add("\"edges\": [" + edges + "]");
  EXPECT_EQ(series("istio_tcp_connections_opened_total"), TcpRecords::kMaxSeries + 1);
  EXPECT_THAT(metrics(), HasSubstr(R"(destination_service_namespace="overflow",)"));
  EXPECT_THAT(metrics(), HasSubstr("response_flags=\"overflow\"} 6\n"));
  EXPECT_THAT(metrics(), HasSubstr("undermesh_tcp_metrics_overflow_total 3\n"));
  // They are no workloads of the configuration: many series go at once, the one of the rest stays.
  records_.forget_ended_workloads(*many, TcpRecords::Time{} + std::chrono::hours(1));
  EXPECT_EQ(series("istio_tcp_connections_opened_total"), 1);
}

TEST_F(TcpRecordsTest, AConnectionIsALineAsEnvoyWritesThem) {
  add(R"("records": [{"denied": false, "inbound": false, "established": true, "workload": 7,
      "local": "10.9.0.1:40000", "remote": "10.9.0.2:8080", "service": "10.78.0.1:70",
      "start_ms": 1700000000123, "duration_ms": 45, "sent": 10, "received": 20}])");
  EXPECT_EQ(lines_,
            "[2023-11-14T22:13:20.123Z] \"- - -\" 0 - - - \"-\" 10 20 45 - \"-\" \"-\" \"-\" \"-\" "
            "\"10.9.0.2:8080\" outbound|70||db.default.svc.cluster.local 10.9.0.1:40000 "
            "10.78.0.1:70 10.9.0.1:40000 - -\n");
}

TEST_F(TcpRecordsTest, ALineTellsWhatAllowedAConnectionAndHowItEnded) {
  const auto line = [&](const std::string& more) {
    lines_.clear();
    add(R"("records": [{"denied": false, "inbound": false, "established": true, "workload": 7,
        "local": "10.9.0.1:40000", "remote": "10.9.0.2:8080", "service": "10.78.0.1:70",
        "start_ms": 1, "duration_ms": 1, "sent": 1, "received": 2, )" +
        more + "}]");
    return lines_;
  };
  EXPECT_THAT(
      line(R"("policy": "AuthorizationPolicy default/db", "rule": 1,
                      "end": "closed_by_client")"),
      HasSubstr("\" 0 - rbac_access_allowed_matched_policy[AuthorizationPolicy_default/db[1]] "
                "closed_by_client \"-\" 1 2 "));
  EXPECT_THAT(line(R"("end": "reset")"), HasSubstr("\" 0 - - reset \"-\" 1 2 "));
  EXPECT_THAT(line(R"("end": "reset", "retransmits": 3)"),
              HasSubstr("\" 0 - - reset \"retransmits=3\" 1 2 "));
  EXPECT_THAT(line(R"("end": "reset", "reason": "connections_ended_by_policy")"),
              HasSubstr("\" 0 - - connections_ended_by_policy "));
}

TEST_F(TcpRecordsTest, ARefusalNamesItsPolicyOrTheReason) {
  const auto denied = [&](const std::string& more) {
    lines_.clear();
    add(R"("records": [{"denied": true, "inbound": false, "established": false, "workload": 7,
        "local": "", "remote": "10.9.0.2:8080", "service": "10.78.0.1:70", "start_ms": 1,
        "duration_ms": 0, "sent": 0, "received": 0, )" +
        more + "}]");
    return lines_;
  };
  EXPECT_THAT(
      denied(
          R"("reason": "connects_denied_policy", "policy": "AuthorizationPolicy default/db", "rule": 2)"),
      HasSubstr(
          "\" 0 UAEX - rbac_access_denied_matched_policy[AuthorizationPolicy_default/db[2]] "));
  EXPECT_THAT(denied(R"("reason": "connects_refused_no_endpoint")"),
              HasSubstr("\" 0 UH - connects_refused_no_endpoint "));
  EXPECT_THAT(denied(R"("reason": "connects_refused_no_destination")"),
              HasSubstr("\" 0 NC - connects_refused_no_destination "));
}

TEST_F(TcpRecordsTest, AConnectThatNobodyAnsweredIsAFailureOfTheUpstream) {
  add(R"("records": [{"denied": false, "inbound": false, "established": false, "workload": 7,
      "local": "10.9.0.1:40000", "remote": "10.9.0.2:1", "service": "10.9.0.2:1",
      "start_ms": 1, "duration_ms": 1, "sent": 0, "received": 0}])");
  EXPECT_THAT(lines_, HasSubstr("\"- - -\" 0 UF "));
  EXPECT_THAT(lines_, HasSubstr(" PassthroughCluster "));
}

TEST_F(TcpRecordsTest, MessagesOfAnyShapeAreSurvived) {
  add(R"("edges": 1, "records": [1, {"local": 5}], "dropped": "x")");
  add(R"("edges": [{"workload": -1}, {"workload": 7, "other": "x", "opened": -5}])");
  EXPECT_EQ(lost(), 1) << "of workload -1";
}

}  // namespace
}  // namespace mesh::proxy
