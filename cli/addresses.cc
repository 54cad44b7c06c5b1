#include "addresses.h"

#include <cstdio>

namespace mesh::cli {
namespace {

constexpr std::uint8_t high(AddressNumber n) { return static_cast<std::uint8_t>(n >> 8); }
constexpr std::uint8_t low(AddressNumber n) { return static_cast<std::uint8_t>(n & 0xff); }

bool is_usable(AddressNumber number) {
  return low(number) != 0 && low(number) != 255 && number != kBridgeNumber;
}

}  // namespace

IpAddress address_v4(AddressNumber number) {
  return IpAddress::v4(10, 77, high(number), low(number));
}

IpAddress address_v6(AddressNumber number) {
  IpAddress::Bytes bytes{0xfd, 0x77};
  bytes[14] = high(number);
  bytes[15] = low(number);
  return IpAddress(bytes);
}

std::optional<AddressNumber> number_of(const IpAddress& v4) {
  const auto& bytes = v4.bytes();
  if (!v4.is_v4() || bytes[12] != 10 || bytes[13] != 77) return std::nullopt;
  return static_cast<AddressNumber>(bytes[14] << 8 | bytes[15]);
}

Mac link_address(AddressNumber number) {
  return {0x02, 0x75, 0x6d, 0x00, high(number), low(number)};
}

Mac host_link_address(AddressNumber number) {
  return {0x02, 0x75, 0x6d, 0x01, high(number), low(number)};
}

std::string link_name(AddressNumber number) {
  char text[8];
  std::snprintf(text, sizeof text, "um%04x", number);
  return text;
}

std::optional<AddressNumber> next_address(AddressNumber last, const std::set<AddressNumber>& used) {
  for (unsigned step = 1; step <= 65536; ++step) {
    auto number = static_cast<AddressNumber>(last + step);
    if (is_usable(number) && !used.contains(number)) return number;
  }
  return std::nullopt;
}

}  // namespace mesh::cli
