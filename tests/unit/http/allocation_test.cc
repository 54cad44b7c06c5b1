// The request path allocates nothing once its heads and buffers have grown to size.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <string_view>

#include "http/http1.h"

namespace {
std::size_t allocations = 0;
}  // namespace

void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace mesh::http {
namespace {

TEST(Allocations, AreNoneInSteadyState) {
  std::string request =
      "POST /A/../%62%63/%2e%2e/a/rather/long/path/that/does/not/fit HTTP/1.1\r\n"
      "Host: Reviews.default.svc.cluster.local:9080\r\nTransfer-Encoding: chunked\r\n";
  for (int i = 0; i < 60; ++i) request += "x-field-" + std::to_string(i) + ": some value\r\n";
  request += "\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n";
  const std::string response = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello";
  const FieldValue set[] = {{"x-request-id", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"}};

  RequestParser requests;
  ResponseParser responses;
  RequestHead request_head;
  ResponseHead response_head;
  std::string up, down;
  const auto exchange = [&] {
    requests.reset();
    ASSERT_EQ(requests.parse(request, request_head), Parse::done);
    up.clear();
    write_request_head(request_head, {.fields = {.set = set}}, up);
    std::string_view rest = std::string_view(request).substr(requests.consumed());
    BodyDecoder body(request_head.body);
    auto step = body.next(rest);
    ASSERT_EQ(step.data, "hello");
    ASSERT_EQ(chunk_header(step.data.size()).view(), "5\r\n");
    rest.remove_prefix(step.consumed);
    ASSERT_EQ(body.next(rest).event, BodyDecoder::Event::end);
    append_last_chunk(body.trailers(), up);

    responses.reset();
    ASSERT_EQ(responses.parse(response, request_head.method, response_head), Parse::done);
    down.clear();
    write_response_head(response_head, {.fields = {.set = set}}, down);
    down.clear();
    write_local_response({.status = 503, .body = "no healthy upstream", .fields = set}, down);
  };
  exchange();
  const std::size_t before = allocations;
  for (int i = 0; i < 100; ++i) exchange();
  EXPECT_EQ(allocations, before);
}

}  // namespace
}  // namespace mesh::http
