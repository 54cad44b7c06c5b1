#include "config/fields.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <cmath>

namespace mesh::config {
namespace {

namespace json = boost::json;

std::string folded(std::string_view name) {
  std::string text;
  for (char c : name) {
    if (c == '_' || c == '-') continue;
    text += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  }
  return text;
}

bool is_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool is_label_word(std::string_view text) {
  return !text.empty() && text.size() <= 63 && is_letter_or_digit(text.front()) &&
         is_letter_or_digit(text.back()) && std::ranges::all_of(text, [](char c) {
           return is_letter_or_digit(c) || c == '-' || c == '_' || c == '.';
         });
}

// Lower case; each of its parts as a word of a host's name.
bool is_dns_subdomain(std::string_view text) {
  if (text.size() > 253) return false;
  for (;;) {
    const std::string_view part = text.substr(0, text.find('.'));
    const bool is_word = is_label_word(part) && std::ranges::none_of(part, [](char c) {
                           return c == '_' || (c >= 'A' && c <= 'Z');
                         });
    if (!is_word) return false;
    if (part.size() == text.size()) return true;
    text.remove_prefix(part.size() + 1);
  }
}

std::size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      std::size_t change = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

// The default of its type, which the API takes for "not set".
bool is_default(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::int64:
      return value.get_int64() == 0;
    case json::kind::uint64:
      return value.get_uint64() == 0;
    case json::kind::double_:
      return value.get_double() == 0;
    case json::kind::string:
      return value.get_string().empty();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return false;
  }
  return false;
}

std::optional<double> unit_nanoseconds(std::string_view unit) {
  if (unit == "ns") return 1;
  if (unit == "us" || unit == "\u00b5s" || unit == "\u03bcs") return 1e3;
  if (unit == "ms") return 1e6;
  if (unit == "s") return 1e9;
  if (unit == "m") return 60e9;
  if (unit == "h") return 3600e9;
  return {};
}

}  // namespace

void Report::add(Problem::Severity severity, std::string_view path, std::string message) {
  int line = 0;
  for (std::string_view at = path;; at = parent_path(at)) {
    auto known = object_.lines.find(std::string(at));
    if (known != object_.lines.end()) line = known->second;
    if (line != 0 || at.empty()) break;
  }
  problems_.push_back(
      {severity, object_.key, object_.file, line, std::string(path), std::move(message)});
}

void Report::error(std::string_view path, std::string message) {
  ++errors_;
  add(Problem::Severity::kError, path, std::move(message));
}

void Report::warn(std::string_view path, std::string message) {
  add(Problem::Severity::kWarning, path, std::move(message));
}

Fields::Fields(Report& report, const json::object& object, std::string path, Schema schema,
               Strictness strictness)
    : report_(&report), object_(&object), path_(std::move(path)), strictness_(strictness) {
  if (strictness_ == Strictness::kStrict) check_names(schema);
}

void Fields::check_names(Schema schema) const {
  for (const auto& [key, value] : *object_) {
    auto field = std::find_if(schema.begin(), schema.end(),
                              [&](const Field& f) { return f.name == std::string_view(key); });
    if (field == schema.end()) {
      std::vector<std::string_view> names;
      for (const Field& f : schema) names.push_back(f.name);
      std::string_view meant = closest(key, names);
      error(key, meant.empty() ? "unknown field"
                               : "unknown field (did you mean " + std::string(meant) + "?)");
    } else if (!field->supported && !is_default(value) &&
               !(field->harmless && field->harmless(value))) {
      error(key, "not supported yet; " +
                     std::string(field->remedy.empty() ? "remove the field" : field->remedy));
    }
  }
}

void Fields::error(std::string_view name, std::string message) const {
  report_->error(name.empty() ? path_ : path(name), std::move(message));
}

void Fields::warn(std::string_view name, std::string message) const {
  report_->warn(name.empty() ? path_ : path(name), std::move(message));
}

const json::value* Fields::find(std::string_view name) const {
  const json::value* value = object_->if_contains(name);
  return value && !value->is_null() ? value : nullptr;
}

bool Fields::is_set(std::string_view name) const {
  const json::value* value = find(name);
  return value && !is_default(*value);
}

bool Fields::is_empty() const {
  return std::all_of(object_->begin(), object_->end(),
                     [](const auto& member) { return is_default(member.value()); });
}

std::optional<std::string> Fields::text(std::string_view name) const {
  const json::value* value = find(name);
  if (!value) return {};
  if (value->is_string()) return std::string(value->get_string());
  error(name, "must be a string, not " + described(*value) +
                  (value->is_structured() ? "" : "; write it in quotes"));
  return {};
}

std::optional<std::string> Fields::required_text(std::string_view name) const {
  const json::value* value = find(name);
  if (!value || (value->is_string() && value->get_string().empty())) {
    error(name, "is required");
    return {};
  }
  return text(name);
}

std::optional<std::int64_t> Fields::number(std::string_view name, std::int64_t least,
                                           std::int64_t most) const {
  const json::value* value = find(name);
  if (!value) return {};
  std::optional<std::int64_t> number;
  if (value->is_int64()) number = value->get_int64();
  if (value->is_double() && std::trunc(value->get_double()) == value->get_double() &&
      std::abs(value->get_double()) < 1e15)
    number = static_cast<std::int64_t>(value->get_double());
  if (number && *number >= least && *number <= most) return number;
  error(name, "must be a whole number from " + std::to_string(least) + " to " +
                  std::to_string(most) + ", not " + described(*value));
  return {};
}

std::optional<double> Fields::decimal(std::string_view name, double least, double most) const {
  const json::value* value = find(name);
  if (!value) return {};
  if (value->is_number()) {
    double number = value->to_number<double>();
    if (number >= least && number <= most) return number;
  }
  error(name, "must be a number from " + json::serialize(json::value(std::int64_t(least))) +
                  " to " + json::serialize(json::value(std::int64_t(most))) + ", not " +
                  described(*value));
  return {};
}

std::optional<bool> Fields::flag(std::string_view name) const {
  const json::value* value = find(name);
  if (!value) return {};
  if (value->is_bool()) return value->get_bool();
  error(name, "must be true or false, not " + described(*value));
  return {};
}

std::optional<Milliseconds> Fields::duration(std::string_view name, Milliseconds least) const {
  auto given = text(name);
  if (!given) return {};
  auto exact = parse_go_duration(*given);
  if (!exact) {
    error(name, "must be a duration such as 1.5s, 100ms or 1h, not '" + *given + "'");
    return {};
  }
  auto whole = std::chrono::duration_cast<Milliseconds>(*exact);
  if (whole != *exact) {
    error(name, "must be whole milliseconds, not '" + *given + "'");
  } else if (whole < least || whole > ConnectionPool::kNever) {
    error(name,
          "must be from " + std::to_string(least.count()) + "ms to 87600h, not '" + *given + "'");
  } else {
    return whole;
  }
  return {};
}

Labels Fields::labels(std::string_view name) const {
  Labels labels = annotations(name);
  for (auto at = labels.begin(); at != labels.end();) {
    std::string fault = fault_of_label_key(at->first);
    if (fault.empty()) fault = fault_of_label_value(at->second);
    if (!fault.empty()) report_->error(path_of_key(path(name), at->first), fault);
    at = fault.empty() ? std::next(at) : labels.erase(at);
  }
  return labels;
}

Labels Fields::annotations(std::string_view name) const {
  Labels labels;
  each_entry(name, [&](std::string_view key, const json::value& value, const std::string& at) {
    if (value.is_string())
      labels.emplace(key, value.get_string());
    else
      report_->error(at, "must be a string, not " + described(value) +
                             (value.is_structured() ? "" : "; write it in quotes"));
  });
  return labels;
}

std::vector<std::string> Fields::texts(std::string_view name) const {
  std::vector<std::string> texts;
  const json::value* value = find(name);
  if (!value) return texts;
  if (!value->is_array()) {
    error(name, "must be a list of strings, not " + described(*value));
    return texts;
  }
  for (const json::value& item : value->get_array()) {
    if (item.is_string()) {
      texts.emplace_back(item.get_string());
      continue;
    }
    auto index = static_cast<std::size_t>(&item - value->get_array().data());
    report_->error(path_of_item(path(name), index),
                   "must be a string, not " + described(item) +
                       (item.is_structured() ? "" : "; write it in quotes"));
  }
  return texts;
}

bool Fields::is_object(std::string_view name, const json::value& value) const {
  if (value.is_object()) return true;
  error(name, "must be an object with fields of its own, not " + described(value));
  return false;
}

std::optional<Fields> Fields::message(std::string_view name, Schema schema) const {
  const json::value* value = find(name);
  if (!value || !is_object(name, *value)) return {};
  return Fields(*report_, value->get_object(), path(name), schema, strictness_);
}

std::optional<Fields> Fields::lenient_message(std::string_view name) const {
  const json::value* value = find(name);
  if (!value || !is_object(name, *value)) return {};
  return Fields(*report_, value->get_object(), path(name), {}, Strictness::kLenient);
}

std::vector<Fields> Fields::messages(std::string_view name, Schema schema) const {
  std::vector<Fields> messages;
  const json::value* value = find(name);
  if (!value) return messages;
  if (!value->is_array()) {
    error(name, "must be a list, not " + described(*value));
    return messages;
  }
  std::string list_path = path(name);
  std::size_t index = 0;
  for (const json::value& item : value->get_array()) {
    std::string item_path = path_of_item(list_path, index++);
    if (item.is_object())
      messages.emplace_back(*report_, item.get_object(), std::move(item_path), schema, strictness_);
    else
      report_->error(item_path, "must be an object with fields of its own, not " + described(item));
  }
  return messages;
}

std::string fault_of_label_key(std::string_view key) {
  const std::size_t slash = key.find('/');
  const bool has_prefix = slash != std::string_view::npos;
  if ((!has_prefix || is_dns_subdomain(key.substr(0, slash))) &&
      is_label_word(has_prefix ? key.substr(slash + 1) : key))
    return {};
  return "'" + std::string(key) +
         "' is no key of a label: at most 63 letters, digits, '-', '_' and '.', with a letter or "
         "digit first and last, and before it perhaps a DNS name and '/'";
}

std::string fault_of_label_value(std::string_view value) {
  if (value.empty() || is_label_word(value)) return {};
  return "'" + std::string(value) +
         "' is no value of a label: it may be empty, or at most 63 letters, digits, '-', '_' and "
         "'.', with a letter or digit first and last";
}

std::string described(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "nothing";
    case json::kind::bool_:
      return json::serialize(value) + " (a boolean)";
    case json::kind::object:
      return "an object";
    case json::kind::array:
      return "a list";
    case json::kind::string:
      return "'" + std::string(value.get_string().subview(0, 64)) + "'";
    default:
      return json::serialize(value) + " (a number)";
  }
}

std::string_view closest(std::string_view name, const std::vector<std::string_view>& names) {
  std::string_view best;
  std::size_t fewest = 3;
  if (name.size() > 64) return best;
  std::string wanted = folded(name);
  for (std::string_view candidate : names) {
    std::size_t distance = edits(wanted, folded(candidate));
    if (distance < fewest && distance < candidate.size() / 2 + 1) {
      fewest = distance;
      best = candidate;
    }
  }
  return best;
}

std::optional<std::chrono::nanoseconds> parse_go_duration(std::string_view text) {
  bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text == "0") return std::chrono::nanoseconds(0);
  if (text.empty()) return {};
  double sum = 0;
  while (!text.empty()) {
    std::string_view digits = text.substr(0, text.find_first_not_of("0123456789."));
    const char* digits_end = digits.data() + digits.size();
    double amount = 0;
    auto [end, error] =
        std::from_chars(digits.data(), digits_end, amount, std::chars_format::fixed);
    if (error != std::errc{} || end != digits_end) return {};
    text.remove_prefix(digits.size());
    std::size_t letters = std::min(text.find_first_of("0123456789."), text.size());
    auto unit = unit_nanoseconds(text.substr(0, letters));
    if (!unit) return {};
    sum += amount * *unit;
    text.remove_prefix(letters);
  }
  if (sum > 9.2e18) return {};
  auto nanoseconds = std::chrono::nanoseconds(std::llround(sum));
  return negative ? -nanoseconds : nanoseconds;
}

}  // namespace mesh::config
