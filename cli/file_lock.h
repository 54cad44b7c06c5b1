// Whole-file locks that belong to the open file (OFD): gone with the last descriptor, also after
// kill -9, and can be looked at without being taken.
#pragma once

#include <fcntl.h>

#include <string>

#include "base/unique_fd.h"

namespace mesh::cli {

inline bool try_lock(int fd) {
  struct flock all{};
  all.l_type = F_WRLCK;
  return ::fcntl(fd, F_OFD_SETLK, &all) == 0;
}

inline bool lock(int fd) {  // waits
  struct flock all{};
  all.l_type = F_WRLCK;
  return ::fcntl(fd, F_OFD_SETLKW, &all) == 0;
}

inline bool is_locked(const std::string& path) {  // by another open file; no such file: no
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));  // anyone may look
  if (!fd) return false;
  struct flock all{};
  all.l_type = F_WRLCK;
  return ::fcntl(fd.get(), F_OFD_GETLK, &all) == 0 && all.l_type != F_UNLCK;
}

}  // namespace mesh::cli
