// Counts what operator new hands out, and what of it is in use. Include it in exactly one file of a
// test binary.
#pragma once

#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace mesh::test {
inline std::atomic<std::size_t> allocations{0};
inline std::atomic<std::size_t> bytes_in_use{0};
}  // namespace mesh::test

void* operator new(std::size_t size) {
  ++mesh::test::allocations;
  void* p = std::malloc(size);
  if (p == nullptr) throw std::bad_alloc();
  mesh::test::bytes_in_use += ::malloc_usable_size(p);
  return p;
}
void operator delete(void* p) noexcept {
  mesh::test::bytes_in_use -= ::malloc_usable_size(p);
  std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }

namespace mesh::test {

// How often `work` allocates when it is run again and again.
template <class Work>
std::size_t count_allocations(Work&& work, int times = 100) {
  work();  // whatever grows to size does so now
  const std::size_t before = allocations;
  for (int i = 0; i < times; ++i) work();
  return allocations - before;
}

}  // namespace mesh::test
