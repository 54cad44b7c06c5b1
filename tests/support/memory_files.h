// MemoryFiles: control::Files in memory. Fails at the n-th operation where a test says so, and can
// forget what was not synced, as a machine that loses power does.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "control/files.h"

namespace mesh::test {

class MemoryFiles final : public control::Files {
 public:
  std::map<std::string, std::string> texts;  // path -> what is there
  int fail_at = 0;                           // the n-th operation fails (1: the next); 0: none
  int operations = 0;
  std::string full;  // what is done to a path that begins so fails; "": none

  // What a crash leaves: the directory entries that were synced.
  void crash() {
    directories_ = synced_directories_;
    texts = synced_;
    std::erase_if(texts, [this](const auto& file) { return !is_reached(file.first); });
  }

  Result<std::string> read(const std::string& path) override {
    const auto found = texts.find(path);
    if (found == texts.end()) return Error{Errc::not_found, path + ": no such file"};
    if (types_[path] != Type::kFile) return Error{Errc::refused, path + ": is not a file"};
    return found->second;
  }
  Result<> write(const std::string& path, std::string_view text) override {
    MESH_TRY(operation("write " + path));
    if (!has_directory(control::directory_of(path)))
      return Error{Errc::not_found, path + ": no such directory"};
    set(path, std::string(text));
    return success();
  }
  Result<> rename(const std::string& from, const std::string& to) override {
    MESH_TRY(operation("rename " + to));
    set(to, texts.at(from));
    texts.erase(from);
    return success();
  }
  Result<> sync_directory(const std::string& path) override {
    MESH_TRY(operation("fsync " + path));
    for (auto& [name, text] : synced_)
      if (control::directory_of(name) == path && !texts.contains(name)) text = "(gone)";
    std::erase_if(synced_, [](const auto& file) { return file.second == "(gone)"; });
    for (const auto& [name, text] : texts)
      if (control::directory_of(name) == path) synced_[name] = text;
    for (const std::string& name : directories_)
      if (control::directory_of(name) == path) synced_directories_.insert(name);
    return success();
  }
  Result<> remove(const std::string& path) override {
    MESH_TRY(operation("unlink " + path));
    texts.erase(path);
    return success();
  }
  Result<> make_directory(const std::string& path) override {
    MESH_TRY(operation("mkdir " + path));
    if (!has_directory(control::directory_of(path)))
      return Error{Errc::not_found, path + ": its parent is not there"};
    directories_.insert(path);
    return success();
  }
  Result<std::vector<Entry>> list(const std::string& directory) override {
    if (!has_directory(directory)) return Error{Errc::not_found, directory + ": not there"};
    std::vector<Entry> found;
    for (const auto& [path, text] : texts)
      if (path.starts_with(directory + "/") && path.find("/.") == std::string::npos)
        found.push_back({path, stamps_[path], text.size(), 0, types_[path]});
    return found;
  }
  // A directory with all that is in it; and back.
  void move_away(const std::string& directory) {
    const auto is_in = [&](const std::string& path) {
      return path == directory || path.starts_with(directory + "/");
    };
    for (const auto& [path, text] : texts)
      if (is_in(path)) away_[path] = text;
    for (const std::string& path : directories_)
      if (is_in(path)) directories_away_.insert(path);
    std::erase_if(texts, [&](const auto& file) { return is_in(file.first); });
    std::erase_if(directories_, is_in);
  }
  void put_back() {
    texts.merge(away_);
    directories_.merge(directories_away_);
  }
  // As a person or an editor does it.
  void set(const std::string& path, std::string text) {
    texts[path] = std::move(text);
    stamps_[path] = ++stamp_;
    types_[path] = Type::kFile;
  }
  void set_odd(const std::string& path, Type type) {
    set(path, "");
    types_[path] = type;
  }

 private:
  bool has_directory(const std::string& path) const {
    return path == "/" || directories_.contains(path);
  }
  bool is_reached(const std::string& path) const {
    const std::string parent = control::directory_of(path);
    return parent == "/" || (directories_.contains(parent) && is_reached(parent));
  }
  Result<> operation(const std::string& what) {
    ++operations;
    const bool is_full = !full.empty() && what.substr(what.find(' ') + 1).starts_with(full);
    if (!is_full && (fail_at == 0 || --fail_at > 0)) return success();
    return Error{Errc::internal, what + ": no space left on device"};
  }
  std::map<std::string, std::string> synced_, away_;
  std::set<std::string> directories_, synced_directories_, directories_away_;
  std::map<std::string, std::uint64_t> stamps_;
  std::map<std::string, Type> types_;
  std::uint64_t stamp_ = 0;
};

}  // namespace mesh::test
