// Much data, and many connections, through the mesh's programs with the fast path on; every byte is
// compared. How much: MESH_SOAK_GB and MESH_SOAK_CONNECTIONS
// (`./dev bench soak`: 100 and 100,000); 1 and 2,000 where MESH_TEST_SMALL is set; else what takes
// seconds. A little of each is enough to find that the naive program is wrong (NaiveFastPathSoak).
// Where a kernel has no fast path, as those of the VMs, all goes by TCP (SoakByTcp: 1 GB and
// 2,000 connections).
#include <gmock/gmock.h>

#include <atomic>
#include <cstdlib>
#include <mutex>

#include "tests/support/fastpath_fixture.h"

namespace mesh::test {
namespace {

std::uint64_t amount(const char* name, std::uint64_t small, std::uint64_t usual) {
  if (const char* said = std::getenv(name)) return std::strtoull(said, nullptr, 10);
  return std::getenv("MESH_TEST_SMALL") != nullptr ? small : usual;
}

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : x_(seed * 2'654'435'769U + 88'172'645'463'325'252U) {}
  std::uint64_t below(std::uint64_t limit) {
    x_ ^= x_ << 13, x_ ^= x_ >> 7, x_ ^= x_ << 17;
    return x_ % limit;
  }
  // From one byte to 1 MiB, each power of two as likely as the next.
  std::size_t size() { return 1 + below(std::uint64_t{1} << (1 + below(20))); }

 private:
  std::uint64_t x_;
};

// What came of a soak: where it was wrong, or nothing.
struct Soaked {
  std::string wrong;
  std::uint64_t right = 0;                   // bytes, connections or echoes
  std::uint64_t answered = 0, past_tcp = 0;  // bytes of streams that are answered; of those
};

class FastPathSoak : public FastPathTest {
 protected:
  void SetUp() override {
    FastPathTest::SetUp();
    if (IsSkipped()) return;
    deferred_ = server_->listen("10.9.0.2:8081");
    defer(deferred_);
    switch_on();
  }
  void TearDown() override {
    let_no_more_join();
    FastPathTest::TearDown();
  }

  static void defer(const UniqueFd& listener) {
    const int seconds = 20;
    ::setsockopt(listener.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  }
  // Short connections join, too.
  virtual void switch_on() {
    const std::lock_guard lock(datapath_mutex_);
    real();
    asks_at_once();
  }
  virtual void switch_off() {
    const std::lock_guard lock(datapath_mutex_);
    must(datapath_->switch_fast_path(false));
  }
  virtual bool have_joined(const Pair& pair) { return settle(pair); }
  // As meshd does every half second.
  virtual void walk() {
    ++walkers_;
    const std::lock_guard lock(datapath_mutex_);
    --walkers_;
    must(datapath_->let_settled_join(state_));
  }
  // Again and again: connections join in the middle of anything. Others come first.
  void let_join() {
    lets_join_ = std::thread([this] {
      while (!is_over_)
        if (walkers_ == 0)
          walk();
        else
          std::this_thread::yield();
    });
  }
  void let_no_more_join() {
    is_over_ = true;
    if (lets_join_.joinable()) lets_join_.join();
  }

  Soaked stream(std::uint64_t streams, std::uint64_t size);
  Soaked connect_often(std::uint64_t connections);
  Soaked echo(std::uint64_t echoes);

  UniqueFd deferred_;  // a listener with TCP_DEFER_ACCEPT
  std::mutex datapath_mutex_, accept_mutex_;
  std::atomic<int> walkers_ = 0;  // that wait for the mutex
  std::atomic<bool> is_over_ = false;
  std::thread lets_join_;

 private:
  Pair pair_to(bool is_deferred);
  UniqueFd client_at(const NetNs& ns, const SocketAddress& source, const std::string& to);
};

// As most published examples do it: also, what is switched off is deleted.
class NaiveFastPathSoak : public FastPathSoak {
 protected:
  void switch_on() override {
    if (!naive_) naive();
  }
  void switch_off() override {
    const int map = ::bpf_map__fd(naive_->maps.sockets);
    std::array<std::uint32_t, 4> key{};
    while (::bpf_map_get_next_key(map, nullptr, &key) == 0) ::bpf_map_delete_elem(map, &key);
  }
  bool have_joined(const Pair& pair) override {
    do_not_block(pair);
    return true;
  }
};

// The fast path stays off, as it does on kernels that have none: the other programs alone.
class SoakByTcp : public FastPathSoak {
 protected:
  std::string why_not_here() const override { return ""; }
  void switch_on() override {}
  void switch_off() override {}
  void walk() override {}
  bool have_joined(const Pair& pair) override {
    do_not_block(pair);
    return true;
  }
};

// As recv() of one byte that waits.
ssize_t takes(int fd, char* byte) {
  pollfd waiting{fd, POLLIN, 0};
  return ::poll(&waiting, 1, 20'000) == 1 ? ::recv(fd, byte, 1, 0) : -1;
}

// Each piece is answered with a byte, so that the receiver is never full: all goes past TCP.
bool moves_answered(int from, int to, std::uint64_t size, std::uint64_t seed) {
  const auto piece_of = [](Dice& dice, std::uint64_t left) {
    return std::min<std::uint64_t>(std::min<std::uint64_t>(dice.size(), 65536), left);
  };
  bool sent_all = true;
  std::thread sender([&] {
    Dice dice(seed);
    char answer = 0;
    for (std::uint64_t sent = 0; sent < size && sent_all;) {
      const auto piece = piece_of(dice, size - sent);
      sent_all = send_all(from, sent, piece) && takes(from, &answer) == 1;
      sent += piece;
    }
    ::shutdown(from, SHUT_WR);
  });
  Dice dice(seed);
  bool is_right = true;
  for (std::uint64_t got = 0; got < size && is_right;) {
    const auto piece = piece_of(dice, size - got);
    is_right = receives(to, got, piece) && send_all(to, 0, 1);
    got += piece;
  }
  if (!is_right) ::shutdown(to, SHUT_RDWR);
  sender.join();
  char more = 0;
  return is_right && sent_all && takes(to, &more) == 0;
}

// As fast as it goes, in pieces of any size, to a reader that takes them in any others.
bool moves(int from, int to, std::uint64_t size, std::uint64_t seed) {
  bool sent_all = true;
  std::thread sender([&] {
    Dice dice(seed);
    for (std::uint64_t sent = 0; sent < size && sent_all;) {
      const auto piece = std::min<std::uint64_t>(dice.size(), size - sent);
      sent_all = send_all(from, sent, piece);
      sent += piece;
    }
    ::shutdown(from, SHUT_WR);
  });
  Dice dice(seed + 1);
  bool is_right = true;
  for (std::uint64_t got = 0; got < size && is_right;) {
    const auto piece = std::min<std::uint64_t>(dice.size(), size - got);
    is_right = receives(to, got, piece);
    got += piece;
    if (dice.below(4096) == 0)
      ::usleep(1000);  // a reader at rest, which fills its buffer: input, nothing is awaited
  }
  if (!is_right) ::shutdown(to, SHUT_RDWR);
  sender.join();
  char more = 0;
  return is_right && sent_all && takes(to, &more) == 0;
}

// One whose end is deferred has been sent something by then, in two parts, which wait unread.
Pair FastPathSoak::pair_to(bool is_deferred) {
  Pair pair{socket_in(*app_), {}};
  if (connect_socket(pair.client.get(), is_deferred ? "10.9.0.2:8081" : kListener) != 0) return {};
  if (is_deferred && !send_all(pair.client.get(), 0, 100)) return {};
  pair.server = accept_within(is_deferred ? deferred_.get() : listener_.get());
  if (is_deferred && !send_all(pair.client.get(), 100, 100)) return {};
  return pair;
}

Soaked FastPathSoak::stream(std::uint64_t streams, std::uint64_t size) {
  Soaked soaked;
  for (std::uint64_t number = 0; number < streams; ++number) {
    const bool is_deferred = number % 4 == 3, is_answered = number % 8 < 4, is_back = number % 2;
    Pair pair = pair_to(is_deferred);
    if (!pair.server || (is_deferred && !receives(pair.server.get(), 0, 200)) || !have_joined(pair))
      return {"the beginning of stream " + std::to_string(number)};
    const int from = (is_back ? pair.server : pair.client).get();
    const int to = (is_back ? pair.client : pair.server).get();
    const auto how = is_answered ? &moves_answered : &moves;
    if (!how(from, to, size, number)) return {"stream " + std::to_string(number)};
    soaked.right += size;
    if (is_answered) {
      soaked.answered += size;
      soaked.past_tcp += storage_of(from).sent_bytes;
    }
    if (number % 16 == 15) {  // somebody plays with the switch
      switch_off();
      switch_on();
    }
  }
  return soaked;
}

constexpr std::uint64_t kStream = 100'000'000;  // ten of them: a GB

TEST_F(FastPathSoak, NoByteOfLongStreamsIsWrong) {
  const Soaked soaked = stream(amount("MESH_SOAK_GB", 1, 2) * 10, kStream);
  std::printf("%llu bytes right; %llu of %llu that are answered past TCP\n",
              static_cast<unsigned long long>(soaked.right),
              static_cast<unsigned long long>(soaked.past_tcp),
              static_cast<unsigned long long>(soaked.answered));
  EXPECT_EQ(soaked.wrong, "");
  EXPECT_GE(soaked.past_tcp, soaked.answered / 10 * 9);
}

TEST_F(SoakByTcp, NoByteOfLongStreamsIsWrong) {
  const Soaked soaked = stream(10, kStream);
  EXPECT_EQ(soaked.wrong, "");
  EXPECT_EQ(soaked.past_tcp, 0U);
}

TEST_F(NaiveFastPathSoak, BytesOfAStreamAreWrong) {
  EXPECT_THAT(stream(8, 1'000'000).wrong, testing::HasSubstr("stream"));
}

// Some requests and answers of any size below 5,000 bytes. `after_first`: between the first and the
// second.
bool exchanges(const Pair& pair, Dice& dice, const std::function<void()>& after_first) {
  const int client = pair.client.get(), server = pair.server.get();
  const int on = 1;
  do_not_block(pair);
  for (const int fd : {client, server}) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const std::uint64_t all = 1 + dice.below(40);
  for (std::uint64_t number = 0; number < all; ++number) {
    if (number == 1) after_first();
    const std::size_t request = 1 + dice.below(5000), answer = 1 + dice.below(5000);
    const std::uint64_t place = dice.below(1'000'000);
    // Some requests come in parts, before the first of them is read.
    const std::size_t part = dice.below(2) == 0 ? request : 1 + dice.below(request);
    if (!send_all(client, place, part) || !send_all(client, place + part, request - part) ||
        !receives(server, place, request) || !send_all(server, place + 7, answer) ||
        !receives(client, place + 7, answer))
      return false;
  }
  char end = 0;
  ::shutdown(server, SHUT_WR);
  return takes(client, &end) == 0;
}

// The same few source ports again and again.
UniqueFd FastPathSoak::client_at(const NetNs& ns, const SocketAddress& source,
                                 const std::string& to) {
  const int on = 1;
  UniqueFd client = socket_in(ns);
  const RawAddress raw = raw_address(source, AF_INET);
  ::setsockopt(client.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  EXPECT_EQ(::bind(client.get(), raw.get(), raw.size), 0) << std::strerror(errno);
  EXPECT_EQ(connect_socket(client.get(), to), 0) << std::strerror(errno);
  return client;
}

// Every fourth joins early, others when it happens.
Soaked FastPathSoak::connect_often(std::uint64_t connections) {
  Dice dice(7);
  for (std::uint64_t i = 0; i < connections; ++i) {
    const auto port = static_cast<std::uint16_t>(20'000 + i % 509);
    const Soaked wrong{"connection " + std::to_string(i), i};
    const auto join = [&] {
      if (i % 4 == 0) walk();
    };
    if (i % 3 == 2) {  // the same addresses and ports in two namespaces at once, and data waits
      Pair a{client_at(*app_, {ip("127.0.0.1"), port}, kProxy4), {}};
      a.server = accept_within(proxy4_.get());
      if (!send_all(a.client.get(), 0, 10)) return wrong;
      Pair b{client_at(*server_, {ip("127.0.0.1"), port}, kProxy4), {}};
      b.server = accept_within(other_proxy_.get());
      if (!receives(a.server.get(), 0, 10)) return wrong;
      if (!exchanges(a, dice, join) || !exchanges(b, dice, join)) return wrong;
      continue;
    }
    const bool is_deferred = i % 3 == 1;
    Pair pair{client_at(*app_, {ip("10.9.0.1"), port}, is_deferred ? "10.9.0.2:8081" : kListener),
              {}};
    if (is_deferred && !send_all(pair.client.get(), 0, 10)) return wrong;
    pair.server = accept_within(is_deferred ? deferred_.get() : listener_.get());
    if (is_deferred && !send_all(pair.client.get(), 10, 10)) return wrong;
    if (is_deferred && !receives(pair.server.get(), 0, 20)) return wrong;
    if (!exchanges(pair, dice, join)) return wrong;
  }
  return {"", connections};
}

TEST_F(FastPathSoak, NoByteOfShortConnectionsIsWrong) {
  const std::uint64_t all = amount("MESH_SOAK_CONNECTIONS", 2'000, 4'000);
  let_join();
  const Soaked soaked = connect_often(all);
  std::printf("%llu connections right; %llu ends joined, %llu of them sent past TCP\n",
              static_cast<unsigned long long>(soaked.right),
              static_cast<unsigned long long>(count("fastpath_joined")),
              static_cast<unsigned long long>(count("fastpath_redirected")));
  EXPECT_EQ(soaked.wrong, "");
  EXPECT_GE(count("fastpath_redirected"), all / 4) << "both ends of every fourth could";
}

TEST_F(SoakByTcp, NoByteOfShortConnectionsIsWrong) {
  const Soaked soaked = connect_often(2'000);
  EXPECT_EQ(soaked.wrong, "");
  EXPECT_EQ(count("fastpath_joined"), 0U);
}

TEST_F(NaiveFastPathSoak, ShortConnectionsAreWrong) {
  EXPECT_THAT(connect_often(30).wrong, testing::HasSubstr("connection"));
}

// What an application does that echoes: it sends while it is sent to. False: not the same bytes.
bool echoes(int fd) {
  std::vector<char> buffer(65'536);
  for (;;) {
    pollfd waiting{fd, POLLIN, 0};
    if (::poll(&waiting, 1, 20'000) != 1) return false;
    const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EAGAIN) continue;
    if (got <= 0) return got == 0;
    for (ssize_t done = 0; done < got;) {
      const ssize_t sent =
          ::send(fd, buffer.data() + done, static_cast<std::size_t>(got - done), MSG_NOSIGNAL);
      pollfd room{fd, POLLOUT, 0};
      if (sent < 0 && (errno != EAGAIN || ::poll(&room, 1, 20'000) != 1)) return false;
      if (sent > 0) done += sent;
    }
  }
}

// Both ways at once, while connections join, and it is switched off and on.
Soaked FastPathSoak::echo(std::uint64_t echoes_wanted) {
  constexpr int kConnections = 4, kEchoes = 60;
  constexpr std::array<std::size_t, 5> kSizes = {1, 100, 1'000, 16'384, 200'000};
  std::atomic<std::uint64_t> right = 0, wrong = 0;
  const auto talk = [&](std::uint64_t seed) {
    Dice dice(seed);
    while (right + wrong < echoes_wanted && wrong == 0) {
      Pair pair;
      {
        const std::lock_guard lock(accept_mutex_);
        pair = connected();
      }
      do_not_block(pair);
      std::thread server([&] { wrong += echoes(pair.server.get()) ? 0 : 1; });
      for (int i = 0; i < kEchoes && wrong == 0; ++i) {
        const std::uint64_t place = dice.below(1'000'000);
        const std::size_t size = kSizes[dice.below(kSizes.size())];
        std::thread sender([&] { wrong += send_all(pair.client.get(), place, size) ? 0 : 1; });
        const bool is_right = receives(pair.client.get(), place, size);
        ++(is_right ? right : wrong);
        sender.join();
        if (i == 0) walk();
      }
      ::shutdown(pair.client.get(), SHUT_WR);
      server.join();
    }
  };
  std::vector<std::thread> talkers;
  for (int number = 0; number < kConnections; ++number) talkers.emplace_back(talk, number);
  while (right + wrong < echoes_wanted && wrong == 0) {
    ::usleep(50'000);
    switch_off();
    switch_on();
  }
  for (auto& talker : talkers) talker.join();
  return {wrong == 0 ? "" : "an echo", right};
}

TEST_F(FastPathSoak, NoByteOfAnEchoIsWrong) {
  const std::uint64_t all = amount("MESH_SOAK_ECHOES", 10'000, 20'000);
  let_join();
  const Soaked soaked = echo(all);
  std::printf("%llu echoes right; %llu ends joined, %llu of them sent past TCP\n",
              static_cast<unsigned long long>(soaked.right),
              static_cast<unsigned long long>(count("fastpath_joined")),
              static_cast<unsigned long long>(count("fastpath_redirected")));
  EXPECT_EQ(soaked.wrong, "");
  EXPECT_GE(count("fastpath_redirected"), all / 60 / 4) << "of about one end for 30 echoes";
}

TEST_F(NaiveFastPathSoak, AnEchoIsWrong) { EXPECT_EQ(echo(20'000).wrong, "an echo"); }

}  // namespace
}  // namespace mesh::test
