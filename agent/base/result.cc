#include "base/result.h"

#include <cerrno>
#include <cstring>

namespace mesh {

std::string_view to_string(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::not_found:
      return "not_found";
    case Errc::unavailable:
      return "unavailable";
    case Errc::timed_out:
      return "timed_out";
    case Errc::refused:
      return "refused";
    case Errc::reset:
      return "reset";
    case Errc::exhausted:
      return "exhausted";
    case Errc::permission:
      return "permission";
    case Errc::internal:
      return "internal";
  }
  return "internal";
}

Error Error::at(std::string_view context) && {
  return {code, std::string(context) + ": " + message};
}

namespace {

Errc code_of(int err) {
  switch (err) {
    case EINVAL:
    case ENAMETOOLONG:
      return Errc::invalid_argument;
    case ENOENT:
    case ENODEV:
    case ESRCH:
      return Errc::not_found;
    case EAGAIN:
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EADDRNOTAVAIL:
      return Errc::unavailable;
    case ETIMEDOUT:
      return Errc::timed_out;
    case ECONNREFUSED:
      return Errc::refused;
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
      return Errc::reset;
    case ENOMEM:
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case E2BIG:
    case ENOBUFS:
      return Errc::exhausted;
    case EPERM:
    case EACCES:
      return Errc::permission;
    default:
      return Errc::internal;
  }
}

}  // namespace

Error errno_error(int err, std::string_view what) {
  return {code_of(err), std::string(what) + ": " + std::strerror(err)};
}

}  // namespace mesh
