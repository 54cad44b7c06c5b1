// What one turn of a worker's reactor does: no connection has the worker to itself.
#include "proxy/worker.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>

namespace mesh::proxy {
namespace {

using namespace std::chrono_literals;

struct NoSinks : Sinks {
  void log_lines(std::string) override {}
  void tap(TapEvent) override {}
  void want_sockets(unsigned, WorkloadId, SocketKind, std::uint32_t) override {}
};

// A worker whose thread is the test's.
class WorkerTest : public testing::Test {
 protected:
  WorkerTest() {
    options_.original_destination = [](int) {
      return Result<SocketAddress>(SocketAddress{IpAddress::v4(10, 78, 0, 1), 9080});
    };
    worker_.emplace(0, options_, registry_, metrics_.add_worker(), sinks_, 1);
  }
  ~WorkerTest() override {
    bool ended = false;
    worker_->begin_stop([&] { ended = true; });
    while (!ended) turn();
  }
  void turn() { worker_->reactor().run_once(10ms); }

  NoSinks sinks_;
  cluster::Registry registry_;
  telemetry::Metrics metrics_;
  WorkerOptions options_;
  std::optional<Worker> worker_;
};

std::size_t count(std::string_view text, std::string_view what) {
  std::size_t times = 0;
  for (auto at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++times;
  return times;
}

TEST_F(WorkerTest, AClientThatPipelinesLeavesOthersTheirTurn) {
  constexpr std::size_t kRequests = 100;
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  UniqueFd client(ends[0]);
  std::string requests;
  for (std::size_t i = 0; i < kRequests; ++i) requests += "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  ASSERT_EQ(::send(client.get(), requests.data(), requests.size(), 0),
            static_cast<ssize_t>(requests.size()));
  std::string answers;
  const auto answered = [&] {
    char bytes[65536];
    const ssize_t n = ::recv(client.get(), bytes, sizeof bytes, 0);
    if (n > 0) answers.append(bytes, static_cast<std::size_t>(n));
    return count(answers, "HTTP/1.1 503 ");  // of a workload that nobody knows
  };
  Client nobody(*worker_, 7, false);
  net::Group connections(worker_->reactor());
  connections.spawn(serve_connection(*worker_, nobody, {.workload = 7}, UniqueFd(ends[1])));
  EXPECT_LE(answered(), Limits::kTurns);
  turn();
  EXPECT_LE(answered(), 2 * Limits::kTurns);
  for (int turns = 0; turns < 1000 && answered() < kRequests; ++turns) turn();
  EXPECT_EQ(answered(), kRequests);
  client.reset();
  while (connections.size() > 0) turn();
}

TEST_F(WorkerTest, ManyConnectionsAtOnceLeaveOthersTheirTurn) {
  constexpr std::uint64_t kConnections = 50;
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(::listen(listener.get(), 128), 0);
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size);
  std::vector<UniqueFd> clients;
  for (std::uint64_t i = 0; i < kConnections; ++i) {
    clients.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(clients.back().get(), reinterpret_cast<sockaddr*>(&at), size), 0);
  }
  auto configuration = std::make_shared<Configuration>();
  auto snapshot = std::make_shared<config::Snapshot>();
  auto workload = std::make_shared<config::Workload>();
  workload->name = {"default", "a"};
  snapshot->workloads[workload->name] = workload;
  configuration->snapshot = snapshot;
  configuration->enrolled[7] = workload->name;
  worker_->adopt(configuration);
  const auto accepted = [&] { return worker_->counters().connections_total.value(); };
  worker_->add_listener({.workload = 7}, std::move(listener), false);
  EXPECT_LE(accepted(), Limits::kTurns);
  for (int turns = 0; turns < 1000 && accepted() < kConnections; ++turns) turn();
  EXPECT_EQ(accepted(), kConnections);
}

}  // namespace
}  // namespace mesh::proxy
