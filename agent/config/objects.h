// Objects: a whole set of objects, in the order of their keys. An object may be there in several
// versions for a while: in several files.
//
// A value; copies share what they have in common, and to copy or to compare them costs what
// differs, as with base/shared_map.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "base/shared_map.h"
#include "config/object.h"

namespace mesh::config {

class Objects {
 public:
  using Versions = std::vector<ObjectPtr>;

 private:
  using ByKey = SharedMap<ObjectKey, Versions>;  // none is empty

 public:
  class const_iterator {  // from version to version
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = ObjectPtr;
    using difference_type = std::ptrdiff_t;
    using pointer = const ObjectPtr*;
    using reference = const ObjectPtr&;

    const_iterator() = default;
    explicit const_iterator(ByKey::const_iterator key) : key_(key) {}
    reference operator*() const { return key_->second[version_]; }
    pointer operator->() const { return &**this; }
    const_iterator& operator++() {
      if (++version_ == key_->second.size()) {
        ++key_;
        version_ = 0;
      }
      return *this;
    }
    const_iterator operator++(int) {
      const_iterator before = *this;
      ++*this;
      return before;
    }
    friend bool operator==(const const_iterator&, const const_iterator&) = default;

   private:
    ByKey::const_iterator key_;
    std::size_t version_ = 0;
  };

  Objects() = default;
  // In any order; the versions of a key stay in theirs.
  Objects(const std::vector<ObjectPtr>& objects) {  // NOLINT: a list is one
    for (const ObjectPtr& object : objects) by_key_[object->key].push_back(object);
    size_ = objects.size();
  }

  std::size_t size() const { return size_; }  // of all versions
  bool empty() const { return size_ == 0; }
  const_iterator begin() const { return const_iterator(by_key_.begin()); }
  const_iterator end() const { return const_iterator(by_key_.end()); }
  bool contains(const ObjectKey& key) const { return by_key_.contains(key); }
  Versions versions(const ObjectKey& key) const {
    const auto known = by_key_.find(key);
    return known == by_key_.end() ? Versions() : known->second;
  }
  // None: it is there no more.
  void set(const ObjectKey& key, Versions versions) {
    const auto known = by_key_.find(key);
    if (known != by_key_.end()) size_ -= known->second.size();
    size_ += versions.size();
    if (versions.empty())
      by_key_.erase(key);
    else
      by_key_.insert_or_assign(key, std::move(versions));
  }
  friend bool operator==(const Objects&, const Objects&) = default;  // the same ones

  // Calls see(before, now) for each object that came (before is null), went (now is null) or is
  // another one.
  template <class See>
  friend void each_change(const Objects& before, const Objects& now, See see) {
    static const ObjectPtr kNone;
    static const Versions kNoVersions;
    each_difference(before.by_key_, now.by_key_, [&](const auto* old, const auto* at) {
      const Versions& was = old ? old->second : kNoVersions;
      const Versions& is = at ? at->second : kNoVersions;
      for (std::size_t i = 0; i < std::max(was.size(), is.size()); ++i) {
        const ObjectPtr& one = i < was.size() ? was[i] : kNone;
        const ObjectPtr& other = i < is.size() ? is[i] : kNone;
        if (one != other) see(one, other);
      }
    });
  }

 private:
  ByKey by_key_;
  std::size_t size_ = 0;
};

}  // namespace mesh::config
