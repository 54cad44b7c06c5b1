#include "control/proxy_words.h"

#include <cstdio>
#include <utility>

namespace mesh::control {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxProblems = 100;

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0U) == 0x80U; }

}  // namespace

std::string printable(std::string_view text, std::size_t longest) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (out.size() >= longest && !is_continuation(text[i])) return out + "...";
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool is_c1 = byte == 0xc2U && i + 1 < text.size() && is_continuation(text[i + 1]) &&
                       static_cast<unsigned char>(text[i + 1]) < 0xa0U;
    if (byte >= 0x20U && byte != 0x7fU && !is_c1) {
      out += text[i];
      continue;
    }
    char escaped[8];
    std::snprintf(escaped, sizeof escaped, "\\x%02x",
                  is_c1 ? static_cast<unsigned char>(text[++i]) : byte);
    out += escaped;
  }
  return out;
}

json::value printable(const json::value& value) {
  if (value.is_string()) return json::value(printable(std::string_view(value.get_string())));
  if (value.is_array()) {
    json::array items;
    for (const json::value& item : value.get_array()) items.push_back(printable(item));
    return items;
  }
  if (!value.is_object()) return value;
  json::object members;
  for (const auto& [name, member] : value.get_object())
    members[printable(std::string_view(name))] = printable(member);
  return members;
}

std::string text_of(const json::object& message, std::string_view name) {
  const json::value* value = message.if_contains(name);
  return value && value->is_string() ? printable(std::string_view(value->get_string()))
                                     : std::string();
}

std::optional<std::uint64_t> number_of(const json::object& message, std::string_view name) {
  const json::value* value = message.if_contains(name);
  json::error_code error;
  const auto number = value && value->is_number() ? value->to_number<std::uint64_t>(error) : 0;
  if (!value || !value->is_number() || error) return std::nullopt;
  return number;
}

std::vector<config::Problem> problems_in(const json::object& message) {
  std::vector<config::Problem> problems;
  const json::value* list = message.if_contains("problems");
  if (!list || !list->is_array()) return problems;
  for (const json::value& item : list->get_array()) {
    if (!item.is_object() || problems.size() == kMaxProblems) continue;
    const json::object& object = item.get_object();
    config::Problem problem;
    problem.object = {text_of(object, "kind"), text_of(object, "namespace"),
                      text_of(object, "name")};
    problem.field = text_of(object, "field");
    problem.message = "refused by meshproxy: " + text_of(object, "message");
    problems.push_back(std::move(problem));
  }
  return problems;
}

}  // namespace mesh::control
