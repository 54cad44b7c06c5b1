// status, tap, config dump and version: what runs and what happens.
#pragma once

#include <string>

#include "base/result.h"
#include "environment.h"

namespace mesh::cli {

Result<int> status(const Environment& environment, Format format);

struct TapOptions {
  std::string source, destination, status;  // filters; empty: all
  std::uint64_t count = 0;                  // end after so many; 0: never
};
Result<int> tap(const Environment& environment, const TapOptions& options, Format format);

Result<int> dump(const Environment& environment, const std::string& what, Format format);
Result<int> version(const Environment& environment, const std::string& own, Format format);

}  // namespace mesh::cli
