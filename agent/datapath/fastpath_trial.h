// What a child of the fast path's probe does in its own network namespace: connections to itself
// over loopback, by every way of reading. Nothing but system calls, as the child of a process that
// may have threads; it ends after a while whatever happens.
#pragma once

namespace mesh::datapath {

// Where a trial failed; also the exit status of the child.
enum class TrialStep : int {
  kPassed = 0,
  kNamespace,
  kConnect,
  kJoin,
  kBlocks,
  kMove,
  kBytes,
  kRead,
  kMessage,
  kPoll,
  kLevel,
  kEdge,
  kPeek,
  kCrowd,
  kHalfClose,
  kBounded,
  kFullOrder,
  kOff,
  kCount,
};
const char* text_of(TrialStep step);

// Descriptors of maps of a FastPathCopy.
struct TrialMaps {
  int sockets;
  int addresses;
  int config;
  int iterator;  // of run_fast_path_iterator()
};
TrialStep run_fast_path_trial(const TrialMaps& maps);

}  // namespace mesh::datapath
