// The proxy's two channels, played by the test: how it ends, and what the kernel is told of its
// health.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "feed/channel.h"
#include "feed/hold.h"
#include "feed/messages.h"
#include "proxy/feeds.h"
#include "tests/support/fake_upstream.h"

namespace mesh::test {
namespace {

using namespace std::chrono_literals;
using feed::HoldMessage;
using feed::HoldType;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr auto kDeadline = 10s;
constexpr proxy::WorkloadId kClient = 2;

template <class Condition>
bool eventually(Condition condition) {
  const auto give_up = Clock::now() + kDeadline;
  while (Clock::now() < give_up) {
    if (condition()) return true;
    std::this_thread::sleep_for(5ms);
  }
  return false;
}

// The other end of a channel: what came waits here until it is asked for.
class Peer {
 public:
  explicit Peer(UniqueFd fd) : channel_(std::move(fd)) {}
  feed::Channel& channel() { return channel_; }
  // Whether a frame that contains `text` came, or comes; frames up to it are forgotten.
  bool expect(std::string_view text) { return !next(text).empty(); }
  // That frame; "": none came.
  std::string next(std::string_view text) {
    const auto give_up = Clock::now() + kDeadline;
    while (true) {
      while (!frames_.empty()) {
        const std::string frame = std::move(frames_.front());
        frames_.erase(frames_.begin());
        if (frame.find(text) != std::string::npos) return frame;
      }
      if (ended_ || Clock::now() > give_up) return "";
      read();
    }
  }
  bool has_ended() {
    if (!ended_) read();
    return ended_;
  }

 private:
  void read() {
    pollfd p{channel_.fd(), POLLIN, 0};
    ::poll(&p, 1, 100);
    ended_ = !channel_.receive([this](std::string_view payload, feed::Fds) -> Result<> {
      frames_.emplace_back(payload);
      return success();
    });
  }
  feed::Channel channel_;
  std::vector<std::string> frames_;
  bool ended_ = false;
};

std::string wanted_sockets() {
  const HoldType type = HoldType::kWantSockets;
  return {reinterpret_cast<const char*>(&type), sizeof type};
}

class FeedsTest : public testing::Test {
 protected:
  FeedsTest() : socket_("/tmp/um-feeds-" + std::to_string(::getpid()) + ".sock") {
    options_.original_destination = &find_destination;
    std::promise<void> ready;
    main_thread_ = std::thread([this, &ready] {
      net::Reactor reactor;
      main_ = &reactor;
      feeds_ = std::make_unique<proxy::Feeds>(
          reactor, 2, options_, proxy::FeedsOptions{.version = "1", .peer_uid = ::getuid()});
      auto listener = feed::listen_unix(socket_, 0600);
      EXPECT_TRUE(listener && feeds_->start(std::move(listener).value()));
      ready.set_value();
      reactor.run();
      feeds_.reset();
    });
    ready.get_future().wait();
  }
  ~FeedsTest() override {
    hold_up_ = false;
    end();
    main_thread_.join();
    ::unlink(socket_.c_str());
    if (heartbeat_ != nullptr) ::munmap(const_cast<std::uint64_t*>(heartbeat_), 4096);
  }

  // As meshproxy does it on SIGTERM.
  void end() {
    if (std::exchange(ending_, true)) return;
    main_->post([this] {
      last_ = std::make_unique<net::Group>(*main_);
      last_->spawn(close(*feeds_, *main_));
    });
  }
  static net::Task<> close(proxy::Feeds& feeds, net::Reactor& reactor) {
    co_await feeds.close();
    reactor.stop();
  }
  Peer dial(std::string_view hello) {
    auto fd = feed::dial_unix(socket_, ::getuid());
    EXPECT_TRUE(fd);
    Peer peer(std::move(fd).value());
    EXPECT_TRUE(peer.channel().send_bytes(hello));
    return peer;
  }
  // meshd: the client "productpage", whose service's one endpoint nobody reaches.
  Peer dial_as_meshd() {
    Peer meshd = dial(R"({"type":"hello","role":"meshd"})");
    UniqueFd map(::memfd_create("heartbeat", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(map.get(), 4096), 0);
    heartbeat_ = static_cast<volatile std::uint64_t*>(
        ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, map.get(), 0));
    feed::Fds fds;
    fds.push_back(std::move(map));
    EXPECT_TRUE(
        meshd.channel().send_bytes(R"({"type":"options","heartbeat":true})", std::move(fds)));
    EXPECT_TRUE(meshd.channel().send_bytes(R"({"type":"update","version":1,"reset":true,
      "enrolled":[{"id":2,"namespace":"default","name":"productpage"}],"put":[
      {"apiVersion":"networking.istio.io/v1","kind":"WorkloadEntry","metadata":{"name":"productpage",
       "annotations":{"undermesh.io/netns":"/x","undermesh.io/cgroup":"/y"}},
       "spec":{"address":"10.77.0.2"}},
      {"apiVersion":"v1","kind":"Service","metadata":{"name":"reviews"},
       "spec":{"clusterIP":"10.78.0.1","ports":[{"name":"http","port":9080}]}},
      {"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4",
       "metadata":{"name":"reviews","labels":{"kubernetes.io/service-name":"reviews"}},
       "endpoints":[{"addresses":["10.77.1.1"]}],"ports":[{"name":"http","port":9080}]}]})"));
    EXPECT_TRUE(meshd.expect("\"ack\""));
    return meshd;
  }
  Peer dial_as_meshhold() { return dial(feed::kHoldHello); }

  // A listener that meshhold made; returns its port.
  std::uint16_t give_listener(Peer& hold, feed::ListenerKind kind) {
    const bool udp = kind == feed::ListenerKind::kDnsUdp;
    UniqueFd fd(
        ::socket(AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    if (!udp) EXPECT_EQ(::listen(fd.get(), 16), 0);
    socklen_t size = sizeof at;
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &size);
    HoldMessage message;
    message.type = HoldType::kListener;
    message.workload = kind == feed::ListenerKind::kMetrics ? 0 : kClient;
    message.kind = kind;
    message.family = feed::kFamily4;
    message.ip = IpAddress::v4(127, 0, 0, 1).bytes();
    message.port = ntohs(at.sin_port);
    send(hold, message, std::move(fd));
    return message.port;
  }
  static void send(Peer& hold, const HoldMessage& message, UniqueFd fd) {
    feed::Fds fds;
    if (fd) fds.push_back(std::move(fd));
    EXPECT_TRUE(hold.channel().send_bytes(feed::as_bytes(message), std::move(fds)));
  }
  static HoldMessage sockets(feed::HoldStatus status) {
    HoldMessage message;
    message.type = HoldType::kSockets;
    message.workload = kClient;
    message.family = feed::kFamily4;
    message.status = status;
    return message;
  }

  Clock::duration heartbeat_age() const {
    return Clock::now().time_since_epoch() - std::chrono::nanoseconds(*heartbeat_);
  }

  volatile std::uint64_t* heartbeat_ = nullptr;
  static inline std::atomic<bool> hold_up_{false};

 private:
  static Result<SocketAddress> find_destination(int) {
    while (hold_up_) std::this_thread::sleep_for(1ms);
    return SocketAddress{IpAddress::v4(10, 78, 0, 1), 9080};
  }
  const std::string socket_;
  proxy::WorkerOptions options_;
  net::Reactor* main_ = nullptr;
  std::thread main_thread_;
  std::unique_ptr<proxy::Feeds> feeds_;
  std::unique_ptr<net::Group> last_;
  bool ending_ = false;
};

TEST_F(FeedsTest, WhatIsUnderWayAtTheEndStillHasItsChannelsAndItsHeartbeat) {
  Peer meshd = dial_as_meshd();
  Peer hold = dial_as_meshhold();
  const auto port = give_listener(hold, feed::ListenerKind::kOutbound);
  ASSERT_TRUE(hold.expect(wanted_sockets())) << "the first stock, which it does not get";
  auto client = HttpSocket::connect_to(port);
  client.send("GET / HTTP/1.1\r\nHost: reviews\r\n\r\n");
  ASSERT_TRUE(hold.expect(wanted_sockets())) << "a request waits for a socket";
  end();
  const std::uint64_t stamp = *heartbeat_;
  ASSERT_TRUE(hold.expect(wanted_sockets())) << "and goes on waiting";
  EXPECT_TRUE(eventually([&] { return *heartbeat_ > stamp + 500'000'000; }));
  // Of no use for a connect, so the request ends here.
  send(hold, sockets(feed::HoldStatus::kOk), UniqueFd(::socket(AF_UNIX, SOCK_STREAM, 0)));
  const auto answer = client.read();
  ASSERT_TRUE(answer);
  EXPECT_THAT(answer->body, testing::Not(HasSubstr("no socket came")));
  EXPECT_EQ(answer->field("connection"), "close");
  EXPECT_TRUE(eventually([&] { return hold.has_ended() && meshd.has_ended(); }));
}

// What the proxy before it said holds until this one has its listeners: else the kernel would send
// the queries elsewhere in between.
TEST_F(FeedsTest, SaysWhoseDnsItAnswersOnceMeshholdHasNamedAllListeners) {
  Peer meshd = dial(R"({"type":"hello","role":"meshd"})");
  Peer hold = dial_as_meshhold();
  give_listener(hold, feed::ListenerKind::kDnsUdp);
  give_listener(hold, feed::ListenerKind::kDnsTcp);
  HoldMessage sync;
  sync.type = HoldType::kSync;
  send(hold, sync, UniqueFd());
  EXPECT_THAT(meshd.next("\"type\":\"dns\""), HasSubstr("\"workloads\":[2]"));
}

TEST_F(FeedsTest, AWorkerThatStandsStillStopsTheHeartbeat) {
  Peer meshd = dial_as_meshd();
  Peer hold = dial_as_meshhold();
  const auto port = give_listener(hold, feed::ListenerKind::kOutbound);
  const std::uint64_t first = *heartbeat_;
  EXPECT_TRUE(eventually([&] { return *heartbeat_ > first + 1'000'000'000; }))
      << "workers that have nothing to do are alive";
  hold_up_ = true;
  auto client = HttpSocket::connect_to(port);
  EXPECT_TRUE(eventually([&] { return heartbeat_age() > 2s; }));
  hold_up_ = false;
  EXPECT_TRUE(eventually([&] { return heartbeat_age() < 1s; }));
}

TEST_F(FeedsTest, RequestsForSocketsThatFailAreCounted) {
  Peer hold = dial_as_meshhold();
  const auto port = give_listener(hold, feed::ListenerKind::kMetrics);
  for (int i = 0; i < 1000; ++i) {
    send(hold, sockets(feed::HoldStatus::kUnavailable), UniqueFd());
  }
  std::string text;
  EXPECT_TRUE(eventually([&] {
    EXPECT_TRUE(hold.channel().flush());
    auto scrape = HttpSocket::connect_to(port);
    scrape.send("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    text = scrape.read_to_end();
    return text.find("undermesh_socket_requests_failed_total 1000\n") != std::string::npos;
  })) << text;
}

}  // namespace
}  // namespace mesh::test
