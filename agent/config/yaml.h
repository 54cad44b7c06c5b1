// YAML out: a JSON tree as block-style YAML that parse_objects() reads back as the same tree.
// Strings that YAML would take for something else are quoted. Pure.
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>

namespace mesh::config {

// Ends with a line feed. Numbers that JSON cannot write do not occur in a tree.
std::string to_yaml(const boost::json::value& value);

// What an unquoted scalar means, as kubectl reads it (YAML 1.1): null, a boolean, a number, else
// the text itself.
boost::json::value resolve_plain_scalar(std::string_view text);

}  // namespace mesh::config
