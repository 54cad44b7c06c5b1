#include "config/yaml.h"

#include <algorithm>
#include <array>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>

namespace mesh::config {
namespace {

namespace json = boost::json;

// YAML 1.2.2, 7.4.2: a longer key needs the "?" of an explicit one.
constexpr std::size_t kLongestImplicitKey = 1024;

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), text) != words.end();
}

std::optional<json::value> read_integer(std::string_view text) {
  bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) base = 16;
  if (text.starts_with("0b") || text.starts_with("0B")) base = 2;
  if (text.starts_with("0o") || text.starts_with("0O")) base = 8;
  if (base != 10) {
    text.remove_prefix(2);
  } else if (text.size() > 1 && text.front() == '0') {
    base = 8;
  }
  std::string digits;
  for (char c : text)
    if (c != '_') digits += c;
  std::uint64_t value = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc{} || end != digits.data() + digits.size() || digits.empty()) return {};
  if (!negative) {
    if (value <= INT64_MAX) return static_cast<std::int64_t>(value);
    return value;
  }
  if (value > static_cast<std::uint64_t>(INT64_MAX) + 1) return {};
  return static_cast<std::int64_t>(~value + 1);
}

std::optional<json::value> read_float(std::string_view text) {
  // [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?
  bool has_digit = false;
  bool has_dot = false;
  std::size_t i = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  std::size_t start = text.starts_with('+') ? 1 : 0;
  for (; i < text.size(); ++i) {
    char c = text[i];
    if (c >= '0' && c <= '9') {
      has_digit = true;
    } else if (c == '.' && !has_dot) {
      has_dot = true;
    } else if ((c == 'e' || c == 'E') && has_digit) {
      break;
    } else {
      return {};
    }
  }
  if (!has_digit) return {};
  double value = 0;
  auto [end, error] = std::from_chars(text.data() + start, text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value)) return {};
  return value;
}

bool may_be_plain(std::string_view text) {
  static constexpr std::string_view kIndicators = "-?:,[]{}#&*!|>'\"%@`=<~";
  if (text.empty() || kIndicators.find(text.front()) != std::string_view::npos) return false;
  if (text.front() == ' ' || text.back() == ' ' || text.back() == ':') return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto c = static_cast<unsigned char>(text[i]);
    if (c < 0x20 || c >= 0x7f) return false;
    if (c == '#' && text[i - 1] == ' ') return false;
    if (c == ':' && i + 1 < text.size() && text[i + 1] == ' ') return false;
  }
  return !text.starts_with("...");
}

// JSON's escapes are also those of a double-quoted YAML scalar.
std::string scalar_text(std::string_view text) {
  if (may_be_plain(text) && resolve_plain_scalar(text).is_string()) return std::string(text);
  return json::serialize(json::string(text));
}

std::string decimal_text(double value) {
  std::array<char, 32> buffer;
  auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  std::string text(buffer.data(), end);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

class Emitter {
 public:
  std::string text;

  // `inline_start`: the first line continues after "- ".
  void block(const json::value& value, int indent, bool inline_start) {
    if (const auto* object = value.if_object(); object && !object->empty()) {
      bool first = inline_start;
      for (const auto& [key, member] : *object) {
        start_line(indent, first);
        this->key(key, indent);
        entry(member, indent);
        first = false;
      }
    } else if (const auto* array = value.if_array(); array && !array->empty()) {
      bool first = inline_start;
      for (const auto& item : *array) {
        start_line(indent, first);
        text += '-';
        if (is_block(item)) {
          text += ' ';
          block(item, indent + 2, true);
        } else {
          leaf(item);
        }
        first = false;
      }
    } else {
      start_line(indent, inline_start);
      text += leaf_text(value);
      text += '\n';
    }
  }

 private:
  static bool is_block(const json::value& value) {
    return (value.is_object() && !value.get_object().empty()) ||
           (value.is_array() && !value.get_array().empty());
  }
  void start_line(int indent, bool inlined) {
    if (!inlined) text.append(static_cast<std::size_t>(indent), ' ');
  }
  void key(std::string_view name, int indent) {
    const std::string scalar = scalar_text(name);
    if (scalar.size() <= kLongestImplicitKey) {
      text += scalar;
    } else {
      text += "? " + scalar + '\n';
      start_line(indent, false);
    }
    text += ':';
  }
  void entry(const json::value& member, int indent) {
    if (!is_block(member)) return leaf(member);
    text += '\n';
    block(member, member.is_array() ? indent : indent + 2, false);
  }
  void leaf(const json::value& value) {
    text += ' ';
    text += leaf_text(value);
    text += '\n';
  }
  static std::string leaf_text(const json::value& value) {
    if (value.is_double()) return decimal_text(value.get_double());
    return value.is_string() ? scalar_text(value.get_string()) : json::serialize(value);
  }
};

}  // namespace

json::value resolve_plain_scalar(std::string_view text) {
  if (text.empty() || is_one_of(text, {"~", "null", "Null", "NULL"})) return nullptr;
  if (is_one_of(text, {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"}))
    return true;
  if (is_one_of(text, {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"}))
    return false;
  char first = text.front();
  if ((first >= '0' && first <= '9') || first == '-' || first == '+' || first == '.') {
    if (auto integer = read_integer(text)) return *integer;
    if (auto real = read_float(text)) return *real;
  }
  return json::string(text);
}

std::string to_yaml(const json::value& value) {
  Emitter emitter;
  emitter.block(value, 0, false);
  return std::move(emitter.text);
}

}  // namespace mesh::config
