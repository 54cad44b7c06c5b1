#include "proxy/tcp_records.h"

#include <algorithm>
#include <optional>

#include "proxy/peer_labels.h"
#include "telemetry/access_log.h"
#include "telemetry/prometheus.h"

namespace mesh::proxy {
namespace {

namespace json = boost::json;
using telemetry::ResponseFlag;

std::uint64_t number(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr) return 0;
  if (value->is_uint64()) return value->get_uint64();
  return value->is_int64() && value->get_int64() > 0
             ? static_cast<std::uint64_t>(value->get_int64())
             : 0;
}
bool flag(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value != nullptr && value->is_bool() && value->get_bool();
}
std::string text(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}
std::optional<SocketAddress> address(const json::object& object, std::string_view name) {
  auto parsed = SocketAddress::parse(text(object, name));
  if (!parsed) return std::nullopt;
  return parsed.value();
}

const config::Workload* workload_at(const config::Snapshot& snapshot, const IpAddress& ip) {
  const auto found = snapshot.workload_by_address.find(ip);
  return found == snapshot.workload_by_address.end() ? nullptr : found->second.get();
}

config::ServicePtr service_at(const config::Snapshot& snapshot,
                              const std::optional<SocketAddress>& at) {
  if (!at) return nullptr;
  const auto found = snapshot.service_by_address.find(at->ip);
  return found == snapshot.service_by_address.end() ? nullptr : found->second;
}

// Why the kernel let nobody through, by its counter.
ResponseFlag flag_of(std::string_view reason) {
  if (reason == "connects_refused_no_endpoint") return ResponseFlag::kNoHealthyUpstream;
  if (reason == "connects_refused_no_destination") return ResponseFlag::kNoClusterFound;
  if (reason == "connects_refused_proxy_away") return ResponseFlag::kOverload;
  return ResponseFlag::kUnauthorized;
}

// As Istio's RBAC filter begins it; without spaces, which would be columns, as Envoy has it.
std::string verdict_of(const json::object& record) {
  const std::string policy = text(record, "policy");
  if (policy.empty()) return {};
  const json::value* rule = record.if_contains("rule");
  std::string name = config::rule_name(
      policy, rule != nullptr && rule->is_int64() ? static_cast<int>(rule->get_int64()) : -1);
  std::ranges::replace(name, ' ', '_');
  return std::string("rbac_access_") + (flag(record, "denied") ? "denied" : "allowed") +
         "_matched_policy[" + name + "]";
}

}  // namespace

void TcpRecords::use(const config::SnapshotPtr& snapshot) {
  if (snapshot == snapshot_) return;
  snapshot_ = snapshot;
  places_.clear();
  for (const auto& [name, cluster] : snapshot->clusters) {
    if (!cluster->subset.empty() || cluster->transport != config::Transport::kTcp) continue;
    const config::ServicePort* port = cluster->service->find_port(cluster->port);
    for (const config::Endpoint& endpoint : cluster->endpoints) {
      Place& place = places_[endpoint.address];
      // Of several services of one endpoint the first by name; any of them may speak HTTP.
      if (!place.service || cluster->service->host < place.service->host)
        place.service = cluster->service;
      place.is_http =
          place.is_http || (port != nullptr && port->protocol == config::Protocol::kHttp);
    }
  }
}

void TcpRecords::add_edge(const json::object& edge, const Enrolled& enrolled) {
  const auto own_name = enrolled.find(static_cast<WorkloadId>(number(edge, "workload")));
  const auto own = own_name == enrolled.end() ? snapshot_->workloads.end()
                                              : snapshot_->workloads.find(own_name->second);
  if (own == snapshot_->workloads.end()) {
    ++lost_;
    return;
  }
  const bool is_inbound = flag(edge, "inbound");
  const auto service_address = address(edge, "service");
  const auto other_ip = IpAddress::parse(text(edge, "other"));
  const config::Workload* other = other_ip ? workload_at(*snapshot_, other_ip.value()) : nullptr;
  config::ServicePtr service;
  if (is_inbound) {
    const auto place = service_address ? places_.find(*service_address) : places_.end();
    if (place != places_.end() && place->second.is_http) return;
    if (place != places_.end()) service = place->second.service;
  } else {
    service = service_at(*snapshot_, service_address);
  }
  const config::Workload* source = is_inbound ? other : own->second.get();
  const config::Workload* destination = is_inbound ? own->second.get() : other;
  const std::string source_principal = source ? "spiffe://" + source->principal() : "";
  const std::string destination_principal =
      destination ? "spiffe://" + destination->principal() : "";
  telemetry::EdgeLabels labels;
  labels.reporter = is_inbound ? "destination" : "source";
  labels.request_protocol = "tcp";
  if (is_inbound) labels.connection_security_policy = "none";
  if (source != nullptr) labels.source = peer_labels(*source, source_principal);
  if (destination != nullptr) labels.destination = peer_labels(*destination, destination_principal);
  if (service) {
    labels.destination_service = service->host;
    labels.destination_service_name = service->display_name();
    labels.destination_service_namespace = service->name.ns;
  }
  std::string key = telemetry::rendered(labels);
  key += flag(edge, "failed") ? ",response_flags=\"UF\"" : ",response_flags=\"-\"";
  const bool fits = series_.size() < kMaxSeries || series_.contains(key);
  if (!fits) {
    ++overflows_;
    key = telemetry::rendered(telemetry::overflow_labels()) + ",response_flags=\"overflow\"";
  }
  Series& series = series_[key];
  if (fits)
    for (const config::Workload* end : {source, destination})
      if (end != nullptr) series.workloads.insert(end->name);
  Sums& sums = series.sums;
  sums.opened += number(edge, "opened");
  sums.closed += number(edge, "closed");
  // Seen from the destination, which has sent the responses.
  sums.sent += number(edge, is_inbound ? "sent" : "received");
  sums.received += number(edge, is_inbound ? "received" : "sent");
  sums.retransmits += number(edge, "retransmits");
}

void TcpRecords::add_line(const json::object& record, std::string& lines) const {
  using std::chrono::milliseconds;
  const auto local = address(record, "local"), remote = address(record, "remote");
  const auto asked = address(record, "service");
  const bool is_inbound = flag(record, "inbound");
  if (is_inbound && local)
    if (const auto place = places_.find(*local); place != places_.end() && place->second.is_http)
      return;
  const auto pointer = [](const auto& value) { return value ? &*value : nullptr; };
  telemetry::AccessLogEntry entry;
  entry.start = std::chrono::system_clock::time_point(milliseconds(number(record, "start_ms")));
  entry.duration = milliseconds(number(record, "duration_ms"));
  entry.bytes_received = number(record, is_inbound ? "received" : "sent");
  entry.bytes_sent = number(record, is_inbound ? "sent" : "received");
  entry.upstream_host = pointer(is_inbound ? local : remote);
  entry.downstream_local_address = pointer(is_inbound ? local : asked);
  entry.downstream_remote_address = pointer(is_inbound ? remote : local);
  if (!is_inbound) entry.upstream_local_address = pointer(local);
  std::string cluster = "PassthroughCluster", details = text(record, "reason");
  const std::string verdict = verdict_of(record);
  if (is_inbound)
    cluster = local ? "inbound|" + std::to_string(local->port) + "||" : "";
  else if (const auto service = service_at(*snapshot_, asked))
    cluster = config::cluster_name(service->host, asked->port, "");
  entry.upstream_cluster = cluster;
  if (flag(record, "denied")) {
    entry.flags = flag_of(details);
    if (!verdict.empty()) details = verdict;
  } else {
    if (!flag(record, "established")) entry.flags = ResponseFlag::kUpstreamConnectionFailure;
    if (details.empty()) details = text(record, "end");
    entry.response_code_details = verdict;
  }
  entry.connection_termination_details = details;
  std::string retransmits;
  if (const auto again = number(record, "retransmits"); again != 0)
    retransmits = "retransmits=" + std::to_string(again);
  entry.upstream_transport_failure_reason = retransmits;
  telemetry::append_access_log_line(entry, lines);
}

void TcpRecords::add(const json::object& message, const config::SnapshotPtr& snapshot,
                     const Enrolled& enrolled, std::string& lines) {
  lost_ += number(message, "dropped");
  const auto each = [&message](std::string_view name, const auto& work) {
    const json::value* list = message.if_contains(name);
    if (list == nullptr || !list->is_array()) return;
    for (const json::value& item : list->get_array())
      if (item.is_object()) work(item.get_object());
  };
  if (!snapshot) {
    for (const char* name : {"edges", "records"}) each(name, [this](const auto&) { ++lost_; });
    return;
  }
  use(snapshot);
  each("edges", [&](const json::object& edge) { add_edge(edge, enrolled); });
  each("records", [&](const json::object& record) { add_line(record, lines); });
}

void TcpRecords::forget_ended_workloads(const config::Snapshot& snapshot, Time now) {
  const bool many = series_.size() > kMaxSeries / 2;
  const auto is_there = [&snapshot](const auto& name) { return snapshot.workloads.contains(name); };
  for (auto& [labels, series] : series_) {
    if (std::ranges::all_of(series.workloads, is_there))
      series.ended_at.reset();
    else if (!series.ended_at)
      series.ended_at = now;
  }
  std::erase_if(series_, [&](const auto& entry) {
    const auto& ended_at = entry.second.ended_at;
    return ended_at && (many || now - *ended_at >= telemetry::kKeepEnded);
  });
}

void TcpRecords::write_prometheus(std::string& out) const {
  telemetry::PrometheusWriter writer(out);
  using Type = telemetry::PrometheusWriter::Type;
  const auto family = [&](std::string_view name, std::string_view help,
                          std::uint64_t Sums::* member) {
    writer.family(name, help, Type::kCounter);
    for (const auto& [labels, series] : series_)
      writer.sample_text("", labels, static_cast<double>(series.sums.*member));
  };
  family("istio_tcp_connections_opened_total", "TCP connections opened.", &Sums::opened);
  family("istio_tcp_connections_closed_total", "TCP connections closed.", &Sums::closed);
  family("istio_tcp_sent_bytes_total", "Bytes that destinations sent.", &Sums::sent);
  family("istio_tcp_received_bytes_total", "Bytes that destinations received.", &Sums::received);
  family("undermesh_tcp_retransmits_total", "Segments sent again.", &Sums::retransmits);
  writer.family("undermesh_tcp_records_lost_total",
                "Lines of the access log and sums that were lost: too many at once, or of a "
                "workload that is not known",
                Type::kCounter);
  writer.sample({}, static_cast<double>(lost_));
  writer.family("undermesh_tcp_metrics_overflow_total",
                "Sums counted in the overflow series because the limit of series is reached",
                Type::kCounter);
  writer.sample({}, static_cast<double>(overflows_));
}

}  // namespace mesh::proxy
