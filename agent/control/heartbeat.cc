#include "control/heartbeat.h"

#include <errno.h>
#include <sys/mman.h>

namespace mesh::control {
namespace {

constexpr std::size_t kPage = 4096;

}  // namespace

Heartbeat::~Heartbeat() {
  if (page_) ::munmap(const_cast<std::uint64_t*>(page_), kPage);
}

Result<> Heartbeat::open(const UniqueFd& map) {
  void* page = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, map.get(), 0);
  if (page == MAP_FAILED) return errno_error(errno, "map the heartbeat");
  page_ = static_cast<const std::uint64_t*>(page);
  return success();
}

bool Heartbeat::is_fresh(std::chrono::steady_clock::time_point now,
                         std::chrono::nanoseconds limit) const {
  const std::chrono::nanoseconds stamped(*page_);  // steady_clock is CLOCK_MONOTONIC
  return stamped.count() != 0 && std::chrono::abs(now.time_since_epoch() - stamped) <= limit;
}

}  // namespace mesh::control
