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
  MESH_TRY(replace_file(files_, path_, on ? kOn : kOff));
  if (on) {
    if (!status_.on && !is_testing()) test(now);
    return success();
  }
  off("operator", kSwitchedOff);
  return success();
}

void FastPathSwitch::off(std::string cause, std::string reason) {
  const auto switched = datapath_.switch_fast_path(false);
  if (!switched) reason += "; it could not be detached: " + switched.error().message;
  if (switched && (cause == "default" || cause == "operator"))
    log()->info("the fast path is off reason={}", reason);
  else
    log()->warn("the fast path is off reason={}", reason);
  status_ = {false, std::move(cause), std::move(reason)};
}

}  // namespace mesh::control
