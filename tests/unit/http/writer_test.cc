#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>

#include "http/http1.h"

namespace mesh::http {
namespace {

std::string rewritten(const std::string& input, const RequestRewrite& rewrite = {}) {
  RequestParser parser;
  RequestHead head;
  EXPECT_EQ(parser.parse(input, head), Parse::done) << parser.error().detail;
  std::string out;
  write_request_head(head, rewrite, out);
  return out;
}

struct Sent {
  std::string text;
  ResponseSent how;
};

Sent rewritten(const std::string& input, const ResponseRewrite& rewrite) {
  ResponseParser parser;
  ResponseHead head;
  EXPECT_EQ(parser.parse(input, rewrite.request, head), Parse::done) << parser.error().detail;
  Sent sent;
  sent.how = write_response_head(head, rewrite, sent.text);
  return sent;
}

TEST(WriteRequestHead, RemakesHostAndFramingAndKeepsTheRest) {
  EXPECT_EQ(
      rewritten("POST http://B/a/../c?d HTTP/1.1\r\nX: 1\r\nHost: a\r\nContent-Length: 007\r\n"
                "x: 2\r\n\r\n"),
      "POST /c?d HTTP/1.1\r\nhost: B\r\nX: 1\r\nx: 2\r\ncontent-length: 7\r\n\r\n");
  EXPECT_EQ(
      rewritten("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: x\r\n\r\n"),
      "POST / HTTP/1.1\r\nhost: a\r\nTrailer: x\r\ntransfer-encoding: chunked\r\n\r\n");
  EXPECT_EQ(rewritten("GET /? HTTP/1.0\r\nHost: a\r\n\r\n"), "GET /? HTTP/1.1\r\nhost: a\r\n\r\n");
  EXPECT_EQ(rewritten("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
            "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
}

TEST(WriteRequestHead, AppendsToWhatIsThere) {
  RequestParser parser;
  RequestHead head;
  ASSERT_EQ(parser.parse("GET / HTTP/1.0\r\n\r\n", head), Parse::done);
  std::string out = "before ";
  write_request_head(head, {.authority = "reviews:9080"}, out);
  EXPECT_EQ(out, "before GET / HTTP/1.1\r\nhost: reviews:9080\r\n\r\n");
}

TEST(WriteRequestHead, RemovesHopByHopFields) {
  EXPECT_EQ(
      rewritten(
          "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nconnection: y-hop\r\n"
          "Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Hop: 1\r\nY-Hop: 2\r\n"
          "X-Hop-2: 3\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nTE: gzip\r\n\r\n"),
      "GET / HTTP/1.1\r\nhost: a\r\nX-Hop-2: 3\r\n\r\n");
}

TEST(WriteRequestHead, ConnectionCannotNameAwayWhatPeersRelyOn) {
  EXPECT_EQ(
      rewritten(
          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nAuthorization: x\r\nCookie: y\r\n"
          "X-Request-Id: 1\r\nX-Forwarded-For: 2\r\nx-b3-traceid: 3\r\nEnd-User: jason\r\n"
          "Connection: host, content-length, authorization, cookie, x-request-id\r\n"
          "Connection: x-forwarded-for, x-b3-traceid, end-user\r\n\r\n"),
      "POST / HTTP/1.1\r\nhost: a\r\nAuthorization: x\r\nCookie: y\r\nX-Request-Id: 1\r\n"
      "X-Forwarded-For: 2\r\nx-b3-traceid: 3\r\ncontent-length: 1\r\n\r\n");
}

TEST(WriteRequestHead, KeepsTeTrailersOnly) {
  EXPECT_EQ(rewritten("GET / HTTP/1.1\r\nHost: a\r\nTE: gzip, Trailers\r\nConnection: TE\r\n\r\n"),
            "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n");
}

TEST(WriteRequestHead, PassesUpgradeAndExpectWhenTold) {
  const std::string input =
      "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
      "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n";
  EXPECT_EQ(rewritten(input, {.keep_upgrade = true, .close = true}),
            "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1\r\n"
            "upgrade: websocket\r\nconnection: close, upgrade\r\n\r\n");
}

TEST(WriteRequestHead, AppliesEditsInOrder) {
  const FieldValue set[] = {
      {"x-b", "set"}, {"x-new", "n"}, {"host", "no"}, {"Content-Length", "9"}};
  const FieldValue add[] = {{"X-A", "added"}};
  const std::string_view remove[] = {"x-gone", "host"};
  EXPECT_EQ(
      rewritten("GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nX-B: 2\r\nX-b: 3\r\nX-Gone: 4\r\n\r\n",
                {.fields = {set, add, remove}, .authority = "c"}),
      "GET / HTTP/1.1\r\nhost: c\r\nX-A: 1\r\nx-b: set\r\nx-new: n\r\nX-A: added\r\n\r\n");
}

TEST(WriteRequestHead, NeverLetsAnEditEndALine) {
  const FieldValue set[] = {{"x", std::string_view("a\r\nEvil: 1\0", 11)}, {"bad name\r\n", "y"}};
  const std::string out =
      rewritten("GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                {.fields = {.set = set}, .authority = "b\r\nEvil: 2", .path = "/p\r\n q#"});
  EXPECT_EQ(out, "GET /p%0D%0A%20q%23 HTTP/1.1\r\nhost: b  Evil: 2\r\nx: a  Evil: 1 \r\n\r\n");
}

TEST(WriteResponseHead, FramesForTheClientsVersion) {
  struct Case {
    std::string_view start, fields, written;
    ResponseRewrite rewrite;
    BodyKind body;
    bool keep_alive;
  };
  const ResponseRewrite http11;
  const ResponseRewrite http10{.client = Version::http10};
  const ResponseRewrite close{.keep_alive = false};
  const ResponseRewrite head{.request = Method::head};
  const std::string_view length = "Content-Length: 05\r\n",
                         chunked = "Transfer-Encoding: chunked\r\n";
  const std::string_view close_line = "connection: close\r\n";
  const Case cases[] = {
      {"200 OK", length, "content-length: 5\r\n", http11, BodyKind::content_length, true},
      {"200 OK", length, "content-length: 5\r\nconnection: keep-alive\r\n", http10,
       BodyKind::content_length, true},
      {"200 OK", length, "content-length: 5\r\nconnection: close\r\n", close,
       BodyKind::content_length, false},
      {"200 OK", chunked, "transfer-encoding: chunked\r\n", http11, BodyKind::chunked, true},
      {"200 OK", chunked, close_line, http10, BodyKind::until_close, false},
      {"200 OK", "", "transfer-encoding: chunked\r\n", http11, BodyKind::chunked, true},
      {"200 OK", "", close_line, http10, BodyKind::until_close, false},
      {"200 OK", "Connection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\n",
       "transfer-encoding: chunked\r\n", http11, BodyKind::chunked, true},
      {"200 OK", length, "content-length: 05\r\n", head, BodyKind::none, true},
      {"200 OK", chunked, "", head, BodyKind::none, true},
      {"204 No Content", length, "", http11, BodyKind::none, true},
      {"204 No Content", length, "", head, BodyKind::none, true},
      {"304 Not Modified", length, "content-length: 05\r\n", http11, BodyKind::none, true},
      {"103 Early Hints", "Link: x\r\n", "Link: x\r\n", close, BodyKind::none, false},
      {"100 Continue", "", "", http10, BodyKind::none, true},
  };
  for (const auto& c : cases) {
    const Sent sent = rewritten(
        "HTTP/1.1 " + std::string(c.start) + "\r\n" + std::string(c.fields) + "\r\n", c.rewrite);
    EXPECT_EQ(sent.text,
              "HTTP/1.1 " + std::string(c.start) + "\r\n" + std::string(c.written) + "\r\n");
    EXPECT_EQ(sent.how.body, c.body) << c.start << c.fields;
    EXPECT_EQ(sent.how.keep_alive, c.keep_alive) << c.start << c.fields;
  }
}

TEST(WriteResponseHead, PassesA101WhenTold) {
  EXPECT_EQ(
      rewritten("HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\nX: y\r\n\r\n",
                ResponseRewrite{.keep_upgrade = true})
          .text,
      "HTTP/1.1 101 Go\r\nX: y\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
}

TEST(WriteLocalResponse, IsComplete) {
  std::string out;
  const FieldValue fields[] = {{"x-envoy-overloaded", "true"}};
  write_local_response(
      {.status = 503, .body = "no healthy upstream", .fields = fields, .date = "D"}, out);
  EXPECT_EQ(out,
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 19\r\ncontent-type: text/plain\r\n"
            "x-envoy-overloaded: true\r\ndate: D\r\nserver: undermesh\r\n\r\nno healthy upstream");
  out.clear();
  write_local_response({.status = 400, .keep_alive = false}, out);
  EXPECT_EQ(out,
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nserver: undermesh\r\nconnection: "
            "close\r\n\r\n");
  out.clear();
  write_local_response({.status = 555, .body = "x", .request = Method::head}, out);
  EXPECT_EQ(out,
            "HTTP/1.1 555 Unknown\r\ncontent-length: 1\r\ncontent-type: text/plain\r\nserver: "
            "undermesh\r\n\r\n");
  out.clear();
  write_local_response({.status = 204, .body = "x", .client = Version::http10}, out);
  EXPECT_EQ(out, "HTTP/1.1 204 No Content\r\nserver: undermesh\r\nconnection: keep-alive\r\n\r\n");
}

TEST(FieldValidity, IsThatOfRfc9110) {
  EXPECT_TRUE(is_valid_field_name("x-Request_id"));
  for (const std::string_view bad : {"", "a b", "a:", "a\r", "(", "\xc3\xa9"}) {
    EXPECT_FALSE(is_valid_field_name(bad)) << bad;
  }
  EXPECT_TRUE(is_valid_field_value("a\tb \xc3\xa9"));
  for (const std::string_view bad : {"a\r", "0123456\n", "01234567\r89", "\x7f", "\x01"}) {
    EXPECT_FALSE(is_valid_field_value(bad)) << bad;
  }
  EXPECT_FALSE(is_valid_field_value(std::string_view("\0", 1)));
}

}  // namespace
}  // namespace mesh::http
