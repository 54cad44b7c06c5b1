// SharedMap: an ordered map whose copies share what they have in common.
//
// A value: copies are equal and independent. A copy costs a pointer for each block of entries, a
// comparison of maps that came from one another what differs, a lookup two searches; a change
// copies one block, where others have it. References and iterators end with the next change, what
// operator[] returned with the next copy, too: it is others' as well then. Two threads may have
// copies of one map; one map is one thread's at a time. (Thread sanitizer does not know the fence
// that makes a block one's own again: to write to copies in two threads it would call a race.)
// Names of std::map mean what they do there, but for at(), whose key must be there.
#pragma once

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

namespace mesh {

// kMost: entries of a block.
template <class Key, class Value, class Less = std::less<>, std::size_t kMost = 64>
class SharedMap {
 public:
  static_assert(kMost >= 4);
  using key_type = Key;
  using mapped_type = Value;
  using value_type = std::pair<Key, Value>;

 private:
  using Block = std::vector<value_type>;  // sorted, never empty
  using Blocks = std::vector<std::shared_ptr<Block>>;

 public:
  class const_iterator {
   public:
    using iterator_category = std::forward_iterator_tag;
    using value_type = SharedMap::value_type;
    using difference_type = std::ptrdiff_t;
    using pointer = const value_type*;
    using reference = const value_type&;

    const_iterator() = default;
    reference operator*() const { return (*(*blocks_)[block_])[at_]; }
    pointer operator->() const { return &**this; }
    const_iterator& operator++() {
      if (++at_ == (*blocks_)[block_]->size()) {
        ++block_;
        at_ = 0;
      }
      return *this;
    }
    const_iterator operator++(int) {
      const_iterator before = *this;
      ++*this;
      return before;
    }
    friend bool operator==(const const_iterator& a, const const_iterator& b) {
      return a.block_ == b.block_ && a.at_ == b.at_;
    }

   private:
    friend SharedMap;
    const_iterator(const Blocks& blocks, std::size_t block, std::size_t at)
        : blocks_(&blocks), block_(block), at_(at) {}
    // At the first entry of a block that both have.
    bool shares_block(const const_iterator& other) const {
      return at_ == 0 && other.at_ == 0 && (*blocks_)[block_] == (*other.blocks_)[other.block_];
    }
    void skip_block() {
      ++block_;
      at_ = 0;
    }

    const Blocks* blocks_ = nullptr;
    std::size_t block_ = 0, at_ = 0;
  };
  using iterator = const_iterator;

  SharedMap() = default;
  SharedMap(std::initializer_list<value_type> entries) {
    for (const value_type& entry : entries) emplace(entry.first, entry.second);
  }
  SharedMap(const SharedMap&) = default;
  SharedMap& operator=(const SharedMap&) = default;
  SharedMap(SharedMap&& other) noexcept
      : blocks_(std::exchange(other.blocks_, {})), size_(std::exchange(other.size_, 0)) {}
  SharedMap& operator=(SharedMap&& other) noexcept {
    blocks_ = std::exchange(other.blocks_, {});
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~SharedMap() = default;

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const_iterator begin() const { return {blocks_, 0, 0}; }
  const_iterator end() const { return {blocks_, blocks_.size(), 0}; }

  template <class K>
  const_iterator lower_bound(const K& key) const {
    const auto block = std::ranges::partition_point(
        blocks_, [&](const auto& one) { return Less{}(one->back().first, key); });
    if (block == blocks_.end()) return end();
    const auto at = std::ranges::partition_point(
        **block, [&](const value_type& entry) { return Less{}(entry.first, key); });
    return {blocks_, static_cast<std::size_t>(block - blocks_.begin()),
            static_cast<std::size_t>(at - (*block)->begin())};
  }
  template <class K>
  const_iterator upper_bound(const K& key) const {
    const_iterator at = lower_bound(key);
    return at != end() && !Less{}(key, at->first) ? ++at : at;
  }
  const_iterator lower_bound(const Key& key) const { return lower_bound<Key>(key); }
  const_iterator upper_bound(const Key& key) const { return upper_bound<Key>(key); }
  template <class K>
  const_iterator find(const K& key) const {
    const const_iterator at = lower_bound(key);
    return at != end() && !Less{}(key, at->first) ? at : end();
  }
  const_iterator find(const Key& key) const { return find<Key>(key); }
  template <class K>
  bool contains(const K& key) const {
    return find(key) != end();
  }
  bool contains(const Key& key) const { return find(key) != end(); }
  std::size_t count(const Key& key) const { return contains(key) ? 1 : 0; }
  const Value& at(const Key& key) const {
    const auto found = find(key);
    assert(found != end());
    return found->second;
  }

  template <class... Arguments>
  std::pair<const_iterator, bool> try_emplace(Key key, Arguments&&... arguments) {
    const const_iterator at = lower_bound(key);
    if (at != end() && !Less{}(key, at->first)) return {at, false};
    return {
        insert_at(at, value_type(std::piecewise_construct, std::forward_as_tuple(std::move(key)),
                                 std::forward_as_tuple(std::forward<Arguments>(arguments)...))),
        true};
  }
  std::pair<const_iterator, bool> emplace(Key key, Value value) {
    return try_emplace(std::move(key), std::move(value));
  }
  std::pair<const_iterator, bool> insert(value_type entry) {
    return try_emplace(std::move(entry.first), std::move(entry.second));
  }
  std::pair<const_iterator, bool> insert_or_assign(Key key, Value value) {
    const const_iterator at = lower_bound(key);
    if (at == end() || Less{}(key, at->first))
      return {insert_at(at, {std::move(key), std::move(value)}), true};
    own(at) = std::move(value);
    return {at, false};
  }
  Value& operator[](const Key& key) { return own(try_emplace(key).first); }

  // The entry behind it.
  const_iterator erase(const_iterator at) {
    Block& block = own_block(at.block_);
    block.erase(block.begin() + static_cast<std::ptrdiff_t>(at.at_));
    --size_;
    if (block.empty()) {
      blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(at.block_));
      return {blocks_, at.block_, 0};
    }
    if (at.block_ != 0 && block.size() + blocks_[at.block_ - 1]->size() <= kMost / 2) {
      --at.block_;
      at.at_ += blocks_[at.block_]->size();
      join_next(at.block_);
    } else if (at.block_ + 1 != blocks_.size() &&
               block.size() + blocks_[at.block_ + 1]->size() <= kMost / 2) {
      join_next(at.block_);
    }
    if (at.at_ == blocks_[at.block_]->size()) at.skip_block();
    return at;
  }
  std::size_t erase(const Key& key) {
    const const_iterator at = find(key);
    if (at == end()) return 0;
    erase(at);
    return 1;
  }
  void clear() { *this = SharedMap(); }

  // Calls see(before, now) for each entry that came (before is null), went (now is null) or has
  // another value, in the order of the keys, until it returns false; it must change neither map.
  // Costs what differs, where one came from the other.
  template <class Same, class See>
  friend bool each_difference(const SharedMap& before, const SharedMap& now, Same same, See see) {
    const_iterator old = before.begin(), at = now.begin();
    const const_iterator old_end = before.end(), end = now.end();
    const value_type* const none = nullptr;
    while (old != old_end || at != end) {
      bool goes_on = true;
      if (old != old_end && at != end && old.shares_block(at)) {
        old.skip_block();
        at.skip_block();
      } else if (at == end || (old != old_end && Less{}(old->first, at->first))) {
        goes_on = see(&*old++, none);
      } else if (old == old_end || Less{}(at->first, old->first)) {
        goes_on = see(none, &*at++);
      } else {
        goes_on = same(old->second, at->second) || see(&*old, &*at);
        ++old, ++at;
      }
      if (!goes_on) return false;
    }
    return true;
  }
  friend bool operator==(const SharedMap& a, const SharedMap& b) {
    return a.size_ == b.size_ &&
           each_difference(a, b, std::equal_to<>(), [](const auto*, const auto*) { return false; });
  }

 private:
  Value& own(const_iterator at) { return own_block(at.block_)[at.at_].second; }

  Block& own_block(std::size_t number) {
    std::shared_ptr<Block>& block = blocks_[number];
    if (block.use_count() == 1) {
      // What another thread read before it let the block go is read before this one writes.
      std::atomic_thread_fence(std::memory_order_acquire);
      return *block;
    }
    auto copy = std::make_shared<Block>();
    copy->reserve(kMost);
    copy->assign(block->begin(), block->end());
    block = std::move(copy);
    return *block;
  }

  const_iterator insert_at(const_iterator at, value_type entry) {
    ++size_;
    if (at.block_ == blocks_.size() && !blocks_.empty()) {  // behind all others
      --at.block_;
      at.at_ = blocks_.back()->size();
    }
    if (blocks_.empty() || (at.at_ == kMost && at.block_ + 1 == blocks_.size())) {
      blocks_.push_back(std::make_shared<Block>());
      at = {blocks_, blocks_.size() - 1, 0};
    } else if (blocks_[at.block_]->size() == kMost) {
      split(at);
    }
    Block& block = own_block(at.block_);
    block.insert(block.begin() + static_cast<std::ptrdiff_t>(at.at_), std::move(entry));
    return at;
  }

  // In two; `at` stays at the same place.
  void split(const_iterator& at) {
    Block& first = own_block(at.block_);
    auto second = std::make_shared<Block>();
    second->reserve(kMost);
    const auto middle = first.begin() + kMost / 2;
    second->assign(std::make_move_iterator(middle), std::make_move_iterator(first.end()));
    first.erase(middle, first.end());
    blocks_.insert(blocks_.begin() + static_cast<std::ptrdiff_t>(at.block_) + 1, std::move(second));
    if (at.at_ <= kMost / 2) return;
    ++at.block_;
    at.at_ -= kMost / 2;
  }

  void join_next(std::size_t number) {
    Block& block = own_block(number);
    const Block& next = *blocks_[number + 1];
    block.insert(block.end(), next.begin(), next.end());
    blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(number) + 1);
  }

  Blocks blocks_;
  std::size_t size_ = 0;
};

// The same, of any maps of this file and of shared_hash_map.h whose values can be compared.
template <class Map, class See>
void each_difference(const Map& before, const Map& now, See see) {
  each_difference(before, now, std::equal_to<>(), [&](const auto* old, const auto* at) {
    see(old, at);
    return true;
  });
}

template <class Key, class Value, class Less, std::size_t kMost, class Predicate>
std::size_t erase_if(SharedMap<Key, Value, Less, kMost>& map, Predicate is_unwanted) {
  const std::size_t before = map.size();
  for (auto at = map.begin(); at != map.end();) {
    if (is_unwanted(*at))
      at = map.erase(at);
    else
      ++at;
  }
  return before - map.size();
}

}  // namespace mesh
