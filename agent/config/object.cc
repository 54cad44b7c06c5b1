#include "config/object.h"

#include <algorithm>

namespace mesh::config {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxBytes = 1u << 20;

Error invalid(std::string message) { return {Errc::invalid_argument, std::move(message)}; }

// Depth within bounds; adds up the bytes.
bool measure(const json::value& value, std::size_t depth, std::size_t& bytes) {
  bytes += 8;
  if (depth > kMaxDepth || bytes > kMaxBytes) return false;
  if (const auto* text = value.if_string()) bytes += text->size();
  if (const auto* array = value.if_array())
    for (const auto& item : *array)
      if (!measure(item, depth + 1, bytes)) return false;
  if (const auto* object = value.if_object())
    for (const auto& [key, member] : *object) {
      bytes += key.size();
      if (!measure(member, depth + 1, bytes)) return false;
    }
  return bytes <= kMaxBytes;
}

bool is_alphanumeric(char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); }

// DNS labels, lower case, joined by dots: no path of a file can hide in one.
bool is_dns_name(std::string_view name, std::size_t limit) {
  if (name.empty() || name.size() > limit) return false;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (is_alphanumeric(name[i])) continue;
    bool inside = i > 0 && i + 1 < name.size();
    if (!inside || (name[i] != '-' && name[i] != '.')) return false;
    if (name[i] == '.' && (!is_alphanumeric(name[i - 1]) || !is_alphanumeric(name[i + 1])))
      return false;
  }
  return true;
}

Result<std::string> text_of(const json::object& object, std::string_view name,
                            std::string_view path) {
  const json::value* value = object.if_contains(name);
  if (!value || value->is_null()) return std::string();
  if (!value->is_string()) return invalid(std::string(path) + ": must be a string");
  return std::string(value->get_string());
}

bool is_kind(std::string_view kind) {
  return !kind.empty() && kind.size() <= 63 && kind.front() >= 'A' && kind.front() <= 'Z' &&
         std::all_of(kind.begin(), kind.end(), [](char c) {
           return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
         });
}

}  // namespace

std::string ObjectKey::to_string() const {
  return ns.empty() ? kind + " " + name : kind + " " + ns + "/" + name;
}

bool is_policy(const ObjectKey& key) {
  return key.kind == "AuthorizationPolicy" || key.kind == "NetworkPolicy";
}

std::string Problem::to_string() const {
  std::string text = file;
  if (!file.empty() && line > 0) text += ":" + std::to_string(line);
  if (!text.empty()) text += ": ";
  if (!object.kind.empty()) text += object.to_string() + ": ";
  if (!field.empty()) text += field + ": ";
  return text + message;
}

Result<Object> make_object(json::object tree, std::string file, std::map<std::string, int> lines) {
  std::size_t bytes = 0;
  if (!measure(tree, 0, bytes)) return invalid("an object larger than 1 MiB, or deeper than 64");
  Object object;
  MESH_TRY(object.api_version, text_of(tree, "apiVersion", "apiVersion"));
  MESH_TRY(object.key.kind, text_of(tree, "kind", "kind"));
  if (object.api_version.empty()) return invalid("apiVersion: is required");
  if (object.key.kind.empty()) return invalid("kind: is required");
  if (!is_kind(object.key.kind)) return invalid("kind: not the name of a kind");
  const json::value* metadata = tree.if_contains("metadata");
  if (!metadata || !metadata->is_object()) return invalid("metadata: is required");
  MESH_TRY(object.key.name, text_of(metadata->get_object(), "name", "metadata.name"));
  MESH_TRY(object.key.ns, text_of(metadata->get_object(), "namespace", "metadata.namespace"));
  if (object.key.name.empty()) return invalid("metadata.name: is required");
  if (!is_dns_name(object.key.name, 253))
    return invalid("metadata.name: must be lower-case letters, digits, '-' and '.', at most 253");
  if (object.key.kind == "Namespace") {
    object.key.ns.clear();
  } else if (object.key.ns.empty()) {
    object.key.ns = "default";
  } else if (!is_dns_name(object.key.ns, 63) || object.key.ns.find('.') != std::string::npos) {
    return invalid("metadata.namespace: must be lower-case letters, digits and '-', at most 63");
  }
  object.tree = std::move(tree);
  object.file = std::move(file);
  object.lines = std::move(lines);
  return object;
}

}  // namespace mesh::config
