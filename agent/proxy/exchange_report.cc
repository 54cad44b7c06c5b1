#include <chrono>
#include <string>

#include "proxy/exchange.h"
#include "proxy/peer_labels.h"
#include "telemetry/access_log.h"

namespace mesh::proxy {

namespace {

using namespace std::chrono;

// Of a target as received; absolute-form names scheme and authority before it (RFC 9112 3.2.2).
std::string_view path_of(std::string_view target) {
  const auto scheme = target.find("://");
  if (scheme == std::string_view::npos || target.starts_with('/')) return target;
  const auto path = target.find_first_of("/?", scheme + 3);
  return path == std::string_view::npos ? "/" : target.substr(path);
}

}  // namespace

// Whether the request's body is in the buffer as a whole; then it is passed over, and the
// connection can go on after an answer that did not wait for it.
bool Exchange::skip_buffered_body() {
  if (!has_body_) return true;
  if (upload_end_) return upload_end_ == RelayEnd::kDone;
  while (down_->in.is_held()) {
    const auto step = request_body_.next(down_->in.unread());
    down_->in.consume(step.consumed);
    bytes_received_ += step.data.size();
    if (step.event == http::BodyDecoder::Event::end) return true;
    if (step.event != http::BodyDecoder::Event::data) return false;
  }
  return false;
}

net::Task<bool> Exchange::answer(Refusal refusal) {
  Answer answer = to_answer(refusal);
  for (std::size_t i = 0; i < telemetry::kResponseFlagCount; ++i) {
    const auto flag = static_cast<telemetry::ResponseFlag>(i);
    if (answer.flags.has(flag)) flags_.set(flag);
  }
  details_ = std::move(answer.details);
  transport_failure_ = std::move(answer.transport_failure);
  status_ = answer.status;
  if (answer.status == 0) {
    down_->stream->reset_on_close();
    co_return false;
  }
  const bool whole = !answer.close && skip_buffered_body();
  http::LocalResponse response;
  response.status = answer.status;
  response.body = answer.body;
  const http::FieldValue overloaded{"x-envoy-overloaded", "true"};
  if (answer.overloaded) response.fields = {&overloaded, 1};
  response.date = worker_.http_date();
  response.client = head_.version;
  response.request = head_.method;
  response.keep_alive = whole && head_.keep_alive && !worker_.is_draining();
  response_out_.clear();
  http::write_local_response(response, response_out_);
  bytes_sent_ = head_.method == http::Method::head ? 0 : answer.body.size();
  down_->linger = down_->linger || !whole;
  iovec part{response_out_.data(), response_out_.size()};
  auto written = co_await down_->stream->write_all({&part, 1}, down_->scope,
                                                   worker_.limits().stream_idle_timeout);
  if (!written) flags_.set(telemetry::ResponseFlag::kDownstreamConnectionTermination);
  co_return written&& response.keep_alive;
}

void Exchange::finish() {
  const auto duration = worker_.reactor().now() - start_;
  count(duration);
  if (worker_.logs_access()) write_access_log(duration);
  if (worker_.taps()) tap(duration);
  cluster_ = nullptr;
  pool_.reset();
  endpoint_ = nullptr;
  decision_ = {};
  view_.reset();
}

const config::Service* Exchange::find_service() const {
  if (cluster_ && cluster_->config().service) return cluster_->config().service.get();
  return down_->service_epoch == view_->epoch ? down_->service : nullptr;
}

telemetry::WorkerMetrics::Edge* Exchange::make_edge(std::string_view reporter,
                                                    const config::Workload* destination) const {
  const config::Workload& source = *down_->client.workload();
  telemetry::EdgeLabels labels;
  labels.reporter = reporter;
  if (reporter == "destination") labels.connection_security_policy = "none";
  const std::string source_principal = "spiffe://" + source.principal();
  labels.source = peer_labels(source, source_principal);
  std::string destination_principal;
  if (destination != nullptr) {
    destination_principal = "spiffe://" + destination->principal();
    labels.destination = peer_labels(*destination, destination_principal);
  }
  const config::Service* service = find_service();
  if (service != nullptr) {
    labels.destination_service = service->host;
    labels.destination_service_name = service->display_name();
    labels.destination_service_namespace = service->name.ns;
  }
  return worker_.metrics().edge(labels);
}

// Series are looked up when an endpoint is first used with a view, not for each request.
void Exchange::count(nanoseconds duration) {
  auto& metrics = worker_.metrics();
  if (down_->client.workload() == nullptr) return;
  if (endpoint_ == nullptr) {
    metrics.record(make_edge("source", nullptr), status_, flags_, duration);
    return;
  }
  if (endpoint_->edges_epoch != view_->epoch ||
      endpoint_->edges_generation != metrics.generation()) {
    const auto& workload = endpoint_->endpoint->workload();
    endpoint_->source_edge = make_edge("source", workload.get());
    endpoint_->destination_edge = workload && view_->local.contains(workload.get())
                                      ? make_edge("destination", workload.get())
                                      : nullptr;
    endpoint_->edges_epoch = view_->epoch;
    endpoint_->edges_generation = metrics.generation();
  }
  metrics.record(endpoint_->source_edge, status_, flags_, duration);
  // The destination's side counts what was really sent to it.
  if (endpoint_->destination_edge != nullptr && sent_any_) {
    metrics.record(endpoint_->destination_edge, status_, flags_, duration);
  }
}

void Exchange::write_access_log(nanoseconds duration) {
  telemetry::AccessLogEntry entry;
  entry.start = system_clock::now() - duration_cast<system_clock::duration>(duration);
  entry.method = head_.method_text;
  entry.path = path_of(head_.target);
  entry.protocol = http::to_string(head_.version);
  entry.response_code = status_;
  entry.flags = flags_;
  entry.response_code_details = details_;
  entry.upstream_transport_failure_reason = transport_failure_;
  entry.bytes_received = bytes_received_;
  entry.bytes_sent = bytes_sent_;
  entry.duration = duration_cast<milliseconds>(duration);
  entry.upstream_service_time_ms = service_time_ms_;
  // At the edge: what was sent on.
  entry.x_forwarded_for = forwarded_for_.empty() ? x_forwarded_for_ : forwarded_for_;
  entry.user_agent = user_agent_;
  entry.request_id = request_id_;
  entry.authority = head_.authority;
  if (endpoint_ != nullptr) entry.upstream_host = &endpoint_->endpoint->address();
  if (cluster_) entry.upstream_cluster = cluster_->config().name;
  if (upstream_local_) entry.upstream_local_address = &*upstream_local_;
  entry.downstream_local_address = &down_->destination;
  // A workload of the mesh is known by its own address; its connection was redirected on the node.
  SocketAddress remote = down_->peer();
  const config::Workload* client = down_->client.workload();
  if (!down_->is_gateway() && client != nullptr && !client->addresses.empty()) {
    remote.ip = client->addresses.front();
  }
  entry.downstream_remote_address = &remote;
  entry.route_name = decision_.route_name;
  entry.match_name = decision_.match_name;
  std::string line;
  telemetry::append_access_log_line(entry, line);
  worker_.log_line(line);
}

void Exchange::tap(nanoseconds duration) {
  const config::Workload* source = down_->client.workload();
  if (source == nullptr) return;
  TapEvent event;
  event.source = source->name.to_string();
  if (endpoint_ != nullptr) {
    event.endpoint = endpoint_->endpoint->address().to_string();
    const auto& workload = endpoint_->endpoint->workload();
    if (workload) event.workload = workload->name.to_string();
  }
  if (cluster_) event.cluster = cluster_->config().name;
  const config::Service* service = find_service();
  if (service != nullptr) event.destination = service->host;
  event.at = system_clock::now() - duration_cast<system_clock::duration>(duration);
  event.method = head_.method_text;
  event.path = path_of(head_.target);
  event.authority = head_.authority;
  flags_.append_to(event.flags);
  routing::append_route_name(decision_, event.route);
  event.request_id = request_id_;
  event.details = details_;
  event.status = status_;
  event.latency = duration;
  event.bytes_received = bytes_received_;
  event.bytes_sent = bytes_sent_;
  worker_.sinks().tap(std::move(event));
}

}  // namespace mesh::proxy
