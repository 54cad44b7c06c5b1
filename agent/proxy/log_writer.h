// LogWriter: the access log's file, on a thread of its own: a disk that hangs, or a FIFO that
// nobody reads, holds up the log and nothing else. Bounded: what does not fit is dropped and
// counted. Any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "base/unique_fd.h"

namespace mesh::proxy {

class LogWriter {
 public:
  LogWriter();
  ~LogWriter();  // what waits is written first, unless a write hangs
  // Lines from now on; those that wait still go to the file before. None: they are dropped.
  void use(UniqueFd file);
  void write(std::string lines);
  std::uint64_t lost_bytes() const;

 private:
  struct State;
  static void run(State& state);
  std::shared_ptr<State> state_;  // the thread's too, which outlives this where a write hangs
  std::thread thread_;
};

}  // namespace mesh::proxy
