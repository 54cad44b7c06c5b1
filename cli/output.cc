#include "output.h"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "config/yaml.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;

std::size_t width_of(std::string_view text) {  // code points; names are ASCII, paths may not be
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

void write_pretty(const json::value& value, std::string& out, std::size_t depth) {
  auto line = [&](std::size_t indent) {
    out += '\n';
    out.append(indent * 2, ' ');
  };
  if (const auto* object = value.if_object(); object && !object->empty()) {
    out += '{';
    bool first = true;
    for (const auto& [name, member] : *object) {
      if (!std::exchange(first, false)) out += ',';
      line(depth + 1);
      out += json::serialize(name) + ": ";
      write_pretty(member, out, depth + 1);
    }
    line(depth);
    out += '}';
  } else if (const auto* array = value.if_array(); array && !array->empty()) {
    out += '[';
    bool first = true;
    for (const json::value& item : *array) {
      if (!std::exchange(first, false)) out += ',';
      line(depth + 1);
      write_pretty(item, out, depth + 1);
    }
    line(depth);
    out += ']';
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

std::string Table::to_string() const {
  std::vector<std::size_t> widths;
  for (const auto& column : columns_) widths.push_back(width_of(column));
  for (const auto& row : rows_)
    for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i)
      widths[i] = std::max(widths[i], std::max<std::size_t>(1, width_of(row[i])));
  std::string out;
  auto write = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (std::size_t i = 0; i < widths.size(); ++i) {
      std::string text = i < cells.size() && !cells[i].empty() ? cells[i] : "-";
      line += text;
      if (i + 1 < widths.size()) line.append(widths[i] - width_of(text) + 3, ' ');
    }
    out += line + "\n";
  };
  write(columns_);
  for (const auto& row : rows_) write(row);
  return out;
}

std::string pretty_json(const json::value& value) {
  std::string out;
  write_pretty(value, out, 0);
  return out + "\n";
}

std::string render(Format format, const json::value& value) {
  if (format == Format::kYaml) return config::to_yaml(value);
  return pretty_json(value);
}

std::string age(std::chrono::seconds span) {
  auto total = std::max<std::int64_t>(0, span.count());
  auto days = total / 86400, hours = total / 3600, minutes = total / 60;
  auto text = [](std::int64_t n, const char* unit) { return std::to_string(n) + unit; };
  if (days >= 3) return text(days, "d");
  if (hours >= 10) return text(hours, "h");
  if (hours >= 1)
    return text(hours, "h") + (minutes % 60 != 0 ? text(minutes % 60, "m") : std::string());
  if (minutes >= 10) return text(minutes, "m");
  if (minutes >= 2)
    return text(minutes, "m") + (total % 60 != 0 ? text(total % 60, "s") : std::string());
  return text(total, "s");
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (const auto& part : parts) {
    if (!out.empty()) out += separator;
    out += part;
  }
  return out;
}

std::string cell(const json::value& value) {
  if (value.is_null()) return "";
  if (const auto* text = value.if_string()) return {text->data(), text->size()};
  if (const auto* list = value.if_array()) {
    std::vector<std::string> parts;
    for (const json::value& item : *list) parts.push_back(cell(item));
    return join(parts, ",");
  }
  if (const auto* object = value.if_object()) {
    std::vector<std::string> parts;
    for (const auto& [name, item] : *object) parts.push_back(std::string(name) + "=" + cell(item));
    return join(parts, ",");
  }
  return json::serialize(value);
}

std::string text_in(const json::object& row, std::string_view member) {
  const json::value* value = row.if_contains(member);
  return value ? cell(*value) : std::string();
}

std::int64_t parse_time(std::string_view rfc3339) {
  std::tm t{};
  std::string text(rfc3339.substr(0, 19));
  if (std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%2d", &t.tm_year, &t.tm_mon, &t.tm_mday,
                  &t.tm_hour, &t.tm_min, &t.tm_sec) != 6)
    return 0;
  t.tm_year -= 1900;
  t.tm_mon -= 1;
  return ::timegm(&t);
}

}  // namespace mesh::cli
