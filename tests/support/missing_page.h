// Memory that nobody brings: what uses it in the kernel waits, and keeps the locks that it has.
#pragma once

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <thread>

#include "base/unique_fd.h"
#include "tests/support/netns.h"

namespace mesh::test {

// A page whose first use waits until this ends.
class MissingPage {
 public:
  MissingPage() {
    fault_ = UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
    page_ = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uffdio_register all{};
    all.range = {reinterpret_cast<std::uint64_t>(page_), kSize};
    all.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (!fault_ || page_ == MAP_FAILED || ::ioctl(fault_.get(), UFFDIO_API, &api) != 0 ||
        ::ioctl(fault_.get(), UFFDIO_REGISTER, &all) != 0)
      test::fixture_failed("userfaultfd");
  }
  MissingPage(const MissingPage&) = delete;
  MissingPage& operator=(const MissingPage&) = delete;
  ~MissingPage() { ::munmap(page_, kSize); }

  [[nodiscard]] const void* get() const { return page_; }
  // Somebody waits for it. (Without O_NONBLOCK poll() only says POLLERR.)
  [[nodiscard]] bool is_wanted() const {
    pollfd asked{fault_.get(), POLLIN, 0};
    return ::poll(&asked, 1, 20'000) == 1 && (asked.revents & POLLIN) != 0;
  }
  void bring() { fault_.reset(); }

 private:
  static constexpr std::size_t kSize = 4096;
  UniqueFd fault_;
  void* page_ = MAP_FAILED;
};

// Holds the lock of a socket, as long as it lives.
class HeldSocket {
 public:
  explicit HeldSocket(int socket)
      : sender_([this, socket] { (void)::send(socket, page_.get(), 1, MSG_NOSIGNAL); }) {
    if (!page_.is_wanted()) fixture_failed("wait for a page fault");
  }
  HeldSocket(const HeldSocket&) = delete;
  HeldSocket& operator=(const HeldSocket&) = delete;
  ~HeldSocket() {
    page_.bring();
    sender_.join();
  }

 private:
  MissingPage page_;
  std::thread sender_;
};

}  // namespace mesh::test
