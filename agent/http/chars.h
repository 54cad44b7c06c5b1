// Byte classes and small scans of HTTP text. Private to http.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "http/message.h"

namespace mesh::http {

struct CharTable {
  std::array<bool, 256> is{};
  constexpr bool operator[](char c) const { return is[static_cast<unsigned char>(c)]; }
};

constexpr CharTable make_table(std::string_view others, bool alnum) {
  CharTable table;
  for (const char c : others) table.is[static_cast<unsigned char>(c)] = true;
  for (int c = 0; alnum && c < 256; ++c) {
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      table.is[static_cast<std::size_t>(c)] = true;
    }
  }
  return table;
}

inline constexpr CharTable kToken = make_table("!#$%&'*+-.^_`|~", true);  // RFC 9110 5.6.2
inline constexpr CharTable kUnreserved = make_table("-._~", true);        // RFC 3986 2.3
// reg-name without escapes (they would alias names) and without ',' (a joined list).
inline constexpr CharTable kHost = make_table("-._~!$&'()*+;=", true);

constexpr char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr int hex_digit(char c) {  // -1: none
  if (is_digit(c)) return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

constexpr bool is_control(char c) {  // all but tab
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && byte != '\t') || byte == 0x7f;
}

// Whether eight bytes may hold one below 0x20 or 0x7f (exact but for tab, which it reports too).
inline bool may_have_control(const char* p) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  std::uint64_t x;
  std::memcpy(&x, p, 8);
  const std::uint64_t del = x ^ (kOnes * 0x7f);
  return (((x - kOnes * 0x20) & ~x) | ((del - kOnes) & ~del)) & (kOnes * 0x80);
}

inline bool has_control(std::string_view text) {
  const char* p = text.data();
  const char* const end = p + text.size();
  for (; end - p >= 8; p += 8) {
    if (!may_have_control(p)) continue;
    for (int i = 0; i < 8; ++i) {
      if (is_control(p[i])) return true;
    }
  }
  for (; p != end; ++p) {
    if (is_control(*p)) return true;
  }
  return false;
}

inline std::string_view trim(std::string_view text) {  // OWS
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// Calls f with each element of a comma-separated list, empty ones included, until it returns false.
template <class F>
bool each_element(std::string_view list, F&& f) {
  for (;;) {
    const std::size_t comma = list.find(',');
    if (!f(trim(list.substr(0, comma)))) return false;
    if (comma == std::string_view::npos) return true;
    list.remove_prefix(comma + 1);
  }
}

// A field line, cut. Names keep their spelling.
struct FieldLine {
  std::string_view name;
  std::string_view value;
  const char* error;  // why it is none, or nullptr
};
FieldLine scan_field_line(std::string_view line);  // without CRLF

FieldId identify(std::string_view name);

}  // namespace mesh::http
