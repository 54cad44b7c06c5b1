// Work under the locks of other processes' sockets. The kernel ends a socket, counts for it and
// walks to it under the socket's lock, and a process that sends from memory whose page nobody
// brings (FUSE, userfaultfd, a dead NFS server) holds that lock for as long as it likes: who waits
// for it cannot even be killed. So such work is done in threads that nobody waits for longer than a
// moment. One thread uses an object; its own threads are left to themselves when it ends.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace mesh::datapath {

// What EBUSY of it means, to a person.
inline constexpr char kLockHeld[] =
    "a process there holds the lock of its socket, as it sends from memory whose page nobody "
    "brings; "
    "what waits for it is done once it lets go";

class SocketWork {
 public:
  static constexpr std::chrono::milliseconds kPatience{1000};    // without progress
  static constexpr std::chrono::milliseconds kLessPatience{50};  // once that has happened
  static constexpr std::size_t kMaxWaiting = 16;  // steps of one namespace; no more are begun then

  // A step, in a thread within the namespace. `diag`: a socket of sock_diag(7) there. It may
  // outlive all but what it owns, and of the open files it has `diag` and run()'s `fd` alone. 0, or
  // an errno.
  using Step = std::function<int(int diag, std::size_t index)>;

  // Takes the steps in order, one of each key, and gives the outcome of each. EBUSY: it waits for a
  // socket's lock still, and ends by itself; or it was not begun, as an earlier one of its key in
  // that namespace waits, or kMaxWaiting do. Where no thread can work there, its errno is the
  // outcome of each. `fd`: -1, or a file that the steps need.
  std::vector<int> run(int netns, std::vector<std::uint64_t> keys, int fd, Step step);

 private:
  struct Job;
  struct Waiting {
    std::shared_ptr<Job> job;
    std::size_t index;
  };
  using Key = std::pair<std::uint64_t, std::uint64_t>;  // of the namespace; of the step

  void forget_ended();
  [[nodiscard]] std::size_t waiting_in(std::uint64_t netns) const;
  void note_waiting(const std::shared_ptr<Job>& job);

  std::map<Key, Waiting> waiting_;
};

}  // namespace mesh::datapath
