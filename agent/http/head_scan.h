// The strict scan of a head's lines, shared by requests and responses. Private to http.
#pragma once

#include <cstddef>
#include <string_view>

#include "http/http1.h"

namespace mesh::http {

struct HeadLine {
  Parse parse;
  std::string_view text;  // done: the line without CRLF; error: what is wrong
};

// The next line of the head at the front of `input`. need_more: it is not whole yet, and has no
// carriage return that cannot be its end. (Inline: some 20 instructions less a line.)
HeadLine incomplete_line(std::string_view input, HeadCursor& at);
inline HeadLine next_line(std::string_view input, HeadCursor& at) {
  const std::size_t end = input.find('\n', at.searched);
  if (end == std::string_view::npos) return incomplete_line(input, at);
  if (end == at.line || input[end - 1] != '\r') return {Parse::error, "bare line feed"};
  const std::string_view text = input.substr(at.line, end - 1 - at.line);
  at.line = at.searched = end + 1;
  return {Parse::done, text};
}

// Checks the line (without CRLF), cuts it into a field and notes what it says about framing. status
// 0: fine.
ParseError scan_field(std::string_view line, const Limits& limits, HeadFacts& facts, Field& field);

}  // namespace mesh::http
