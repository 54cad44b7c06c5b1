// The strict scan of one field line, shared by requests and responses. Private to http.
#pragma once

#include <cstddef>
#include <string_view>

#include "http/http1.h"

namespace mesh::http {

// Checks the line (without CRLF) and notes what it says about framing. status 0: fine.
ParseError scan_field(std::string_view line, const Limits& limits, HeadFacts& facts);

// Whether the line from `line` on, which has no line feed and was seen up to `searched`, has a
// carriage return that cannot be its end.
bool has_bare_return(std::string_view input, std::size_t line, std::size_t searched);

}  // namespace mesh::http
