#include "control/fast_path.h"

#include <utility>

#include "base/log.h"

namespace mesh::control {
namespace {

constexpr const char* kOn = "on\n";
constexpr const char* kOff = "off\n";
constexpr const char* kSwitchedOff = "switched off by `meshctl datapath fastpath off`";

Logger log() {
  static const Logger made = logger("control");
  return made;
}

}  // namespace

void FastPathSwitch::start(Clock::time_point now) {
  const auto said = files_.read(path_);
  if (said && said.value() == kOn) return test(now);
  if (said && said.value() == kOff) return off("operator", kSwitchedOff);
  if (!said && said.error().code == Errc::not_found)
    return off("default", "not switched on (`meshctl datapath fastpath on`)");
  off("operator", "what the operator said cannot be read: " +
                      (said ? path_ + " says neither on nor off" : said.error().message));
}

void FastPathSwitch::test(Clock::time_point now) {
  is_to_go_ = false;
  auto started = datapath_.start_fast_path_test(now);
  if (started) {
    status_ = {false, "testing", "its self-test runs"};
  } else if (started.error().code == Errc::unavailable) {
    off("kernel", started.error().message);
  } else {
    off("test", "its self-test could not be started: " + started.error().message);
  }
}

bool FastPathSwitch::step(Clock::time_point now) {
  if (is_to_go_) return try_off();
  if (status_.on && !datapath_.why_fast_path_stopped().empty()) {
    off("full", datapath_.why_fast_path_stopped());
    return true;
  }
  const auto outcome = datapath_.take_fast_path_test(now);
  if (!outcome || !is_testing()) return false;
  if (!*outcome) {
    off("test", outcome->error().message);
  } else if (auto switched = datapath_.switch_fast_path(true); !switched) {
    off("test", "it could not be attached: " + switched.error().message);
  } else {
    status_ = {true, "", ""};
    log()->info("the fast path is on");
  }
  return true;
}

Result<> FastPathSwitch::set(bool on, Clock::time_point now) {
  if (!on) {
    off("operator", kSwitchedOff);
    auto stored = replace_file(files_, path_, kOff);
    if (stored) return success();
    return Error{stored.error().code, "off until meshd starts again, as it could not be stored: " +
                                          stored.error().message};
  }
  MESH_TRY(replace_file(files_, path_, kOn));
  if (is_to_go_ || (!status_.on && !is_testing())) test(now);
  return success();
}

void FastPathSwitch::off(std::string cause, std::string reason) {
  off_ = {false, std::move(cause), std::move(reason)};
  is_to_go_ = true;
  status_ = off_;
  try_off();
  if (!is_to_go_ && (off_.cause == "default" || off_.cause == "operator"))
    log()->info("the fast path is off reason={}", off_.reason);
  else
    log()->warn("the fast path is off, or is to be reason={}", status_.reason);
}

bool FastPathSwitch::try_off() {
  const api::FastPathStatus before = std::exchange(status_, off_);
  if (auto switched = datapath_.switch_fast_path(false); !switched) {
    status_.on = true;
    status_.reason += "; it cannot be detached, which is tried again: " + switched.error().message;
  }
  is_to_go_ = status_.on;
  return status_ != before;
}

}  // namespace mesh::control
