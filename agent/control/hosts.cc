#include "control/hosts.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "base/unique_fd.h"

namespace mesh::control {

std::string hosts_text(const config::Snapshot& snapshot) {
  std::map<std::string, std::string> owners;  // short name -> namespace
  for (const auto& [host, service] : snapshot.services) {
    const auto [at, is_new] = owners.try_emplace(service->name.name, service->name.ns);
    if (!is_new && service->name.ns == "default") at->second = "default";
  }
  std::string text =
      "# Written by Undermesh; changes are overwritten.\n"
      "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
  for (const auto& [host, service] : snapshot.services) {
    const auto& [ns, name] = service->name;
    for (const IpAddress& address : service->addresses) {
      text += address.to_string();
      if (owners[name] == ns) text += " " + name;
      text += " " + name + "." + ns + " " + name + "." + ns + ".svc " + service->host + "\n";
    }
  }
  return text;
}

Result<> write_in_place(const std::string& path, std::string_view text) {
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!fd) return errno_error(errno, "open " + path);
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t n = ::pwrite(fd.get(), text.data() + written, text.size() - written,
                               static_cast<off_t>(written));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, "write " + path);
    written += static_cast<std::size_t>(n);
  }
  if (::ftruncate(fd.get(), static_cast<off_t>(text.size())) != 0)
    return errno_error(errno, "truncate " + path);
  return success();
}

}  // namespace mesh::control
