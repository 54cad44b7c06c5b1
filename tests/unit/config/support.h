// What the tests of config share: objects from text, problems as text.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "config/object.h"

namespace mesh::config {

inline std::vector<ObjectPtr> objects_of(std::string_view text, std::string_view file = "t.yaml") {
  std::vector<ObjectPtr> objects;
  auto parsed = parse_objects(text, file);
  EXPECT_TRUE(parsed.has_value()) << (parsed ? "" : parsed.error().message) << "\n" << text;
  if (!parsed) return objects;
  for (Object& object : parsed.value())
    objects.push_back(std::make_shared<const Object>(std::move(object)));
  return objects;
}

inline std::vector<std::string> texts_of(const std::vector<Problem>& problems) {
  std::vector<std::string> texts;
  for (const Problem& problem : problems)
    texts.push_back((problem.severity == Problem::Severity::kError ? "error " : "warning ") +
                    problem.to_string());
  return texts;
}

inline Compiled compile_text(std::string_view text, const CompileOptions& options = {}) {
  return compile(objects_of(text), 1, options);
}

// Problems of the first object by itself.
inline std::vector<std::string> validate_text(std::string_view text) {
  auto objects = objects_of(text);
  if (objects.empty()) return {"no object"};
  return texts_of(validate(*objects.front()));
}

inline std::string error_of(std::string_view text) {
  auto parsed = parse_objects(text, "t.yaml");
  return parsed ? "accepted" : parsed.error().message;
}

}  // namespace mesh::config
