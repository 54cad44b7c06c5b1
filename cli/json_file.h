// Small JSON objects that meshctl leaves in files for its next runs. What is not there, or not of
// the expected shape, is passed over: another run may be writing it just now.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mesh::cli {

std::optional<boost::json::object> read_json_file(const std::string& path);

// Sets `out` where the member is there and of its type.
void read_member(const boost::json::object& object, std::string_view name, std::string& out);
void read_member(const boost::json::object& object, std::string_view name,
                 std::vector<std::string>& out);
template <class Number>
  requires std::is_arithmetic_v<Number>
void read_member(const boost::json::object& object, std::string_view name, Number& out) {
  const boost::json::value* value = object.if_contains(name);
  boost::system::error_code ec;
  if (!value || !value->is_number()) return;
  auto number = value->to_number<Number>(ec);
  if (!ec) out = number;
}

}  // namespace mesh::cli
