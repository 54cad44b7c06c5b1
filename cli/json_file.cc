#include "json_file.h"

#include <fstream>
#include <iterator>

namespace mesh::cli {

namespace json = boost::json;

std::optional<json::object> read_json_file(const std::string& path) {
  std::ifstream file(path);
  std::string text(std::istreambuf_iterator<char>(file), {});
  boost::system::error_code ec;
  json::value value = json::parse(text, ec);
  if (ec || !value.is_object()) return std::nullopt;
  return std::move(value.get_object());
}

void read_member(const json::object& object, std::string_view name, std::string& out) {
  const json::value* value = object.if_contains(name);
  if (value && value->is_string())
    out.assign(value->get_string().begin(), value->get_string().end());
}

void read_member(const json::object& object, std::string_view name, std::vector<std::string>& out) {
  const json::value* value = object.if_contains(name);
  if (!value || !value->is_array()) return;
  out.clear();
  for (const json::value& item : value->get_array())
    if (item.is_string()) out.emplace_back(item.get_string());
}

}  // namespace mesh::cli
