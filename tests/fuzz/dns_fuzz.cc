// Any bytes, as a query of an application and as the answer of its resolver.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/dns_invariants.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mesh::dns::check_message({data, size});
  return 0;
}
