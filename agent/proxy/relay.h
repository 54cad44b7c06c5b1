// Bodies on their way: from one stream, through a decoder, framed anew, to another. Never
// collected: at most one buffer is between the two, so a slow reader slows the writer down.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "http/http1.h"
#include "net/buffer_pool.h"
#include "net/stream.h"
#include "net/task.h"

namespace mesh::proxy {

// A pooled buffer with unread bytes in [begin, end). Bytes below `floor` stay where they are (a
// parsed head points into them).
class ReadBuffer {
 public:
  static constexpr std::size_t kRead = 64 * 1024;

  ReadBuffer() = default;
  ReadBuffer(const ReadBuffer&) = delete;
  ReadBuffer& operator=(const ReadBuffer&) = delete;
  ~ReadBuffer() { release(); }

  // `account` counts the buffers that somebody holds.
  void acquire(net::BufferPool& pool, std::size_t& account) {
    if (lease_) return;
    lease_ = pool.take();
    pool_ = &pool;
    account_ = &account;
    ++account;
  }
  void acquire_again() { acquire(*pool_, *account_); }  // after release()
  void release() {
    if (lease_) --*account_;
    lease_.release();
    begin_ = end_ = floor_ = 0;
  }
  bool is_held() const { return static_cast<bool>(lease_); }
  std::string_view unread() const { return {lease_.span().data() + begin_, end_ - begin_}; }
  bool is_empty() const { return begin_ == end_; }
  void consume(std::size_t bytes) { begin_ += bytes; }
  // Everything consumed so far stays in place until unpin().
  void pin() { floor_ = begin_; }
  void unpin();
  // Where the next read goes; makes room by moving unread bytes down to the floor. Empty: full.
  std::span<char> space();
  void filled(std::size_t bytes) { end_ += bytes; }
  // Back to where a relay began (nothing was read since).
  std::size_t position() const { return begin_; }
  void rewind(std::size_t position) { begin_ = position; }

 private:
  net::BufferPool::Lease lease_;
  net::BufferPool* pool_ = nullptr;
  std::size_t* account_ = nullptr;
  std::size_t begin_ = 0, end_ = 0, floor_ = 0;
};

enum class RelayEnd : std::uint8_t {
  kDone,
  kSourceCut,       // ended in good order, but before the body did
  kSourceClosed,    // broke off
  kSourceProtocol,  // is no valid body: `error` of the decoder
  kSinkFailed,
  kCancelled,  // the scope; or nothing moved for too long
};

struct Relay {
  net::Stream& from;
  ReadBuffer& buffer;
  http::BodyDecoder& decoder;
  net::Stream& to;
  http::BodyKind framing = http::BodyKind::none;  // how it is written
  std::string_view prefix;                        // a head, written with the first bytes
  net::IdleClock& idle;                           // runs out: kCancelled
  // Not zero: the scope's deadline once the last byte of the body was taken from `from`.
  std::chrono::milliseconds time_after_body{0};
  // Results, as far as it is:
  std::uint64_t body_bytes = 0;
  bool is_writing = false;  // else it waits for `from`, if at all
  bool wrote = false;       // at least one byte was taken by `to`
  bool took = false;        // at least one byte of the body or its framing was taken from `buffer`
};

// Until the body ends. The prefix goes out at once, with what is already in the buffer.
net::Task<RelayEnd> relay_body(Relay& relay, net::Scope& scope);

// Everything of `from` (what is in the buffer first) to `to`, until the end of the stream, which is
// passed on. False: either broke.
// While nothing comes, `buffer` is given back.
net::Task<bool> relay_raw(net::Stream& from, ReadBuffer& buffer, net::Stream& to,
                          net::IdleClock& idle, std::uint64_t& bytes, net::Scope& scope);

}  // namespace mesh::proxy
