#include "datapath/links.h"

#include <bpf/bpf.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "datapath/object.h"

namespace mesh::datapath {

namespace fs = std::filesystem;

namespace {

// As /proc/self/fdinfo says ("map_id:\t7"): the kernel itself takes one for another.
std::string identity_of(int fd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
  for (std::string line; std::getline(info, line);)
    for (const char* kind : {"map", "prog", "link"})
      if (line.starts_with(std::string(kind) + "_id:")) return line;
  return {};
}

}  // namespace

Result<> make_dir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return success();
  return errno_error(errno, "create " + path);
}

Result<> unpin(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) return success();
  if (errno == EISDIR) return detach_tree(path, nullptr);
  return errno_error(errno, "remove " + path);
}

Result<> pin_over(int fd, const std::string& path) {
  std::string fresh = path + "_new";
  MESH_TRY(unpin(fresh));
  if (::bpf_obj_pin(fd, fresh.c_str()) != 0) return errno_error(errno, "pin " + fresh);
  if (::rename(fresh.c_str(), path.c_str()) == 0) return success();
  if (errno != EISDIR) return errno_error(errno, "rename to " + path);
  MESH_TRY(unpin(path));
  if (::rename(fresh.c_str(), path.c_str()) != 0) return errno_error(errno, "rename to " + path);
  return success();
}

Result<bool> restore_pin(int fd, const std::string& path) {
  const UniqueFd there(::bpf_obj_get(path.c_str()));
  if (there && identity_of(there.get()) == identity_of(fd)) return false;
  MESH_TRY(pin_over(fd, path));
  return true;
}

std::string kind_of(int fd) {
  const std::string identity = identity_of(fd);
  return identity.substr(0, identity.find('_'));
}

Result<bpf_link_info> info_of_link(int fd, const std::string& path) {
  bpf_link_info info{};
  std::uint32_t size = sizeof info;
  if (::bpf_obj_get_info_by_fd(fd, &info, &size) != 0) return errno_error(errno, "read " + path);
  return info;
}

std::vector<std::string> names_in(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code gone;
  for (fs::directory_iterator at(dir, gone), end; !gone && at != end; at.increment(gone))
    names.push_back(at->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

Result<std::uint32_t> program_id(int fd) {
  bpf_prog_info info{};
  std::uint32_t size = sizeof info;
  if (::bpf_obj_get_info_by_fd(fd, &info, &size) != 0)
    return errno_error(errno, "read a program's id");
  return info.id;
}

}  // namespace mesh::datapath
