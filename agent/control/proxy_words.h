// What meshproxy says, as far as it may be repeated. The proxy parses bytes from strangers and is
// not trusted: its texts reach logs, replies and terminals, so they are cut and made printable
// here.
#pragma once

#include <boost/json.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/object.h"

namespace mesh::control {

// UTF-8 in; control characters (C0, DEL, C1) become \xNN, and what is longer ends in "...".
std::string printable(std::string_view text, std::size_t longest = 4096);
boost::json::value printable(const boost::json::value& value);  // every text and name in it

std::string text_of(const boost::json::object& message, std::string_view name);  // printable
std::optional<std::uint64_t> number_of(const boost::json::object& message, std::string_view name);
std::vector<config::Problem> problems_in(const boost::json::object& message);  // of a nack

}  // namespace mesh::control
