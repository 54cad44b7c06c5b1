// ResponseFlags: why a response is what it is, by Envoy's short names (docs:
// configuration/observability/access_log/usage.rst, source/common/stream_info/utility.h).
// A value; several flags may be set.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mesh::telemetry {

enum class ResponseFlag : std::uint8_t {  // in the order in which Envoy prints them
  kNoHealthyUpstream,                     // UH  503
  kUpstreamRequestTimeout,                // UT  504
  kLocalReset,                            // LR  the proxy reset the request
  kUpstreamRemoteReset,                   // UR  the endpoint reset it
  kUpstreamConnectionFailure,             // UF  503 could not connect
  kUpstreamConnectionTermination,         // UC  the endpoint closed the connection under it
  kUpstreamOverflow,                      // UO  503 a limit of the connection pool
  kNoRoute,                               // NR  404
  kDelayInjected,                         // DI
  kFaultInjected,                         // FI  aborted by a fault rule
  kUnauthorized,                          // UAEX 403
  kDownstreamConnectionTermination,       // DC  the client went away
  kUpstreamRetryLimitExceeded,            // URX
  kStreamIdleTimeout,                     // SI  408
  kDownstreamProtocolError,               // DPE 400
  kUpstreamProtocolError,                 // UPE 502
  kNoClusterFound,                        // NC  503
  kDurationTimeout,                       // DT
  kOverload,                              // OM  503 a limit of the proxy itself
};
inline constexpr std::size_t kResponseFlagCount = 19;

std::string_view short_name(ResponseFlag flag);  // "UH"

class ResponseFlags {
 public:
  constexpr ResponseFlags() = default;
  constexpr ResponseFlags(ResponseFlag flag) { set(flag); }  // NOLINT: a flag is a set of one
  constexpr void set(ResponseFlag flag) { bits_ |= 1u << static_cast<unsigned>(flag); }
  constexpr bool has(ResponseFlag flag) const {
    return (bits_ >> static_cast<unsigned>(flag) & 1u) != 0;
  }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr std::uint32_t bits() const { return bits_; }
  void append_to(std::string& out) const;  // "DI,FI"; "-" when empty
  std::string to_string() const;
  friend constexpr bool operator==(ResponseFlags, ResponseFlags) = default;

 private:
  std::uint32_t bits_ = 0;
};

}  // namespace mesh::telemetry
