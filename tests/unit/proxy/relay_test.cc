#include "proxy/relay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/support/fake_stream.h"

namespace mesh::proxy {
namespace {

using namespace std::chrono_literals;
using test::FakeStream;

class RelayTest : public testing::Test {
 protected:
  struct Ran {
    RelayEnd end = RelayEnd::kCancelled;
    std::string out;
    std::uint64_t body_bytes = 0;
    bool wrote = false;
    bool ended = false;
  };

  net::Task<> relay(net::Stream& from, http::Framing in, net::Stream& to, http::BodyKind out,
                    std::string prefix, net::Scope& scope, Ran* ran) {
    std::size_t held = 0;
    ReadBuffer buffer;
    buffer.acquire(pool, held);
    http::BodyDecoder decoder(in);
    net::IdleClock idle(10s, reactor.now());
    Relay relay{.from = from,
                .buffer = buffer,
                .decoder = decoder,
                .to = to,
                .framing = out,
                .prefix = prefix,
                .idle = idle};
    ran->end = co_await relay_body(relay, scope);
    ran->body_bytes = relay.body_bytes;
    ran->wrote = relay.wrote;
    to.shutdown_write();
  }
  static net::Task<> relay_into(Relay& relay, net::Scope& scope, RelayEnd* end) {
    *end = co_await relay_body(relay, scope);
  }
  static net::Task<> feed(net::Stream& to, std::string text, std::size_t piece, bool end,
                          net::Scope& scope) {
    for (std::size_t at = 0; at < text.size(); at += piece) {
      iovec part{text.data() + at, std::min(piece, text.size() - at)};
      if (!co_await to.write_all({&part, 1}, scope)) co_return;
      (void)co_await net::yield(scope);
    }
    if (end) to.shutdown_write();
  }
  static net::Task<> collect(net::Stream& from, Ran* ran, net::Scope& scope) {
    char bytes[1000];
    while (true) {
      auto n = co_await from.read_some(bytes, scope);
      if (!n) co_return;
      if (n.value() == 0) {
        ran->ended = true;
        co_return;
      }
      ran->out.append(bytes, n.value());
    }
  }

  Ran run(const std::string& input, std::size_t piece, http::Framing in, http::BodyKind out,
          const std::string& prefix, FakeStream::Faults* faults = nullptr,
          std::size_t capacity = 1 << 16) {
    Ran ran;
    auto [client, source] = FakeStream::make_pair(reactor, capacity);
    auto [sink, server] = FakeStream::make_pair(reactor, capacity, faults);
    net::Scope scope(reactor);
    net::Group group(reactor);
    group.spawn(relay(*source, in, *sink, out, prefix, scope, &ran));
    group.spawn(feed(*client, input, piece, true, scope));
    group.spawn(collect(*server, &ran, scope));
    for (int i = 0; i < 100'000 && group.size() > 0; ++i) {
      reactor.run_once(0ms);
      if (ran.end != RelayEnd::kCancelled && i > 90'000) scope.cancel();
    }
    scope.cancel();
    while (group.size() > 0) reactor.run_once(0ms);
    return ran;
  }

  net::Reactor reactor;
  net::BufferPool pool;
};

constexpr http::Framing kChunked{http::BodyKind::chunked, 0};

TEST_F(RelayTest, APrefixAndABodyGoThroughHoweverTheyAreCut) {
  const std::string body(10'000, 'b');
  for (std::size_t piece : {1u, 7u, 1000u, 20'000u}) {
    for (std::size_t capacity : {5u, 4096u}) {
      const Ran ran = run(body, piece, {http::BodyKind::content_length, body.size()},
                          http::BodyKind::content_length, "HEAD", nullptr, capacity);
      EXPECT_EQ(ran.end, RelayEnd::kDone);
      EXPECT_EQ(ran.out, "HEAD" + body);
      EXPECT_EQ(ran.body_bytes, body.size());
    }
  }
}

TEST_F(RelayTest, ManySmallChunksBecomeFewerAndTrailersFollow) {
  std::string input;
  for (int i = 0; i < 500; ++i) input += "3\r\nabc\r\n";
  input += "0\r\nX-Sum: 1\r\n\r\n";
  const Ran ran = run(input, input.size(), kChunked, http::BodyKind::chunked, "HEAD");
  EXPECT_EQ(ran.end, RelayEnd::kDone);
  EXPECT_EQ(ran.body_bytes, 1500u);
  EXPECT_TRUE(ran.out.ends_with("0\r\nX-Sum: 1\r\n\r\n")) << ran.out;
  http::BodyDecoder decoder(kChunked);
  std::string_view rest = std::string_view(ran.out).substr(4);
  std::size_t chunks = 0;
  for (auto step = decoder.next(rest); step.event == http::BodyDecoder::Event::data;
       step = decoder.next(rest)) {
    rest.remove_prefix(step.consumed);
    ++chunks;
  }
  EXPECT_LT(chunks, 30u);
}

TEST_F(RelayTest, ABadFirstChunkSendsNothingAtAll) {
  const Ran ran = run("zz\r\nabc", 100, kChunked, http::BodyKind::chunked, "HEAD");
  // The prefix may be out before the first byte of the body came; here nothing had come yet.
  EXPECT_EQ(ran.end, RelayEnd::kSourceProtocol);
  EXPECT_TRUE(ran.out == "" || ran.out == "HEAD");
}

TEST_F(RelayTest, ABodyCutShortIsNotDone) {
  const Ran ran =
      run("half", 100, {http::BodyKind::content_length, 8}, http::BodyKind::content_length, "");
  EXPECT_EQ(ran.end, RelayEnd::kSourceCut);
}

TEST_F(RelayTest, UntilTheEndBecomesChunked) {
  const Ran ran =
      run("hello", 100, {http::BodyKind::until_close, 0}, http::BodyKind::chunked, "HEAD");
  EXPECT_EQ(ran.end, RelayEnd::kDone);
  EXPECT_TRUE(ran.out.ends_with("0\r\n\r\n"));
}

TEST_F(RelayTest, TheTimeAfterTheBodyRunsWhileItsEndWaitsToBeWritten) {
  auto [sink, server] = FakeStream::make_pair(reactor, 5);
  auto [client, source] = FakeStream::make_pair(reactor);
  std::size_t held = 0;
  ReadBuffer buffer;
  buffer.acquire(pool, held);
  const std::string body = "a body that the sink takes in part";
  std::ranges::copy(body, buffer.space().begin());
  buffer.filled(body.size());
  http::BodyDecoder decoder({http::BodyKind::content_length, body.size()});
  net::IdleClock idle(1h, reactor.now());
  Relay relay{.from = *source,
              .buffer = buffer,
              .decoder = decoder,
              .to = *sink,
              .framing = http::BodyKind::content_length,
              .idle = idle,
              .time_after_body = 20ms};
  net::Scope scope(reactor);
  net::Group group(reactor);
  RelayEnd end = RelayEnd::kDone;
  group.spawn(relay_into(relay, scope, &end));
  while (group.size() > 0) reactor.run_once(100ms);
  EXPECT_EQ(end, RelayEnd::kCancelled);
  EXPECT_EQ(scope.cancelled(), Errc::timed_out);
  EXPECT_TRUE(relay.is_writing);
}

TEST_F(RelayTest, EveryFailingOperationOfTheSinkEndsTheRelay) {
  const std::string body(3000, 'b');
  std::size_t failed = 0;
  for (std::size_t fail_at = 1;; ++fail_at) {
    FakeStream::Faults faults{.fail_at = fail_at};
    const Ran ran = run(body, 100, {http::BodyKind::content_length, body.size()},
                        http::BodyKind::content_length, "HEAD", &faults, 64);
    if (faults.operations < fail_at) {  // there are no more
      EXPECT_EQ(ran.end, RelayEnd::kDone);
      EXPECT_EQ(ran.out, "HEAD" + body);
      break;
    }
    failed += ran.end == RelayEnd::kSinkFailed;
    // The other failures are of the reader beyond the sink; it reads no more, and ends its side.
    EXPECT_NE(ran.end, RelayEnd::kSourceClosed);
    EXPECT_LE(ran.out.size(), 4 + body.size());
    EXPECT_EQ(ran.out, ("HEAD" + body).substr(0, ran.out.size()));
  }
  EXPECT_GT(failed, 10u);
}

}  // namespace
}  // namespace mesh::proxy
