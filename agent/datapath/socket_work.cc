#include "datapath/socket_work.h"

#include <linux/close_range.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace mesh::datapath {
namespace {

constexpr int kPending = -1;

// A thread that waits for ever must hold nothing: neither the lock of the pin directory, for which
// the next meshd waits, nor anybody's sockets.
int keep_no_files_but(std::vector<int> kept) {
  std::ranges::sort(kept);
  unsigned from = 3, flags = CLOSE_RANGE_UNSHARE;
  for (const int fd : kept) {
    if (fd < 0) continue;
    const auto next = static_cast<unsigned>(fd);
    if (from < next && ::syscall(SYS_close_range, from, next - 1, flags) != 0) return errno;
    if (from < next) flags = 0;
    from = next + 1;
  }
  return ::syscall(SYS_close_range, from, ~0U, flags) == 0 ? 0 : errno;
}

}  // namespace

struct SocketWork::Job {
  int netns = -1, fd = -1;  // of the caller, who waits until each thread has its own
  std::uint64_t netns_inode = 0;
  std::vector<std::uint64_t> keys;
  Step step;

  std::mutex mutex;
  std::condition_variable progress;
  std::size_t threads = 0, threads_ready = 0;
  std::size_t next = 0, ended = 0;  // steps that were begun; that have an outcome
  std::vector<int> outcomes;

  // With the lock.
  void start(const std::shared_ptr<Job>& self) {
    ++threads;
    std::thread([self] { self->work(); }).detach();
  }

  // The socket of sock_diag in the namespace; a negative errno.
  int enter() const {
    if (const int error = keep_no_files_but({netns, fd}); error != 0) return -error;
    if (::setns(netns, CLONE_NEWNET) != 0) return -errno;
    const int diag = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    return diag < 0 ? -errno : diag;  // it ends with the thread, as do the others
  }

  void work() {
    const int diag = enter();
    std::unique_lock lock(mutex);
    ++threads_ready;
    while (next < keys.size()) {
      const std::size_t index = next++;
      if (outcomes[index] == kPending) {
        int outcome = -diag;
        if (diag >= 0) {
          lock.unlock();
          outcome = step(diag, index);
          lock.lock();
        }
        outcomes[index] = outcome;
      }
      ++ended;
      progress.notify_all();
    }
    progress.notify_all();
  }
};

std::vector<int> SocketWork::run(int netns, std::vector<std::uint64_t> keys, int fd, Step step) {
  forget_ended();
  struct stat status{};
  if (::fstat(netns, &status) != 0) return std::vector<int>(keys.size(), errno);
  const std::size_t size = keys.size();
  auto job = std::make_shared<Job>();
  job->netns = netns;
  job->fd = fd;
  job->netns_inode = status.st_ino;
  job->outcomes.assign(size, kPending);
  for (std::size_t i = 0; i < size; ++i)
    if (waiting_.contains({status.st_ino, keys[i]})) job->outcomes[i] = EBUSY;
  job->keys = std::move(keys);
  job->step = std::move(step);

  auto patience = waiting_in(status.st_ino) == 0 ? kPatience : kLessPatience;
  std::unique_lock lock(job->mutex);
  if (size != 0) job->start(job);
  while (job->ended < size) {
    const std::size_t seen = job->ended;
    if (job->progress.wait_for(lock, patience, [&] { return job->ended != seen; })) continue;
    note_waiting(job);
    if (job->next == size) break;
    if (waiting_in(status.st_ino) >= kMaxWaiting) job->next = size;  // nothing more is begun
    if (job->next == size) break;
    patience = kLessPatience;
    job->start(job);  // which goes on with the next
  }
  job->progress.wait(lock, [&] { return job->threads_ready == job->threads; });
  auto outcomes = job->outcomes;
  std::ranges::replace(outcomes, kPending, EBUSY);
  return outcomes;
}

void SocketWork::forget_ended() {
  std::erase_if(waiting_, [](const auto& entry) {
    const std::lock_guard lock(entry.second.job->mutex);
    return entry.second.job->outcomes[entry.second.index] != kPending;
  });
}

std::size_t SocketWork::waiting_in(std::uint64_t netns) const {
  const auto of_netns = [&](const auto& entry) { return entry.first.first == netns; };
  return static_cast<std::size_t>(std::ranges::count_if(waiting_, of_netns));
}

void SocketWork::note_waiting(const std::shared_ptr<Job>& job) {
  for (std::size_t i = 0; i < job->next; ++i)
    if (job->outcomes[i] == kPending)
      waiting_.insert_or_assign({job->netns_inode, job->keys[i]}, Waiting{job, i});
}

}  // namespace mesh::datapath
