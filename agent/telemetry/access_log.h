// The access log's line, in Istio's text format (pilot/pkg/model/telemetry_logging.go
// EnvoyTextLogFormat; Envoy docs: configuration/observability/access_log/usage.rst).
//
// Pure: the clock is an argument, the line is appended to the caller's buffer, nothing else is
// allocated. What a peer sent cannot forge a line or a field: control characters, '"', '\', bytes
// above 0x7e, and spaces outside quotes are written as \xHH. Empty values are "-".
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/address.h"
#include "telemetry/response_flags.h"

namespace mesh::telemetry {

struct AccessLogEntry {
  std::chrono::system_clock::time_point start;
  std::string_view method, path;  // path with its query, as received
  std::string_view protocol;      // "HTTP/1.1"
  int response_code = 0;          // 0: none was sent
  ResponseFlags flags;
  std::string_view response_code_details;  // "via_upstream", "route_not_found", ...
  std::string_view connection_termination_details;
  std::string_view upstream_transport_failure_reason;
  std::uint64_t bytes_received = 0;  // body bytes of the request
  std::uint64_t bytes_sent = 0;      // body bytes of the response
  std::chrono::milliseconds duration{0};
  std::int64_t upstream_service_time_ms = -1;  // below 0: "-"
  std::string_view x_forwarded_for, user_agent, request_id, authority;
  const SocketAddress* upstream_host = nullptr;  // null: "-"
  std::string_view upstream_cluster;             // "outbound|9080||reviews..."
  const SocketAddress* upstream_local_address = nullptr;
  const SocketAddress* downstream_local_address = nullptr;  // the original destination
  const SocketAddress* downstream_remote_address = nullptr;
  std::string_view requested_server_name;
  std::string_view route_name, match_name;  // written as "route.match"
};

// Appends one line and its line feed.
void append_access_log_line(const AccessLogEntry& entry, std::string& out);

}  // namespace mesh::telemetry
