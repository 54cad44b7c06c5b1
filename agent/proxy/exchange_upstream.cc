#include <algorithm>
#include <functional>

#include "proxy/exchange.h"

namespace mesh::proxy {

namespace {

using cluster::Outcome;
using telemetry::ResponseFlag;

// The scope's end, or nothing moved for too long; not the peer's doing.
bool is_timeout(const net::Scope& scope, const Error& error) {
  return scope.is_cancelled() || error.code == Errc::timed_out;
}

}  // namespace

net::Task<Exchange::Refused> Exchange::forward() {
  UpstreamPool& pool = *pool_.get();
  net::Scope scope(down_->scope);
  ClientWatch watch(*down_, scope);
  watch_ = &watch;
  if (scope.is_cancelled()) co_return ended(*scope.cancelled());
  // The route's time covers everything from the end of the request on, and on its own each wait for
  // a connection, in which the rest of a body cannot be read.
  time_after_body_ = decision_.timeout;
  if (decision_.timeout.count() > 0 && body_is_buffered()) {
    scope.expires_after(decision_.timeout);
    time_after_body_ = {};
  }
  while (true) {
    const auto picked = cluster_->pick(worker_.random());
    if (!picked) co_return Refusal{.reason = Reason::kNoHealthyUpstream};
    endpoint_ = &pool.at(picked);
    auto connection = pool.try_take(*endpoint_);
    if (!connection) {
      net::Scope waiting(scope);
      if (time_after_body_.count() > 0) waiting.expires_after(time_after_body_);
      auto obtained = co_await pool.obtain(*endpoint_, waiting);
      if (obtained.refusal) {
        if (obtained.refusal->endpoint_failed) report(Outcome::connect_failed());
        if (obtained.refusal->reason != Reason::kConnectFailed) endpoint_ = nullptr;  // none tried
        co_return std::move(obtained.refusal);
      }
      connection = std::move(obtained.connection);
      endpoint_ = &connection->home();
    }
    auto slot = pool.limits().try_request();
    if (!slot) {
      pool.put_back(std::move(connection), true);
      endpoint_ = nullptr;
      co_return Refusal{.reason = Reason::kOverflow};
    }
    if (worker_.logs_access()) upstream_local_ = connection->local_address();
    Refused refused;
    Next next = Next::kDone;
    {
      cluster::Endpoint::Request active(*endpoint_->endpoint);
      next = co_await attempt(*connection, scope, refused);
    }
    if (upstream_done_) {
      pool.put_back(std::move(connection), response_.keep_alive);
    } else {
      pool.discard(std::move(connection));
    }
    if (next == Next::kDone) co_return std::nullopt;
    if (next == Next::kRefused) co_return refused;
    retried_ = true;
    cluster_->counters().upstream_rq_retry.add();
    worker_.counters().retries.add();
  }
}

bool Exchange::body_is_buffered() const {
  if (!has_body_) return true;
  http::BodyDecoder decoder = request_body_;
  std::string_view left = down_->in.unread();
  while (true) {
    const auto step = decoder.next(left);
    if (step.event == http::BodyDecoder::Event::end) return true;
    if (step.event != http::BodyDecoder::Event::data) return false;
    left.remove_prefix(step.consumed);
  }
}

net::Task<Exchange::Next> Exchange::attempt(UpstreamConnection& connection,
                                            net::Scope& request_scope, Refused& refused) {
  net::Scope scope(request_scope);
  sent_any_ = response_began_ = write_failed_ = false;
  idle_.moved(worker_.reactor().now());
  response_parser_.reset();
  const std::size_t body_at = down_->in.position();
  const http::BodyDecoder body_before = request_body_;
  edit_request(connection.begin_request());
  Next next = co_await send_request(connection, scope, refused);
  if (next == Next::kDone) next = co_await read_response_head(connection, scope, refused);
  if (next == Next::kDone) {
    if (response_.status == 101) {
      co_await tunnel(connection);
    } else {
      next = co_await relay_response(connection, scope, refused);
    }
  }
  up_.release();
  if (uploads_.size() > 0) {  // the answer (or the end) came before the end of the request
    if (next != Next::kRetry) down_->linger = true;
    scope.cancel();
    co_await uploads_.wait();
  }
  if (upload_) bytes_received_ += upload_->body_bytes;
  upload_.reset();
  if (next == Next::kRetry && has_body_) {  // nothing of the body was sent: as it was
    down_->in.rewind(body_at);
    request_body_ = body_before;
    upload_end_.reset();
    bytes_received_ = 0;
  }
  co_return next;
}

net::Task<Exchange::Next> Exchange::send_request(UpstreamConnection& connection, net::Scope& scope,
                                                 Refused& refused) {
  sent_at_ = worker_.reactor().now();
  if (has_body_) {
    upload_.emplace(Relay{.from = *down_->stream,
                          .buffer = down_->in,
                          .decoder = request_body_,
                          .to = connection.stream(),
                          .framing = head_.body.kind,
                          .prefix = out_,
                          .idle = idle_,
                          .time_after_body = time_after_body_});
    watch_->set_waiting(false);
    uploads_.spawn(upload(scope));
    co_return Next::kDone;
  }
  iovec part{out_.data(), out_.size()};
  auto written = co_await connection.stream().write_all({&part, 1}, scope, idle_);
  sent_any_ = part.iov_len < out_.size();
  if (written) co_return Next::kDone;
  if (is_timeout(scope, written.error())) co_return cancelled(scope, refused);
  write_failed_ = true;  // an answer may have come before: the reader sees to it
  co_return Next::kDone;
}

net::Task<> Exchange::upload(net::Scope& scope) {
  const RelayEnd end = co_await relay_body(*upload_, scope);
  upload_end_ = end;
  if (upload_->wrote) sent_any_ = true;
  switch (end) {
    case RelayEnd::kDone:
      sent_at_ = worker_.reactor().now();
      if (!response_began_) watch_->set_waiting(true);
      break;
    case RelayEnd::kSinkFailed:  // an answer may have come before: the reader sees to it
      break;
    case RelayEnd::kSourceCut:
    case RelayEnd::kSourceClosed:
      scope.cancel(Errc::reset);
      break;
    case RelayEnd::kSourceProtocol:
      scope.cancel(Errc::invalid_argument);
      break;
    case RelayEnd::kCancelled:
      scope.cancel(Errc::exhausted);  // nothing moved for too long, or the scope was cancelled
      break;
  }
}

// Why a wait of this request was cancelled.
Exchange::Next Exchange::cancelled(const net::Scope& scope, Refused& refused) {
  const auto why = scope.cancelled();
  if (!why || *why == Errc::exhausted) {
    // Nothing moved for too long; this wait, or upload(), saw it first.
    const bool by_client = has_body_ && !upload_is_done() && !upload_->is_writing;
    if (!by_client) report(Outcome::timeout());
    refused = Refusal{.reason = Reason::kStreamIdle, .status = by_client ? 408 : 504};
  } else if (*why == Errc::timed_out) {
    report(Outcome::timeout());
    refused = Refusal{.reason = Reason::kTimeout};
  } else if (*why == Errc::invalid_argument || upload_end_ == RelayEnd::kSourceCut) {
    // A client that ended its side within its body can still read the answer. (RFC 9112 8)
    const auto& error = request_body_.error();
    worker_.counters().bad_requests.add();
    refused =
        Refusal{.reason = Reason::kBadRequest, .status = error.status, .detail = error.detail};
  } else {
    refused = ended(*why);
  }
  return Next::kRefused;
}

bool Exchange::may_retry(const UpstreamConnection& connection) const {
  if (retried_ || !connection.is_reused() || response_began_) return false;
  const bool sent_any = sent_any_ || uploads_.size() > 0;  // a write that waits has sent some
  const bool took_body = upload_ && upload_->took;
  return !sent_any || (!took_body && http::is_idempotent(head_.method));
}

// The connection ended before a response head.
Exchange::Next Exchange::lost(UpstreamConnection& connection, Refused& refused) {
  if (may_retry(connection)) return Next::kRetry;
  report(Outcome::reset());
  refused = Refusal{.reason = Reason::kUpstreamClosed};
  return Next::kRefused;
}

net::Task<Exchange::Next> Exchange::read_response_head(UpstreamConnection& connection,
                                                       net::Scope& scope, Refused& refused) {
  net::Stream& stream = connection.stream();
  std::uint32_t interim = 0;
  while (true) {
    if (up_.is_held()) {
      const auto parsed = response_parser_.parse(up_.unread(), head_.method, response_);
      if (parsed == http::Parse::error || interim > worker_.limits().interim_responses) {
        report(Outcome::reset());
        refused = Refusal{.reason = Reason::kUpstreamProtocol};
        co_return Next::kRefused;
      }
      if (parsed == http::Parse::done) {
        up_.consume(response_parser_.consumed());
        if (!response_.is_interim()) break;
        if (!co_await pass_interim(scope)) {
          refused = Refusal{.reason = Reason::kClientGone};
          co_return Next::kRefused;
        }
        response_parser_.reset();
        if (++interim % Limits::kTurns == 0) (void)co_await net::yield(scope);
        continue;
      }
    } else {
      // No buffer is held while the endpoint thinks.
      auto ready = co_await stream.readable(scope, idle_);
      if (!ready) co_return cancelled(scope, refused);
      up_.acquire(worker_.buffers(), down_->client.buffers);
    }
    const auto space = up_.space();
    auto io_result = stream.try_read(space);
    if (io_result.would_block()) {
      if (up_.is_empty() && response_parser_.is_idle()) {
        up_.release();
        continue;
      }
      auto read = co_await stream.read_some(space, scope, idle_);
      if (!read && is_timeout(scope, read.error())) co_return cancelled(scope, refused);
      io_result = read ? net::Io{read.value(), 0} : net::Io{0, ECONNRESET};
    }
    if (io_result.error != 0 || io_result.bytes == 0) co_return lost(connection, refused);
    idle_.moved(worker_.reactor().now());
    response_began_ = true;
    watch_->set_waiting(false);
    up_.filled(io_result.bytes);
  }
  if (response_.status == 101 && !offers_upgrade_) {  // nobody asked: what follows is no HTTP
    report(Outcome::reset());
    refused = Refusal{.reason = Reason::kUpstreamProtocol};
    co_return Next::kRefused;
  }
  service_time_ms_ =
      std::chrono::duration_cast<std::chrono::milliseconds>(worker_.reactor().now() - sent_at_)
          .count();
  status_ = response_.status;
  report(Outcome::response(response_.status));
  if (retried_) cluster_->counters().upstream_rq_retry_success.add();
  co_return Next::kDone;
}

// 100 Continue, 103 Early Hints and the like; not for HTTP/1.0.
net::Task<bool> Exchange::pass_interim(net::Scope& scope) {
  if (head_.version == http::Version::http10) co_return true;
  response_out_.clear();
  http::write_response_head(response_, {.client = head_.version, .request = head_.method},
                            response_out_);
  iovec part{response_out_.data(), response_out_.size()};
  auto written = co_await down_->stream->write_all({&part, 1}, scope, idle_);
  co_return static_cast<bool>(written);
}

void Exchange::write_response_head() {
  set_.clear();
  add_.clear();
  remove_.clear();
  scratch_ = std::to_string(service_time_ms_);
  set_.push_back({"x-envoy-upstream-service-time", scratch_});
  routing::merge_headers(decision_.route ? &decision_.route->response_headers : nullptr,
                         decision_.destination ? &decision_.destination->response_headers : nullptr,
                         set_, add_, remove_);
  http::ResponseRewrite rewrite;
  rewrite.fields = {set_, add_, remove_};
  rewrite.client = head_.version;
  rewrite.request = head_.method;
  // An answer before the end of the request ends the connection: what the client still sends has
  // no place to go.
  rewrite.keep_alive = head_.keep_alive && upload_is_done() && !worker_.is_draining();
  rewrite.keep_upgrade = response_.status == 101;
  response_out_.clear();
  sent_ = http::write_response_head(response_, rewrite, response_out_);
}

net::Task<Exchange::Next> Exchange::relay_response(UpstreamConnection& connection,
                                                   net::Scope& scope, Refused& refused) {
  write_response_head();
  response_body_ = http::BodyDecoder(response_.body);
  details_ = "via_upstream";
  Relay relay{.from = connection.stream(),
              .buffer = up_,
              .decoder = response_body_,
              .to = *down_->stream,
              .framing = sent_.body,
              .prefix = response_out_,
              .idle = idle_};
  const RelayEnd end = co_await relay_body(relay, scope);
  bytes_sent_ = relay.body_bytes;
  if (end == RelayEnd::kDone) {
    keep_ = sent_.keep_alive && upload_is_done();
    upstream_done_ = upload_is_done() && !write_failed_ && up_.is_empty() &&
                     response_.body.kind != http::BodyKind::until_close;
    co_return Next::kDone;
  }
  if (end == RelayEnd::kSourceProtocol && !relay.wrote) {
    refused = Refusal{.reason = Reason::kUpstreamProtocol};
    co_return Next::kRefused;
  }
  // Too late for an answer: the client sees a body cut short.
  keep_ = false;
  down_->stream->reset_on_close();
  switch (end) {
    case RelayEnd::kSinkFailed:
      flags_.set(ResponseFlag::kDownstreamConnectionTermination);
      break;
    case RelayEnd::kSourceProtocol:
      flags_.set(ResponseFlag::kUpstreamProtocolError);
      break;
    case RelayEnd::kSourceCut:
    case RelayEnd::kSourceClosed:
      flags_.set(ResponseFlag::kUpstreamConnectionTermination);
      break;
    case RelayEnd::kCancelled:
      flag_cancelled(scope);
      break;
    case RelayEnd::kDone:  // above
      break;
  }
  co_return Next::kDone;
}

// Why a response was cut short; as cancelled() says it of one that had not begun.
void Exchange::flag_cancelled(const net::Scope& scope) {
  const auto why = scope.cancelled();
  if (!why || *why == Errc::exhausted) {
    flags_.set(ResponseFlag::kStreamIdleTimeout);
  } else if (*why == Errc::timed_out) {
    flags_.set(ResponseFlag::kUpstreamRequestTimeout);
  } else if (*why == Errc::invalid_argument) {
    worker_.counters().bad_requests.add();
    flags_.set(ResponseFlag::kDownstreamProtocolError);
  } else {
    flags_.set(*why == Errc::reset ? ResponseFlag::kDownstreamConnectionTermination
                                   : ResponseFlag::kLocalReset);
  }
}

// After 101 both sides speak a protocol of their own until one of them ends. It may idle for long:
// then it holds no buffer.
net::Task<> Exchange::tunnel(UpstreamConnection& connection) {
  struct Up {
    static net::Task<> run(Exchange& self, UpstreamConnection& to, net::IdleClock& idle,
                           net::Scope& scope) {
      const bool ok = co_await relay_raw(*self.down_->stream, self.down_->in, to.stream(), idle,
                                         self.bytes_received_, scope);
      if (!ok) scope.cancel();
    }
  };
  write_response_head();
  keep_head_apart();
  details_ = "via_upstream";
  net::Scope scope(down_->scope);  // not the route's time-out
  net::IdleClock idle(worker_.limits().idle_timeout, worker_.reactor().now());
  iovec part{response_out_.data(), response_out_.size()};
  if (!co_await down_->stream->write_all({&part, 1}, scope, idle)) co_return;
  net::Group up(worker_.reactor());
  up.spawn(Up::run(*this, connection, idle, scope));
  const bool ok =
      co_await relay_raw(connection.stream(), up_, *down_->stream, idle, bytes_sent_, scope);
  if (!ok) scope.cancel();
  co_await up.wait();
}

// What is told of the request at its end leaves the buffer that it came in.
void Exchange::keep_head_apart() {
  const std::string_view head = down_->head;
  head_copy_ = head;
  for (auto* text : {&head_.method_text, &head_.target, &head_.authority, &user_agent_,
                     &x_forwarded_for_, &request_id_}) {
    const bool inside = !text->empty() && std::ranges::less_equal()(head.data(), text->data()) &&
                        std::ranges::less()(text->data(), head.data() + head.size());
    if (!inside) continue;
    const auto at = static_cast<std::size_t>(text->data() - head.data());
    *text = std::string_view(head_copy_).substr(at, text->size());
  }
  down_->in.unpin();
}

void Exchange::report(const cluster::Outcome& outcome) {
  cluster_->report(*endpoint_->endpoint, outcome, worker_.reactor().now());
}

}  // namespace mesh::proxy
