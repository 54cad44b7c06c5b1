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

// What a request target may consist of: visible ASCII, but no fragment.
constexpr CharTable make_target_table() {
  CharTable table;
  for (std::size_t c = 0x21; c < 0x7f; ++c) table.is[c] = c != '#';
  return table;
}
inline constexpr CharTable kTarget = make_target_table();

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

// Whether one of N bytes is a control character. A vector of clang's: SSE2 and NEON come out of it.
template <std::size_t N>
bool any_control(const char* p) {
  using Bytes = unsigned char __attribute__((vector_size(N)));
  using Words = std::uint64_t __attribute__((vector_size(N)));
  Bytes x;
  std::memcpy(&x, p, N);
  const auto controls = std::bit_cast<Words>(((x < 0x20) & (x != '\t')) | (x == 0x7f));
  std::uint64_t any = 0;
  for (std::size_t i = 0; i < N / 8; ++i) any |= controls[i];
  return any != 0;
}

inline bool has_control(std::string_view text) {
  const char* p = text.data();
  const std::size_t size = text.size();
  if (size >= 16) {
    const char* const last = p + size - 16;
    for (; p < last; p += 16) {
      if (any_control<16>(p)) return true;
    }
    return any_control<16>(last);
  }
  if (size >= 8) return any_control<8>(p) || any_control<8>(p + size - 8);
  for (std::size_t i = 0; i < size; ++i) {
    if (is_control(p[i])) return true;
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

// Cuts the line (without CRLF) into a field; why it is none, or nullptr.
const char* scan_field_line(std::string_view line, Field& field);

FieldId identify(std::string_view name);

}  // namespace mesh::http
