// Bodies through the proxy: streamed both ways, cut short, slowed down; tunnels.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
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

// Sends a byte whenever the last one has arrived, for longer than may pass without one.
void send_for(std::chrono::milliseconds time, HttpSocket& socket, Gate& end,
              const std::atomic<std::size_t>& arrived, const std::string& byte) {
  const auto until = std::chrono::steady_clock::now() + time;
  for (std::size_t sent = 0; std::chrono::steady_clock::now() < until;) {
    if (arrived >= sent) {
      if (!socket.send(byte)) break;
      ++sent;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  end.open();
}

class IdleTest : public ProxyTest {
 protected:
  static constexpr std::chrono::milliseconds kIdle{1000};
  std::atomic<std::size_t> arrived_{0};
  Gate end_;
};

TEST_F(IdleTest, AnUploadMayTakeLongerThanNothingMayMove) {
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    connection.read_head();
    const auto count = [&] {
      arrived_ = static_cast<std::size_t>(std::ranges::count(connection.buffered(), '!'));
      return connection.buffered().ends_with("0\r\n\r\n");
    };
    while (!count() && connection.fill()) {
    }
    connection.send(FakeUpstream::ok("x"));
    connection.read();
  });
  options_.limits.stream_idle_timeout = kIdle;
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nTransfer-Encoding: chunked\r\n\r\n");
  send_for(2 * kIdle, socket, end_, arrived_, "1\r\n!\r\n");
  socket.send("0\r\n\r\n");
  EXPECT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 200);
}

TEST_F(IdleTest, AWebSocketMayGoOneWayForLonger) {
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    connection.read();
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    do {
      arrived_ = connection.buffered().size();
    } while (connection.fill());
    connection.send("bye");
  });
  options_.limits.idle_timeout = kIdle;
  serve({&upstream});
  auto socket = dial();
  socket.send(get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\n"));
  ASSERT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 101);
  send_for(2 * kIdle, socket, end_, arrived_, "!");
  socket.shutdown_write();
  EXPECT_EQ(socket.read_to_end(), "bye");
}

TEST_F(IdleTest, AnEndpointThatTakesNoMoreIsToBlame) {
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) {
    connection.read_head();
    end_.wait();
  });
  options_.limits.stream_idle_timeout = kIdle / 5;
  serve({&upstream});
  auto socket = dial();
  std::thread writer([&] { socket.send(post(pattern(30'000'000))); });
  EXPECT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 504);
  EXPECT_EQ(metric_at(1, "envoy_cluster_upstream_rq_timeout", {kCluster}), 1);
  writer.join();
  end_.open();
}

TEST_F(IdleTest, AClientThatSendsNoMoreIsToBlame) {
  auto upstream = FakeUpstream::raw([&](HttpSocket& connection) { connection.read_to_end(); });
  options_.limits.stream_idle_timeout = kIdle / 5;
  serve({&upstream});
  auto socket = dial();
  socket.send("POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 5\r\n\r\nhi");
  EXPECT_EQ(socket.read().value_or(HttpSocket::Message{}).status(), 408);
  EXPECT_EQ(metric("envoy_cluster_upstream_rq_timeout", {kCluster}), 0);
}

TEST_F(ProxyTest, ASwitchThatNobodyAskedForIsA502) {
  auto upstream = FakeUpstream::raw([](HttpSocket& connection) {
    connection.read();
    connection.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nGET /");
    EXPECT_TRUE(connection.is_closed());
  });
  serve({&upstream});
  for (const auto& request : {get("/"), get("/", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
                              post("hi", "Connection: Upgrade\r\nUpgrade: websocket\r\n")}) {
    EXPECT_EQ(ask(request).status(), 502) << request;
  }
  EXPECT_EQ(metric_at(3, "istio_requests_total", {"response_flags=\"UPE\""}), 3);
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
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd log(ends[0]);
  auto writer = std::make_shared<UniqueFd>(ends[1]);
  on_main([&] { proxy_->set_access_log(std::move(*writer)); });
  wait_for_workers();
  socket.send(get("/chat", "User-Agent: ws\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"));
  const auto response = socket.read();
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status(), 101);
  EXPECT_EQ(response->field("upgrade"), "websocket");
  std::string text;
  ASSERT_TRUE(socket.take(7, text));
  socket.send("ping");
  ASSERT_TRUE(socket.take(9, text));
  EXPECT_EQ(text, "welcomeecho:ping");
  EXPECT_EQ(metric_at(0, "undermesh_buffers_in_use"), 0);  // it may idle for an hour
  socket.shutdown_write();
  EXPECT_TRUE(socket.is_closed());
  char line[4096];
  const ssize_t size = ::read(log.get(), line, sizeof line);
  ASSERT_GT(size, 0);
  const std::string_view text_of_log(line, static_cast<std::size_t>(size));
  EXPECT_THAT(text_of_log, HasSubstr("\"GET /chat HTTP/1.1\" 101 "));
  EXPECT_THAT(text_of_log, HasSubstr("\"ws\""));
}

}  // namespace
}  // namespace mesh::test
