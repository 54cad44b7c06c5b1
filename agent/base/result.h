// Result<T>: the value, or an Error that says what went wrong and, for people, what to do.
//
// Everything that the network, the kernel, a file or a user can cause is a Result. Codes are few:
// callers act on them; the message is for people (lower case, no final dot, names the object).
// Propagate with MESH_TRY(auto v, expr) or MESH_TRY(expr); in coroutines MESH_CO_TRY.
// Values; safe to move between threads. Reading the value of a failed Result ends the process.
#pragma once

#include <boost/outcome/basic_result.hpp>
#include <boost/outcome/policy/terminate.hpp>
#include <boost/outcome/try.hpp>
#include <string>
#include <string_view>
#include <utility>

namespace mesh {

enum class Errc {
  invalid_argument,
  not_found,
  unavailable,
  timed_out,
  refused,
  reset,
  exhausted,
  permission,
  internal,
};

std::string_view to_string(Errc code);

struct Error {
  Errc code = Errc::internal;
  std::string message;

  // The same error, with the place that knows the context in front: "reviews.yaml:14: <message>".
  [[nodiscard]] Error at(std::string_view context) &&;
  friend bool operator==(const Error&, const Error&) = default;
};

template <class T = void>
using Result =  // nodiscard, as basic_result is
    boost::outcome_v2::basic_result<T, Error, boost::outcome_v2::policy::terminate>;

using boost::outcome_v2::success;

// The error for a failed system call: maps errno to a code and appends strerror.
Error errno_error(int err, std::string_view what);

}  // namespace mesh

#define MESH_TRY(...) BOOST_OUTCOME_TRY(__VA_ARGS__)
#define MESH_CO_TRY(...) BOOST_OUTCOME_CO_TRY(__VA_ARGS__)
