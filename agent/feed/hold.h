// The messages of meshhold: one fixed-size struct, one a frame (feed/channel.h), in two dialogues.
//
// hold.sock: meshhold listens (mode 0600, SO_PEERCRED uid 0), meshd dials; frames are HoldMessages
// from the first one on. One meshd at a time: a new one replaces the last.
//   meshd -> meshhold
//     kEnrol{workload}         + [netns] or [netns, listener...]: makes the listeners, or takes
//                              those back (duplicates from an earlier kEnrolled) after checking
//                              that they are of that namespace. Those for DNS (kDnsUdp, kDnsTcp)
//                              are optional: without them names are not the mesh's business there.
//                              A port that is taken, and may be so by a listener that meshhold's
//                              predecessor made, is tried for up to 2 s before the answer.
//                              Already held: answered from what is held, then [] is enough. With
//                              kFlagHostNamespace and no descriptor: the node's gateway, upstream
//                              sockets from meshhold's own namespace.
//     kEnd{workload}           closes what is held and revokes it at the proxy
//     kHostListener{workload, kind, family, ip, port} + [] or [listener]: a listener in the host's
//                              namespace (kGateway: workload 1; kMetrics: workload 0). ip "::",
//                              family 6: every address of both families
//     kEndHostListener{same}
//     kSync                    all that was not named on this connection ends
//     kProxyState{status}      kUnavailable: the proxy hangs (its heartbeat is stale): connections
//                              to it are refused until kOk, or until the next proxy
//   meshhold -> meshd
//     kEnrolled{workload, netns_cookie, status, families, detail} + a duplicate of each listener
//                              (outbound before DNS, IPv4 first). families without kHasDns: detail
//                              is the errno that DNS listeners failed with
//     kHostListening{as asked, status, detail} + the duplicate
//
// proxy.sock: meshproxy listens, meshhold dials and sends the JSON frame kHoldHello, then frames
// are HoldMessages.
//   meshhold -> meshproxy
//     kListener{workload, kind, family, ip, port, netns_cookie} + [listener]. All of them again on
//                              every new connection. A second one for the same (workload, kind,
//                              family, ip, port) is the same socket: keep either, close the other.
//                              Accept only once meshd's `enrolled` list names the workload.
//     kSockets{workload, family, flags, count, status} + count unconnected non-blocking sockets,
//                              TCP or (kFlagDatagram) UDP; fewer than asked, or none with a status,
//                              when they could not be made. Until the first kSync of a new
//                              meshhold, a request for a workload that meshd has not named yet
//                              waits
//     kRevoke{workload}        close its listeners and stock, end its connections
//     kRevokeListener{workload, kind, family, ip, port}
//     kGiveBack{workload, kind, ...}: the port of this listener (kOutbound: of any of the
//                              workload's) is taken, and meshd has no duplicate: has the proxy?
//     kSync                    what was not named on this connection is revoked
//   meshproxy -> meshhold
//     kWantSockets{workload, family, flags, count}: at most kMaxSocketBatch are made for one
//                              request
//     kGivenBack{as asked} + a duplicate of each listener that kGiveBack asked for; none: it has
//                              none. meshhold checks each against the namespace (decisions/0006)
//   The proxy keeps listeners and stock when this channel ends: the next meshhold sends them again.
//   A peer that breaks these rules is dropped. Nothing the proxy sends names a descriptor or a
//   path.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "base/result.h"

namespace mesh::feed {

inline constexpr std::string_view kHoldHello = R"({"type":"hello","role":"meshhold"})";
inline constexpr std::uint16_t kOutboundPort = 15001;
inline constexpr std::uint16_t kDnsPort = 15053;
inline constexpr std::uint32_t kMaxSocketBatch = 64;
inline constexpr std::uint32_t kGatewayWorkload = 1;
// So long connections wait for a proxy that is away or hangs; then they are refused.
inline constexpr std::chrono::milliseconds kProxyGrace{2000};

enum class HoldType : std::uint32_t {
  kEnrol = 1,
  kEnd,
  kHostListener,
  kEndHostListener,
  kSync,
  kProxyState,
  kEnrolled,
  kHostListening,
  kListener,
  kSockets,
  kRevoke,
  kRevokeListener,
  kWantSockets,
  kGiveBack,
  kGivenBack,
};

enum class HoldStatus : std::uint8_t {
  kOk = 0,
  kUnavailable,    // detail: errno of the step that failed
  kLoopbackDown,   // lo is down in the namespace
  kPortTaken,      // somebody listens on the port there
  kHostNamespace,  // the namespace is the host's own: it cannot be enrolled
  kNotHeld,        // kEnrol without a namespace for a workload that is not held
  kNotANamespace,  // the descriptor is no network namespace
  kForeign,        // a listener given back is not of that namespace, or not one of ours
  kUnknown,        // kWantSockets for a workload that is not held
  kShared,         // another workload is held in the same namespace; detail: its id
};
// What a person reads; names the remedy.
std::string_view to_string(HoldStatus status);

enum class ListenerKind : std::uint8_t { kOutbound = 1, kGateway, kMetrics, kDnsUdp, kDnsTcp };
inline constexpr bool is_dns(ListenerKind kind) { return kind >= ListenerKind::kDnsUdp; }

inline constexpr std::uint8_t kFamily4 = 4;  // HoldMessage::family
inline constexpr std::uint8_t kFamily6 = 6;
inline constexpr std::uint8_t kHasFamily4 = 1;  // HoldMessage::families, bits
inline constexpr std::uint8_t kHasFamily6 = 2;
inline constexpr std::uint8_t kHasDns = 4;
inline constexpr std::uint8_t kFlagHostNamespace = 1;  // HoldMessage::flags, bits
inline constexpr std::uint8_t kFlagDatagram = 2;

struct HoldMessage {
  HoldType type{};
  std::uint32_t workload = 0;
  std::uint64_t netns_cookie = 0;
  std::array<std::uint8_t, 16> ip{};  // network order, IPv4 as ::ffff:a.b.c.d
  std::uint16_t port = 0;
  std::uint8_t family = 0;
  ListenerKind kind{};
  HoldStatus status{};
  std::uint8_t families = 0;
  std::uint8_t flags = 0;
  std::uint8_t reserved = 0;
  std::uint32_t count = 0;
  std::uint32_t detail = 0;
};
static_assert(sizeof(HoldMessage) == 48);
static_assert(offsetof(HoldMessage, netns_cookie) == 8);
static_assert(offsetof(HoldMessage, ip) == 16);
static_assert(offsetof(HoldMessage, port) == 32);
static_assert(offsetof(HoldMessage, status) == 36);
static_assert(offsetof(HoldMessage, count) == 40);
static_assert(std::is_trivially_copyable_v<HoldMessage>);

inline std::string_view as_bytes(const HoldMessage& message) {
  return {reinterpret_cast<const char*>(&message), sizeof message};
}
// Checks size, type, family, kind and counts; values are otherwise the receiver's to check.
Result<HoldMessage> parse_hold_message(std::string_view payload);

}  // namespace mesh::feed
