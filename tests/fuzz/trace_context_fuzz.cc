// Trace fields as a client may send them: what goes upstream is well-formed and consistent.
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/trace_context_invariants.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto fields = mesh::telemetry::trace_fields(input);
  mesh::Random random(size);
  const mesh::telemetry::TraceContext context(fields, random, size % 2 == 0);
  const auto broken = mesh::telemetry::check_trace_context(fields, context);
  if (!broken.empty()) {
    std::fprintf(stderr, "broken: %s\n", broken.c_str());
    std::abort();
  }
  return 0;
}
