// Logging set-up: spdlog on stderr, one logger per folder, named after it.
//
//   static mesh::Logger log = mesh::logger("control");
//   log->warn("endpoint ejected cluster={} endpoint={}", cluster, endpoint);
//
// A fixed sentence, then key=value. error: a human must act; warn: degraded, we coped; info:
// life-cycle and configuration; debug: per connection; trace: per event. Never bodies, cookies,
// tokens or keys. Thread-safe. init_logging() is called once by each main, before any thread.
#pragma once

#include <spdlog/spdlog.h>

#include <memory>
#include <string_view>

#include "base/result.h"

namespace mesh {

using Logger = std::shared_ptr<spdlog::logger>;

// level: trace, debug, info, warn, error or off.
Result<> init_logging(std::string_view program, std::string_view level);
Logger logger(std::string_view folder);

}  // namespace mesh
