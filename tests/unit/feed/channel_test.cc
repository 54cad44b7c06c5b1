#include "feed/channel.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace mesh::feed {
namespace {

struct Pair {
  Channel left, right;
};

Pair make_pair_of_channels(int send_buffer = 0) {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  if (send_buffer != 0)
    ::setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
  return {Channel(UniqueFd(fds[0])), Channel(UniqueFd(fds[1]))};
}

UniqueFd some_file() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

Fds some_files(std::size_t count) {
  Fds fds;
  while (fds.size() < count) fds.push_back(some_file());
  return fds;
}

struct Got {
  std::string payload;
  std::size_t fds = 0;
  friend bool operator==(const Got&, const Got&) = default;
};

Result<bool> collect(Channel& channel, std::vector<Got>& got) {
  return channel.receive([&got](std::string_view payload, Fds fds) -> Result<> {
    got.push_back({std::string(payload), fds.size()});
    return success();
  });
}

std::string frame(std::string_view payload, unsigned char fds = 0) {
  std::string bytes(kFrameHeader, '\0');
  bytes[0] = static_cast<char>(payload.size() & 0xff);
  bytes[1] = static_cast<char>(payload.size() >> 8);
  bytes[4] = static_cast<char>(fds);
  return bytes + std::string(payload);
}

TEST(Channel, DeliversFramesInOrderWithTheirDescriptors) {
  auto [left, right] = make_pair_of_channels();
  ASSERT_TRUE(left.send_bytes("a"));
  ASSERT_TRUE(left.send_bytes("bb", some_files(3)));
  ASSERT_TRUE(left.send_bytes(""));
  ASSERT_TRUE(left.send_bytes("ccc", some_files(1)));
  ASSERT_TRUE(left.send_bytes("d"));
  std::vector<Got> got;
  ASSERT_TRUE(collect(right, got));
  EXPECT_THAT(
      got, testing::ElementsAre(Got{"a", 0}, Got{"bb", 3}, Got{"", 0}, Got{"ccc", 1}, Got{"d", 0}));
}

TEST(Channel, PassesADescriptorThatWorks) {
  auto [left, right] = make_pair_of_channels();
  int pipe_fds[2];
  ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
  UniqueFd reader(pipe_fds[0]);
  Fds writer;
  writer.emplace_back(pipe_fds[1]);
  ASSERT_TRUE(left.send_bytes("pipe", std::move(writer)));
  ASSERT_TRUE(right.receive([](std::string_view, Fds fds) -> Result<> {
    EXPECT_EQ(::write(fds.at(0).get(), "x", 1), 1);
    EXPECT_NE(::fcntl(fds.at(0).get(), F_GETFD) & FD_CLOEXEC, 0);
    return success();
  }));
  char byte = 0;
  EXPECT_EQ(::read(reader.get(), &byte, 1), 1);
  EXPECT_EQ(::read(reader.get(), &byte, 1), 0) << "the sender kept a copy";
}

TEST(Channel, QueuesWhatTheSocketDoesNotTakeAndKeepsItsDescriptors) {
  auto [left, right] = make_pair_of_channels(4096);
  const std::string big(1 << 20, 'x');
  ASSERT_TRUE(left.send_bytes(big, some_files(2)));
  ASSERT_TRUE(left.send_bytes("after", some_files(1)));
  EXPECT_TRUE(left.wants_write());
  std::vector<Got> got;
  while (left.wants_write()) {
    ASSERT_TRUE(collect(right, got));
    ASSERT_TRUE(left.flush());
  }
  ASSERT_TRUE(collect(right, got));
  ASSERT_EQ(got.size(), 2U);
  EXPECT_EQ(got[0], (Got{big, 2}));
  EXPECT_EQ(got[1], (Got{"after", 1}));
  EXPECT_EQ(left.queued_bytes(), 0U);
}

TEST(Channel, RefusesToQueueWithoutBound) {
  auto [left, right] = make_pair_of_channels(4096);
  const std::string big(kMaxFrame, 'x');
  Result<> sent = success();
  int frames = 0;
  while (sent && frames < 10) {
    sent = left.send_bytes(big);
    ++frames;
  }
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, Errc::exhausted);
  EXPECT_LE(left.queued_bytes(), kMaxQueued);
  EXPECT_FALSE(left.send_bytes(std::string(kMaxFrame + 1, 'x')));
  EXPECT_FALSE(left.send_bytes("x", some_files(kMaxFds + 1)));
}

TEST(Channel, EndOfStreamIsAnError) {
  auto [left, right] = make_pair_of_channels();
  ASSERT_TRUE(left.send_bytes("last"));
  {
    const Channel gone = std::move(left);
  }
  std::vector<Got> got;
  const auto received = collect(right, got);
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().code, Errc::reset);
  EXPECT_EQ(got.size(), 1U);
  EXPECT_FALSE(right.send_bytes("x"));
}

TEST(Channel, DescriptorsLostAtTheFileLimitAreAnError) {
  auto [left, right] = make_pair_of_channels();
  ASSERT_TRUE(left.send_bytes("x", some_files(4)));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(right.fd()) + 2;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &tight), 0);
  std::vector<Got> got;
  const auto received = collect(right, got);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().code, Errc::exhausted);
  EXPECT_TRUE(got.empty());
}

TEST(Channel, SpeaksJson) {
  auto [left, right] = make_pair_of_channels();
  ASSERT_TRUE(left.send(boost::json::value{{"type", "hello"}}));
  std::string type;
  ASSERT_TRUE(right.receive_json([&type](boost::json::object message, Fds) -> Result<> {
    type = message.at("type").as_string();
    return success();
  }));
  EXPECT_EQ(type, "hello");
  ASSERT_TRUE(left.send_bytes("[1]"));
  EXPECT_FALSE(right.receive_json([](boost::json::object, Fds) { return Result<>(success()); }));
}

TEST(FrameDecoder, TakesFramesCutAnywhere) {
  const std::string bytes = frame("one") + frame("") + frame(std::string(300, 'y'));
  for (std::size_t cut = 1; cut < bytes.size(); ++cut) {
    FrameDecoder decoder;
    std::vector<std::size_t> sizes;
    const FrameDecoder::Handler handler = [&sizes](std::string_view payload, Fds) -> Result<> {
      sizes.push_back(payload.size());
      return success();
    };
    ASSERT_TRUE(decoder.feed(std::string_view(bytes).substr(0, cut), handler));
    ASSERT_TRUE(decoder.feed(std::string_view(bytes).substr(cut), handler));
    EXPECT_THAT(sizes, testing::ElementsAre(3, 0, 300)) << cut;
  }
}

TEST(FrameDecoder, RefusesMalformedFrames) {
  const FrameDecoder::Handler ignore = [](std::string_view, Fds) { return Result<>(success()); };
  EXPECT_FALSE(FrameDecoder().feed(std::string("\x01\x00\x00\x01\x00\x00\x00\x00", 8), ignore))
      << "16 MiB + 1";
  EXPECT_FALSE(FrameDecoder().feed(frame("x", kMaxFds + 1), ignore)) << "too many descriptors";
  EXPECT_FALSE(FrameDecoder().feed(frame("x", 1), ignore)) << "a missing descriptor";
  FrameDecoder unannounced;
  unannounced.add_fd(some_file());
  EXPECT_FALSE(unannounced.feed(frame("x"), ignore)) << "a descriptor that no frame announced";
}

TEST(FrameDecoder, StopsAtTheHandlersError) {
  FrameDecoder decoder;
  int calls = 0;
  const auto fed =
      decoder.feed(frame("a") + frame("b"), [&calls](std::string_view, Fds) -> Result<> {
        ++calls;
        return Error{Errc::invalid_argument, "no"};
      });
  EXPECT_FALSE(fed);
  EXPECT_EQ(calls, 1);
}

class UnixSocket : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/feed-test-XXXXXX";
    dir_ = ::mkdtemp(name);
    path_ = dir_ + "/s";
  }
  void TearDown() override {
    ::unlink(path_.c_str());
    ::rmdir(dir_.c_str());
  }
  std::string dir_, path_;
};

TEST_F(UnixSocket, ChecksBothEndsByUser) {
  auto listener = listen_unix(path_, 0600);
  ASSERT_TRUE(listener);
  struct stat status{};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);

  const auto nobody = accept_unix(listener.value().get(), ::geteuid());
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().code, Errc::unavailable);

  const auto wrong = dial_unix(path_, ::geteuid() + 1);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, Errc::permission);
  EXPECT_TRUE(accept_unix(listener.value().get(), ::geteuid()));  // the dialler that gave up

  const auto dialled = dial_unix(path_, ::geteuid());
  ASSERT_TRUE(dialled);
  const auto refused = accept_unix(listener.value().get(), ::geteuid() + 1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::permission);
}

TEST_F(UnixSocket, ReplacesADeadSocketButNotALivingOne) {
  {
    ASSERT_TRUE(listen_unix(path_, 0600));
  }
  auto again = listen_unix(path_, 0600);
  ASSERT_TRUE(again);
  const auto second = listen_unix(path_, 0600);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::exhausted);
}

TEST_F(UnixSocket, DiallingNobodyIsRefused) {
  const auto dialled = dial_unix(path_, ::geteuid());
  ASSERT_FALSE(dialled);
}

}  // namespace
}  // namespace mesh::feed
