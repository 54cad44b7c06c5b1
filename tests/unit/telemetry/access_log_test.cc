#include "telemetry/access_log.h"

#include <gmock/gmock.h>

namespace mesh::telemetry {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

std::string line(const AccessLogEntry& entry) {
  std::string out;
  append_access_log_line(entry, out);
  return out;
}

const SocketAddress kUpstream = SocketAddress::parse("10.77.0.5:9080").value();
const SocketAddress kUpstreamLocal = SocketAddress::parse("10.77.0.2:41000").value();
const SocketAddress kOriginal = SocketAddress::parse("10.78.0.9:9080").value();
const SocketAddress kClient = SocketAddress::parse("[fd77::2]:40000").value();

TEST(AccessLog, WritesIstiosLine) {
  const AccessLogEntry entry{
      .start = std::chrono::sys_days{std::chrono::year{2026} / 11 / 2} + 3h + 4min + 5s + 67ms,
      .method = "GET",
      .path = "/reviews/0?full=1",
      .protocol = "HTTP/1.1",
      .response_code = 200,
      .flags = {},
      .response_code_details = "via_upstream",
      .bytes_received = 12,
      .bytes_sent = 345,
      .duration = 6ms,
      .upstream_service_time_ms = 5,
      .user_agent = "curl/7.88.1 (x; y)",
      .request_id = "0b9f0d0c-6a2a-4f57-9d0a-3a8f4f2f9f10",
      .authority = "reviews:9080",
      .upstream_host = &kUpstream,
      .upstream_cluster = "outbound|9080|v1|reviews.default.svc.cluster.local",
      .upstream_local_address = &kUpstreamLocal,
      .downstream_local_address = &kOriginal,
      .downstream_remote_address = &kClient,
      .route_name = "default",
  };
  EXPECT_EQ(
      line(entry),
      "[2026-11-02T03:04:05.067Z] \"GET /reviews/0?full=1 HTTP/1.1\" 200 - via_upstream - \"-\" "
      "12 345 6 5 \"-\" \"curl/7.88.1 (x; y)\" \"0b9f0d0c-6a2a-4f57-9d0a-3a8f4f2f9f10\" "
      "\"reviews:9080\" \"10.77.0.5:9080\" outbound|9080|v1|reviews.default.svc.cluster.local "
      "10.77.0.2:41000 10.78.0.9:9080 [fd77::2]:40000 - default\n");
}

TEST(AccessLog, WritesADashForWhatIsNotKnown) {
  EXPECT_EQ(
      line({}),
      "[1970-01-01T00:00:00.000Z] \"- - -\" 0 - - - \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" "
      "- - - - - -\n");
}

TEST(AccessLog, NamesTheRouteAndItsMatch) {
  EXPECT_THAT(line({.route_name = "reviews", .match_name = "jason"}),
              HasSubstr(" reviews.jason\n"));
  EXPECT_THAT(line({.match_name = "jason"}), HasSubstr(" .jason\n"));
}

TEST(AccessLog, WritesSeveralFlags) {
  ResponseFlags flags = ResponseFlag::kDelayInjected;
  flags.set(ResponseFlag::kFaultInjected);
  EXPECT_THAT(line({.response_code = 500, .flags = flags}), HasSubstr("\" 500 DI,FI - "));
}

TEST(AccessLog, LetsNothingForgeALineOrAField) {
  const std::string_view hostile[] = {"a\nb", "a\r\nb",    "a\" 200 - \"", "a\\\"b",   "\x1b[31m",
                                      "a\tb", "\x7f\x80z", "\xc3\xa9",     {"a\0b", 3}};
  for (std::string_view text : hostile) {
    const std::string plain =
        line({.method = "x", .path = "x", .user_agent = "x", .route_name = "x"});
    const std::string got =
        line({.method = text, .path = text, .user_agent = text, .route_name = text});
    EXPECT_EQ(std::ranges::count(got, '\n'), 1);
    EXPECT_EQ(std::ranges::count(got, '"'), std::ranges::count(plain, '"')) << text;
    for (char c : got) EXPECT_TRUE(c == '\n' || (c >= 0x20 && c < 0x7f)) << int{c};
  }
  EXPECT_THAT(line({.user_agent = "a b\"\n"}), HasSubstr("\"a b\\x22\\x0a\""));
  EXPECT_THAT(line({.path = "/a b"}), HasSubstr(" /a\\x20b "));
}

TEST(AccessLog, AppendsToWhatIsThere) {
  std::string out = "before\n";
  append_access_log_line({}, out);
  EXPECT_TRUE(out.starts_with("before\n[1970-"));
}

TEST(AccessLog, WritesTimesOfAllSizes) {
  using namespace std::chrono;
  const std::pair<system_clock::time_point, std::string_view> cases[] = {
      {sys_days{year{2000} / 2 / 29} + 23h + 59min + 59s + 999ms, "[2000-02-29T23:59:59.999Z]"},
      {sys_days{year{2026} / 1 / 1} + 999us, "[2026-01-01T00:00:00.000Z]"},
      {sys_days{year{1969} / 12 / 31} + 23h, "[1969-12-31T23:00:00.000Z]"},
  };
  for (const auto& [time, text] : cases) EXPECT_THAT(line({.start = time}), HasSubstr(text));
}

}  // namespace
}  // namespace mesh::telemetry
