// SharedHashMap: a hash map whose copies share what they have in common, as SharedMap's do
// (shared_map.h; what is said there goes for it), but a lookup looks at one bucket.
#pragma once

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

namespace mesh {

// kMost: entries of a bucket, as a mean.
template <class Key, class Value, class Hash = std::hash<Key>, class Equal = std::equal_to<>,
          std::size_t kMost = 16>
class SharedHashMap {
 public:
  using key_type = Key;
  using mapped_type = Value;
  using value_type = std::pair<Key, Value>;

 private:
  struct Entry {
    std::size_t hash;
    value_type value;
  };
  using Bucket = std::vector<Entry>;
  using Buckets = std::vector<std::shared_ptr<Bucket>>;  // a power of 2 of them; null: empty

 public:
  class const_iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = SharedHashMap::value_type;
    using difference_type = std::ptrdiff_t;
    using pointer = const value_type*;
    using reference = const value_type&;

    const_iterator() = default;
    reference operator*() const { return (*(*buckets_)[bucket_])[at_].value; }
    pointer operator->() const { return &**this; }
    const_iterator& operator++() {
      ++at_;
      settle();
      return *this;
    }
    const_iterator operator++(int) {
      const_iterator before = *this;
      ++*this;
      return before;
    }
    friend bool operator==(const const_iterator& a, const const_iterator& b) {
      return a.bucket_ == b.bucket_ && a.at_ == b.at_;
    }

   private:
    friend SharedHashMap;
    const_iterator(const Buckets& buckets, std::size_t bucket, std::size_t at)
        : buckets_(&buckets), bucket_(bucket), at_(at) {}
    void settle() {
      while (bucket_ != buckets_->size() &&
             (!(*buckets_)[bucket_] || at_ == (*buckets_)[bucket_]->size())) {
        ++bucket_;
        at_ = 0;
      }
    }

    const Buckets* buckets_ = nullptr;
    std::size_t bucket_ = 0, at_ = 0;
  };
  using iterator = const_iterator;

  SharedHashMap() = default;
  SharedHashMap(const SharedHashMap&) = default;
  SharedHashMap& operator=(const SharedHashMap&) = default;
  SharedHashMap(SharedHashMap&& other) noexcept
      : buckets_(std::exchange(other.buckets_, {})), size_(std::exchange(other.size_, 0)) {}
  SharedHashMap& operator=(SharedHashMap&& other) noexcept {
    buckets_ = std::exchange(other.buckets_, {});
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~SharedHashMap() = default;

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const_iterator begin() const {
    const_iterator first(buckets_, 0, 0);
    first.settle();
    return first;
  }
  const_iterator end() const { return {buckets_, buckets_.size(), 0}; }

  template <class K>
  const_iterator find(const K& key) const {
    if (buckets_.empty()) return end();
    const std::size_t hash = Hash{}(key), bucket = hash & (buckets_.size() - 1);
    if (!buckets_[bucket]) return end();
    const Bucket& entries = *buckets_[bucket];
    for (std::size_t i = 0; i < entries.size(); ++i)
      if (entries[i].hash == hash && Equal{}(entries[i].value.first, key))
        return {buckets_, bucket, i};
    return end();
  }
  template <class K>
  bool contains(const K& key) const {
    return find(key) != end();
  }
  template <class K>
  const Value& at(const K& key) const {
    const auto found = find(key);
    assert(found != end());
    return found->second;
  }

  std::pair<const_iterator, bool> emplace(Key key, Value value) {
    if (const auto known = find(key); known != end()) return {known, false};
    if (size_ >= buckets_.size() * kMost) grow();
    const std::size_t hash = Hash{}(key), number = hash & (buckets_.size() - 1);
    Bucket& bucket = own_bucket(number);
    bucket.push_back({hash, {std::move(key), std::move(value)}});
    ++size_;
    return {const_iterator(buckets_, number, bucket.size() - 1), true};
  }
  std::pair<const_iterator, bool> insert_or_assign(Key key, Value value) {
    const auto known = find(key);
    if (known == end()) return emplace(std::move(key), std::move(value));
    own_bucket(known.bucket_)[known.at_].value.second = std::move(value);
    return {known, false};
  }
  template <class K>
  std::size_t erase(const K& key) {
    const auto known = find(key);
    if (known == end()) return 0;
    Bucket& bucket = own_bucket(known.bucket_);
    if (known.at_ + 1 != bucket.size()) bucket[known.at_] = std::move(bucket.back());
    bucket.pop_back();
    --size_;
    return 1;
  }

  // As SharedMap's, in no order.
  template <class Same, class See>
  friend bool each_difference(const SharedHashMap& before, const SharedHashMap& now, Same same,
                              See see) {
    const bool is_alike = before.buckets_.size() == now.buckets_.size();
    const value_type* const none = nullptr;
    for (std::size_t i = 0; i < before.buckets_.size(); ++i) {
      if (!before.buckets_[i] || (is_alike && before.buckets_[i] == now.buckets_[i])) continue;
      for (const Entry& entry : *before.buckets_[i]) {
        const auto found = now.find(entry.value.first);
        if (found == now.end()
                ? !see(&entry.value, none)
                : !same(entry.value.second, found->second) && !see(&entry.value, &*found))
          return false;
      }
    }
    for (std::size_t i = 0; i < now.buckets_.size(); ++i) {
      if (!now.buckets_[i] || (is_alike && before.buckets_[i] == now.buckets_[i])) continue;
      for (const Entry& entry : *now.buckets_[i])
        if (!before.contains(entry.value.first) && !see(none, &entry.value)) return false;
    }
    return true;
  }
  friend bool operator==(const SharedHashMap& a, const SharedHashMap& b) {
    return a.size_ == b.size_ &&
           each_difference(a, b, std::equal_to<>(), [](const auto*, const auto*) { return false; });
  }

 private:
  Bucket& own_bucket(std::size_t number) {
    std::shared_ptr<Bucket>& bucket = buckets_[number];
    if (!bucket) {
      bucket = std::make_shared<Bucket>();
    } else if (bucket.use_count() == 1) {
      // What another thread read before it let the bucket go is read before this one writes.
      std::atomic_thread_fence(std::memory_order_acquire);
    } else {
      bucket = std::make_shared<Bucket>(*bucket);
    }
    return *bucket;
  }

  void grow() {
    Buckets grown(std::max<std::size_t>(1, buckets_.size() * 2));
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      if (!buckets_[i]) continue;
      for (Entry& entry : own_bucket(i)) {
        auto& bucket = grown[entry.hash & (grown.size() - 1)];
        if (!bucket) bucket = std::make_shared<Bucket>();
        bucket->push_back(std::move(entry));
      }
    }
    buckets_ = std::move(grown);
  }

  Buckets buckets_;
  std::size_t size_ = 0;
};

}  // namespace mesh
