// FakeStream: two ends of a byte stream in memory, on a real reactor, for tests of session code.
//
// Honours cancellation like any Stream (waits are the reactor's), holds at most `capacity` bytes a
// direction (back-pressure), and fails the n-th operation of either end when told to, so that a
// test can loop the failure point over every operation.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "net/stream.h"

namespace mesh::test {

class FakeStream final : public net::Stream {
 public:
  // Counts operations of both ends; the `fail_at`-th (from 1) fails with `error`. 0: none does.
  struct Faults {
    std::size_t operations = 0;
    std::size_t fail_at = 0;
    int error = ECONNRESET;
    bool next() { return ++operations == fail_at; }
  };
  using Pair = std::pair<std::unique_ptr<FakeStream>, std::unique_ptr<FakeStream>>;

  static Pair make_pair(net::Reactor& reactor, std::size_t capacity = 1 << 20,
                        Faults* faults = nullptr) {
    auto there = std::make_shared<Pipe>(reactor, capacity);
    auto back = std::make_shared<Pipe>(reactor, capacity);
    return {std::make_unique<FakeStream>(there, back, faults),
            std::make_unique<FakeStream>(back, there, faults)};
  }

  struct Pipe {
    Pipe(net::Reactor& r, std::size_t c) : reactor(r), capacity(c) {}
    net::Reactor& reactor;
    std::size_t capacity;
    std::string bytes;
    bool ended = false;   // the writer will write no more
    bool broken = false;  // either end was closed
    net::Waiter* reader = nullptr;
    net::Waiter* writer = nullptr;
    void changed() {
      if (reader != nullptr) reactor.wake(*reader);
      if (writer != nullptr) reactor.wake(*writer);
    }
  };

  FakeStream(std::shared_ptr<Pipe> out, std::shared_ptr<Pipe> in, Faults* faults)
      : out_(std::move(out)), in_(std::move(in)), faults_(faults) {}
  ~FakeStream() override { close(); }

  net::Io try_read(std::span<char> into) override {
    if (faults_ != nullptr && faults_->next()) return {0, faults_->error};
    if (closed_) return {0, ECONNRESET};
    if (in_->bytes.empty()) {
      if (in_->ended) return {0, 0};
      return {0, in_->broken ? ECONNRESET : EAGAIN};
    }
    const std::size_t n = std::min(into.size(), in_->bytes.size());
    std::copy_n(in_->bytes.data(), n, into.data());
    in_->bytes.erase(0, n);
    in_->changed();
    return {n, 0};
  }
  net::Io try_write(std::span<const iovec> from) override {
    if (faults_ != nullptr && faults_->next()) return {0, faults_->error};
    if (closed_ || out_->broken) return {0, EPIPE};
    std::size_t written = 0;
    for (const iovec& part : from) {
      const std::size_t room = out_->capacity - out_->bytes.size();
      const std::size_t n = std::min(room, part.iov_len);
      out_->bytes.append(static_cast<const char*>(part.iov_base), n);
      written += n;
    }
    if (written == 0) return {0, EAGAIN};
    out_->changed();
    return {written, 0};
  }
  bool is_readable() const override {
    return closed_ || !in_->bytes.empty() || in_->ended || in_->broken;
  }
  void wait_readable(net::Waiter& waiter) override { waiter.wait_at(in_->reader); }
  void wait_writable(net::Waiter& waiter) override { waiter.wait_at(out_->writer); }
  bool is_broken() const override { return closed_ || (in_->broken && !in_->ended); }
  void shutdown_write() override {
    out_->ended = true;
    out_->changed();
  }
  void close() override {
    if (closed_) return;
    closed_ = true;
    out_->ended = true;
    out_->broken = in_->broken = true;
    out_->changed();
    in_->changed();
  }

 private:
  std::shared_ptr<Pipe> out_, in_;
  Faults* faults_;
  bool closed_ = false;
};

}  // namespace mesh::test
