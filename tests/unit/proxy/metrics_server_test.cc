#include "proxy/metrics_server.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

namespace mesh::proxy {
namespace {

using namespace std::chrono_literals;

TEST(MetricsServer, AListenerThatIsRemovedAndAddedAtOnceAnswers) {
  net::Reactor reactor;
  MetricsServer server(reactor, [](std::string& out) { out += "up 1\n"; });
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(::listen(listener.get(), 8), 0);
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&at), &size);
  const ListenerId id{.workload = 1};
  server.add_listener(id, UniqueFd(::dup(listener.get())));
  reactor.run_once(1ms);
  server.remove_listener(id);
  server.add_listener(id, std::move(listener));
  EXPECT_EQ(server.listeners().size(), 1u);
  reactor.run_once(1ms);
  UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&at), size), 0);
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
  ASSERT_GT(::send(client.get(), request.data(), request.size(), 0), 0);
  char answer[4096];
  ssize_t n = -1;
  for (int turn = 0; turn < 1000 && n < 0; ++turn) {
    reactor.run_once(10ms);
    n = ::recv(client.get(), answer, sizeof answer, MSG_DONTWAIT);
  }
  EXPECT_GT(n, 0);
  net::Group last(reactor);
  last.spawn(server.close());
  while (last.size() > 0) reactor.run_once(10ms);
}

}  // namespace
}  // namespace mesh::proxy
