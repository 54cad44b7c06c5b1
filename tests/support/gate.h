// Gate: one thread goes on when another has brought something about, however long that takes there.
//
// Whoever waits gives up after kPatience, which only a test that fails reaches. Any thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace mesh::test {

constexpr std::chrono::seconds kPatience{30};

class Gate {
 public:
  void open() {
    std::lock_guard lock(mutex_);
    is_open_ = true;
    opened_.notify_all();
  }
  // False where nobody opened it in time.
  bool wait() {
    std::unique_lock lock(mutex_);
    return opened_.wait_for(lock, kPatience, [this] { return is_open_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool is_open_ = false;
};

}  // namespace mesh::test
