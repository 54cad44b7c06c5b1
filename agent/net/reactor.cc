#include "net/reactor.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <string>

namespace mesh::net {

namespace {
constexpr std::uint64_t kMail = ~std::uint64_t{0};
constexpr int kRunsPerTurn = 1024;  // then look for events again, whatever is still ready
constexpr std::chrono::milliseconds kLookAgain{20};
}  // namespace

// Waiter and Scope

void Waiter::join(Scope& scope) {
  cancelled_.reset();
  scope.waiters_.push_back(static_cast<detail::ScopeLink&>(*this));
  if (scope.cancelled_) {  // it was cancelled before: run soon, with its reason
    cancelled_ = scope.cancelled_;
    scope.reactor_.wake(*this);
  }
}

void Waiter::leave() {
  if (source_ != nullptr) {
    *source_ = nullptr;
    source_ = nullptr;
  }
  detail::ScopeLink::unlink();
  detail::QueueLink::unlink();
}

Scope::Deadline::Deadline(Scope* s)
    : Timer([](Timer& timer) { static_cast<Deadline&>(timer).scope->cancel(Errc::timed_out); }),
      scope(s) {}

Scope::Scope(Scope& parent)
    : reactor_(parent.reactor_), cancelled_(parent.cancelled_), deadline_(this) {
  parent.children_.push_back(*this);
}

Scope::~Scope() { assert(children_.is_empty() && waiters_.is_empty()); }

void Scope::expires_after(Clock::duration time) { expires_at(reactor_.now() + time); }

void Scope::expires_at(Clock::time_point when) {
  if (!cancelled_) reactor_.timers().arm(deadline_, when);
}

void Scope::cancel(Errc why) {
  if (cancelled_) return;
  cancelled_ = why;
  deadline_.disarm();
  // Nothing is resumed here, so neither list changes under the walk but by unlinking its front.
  while (!waiters_.is_empty()) {
    auto& waiter = static_cast<Waiter&>(static_cast<detail::ScopeLink&>(*waiters_.front()));
    static_cast<detail::ScopeLink&>(waiter).unlink();
    waiter.cancelled_ = why;
    reactor_.wake(waiter);
  }
  for (ListNode* node = children_.front(); node != &children_; node = node->next()) {
    static_cast<Scope&>(*node).cancel(why);
  }
}

Error cancelled_error(Errc why) {
  switch (why) {
    case Errc::timed_out:
      return {why, "timed out"};
    case Errc::reset:
      return {why, "the peer went away"};
    default:
      return {why, "cancelled"};
  }
}

// IoHandle

Result<> IoHandle::attach(Reactor& reactor, int fd, std::uint32_t events) {
  assert(reactor_ == nullptr);
  std::uint32_t slot = 0;
  if (reactor.free_slots_.empty()) {
    slot = static_cast<std::uint32_t>(reactor.slots_.size());
    reactor.slots_.emplace_back();
  } else {
    slot = reactor.free_slots_.back();
    reactor.free_slots_.pop_back();
  }
  Reactor::Slot& entry = reactor.slots_[slot];
  epoll_event event{};
  event.events = events | EPOLLET;
  event.data.u64 = std::uint64_t{entry.generation} << 32 | slot;
  if (::epoll_ctl(reactor.epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    const int error = errno;
    reactor.free_slots_.push_back(slot);
    return errno_error(error, "epoll_ctl");
  }
  entry.handle = this;
  reactor_ = &reactor;
  slot_ = slot;
  fd_ = fd;
  return success();
}

void IoHandle::drained_by_short_read() {
  readable = false;
  reactor_->short_reads_.push_back(static_cast<detail::ShortReadLink&>(*this));
  if (!reactor_->look_again_.is_armed())
    reactor_->timers_.arm(reactor_->look_again_, reactor_->now_ + kLookAgain);
}

void IoHandle::detach(int remove_fd) {
  if (reactor_ == nullptr) return;
  if (remove_fd >= 0) ::epoll_ctl(reactor_->epoll_.get(), EPOLL_CTL_DEL, remove_fd, nullptr);
  Reactor::Slot& entry = reactor_->slots_[slot_];
  entry.handle = nullptr;
  ++entry.generation;
  reactor_->free_slots_.push_back(slot_);
  // Waits on a handle that ends see it when they try again.
  if (reader != nullptr) reactor_->wake(*reader);
  if (writer != nullptr) reactor_->wake(*writer);
  if (end != nullptr) reactor_->wake(*end);
  detail::ShortReadLink::unlink();
  reactor_ = nullptr;
}

// Reactor

Reactor::LookAgain::LookAgain(Reactor* r)
    : Timer([](Timer& timer) { static_cast<LookAgain&>(timer).reactor->look_again(); }),
      reactor(r) {}

Reactor::Reactor()
    : epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      mail_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      now_(Clock::now()),
      timers_(now_),
      look_again_(this) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = kMail;
  // Without an event loop there is no program: out of descriptors at the start ends it.
  if (!epoll_ || !mail_event_ ||
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, mail_event_.get(), &event) != 0) {
    std::abort();
  }
}

Reactor::~Reactor() = default;

void Reactor::wake(Waiter& waiter) {
  if (waiter.source_ != nullptr) {
    *waiter.source_ = nullptr;
    waiter.source_ = nullptr;
  }
  ready_.push_back(static_cast<detail::QueueLink&>(waiter));
}

void Reactor::wake_next_turn(Waiter& waiter) {
  next_turn_.push_back(static_cast<detail::QueueLink&>(waiter));
}

void Reactor::run_ready() {
  for (int runs = 0; runs < kRunsPerTurn && !ready_.is_empty(); ++runs) {
    auto& waiter = static_cast<Waiter&>(static_cast<detail::QueueLink&>(*ready_.front()));
    static_cast<detail::QueueLink&>(waiter).unlink();
    waiter.run_(waiter);
  }
}

void Reactor::set_readable(IoHandle& handle) {
  static_cast<detail::ShortReadLink&>(handle).unlink();
  handle.readable = true;
  if (handle.reader != nullptr) handle.reactor_->wake(*handle.reader);
}

// Those that nothing happened to for a whole interval, all in one call. A busy connection is never
// among them.
void Reactor::look_again() {
  std::array<pollfd, 64> asked;
  std::array<IoHandle*, 64> handles;
  while (!older_short_reads_.is_empty()) {
    nfds_t count = 0;
    for (; count < asked.size() && !older_short_reads_.is_empty(); ++count) {
      auto& handle =
          static_cast<IoHandle&>(static_cast<detail::ShortReadLink&>(*older_short_reads_.front()));
      static_cast<detail::ShortReadLink&>(handle).unlink();
      handles[count] = &handle;
      asked[count] = {handle.fd_, POLLIN, 0};
    }
    const int answers = ::poll(asked.data(), count, 0);
    for (nfds_t i = 0; answers != 0 && i < count; ++i)  // it failed: who tries to read will see
      if (answers < 0 || (asked[i].revents & POLLIN) != 0) set_readable(*handles[i]);
  }
  older_short_reads_.splice_back(short_reads_);
  if (!older_short_reads_.is_empty()) timers_.arm(look_again_, now_ + kLookAgain);
}

void Reactor::dispatch(const epoll_event& event) {
  if (event.data.u64 == kMail) return take_mail();
  const Slot& slot = slots_[static_cast<std::uint32_t>(event.data.u64)];
  if (slot.handle == nullptr || slot.generation != event.data.u64 >> 32) return;
  IoHandle& handle = *slot.handle;
  const bool broken = (event.events & (EPOLLERR | EPOLLHUP)) != 0;
  if (broken) handle.failed = true;
  if ((event.events & EPOLLRDHUP) != 0) handle.peer_closed = true;
  if ((handle.failed || handle.peer_closed) && handle.end != nullptr) wake(*handle.end);
  if (broken || (event.events & (EPOLLIN | EPOLLRDHUP)) != 0) {
    set_readable(handle);
  }
  if (broken || (event.events & EPOLLOUT) != 0) {
    handle.writable = true;
    if (handle.writer != nullptr) wake(*handle.writer);
  }
}

int Reactor::wait_time(Clock::duration wait) const {
  if (!ready_.is_empty() || !next_turn_.is_empty()) return 0;
  if (const auto next = timers_.next()) wait = std::min(wait, *next - now_);
  if (wait <= Clock::duration::zero()) return 0;
  const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(wait).count();
  return static_cast<int>(std::min<std::int64_t>(milliseconds, 60'000));
}

bool Reactor::run_once(Clock::duration wait) {
  std::array<epoll_event, 128> events;
  const int count =
      ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), wait_time(wait));
  now_ = Clock::now();
  // First all events become flags and ready waiters, then waiters run: a waiter that closes another
  // connection of the same batch meets no dangling event.
  for (int i = 0; i < count; ++i) dispatch(events[static_cast<std::size_t>(i)]);
  timers_.advance(now_);
  ready_.splice_back(next_turn_);
  const bool busy = count > 0 || !ready_.is_empty();
  run_ready();
  return busy;
}

void Reactor::run() {
  while (!stopped_) run_once(std::chrono::hours(1));
  stopped_ = false;
}

void Reactor::stop() {
  post([this] { stopped_ = true; });
}

void Reactor::post(std::function<void()> action) {
  bool first = false;
  {
    std::lock_guard lock(mail_mutex_);
    first = mail_.empty();
    mail_.push_back(std::move(action));
  }
  if (first) ::eventfd_write(mail_event_.get(), 1);
}

void Reactor::take_mail() {
  eventfd_t count = 0;
  ::eventfd_read(mail_event_.get(), &count);
  {
    std::lock_guard lock(mail_mutex_);
    mail_taken_.swap(mail_);
  }
  for (auto& action : mail_taken_) action();
  mail_taken_.clear();
}

// Waits

Sleep::Alarm::Alarm(Sleep* s)
    : Timer([](Timer& timer) {
        Sleep& sleep = *static_cast<Alarm&>(timer).sleep;
        sleep.scope_.reactor().wake(sleep);
      }),
      sleep(s) {}

Sleep::Sleep(Scope& scope, Clock::time_point when) : SimpleWait(scope), alarm_(this), when_(when) {}

void Sleep::await_suspend(std::coroutine_handle<> caller) {
  caller_ = caller;
  scope_.reactor().timers().arm(alarm_, when_);
  join(scope_);
}

void WaitQueue::Wait::await_suspend(std::coroutine_handle<> caller) {
  caller_ = caller;
  queue_.waiting_.push_back(static_cast<detail::QueueLink&>(static_cast<Waiter&>(*this)));
  join(scope_);
}

bool WaitQueue::notify_one(Reactor& reactor) {
  if (waiting_.is_empty()) return false;
  auto& waiter = static_cast<Waiter&>(static_cast<detail::QueueLink&>(*waiting_.front()));
  static_cast<Wait&>(waiter).notified_ = true;
  reactor.wake(waiter);
  return true;
}

void WaitQueue::notify_all(Reactor& reactor) {
  while (notify_one(reactor)) {
  }
}

// Group

struct Group::Detached {
  struct promise_type : PooledFrame {
    Detached get_return_object() const noexcept { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };
};

Group::Detached Group::run(Group* group, Task<> task) {
  {
    Task<> owned = std::move(task);
    co_await std::move(owned);
  }  // the task's frame is gone before the group hears of it
  group->leave();
}

Group::~Group() { assert(size_ == 0); }

void Group::spawn(Task<> task) {
  ++size_;
  run(this, std::move(task));
}

void Group::Resume::run(Waiter& waiter) {
  waiter.leave();
  std::exchange(static_cast<Resume&>(waiter).caller, nullptr).resume();
}

void Group::leave() {
  if (--size_ > 0 || !waiting_) return;
  resume_.caller = std::exchange(waiting_, nullptr);
  reactor_.wake(resume_);
}

}  // namespace mesh::net
