// Map<Key, Value>: a BPF hash map, or trie, with typed entries, and a mirror of what it holds.
//
// The mirror starts empty: read() fills it from the kernel. put() and keep_only() write only the
// differences, which costs no more than they are: once all that is wanted is there the mirror
// shares it, and so shares what stays with what is wanted next. Keys and values are compared byte
// by byte (bpf/shared.h has no hidden padding). Where the keys tell generations apart, a Map is one
// of them: its keys say 0, the kernel's what it is. The descriptor is borrowed. One thread at a
// time.
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
#include "base/shared_map.h"

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

struct SameBytes {
  template <class T>
  bool operator()(const T& a, const T& b) const {
    static_assert(std::has_unique_object_representations_v<T>);
    return std::memcmp(&a, &b, sizeof a) == 0;
  }
};

template <class Key, class Value>
bool is_same(const SharedMap<Key, Value, ByteOrder>& a, const SharedMap<Key, Value, ByteOrder>& b) {
  return a.size() == b.size() &&
         each_difference(a, b, SameBytes(), [](const auto*, const auto*) { return false; });
}

// The keys of `now` that `wanted` has not.
template <class Key, class Value, class Less, std::size_t kMost>
std::vector<Key> keys_but(const SharedMap<Key, Value, Less, kMost>& now,
                          const SharedMap<Key, Value, Less, kMost>& wanted) {
  std::vector<Key> keys;
  const auto any = [](const auto&, const auto&) { return true; };
  each_difference(now, wanted, any, [&](const auto* entry, const auto* kept) {
    if (!kept) keys.push_back(entry->first);
    return true;
  });
  return keys;
}

// The entries of `wanted` that `now` has not, or not the same; they are wanted's.
template <class Entries, class Same>
std::vector<const typename Entries::value_type*> missing_of(const Entries& now,
                                                            const Entries& wanted, Same same) {
  std::vector<const typename Entries::value_type*> missing;
  each_difference(now, wanted, same, [&](const auto*, const auto* entry) {
    if (entry) missing.push_back(entry);
    return true;
  });
  return missing;
}

template <class Key>
constexpr bool kHasGeneration = requires(Key key) { key.generation; };

template <class Key, class Value>
class Map {
 public:
  using Entries = SharedMap<Key, Value, ByteOrder>;
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
    for (const auto* entry : missing_of(entries_, wanted, SameBytes()))
      if (const int error = put(entry->first, entry->second); error != 0)
        failed.emplace(entry->first, error);
    if (failed.empty() && entries_.size() == wanted.size()) entries_ = wanted;
    return failed;
  }

  // One entry, written in any case: 0, or errno, and then it is not in the map either.
  int put(const Key& key, const Value& value) {
    const bool is_known = entries_.contains(key);
    if (!is_known && entries_.size() >= limit_) return E2BIG;
    changed_ = true;
    ++writes_;
    const Key own = of_kernel(key);
    if (::bpf_map_update_elem(fd_, &own, &value, BPF_ANY) == 0) {
      entries_.insert_or_assign(key, value);
      return 0;
    }
    const int error = errno;
    if (!is_known) return error;
    ::bpf_map_delete_elem(fd_, &own);
    entries_.erase(key);
    return error;
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
    for (const Key& key : keys_but(entries_, wanted)) {
      MESH_TRY(remove(key));
    }
    return success();
  }

  Result<> remove(const Key& key) {
    changed_ = true;
    ++writes_;
    const Key own = of_kernel(key);
    if (::bpf_map_delete_elem(fd_, &own) != 0 && errno != ENOENT)
      return errno_error(errno, std::string("delete from map ") + name_);
    entries_.erase(key);
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
