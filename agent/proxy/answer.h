// What the proxy answers by itself: the one place where an Error becomes an HTTP status and a
// response flag. Texts, flags and details are Envoy's (response_code_details, stream_info). Pure.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "telemetry/response_flags.h"

namespace mesh::proxy {

enum class Reason : std::uint8_t {
  kBadRequest,         // `status` and `detail` are the parser's
  kHeadTimeout,        // 408
  kNoRoute,            // 404 NR
  kNoCluster,          // 503 NC
  kNoHealthyUpstream,  // 503 UH
  kOverflow,           // 503 UO, x-envoy-overloaded
  kOverload,           // 503 OM: a limit of the proxy itself
  kConnectFailed,      // 503 UF; `cause` says why (timed_out: the connect time-out)
  kUpstreamClosed,     // 503 UC: the connection ended before a response
  kUpstreamProtocol,   // 502 UPE: what came is no HTTP response
  kTimeout,            // 504 UT: the route's time-out
  kStreamIdle,         // `status` SI: nothing moved for too long: 504, or 408 of the client's body
  kFault,              // `status` FI
  kClientGone,         // no answer, DC
  kEnded,              // no answer, LR: its workload, or the proxy, ended
};

struct Refusal {
  Reason reason = Reason::kUpstreamClosed;
  int status = 0;
  std::string_view detail;       // static text
  std::optional<Error> cause;    // of a failed connect
  bool endpoint_failed = false;  // its connect was tried and failed: outlier detection counts it
};

struct Answer {
  int status = 0;  // 0: none
  telemetry::ResponseFlags flags;
  std::string details;            // response_code_details
  std::string transport_failure;  // upstream_transport_failure_reason
  std::string body;
  bool overloaded = false;  // x-envoy-overloaded: true
  bool close = false;       // the connection cannot go on
};

Answer to_answer(const Refusal& refusal);
// Of a wait whose scope was cancelled: by its deadline, the client's end (reset), or ours.
Refusal ended(Errc why);

}  // namespace mesh::proxy
