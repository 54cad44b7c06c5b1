// FramePool: memory of coroutine frames, recycled per thread by size class.
//
// A frame that is freed on another thread than it was made on joins that thread's pool: allowed,
// not useful. Sanitizer builds go to the heap, so that a frame used after its end is seen.
#pragma once

#include <cstddef>

namespace mesh::net {

void* allocate_frame(std::size_t size);
void free_frame(void* frame, std::size_t size) noexcept;

// The base of promise types whose frames come from the pool.
struct PooledFrame {
  static void* operator new(std::size_t size) { return allocate_frame(size); }
  static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }
};

}  // namespace mesh::net
