// OutlierDetector: which endpoints of one cluster are ejected, for the whole node: what one client
// learns protects all.
//
// Envoy's consecutive-errors detection (docs: arch_overview/upstream/outlier.rst, code:
// source/common/upstream/outlier_detection_impl.cc). report() runs inline on every worker: a
// success costs loads only; an error one atomic increment. The mutex is taken only to eject, to
// un-eject and to change the configuration: these change several endpoints' state together (the
// share of ejected endpoints is bounded), which message passing would make late, and they are rare.
// An endpoint is ejected only where the share of ejected ones, it included, stays within
// max_ejection_percent: with the default of 10 % and fewer than ten endpoints none ever is, as in
// Envoy without always_eject_one_host (which Istio does not set).
// Time is an argument everywhere and must not run backwards.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/address.h"
#include "config/snapshot.h"

namespace mesh::cluster {

using TimePoint = std::chrono::steady_clock::time_point;

// What came of a request to an endpoint. Answers that the proxy made without an endpoint (limits,
// faults, no route) are not reported.
struct Outcome {
  enum class Kind : std::uint8_t {
    kResponse,       // a response head arrived: `status` decides
    kConnectFailed,  // refused, unreachable, connect timeout; counts as 503
    kTimeout,        // no response within the request's timeout; counts as 504
    kReset,          // the connection broke or spoke no HTTP; counts as 503
  };
  Kind kind = Kind::kResponse;
  int status = 200;

  static Outcome response(int status) { return {Kind::kResponse, status}; }
  static Outcome connect_failed() { return {Kind::kConnectFailed, 503}; }
  static Outcome timeout() { return {Kind::kTimeout, 504}; }
  static Outcome reset() { return {Kind::kReset, 503}; }
};

// The live state of one endpoint address in one cluster, shared by all workers.
class EndpointHealth {
 public:
  explicit EndpointHealth(const SocketAddress& address) : address_(address) {}
  const SocketAddress& address() const { return address_; }
  bool is_ejected() const { return ejected_.load(std::memory_order_relaxed); }

 private:
  friend class OutlierDetector;
  const SocketAddress address_;
  std::atomic<bool> ejected_{false};
  std::atomic<std::uint32_t> consecutive_5xx_{0};
  std::atomic<std::uint32_t> consecutive_gateway_{0};
  std::atomic<std::uint32_t> consecutive_local_{0};
  // Under the detector's mutex:
  TimePoint ejected_at_{};
  std::uint32_t multiplier_ = 0;  // ejections in a row; one less for each interval in health
};
using EndpointHealthPtr = std::shared_ptr<EndpointHealth>;

struct OutlierCounters {  // Envoy's names below cluster.<name>.outlier_detection
  std::uint64_t ejections_active = 0;
  std::uint64_t ejections_enforced_total = 0;
  std::uint64_t ejections_enforced_consecutive_5xx = 0;
  std::uint64_t ejections_enforced_consecutive_gateway_failure = 0;
  std::uint64_t ejections_enforced_consecutive_local_origin_failure = 0;
  std::uint64_t ejections_overflow = 0;  // not ejected: max_ejection_percent
};

class OutlierDetector {
 public:
  OutlierDetector() = default;
  OutlierDetector(const OutlierDetector&) = delete;
  OutlierDetector& operator=(const OutlierDetector&) = delete;

  // The endpoints and settings now in force. Endpoints keep their state by address; with detection
  // off every ejection ends.
  void configure(const std::optional<config::OutlierDetection>& settings,
                 std::span<const config::Endpoint> endpoints);

  // True: this report ejected the endpoint.
  bool report(EndpointHealth& endpoint, const Outcome& outcome, TimePoint now);

  // Call at least as often as intervals shall be kept; does its work once an interval. Returns the
  // endpoints that came back.
  std::vector<SocketAddress> tick(TimePoint now);

  EndpointHealthPtr find(const SocketAddress& address) const;  // null: not configured
  // Changes with every ejection, un-ejection and configure(): balancers refresh their lists on it.
  std::uint64_t version() const { return version_.load(std::memory_order_acquire); }
  // Fewer healthy endpoints than min_health_percent: balance over all, as if none were ejected.
  bool in_panic() const { return panic_.load(std::memory_order_relaxed); }
  OutlierCounters counters() const;
  std::vector<EndpointHealthPtr> endpoints() const;  // in no order

 private:
  struct Thresholds {  // 0: off
    std::atomic<std::uint32_t> consecutive_5xx{0}, consecutive_gateway{0}, consecutive_local{0};
    std::atomic<bool> split{false};
  };
  bool eject(EndpointHealth& endpoint, std::uint64_t OutlierCounters::* reason, TimePoint now);
  bool count(EndpointHealth& endpoint, std::atomic<std::uint32_t>& errors, std::uint32_t threshold,
             std::uint64_t OutlierCounters::* reason, TimePoint now);
  void unejected(EndpointHealth& endpoint);
  void changed();

  Thresholds thresholds_;
  std::atomic<std::uint64_t> version_{0};
  std::atomic<bool> panic_{false};
  mutable std::mutex mutex_;  // why: file comment
  std::optional<config::OutlierDetection> settings_;
  std::unordered_map<SocketAddress, EndpointHealthPtr> endpoints_;
  OutlierCounters counters_;
  std::optional<TimePoint> next_tick_;
};

}  // namespace mesh::cluster
