// Random: a small, fast generator (xoshiro256++) that its owner seeds and passes on as an argument,
// so that pure code takes its randomness from outside and tests repeat with a seed.
//
// For balancing, sampling, jitter and identifiers; never for secrets. A value; one thread at a
// time.
#pragma once

#include <bit>
#include <cstdint>

namespace mesh {

class Random {
 public:
  using result_type = std::uint64_t;  // a UniformRandomBitGenerator

  explicit constexpr Random(std::uint64_t seed) {
    for (auto& word : state_) {  // splitmix64, as the generator's authors ask
      seed += 0x9e3779b97f4a7c15;
      std::uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
      z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
      word = z ^ (z >> 31);
    }
  }

  constexpr std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound); bound > 0. The bias is below bound / 2^32.
  constexpr std::uint32_t below(std::uint32_t bound) {
    return static_cast<std::uint32_t>(((next() >> 32) * bound) >> 32);
  }

  constexpr std::uint64_t operator()() { return next(); }
  static constexpr std::uint64_t min() { return 0; }
  static constexpr std::uint64_t max() { return ~std::uint64_t{0}; }

 private:
  std::uint64_t state_[4];
};

}  // namespace mesh
