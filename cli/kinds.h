// The kinds of objects as people name them ("vs", "virtualservices", "VirtualService") and as
// kubectl prints them ("virtualservice.networking.istio.io/reviews"). Pure.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mesh::cli {

struct Kind {
  std::string_view kind;
  std::string_view group;  // "" for core/v1
  std::string_view plural;
  std::vector<std::string_view> shorts;
  std::vector<std::string_view> columns;  // between NAME and AGE
  std::vector<std::string> (*cells)(const boost::json::object& tree);
};

std::span<const Kind> kinds();
const Kind* find_kind(std::string_view name);          // any case, singular, plural or short
Result<const Kind*> need_kind(std::string_view name);  // with the list of kinds in the error
// "svc,vs" -> Service, VirtualService; "all" -> "", which the API takes for every kind.
Result<std::vector<std::string>> need_kinds(std::string_view names);
std::string display_name(std::string_view kind, std::string_view api_version,
                         std::string_view name);

// The member at a JSON pointer ("/spec/hosts"), as text; "" when there is none.
std::string text_at(const boost::json::object& tree, std::string_view pointer);
const boost::json::value* value_at(const boost::json::object& tree, std::string_view pointer);

}  // namespace mesh::cli
