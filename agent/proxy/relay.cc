#include "proxy/relay.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "proxy/limits.h"

namespace mesh::proxy {

namespace {

constexpr std::size_t kMaxPieces = 32;  // of one write: many small chunks are joined into one

enum class Gathered : std::uint8_t { kFull, kMore, kEnd, kError };

// One write: the prefix, a chunk header, pieces of the body, the end of the chunk or body.
struct Batch {
  std::array<iovec, kMaxPieces + 4> parts;
  std::size_t count = 0;
  http::ChunkHeader header;
  std::string last_chunk;
  std::array<char, 2048> small;

  // One small piece costs the kernel less than a few smaller ones. Returns the size.
  std::size_t join_if_small() {
    const std::size_t total = size();
    if (count < 2 || total > small.size()) return total;
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(small.data() + at, parts[i].iov_base, parts[i].iov_len);
      at += parts[i].iov_len;
    }
    parts[0] = {small.data(), total};
    count = 1;
    return total;
  }
  std::size_t size() const {
    std::size_t total = 0;
    for (std::size_t i = 0; i < count; ++i) total += parts[i].iov_len;
    return total;
  }
  void add(std::string_view bytes) {
    if (!bytes.empty()) parts[count++] = {const_cast<char*>(bytes.data()), bytes.size()};
  }
};

Gathered gather(Relay& relay, Batch& batch) {
  const bool chunked = relay.framing == http::BodyKind::chunked;
  batch.count = 0;
  batch.add(relay.prefix);
  const std::size_t header_at = batch.count;
  if (chunked) ++batch.count;
  std::uint64_t bytes = 0;
  Gathered result = Gathered::kFull;
  for (std::size_t pieces = 0; pieces < kMaxPieces;) {
    const auto step = relay.decoder.next(relay.buffer.unread());
    relay.buffer.consume(step.consumed);
    relay.took = relay.took || step.consumed > 0;
    if (step.event == http::BodyDecoder::Event::data) {
      batch.add(step.data);
      bytes += step.data.size();
      ++pieces;
      continue;
    }
    result = step.event == http::BodyDecoder::Event::end     ? Gathered::kEnd
             : step.event == http::BodyDecoder::Event::error ? Gathered::kError
                                                             : Gathered::kMore;
    break;
  }
  relay.body_bytes += bytes;
  if (!chunked) return result;
  if (bytes > 0) {
    batch.header = http::chunk_header(bytes);
    const auto text = batch.header.view();
    batch.parts[header_at] = {const_cast<char*>(text.data()), text.size()};
    batch.add(http::kChunkEnd);
  } else {
    batch.parts[header_at] = {const_cast<char*>(""), 0};
  }
  if (result == Gathered::kEnd) {
    if (relay.decoder.trailers().empty()) {
      batch.add(http::kLastChunk);
    } else {
      batch.last_chunk.clear();
      http::append_last_chunk(relay.decoder.trailers(), batch.last_chunk);
      batch.add(batch.last_chunk);
    }
  }
  return result;
}

// The source ended its stream.
bool may_end_here(Relay& relay) { return relay.decoder.eof() == http::BodyDecoder::Event::end; }

}  // namespace

std::span<char> ReadBuffer::space() {
  if (begin_ == end_) begin_ = end_ = floor_;
  const auto all = lease_.span();
  if (begin_ > floor_ && all.size() - end_ < kRead / 8) {
    std::memmove(all.data() + floor_, all.data() + begin_, end_ - begin_);
    end_ = floor_ + (end_ - begin_);
    begin_ = floor_;
  }
  return all.subspan(end_, std::min(kRead, all.size() - end_));
}

// The next head begins low enough for a whole head and some body to fit behind it; pipelined
// requests are moved down once in a while, not each time.
void ReadBuffer::unpin() {
  floor_ = 0;
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > kRead / 8) {
    std::memmove(lease_.span().data(), lease_.span().data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
}

net::Task<RelayEnd> relay_body(Relay& relay, net::Scope& scope) {
  const auto failed = [&scope](const Error& error, RelayEnd otherwise) {
    return scope.is_cancelled() || error.code == Errc::timed_out ? RelayEnd::kCancelled : otherwise;
  };
  Batch batch;
  for (std::uint32_t turn = 1;; ++turn) {
    const Gathered gathered = gather(relay, batch);
    // Bad from its first bytes on: nothing of the message goes out.
    if (gathered == Gathered::kError && !relay.wrote) co_return RelayEnd::kSourceProtocol;
    if (gathered == Gathered::kEnd && relay.time_after_body.count() > 0) {
      scope.expires_after(relay.time_after_body);
    }
    if (batch.count > 0) {
      const std::size_t size = batch.join_if_small();
      // A write that waits holds what it has gathered: the back-pressure on the source.
      relay.is_writing = true;
      auto written =
          co_await relay.to.write_all({batch.parts.data(), batch.count}, scope, relay.idle);
      if (!written) {
        relay.wrote = relay.wrote || batch.size() < size;
        co_return failed(written.error(), RelayEnd::kSinkFailed);
      }
      relay.is_writing = false;
      relay.prefix = {};
      relay.wrote = true;
    }
    if (gathered == Gathered::kEnd) co_return RelayEnd::kDone;
    if (gathered == Gathered::kError) co_return RelayEnd::kSourceProtocol;
    if (turn % Limits::kTurns == 0) (void)co_await net::yield(scope);
    if (gathered == Gathered::kFull) continue;
    const auto space = relay.buffer.space();
    if (space.empty()) co_return RelayEnd::kSourceProtocol;  // trailers beyond all limits
    auto read = co_await relay.from.read_some(space, scope, relay.idle);
    if (!read) co_return failed(read.error(), RelayEnd::kSourceClosed);
    if (read.value() > 0) {
      relay.buffer.filled(read.value());
      continue;
    }
    if (!may_end_here(relay)) co_return RelayEnd::kSourceCut;
    if (relay.framing == http::BodyKind::chunked) {
      iovec last{const_cast<char*>(http::kLastChunk.data()), http::kLastChunk.size()};
      auto written = co_await relay.to.write_all({&last, 1}, scope, relay.idle);
      if (!written) co_return failed(written.error(), RelayEnd::kSinkFailed);
    }
    co_return RelayEnd::kDone;
  }
}

net::Task<bool> relay_raw(net::Stream& from, ReadBuffer& buffer, net::Stream& to,
                          net::IdleClock& idle, std::uint64_t& bytes, net::Scope& scope) {
  for (std::uint32_t turn = 1;; ++turn) {
    if (!buffer.is_empty()) {
      const auto unread = buffer.unread();
      iovec part{const_cast<char*>(unread.data()), unread.size()};
      if (!co_await to.write_all({&part, 1}, scope, idle)) co_return false;
      bytes += unread.size();
      buffer.consume(unread.size());
    }
    if (turn % Limits::kTurns == 0) (void)co_await net::yield(scope);
    if (!from.is_readable()) {
      buffer.release();
      if (!co_await from.readable(scope, idle)) co_return false;
      buffer.acquire_again();
    }
    auto read = co_await from.read_some(buffer.space(), scope, idle);
    if (!read) co_return false;
    if (read.value() == 0) {
      to.shutdown_write();
      co_return true;
    }
    buffer.filled(read.value());
  }
}

}  // namespace mesh::proxy
