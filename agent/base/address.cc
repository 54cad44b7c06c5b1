#include "base/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace mesh {
namespace {

constexpr IpAddress::Bytes kV4Prefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

Error bad(std::string_view what, std::string_view text) {
  return {Errc::invalid_argument, std::string(what) + " '" + std::string(text) + "'"};
}

Result<unsigned> parse_number(std::string_view text, unsigned limit) {
  unsigned value = 0;
  auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc{} || end != text.data() + text.size() || text.empty() || value > limit)
    return bad("not a number in range:", text);
  return value;
}

}  // namespace

Result<IpAddress> IpAddress::parse(std::string_view text) {
  std::string copy(text);
  Bytes bytes = kV4Prefix;
  if (::inet_pton(AF_INET, copy.c_str(), bytes.data() + 12) == 1) return IpAddress(bytes);
  if (::inet_pton(AF_INET6, copy.c_str(), bytes.data()) == 1) return IpAddress(bytes);
  return bad("not an IP address:", text);
}

bool IpAddress::is_v4() const {
  return std::equal(bytes_.begin(), bytes_.begin() + 12, kV4Prefix.begin());
}

bool IpAddress::is_loopback() const {
  if (is_v4()) return bytes_[12] == 127;
  Bytes one{};
  one[15] = 1;
  return bytes_ == one;
}

bool IpAddress::is_link_local() const {
  if (is_v4()) return bytes_[12] == 169 && bytes_[13] == 254;
  return bytes_[0] == 0xfe && (bytes_[1] & 0xc0) == 0x80;
}

bool IpAddress::is_unspecified() const {
  return bytes_ == Bytes{} ||
         (is_v4() && std::all_of(bytes_.begin() + 12, bytes_.end(), [](auto b) { return b == 0; }));
}

bool IpAddress::is_multicast() const {
  return is_v4() ? (bytes_[12] & 0xf0) == 0xe0 : bytes_[0] == 0xff;
}

std::string IpAddress::to_string() const {
  char text[INET6_ADDRSTRLEN];
  if (is_v4()) return ::inet_ntop(AF_INET, bytes_.data() + 12, text, sizeof text);
  return ::inet_ntop(AF_INET6, bytes_.data(), text, sizeof text);
}

Result<SocketAddress> SocketAddress::parse(std::string_view text) {
  std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return bad("not an address with a port:", text);
  std::string_view host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  else if (host.find(':') != std::string_view::npos)
    return bad("IPv6 addresses with a port need brackets:", text);
  MESH_TRY(auto ip, IpAddress::parse(host));
  MESH_TRY(auto port, parse_number(text.substr(colon + 1), 65535));
  return SocketAddress{ip, static_cast<std::uint16_t>(port)};
}

std::string SocketAddress::to_string() const {
  return (ip.is_v4() ? ip.to_string() : "[" + ip.to_string() + "]") + ":" + std::to_string(port);
}

Result<IpBlock> IpBlock::parse(std::string_view text) {
  std::size_t slash = text.find('/');
  MESH_TRY(auto base, IpAddress::parse(text.substr(0, slash)));
  int bits = base.is_v4() ? 32 : 128;
  if (slash == std::string_view::npos) return IpBlock{base, bits};
  auto length = parse_number(text.substr(slash + 1), static_cast<unsigned>(bits));
  if (!length)
    return bad("the prefix length must be 0.." + std::to_string(bits) + ", not as in", text);
  return IpBlock{base, static_cast<int>(length.value())};
}

bool IpBlock::contains(const IpAddress& ip) const {
  if (ip.is_v4() != base.is_v4()) return false;
  int bits = prefix_length + (base.is_v4() ? 96 : 0);
  int whole = bits / 8;
  if (std::memcmp(ip.bytes().data(), base.bytes().data(), static_cast<std::size_t>(whole)) != 0)
    return false;
  if (bits % 8 == 0) return true;
  auto mask = static_cast<std::uint8_t>(0xff << (8 - bits % 8));
  auto index = static_cast<std::size_t>(whole);
  return (ip.bytes()[index] & mask) == (base.bytes()[index] & mask);
}

std::string IpBlock::to_string() const {
  return base.to_string() + "/" + std::to_string(prefix_length);
}

}  // namespace mesh
