#include "proxy/log_writer.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string_view>
#include <utility>

namespace mesh::proxy {

namespace {
constexpr std::size_t kMostWaiting = 16UL << 20;  // bytes
constexpr std::chrono::seconds kLast{1};          // for what waits at the end
}  // namespace

struct LogWriter::State {
  struct Lines {
    std::shared_ptr<UniqueFd> file;
    std::string text;
  };
  std::mutex mutex;  // why: the writer sleeps in write(2), it has no loop to send messages to
  std::condition_variable changed;
  std::shared_ptr<UniqueFd> file;
  std::deque<Lines> waiting;
  std::size_t bytes = 0;  // of those that wait and of the one that is being written
  bool stopping = false;
  bool ended = false;
  std::atomic<std::uint64_t> lost{0};
};

LogWriter::LogWriter() : state_(std::make_shared<State>()) {
  thread_ = std::thread([state = state_] { run(*state); });
}

LogWriter::~LogWriter() {
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  state_->changed.notify_all();
  const bool ended = state_->changed.wait_for(lock, kLast, [this] { return state_->ended; });
  lock.unlock();
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();  // the kernel holds it
  }
}

void LogWriter::use(UniqueFd file) {
  const std::lock_guard lock(state_->mutex);
  state_->file = file ? std::make_shared<UniqueFd>(std::move(file)) : nullptr;
}

void LogWriter::write(std::string lines) {
  const std::lock_guard lock(state_->mutex);
  if (!state_->file) return;
  if (state_->bytes + lines.size() > kMostWaiting) {
    state_->lost += lines.size();
    return;
  }
  state_->bytes += lines.size();
  state_->waiting.push_back({state_->file, std::move(lines)});
  state_->changed.notify_all();
}

std::uint64_t LogWriter::lost_bytes() const { return state_->lost; }

void LogWriter::run(State& state) {
  ::pthread_setname_np(::pthread_self(), "access-log");
  std::unique_lock lock(state.mutex);
  while (true) {
    state.changed.wait(lock, [&] { return state.stopping || !state.waiting.empty(); });
    if (state.waiting.empty()) break;
    const State::Lines lines = std::move(state.waiting.front());
    state.waiting.pop_front();
    lock.unlock();
    std::string_view left = lines.text;
    while (!left.empty()) {
      const ssize_t n = ::write(lines.file->get(), left.data(), left.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        state.lost += left.size();
        break;
      }
      left.remove_prefix(static_cast<std::size_t>(n));
    }
    lock.lock();
    state.bytes -= lines.text.size();
  }
  state.ended = true;
  state.changed.notify_all();
}

}  // namespace mesh::proxy
