// Waiting for what another process, or the kernel, does in its own time.
#pragma once

#include <unistd.h>

#include <chrono>

namespace mesh::test {

// False: it did not come about, on a machine however slow.
template <class Condition>
[[nodiscard]] bool eventually(Condition is_so) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!is_so()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::usleep(1000);
  }
  return true;
}

}  // namespace mesh::test
