#include "feed/privilege.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace mesh::feed {

Result<> keep_only_capabilities(std::span<const unsigned> kept) {
  for (unsigned cap = 0; ::prctl(PR_CAPBSET_READ, cap) >= 0; ++cap) {
    if (std::ranges::find(kept, cap) != kept.end()) continue;
    if (::prctl(PR_CAPBSET_DROP, cap) != 0)
      return errno_error(errno, "drop a capability from the bounding set");
  }
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0)
    return errno_error(errno, "clear the ambient capabilities");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> data{};
  for (const unsigned cap : kept) {
    data[cap / 32].permitted |= 1U << (cap % 32);
    data[cap / 32].effective |= 1U << (cap % 32);
  }
  if (::syscall(SYS_capset, &header, data.data()) != 0)
    return errno_error(errno, "capset (it is to be started as root)");
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno_error(errno, "no_new_privs");
  return success();
}

Result<> raise_file_limit() {
  constexpr rlim_t kWanted = 1'048'576;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return errno_error(errno, "getrlimit");
  rlimit wanted{kWanted, std::max(limit.rlim_max, kWanted)};
  if (::setrlimit(RLIMIT_NOFILE, &wanted) == 0) return success();
  wanted = {limit.rlim_max, limit.rlim_max};
  if (::setrlimit(RLIMIT_NOFILE, &wanted) != 0) return errno_error(errno, "setrlimit");
  return success();
}

}  // namespace mesh::feed
