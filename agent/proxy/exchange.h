// Exchange: one request and its response, from the parsed head to the access log.
//
// Reused from request to request (Worker::take_exchange), so nothing is allocated for one in steady
// state. docs/life-of-a-request.md tells the same story in prose.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "http/http1.h"
#include "net/reactor.h"
#include "net/tcp.h"
#include "proxy/answer.h"
#include "proxy/relay.h"
#include "proxy/upstream.h"
#include "proxy/worker.h"
#include "routing/route_table.h"
#include "telemetry/trace_context.h"

namespace mesh::proxy {

// A connection from a client, as its requests see it.
struct Downstream {
  Downstream(Worker& w, Client& c, const ListenerId& v, std::unique_ptr<net::TcpStream> s)
      : worker(w), client(c), via(v), stream(std::move(s)), scope(c.scope()) {}
  Worker& worker;
  Client& client;
  const ListenerId& via;
  std::unique_ptr<net::TcpStream> stream;
  net::Scope& scope;  // the client's: ends with it
  ReadBuffer in;
  std::string_view head;      // the request's, in `in`; pinned
  SocketAddress destination;  // where the client wanted to go; a gateway's own address
  std::uint32_t requests = 0;
  bool linger = false;  // the client may still be sending: let it read the answer
  // The service at the destination, looked up once for a view.
  std::uint64_t service_epoch = 0;
  const config::Service* service = nullptr;

  bool is_gateway() const { return via.kind == feed::ListenerKind::kGateway; }
  const SocketAddress& peer();  // asked of the kernel at first use

 private:
  std::optional<SocketAddress> peer_;
};

// Cancels a scope (Errc::reset) when the client's connection breaks, so that nothing is held for a
// client that is gone. One that has only ended its side may still wait for its answer, or may be
// gone all the same (docs/decisions/0008): it is given Limits::half_closed for it to begin.
class ClientWatch : public net::Waiter {
 public:
  ClientWatch(Downstream& down, net::Scope& scope);
  // The endpoint is at work on the whole request, or not (yet): only then that time runs.
  void set_waiting(bool waiting);

 private:
  struct GiveUp : net::Timer {
    explicit GiveUp(ClientWatch* w);
    ClientWatch* watch;
  };
  void look();
  Downstream& down_;
  net::Scope& scope_;
  GiveUp give_up_;
  bool waiting_ = true;
};

class Exchange {
 public:
  explicit Exchange(Worker& worker);
  http::RequestHead& head() { return head_; }
  // Serves the request whose head is parsed; its body, if any, follows in `down.in`. False: the
  // connection must end.
  net::Task<bool> run(Downstream& down);
  // Answers input that is no request; the connection must end.
  net::Task<> refuse(Downstream& down, Refusal refusal);

 private:
  using Refused = std::optional<Refusal>;
  enum class Next : std::uint8_t { kDone, kRefused, kRetry };

  // Before: what and where. (exchange.cc)
  void begin(Downstream& down);
  Refused admit() const;
  Refused route();
  routing::Client find_client();
  net::Task<Refused> inject_fault();
  void look_at_fields();
  void edit_request(bool is_last);
  void edit_for_the_edge();
  // The upstream side. (exchange_upstream.cc)
  net::Task<Refused> forward();
  net::Task<Next> attempt(UpstreamConnection& connection, net::Scope& request_scope,
                          Refused& refused);
  net::Task<> upload(net::Scope& scope);
  net::Task<Next> send_request(UpstreamConnection& connection, net::Scope& scope, Refused& refused);
  net::Task<Next> read_response_head(UpstreamConnection& connection, net::Scope& scope,
                                     Refused& refused);
  net::Task<bool> pass_interim(net::Scope& scope);
  net::Task<Next> relay_response(UpstreamConnection& connection, net::Scope& scope,
                                 Refused& refused);
  net::Task<> tunnel(UpstreamConnection& connection);
  void keep_head_apart();
  Next lost(UpstreamConnection& connection, Refused& refused);
  Next cancelled(const net::Scope& scope, Refused& refused);
  void flag_cancelled(const net::Scope& scope);
  void write_response_head();
  bool may_retry(const UpstreamConnection& connection) const;
  bool body_is_buffered() const;
  bool upload_is_done() const { return !has_body_ || upload_end_ == RelayEnd::kDone; }
  void report(const cluster::Outcome& outcome);
  // After. (exchange_report.cc)
  net::Task<bool> answer(Refusal refusal);
  bool skip_buffered_body();
  void finish();
  void count(std::chrono::nanoseconds duration);
  const config::Service* find_service() const;
  telemetry::WorkerMetrics::Edge* make_edge(std::string_view reporter,
                                            const config::Workload* destination) const;
  void write_access_log(std::chrono::nanoseconds duration);
  void tap(std::chrono::nanoseconds duration);

  Worker& worker_;
  Downstream* down_ = nullptr;
  ViewPtr view_;

  http::RequestHead head_;
  http::ResponseHead response_;
  http::ResponseParser response_parser_;
  http::BodyDecoder request_body_, response_body_;
  ReadBuffer up_;
  std::string out_, response_out_, scratch_, forwarded_for_;
  std::vector<http::FieldValue> set_, add_;
  std::vector<std::string_view> remove_;
  std::optional<telemetry::TraceContext> trace_;
  telemetry::TraceFields trace_fields_;
  std::string_view user_agent_, x_forwarded_for_, request_id_;
  std::string head_copy_;  // where the buffer is given back before the end
  bool has_forwarded_proto_ = false;

  routing::Decision decision_;
  UpstreamPool::User pool_;
  cluster::Cluster* cluster_ = nullptr;  // pool_ holds it
  EndpointPool* endpoint_ = nullptr;
  bool has_body_ = false;
  bool sent_any_ = false;       // a byte of the request went to the endpoint
  bool keep_ = false;           // the downstream connection
  bool upstream_done_ = false;  // all of the request and of the response, and nothing else, went by
  bool retried_ = false;
  bool write_failed_ = false;    // of a request without a body
  bool response_began_ = false;  // a byte came, be it of a 1xx
  bool offers_upgrade_ = false;
  std::chrono::milliseconds time_after_body_{0};  // the route's, where the body is not all there
  ClientWatch* watch_ = nullptr;
  net::IdleClock idle_{net::kForever, {}};  // of both directions
  std::optional<RelayEnd> upload_end_;
  std::optional<Relay> upload_;
  net::Group uploads_;
  http::ResponseSent sent_{};

  net::Clock::time_point start_, sent_at_;
  std::int64_t service_time_ms_ = -1;
  int status_ = 0;
  telemetry::ResponseFlags flags_;
  std::string details_, transport_failure_;
  std::uint64_t bytes_received_ = 0, bytes_sent_ = 0;
  std::optional<SocketAddress> upstream_local_;
};

}  // namespace mesh::proxy
