// Map<Key, Value>: a BPF hash map, or trie, with typed entries, and a mirror of what it holds.
//
// The mirror starts empty: read() fills it from the kernel. put() and keep_only() write only the
// differences. Keys and values are compared byte by byte (bpf/shared.h has no hidden padding).
// Where the keys tell generations apart, a Map is one of them: its keys say 0, the kernel's what it
// is. The descriptor is borrowed. One thread at a time.
#pragma once

#include <bpf/bpf.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/result.h"

namespace mesh::datapath {

struct ByteOrder {
  template <class T>
  bool operator()(const T& a, const T& b) const {
    static_assert(std::has_unique_object_representations_v<T>);
    return std::memcmp(&a, &b, sizeof a) < 0;
  }
};

template <class Entries>
bool is_same(const Entries& a, const Entries& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto& x, auto& y) {
           return std::memcmp(&x.first, &y.first, sizeof x.first) == 0 &&
                  std::memcmp(&x.second, &y.second, sizeof x.second) == 0;
         });
}

template <class Key>
constexpr bool kHasGeneration = requires(Key key) { key.generation; };

template <class Key, class Value>
class Map {
 public:
  using Entries = std::map<Key, Value, ByteOrder>;
  using Failures = std::map<Key, int, ByteOrder>;  // errno

  // limit: of its share, where it shares the kernel's map.
  Map(int fd, const char* name, std::uint32_t generation = 0, std::size_t limit = SIZE_MAX)
      : fd_(fd), name_(name), generation_(generation), limit_(limit) {}

  const Entries& entries() const { return entries_; }
  // Something was written or deleted since this was asked last.
  bool take_changed() { return std::exchange(changed_, false); }
  std::uint64_t writes() const { return writes_; }  // entries written or deleted so far

  Result<> read() {
    entries_.clear();
    Key key{}, next{};
    Value value{};
    for (const void* at = nullptr; ::bpf_map_get_next_key(fd_, at, &next) == 0; at = &key) {
      key = next;
      if constexpr (kHasGeneration<Key>) {
        if (key.generation != generation_) continue;
      }
      if (::bpf_map_lookup_elem(fd_, &key, &value) == 0) entries_.emplace(of_mirror(key), value);
    }
    if (errno != ENOENT) return errno_error(errno, std::string("read map ") + name_);
    return success();
  }

  // Writes what is missing or different; returns the entries that did not go in. Such
  // an entry is not in the map at all afterwards: never an old value in place of a new one.
  Failures put(const Entries& wanted) {
    Failures failed;
    for (const auto& [key, value] : wanted) {
      auto known = entries_.find(key);
      if (known != entries_.end() && std::memcmp(&known->second, &value, sizeof value) == 0)
        continue;
      if (known == entries_.end() && entries_.size() >= limit_) {
        failed.emplace(key, E2BIG);
        continue;
      }
      changed_ = true;
      ++writes_;
      const Key own = of_kernel(key);
      if (::bpf_map_update_elem(fd_, &own, &value, BPF_ANY) == 0) {
        entries_.insert_or_assign(key, value);
        continue;
      }
      failed.emplace(key, errno);
      if (known == entries_.end()) continue;
      ::bpf_map_delete_elem(fd_, &own);
      entries_.erase(known);
    }
    return failed;
  }

  // What we wrote under this key is there no more, or is another: written again. False: it is as it
  // was, or we wrote nothing.
  Result<bool> restore(const Key& key) {
    const auto known = entries_.find(key);
    if (known == entries_.end()) return false;
    const Key own = of_kernel(key);
    Value value{};
    if (::bpf_map_lookup_elem(fd_, &own, &value) == 0 &&
        std::memcmp(&known->second, &value, sizeof value) == 0)
      return false;
    if (::bpf_map_update_elem(fd_, &own, &known->second, BPF_ANY) != 0)
      return errno_error(errno, std::string("write again to map ") + name_);
    ++writes_;
    return true;
  }

  // restore() for so many of them at most, from where the last call ended, none twice; how many
  // were written.
  Result<std::size_t> restore_some(std::size_t count) {
    std::size_t restored = 0;
    for (count = std::min(count, entries_.size()); count != 0; --count) {
      auto at = looked_at_ ? entries_.upper_bound(*looked_at_) : entries_.begin();
      if (at == entries_.end()) at = entries_.begin();
      looked_at_ = at->first;
      MESH_TRY(const bool was_restored, restore(at->first));
      restored += was_restored ? 1 : 0;
    }
    return restored;
  }

  // Deletes everything that is not wanted.
  Result<> keep_only(const Entries& wanted) {
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      if (wanted.contains(entry->first)) {
        ++entry;
        continue;
      }
      changed_ = true;
      ++writes_;
      const Key own = of_kernel(entry->first);
      if (::bpf_map_delete_elem(fd_, &own) != 0 && errno != ENOENT)
        return errno_error(errno, std::string("delete from map ") + name_);
      entry = entries_.erase(entry);
    }
    return success();
  }

 private:
  Key of_kernel(Key key) const {
    if constexpr (kHasGeneration<Key>) key.generation = generation_;
    return key;
  }
  static Key of_mirror(Key key) {
    if constexpr (kHasGeneration<Key>) key.generation = 0;
    return key;
  }

  int fd_;
  const char* name_;
  std::uint32_t generation_;
  std::size_t limit_;
  Entries entries_;
  std::optional<Key> looked_at_;  // restore_some() goes on after it
  bool changed_ = false;
  std::uint64_t writes_ = 0;
};

}  // namespace mesh::datapath
