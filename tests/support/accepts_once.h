// AcceptsOnce: a server, a process of its own, that accepts one connection and listens no more.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>

#include "tests/support/datagrams.h"
#include "tests/support/eventually.h"
#include "tests/support/netns.h"

namespace mesh::test {

class AcceptsOnce {
 public:
  AcceptsOnce(const Cgroup& cgroup, const NetNs& ns, const std::string& address)
      : process_(&cgroup, &ns, [&] { serve(address); }) {
    if (!eventually([this] { return *step_ == 1; })) fixture_failed("listen at " + address);
  }
  [[nodiscard]] bool listens_no_more() const {
    return eventually([this] { return *step_ == 2; });
  }

 private:
  void serve(const std::string& address) {
    ::close_range(3, ~0U, 0);  // the lock of the maps, for one
    UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const RawAddress raw = raw_address(endpoint(address), AF_INET);
    if (::bind(listener.get(), raw.get(), raw.size) != 0 || ::listen(listener.get(), 1) != 0)
      return;
    *step_ = 1;
    const UniqueFd accepted = accept_within(listener.get(), 60'000);
    listener.reset();
    *step_ = 2;
    ::pause();
  }

  Shared<std::atomic<int>> step_;
  Child process_;
};

}  // namespace mesh::test
