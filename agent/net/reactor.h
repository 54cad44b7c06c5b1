// Reactor: one thread's event loop (edge-triggered epoll), its timers, and what waits on them.
//
// Everything here belongs to one thread but Reactor::post() and Reactor::stop(). Waits are objects
// inside coroutine frames: destroying a frame ends its waits. Nothing on the request path
// allocates. Coroutines are resumed from run() only, never from inside the call that woke them.
//
// Scope: every wait names one. A scope has a deadline, can be cancelled, and has scopes below it:
// what happens to a scope happens to everything below. A cancelled scope stays cancelled; waits on
// it fail at once with its reason (Errc::timed_out for its deadline).
#pragma once

#include <sys/epoll.h>

#include <chrono>
#include <coroutine>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "net/intrusive_list.h"
#include "net/task.h"
#include "net/timer_wheel.h"

namespace mesh::net {

class Reactor;
class Scope;

namespace detail {
struct ScopeLink : ListNode {};
struct QueueLink : ListNode {};
struct ShortReadLink : ListNode {};
}  // namespace detail

// Something that will be run by the reactor when what it waits for happens, or its scope is
// cancelled. Derived objects put the rest of their state beside it.
class Waiter : private detail::ScopeLink, private detail::QueueLink {
 public:
  using Run = void (*)(Waiter&);
  explicit Waiter(Run run) : run_(run) {}
  ~Waiter() {
    if (source_ != nullptr) *source_ = nullptr;
  }

  // Joins `scope`: from now on its cancellation runs the waiter.
  void join(Scope& scope);
  // Makes `source` (an event's slot for one waiter) point here until it happens or this ends.
  void wait_at(Waiter*& source) {
    if (source_ != nullptr) *source_ = nullptr;
    source = this;
    source_ = &source;
  }
  void leave();  // waits for nothing any more
  std::optional<Errc> cancelled() const { return cancelled_; }

 protected:
  void cancel(Errc why) { cancelled_ = why; }  // then wake it

 private:
  friend class Reactor;
  friend class Scope;
  friend class WaitQueue;
  Run run_;
  Waiter** source_ = nullptr;
  std::optional<Errc> cancelled_;
};

class Scope : private ListNode {
 public:
  explicit Scope(Reactor& reactor) : reactor_(reactor), deadline_(this) {}
  explicit Scope(Scope& parent);
  ~Scope();

  Reactor& reactor() const { return reactor_; }
  // Replaces the scope's own deadline; those above stay in force.
  void expires_after(Clock::duration time);
  void expires_at(Clock::time_point when);
  void expires_never() { deadline_.disarm(); }
  void cancel(Errc why = Errc::unavailable);
  bool is_cancelled() const { return cancelled_.has_value(); }
  std::optional<Errc> cancelled() const { return cancelled_; }

 private:
  friend class Waiter;
  struct Deadline : Timer {
    explicit Deadline(Scope* s);
    Scope* scope;
  };
  Reactor& reactor_;
  std::optional<Errc> cancelled_;
  Deadline deadline_;
  ListNode waiters_;
  ListNode children_;
};

// The error of a wait whose scope was cancelled.
Error cancelled_error(Errc why);

// One descriptor in the reactor's epoll set, registered once, edge-triggered both ways.
class IoHandle : private detail::ShortReadLink {
 public:
  IoHandle() = default;
  ~IoHandle() { detach(); }
  IoHandle(const IoHandle&) = delete;
  IoHandle& operator=(const IoHandle&) = delete;

  Result<> attach(Reactor& reactor, int fd, std::uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP);
  // `remove`: takes the descriptor out of the epoll set too. Closing the last descriptor of a
  // description does that by itself; a description that another process holds stays otherwise.
  void detach(int remove_fd = -1);
  bool is_attached() const { return reactor_ != nullptr; }
  Reactor& reactor() const { return *reactor_; }
  // The owner read less than it asked for and takes the descriptor for drained (clears `readable`).
  // It is asked again a little later, since a socket of the fast path has two queues, and may read
  // short with bytes left in the second one whose event has been used up.
  void drained_by_short_read();

  // What was reported and not yet used up. The owner clears `readable` and `writable`.
  bool readable = false;
  bool writable = false;
  bool peer_closed = false;  // EPOLLRDHUP: nothing more will come
  bool failed = false;       // EPOLLERR or EPOLLHUP
  Waiter* reader = nullptr;
  Waiter* writer = nullptr;
  Waiter* end = nullptr;  // of `peer_closed` and `failed`

 private:
  friend class Reactor;
  Reactor* reactor_ = nullptr;
  std::uint32_t slot_ = 0;
  int fd_ = -1;
};

class Reactor {
 public:
  Reactor();
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  void run();  // until stop()
  // One turn: waits at most `wait` for an event, runs what is due. False: nothing was.
  bool run_once(Clock::duration wait);
  void stop();                              // any thread
  void post(std::function<void()> action);  // any thread; run in the order posted

  // The time of this turn.
  Clock::time_point now() const { return now_; }
  TimerWheel& timers() { return timers_; }
  // Runs `waiter` soon. It is not waiting for its event any more.
  void wake(Waiter& waiter);
  // The same, but after the next look for events and timers.
  void wake_next_turn(Waiter& waiter);

 private:
  friend class IoHandle;
  struct Slot {
    IoHandle* handle = nullptr;
    std::uint32_t generation = 0;
  };
  struct LookAgain : Timer {
    explicit LookAgain(Reactor* r);
    Reactor* reactor;
  };
  void dispatch(const epoll_event& event);
  static void set_readable(IoHandle& handle);
  void look_again();
  void run_ready();
  void take_mail();
  int wait_time(Clock::duration wait) const;

  UniqueFd epoll_;
  UniqueFd mail_event_;
  Clock::time_point now_;
  TimerWheel timers_;
  ListNode ready_;
  ListNode next_turn_;
  // Descriptors are found through slots with a generation: an event of one that is gone (its
  // description may live on in another process) finds nobody.
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> free_slots_;
  // Handles that were drained by a short read and had no event since: in the last interval, and in
  // the one before.
  ListNode short_reads_, older_short_reads_;
  LookAgain look_again_;
  bool stopped_ = false;
  // The one place where threads meet; this is the message passing. Held for a push or a swap.
  std::mutex mail_mutex_;
  std::vector<std::function<void()>> mail_;
  std::vector<std::function<void()>> mail_taken_;
};

// Suspends a coroutine until the waiter is run. For awaitables that need no retry.
class SimpleWait : public Waiter {
 public:
  explicit SimpleWait(Scope& scope) : Waiter(&run), scope_(scope) {}
  Result<> await_resume() {
    if (auto why = cancelled() ? cancelled() : scope_.cancelled()) return cancelled_error(*why);
    return success();
  }

 protected:
  static void run(Waiter& waiter) {
    waiter.leave();
    static_cast<SimpleWait&>(waiter).caller_.resume();
  }
  Scope& scope_;
  std::coroutine_handle<> caller_;
};

// co_await sleep_until(scope, when): an error where the scope was cancelled before.
class Sleep : public SimpleWait {
 public:
  Sleep(Scope& scope, Clock::time_point when);
  bool await_ready() const { return scope_.is_cancelled(); }
  void await_suspend(std::coroutine_handle<> caller);
  Result<> await_resume() {
    alarm_.disarm();
    return SimpleWait::await_resume();
  }

 private:
  struct Alarm : Timer {
    explicit Alarm(Sleep* s);
    Sleep* sleep;
  };
  Alarm alarm_;
  Clock::time_point when_;
};
inline Sleep sleep_until(Scope& scope, Clock::time_point when) { return Sleep(scope, when); }
inline Sleep sleep_for(Scope& scope, Clock::duration time) {
  return Sleep(scope, scope.reactor().now() + time);
}

// Lets everything else run first, what becomes ready by now included.
class Yield : public SimpleWait {
 public:
  explicit Yield(Scope& scope) : SimpleWait(scope) {}
  bool await_ready() const { return scope_.is_cancelled(); }
  void await_suspend(std::coroutine_handle<> caller) {
    caller_ = caller;
    scope_.reactor().wake_next_turn(*this);
  }
};
inline Yield yield(Scope& scope) { return Yield(scope); }

// Waits for a descriptor to become readable; the caller clears IoHandle::readable as it reads.
class IoReadable : public SimpleWait {
 public:
  IoReadable(IoHandle& io, Scope& scope) : SimpleWait(scope), io_(io) {}
  bool await_ready() const { return scope_.is_cancelled() || io_.readable; }
  void await_suspend(std::coroutine_handle<> caller) {
    caller_ = caller;
    wait_at(io_.reader);
    join(scope_);
  }

 private:
  IoHandle& io_;
};

// Coroutines that wait in line. Notified ones run in the order they came.
class WaitQueue {
 public:
  class Wait : public SimpleWait {
   public:
    Wait(WaitQueue& queue, Scope& scope) : SimpleWait(scope), queue_(queue) {}
    bool await_ready() const { return scope_.is_cancelled(); }
    void await_suspend(std::coroutine_handle<> caller);
    // Whatever came of the wait: one notified and then cancelled owes its turn to the next in line.
    bool was_notified() const { return notified_; }

   private:
    friend class WaitQueue;
    WaitQueue& queue_;
    bool notified_ = false;
  };

  Wait wait(Scope& scope) { return Wait(*this, scope); }
  bool notify_one(Reactor& reactor);  // false: nobody waits
  void notify_all(Reactor& reactor);
  bool is_empty() const { return waiting_.is_empty(); }

 private:
  ListNode waiting_;
};

// Counts coroutines that nobody awaits; ends when they have ended (a gate).
class Group {
 public:
  explicit Group(Reactor& reactor) : reactor_(reactor) {}
  ~Group();  // must be empty
  // Starts the task here and now, up to its first wait.
  void spawn(Task<> task);
  std::size_t size() const { return size_; }
  // Waits until nothing runs. Not to be cancelled: cancel the scope that the tasks wait on first.
  auto wait() {
    struct Wait {
      Group& group;
      bool await_ready() const { return group.size_ == 0; }
      void await_suspend(std::coroutine_handle<> caller) { group.waiting_ = caller; }
      void await_resume() const {}
    };
    return Wait{*this};
  }

 private:
  struct Detached;
  static Detached run(Group* group, Task<> task);
  void leave();
  Reactor& reactor_;
  std::size_t size_ = 0;
  std::coroutine_handle<> waiting_;
  struct Resume : Waiter {
    Resume() : Waiter(&run) {}
    static void run(Waiter& waiter);
    std::coroutine_handle<> caller;
  } resume_;
};

}  // namespace mesh::net
