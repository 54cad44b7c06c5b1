#include "cluster/outlier_detector.h"

#include <algorithm>

namespace mesh::cluster {
namespace {

using config::Milliseconds;

constexpr Milliseconds kMaxEjectionTime{300'000};

Milliseconds max_ejection_time(const config::OutlierDetection& settings) {
  return std::max(kMaxEjectionTime, settings.base_ejection_time);
}

// Loads first: an endpoint in health must not dirty the cache line that all workers read.
void clear(std::atomic<std::uint32_t>& counter) {
  if (counter.load(std::memory_order_relaxed) != 0) counter.store(0, std::memory_order_relaxed);
}

}  // namespace

void OutlierDetector::configure(const std::optional<config::OutlierDetection>& settings,
                                std::span<const config::Endpoint> endpoints) {
  const std::lock_guard lock(mutex_);
  settings_ = settings;
  const config::OutlierDetection off{.consecutive_5xx = 0, .consecutive_local_origin = 0};
  const config::OutlierDetection& now = settings ? *settings : off;
  thresholds_.consecutive_5xx = now.consecutive_5xx;
  thresholds_.consecutive_gateway = now.consecutive_gateway;
  thresholds_.consecutive_local = now.consecutive_local_origin;
  thresholds_.split = now.split_local_origin;

  std::unordered_map<SocketAddress, EndpointHealthPtr> kept;
  for (const auto& endpoint : endpoints) {
    auto found = endpoints_.find(endpoint.address);
    kept.emplace(endpoint.address, found != endpoints_.end()
                                       ? found->second
                                       : std::make_shared<EndpointHealth>(endpoint.address));
  }
  for (const auto& [address, endpoint] : endpoints_)
    if (endpoint->is_ejected() && (!settings || !kept.contains(address))) unejected(*endpoint);
  endpoints_ = std::move(kept);
  changed();
}

bool OutlierDetector::report(EndpointHealth& endpoint, const Outcome& outcome, TimePoint now) {
  const bool local = outcome.kind != Outcome::Kind::kResponse;
  if (thresholds_.split.load(std::memory_order_relaxed)) {
    // Envoy: a broken connection after a successful connect is the endpoint's failure, not ours.
    if (outcome.kind == Outcome::Kind::kConnectFailed || outcome.kind == Outcome::Kind::kTimeout)
      return count(endpoint, endpoint.consecutive_local_,
                   thresholds_.consecutive_local.load(std::memory_order_relaxed),
                   &OutlierCounters::ejections_enforced_consecutive_local_origin_failure, now);
    if (!local) clear(endpoint.consecutive_local_);
  }
  if (outcome.status < 500) {
    clear(endpoint.consecutive_5xx_);
    clear(endpoint.consecutive_gateway_);
    return false;
  }
  bool ejected = false;
  if (outcome.status >= 502 && outcome.status <= 504)
    ejected = count(endpoint, endpoint.consecutive_gateway_,
                    thresholds_.consecutive_gateway.load(std::memory_order_relaxed),
                    &OutlierCounters::ejections_enforced_consecutive_gateway_failure, now);
  else
    clear(endpoint.consecutive_gateway_);
  return count(endpoint, endpoint.consecutive_5xx_,
               thresholds_.consecutive_5xx.load(std::memory_order_relaxed),
               &OutlierCounters::ejections_enforced_consecutive_5xx, now) ||
         ejected;
}

bool OutlierDetector::count(EndpointHealth& endpoint, std::atomic<std::uint32_t>& errors,
                            std::uint32_t threshold, std::uint64_t OutlierCounters::* reason,
                            TimePoint now) {
  if (threshold == 0) return false;
  if (errors.fetch_add(1, std::memory_order_relaxed) + 1 < threshold) return false;
  const bool ejected = eject(endpoint, reason, now);
  // Also when it was refused: the next run of errors asks again.
  errors.store(0, std::memory_order_relaxed);
  return ejected;
}

bool OutlierDetector::eject(EndpointHealth& endpoint, std::uint64_t OutlierCounters::* reason,
                            TimePoint now) {
  const std::lock_guard lock(mutex_);
  const auto found = endpoints_.find(endpoint.address_);
  if (!settings_ || found == endpoints_.end() || found->second.get() != &endpoint ||
      endpoint.is_ejected())
    return false;
  if (100 * (counters_.ejections_active + 1) >
      std::uint64_t{settings_->max_ejection_percent} * endpoints_.size()) {
    ++counters_.ejections_overflow;
    return false;
  }
  endpoint.ejected_at_ = now;
  if (endpoint.multiplier_ * settings_->base_ejection_time <
      max_ejection_time(*settings_) + settings_->base_ejection_time)
    ++endpoint.multiplier_;
  endpoint.ejected_.store(true, std::memory_order_relaxed);
  ++counters_.ejections_active;
  ++counters_.ejections_enforced_total;
  ++(counters_.*reason);
  changed();
  return true;
}

std::vector<SocketAddress> OutlierDetector::tick(TimePoint now) {
  std::vector<SocketAddress> back;
  const std::lock_guard lock(mutex_);
  if (!settings_) {
    next_tick_.reset();
    return back;
  }
  if (!next_tick_) next_tick_ = now + settings_->interval;
  if (now < *next_tick_) return back;
  next_tick_ = now + settings_->interval;
  for (auto& [address, endpoint] : endpoints_) {
    if (endpoint->is_ejected()) {
      const auto time = std::min<Milliseconds>(
          endpoint->multiplier_ * settings_->base_ejection_time, max_ejection_time(*settings_));
      if (now - endpoint->ejected_at_ < time) continue;
      unejected(*endpoint);
      back.push_back(address);
    } else if (endpoint->multiplier_ != 0) {  // a whole interval in health
      --endpoint->multiplier_;
    }
  }
  if (!back.empty()) changed();
  return back;
}

void OutlierDetector::unejected(EndpointHealth& endpoint) {
  endpoint.ejected_.store(false, std::memory_order_relaxed);
  // Else one error more could eject it again.
  clear(endpoint.consecutive_5xx_);
  clear(endpoint.consecutive_gateway_);
  clear(endpoint.consecutive_local_);
  --counters_.ejections_active;
}

void OutlierDetector::changed() {
  const std::uint64_t healthy = endpoints_.size() - counters_.ejections_active;
  panic_.store(
      settings_ && 100 * healthy < std::uint64_t{settings_->min_health_percent} * endpoints_.size(),
      std::memory_order_relaxed);
  version_.fetch_add(1, std::memory_order_release);
}

EndpointHealthPtr OutlierDetector::find(const SocketAddress& address) const {
  const std::lock_guard lock(mutex_);
  const auto found = endpoints_.find(address);
  return found != endpoints_.end() ? found->second : nullptr;
}

std::vector<EndpointHealthPtr> OutlierDetector::endpoints() const {
  const std::lock_guard lock(mutex_);
  std::vector<EndpointHealthPtr> all;
  all.reserve(endpoints_.size());
  for (const auto& [address, endpoint] : endpoints_) all.push_back(endpoint);
  return all;
}

OutlierCounters OutlierDetector::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

}  // namespace mesh::cluster
