// SocketAddress <-> sockaddr, for the sources of net.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>

#include "base/address.h"
#include "base/result.h"

namespace mesh::net {

struct RawAddress {
  sockaddr_storage storage{};
  socklen_t size = sizeof(sockaddr_storage);
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

inline RawAddress to_raw(const SocketAddress& address) {
  RawAddress raw;
  const auto& bytes = address.ip.bytes();
  if (address.ip.is_v4()) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&raw.storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(address.port);
    std::memcpy(&v4->sin_addr, bytes.data() + 12, 4);
    raw.size = sizeof(sockaddr_in);
  } else {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&raw.storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address.port);
    std::memcpy(&v6->sin6_addr, bytes.data(), 16);
    raw.size = sizeof(sockaddr_in6);
  }
  return raw;
}

inline IpAddress from_raw(const in_addr& address) {
  std::uint8_t b[4];
  std::memcpy(b, &address, sizeof b);
  return IpAddress::v4(b[0], b[1], b[2], b[3]);
}
inline IpAddress from_raw(const in6_addr& address) {
  IpAddress::Bytes bytes;
  std::memcpy(bytes.data(), &address, bytes.size());
  return IpAddress(bytes);
}

inline Result<SocketAddress> from_raw(const RawAddress& raw) {
  if (raw.storage.ss_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(&raw.storage);
    return SocketAddress{from_raw(v4->sin_addr), ntohs(v4->sin_port)};
  }
  if (raw.storage.ss_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&raw.storage);
    return SocketAddress{from_raw(v6->sin6_addr), ntohs(v6->sin6_port)};
  }
  return Error{Errc::invalid_argument, "socket address is neither IPv4 nor IPv6"};
}

}  // namespace mesh::net
