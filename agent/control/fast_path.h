// FastPathSwitch: whether the same-node fast path is on, and why it is not. It is on where the
// operator switched it on and the self-test of this process passed; what a process before this one
// left on stays so until the test says otherwise. What the operator said outlives meshd, in a file.
// One thread; time is an argument; nothing waits.
#pragma once

#include <chrono>
#include <string>

#include "api/messages.h"
#include "control/files.h"
#include "datapath/datapath.h"

namespace mesh::control {

class FastPathSwitch {
 public:
  using Clock = std::chrono::steady_clock;

  // `path`: of the file, "on" or "off"; not there: the operator said nothing, so it is off.
  FastPathSwitch(datapath::Datapath& datapath, Files& files, std::string path)
      : datapath_(datapath), files_(files), path_(std::move(path)) {}

  void start(Clock::time_point now);
  // Takes the outcome of the self-test, and goes on with what could not be done; called every half
  // second. True: what status() says changed.
  bool step(Clock::time_point now);
  // The operator's word. `on` is stored first, and tests again, also where the last test failed,
  // and at each start() from then on. `off` is done first: an error says that it could not be
  // stored.
  Result<> set(bool on, Clock::time_point now);
  const api::FastPathStatus& status() const { return status_; }
  bool is_testing() const { return status_.cause == "testing"; }

 private:
  void off(std::string cause, std::string reason);
  bool try_off();
  void test(Clock::time_point now);

  datapath::Datapath& datapath_;
  Files& files_;
  std::string path_;
  api::FastPathStatus status_, off_;  // off_: as it shall be
  bool is_to_go_ = false;             // it is to be off, and could not be detached
};

}  // namespace mesh::control
