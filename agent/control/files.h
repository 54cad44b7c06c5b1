// Files: the seam to the file system, so that every step of writing can be made to fail in a test.
// Paths are absolute or relative to the working directory. One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mesh::control {

class Files {
 public:
  enum class Type : std::uint8_t { kFile, kDirectory, kLink, kOther };
  struct Entry {
    std::string path;
    std::uint64_t inode = 0;
    std::uint64_t size = 0;
    std::int64_t modified_ns = 0;
    Type type = Type::kFile;
    friend bool operator==(const Entry&, const Entry&) = default;
  };

  virtual ~Files() = default;
  // At most 16 MiB. Regular files alone: a link is not followed, and nothing is waited for.
  virtual Result<std::string> read(const std::string& path) = 0;
  virtual Result<> write(const std::string& path, std::string_view text) = 0;  // and fsync
  virtual Result<> rename(const std::string& from, const std::string& to) = 0;
  virtual Result<> sync_directory(const std::string& path) = 0;
  virtual Result<> remove(const std::string& path) = 0;  // an absent file is no error
  // One that is there is no error; not_found: its parent is not.
  virtual Result<> make_directory(const std::string& path) = 0;
  // What is below `directory`, of any type, sorted; names that begin with a dot are passed over,
  // and links are not followed.
  virtual Result<std::vector<Entry>> list(const std::string& directory) = 0;
};

std::unique_ptr<Files> posix_files();

// Makes what is missing on the way to `path`, for good: each is in its parent after a crash too.
Result<> make_directories(Files& files, const std::string& path);
// The old text or the new one, never less, also through a crash: temporary file, fsync, rename,
// fsync of the directory (which is made when it is absent).
Result<> replace_file(Files& files, const std::string& path, std::string_view text);
// Removes it for good: fsync of the directory.
Result<> remove_file(Files& files, const std::string& path);

std::string directory_of(const std::string& path);

}  // namespace mesh::control
