// What the mains make of the words of their command line. Pure.
#pragma once

#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace mesh {

// The value of `option`: decimal digits and nothing else, or invalid_argument that names both.
inline Result<std::uint32_t> parse_number(std::string_view option, std::string_view text) {
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    return Error{Errc::invalid_argument,
                 std::string(option) + " wants a number, not '" + std::string(text) + "'"};
  return number;
}

}  // namespace mesh
