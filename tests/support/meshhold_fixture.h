// MeshHold: the real meshhold against a scripted meshd and meshproxy, in real namespaces. Root;
// else it skips.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "feed/channel.h"
#include "feed/hold.h"
#include "tests/support/netns.h"

namespace mesh::feed {

using test::NetNs;
using Clock = std::chrono::steady_clock;
inline constexpr auto kPatience = std::chrono::seconds(10);

struct Received {
  HoldMessage message;
  Fds fds;
};

inline UniqueFd copy_of(int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

// One end of a channel with meshhold: waits for messages of a type, in order.
class Peer {
 public:
  explicit Peer(UniqueFd socket) : channel_(std::move(socket)) {}

  void send(const HoldMessage& message, Fds fds = {}) {
    const auto sent = channel_.send_bytes(as_bytes(message), std::move(fds));
    EXPECT_TRUE(sent) << (sent ? "" : sent.error().message);
  }
  void send_raw(std::string_view payload) { EXPECT_TRUE(channel_.send_bytes(payload)); }

  std::optional<Received> next(HoldType type, std::chrono::milliseconds patience = kPatience) {
    const auto deadline = Clock::now() + patience;
    while (true) {
      for (auto it = inbox_.begin(); it != inbox_.end(); ++it) {
        if (it->message.type != type) continue;
        Received found = std::move(*it);
        inbox_.erase(it);
        return found;
      }
      if (closed_ || !read_before(deadline)) return std::nullopt;
    }
  }
  bool is_closed_by_peer() {
    const auto deadline = Clock::now() + kPatience;
    while (!closed_ && read_before(deadline)) {
    }
    return closed_;
  }
  std::string hello;  // the first frame that is no HoldMessage

 private:
  bool read_before(Clock::time_point deadline) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd waiting{channel_.fd(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&waiting, 1, static_cast<int>(left.count())) <= 0) return false;
    const auto received = channel_.receive([this](std::string_view payload, Fds fds) -> Result<> {
      if (auto message = parse_hold_message(payload))
        inbox_.push_back({message.value(), std::move(fds)});
      else
        hello = payload;
      return success();
    });
    closed_ = !received.has_value();
    return true;
  }

  Channel channel_;
  std::deque<Received> inbox_;
  bool closed_ = false;
};

inline HoldMessage enrol(std::uint32_t id) {
  HoldMessage message;
  message.type = HoldType::kEnrol;
  message.workload = id;
  return message;
}

inline HoldMessage of_type(HoldType type, std::uint32_t id = 0) {
  HoldMessage message;
  message.type = type;
  message.workload = id;
  return message;
}

inline HoldMessage want(std::uint32_t id, std::uint8_t family, std::uint32_t count) {
  HoldMessage message = of_type(HoldType::kWantSockets, id);
  message.family = family;
  message.count = count;
  return message;
}

class MeshHold : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::is_root()) GTEST_SKIP() << "needs root: namespaces";
    char name[] = "/tmp/meshhold-test-XXXXXX";
    run_dir_ = ::mkdtemp(name);
    proxy_listener_ = listen_unix(run_dir_ + "/proxy.sock", 0600).value();
    start();
  }
  void TearDown() override {
    kill();
    if (!run_dir_.empty()) std::filesystem::remove_all(run_dir_);
  }

  void start() {
    pid_ = ::fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execl(MESH_BIN_DIR "/meshhold", "meshhold", "--run-dir", run_dir_.c_str(), "--proxy-uid",
              "0", "--log-level", "error", nullptr);
      ::_exit(127);
    }
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  Peer connect_meshd() {
    const auto deadline = Clock::now() + kPatience;
    while (true) {
      auto dialled = dial_unix(run_dir_ + "/hold.sock", 0);
      if (dialled) return Peer(std::move(dialled).value());
      if (Clock::now() > deadline) {
        ADD_FAILURE() << dialled.error().message;
        std::abort();
      }
      ::usleep(5'000);
    }
  }
  // Passes over what a meshhold that is dead by now dialled.
  Peer accept_proxy() {
    while (true) {
      pollfd waiting{proxy_listener_.get(), POLLIN, 0};
      EXPECT_EQ(::poll(&waiting, 1, 10'000), 1) << "meshhold did not dial";
      UniqueFd fd = accept_unix(proxy_listener_.get(), 0).value();
      pollfd gone{fd.get(), POLLRDHUP, 0};
      if (::poll(&gone, 1, 0) == 0) return Peer(std::move(fd));
    }
  }

  static Received enrolled(Peer& meshd, std::uint32_t id, int netns, Fds listeners = {}) {
    Fds fds;
    if (netns >= 0) fds.push_back(copy_of(netns));
    for (UniqueFd& listener : listeners) fds.push_back(std::move(listener));
    meshd.send(enrol(id), std::move(fds));
    auto answer = meshd.next(HoldType::kEnrolled);
    EXPECT_TRUE(answer);
    return answer ? std::move(*answer) : Received{};
  }
  // Enrols 7; a proxy that has the first of its listeners.
  Peer proxy_with_listener(Peer& meshd, const NetNs& ns) {
    Peer proxy = accept_proxy();
    (void)enrolled(meshd, 7, ns.fd());
    EXPECT_TRUE(proxy.next(HoldType::kListener));
    return proxy;
  }
  static int connect_in(const NetNs& ns, const std::string& to = "127.0.0.1:15001") {
    return ns.run([&] { return test::try_connect(to, 0, 1000); });
  }
  // Closing follows sending, so a moment may pass until the count is what it should be.
  void expect_open_files(std::size_t wanted) const {
    const auto deadline = Clock::now() + kPatience;
    while (open_files() != wanted && Clock::now() < deadline) ::usleep(1'000);
    EXPECT_EQ(open_files(), wanted);
  }
  std::size_t open_files() const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/fd"))
      ++count;
    return count;
  }

  std::string run_dir_;
  UniqueFd proxy_listener_;
  pid_t pid_ = -1;
};

}  // namespace mesh::feed
