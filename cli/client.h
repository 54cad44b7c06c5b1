// The client of meshd's API over its Unix socket. One request, one connection; blocking, each with
// a deadline. A meshd that cannot be reached is Errc::unavailable with the remedy in the message.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "api/messages.h"
#include "base/result.h"

namespace mesh::cli {

class Client {
 public:
  using Deadline = std::chrono::milliseconds;
  static constexpr Deadline kDefaultDeadline{30'000};

  explicit Client(std::string run_dir) : run_dir_(std::move(run_dir)) {}

  template <class T>
  Result<T> get(std::string_view target, Deadline within = kDefaultDeadline) const {
    MESH_TRY(auto body, request("GET", target, "", within));
    return api::from_text<T>(body);
  }
  template <class T, class Request>
  Result<T> post(std::string_view target, const Request& message,
                 Deadline within = kDefaultDeadline) const {
    MESH_TRY(auto body,
             request("POST", target, boost::json::serialize(api::to_json(message)), within));
    return api::from_text<T>(body);
  }
  // Each line of a reply without end, until `on_line` returns false or meshd ends it; `on_start`
  // once meshd has agreed.
  Result<> stream(std::string_view target, const std::function<void()>& on_start,
                  const std::function<bool(std::string_view)>& on_line) const;

 private:
  Result<std::string> request(std::string_view method, std::string_view target, std::string body,
                              Deadline within) const;

  std::string run_dir_;
};

}  // namespace mesh::cli
