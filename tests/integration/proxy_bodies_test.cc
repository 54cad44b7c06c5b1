// Bodies through the proxy: streamed both ways, cut short, slowed down; tunnels.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>

#include "tests/support/fake_upstream.h"
#include "tests/support/reviews_fixture.h"

namespace mesh::test {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string chunked(const std::string& body, std::size_t piece, const std::string& trailers = "") {
  std::string out;
  for (std::size_t at = 0; at < body.size(); at += piece) {
    const std::string part = body.substr(at, piece);
    char size[20];
    std::snprintf(size, sizeof size, "%zx\r\n", part.size());
    out += size + part + "\r\n";
  }
  return out + "0\r\n" + trailers + "\r\n";
}

std::string pattern(std::size_t size) {
  std::string text(size, ' ');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (i * 7 + i / 251) % 26);
  return text;
}

TEST_F(ProxyTest, StreamsLargeBodiesBothWays) {
  FakeUpstream upstream([](auto& r) { return FakeUpstream::ok(r.body); });
  serve({&upstream});
  const std::string body = pattern(3'000'000);
  auto socket = dial();
  std::thread writer([&] { socket.send(post(body)); });
  const auto response = socket.read();
  writer.join();
  ASSERT_TRUE(response);
  EXPECT_TRUE(response->complete);
  EXPECT_EQ(response->body, body);
  EXPECT_EQ(upstream.last().field("content-length"), std::to_string(body.size()));
}

TEST_F(ProxyTest, StreamsChunkedBodiesBothWaysWithTrailers) {
  const std::string body = pattern(300'000);
  FakeUpstream upstream([&](auto& r) {
    return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n" +
           chunked(r.body, 777, "X-Sum: 42\r\n");
  });
  serve({&upstream});
  auto socket = dial();
  std::thread writer([&] {
    socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n" +
                chunked(body, 1000, "X-Up: 1\r\n"));
  });
  const auto response = socket.read();
  writer.join();
  ASSERT_TRUE(response);
  EXPECT_TRUE(response->complete);
  EXPECT_EQ(response->body, body);
  EXPECT_THAT(socket.trailers_, testing::ElementsAre(testing::StrCaseEq("X-Sum: 42")));
  EXPECT_EQ(upstream.last().body, body);
}

TEST_F(ProxyTest, ABodyUntilTheEndBecomesChunkedAndTheConnectionGoesOn) {
  const std::string body = pattern(100'000);
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (connection.read()) connection.send("HTTP/1.1 200 OK\r\n\r\n" + body);
  });
  serve({&upstream});
  auto socket = dial();
  for (int i = 0; i < 2; ++i) {
    socket.send(get("/"));
    const auto response = socket.read();
    ASSERT_TRUE(response);
    EXPECT_EQ(response->field("transfer-encoding"), "chunked");
    EXPECT_TRUE(response->complete);
    EXPECT_EQ(response->body, body);
  }
}

TEST_F(ProxyTest, HttpOneZeroGetsItsBodyUntilTheEnd) {
  FakeUpstream upstream([](auto&) {
    return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked("hello", 2);
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("GET / HTTP/1.0\r\n\r\n");
  const std::string all = socket.read_to_end();
  EXPECT_THAT(all, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(all, testing::EndsWith("\r\n\r\nhello"));
  EXPECT_EQ(upstream.last().field("host"), "reviews.default.svc.cluster.local");
}

TEST_F(ProxyTest, HeadAnd204And304HaveNoBody) {
  FakeUpstream upstream([](auto& r) -> std::string {
    if (r.start_line.starts_with("HEAD")) return "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    if (r.start_line.starts_with("GET /204")) return "HTTP/1.1 204 No Content\r\n\r\n";
    return "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n";
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("HEAD / HTTP/1.1\r\nHost: reviews\r\n\r\n");
  EXPECT_EQ(socket.read("HEAD")->field("content-length"), "1000");
  socket.send(get("/204"));
  EXPECT_EQ(socket.read()->status(), 204);
  socket.send(get("/304"));
  EXPECT_EQ(socket.read()->status(), 304);
  EXPECT_EQ(upstream.connections(), 1);
}

TEST_F(ProxyTest, ASlowReaderSlowsTheEndpointDown) {
  constexpr std::size_t kAll = 100'000'000;
  std::atomic<std::size_t> sent{0};
  std::atomic<HttpSocket*> endpoint{nullptr};
  Gate looked;
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    if (!connection.read()) return;
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(kAll) + "\r\n\r\n");
    const std::string piece = pattern(100'000);
    endpoint = &connection;
    while (sent < kAll && connection.send(piece)) sent += piece.size();
    looked.wait();
  });
  serve({&upstream});
  auto socket = dial();
  const int small = 16 * 1024;
  ::setsockopt(socket.fd(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  socket.send(get("/"));
  ASSERT_TRUE(eventually([&] { return endpoint != nullptr; }));
  // Its kernel has begun to ask whether the window is open again (or all is sent).
  EXPECT_TRUE(
      eventually([&] { return sent >= kAll || endpoint.load()->tcp_info().tcpi_backoff > 0; }));
  EXPECT_LT(sent.load(), 30'000'000u);
  EXPECT_LE(metric("undermesh_buffers_in_use"), 2);
  looked.open();
  socket.reset();
}

TEST_F(ProxyTest, PassesContinueOnAndBack) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    auto head = connection.read_head();
    EXPECT_THAT(*head, HasSubstr("100-continue"));
    connection.send("HTTP/1.1 100 Continue\r\n\r\n");
    std::string body;
    connection.take(5, body);
    connection.send(FakeUpstream::ok(body));
    connection.read();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(
      "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_THAT(*socket.read_head(), StartsWith("HTTP/1.1 100 "));
  socket.send("hello");
  EXPECT_EQ(socket.read()->body, "hello");
}

TEST_F(ProxyTest, AnAnswerBeforeTheEndOfTheRequestIsPassedOn) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read_head();
    connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 10000000\r\n\r\n" +
              pattern(50'000));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 413);
  EXPECT_EQ(response->body, "big");
  EXPECT_EQ(response->field("connection"), "close");
}

TEST_F(ProxyTest, BodiesMayFlowBothWaysAtOnce) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read_head();
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 5; ++i) {
      std::string part;
      if (!connection.take(4, part)) return;
      connection.send("4\r\n" + part + "\r\n");
    }
    connection.send("0\r\n\r\n");
    connection.read();
  });
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 20\r\n\r\n");
  socket.send("ping");
  ASSERT_TRUE(socket.read_head());
  for (int i = 0; i < 5; ++i) {
    std::string chunk;
    ASSERT_TRUE(socket.take(9, chunk));
    EXPECT_EQ(chunk, "4\r\nping\r\n");
    if (i < 4) socket.send("ping");
  }
}

TEST_F(ProxyTest, ABodyCutShortIsSeenByTheClient) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read();
    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_FALSE(response->complete);
}

TEST_F(ProxyTest, AWebSocketIsTunnelledBothWays) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    const auto request = connection.read();
    EXPECT_EQ(request->field("upgrade"), "websocket");
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\n\r\nwelcome");
    std::string message;
    connection.take(4, message);
    connection.send("echo:" + message);
    EXPECT_TRUE(connection.is_closed());
  });
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 101);
  EXPECT_EQ(response->field("upgrade"), "websocket");
  std::string text;
  ASSERT_TRUE(socket.take(7, text));
  socket.send("ping");
  ASSERT_TRUE(socket.take(9, text));
  EXPECT_EQ(text, "welcomeecho:ping");
  socket.shutdown_write();
  EXPECT_TRUE(socket.is_closed());
}

}  // namespace
}  // namespace mesh::test
