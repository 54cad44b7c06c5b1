// The part of a sandbox that runs inside it: its first process (pid 1 of its namespaces) and the
// messages between that and the monitor outside, one datagram each over a socket pair.
//
//   monitor -> first   kConfigure (the link is there), kRun (start the command), kSignal + number
//   first -> monitor   kReady, kStarted (by the command itself: its credentials carry its pid),
//                      kRunning (it was executed), kFailed + errno + text, kEnded + wait status
//
// The first process ends with the command, and with the monitor (PR_SET_PDEATHSIG, and the end of
// the socket); the kernel then ends whatever else runs in its PID namespace.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "addresses.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "process.h"

namespace mesh::cli {

enum class Note : std::uint8_t {
  kConfigure,
  kRun,
  kSignal,
  kReady,
  kStarted,
  kRunning,
  kFailed,
  kEnded,
  kGone  // the other end is closed
};

struct Notice {
  Note note = Note::kGone;
  int number = 0;
  std::string text;
  pid_t sender = 0;  // in the reader's PID namespace; with SO_PASSCRED only
};

bool send_notice(int fd, Note note, int number = 0, const std::string& text = "");
Notice receive_notice(int fd);  // waits

struct InsideOptions {
  AddressNumber number = 0;
  bool ipv6 = true;
  IpBlock services;                 // their addresses lead nowhere but through the mesh
  std::string resolv_file;          // for /etc/resolv.conf
  std::vector<std::string> hidden;  // directories that are empty and read-only inside
  std::string cgroup_mount;         // read-only inside
  std::vector<std::string> command;
  std::vector<std::string> environment;
};

// The life of the first process; the result is its exit status. `control` is its end of the pair.
int live_inside(int control, const SignalRelay& signals, const InsideOptions& options);

}  // namespace mesh::cli
