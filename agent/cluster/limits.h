// Limits: how much of a cluster one client workload may use at once, counted exactly.
//
// Envoy's circuit breakers (docs: arch_overview/upstream/circuit_breaking.rst) as a sidecar would
// apply them: per client workload and cluster, unlike Envoy without leeway. A slot is taken before
// the thing exists and given back when the Slot dies; taking and giving back keeps the cluster's
// counters (totals, gauges, overflows), so nobody else touches those. A Limits and its Slots belong
// to one worker and the Slots must die first. Workers that serve the same client share a Budget,
// which any thread may read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "cluster/counters.h"
#include "config/snapshot.h"

namespace mesh::cluster {

// kWaiting: a worker waits for a connection slot; the others should give up an idle connection.
enum class Use : std::uint8_t { kConnection, kPending, kRequest, kWaiting };

// What is in use, and the most that may be. Sharing::kOne: only one worker takes from it, and an
// update is a plain load and store; kMany: read-modify-write.
enum class Sharing : std::uint8_t { kOne, kMany };

class Budget {
 public:
  Budget(const config::ConnectionPool& pool, Sharing sharing);
  void configure(const config::ConnectionPool& pool);  // what is in use stays in use
  bool take(Use use);
  void give_back(Use use);
  std::uint32_t in_use(Use use) const { return used_[index(use)].load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t index(Use use) { return static_cast<std::size_t>(use); }

  const Sharing sharing_;
  std::atomic<std::uint32_t> used_[4]{};
  std::atomic<std::uint32_t> max_[4];
};

class Limits {
 public:
  class Slot {
   public:
    Slot() = default;
    Slot(Slot&& other) noexcept
        : limits_(std::exchange(other.limits_, nullptr)), use_(other.use_) {}
    Slot& operator=(Slot&& other) noexcept {
      std::swap(limits_, other.limits_);
      std::swap(use_, other.use_);
      return *this;
    }
    ~Slot() { reset(); }
    explicit operator bool() const { return limits_ != nullptr; }
    void reset() {
      if (limits_ != nullptr) std::exchange(limits_, nullptr)->give_back(use_);
    }

   private:
    friend class Limits;
    Slot(Limits* limits, Use use) : limits_(limits), use_(use) {}
    Limits* limits_ = nullptr;
    Use use_ = Use::kConnection;
  };

  Limits(std::shared_ptr<Budget> budget, std::shared_ptr<Counters> counters)
      : budget_(std::move(budget)), counters_(std::move(counters)) {}
  Limits(const Limits&) = delete;
  Limits& operator=(const Limits&) = delete;

  // An empty Slot: the limit is reached, and the overflow is counted.
  // A new connection (upstream_cx_*). Overflow: the request goes on waiting for one.
  [[nodiscard]] Slot try_connection();
  // A request that no idle connection can take at once waits for one, be it a new one
  // (upstream_rq_pending_*). Overflow: 503 with x-envoy-overloaded, flag UO.
  [[nodiscard]] Slot try_pending();
  // A request from its first byte to an endpoint to the end of the response (upstream_rq_*).
  // Overflow as try_pending, and counted there, as Envoy does.
  [[nodiscard]] Slot try_request();

  // Other workers see someone_waits(); never empty.
  [[nodiscard]] Slot wait();
  // As try_connection, but a refusal is not counted again: to look again while waiting.
  [[nodiscard]] Slot retry_connection();
  bool someone_waits() const { return in_use(Use::kWaiting) != 0; }

  std::uint32_t in_use(Use use) const { return budget_->in_use(use); }

 private:
  friend class Cluster;
  Slot take(Use use);
  void give_back(Use use);

  std::shared_ptr<Budget> budget_;
  std::shared_ptr<Counters> counters_;
};

}  // namespace mesh::cluster
