// DNS messages made by hand, byte by byte, independently of the code that is tested with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

namespace mesh::dns_bytes {

inline std::string u16(unsigned value) {
  return {static_cast<char>(value >> 8), static_cast<char>(value)};
}
inline std::string u32(std::uint32_t value) { return u16(value >> 16) + u16(value & 0xffff); }

inline std::string name(std::string_view text) {
  std::string wire;
  while (!text.empty()) {
    const std::string_view label = text.substr(0, text.find('.'));
    wire += static_cast<char>(label.size());
    wire += label;
    text.remove_prefix(std::min(text.size(), label.size() + 1));
  }
  return wire + '\0';
}

inline std::string header(unsigned id, unsigned flags, unsigned questions, unsigned answers = 0,
                          unsigned authorities = 0, unsigned additionals = 0) {
  return u16(id) + u16(flags) + u16(questions) + u16(answers) + u16(authorities) + u16(additionals);
}

inline std::string question(std::string_view text, unsigned type, unsigned klass = 1) {
  return name(text) + u16(type) + u16(klass);
}

inline std::string record(const std::string& owner, unsigned type, std::uint32_t ttl,
                          const std::string& data, unsigned klass = 1) {
  return owner + u16(type) + u16(klass) + u32(ttl) + u16(static_cast<unsigned>(data.size())) + data;
}

inline const std::string kQuestionName = "\xc0\x0c";

// UDP size, DO.
inline std::string opt(unsigned size, bool dnssec = false, const std::string& options = "",
                       unsigned version = 0) {
  return record(std::string(1, '\0'), 41, version << 16 | (dnssec ? 0x8000U : 0U), options, size);
}

inline std::string query(std::string_view text, unsigned type, unsigned id = 0x1234,
                         unsigned flags = 0x0100) {
  return header(id, flags, 1) + question(text, type);
}

inline std::string address(int a, int b, int c, int d) {
  return {static_cast<char>(a), static_cast<char>(b), static_cast<char>(c), static_cast<char>(d)};
}

inline std::string soa(std::string_view zone, std::uint32_t ttl, std::uint32_t minimum) {
  return record(name(zone), 6, ttl,
                name("ns." + std::string(zone)) + name("root." + std::string(zone)) + u32(1) +
                    u32(2) + u32(3) + u32(4) + u32(minimum));
}

}  // namespace mesh::dns_bytes
