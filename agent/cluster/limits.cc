#include "cluster/limits.h"

namespace mesh::cluster {
namespace {

// Istio: 0 is "unset", so no limit.
std::uint32_t limit(std::uint32_t configured) {
  return configured == 0 ? config::ConnectionPool::kUnlimited : configured;
}

}  // namespace

Budget::Budget(const config::ConnectionPool& pool, Sharing sharing) : sharing_(sharing) {
  configure(pool);
}

void Budget::configure(const config::ConnectionPool& pool) {
  const auto set = [&](Use use, std::uint32_t max) {
    max_[index(use)].store(max, std::memory_order_relaxed);
  };
  set(Use::kConnection, limit(pool.max_connections));
  set(Use::kPending, limit(pool.max_pending_requests));
  set(Use::kRequest, limit(pool.max_requests));
  set(Use::kWaiting, config::ConnectionPool::kUnlimited);
}

bool Budget::take(Use use) {
  auto& used = used_[index(use)];
  const std::uint32_t max = max_[index(use)].load(std::memory_order_relaxed);
  std::uint32_t now = used.load(std::memory_order_relaxed);
  if (sharing_ == Sharing::kOne) {
    if (now >= max) return false;
    used.store(now + 1, std::memory_order_relaxed);
    return true;
  }
  do {
    if (now >= max) return false;
  } while (!used.compare_exchange_weak(now, now + 1, std::memory_order_relaxed));
  return true;
}

void Budget::give_back(Use use) {
  auto& used = used_[index(use)];
  if (sharing_ == Sharing::kOne)
    used.store(used.load(std::memory_order_relaxed) - 1, std::memory_order_relaxed);
  else
    used.fetch_sub(1, std::memory_order_relaxed);
}

Limits::Slot Limits::take(Use use) { return budget_->take(use) ? Slot(this, use) : Slot(); }

Limits::Slot Limits::retry_connection() {
  Slot slot = take(Use::kConnection);
  if (slot) {
    counters_->upstream_cx_total.add();
    counters_->upstream_cx_active.add();
  }
  return slot;
}

Limits::Slot Limits::try_connection() {
  Slot slot = retry_connection();
  if (!slot) counters_->upstream_cx_overflow.add();
  return slot;
}

Limits::Slot Limits::try_pending() {
  Slot slot = take(Use::kPending);
  if (slot) {
    counters_->upstream_rq_pending_total.add();
    counters_->upstream_rq_pending_active.add();
  } else {
    counters_->upstream_rq_pending_overflow.add();
  }
  return slot;
}

Limits::Slot Limits::try_request() {
  Slot slot = take(Use::kRequest);
  if (slot) {
    counters_->upstream_rq_total.add();
    counters_->upstream_rq_active.add();
  } else {
    counters_->upstream_rq_pending_overflow.add();
  }
  return slot;
}

Limits::Slot Limits::wait() { return take(Use::kWaiting); }

void Limits::give_back(Use use) {
  budget_->give_back(use);
  switch (use) {
    case Use::kConnection:
      counters_->upstream_cx_active.subtract();
      break;
    case Use::kPending:
      counters_->upstream_rq_pending_active.subtract();
      break;
    case Use::kRequest:
      counters_->upstream_rq_active.subtract();
      break;
    case Use::kWaiting:
      break;
  }
}

}  // namespace mesh::cluster
