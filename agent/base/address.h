// IpAddress, SocketAddress: values. An IPv4 address is held in its IPv4-mapped IPv6 form, so one
// type, one key and one comparison serve both families and v4-mapped sockets.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace mesh {

class IpAddress {
 public:
  using Bytes = std::array<std::uint8_t, 16>;  // network order

  constexpr IpAddress() = default;  // ::
  constexpr explicit IpAddress(const Bytes& bytes) : bytes_(bytes) {}
  static constexpr IpAddress v4(std::uint8_t a, std::uint8_t b, std::uint8_t c, std::uint8_t d) {
    return IpAddress(Bytes{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d});
  }
  static Result<IpAddress> parse(std::string_view text);

  const Bytes& bytes() const { return bytes_; }
  bool is_v4() const;
  bool is_loopback() const;
  bool is_link_local() const;   // 169.254/16 (so the metadata address), fe80::/10
  bool is_unspecified() const;  // 0.0.0.0, ::
  bool is_multicast() const;
  std::string to_string() const;
  friend auto operator<=>(const IpAddress&, const IpAddress&) = default;

 private:
  Bytes bytes_{};
};

struct SocketAddress {
  IpAddress ip;
  std::uint16_t port = 0;  // host order

  static Result<SocketAddress> parse(std::string_view text);  // "10.0.0.1:80", "[fd00::1]:80"
  std::string to_string() const;
  friend auto operator<=>(const SocketAddress&, const SocketAddress&) = default;
};

// An address block; prefix_length counts in the family's own bits (0..32 or 0..128).
struct IpBlock {
  IpAddress base;
  int prefix_length = 0;

  static Result<IpBlock> parse(std::string_view text);  // "10.0.0.0/8" or one address
  bool contains(const IpAddress& ip) const;
  std::string to_string() const;
  friend auto operator<=>(const IpBlock&, const IpBlock&) = default;
};

}  // namespace mesh

template <>
struct std::hash<mesh::IpAddress> {
  std::size_t operator()(const mesh::IpAddress& ip) const noexcept {
    return std::hash<std::string_view>{}(
        {reinterpret_cast<const char*>(ip.bytes().data()), ip.bytes().size()});
  }
};

template <>
struct std::hash<mesh::SocketAddress> {
  std::size_t operator()(const mesh::SocketAddress& a) const noexcept {
    return std::hash<mesh::IpAddress>{}(a.ip) * 31 + a.port;
  }
};
