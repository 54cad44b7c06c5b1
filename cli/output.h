// What people and scripts read: aligned tables, JSON, YAML, ages. Pure.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "environment.h"

namespace mesh::cli {

// Columns aligned by their widest cell, three spaces apart, no trailing space; an empty cell is
// printed as "-" (empty columns stay readable, and awk counts them).
class Table {
 public:
  explicit Table(std::vector<std::string> columns) : columns_(std::move(columns)) {}
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  bool empty() const { return rows_.empty(); }
  std::string to_string() const;

 private:
  std::vector<std::string> columns_;
  std::vector<std::vector<std::string>> rows_;
};

std::string pretty_json(const boost::json::value& value);  // two spaces, final newline
// The value as JSON or YAML text. Not for kTable.
std::string render(Format format, const boost::json::value& value);

std::string age(std::chrono::seconds span);  // "12s", "3m20s", "5h", "2d", as kubectl
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::string cell(const boost::json::value& value);  // a JSON value in one table cell
// The cell of a member; empty where there is none.
std::string text_in(const boost::json::object& row, std::string_view member);

// Seconds since the epoch of "2026-01-02T03:04:05Z" (fractions are dropped); 0 when it is none.
std::int64_t parse_time(std::string_view rfc3339);

}  // namespace mesh::cli
