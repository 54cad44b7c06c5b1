// Requests as a client may send them: nothing crashes, and what is accepted reaches the upstream as
// the same request (tests/fuzz/http1_invariants.h).
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/http1_invariants.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto verdict = mesh::http::check_requests(input);
  if (!verdict.broken.empty()) {
    std::fprintf(stderr, "broken: %s\n", verdict.broken.c_str());
    std::abort();
  }
  return 0;
}
