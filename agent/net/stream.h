// Stream: a two-way byte stream (plain TCP, later TLS), as narrow as the request path needs it.
//
//   MESH_CO_TRY(auto n, co_await stream.read_some(buffer, scope));   // 0: the peer ended its side
//   MESH_CO_TRY(co_await stream.write_all(iovecs, scope));
//
// Every operation is tried first and waits only where that would block: at most `stall`, where that
// is given (Errc::timed_out; no timer is set where nothing waits), or until the clock that it
// shares with others runs out (the same). At most one reader and one writer at a time (they may be
// different coroutines). Cancelling the scope ends the wait with its reason; the stream stays
// usable. Errors: reset (the peer broke off), refused, timed_out, ... One thread. The awaitables
// live in the caller's frame: nothing is allocated.
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <coroutine>
#include <cstddef>
#include <span>

#include "base/result.h"
#include "net/reactor.h"

namespace mesh::net {

// Of one attempt: bytes moved, or an errno (EAGAIN: try again when woken).
struct Io {
  std::size_t bytes = 0;
  int error = 0;
  bool would_block() const { return error == EAGAIN; }
};

inline constexpr Clock::duration kForever = Clock::duration::max();

// How long nothing may move, for operations that share it: what one of them moves gives the others
// time too, on whichever stream.
class IdleClock {
 public:
  IdleClock(Clock::duration most, Clock::time_point now) : most_(most), moved_(now) {}
  void moved(Clock::time_point now) { moved_ = now; }
  Clock::time_point end() const { return moved_ + most_; }

 private:
  Clock::duration most_;
  Clock::time_point moved_;
};

class ReadSome;
class WriteAll;
class Readable;

class Stream {
 public:
  virtual ~Stream() = default;

  // One attempt; no wait.
  virtual Io try_read(std::span<char> into) = 0;
  virtual Io try_write(std::span<const iovec> from) = 0;
  // False: a read would block, so far as is known without asking.
  virtual bool is_readable() const = 0;
  // Wakes `waiter` when an attempt may do better.
  virtual void wait_readable(Waiter& waiter) = 0;
  virtual void wait_writable(Waiter& waiter) = 0;
  // The peer broke off (not: ended its side in good order), as seen without asking.
  virtual bool is_broken() const = 0;
  virtual void shutdown_write() = 0;
  virtual void close() = 0;  // idempotent; further operations fail with reset

  ReadSome read_some(std::span<char> into, Scope& scope, Clock::duration stall = kForever);
  ReadSome read_some(std::span<char> into, Scope& scope, IdleClock& idle);
  // Writes everything. `from` is changed on the way.
  WriteAll write_all(std::span<iovec> from, Scope& scope, Clock::duration stall = kForever);
  WriteAll write_all(std::span<iovec> from, Scope& scope, IdleClock& idle);
  // Waits until a read would not block (bytes, the end, or an error).
  Readable readable(Scope& scope, Clock::duration stall = kForever);
  Readable readable(Scope& scope, IdleClock& idle);
};

// One of the two, or neither.
struct Patience {
  Clock::duration stall = kForever;
  IdleClock* idle = nullptr;
};

// What the three awaitables share: try, and wait until it is done.
template <class Derived>
class StreamOp : public Waiter {
 public:
  bool await_ready() {
    if (scope_.is_cancelled()) {
      refused_ = scope_.cancelled();
      return true;
    }
    return self().attempt();
  }
  void await_suspend(std::coroutine_handle<> caller) {
    caller_ = caller;
    self().arm();
    join(scope_);
    Reactor& reactor = scope_.reactor();
    if (patience_.idle != nullptr) {
      reactor.timers().arm(alarm_, patience_.idle->end());
    } else if (patience_.stall != kForever) {
      reactor.timers().arm(alarm_, reactor.now() + patience_.stall);
    }
  }

 protected:
  StreamOp(Stream& stream, Scope& scope, Patience patience)
      : Waiter(&run), stream_(stream), scope_(scope), alarm_(this), patience_(patience) {}
  static void run(Waiter& waiter) {
    auto& op = static_cast<Derived&>(waiter);
    if (op.cancelled()) {
      op.refused_ = op.cancelled();
    } else if (!op.attempt()) {
      return op.arm();  // woken for nothing
    }
    op.leave();
    op.alarm_.disarm();
    op.caller_.resume();
  }
  Derived& self() { return static_cast<Derived&>(*this); }
  void moved() {
    if (patience_.idle != nullptr) patience_.idle->moved(scope_.reactor().now());
  }

  Stream& stream_;
  Scope& scope_;
  std::coroutine_handle<> caller_;
  std::optional<Errc> refused_;  // by the scope, or timed_out

 private:
  struct Alarm : Timer {
    explicit Alarm(StreamOp* o)
        : Timer([](Timer& timer) {
            StreamOp& self = *static_cast<Alarm&>(timer).op;
            Reactor& reactor = self.scope_.reactor();
            const IdleClock* idle = self.patience_.idle;
            if (idle != nullptr && reactor.now() < idle->end()) {
              return reactor.timers().arm(timer, idle->end());
            }
            self.cancel(Errc::timed_out);
            reactor.wake(self);
          }),
          op(o) {}
    StreamOp* op;
  };
  Alarm alarm_;
  const Patience patience_;
};

class ReadSome : public StreamOp<ReadSome> {
 public:
  ReadSome(Stream& stream, std::span<char> into, Scope& scope, Patience patience)
      : StreamOp(stream, scope, patience), into_(into) {}
  Result<std::size_t> await_resume() const {
    if (refused_) return cancelled_error(*refused_);
    if (io_.error != 0) return errno_error(io_.error, "read");
    return io_.bytes;
  }

 private:
  friend class StreamOp<ReadSome>;
  bool attempt() {
    io_ = stream_.try_read(into_);
    if (io_.bytes > 0) moved();
    return !io_.would_block();
  }
  void arm() { stream_.wait_readable(*this); }
  std::span<char> into_;
  Io io_;
};

class WriteAll : public StreamOp<WriteAll> {
 public:
  WriteAll(Stream& stream, std::span<iovec> from, Scope& scope, Patience patience)
      : StreamOp(stream, scope, patience), from_(from) {}
  Result<> await_resume() const {
    if (refused_) return cancelled_error(*refused_);
    if (error_ != 0) return errno_error(error_, "write");
    return success();
  }

 private:
  friend class StreamOp<WriteAll>;
  bool attempt() {
    while (true) {
      while (!from_.empty() && from_.front().iov_len == 0) from_ = from_.subspan(1);
      if (from_.empty()) return true;
      const Io io = stream_.try_write(from_);
      if (io.would_block()) return false;
      error_ = io.error;
      if (error_ != 0) return true;
      moved();
      drop(io.bytes);
    }
  }
  void drop(std::size_t bytes) {
    while (bytes > 0) {
      iovec& first = from_.front();
      const std::size_t n = bytes < first.iov_len ? bytes : first.iov_len;
      first.iov_base = static_cast<char*>(first.iov_base) + n;
      first.iov_len -= n;
      bytes -= n;
      if (first.iov_len == 0) from_ = from_.subspan(1);
    }
  }
  void arm() { stream_.wait_writable(*this); }
  std::span<iovec> from_;
  int error_ = 0;
};

class Readable : public StreamOp<Readable> {
 public:
  Readable(Stream& stream, Scope& scope, Patience patience) : StreamOp(stream, scope, patience) {}
  Result<> await_resume() const {
    if (refused_) return cancelled_error(*refused_);
    return success();
  }

 private:
  friend class StreamOp<Readable>;
  bool attempt() { return stream_.is_readable(); }
  void arm() { stream_.wait_readable(*this); }
};

inline ReadSome Stream::read_some(std::span<char> into, Scope& scope, Clock::duration stall) {
  return ReadSome(*this, into, scope, {.stall = stall});
}
inline ReadSome Stream::read_some(std::span<char> into, Scope& scope, IdleClock& idle) {
  return ReadSome(*this, into, scope, {.idle = &idle});
}
inline WriteAll Stream::write_all(std::span<iovec> from, Scope& scope, Clock::duration stall) {
  return WriteAll(*this, from, scope, {.stall = stall});
}
inline WriteAll Stream::write_all(std::span<iovec> from, Scope& scope, IdleClock& idle) {
  return WriteAll(*this, from, scope, {.idle = &idle});
}
inline Readable Stream::readable(Scope& scope, Clock::duration stall) {
  return Readable(*this, scope, {.stall = stall});
}
inline Readable Stream::readable(Scope& scope, IdleClock& idle) {
  return Readable(*this, scope, {.idle = &idle});
}

}  // namespace mesh::net
