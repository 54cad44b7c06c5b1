#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "http/http1.h"

namespace mesh::http {
namespace {

struct Request {
  std::string input;
  RequestParser parser;
  RequestHead head;
  explicit Request(std::string text) : input(std::move(text)) {
    EXPECT_EQ(parser.parse(input, head), Parse::done) << parser.error().detail;
  }
};

struct Response {
  std::string input;
  ResponseParser parser;
  ResponseHead head;
  explicit Response(std::string text, Method request = Method::get) : input(std::move(text)) {
    EXPECT_EQ(parser.parse(input, request, head), Parse::done) << parser.error().detail;
  }
};

TEST(RequestParser, ViewsTheHeadInPlace) {
  Request r(
      "POST /reviews/0?full=1 HTTP/1.1\r\n"
      "Host: Reviews.default:9080\r\n"
      "End-User: \t jason \r\n"
      "Content-Length: 12\r\n"
      "\r\nhello");
  EXPECT_EQ(r.head.method, Method::post);
  EXPECT_EQ(r.head.method_text, "POST");
  EXPECT_EQ(r.head.path, "/reviews/0");
  EXPECT_TRUE(r.head.has_query);
  EXPECT_EQ(r.head.query, "full=1");
  EXPECT_EQ(r.head.authority, "Reviews.default:9080");
  EXPECT_EQ(r.head.host, "reviews.default");
  EXPECT_EQ(r.head.port, 9080);
  EXPECT_EQ(r.head.version, Version::http11);
  EXPECT_TRUE(r.head.keep_alive);
  EXPECT_EQ(r.head.body, (Framing{BodyKind::content_length, 12}));
  EXPECT_EQ(r.head.fields.size(), 3);
  EXPECT_EQ(r.head.fields.get("end-user"), "jason");
  EXPECT_EQ(r.head.fields[0].id, FieldId::host);
  EXPECT_EQ(r.head.fields.find("absent"), nullptr);
  EXPECT_EQ(r.parser.consumed(), r.input.size() - 5);
  EXPECT_EQ(r.head.path.data(), r.input.data() + 5);
}

TEST(RequestParser, NormalisesThePathAndNotTheQuery) {
  Request r("GET /a/%2e%2e/%62?q=/../%62 HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(r.head.path, "/b");
  EXPECT_EQ(r.head.query, "q=/../%62");
  EXPECT_EQ(r.head.target, "/a/%2e%2e/%62?q=/../%62");
}

TEST(RequestParser, TakesAuthorityAndPathOfAnAbsoluteTarget) {
  Request r("GET http://B:81/x?y HTTP/1.1\r\nHost: a:80\r\n\r\n");
  EXPECT_EQ(r.head.authority, "B:81");
  EXPECT_EQ(r.head.host, "b");
  EXPECT_EQ(r.head.port, 81);
  EXPECT_EQ(r.head.path, "/x");
  EXPECT_EQ(r.head.query, "y");
  Request empty("GET http://b HTTP/1.1\r\nHost: a:80\r\n\r\n");
  EXPECT_EQ(empty.head.path, "/");
  EXPECT_EQ(empty.head.port, std::nullopt);
  EXPECT_FALSE(empty.head.has_query);
  Request query("GET http://b?c/d HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_EQ(query.head.path, "/");
  EXPECT_EQ(query.head.query, "c/d");
}

TEST(RequestParser, ReadsTheAuthority) {
  Request v6("GET / HTTP/1.1\r\nHost: [FD00::1]:80\r\n\r\n");
  EXPECT_EQ(v6.head.host, "[fd00::1]");
  EXPECT_EQ(v6.head.port, 80);
  Request colon("GET / HTTP/1.1\r\nHost: a:\r\n\r\n");
  EXPECT_EQ(colon.head.authority, "a");
  EXPECT_EQ(colon.head.port, std::nullopt);
  Request none("GET / HTTP/1.0\r\n\r\n");
  EXPECT_EQ(none.head.authority, "");
}

TEST(RequestParser, KeepsAliveByVersionAndConnection) {
  struct Case {
    std::string_view version, connection;
    bool keep_alive;
  };
  const Case cases[] = {
      {"1.1", "", true},
      {"1.1", "Connection: keep-alive\r\n", true},
      {"1.1", "Connection: close\r\n", false},
      {"1.1", "connection: Close\r\n", false},
      {"1.1", "Connection: keep-alive, close\r\n", false},
      {"1.1", "Connection: keep-alive\r\nConnection: close\r\n", false},
      {"1.1", "Connection: closed\r\n", true},
      {"1.1", "Proxy-Connection: close\r\n", true},
      {"1.0", "", false},
      {"1.0", "Connection: keep-alive\r\n", true},
      {"1.0", "Connection: Keep-Alive, x\r\n", true},
      {"1.0", "Connection: keep-alive, close\r\n", false},
      {"1.0", "Proxy-Connection: keep-alive\r\n", false},
      {"1.0", "Keep-Alive: timeout=5\r\n", false},
  };
  for (const auto& c : cases) {
    Request r("GET / HTTP/" + std::string(c.version) + "\r\nHost: a\r\n" +
              std::string(c.connection) + "\r\n");
    EXPECT_EQ(r.head.keep_alive, c.keep_alive) << c.version << c.connection;
  }
}

TEST(RequestParser, NoticesExpectAndUpgrade) {
  const std::string start = "POST / HTTP/1.1\r\nHost: a\r\n";
  EXPECT_TRUE(
      Request(start + "Expect: 100-Continue\r\nContent-Length: 5\r\n\r\n").head.expect_continue);
  EXPECT_FALSE(Request(start + "Expect: 100-continue\r\n\r\n").head.expect_continue);
  EXPECT_FALSE(Request("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
                   .head.expect_continue);
  Request websocket(start + "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n");
  EXPECT_EQ(websocket.head.upgrade, "websocket");
  EXPECT_EQ(Request(start + "Upgrade: h2c\r\n\r\n").head.upgrade, "");
}

TEST(RequestParser, ReadsPipelinedHeadsOneByOne) {
  std::string input = "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\nG";
  RequestParser parser;
  RequestHead head;
  std::string_view rest = input;
  ASSERT_EQ(parser.parse(rest, head), Parse::done);
  EXPECT_EQ(head.path, "/1");
  rest.remove_prefix(parser.consumed());
  parser.reset();
  ASSERT_EQ(parser.parse(rest, head), Parse::done);
  EXPECT_EQ(head.path, "/2");
  EXPECT_EQ(head.host, "b");
  rest.remove_prefix(parser.consumed());
  parser.reset();
  EXPECT_TRUE(parser.is_idle());
  EXPECT_EQ(parser.parse(rest, head), Parse::need_more);
  EXPECT_FALSE(parser.is_idle());
}

TEST(RequestParser, IsIdleAfterEmptyLines) {
  RequestParser parser;
  RequestHead head;
  EXPECT_EQ(parser.parse("", head), Parse::need_more);
  EXPECT_TRUE(parser.is_idle());
  EXPECT_EQ(parser.parse("\r\n", head), Parse::need_more);
  EXPECT_TRUE(parser.is_idle());
}

TEST(RequestParser, FollowsABufferThatMoves) {
  const std::string input = "GET /a HTTP/1.1\r\nHost: b\r\nX: y\r\n\r\n";
  RequestParser parser;
  RequestHead head;
  for (std::size_t n = 0; n < input.size(); ++n) {
    const auto copy = std::make_unique<std::string>(input.substr(0, n));
    ASSERT_EQ(parser.parse(*copy, head), Parse::need_more) << n;
  }
  ASSERT_EQ(parser.parse(input, head), Parse::done);
  EXPECT_EQ(head.fields.get("x"), "y");
}

TEST(RequestParser, RefusesBeforeTheHeadIsComplete) {
  RequestParser parser;
  RequestHead head;
  EXPECT_EQ(parser.parse("GET / HTTP/1.1\r\nHost: a\r\nBad : x\r\n", head), Parse::error);
  parser.reset();
  EXPECT_EQ(parser.parse("GET / HTTP/1.1\rH", head), Parse::error);
  EXPECT_EQ(parser.error().detail, "bare carriage return");
}

TEST(Fields, SpillWhenThereAreManyAndKeepTheirOrder) {
  std::string text = "GET / HTTP/1.1\r\nHost: a\r\n";
  for (int i = 1; i < 80; ++i) {
    text += "X-" + std::to_string(i) + ": " + std::to_string(i) + "\r\n";
  }
  Request r(text + "\r\n");
  ASSERT_EQ(r.head.fields.size(), 80);
  for (std::size_t i = 1; i < 80; ++i) EXPECT_EQ(r.head.fields[i].value, std::to_string(i));
  EXPECT_EQ(r.head.fields.get("x-31"), "31");
  EXPECT_EQ(r.head.fields.get("x-79"), "79");
  r.parser.reset();
  ASSERT_EQ(r.parser.parse("GET / HTTP/1.1\r\nHost: b\r\n\r\n", r.head), Parse::done);
  EXPECT_EQ(r.head.fields.size(), 1);
  EXPECT_EQ(r.head.fields.get("host"), "b");
}

TEST(ResponseParser, ViewsTheHeadInPlace) {
  Response r("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nX: y\r\n\r\nabc");
  EXPECT_EQ(r.head.status, 404);
  EXPECT_EQ(r.head.reason, "Not Found");
  EXPECT_EQ(r.head.body, (Framing{BodyKind::content_length, 3}));
  EXPECT_TRUE(r.head.keep_alive);
  EXPECT_EQ(r.head.fields.get("x"), "y");
  EXPECT_EQ(r.parser.consumed(), r.input.size() - 3);
}

TEST(ResponseParser, EndsBodiesByRfc9112) {
  const std::string chunked = "Transfer-Encoding: chunked\r\n";
  const std::string length = "Content-Length: 5\r\n";
  const Framing five{BodyKind::content_length, 5};
  const Framing chunks{BodyKind::chunked, 0};
  const Framing close{BodyKind::until_close, 0};
  struct Case {
    std::string_view start;
    std::string fields;
    Method request;
    Framing body;
    bool keep_alive;
  };
  const Case cases[] = {
      {"HTTP/1.1 200 OK", length, Method::get, five, true},
      {"HTTP/1.1 200 OK", chunked, Method::get, chunks, true},
      {"HTTP/1.1 200 OK", "", Method::get, close, false},
      {"HTTP/1.1 200 OK", "Connection: close\r\n", Method::get, close, false},
      {"HTTP/1.1 200 OK", length + "Connection: close\r\n", Method::get, five, false},
      {"HTTP/1.1 200 OK", length, Method::head, {}, true},
      {"HTTP/1.1 200 OK", chunked, Method::head, {}, true},
      {"HTTP/1.1 200 OK", "", Method::head, {}, true},
      {"HTTP/1.1 204 No Content", "", Method::get, {}, true},
      {"HTTP/1.1 204 No Content", length, Method::get, {}, true},
      {"HTTP/1.1 304 Not Modified", length, Method::get, {}, true},
      {"HTTP/1.1 100 Continue", "", Method::post, {}, true},
      {"HTTP/1.1 103 Early Hints", "Link: x\r\n", Method::get, {}, true},
      {"HTTP/1.1 101 Switching Protocols", "", Method::get, {}, false},
      {"HTTP/1.1 200 OK", length, Method::connect, {}, true},
      {"HTTP/1.1 404 Not Found", length, Method::connect, five, true},
      {"HTTP/1.0 200 OK", length, Method::get, five, false},
      {"HTTP/1.0 200 OK", length + "Connection: keep-alive\r\n", Method::get, five, true},
      {"HTTP/1.0 200 OK", "Connection: keep-alive\r\n", Method::get, close, false},
      {"HTTP/1.1 999 ", length, Method::get, five, true},
  };
  for (const auto& c : cases) {
    Response r(std::string(c.start) + "\r\n" + c.fields + "\r\n", c.request);
    EXPECT_EQ(r.head.body, c.body) << c.start << c.fields;
    EXPECT_EQ(r.head.keep_alive, c.keep_alive) << c.start << c.fields;
  }
}

TEST(ResponseParser, TellsInterimHeadsAndUpgrades) {
  EXPECT_TRUE(Response("HTTP/1.1 100 Continue\r\n\r\n").head.is_interim());
  EXPECT_TRUE(Response("HTTP/1.1 103 Early Hints\r\n\r\n").head.is_interim());
  Response upgrade("HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
  EXPECT_FALSE(upgrade.head.is_interim());
  EXPECT_EQ(upgrade.head.upgrade, "websocket");
  EXPECT_FALSE(Response("HTTP/1.1 200 OK\r\n\r\n").head.is_interim());
}

TEST(ResponseParser, RefusesWhatPeersReadDifferently) {
  const std::string ok = "HTTP/1.1 200 OK\r\n";
  const std::string cases[] = {
      "HTTP/2 200\r\n",
      "HTTP/0.9 200 OK\r\n",
      "HTTP/1.2 200 OK\r\n",
      "http/1.1 200 OK\r\n",
      "ICY 200 OK\r\n",
      "<html>",
      "\r\n" + ok,
      " " + ok,
      "HTTP/1.1  200 OK\r\n",
      "HTTP/1.1 20 OK\r\n",
      "HTTP/1.1 2000 OK\r\n",
      "HTTP/1.1 099 OK\r\n",
      "HTTP/1.1 +20 OK\r\n",
      "HTTP/1.1 200\r\n\r\n",
      "HTTP/1.1 200\tOK\r\n",
      "HTTP/1.1 200 O\rK\r\n",
      std::string("HTTP/1.1 200 O\0K\r\n", 18),
      "HTTP/1.1 200 OK\n",
      ok + "X: y\n",
      ok + "X : y\r\n",
      ok + " X: y\r\n",
      ok + "X: a\r\n b\r\n",
      ok + "X: a\rb\r\n",
      ok + "X\r\n",
      ok + "Content-Length: 5\r\nContent-Length: 5\r\n",
      ok + "Content-Length: 5, 5\r\n",
      ok + "Content-Length: -1\r\n",
      ok + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
      ok + "Transfer-Encoding: gzip, chunked\r\n",
      ok + "Transfer-Encoding: xchunked\r\n",
      ok + "Transfer-Encoding: chunked, chunked\r\n",
      "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n",
      ok + "X: " + std::string(60 * 1024, 'y'),
  };
  for (const auto& input : cases) {
    ResponseParser parser;
    ResponseHead head;
    EXPECT_EQ(parser.parse(input, Method::get, head), Parse::error) << input.substr(0, 80);
    EXPECT_EQ(parser.error().status, 502);
    EXPECT_FALSE(parser.error().detail.empty());
  }
}

}  // namespace
}  // namespace mesh::http
