#include "proxy/answer.h"

namespace mesh::proxy {

namespace {

using telemetry::ResponseFlag;

constexpr std::string_view kReset =
    "upstream connect error or disconnect/reset before headers. reset reason: ";

Answer reset_answer(ResponseFlag flag, std::string_view reason, std::string_view details) {
  Answer answer{.status = 503, .flags = flag};
  answer.body = std::string(kReset) + std::string(reason);
  answer.details = "upstream_reset_before_response_started{" + std::string(details) + "}";
  return answer;
}

Answer connect_answer(const Refusal& refusal) {
  if (refusal.cause && refusal.cause->code == Errc::timed_out) {
    return reset_answer(ResponseFlag::kUpstreamConnectionFailure, "connection timeout",
                        "connection_timeout");
  }
  Answer answer = reset_answer(ResponseFlag::kUpstreamConnectionFailure,
                               "remote connection failure", "remote_connection_failure");
  if (refusal.cause) {
    answer.transport_failure = refusal.cause->message;
    answer.body += ", transport failure reason: " + refusal.cause->message;
  }
  return answer;
}

}  // namespace

Answer to_answer(const Refusal& refusal) {
  switch (refusal.reason) {
    case Reason::kBadRequest:
      return {.status = refusal.status,
              .flags = ResponseFlag::kDownstreamProtocolError,
              .details = "http1.codec_error",
              .body = std::string(refusal.detail),
              .close = true};
    case Reason::kHeadTimeout:
      return {.status = 408,
              .flags = ResponseFlag::kStreamIdleTimeout,
              .details = "request_header_timeout",
              .body = "request header timeout",
              .close = true};
    case Reason::kNoRoute:
      return {.status = 404, .flags = ResponseFlag::kNoRoute, .details = "route_not_found"};
    case Reason::kNoCluster:
      return {
          .status = 503, .flags = ResponseFlag::kNoClusterFound, .details = "cluster_not_found"};
    case Reason::kNoHealthyUpstream:
      return {.status = 503,
              .flags = ResponseFlag::kNoHealthyUpstream,
              .details = "no_healthy_upstream",
              .body = "no healthy upstream"};
    case Reason::kOverflow: {
      Answer answer = reset_answer(ResponseFlag::kUpstreamOverflow, "overflow", "overflow");
      answer.overloaded = true;
      return answer;
    }
    case Reason::kOverload:
      return {.status = 503,
              .flags = ResponseFlag::kOverload,
              .details = "overload",
              .body = "too many requests of this workload are in flight",
              .overloaded = true};
    case Reason::kConnectFailed:
      return connect_answer(refusal);
    case Reason::kUpstreamClosed:
      return reset_answer(ResponseFlag::kUpstreamConnectionTermination, "connection termination",
                          "connection_termination");
    case Reason::kUpstreamProtocol: {
      Answer answer =
          reset_answer(ResponseFlag::kUpstreamProtocolError, "protocol error", "protocol_error");
      answer.status = 502;
      return answer;
    }
    case Reason::kTimeout:
      return {.status = 504,
              .flags = ResponseFlag::kUpstreamRequestTimeout,
              .details = "response_timeout",
              .body = "upstream request timeout"};
    case Reason::kStreamIdle:
      return {.status = refusal.status,
              .flags = ResponseFlag::kStreamIdleTimeout,
              .details = "stream_idle_timeout",
              .body = "stream timeout",
              .close = true};
    case Reason::kFault:
      return {.status = refusal.status,
              .flags = ResponseFlag::kFaultInjected,
              .details = "fault_filter_abort",
              .body = "fault filter abort"};
    case Reason::kClientGone:
      return {.status = 0,
              .flags = ResponseFlag::kDownstreamConnectionTermination,
              .details = "downstream_remote_disconnect",
              .close = true};
    case Reason::kEnded:
      return {.status = 0,
              .flags = ResponseFlag::kLocalReset,
              .details = "downstream_local_disconnect",
              .close = true};
  }
  return {.status = 500, .details = "internal"};
}

Refusal ended(Errc why) {
  if (why == Errc::timed_out) return {.reason = Reason::kTimeout};
  return {.reason = why == Errc::reset ? Reason::kClientGone : Reason::kEnded};
}

}  // namespace mesh::proxy
