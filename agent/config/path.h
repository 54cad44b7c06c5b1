// The path of a field in an object's tree: spec.http[0].match, metadata.labels["a.b/c"].
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

namespace mesh::config {

inline std::string path_of_item(std::string_view parent, std::size_t index) {
  return std::string(parent) + "[" + std::to_string(index) + "]";
}

inline std::string path_of_key(std::string_view parent, std::string_view key) {
  bool simple = !key.empty() && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
  std::string path(parent);
  if (simple) return path.empty() ? std::string(key) : path + "." + std::string(key);
  return path + "[\"" + std::string(key) + "\"]";
}

// "" for a path without a parent.
inline std::string_view parent_path(std::string_view path) {
  bool quoted = path.ends_with("\"]");
  std::size_t cut = quoted ? path.rfind("[\"") : path.find_last_of(".[");
  return cut == std::string_view::npos ? std::string_view() : path.substr(0, cut);
}

}  // namespace mesh::config
