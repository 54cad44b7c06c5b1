// BufferPool: the 80 KiB buffers that heads and bodies pass through, recycled per thread, last in
// first out (its pages are still warm). Only what is in flight holds one. One thread.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/counter.h"

namespace mesh::net {

// Bytes in the middle of a fixed block: read in at the end, taken off at the front.
struct BufferBlock {
  // A whole head (http::Limits::head_bytes), the most that a codec may ask to keep, and room.
  static constexpr std::size_t kCapacity = 80 * 1024;
  char bytes[kCapacity];
};

class BufferPool {
 public:
  class Lease {
   public:
    Lease() = default;
    Lease(BufferPool* pool, std::unique_ptr<BufferBlock> block)
        : pool_(pool), block_(std::move(block)) {}
    Lease(Lease&& other) noexcept = default;
    Lease& operator=(Lease&& other) noexcept {
      release();
      pool_ = other.pool_;
      block_ = std::move(other.block_);
      return *this;
    }
    ~Lease() { release(); }
    explicit operator bool() const { return block_ != nullptr; }
    std::span<char> span() const { return {block_->bytes, BufferBlock::kCapacity}; }
    void release() {
      if (block_) pool_->give_back(std::move(block_));
    }

   private:
    BufferPool* pool_ = nullptr;
    std::unique_ptr<BufferBlock> block_;
  };

  explicit BufferPool(std::size_t keep = 256) : keep_(keep) {}

  Lease take() {
    in_use_.add();
    if (free_.empty()) return {this, std::unique_ptr<BufferBlock>(new BufferBlock)};
    Lease lease(this, std::move(free_.back()));
    free_.pop_back();
    return lease;
  }
  std::size_t in_use() const { return in_use_.value(); }  // any thread may ask

 private:
  void give_back(std::unique_ptr<BufferBlock> block) {
    in_use_.subtract();
    if (free_.size() < keep_) free_.push_back(std::move(block));
  }
  std::size_t keep_;
  Counter in_use_;
  std::vector<std::unique_ptr<BufferBlock>> free_;
};

}  // namespace mesh::net
