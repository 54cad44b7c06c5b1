#include "control/files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/unique_fd.h"

namespace mesh::control {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxFile = std::size_t{16} << 20U;

Result<> write_all(int fd, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno_error(errno, "write " + path);
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return success();
}

std::string_view what_is(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something else";
}

Files::Type type_of(mode_t mode) {
  if (S_ISREG(mode)) return Files::Type::kFile;
  if (S_ISDIR(mode)) return Files::Type::kDirectory;
  return S_ISLNK(mode) ? Files::Type::kLink : Files::Type::kOther;
}

class PosixFiles final : public Files {
 public:
  Result<std::string> read(const std::string& path) override {
    const UniqueFd fd(
        ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
    if (!fd && errno == ELOOP)
      return Error{Errc::refused, path + ": is a symbolic link, not a file; put the file there"};
    struct stat status{};
    if (!fd || ::fstat(fd.get(), &status) != 0) return errno_error(errno, "open " + path);
    if (!S_ISREG(status.st_mode))
      return Error{Errc::refused, path + ": is " + std::string(what_is(status.st_mode)) +
                                      ", not a file; remove or rename it"};
    std::string text;
    char chunk[65536];
    while (true) {
      const ssize_t got = ::read(fd.get(), chunk, sizeof chunk);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return errno_error(errno, "read " + path);
      if (got == 0) return text;
      text.append(chunk, static_cast<std::size_t>(got));
      if (text.size() > kMaxFile) return Error{Errc::exhausted, path + ": larger than 16 MiB"};
    }
  }

  Result<> write(const std::string& path, std::string_view text) override {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!fd) return errno_error(errno, "open " + path);
    MESH_TRY(write_all(fd.get(), text, path));
    if (::fsync(fd.get()) != 0) return errno_error(errno, "fsync " + path);
    return success();
  }

  Result<> rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) return errno_error(errno, "rename to " + to);
    return success();
  }

  Result<> sync_directory(const std::string& path) override {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return errno_error(errno, "open " + path);
    if (::fsync(fd.get()) != 0) return errno_error(errno, "fsync " + path);
    return success();
  }

  Result<> remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return errno_error(errno, "unlink " + path);
    return success();
  }

  Result<> make_directory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0755) == 0) return success();
    const int error = errno;
    struct stat status{};
    if (error == EEXIST && ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode))
      return success();
    return errno_error(error, "mkdir " + path);
  }

  Result<std::vector<Entry>> list(const std::string& directory) override {
    std::vector<Entry> found;
    std::error_code error;
    fs::recursive_directory_iterator at(directory, error);
    if (error) return errno_error(error.value(), "list " + directory);
    for (const fs::recursive_directory_iterator end; at != end; at.increment(error)) {
      struct stat status{};
      const std::string path = at->path().string();
      if (at->path().filename().string().starts_with('.')) {
        if (at->is_directory(error)) at.disable_recursion_pending();
        continue;
      }
      if (::lstat(path.c_str(), &status) != 0) continue;  // gone meanwhile
      found.push_back({path, status.st_ino, static_cast<std::uint64_t>(status.st_size),
                       status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec,
                       type_of(status.st_mode)});
    }
    if (error) return errno_error(error.value(), "list " + directory);
    std::ranges::sort(found, {}, &Entry::path);
    return found;
  }
};

}  // namespace

std::unique_ptr<Files> posix_files() { return std::make_unique<PosixFiles>(); }

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The parent is synced also where the directory was there already: whoever made it may have been
// stopped before.
Result<> make_directories(Files& files, const std::string& path) {
  const std::string parent = directory_of(path);
  auto made = files.make_directory(path);
  if (!made && made.error().code == Errc::not_found && parent != path) {
    MESH_TRY(make_directories(files, parent));
    made = files.make_directory(path);
  }
  if (!made) return made;
  return files.sync_directory(parent);
}

Result<> replace_file(Files& files, const std::string& path, std::string_view text) {
  const std::string directory = directory_of(path);
  const std::string temporary = directory + "/." + path.substr(path.rfind('/') + 1) + ".tmp";
  MESH_TRY(make_directories(files, directory));
  auto written = [&]() -> Result<> {
    MESH_TRY(files.write(temporary, text));
    return files.rename(temporary, path);
  }();
  if (!written) {
    (void)files.remove(temporary).has_value();
    return written;
  }
  return files.sync_directory(directory);
}

Result<> remove_file(Files& files, const std::string& path) {
  MESH_TRY(files.remove(path));
  return files.sync_directory(directory_of(path));
}

}  // namespace mesh::control
