#include "proxy/exchange.h"

#include <string>

#include "telemetry/response_flags.h"

namespace mesh::proxy {

namespace {

using routing::Decision;
using telemetry::ResponseFlag;

// `name` is one of ours, given in lower case.
bool is(std::string_view field, std::string_view name) { return http::names_equal(field, name); }

bool starts_with(std::string_view field, std::string_view prefix) {
  return field.size() >= prefix.size() && is(field.substr(0, prefix.size()), prefix);
}

// Fields that only the mesh itself may say.
bool is_mesh_internal(std::string_view field) {
  return starts_with(field, "x-envoy-") || is(field, "x-forwarded-client-cert") ||
         is(field, "x-istio-attributes");
}

}  // namespace

const SocketAddress& Downstream::peer() {
  if (!peer_) {
    auto address = net::peer_address(stream->fd());
    peer_ = address ? address.value() : SocketAddress{};
  }
  return *peer_;
}

ClientWatch::GiveUp::GiveUp(ClientWatch* w)
    : Timer([](Timer& timer) { static_cast<GiveUp&>(timer).watch->scope_.cancel(Errc::reset); }),
      watch(w) {}

ClientWatch::ClientWatch(Downstream& down, net::Scope& scope)
    : Waiter([](Waiter& waiter) { static_cast<ClientWatch&>(waiter).look(); }),
      down_(down),
      scope_(scope),
      give_up_(this) {
  look();
}

void ClientWatch::look() {
  if (down_.stream->is_broken()) return scope_.cancel(Errc::reset);
  down_.stream->wait_end(*this);
  if (down_.stream->is_ended()) set_waiting(waiting_);
}

void ClientWatch::set_waiting(bool waiting) {
  waiting_ = waiting;
  if (!waiting) return give_up_.disarm();
  if (!down_.stream->is_ended()) return;
  auto& reactor = scope_.reactor();
  reactor.timers().arm(give_up_, reactor.now() + down_.worker.limits().half_closed);
}

Exchange::Exchange(Worker& worker) : worker_(worker), uploads_(worker.reactor()) {
  out_.reserve(2048);
  response_out_.reserve(2048);
}

net::Task<bool> Exchange::run(Downstream& down) {
  begin(down);
  Refused refused = admit();
  ++down.client.requests;
  if (!refused) refused = route();
  if (!refused && decision_.delay.count() > 0) refused = co_await inject_fault();
  if (!refused && decision_.abort_status != 0) {
    refused = Refusal{.reason = Reason::kFault, .status = decision_.abort_status};
  }
  if (!refused && decision_.kind == Decision::Kind::kClusterNotFound) {
    refused = Refusal{.reason = Reason::kNoCluster};
  }
  if (!refused) refused = co_await forward();
  if (refused) keep_ = co_await answer(std::move(*refused));
  --down.client.requests;
  finish();
  co_return keep_;
}

net::Task<> Exchange::refuse(Downstream& down, Refusal refusal) {
  worker_.counters().bad_requests.add();
  begin(down);
  down.linger = true;
  (void)co_await answer(std::move(refusal));
  finish();
}

void Exchange::begin(Downstream& down) {
  down_ = &down;
  view_ = worker_.view();
  start_ = sent_at_ = worker_.reactor().now();
  decision_ = {};
  has_body_ = head_.body.has_body();
  request_body_ = http::BodyDecoder(head_.body);
  sent_any_ = keep_ = upstream_done_ = retried_ = false;
  idle_ = net::IdleClock(worker_.limits().stream_idle_timeout, start_);
  upload_end_.reset();
  service_time_ms_ = -1;
  status_ = 0;
  flags_ = {};
  details_.clear();
  transport_failure_.clear();
  bytes_received_ = bytes_sent_ = 0;
  upstream_local_.reset();
  trace_.reset();
  user_agent_ = x_forwarded_for_ = request_id_ = {};
  forwarded_for_.clear();
}

Exchange::Refused Exchange::admit() const {
  if (down_->client.workload() == nullptr || !down_->client.has_room()) {
    worker_.counters().requests_refused.add();
    return Refusal{.reason = Reason::kOverload};
  }
  return std::nullopt;
}

routing::Client Exchange::find_client() {
  routing::Client client;
  client.workload = down_->client.workload();
  client.port = down_->destination.port;
  if (down_->is_gateway()) {
    client.listener = &down_->via.address;
    client.port = down_->via.address.port;
    return client;
  }
  if (down_->service_epoch != view_->epoch) {
    const auto& services = view_->snapshot().service_by_address;
    const auto found = services.find(down_->destination.ip);
    down_->service = found == services.end() ? nullptr : found->second.get();
    down_->service_epoch = view_->epoch;
  }
  client.service = down_->service;
  return client;
}

Exchange::Refused Exchange::route() {
  look_at_fields();
  const routing::Client client = find_client();
  const routing::RequestView request{.method = head_.method_text,
                                     .path = head_.path,
                                     .query = head_.query,
                                     .host = head_.host,
                                     .authority = head_.authority,
                                     .scheme = "http",
                                     .fields = routing::FieldList(head_.fields)};
  decision_ = routing::decide(view_->snapshot(), client, request, worker_.random());
  if (decision_.kind == Decision::Kind::kNoRoute) return Refusal{.reason = Reason::kNoRoute};
  if (decision_.kind == Decision::Kind::kPassthrough) {
    decision_.cluster = worker_.passthrough_cluster(down_->destination);
    if (!decision_.cluster) return Refusal{.reason = Reason::kNoCluster};
  }
  // Now, before any wait: the decision is of the snapshot that the clusters have adopted.
  if (decision_.cluster) {
    pool_ =
        down_->client.use_pool(worker_.clusters().get(decision_.cluster, client.workload->name.ns));
    cluster_ = &pool_.get()->cluster();
  }
  return std::nullopt;
}

net::Task<Exchange::Refused> Exchange::inject_fault() {
  flags_.set(ResponseFlag::kDelayInjected);
  net::Scope scope(down_->scope);
  ClientWatch watch(*down_, scope);
  if (!co_await net::sleep_for(scope, decision_.delay)) {
    co_return ended(*scope.cancelled());
  }
  co_return std::nullopt;
}

// One pass over the fields for all that the proxy itself wants to know.
void Exchange::look_at_fields() {
  trace_fields_ = {};
  has_forwarded_proto_ = false;
  const auto first = [](std::string_view& slot, std::string_view value) {
    if (slot.empty()) slot = value;
  };
  for (const http::Field& field : head_.fields) {
    const std::string_view name = field.name;
    switch (name.front() | 0x20) {
      case 'b':
        if (is(name, "b3")) first(trace_fields_.b3, field.value);
        break;
      case 't':
        if (is(name, "traceparent")) first(trace_fields_.traceparent, field.value);
        break;
      case 'u':
        if (is(name, "user-agent")) first(user_agent_, field.value);
        break;
      case 'x':
        if (is(name, "x-request-id")) {
          first(trace_fields_.x_request_id, field.value);
        } else if (is(name, "x-forwarded-for")) {
          first(x_forwarded_for_, field.value);
        } else if (is(name, "x-forwarded-proto")) {
          has_forwarded_proto_ = true;
        } else if (starts_with(name, "x-b3-")) {
          const std::string_view rest = name.substr(5);
          if (is(rest, "traceid")) first(trace_fields_.b3_trace_id, field.value);
          if (is(rest, "spanid")) first(trace_fields_.b3_span_id, field.value);
          if (is(rest, "parentspanid")) first(trace_fields_.b3_parent_span_id, field.value);
          if (is(rest, "sampled")) first(trace_fields_.b3_sampled, field.value);
          if (is(rest, "flags")) first(trace_fields_.b3_flags, field.value);
        }
        break;
      default:
        break;
    }
  }
  if (down_->is_gateway()) trace_fields_.x_request_id = {};
  const bool sample = worker_.random().below(1000) < worker_.limits().trace_permille;
  trace_.emplace(trace_fields_, worker_.random(), sample);
  request_id_ = trace_->request_id();
}

// The changes that the head takes on its way, and the head as it will be sent. `is_last`: on this
// upstream connection.
void Exchange::edit_request(bool is_last) {
  set_.clear();
  add_.clear();
  remove_.clear();
  for (const auto& field : trace_->set()) set_.push_back({field.name, field.value});
  for (const auto name : trace_->remove()) remove_.push_back(name);
  if (down_->is_gateway()) {
    edit_for_the_edge();
  } else if (!has_forwarded_proto_) {
    set_.push_back({"x-forwarded-proto", "http"});
  }
  routing::merge_headers(decision_.route ? &decision_.route->request_headers : nullptr,
                         decision_.destination ? &decision_.destination->request_headers : nullptr,
                         set_, add_, remove_);
  http::RequestRewrite rewrite;
  rewrite.fields = {set_, add_, remove_};
  rewrite.authority = decision_.host_rewrite;
  // HTTP/1.0 may come without a host; upstream it is HTTP/1.1.
  if (rewrite.authority.empty() && head_.authority.empty()) {
    scratch_ = down_->service != nullptr ? down_->service->host : down_->destination.to_string();
    rewrite.authority = scratch_;
  }
  // Other protocols are not offered to the endpoint: it answers in HTTP/1.1 (RFC 9110 7.8).
  offers_upgrade_ = !head_.upgrade.empty() && is(head_.upgrade, "websocket") &&
                    head_.method == http::Method::get && !has_body_;
  rewrite.keep_upgrade = offers_upgrade_;
  rewrite.close = is_last && !rewrite.keep_upgrade;
  out_.clear();
  http::write_request_head(head_, rewrite, out_);
}

void Exchange::edit_for_the_edge() {
  for (const http::Field& field : head_.fields) {
    if (is_mesh_internal(field.name)) remove_.push_back(field.name);
  }
  forwarded_for_.clear();
  for (const http::Field& field : head_.fields) {
    if (is(field.name, "x-forwarded-for")) forwarded_for_.append(field.value).append(", ");
  }
  forwarded_for_ += down_->peer().ip.to_string();
  set_.push_back({"x-forwarded-for", forwarded_for_});
  set_.push_back({"x-forwarded-proto", "http"});
}

}  // namespace mesh::proxy
