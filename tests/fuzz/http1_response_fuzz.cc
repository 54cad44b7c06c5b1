// Responses as an upstream may send them, to GET and to HEAD (tests/fuzz/http1_invariants.h).
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/http1_invariants.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  for (const auto request : {mesh::http::Method::get, mesh::http::Method::head}) {
    const auto verdict = mesh::http::check_responses(input, request);
    if (!verdict.broken.empty()) {
      std::fprintf(stderr, "broken: %s\n", verdict.broken.c_str());
      std::abort();
    }
  }
  return 0;
}
