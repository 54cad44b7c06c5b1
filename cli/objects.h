// apply, delete, get, describe and validate: objects from files to meshd and back.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "config/object.h"
#include "environment.h"

namespace mesh::cli {

// The files behind the arguments of -f: a file, a directory (its *.yaml, *.yml and *.json, below it
// too, sorted), or "-" (standard input).
Result<std::vector<std::string>> list_files(const std::vector<std::string>& arguments);

struct Selection {
  std::string kind;
  std::string name;  // empty: all
  std::string ns = "default";
  bool all_namespaces = false;
};

Result<int> apply(const Environment& environment, const std::vector<std::string>& files,
                  bool dry_run);
Result<int> delete_files(const Environment& environment, const std::vector<std::string>& files);
Result<int> delete_object(const Environment& environment, const Selection& selection);
Result<int> get(const Environment& environment, const Selection& selection, Format format);
Result<int> describe(const Environment& environment, const Selection& selection);
Result<int> validate(const std::vector<std::string>& files);

}  // namespace mesh::cli
