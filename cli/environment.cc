#include "environment.h"

#include <unistd.h>

namespace mesh::cli {

int exit_code(const Error& error) {
  switch (error.code) {
    case Errc::unavailable:
      return kNotRunning;
    case Errc::not_found:
      return kNotFound;
    case Errc::permission:
      return kPermission;
    default:
      return kFailed;
  }
}

Result<> require_root(std::string_view what) {
  if (::geteuid() == 0) return success();
  return Error{Errc::permission, std::string(what) + " needs root; run it with sudo"};
}

}  // namespace mesh::cli
