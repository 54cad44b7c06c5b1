#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "http/http1.h"

namespace mesh::http {
namespace {

using Event = BodyDecoder::Event;
constexpr Framing kChunked{BodyKind::chunked, 0};

// What comes out of a body that arrives in pieces of `piece` bytes, unread bytes shown again.
struct Decoded {
  std::string data, trailers;
  Event last = Event::need_more;
  ParseError error;
  std::size_t consumed = 0;
};

Decoded decode(std::string_view input, const Framing& framing, std::size_t piece,
               const Limits& limits = kDefaultLimits) {
  BodyDecoder decoder(framing, limits);
  Decoded result;
  std::size_t shown = 0;
  while (true) {
    const std::string_view view = input.substr(result.consumed, shown - result.consumed);
    const auto step = decoder.next(view);
    result.last = step.event;
    result.error = decoder.error();
    result.consumed += step.consumed;
    result.data += step.data;
    if (step.event == Event::end) result.trailers = decoder.trailers();
    if (step.event == Event::end || step.event == Event::error) return result;
    if (step.event == Event::need_more) {
      if (shown == input.size()) return result;
      shown = std::min(shown + piece, input.size());
    }
  }
}

TEST(BodyDecoder, EndsAtOnceWithoutABody) {
  EXPECT_EQ(BodyDecoder().next("GET").event, Event::end);
  EXPECT_EQ(BodyDecoder(Framing{BodyKind::content_length, 0}).next("").event, Event::end);
  EXPECT_EQ(BodyDecoder().eof(), Event::end);
}

TEST(BodyDecoder, ViewsAContentLengthBodyAndLeavesTheRest) {
  BodyDecoder decoder(Framing{BodyKind::content_length, 5});
  EXPECT_EQ(decoder.next("").event, Event::need_more);
  EXPECT_EQ(decoder.next("he").data, "he");
  const std::string_view rest = "lloGET / ";
  const auto step = decoder.next(rest);
  EXPECT_EQ(step.event, Event::data);
  EXPECT_EQ(step.data.data(), rest.data());
  EXPECT_EQ(step.data, "llo");
  EXPECT_EQ(step.consumed, 3);
  EXPECT_TRUE(decoder.is_done());
  EXPECT_EQ(decoder.next("GET / ").consumed, 0);
}

TEST(BodyDecoder, EndsUntilCloseBodiesAtEof) {
  BodyDecoder decoder(Framing{BodyKind::until_close, 0});
  EXPECT_EQ(decoder.next("abc").data, "abc");
  EXPECT_FALSE(decoder.is_done());
  EXPECT_EQ(decoder.eof(), Event::end);
  EXPECT_TRUE(decoder.is_done());
}

TEST(BodyDecoder, CallsABodyCutShortAnError) {
  BodyDecoder fixed(Framing{BodyKind::content_length, 5});
  fixed.next("abc");
  EXPECT_EQ(fixed.eof(), Event::error);
  BodyDecoder chunked(kChunked);
  chunked.next("3\r\nabc\r\n");
  EXPECT_EQ(chunked.eof(), Event::error);
  EXPECT_EQ(chunked.next("0\r\n\r\n").event, Event::error);
}

TEST(BodyDecoder, ReadsChunksHoweverTheyAreCut) {
  const std::string input =
      "5\r\nhello\r\n"
      "00000A;name=\"va lue\";x\r\n, chunked!\r\n"
      "1\r\n\n\r\n"
      "0;last\r\nX-Sum: 1\r\nEtag:\t\"a\"\r\n\r\nGET /";
  for (std::size_t piece = 1; piece <= input.size(); ++piece) {
    const auto result = decode(input, kChunked, piece);
    EXPECT_EQ(result.last, Event::end) << piece << result.error.detail;
    EXPECT_EQ(result.data, "hello, chunked!\n");
    EXPECT_EQ(result.trailers, "X-Sum: 1\r\nEtag:\t\"a\"\r\n");
    EXPECT_EQ(result.consumed, input.size() - 5);
  }
}

TEST(BodyDecoder, GivesDataOfAChunkBeforeTheChunkIsComplete) {
  BodyDecoder decoder(kChunked);
  const auto step = decoder.next("ffff\r\nabc");
  EXPECT_EQ(step.data, "abc");
  EXPECT_EQ(step.consumed, 9);
  EXPECT_EQ(decoder.next("de").data, "de");
}

TEST(BodyDecoder, RefusesBadChunks) {
  struct Case {
    std::string input;
    int status;
  };
  const Case cases[] = {
      {"\r\n", 400},
      {"\n", 400},
      {"g\r\n", 400},
      {"-1\r\n", 400},
      {"+1\r\n", 400},
      {"0x1\r\n", 400},
      {" 1\r\na", 400},
      {"1 \r\na", 400},
      {"1\t;x\r\na", 400},
      {"1\na", 400},
      {"1\ra", 400},
      {"1\r\r\na", 400},
      {"1;a\nb", 400},
      {"1;a\rb", 400},
      {std::string("1;\0\r\n", 5), 400},
      {"1;\x7f\r\n", 400},
      {";x\r\n", 400},
      {"1,2\r\n", 400},
      {"1\r\nab", 400},
      {"1\r\na\n", 400},
      {"1\r\na\rx", 400},
      {"2\r\na\r\n0\r\n\r\n", 400},
      {"7fffffffffffffff0\r\n", 400},
      {"ffffffffffffffff\r\n", 400},
      {"10000000000000005\r\nhello\r\n", 400},
      {"1;" + std::string(300, 'x') + "\r\na", 400},
      {std::string(300, '0') + "1\r\na", 400},
      {"0\r\n\n", 400},
      {"0\r\nX: y\n\r\n", 400},
      {"0\r\nX : y\r\n\r\n", 400},
      {"0\r\n X: y\r\n\r\n", 400},
      {"0\r\nX: a\r\n b\r\n\r\n", 400},
      {"0\r\nX: a\rb\r\n\r\n", 400},
      {"0\r\nGET / HTTP/1.1\r\n\r\n", 400},
      {std::string("0\r\nX: \0\r\n\r\n", 11), 400},
      {"0\r\nX: " + std::string(9000, 'y') + "\r\n\r\n", 431},
      {"0\r\nX: " + std::string(9000, 'y'), 431},
  };
  for (const auto& c : cases) {
    for (const std::size_t piece : {std::size_t{1}, c.input.size()}) {
      const auto result = decode(c.input, kChunked, piece);
      EXPECT_EQ(result.last, Event::error) << c.input.substr(0, 40) << " in pieces of " << piece;
      EXPECT_EQ(result.error.status, c.status) << c.input.substr(0, 40);
    }
  }
  std::string many = "0\r\n";
  for (int i = 0; i < 33; ++i) many += "X: y\r\n";
  EXPECT_EQ(decode(many, kChunked, many.size()).error.status, 431);
}

TEST(BodyDecoder, ChunkSizesAreReadInFull) {
  BodyDecoder decoder(kChunked);
  EXPECT_EQ(decoder.next("1fffffffffffffff\r\nx").event, Event::data);
}

TEST(Trailers, DropFieldsThatATrailerMayNotCarry) {
  const std::string section =
      "X-Sum: 1\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\nHost: b\r\nTrailer: x\r\n"
      "Authorization: y\r\nCookie: z\r\nSet-Cookie: z\r\nContent-Type: a/b\r\nContent-Encoding: "
      "gzip\r\n"
      "X-Forwarded-For: 1.2.3.4\r\nx-envoy-original-path: /\r\nX-Request-ID: 1\r\nx-b3-sampled: "
      "1\r\n"
      "traceparent: 00\r\nb3: 0\r\n"
      "Connection: close\r\nIf-Match: x\r\nCache-Control: no-store\r\ngrpc-status: 0\r\n";
  std::string out;
  append_last_chunk(section, out);
  EXPECT_EQ(out, "0\r\nX-Sum: 1\r\ngrpc-status: 0\r\n\r\n");
  out.clear();
  append_last_chunk("", out);
  EXPECT_EQ(out, kLastChunk);
}

TEST(ChunkHeader, IsHexadecimal) {
  EXPECT_EQ(chunk_header(1).view(), "1\r\n");
  EXPECT_EQ(chunk_header(65536).view(), "10000\r\n");
  EXPECT_EQ(chunk_header(~std::uint64_t{0}).view(), "ffffffffffffffff\r\n");
}

}  // namespace
}  // namespace mesh::http
