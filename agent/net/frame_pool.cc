#include "net/frame_pool.h"

#include <array>
#include <cstdlib>
#include <new>

namespace mesh::net {

#ifdef MESH_SANITIZED

void* allocate_frame(std::size_t size) { return ::operator new(size); }
void free_frame(void* frame, std::size_t size) noexcept { ::operator delete(frame, size); }

#else

namespace {

constexpr std::size_t kStep = 64;
constexpr std::size_t kClasses = 128;        // up to 8 KB; larger frames go to the heap
constexpr std::size_t kKeepPerClass = 1024;  // what a burst leaves behind is given back

struct FreeFrame {
  FreeFrame* next;
};

struct Pool {
  struct Class {
    FreeFrame* head = nullptr;
    std::size_t count = 0;
  };
  std::array<Class, kClasses> classes;

  ~Pool() {
    for (Class& c : classes) {
      while (c.head != nullptr) {
        FreeFrame* frame = c.head;
        c.head = frame->next;
        ::operator delete(frame);
      }
    }
  }
};

Pool& pool() {
  thread_local Pool pool;
  return pool;
}

}  // namespace

void* allocate_frame(std::size_t size) {
  const std::size_t index = (size - 1) / kStep;
  if (index >= kClasses) return ::operator new(size);
  Pool::Class& c = pool().classes[index];
  if (c.head == nullptr) return ::operator new((index + 1) * kStep);
  FreeFrame* frame = c.head;
  c.head = frame->next;
  --c.count;
  return frame;
}

void free_frame(void* frame, std::size_t size) noexcept {
  const std::size_t index = (size - 1) / kStep;
  if (index >= kClasses) return ::operator delete(frame);
  Pool::Class& c = pool().classes[index];
  if (c.count >= kKeepPerClass) return ::operator delete(frame);
  c.head = new (frame) FreeFrame{c.head};
  ++c.count;
}

#endif

}  // namespace mesh::net
