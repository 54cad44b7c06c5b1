// Fields: one message of an object's spec, read by name and checked against its table of fields.
//
// A table names every field that the API defines for the message: those that are read, and those
// that are not supported yet. Opening a message reports every key that is unknown, or not supported
// and set to more than its default. A null value is an absent one, as in the API itself. Getters
// report a value of the wrong type or out of range and answer as if it were absent; the caller goes
// on, so one pass reports every error of an object. Values that borrow the tree.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "config/object.h"
#include "config/path.h"

namespace mesh::config {

// The problems of one object.
class Report {
 public:
  Report(const Object& object, std::vector<Problem>& problems)
      : object_(object), problems_(problems) {}

  void error(std::string_view path, std::string message);
  void warn(std::string_view path, std::string message);
  std::size_t errors() const { return errors_; }
  bool failed() const { return errors_ != 0; }
  const Object& object() const { return object_; }

 private:
  void add(Problem::Severity severity, std::string_view path, std::string message);

  const Object& object_;
  std::vector<Problem>& problems_;
  std::size_t errors_ = 0;
};

struct Field {
  std::string_view name;
  bool supported = true;
  // Values of an unsupported field that mean what happens anyway.
  bool (*harmless)(const boost::json::value&) = nullptr;
  std::string_view remedy = {};
};
using Schema = std::span<const Field>;

constexpr Field later(std::string_view name, std::string_view remedy = {}) {
  return {name, false, nullptr, remedy};
}
constexpr Field unless(std::string_view name, bool (*harmless)(const boost::json::value&),
                       std::string_view remedy = {}) {
  return {name, false, harmless, remedy};
}

enum class Strictness : std::uint8_t { kStrict, kLenient };  // lenient: core kinds of Kubernetes

class Fields {
 public:
  Fields(Report& report, const boost::json::object& object, std::string path, Schema schema,
         Strictness strictness = Strictness::kStrict);

  const std::string& path() const { return path_; }
  std::string path(std::string_view name) const { return path_of_key(path_, name); }
  Report& report() const { return *report_; }
  void error(std::string_view name, std::string message) const;
  void warn(std::string_view name, std::string message) const;

  const boost::json::value* find(std::string_view name) const;  // null: absent
  bool has(std::string_view name) const { return find(name) != nullptr; }
  bool is_set(std::string_view name) const;  // to more than the default of its type
  bool is_empty() const;                     // no field is set, known or not

  std::optional<std::string> text(std::string_view name) const;
  std::optional<std::string> required_text(std::string_view name) const;
  std::optional<std::int64_t> number(std::string_view name, std::int64_t least,
                                     std::int64_t most) const;
  std::optional<double> decimal(std::string_view name, double least, double most) const;
  std::optional<bool> flag(std::string_view name) const;
  // Go's form: "1h2m", "1.5s", "100ms"; whole milliseconds.
  std::optional<Milliseconds> duration(std::string_view name, Milliseconds least) const;
  // Keys and values of labels, as Kubernetes takes them; others are reported, and not in it.
  Labels labels(std::string_view name) const;
  Labels annotations(std::string_view name) const;  // any text
  std::vector<std::string> texts(std::string_view name) const;
  std::optional<std::uint16_t> port(std::string_view name) const {
    auto value = number(name, 1, 65535);
    if (!value) return {};
    return static_cast<std::uint16_t>(*value);
  }

  std::optional<Fields> message(std::string_view name, Schema schema) const;
  std::vector<Fields> messages(std::string_view name, Schema schema) const;
  std::optional<Fields> lenient_message(std::string_view name) const;  // a map, read by key
  // A map whose values the caller reads: (key, value, path).
  template <class Read>
  void each_entry(std::string_view name, Read read) const {
    const boost::json::value* value = find(name);
    if (!value || !is_object(name, *value)) return;
    std::string map_path = path(name);
    for (const auto& [key, entry] : value->get_object())
      read(std::string_view(key), entry, path_of_key(map_path, key));
  }

 private:
  bool is_object(std::string_view name, const boost::json::value& value) const;
  void check_names(Schema schema) const;

  Report* report_;
  const boost::json::object* object_;
  std::string path_;
  Strictness strictness_;
};

// "80 (a number)", for messages.
std::string described(const boost::json::value& value);
// What Kubernetes has against a label's key or value, and what one must be; "": nothing.
std::string fault_of_label_key(std::string_view key);
std::string fault_of_label_value(std::string_view value);
// The closest of `names` within two edits; empty when none is close.
std::string_view closest(std::string_view name, const std::vector<std::string_view>& names);
std::optional<std::chrono::nanoseconds> parse_go_duration(std::string_view text);

}  // namespace mesh::config
