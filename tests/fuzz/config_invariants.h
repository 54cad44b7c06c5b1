// What must hold for any text that is given as configuration. Shared by the fuzz target and by the
// unit test that runs its corpus.
#pragma once

#include <boost/json/serialize.hpp>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "config/object.h"
#include "config/yaml.h"

namespace mesh::config {

struct ConfigVerdict {
  bool parsed = false;
  bool accepted = false;  // parsed, and no object has an error
  std::string broken;     // the invariant that does not hold; empty: all do
};

inline std::string check_tree(const Object& object) {
  auto again = parse_objects(to_yaml(object.tree), "again");
  if (!again) return "its own YAML is refused: " + again.error().message;
  // A List inside a List becomes its items; everything else comes back as it was.
  if (again.value().size() != 1 ||
      boost::json::serialize(again.value()[0].tree) != boost::json::serialize(object.tree))
    return "its own YAML reads differently";
  return {};
}

inline ConfigVerdict check_config(std::string_view text) {
  ConfigVerdict verdict;
  auto parsed = parse_objects(text, "fuzz");
  if (!parsed) return verdict;
  verdict.parsed = true;
  std::map<ObjectKey, ObjectPtr> by_key;  // the last of a name counts, as in the store
  for (Object& object : parsed.value()) {
    if (auto broken = check_tree(object); !broken.empty()) {
      verdict.broken = broken;
      return verdict;
    }
    for (const Problem& problem : validate(object))
      if (problem.message.empty()) verdict.broken = "a problem without a message";
    const ObjectKey key = object.key;
    by_key[key] = std::make_shared<const Object>(std::move(object));
  }
  std::vector<ObjectPtr> objects;
  for (const auto& [key, object] : by_key) objects.push_back(object);
  Compiled first = compile(objects, 1, {});
  Compiled second = compile(objects, 2, {}, first.snapshot.get());
  verdict.accepted = first.refused.empty();
  if (first.snapshot->clusters != second.snapshot->clusters ||
      first.snapshot->virtual_services != second.snapshot->virtual_services ||
      first.snapshot->policies != second.snapshot->policies ||
      first.snapshot->network_policies != second.snapshot->network_policies)
    verdict.broken = "compiled twice, something is not shared";
  for (const ObjectKey& key : first.refused) {
    const auto denies = [&](const auto& policies) {
      for (const auto& policy : policies)
        if (policy->refused && policy->name == ObjectName{key.ns, key.name}) return true;
      return false;
    };
    if ((key.kind == "AuthorizationPolicy" && !denies(first.snapshot->policies)) ||
        (key.kind == "NetworkPolicy" && !denies(first.snapshot->network_policies)))
      verdict.broken = "a refused policy does not deny";
  }
  return verdict;
}

}  // namespace mesh::config
