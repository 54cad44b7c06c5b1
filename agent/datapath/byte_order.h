// Between the values of bpf/shared.h and those of the agent.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>

#include "base/address.h"
#include "bpf/shared.h"

namespace mesh::datapath {

// Both ways.
template <std::unsigned_integral T>
constexpr T network_order(T value) {
  if constexpr (std::endian::native == std::endian::big) return value;
  T swapped = 0;
  for (std::size_t i = 0; i < sizeof value; ++i)
    swapped = static_cast<T>(swapped << 8 | ((value >> (8 * i)) & 0xff));
  return swapped;
}

inline um_address kernel_address(const IpAddress& ip) {
  um_address out;
  std::memcpy(&out, ip.bytes().data(), sizeof out);
  return out;
}
inline IpAddress user_address(const um_address& address) {
  IpAddress::Bytes bytes;
  std::memcpy(bytes.data(), &address, sizeof address);
  return IpAddress(bytes);
}
inline um_destination kernel_destination(const SocketAddress& address,
                                         std::uint8_t protocol = UM_TCP) {
  return {kernel_address(address.ip), network_order(address.port), protocol, 0};
}
inline SocketAddress user_destination(const um_destination& destination) {
  return {user_address(destination.address), network_order(destination.port)};
}
// Of the mapped address; of no generation.
inline um_block_key kernel_block(const IpBlock& block) {
  const int family = block.base.is_v4() ? 96 : 0;
  return {static_cast<std::uint32_t>(UM_BLOCK_BITS + block.prefix_length + family), 0,
          kernel_address(block.base)};
}
inline IpBlock user_block(const um_block_key& key) {
  const IpAddress base = user_address(key.address);
  const int bits = static_cast<int>(key.bits - UM_BLOCK_BITS);
  return {base, bits - (base.is_v4() && bits >= 96 ? 96 : 0)};
}

}  // namespace mesh::datapath
