#include "net/timer_wheel.h"

#include <algorithm>
#include <bit>

namespace mesh::net {

void Timer::disarm() {
  if (wheel_ == nullptr) return;
  unlink();
  if (wheel_->slots_[slot_].is_empty()) {
    wheel_->occupied_[slot_ >> TimerWheel::kBits] &=
        ~(std::uint64_t{1} << (slot_ & (TimerWheel::kSlots - 1)));
  }
  wheel_ = nullptr;
}

void TimerWheel::arm(Timer& timer, Clock::time_point when) {
  timer.disarm();
  const auto since = when - start_;
  // Up, so that no timer fires early; the current tick has fired already.
  const std::uint64_t tick =
      since.count() <= 0 ? 0
                         : static_cast<std::uint64_t>((since + kTick - Clock::duration(1)) / kTick);
  timer.tick_ = std::max(tick, now_ + 1);
  place(timer);
}

// The level is that of the highest digit (base 64) in which the timer's tick differs from now.
void TimerWheel::place(Timer& timer) {
  const std::uint64_t differs = timer.tick_ ^ now_;
  int level = differs == 0 ? 0 : (63 - std::countl_zero(differs)) / kBits;
  std::uint64_t tick = timer.tick_;
  if (level >= kLevels) {  // over the top wheel's end, or beyond its turn: then looked at again
    level = kLevels - 1;
    tick = std::min(tick, now_ + (std::uint64_t{1} << (kBits * kLevels)) - 1);
  }
  const std::uint64_t digit = (tick >> (kBits * level)) & (kSlots - 1);
  timer.slot_ = static_cast<std::uint16_t>(static_cast<std::uint64_t>(level) * kSlots + digit);
  timer.wheel_ = this;
  occupied_[static_cast<std::size_t>(level)] |= std::uint64_t{1} << digit;
  slots_[timer.slot_].push_back(timer);
}

std::uint64_t TimerWheel::next_tick() const {
  std::uint64_t best = ~std::uint64_t{0};
  for (int level = 0; level < kLevels; ++level) {
    const std::uint64_t bits = occupied_[static_cast<std::size_t>(level)];
    if (bits == 0) continue;
    const std::uint64_t digit = (now_ >> (kBits * level)) & (kSlots - 1);
    // Slots ahead of the present digit, in turning order; the present one itself comes last.
    const int from = static_cast<int>((digit + 1) & (kSlots - 1));
    const auto ahead = static_cast<std::uint64_t>(std::countr_zero(std::rotr(bits, from))) + 1;
    const std::uint64_t base = (now_ >> (kBits * level)) + ahead;
    best = std::min(best, base << (kBits * level));
  }
  return best;
}

std::optional<Clock::time_point> TimerWheel::next() const {
  const std::uint64_t tick = next_tick();
  if (tick == ~std::uint64_t{0}) return std::nullopt;
  return start_ + kTick * static_cast<std::int64_t>(tick);
}

void TimerWheel::advance(Clock::time_point now) {
  if (now <= start_) return;
  const auto target = static_cast<std::uint64_t>((now - start_) / kTick);
  while (now_ < target) {
    const std::uint64_t tick = next_tick();
    if (tick > target) {
      now_ = target;
      return;
    }
    now_ = tick;
    // From the top: what falls due or moves down lands in lower slots that are looked at next.
    ListNode due;
    for (int level = kLevels - 1; level >= 0; --level) {
      const std::uint64_t below = (std::uint64_t{1} << (kBits * level)) - 1;
      if ((now_ & below) != 0) continue;
      const std::uint64_t digit = (now_ >> (kBits * level)) & (kSlots - 1);
      ListNode moving;
      moving.splice_back(slots_[static_cast<std::uint64_t>(level) * kSlots + digit]);
      occupied_[static_cast<std::size_t>(level)] &= ~(std::uint64_t{1} << digit);
      while (!moving.is_empty()) {
        auto& timer = static_cast<Timer&>(*moving.front());
        if (timer.tick_ <= now_) {
          timer.slot_ = 0;  // disarm() of a due timer looks at some slot: any empty one will do
          due.push_back(timer);
        } else {
          timer.unlink();
          place(timer);
        }
      }
    }
    while (!due.is_empty()) {
      auto& timer = static_cast<Timer&>(*due.front());
      timer.unlink();
      timer.wheel_ = nullptr;
      timer.fire_(timer);
    }
  }
}

}  // namespace mesh::net
