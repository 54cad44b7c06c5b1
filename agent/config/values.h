// The small values that configuration is made of: names, labels, matches of text.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

namespace re2 {
class RE2;
}

namespace mesh::config {

using Labels = std::map<std::string, std::string>;

// Whether all of `wanted` are among `labels`.
bool has_labels(const Labels& labels, const Labels& wanted);

// Maps by string that are searched with a string_view and no allocation.
struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>{}(text);
  }
};
template <class T>
using StringMap = std::unordered_map<std::string, T, StringHash, std::equal_to<>>;

struct ObjectName {
  std::string ns;
  std::string name;
  std::string to_string() const { return ns + "/" + name; }
  friend auto operator<=>(const ObjectName&, const ObjectName&) = default;
};

struct StringMatch {
  enum class Kind : std::uint8_t { kPresent, kExact, kPrefix, kRegex, kSuffix };
  Kind kind = Kind::kPresent;
  std::string value;
  bool ignore_case = false;               // ignoreUriCase; exact and prefix only
  std::shared_ptr<const re2::RE2> regex;  // full match

  bool matches(std::string_view text) const;
  friend bool operator==(const StringMatch& a, const StringMatch& b) {
    return a.kind == b.kind && a.value == b.value && a.ignore_case == b.ignore_case;
  }
};

enum class Transport : std::uint8_t { kTcp, kUdp };

}  // namespace mesh::config
