// What either end of a connection of the fast path's trial does: it sends bytes that tell their
// place in a stream, and compares those that come, by every way of reading. Nothing but system
// calls, and each wait ends. The buffers are the process's.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <iterator>

#include "base/unique_fd.h"
#include "datapath/fastpath_trial.h"

namespace mesh::datapath {

constexpr int kWaitMs = 5000;  // a loaded machine is no stall
constexpr std::size_t kLargest = 65536;
constexpr std::size_t kPieces[] = {1, 63, 1000, 16384, kLargest};
constexpr std::size_t kHuge = 16U << 20;  // one message
constexpr int kTrips = 60;
constexpr std::size_t kTail = 777;
constexpr int kCrowd = 200;  // connections at once

constexpr std::size_t size_of_trip(int trip) {
  return kPieces[static_cast<std::size_t>(trip) % std::size(kPieces)];
}
constexpr std::uint64_t kBytesOfTrips = [] {
  std::uint64_t bytes = 0;
  for (int trip = 0; trip < kTrips; ++trip) bytes += size_of_trip(trip);
  return bytes;
}();

// Both ends of a connection of ours.
struct Pair {
  UniqueFd client, server;
};

void fill_pattern();  // first of all
const char* pattern_at(std::uint64_t place);

bool is_ready_within(int fd, short what, int ms = kWaitMs);
bool send_all(int fd, std::uint64_t from, std::size_t size);
// The next `size` bytes are those from `from` on. Also of a socket that blocks.
bool receive(int fd, std::uint64_t from, std::size_t size);
bool has_ended(int fd);

// With somebody who echoes: kTrips messages; kHuge bytes at once, whose answer begins before all is
// sent.
bool make_trips(int fd, std::uint64_t from);
bool exchange_huge(int fd, std::uint64_t from);

// Reads as `reader` says, and sends back the pattern, which are the same bytes if it got them,
// until the other side ends; then kTail bytes more.
bool echo(int fd, TrialStep reader);

// The servers of kCrowd connections, each of which begins at another place of the pattern, so that
// what is another's is seen. Every other one is read by edges.
std::uint64_t begin_of(int connection);
bool echo_all(const Pair* pairs);

}  // namespace mesh::datapath
