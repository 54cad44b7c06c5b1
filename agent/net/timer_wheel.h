// TimerWheel: coarse timers (10 ms) for one thread, hierarchical, without allocation.
//
// A Timer is part of what it watches over; arming, re-arming and disarming cost a few pointer
// writes. A timer never fires early and at most one tick and one turn of the reactor late. Time is
// an argument. A callback may arm, disarm and destroy any timer, its own included.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

#include "net/intrusive_list.h"

namespace mesh::net {

using Clock = std::chrono::steady_clock;

class Timer : private ListNode {
 public:
  using Fire = void (*)(Timer&);
  explicit Timer(Fire fire) : fire_(fire) {}
  ~Timer() { disarm(); }
  bool is_armed() const { return wheel_ != nullptr; }
  void disarm();

 private:
  friend class TimerWheel;
  Fire fire_;
  class TimerWheel* wheel_ = nullptr;
  std::uint64_t tick_ = 0;
  std::uint16_t slot_ = 0;
};

class TimerWheel {
 public:
  static constexpr std::chrono::milliseconds kTick{10};

  explicit TimerWheel(Clock::time_point now) : start_(now) {}
  void arm(Timer& timer, Clock::time_point when);
  // Fires everything due at `now`.
  void advance(Clock::time_point now);
  // When advance() has something to do again; a lower bound. Nothing armed: nullopt.
  std::optional<Clock::time_point> next() const;

 private:
  friend class Timer;
  static constexpr int kBits = 6;
  static constexpr std::uint64_t kSlots = 1 << kBits;
  static constexpr int kLevels = 5;  // 10 ms * 64^5: 124 days

  void place(Timer& timer);
  std::uint64_t next_tick() const;  // of the next slot that is not empty; ~0: none

  Clock::time_point start_;
  std::uint64_t now_ = 0;  // ticks since start_; every tick up to here has fired
  std::array<std::uint64_t, kLevels> occupied_{};
  std::array<ListNode, kLevels * kSlots> slots_;
};

}  // namespace mesh::net
