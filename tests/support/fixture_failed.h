// Set-up failures end the test process with a message: a fixture that half works hides bugs.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace mesh::test {

[[noreturn]] inline void fixture_failed(const std::string& what) {
  std::fprintf(stderr, "fixture: %s: %s\n", what.c_str(), std::strerror(errno));
  std::abort();
}

}  // namespace mesh::test
