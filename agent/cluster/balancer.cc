#include "cluster/balancer.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace mesh::cluster {

void Balancer::reset(config::Balancer kind, std::vector<EndpointPtr> endpoints, Random& random) {
  kind_ = kind;
  endpoints_ = std::move(endpoints);
  schedule_.clear();
  sums_.clear();
  equal_weights_ = std::ranges::all_of(
      endpoints_, [&](const auto& e) { return e->weight() == endpoints_.front()->weight(); });
  if (endpoints_.empty()) return;
  const auto size = static_cast<std::uint32_t>(endpoints_.size());
  next_ = random.below(size);
  if (equal_weights_) return;
  if (kind_ == config::Balancer::kRandom) {
    std::uint64_t sum = 0;
    for (const auto& endpoint : endpoints_)
      sums_.push_back(sum += std::max<std::uint32_t>(1, endpoint->weight()));
    return;
  }
  order_ = 0;
  for (std::uint32_t i = 0; i < size; ++i) {
    const std::uint32_t index = (next_ + i) % size;
    schedule_.push_back({1 / weight(index), order_++, index});
  }
  std::ranges::make_heap(schedule_, std::greater<>{});
  for (std::uint32_t skip = random.below(size); skip > 0; --skip) pick_scheduled();
}

const EndpointPtr* Balancer::pick(Random& random) {
  if (endpoints_.empty()) return nullptr;
  if (endpoints_.size() == 1) return &endpoints_.front();
  if (equal_weights_) return &endpoints_[pick_equal(random)];
  return &endpoints_[kind_ == config::Balancer::kRandom ? pick_weighted(random) : pick_scheduled()];
}

std::uint32_t Balancer::pick_equal(Random& random) {
  const auto size = static_cast<std::uint32_t>(endpoints_.size());
  switch (kind_) {
    case config::Balancer::kRoundRobin:
      return next_ = next_ + 1 < size ? next_ + 1 : 0;
    case config::Balancer::kRandom:
      return random.below(size);
    case config::Balancer::kLeastRequest:
      break;
  }
  // Two choices, with repetition as Envoy draws them.
  const std::uint32_t a = random.below(size), b = random.below(size);
  return endpoints_[b]->active() < endpoints_[a]->active() ? b : a;
}

std::uint32_t Balancer::pick_weighted(Random& random) const {
  const std::uint64_t point = random.next() % sums_.back();
  return static_cast<std::uint32_t>(std::ranges::upper_bound(sums_, point) - sums_.begin());
}

std::uint32_t Balancer::pick_scheduled() {
  std::ranges::pop_heap(schedule_, std::greater<>{});
  Due& due = schedule_.back();
  const std::uint32_t index = due.index;
  due.deadline += 1 / weight(index);
  due.order = order_++;
  std::ranges::push_heap(schedule_, std::greater<>{});
  return index;
}

double Balancer::weight(std::uint32_t index) const {
  const double weight = std::max<std::uint32_t>(1, endpoints_[index]->weight());
  return kind_ == config::Balancer::kLeastRequest ? weight / (endpoints_[index]->active() + 1)
                                                  : weight;
}

}  // namespace mesh::cluster
