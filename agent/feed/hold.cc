#include "feed/hold.h"

#include <string>

namespace mesh::feed {
namespace {

Error malformed(std::string_view what) {
  return {Errc::invalid_argument, "malformed hold message: " + std::string(what)};
}

bool names_listener(HoldType type) {
  switch (type) {
    case HoldType::kHostListener:
    case HoldType::kEndHostListener:
    case HoldType::kHostListening:
    case HoldType::kListener:
    case HoldType::kRevokeListener:
      return true;
    default:
      return false;
  }
}

bool names_family(HoldType type) {
  return names_listener(type) || type == HoldType::kSockets || type == HoldType::kWantSockets;
}

}  // namespace

std::string_view to_string(HoldStatus status) {
  switch (status) {
    case HoldStatus::kOk:
      return "ok";
    case HoldStatus::kUnavailable:
      return "the sockets could not be made in the namespace";
    case HoldStatus::kLoopbackDown:
      return "the loopback device is down in the namespace; bring it up: ip link set lo up";
    case HoldStatus::kPortTaken:
      return "another process listens on the mesh's port in the namespace (15001); stop it";
    case HoldStatus::kHostNamespace:
      return "the namespace is the host's own, which is shared; give the workload its own network "
             "namespace";
    case HoldStatus::kNotHeld:
      return "its namespace cannot be opened and nothing is held for it; delete its WorkloadEntry "
             "or start it again";
    case HoldStatus::kNotANamespace:
      return "the annotation undermesh.io/netns names no network namespace";
    case HoldStatus::kForeign:
      return "a listener that was given back is not of this namespace";
    case HoldStatus::kUnknown:
      return "the workload is not held";
    case HoldStatus::kShared:
      return "give each workload a network namespace of its own; another is enrolled in this one";
  }
  return "unknown status";
}

Result<HoldMessage> parse_hold_message(std::string_view payload) {
  if (payload.size() != sizeof(HoldMessage)) return malformed("size");
  HoldMessage message;
  std::memcpy(static_cast<void*>(&message), payload.data(), sizeof message);
  const auto type = static_cast<std::uint32_t>(message.type);
  if (type < static_cast<std::uint32_t>(HoldType::kEnrol) ||
      type > static_cast<std::uint32_t>(HoldType::kGivenBack))
    return malformed("type");
  if (static_cast<std::uint8_t>(message.status) > static_cast<std::uint8_t>(HoldStatus::kShared))
    return malformed("status");
  if (names_family(message.type) && message.family != kFamily4 && message.family != kFamily6)
    return malformed("family");
  if (names_listener(message.type) &&
      (message.kind < ListenerKind::kOutbound || message.kind > ListenerKind::kDnsTcp))
    return malformed("kind");
  if (message.count > kMaxSocketBatch) return malformed("count");
  return message;
}

}  // namespace mesh::feed
