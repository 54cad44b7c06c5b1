#include "net/tcp.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>

using namespace std::chrono_literals;
namespace net = mesh::net;
using mesh::Errc;
using mesh::IpAddress;
using mesh::Result;
using mesh::SocketAddress;
using mesh::UniqueFd;

namespace {

UniqueFd tcp_socket() {
  return UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

UniqueFd listening(std::uint16_t* port) {
  UniqueFd fd = tcp_socket();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::listen(fd.get(), 16), 0);
  *port = net::local_address(fd.get()).value().port;
  return fd;
}

class TcpTest : public testing::Test {
 protected:
  net::Reactor reactor;
  net::Scope scope{reactor};
  net::Group group{reactor};
  std::uint16_t port = 0;

  void finish() {
    const auto give_up = net::Clock::now() + 10s;
    while (group.size() > 0 && net::Clock::now() < give_up) reactor.run_once(100ms);
    ASSERT_EQ(group.size(), 0u);
  }
};

net::Task<> echo(net::Listener& listener, net::Reactor& reactor, net::Scope& scope) {
  auto fd = co_await listener.accept(scope);
  auto stream = net::TcpStream::adopt(reactor, std::move(fd).value()).value();
  char buffer[4096];
  while (true) {
    auto n = co_await stream->read_some(buffer, scope);
    if (!n || n.value() == 0) co_return;
    iovec part{buffer, n.value()};
    if (!co_await stream->write_all({&part, 1}, scope)) co_return;
  }
}

net::Task<> call(net::Reactor& reactor, net::Scope& scope, SocketAddress to, std::string text,
                 std::string* got, Result<>* result) {
  auto stream = co_await net::connect(reactor, tcp_socket(), to, scope);
  if (!stream) {
    *result = stream.error();
    co_return;
  }
  iovec part{text.data(), text.size()};
  *result = co_await stream.value()->write_all({&part, 1}, scope);
  stream.value()->shutdown_write();
  char buffer[1000];
  while (true) {
    auto n = co_await stream.value()->read_some(buffer, scope);
    if (!n || n.value() == 0) co_return;
    got->append(buffer, n.value());
  }
}

}  // namespace

TEST_F(TcpTest, ConnectsAcceptsAndCarriesBytesBothWays) {
  auto listener = net::Listener::adopt(reactor, listening(&port)).value();
  std::string got;
  Result<> result = mesh::Error{};
  const std::string text(100'000, 'u');
  group.spawn(echo(*listener, reactor, scope));
  group.spawn(call(reactor, scope, {IpAddress::v4(127, 0, 0, 1), port}, text, &got, &result));
  finish();
  EXPECT_TRUE(result);
  EXPECT_EQ(got, text);
}

TEST_F(TcpTest, AConnectToAClosedPortIsRefused) {
  {
    UniqueFd closed = listening(&port);
  }
  std::string got;
  Result<> result = mesh::success();
  group.spawn(call(reactor, scope, {IpAddress::v4(127, 0, 0, 1), port}, "x", &got, &result));
  finish();
  EXPECT_EQ(result.error().code, Errc::refused);
}

// As a socket of the fast path, which has two queues: a read takes no more than the first message,
// and the event of the second is used up.
TEST_F(TcpTest, ReadsWhatAShortReadLeftBehind) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd other(pair[1]);
  ASSERT_EQ(::send(other.get(), "one", 3, 0), 3);
  ASSERT_EQ(::send(other.get(), "two", 3, 0), 3);
  auto stream = net::TcpStream::adopt(reactor, UniqueFd(pair[0])).value();
  std::string got;
  auto reading = [](net::Stream& s, net::Scope& sc, std::string* into) -> net::Task<> {
    char bytes[100];
    while (into->size() < 6) {
      auto n = co_await s.read_some(bytes, sc);
      if (!n || n.value() == 0) co_return;
      into->append(bytes, n.value());
    }
  };
  group.spawn(reading(*stream, scope, &got));
  finish();
  EXPECT_EQ(got, "onetwo");
  scope.cancel();
}

TEST_F(TcpTest, CancellingStopsAnAccept) {
  auto listener = net::Listener::adopt(reactor, listening(&port)).value();
  Result<> result = mesh::success();
  auto accepting = [](net::Listener& l, net::Scope& s, Result<>* r) -> net::Task<> {
    auto fd = co_await l.accept(s);
    *r = fd.error();
  };
  group.spawn(accepting(*listener, scope, &result));
  scope.cancel();
  finish();
  EXPECT_EQ(result.error().code, Errc::unavailable);
}

TEST_F(TcpTest, ClosingAStreamEndsItsOwnWaits) {
  auto listener = net::Listener::adopt(reactor, listening(&port)).value();
  auto client = net::TcpStream::adopt(reactor, tcp_socket()).value();
  Result<> result = mesh::success();
  auto reading = [](net::Stream& s, net::Scope& sc, Result<>* r) -> net::Task<> {
    char byte[1];
    auto n = co_await s.read_some(byte, sc);
    if (!n) *r = n.error();
  };
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
  UniqueFd other(pair[1]);
  auto stream = net::TcpStream::adopt(reactor, UniqueFd(pair[0])).value();
  group.spawn(reading(*stream, scope, &result));
  stream->close();
  finish();
  EXPECT_EQ(result.error().code, Errc::reset);
}
