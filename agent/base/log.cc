#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>

#include <algorithm>
#include <array>
#include <string>

namespace mesh {

Result<> init_logging(std::string_view program, std::string_view level) {
  static constexpr std::array<std::string_view, 6> kLevels = {"trace", "debug", "info",
                                                              "warn",  "error", "off"};
  if (std::find(kLevels.begin(), kLevels.end(), level) == kLevels.end())
    return Error{Errc::invalid_argument, "log level '" + std::string(level) +
                                             "': one of trace, debug, info, warn, error, off"};
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l " + std::string(program) + " %n: %v",
                      spdlog::pattern_time_type::utc);
  spdlog::set_level(spdlog::level::from_str(std::string(level)));
  spdlog::flush_on(spdlog::level::info);
  return success();
}

Logger logger(std::string_view folder) {
  std::string name(folder);
  if (auto known = spdlog::get(name)) return known;
  return spdlog::stderr_logger_mt(name);
}

}  // namespace mesh
