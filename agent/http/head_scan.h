// The strict scan of one field line, shared by requests and responses. Private to http.
#pragma once

#include <string_view>

#include "http/http1.h"

namespace mesh::http {

// Checks the line (without CRLF) and notes what it says about framing. status 0: fine.
ParseError scan_field(std::string_view line, const Limits& limits, HeadFacts& facts);

}  // namespace mesh::http
