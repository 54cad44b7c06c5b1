#include "telemetry/trace_context.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>

#include "tests/fuzz/trace_context_invariants.h"

namespace mesh::telemetry {
namespace {

constexpr std::string_view kTrace = "0af7651916cd43dd8448eb211c80319c";
constexpr std::string_view kShort = "8448eb211c80319c";
constexpr std::string_view kPadded = "00000000000000008448eb211c80319c";
constexpr std::string_view kSpan = "b7ad6b7169203331";
constexpr std::string_view kTraceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

using Sent = std::map<std::string, std::string>;

class TraceContextTest : public testing::Test {
 protected:
  // What goes upstream; the invariants of every context are checked on the way.
  Sent send(const TraceFields& fields, bool sample_new = false) {
    const TraceContext context(fields, random, sample_new);
    EXPECT_EQ(check_trace_context(fields, context), "");
    trace_id = context.trace_id();
    span_id = context.span_id();
    parent = context.parent_span_id();
    sampled = context.is_sampled();
    return sent_upstream(fields, context);
  }

  Random random{3};
  std::string trace_id, span_id, parent;
  bool sampled = false;
};

TEST_F(TraceContextTest, IsMadeWhereTheClientSentNone) {
  const Sent sent = send({}, true);
  EXPECT_TRUE(std::regex_match(
      sent.at("x-request-id"),
      std::regex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")));
  EXPECT_EQ(sent.at("traceparent"), "00-" + trace_id + "-" + span_id + "-01");
  EXPECT_EQ(sent.at("x-b3-traceid"), trace_id);
  EXPECT_EQ(sent.at("x-b3-sampled"), "1");
  EXPECT_FALSE(sent.contains("x-b3-parentspanid"));
  EXPECT_FALSE(sent.contains("b3"));
  EXPECT_EQ(parent, "");
}

TEST_F(TraceContextTest, IsNewForEveryRequest) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    const Sent sent = send({});
    ids.insert(trace_id);
    ids.insert(span_id);
    ids.insert(sent.at("x-request-id"));
  }
  EXPECT_EQ(ids.size(), 3000u);
}

TEST_F(TraceContextTest, ContinuesTraceparentWithANewSpan) {
  const Sent sent = send({.traceparent = kTraceparent});
  EXPECT_EQ(trace_id, kTrace);
  EXPECT_EQ(parent, kSpan);
  EXPECT_NE(span_id, kSpan);
  EXPECT_TRUE(sampled);
  EXPECT_EQ(sent.at("tracestate"), "vendor=1");
  EXPECT_EQ(sent.at("x-b3-traceid"), kTrace);
  EXPECT_EQ(sent.at("x-b3-parentspanid"), kSpan);
}

TEST_F(TraceContextTest, ContinuesB3InSeveralFields) {
  const Sent sent = send({.b3_trace_id = kTrace, .b3_span_id = kSpan, .b3_sampled = "1"});
  EXPECT_EQ(trace_id, kTrace);
  EXPECT_EQ(parent, kSpan);
  EXPECT_TRUE(sampled);
  EXPECT_EQ(sent.at("traceparent"), "00-" + trace_id + "-" + span_id + "-01");
}

TEST_F(TraceContextTest, ContinuesB3InOneFieldAndAnswersInBoth) {
  const std::string b3 = std::string(kTrace) + "-" + std::string(kSpan) + "-0-05e3ac9a4f6e3b90";
  const Sent sent = send({.b3 = b3}, true);
  EXPECT_EQ(trace_id, kTrace);
  EXPECT_EQ(parent, kSpan);
  EXPECT_FALSE(sampled);
  EXPECT_EQ(sent.at("b3"), trace_id + "-" + span_id + "-0-" + std::string(kSpan));
  EXPECT_EQ(sent.at("x-b3-traceid"), kTrace);
}

TEST_F(TraceContextTest, KeepsAShortB3IdShortInB3AndPadsItElsewhere) {
  Sent sent = send({.b3_trace_id = kShort, .b3_span_id = kSpan});
  EXPECT_EQ(sent.at("x-b3-traceid"), kShort);
  EXPECT_EQ(trace_id, kPadded);
  EXPECT_EQ(sent.at("traceparent").substr(3, 32), kPadded);
  // The next hop sends back both: the id is still the same, and still short in B3.
  const std::string traceparent = sent.at("traceparent");
  const std::string span = sent.at("x-b3-spanid");
  sent = send({.traceparent = traceparent, .b3_trace_id = kShort, .b3_span_id = span});
  EXPECT_EQ(sent.at("x-b3-traceid"), kShort);
  EXPECT_EQ(trace_id, kPadded);
  EXPECT_EQ(parent, span);
}

TEST_F(TraceContextTest, TakesUpperCaseInB3AndWritesLowerCase) {
  const Sent sent = send({.b3_trace_id = "8448EB211C80319C", .b3_span_id = "B7AD6B7169203331"});
  EXPECT_EQ(sent.at("x-b3-traceid"), kShort);
  EXPECT_EQ(parent, kSpan);
}

TEST_F(TraceContextTest, PrefersTraceparentThenB3ThenItsSeveralFields) {
  const std::string b3 = "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-0";
  TraceFields fields{.traceparent = kTraceparent,
                     .b3 = b3,
                     .b3_trace_id = "5b8aa5a2d2c872e8",
                     .b3_span_id = "051581bf3cb55c13",
                     .b3_sampled = "1"};
  send(fields);
  EXPECT_EQ(trace_id, kTrace);
  EXPECT_TRUE(sampled);
  fields.traceparent = {};
  send(fields);
  EXPECT_EQ(trace_id, "463ac35c9f6413ad48485a3953bb6124");
  EXPECT_FALSE(sampled);
  fields.b3 = {};
  send(fields);
  EXPECT_EQ(trace_id, "00000000000000005b8aa5a2d2c872e8");
  EXPECT_TRUE(sampled);
}

TEST_F(TraceContextTest, HonoursADecisionAndElseTheCallers) {
  struct {
    TraceFields fields;
    bool sample_new, sampled;
  } const cases[] = {
      {{}, false, false},
      {{}, true, true},
      {{.b3_sampled = "0"}, true, false},
      {{.b3_sampled = "1"}, false, true},
      {{.b3_sampled = "true"}, false, true},
      {{.b3_sampled = "false"}, true, false},
      {{.b3_sampled = "maybe"}, true, true},
      {{.b3 = "0"}, true, false},
      {{.b3 = "1"}, false, true},
      {{.b3 = "d"}, false, true},
      {{.b3 = "2"}, false, false},
      {{.b3_flags = "1"}, false, true},
      {{.b3_sampled = "0", .b3_flags = "1"}, false, true},
      {{.b3_trace_id = kTrace, .b3_span_id = kSpan}, true, true},
      {{.traceparent = kTraceparent}, false, true},
      {{.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}, true, false},
      {{.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-02"}, true, false},
      {{.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03"}, false, true},
  };
  for (const auto& c : cases) {
    send(c.fields, c.sample_new);
    EXPECT_EQ(sampled, c.sampled) << (&c - cases);
  }
}

TEST_F(TraceContextTest, ReplacesAMalformedTraceparentAndDropsItsTracestate) {
  const std::string_view malformed[] = {
      "0",
      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
      "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
      "00-00000000000000000000000000000000-b7ad6b7169203331-01",
      "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
      "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      "0g-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
      "00-0af7651916cd43dd8448eb211c80319x-b7ad6b7169203331-01",
      "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
      "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
      "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
  };
  for (std::string_view text : malformed) {
    const Sent sent = send({.traceparent = text});
    EXPECT_NE(trace_id, kTrace) << text;
    EXPECT_EQ(parent, "") << text;
    EXPECT_FALSE(sent.contains("tracestate")) << text;
  }
}

TEST_F(TraceContextTest, ContinuesALaterVersionOfTraceparentAsItsOwn) {
  const Sent sent =
      send({.traceparent = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-ever"});
  EXPECT_EQ(trace_id, kTrace);
  EXPECT_EQ(sent.at("traceparent").substr(0, 3), "00-");
}

TEST_F(TraceContextTest, ReplacesMalformedB3) {
  const TraceFields malformed[] = {
      {.b3_trace_id = kTrace},
      {.b3_span_id = kSpan},
      {.b3_trace_id = "0af7651916cd43dd8448eb211c80319", .b3_span_id = kSpan},
      {.b3_trace_id = "0af7651916cd43dd8448eb211c80319g", .b3_span_id = kSpan},
      {.b3_trace_id = "0000000000000000", .b3_span_id = kSpan},
      {.b3_trace_id = kTrace, .b3_span_id = "0000000000000000"},
      {.b3_trace_id = kTrace, .b3_span_id = "b7ad"},
      {.b3 = "0af7651916cd43dd8448eb211c80319c"},
      {.b3 = "0af7651916cd43dd8448eb211c80319c-"},
      {.b3 = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-x"},
      {.b3 = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"},
      {.b3 = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-"},
      {.b3 = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-05e3ac9a4f6e3b90-1"},
      {.b3 = "----"},
      {.b3 = "-"},
  };
  for (const auto& fields : malformed) {
    send(fields);
    EXPECT_EQ(parent, "") << (&fields - malformed);
  }
}

TEST_F(TraceContextTest, DropsTheParentOfARootAndFlagsThatSayNothing) {
  const Sent sent = send({.b3_parent_span_id = kSpan, .b3_flags = "7"});
  EXPECT_FALSE(sent.contains("x-b3-parentspanid"));
  EXPECT_FALSE(sent.contains("x-b3-flags"));
  EXPECT_TRUE(send({.b3_flags = "1"}).contains("x-b3-flags"));
}

TEST_F(TraceContextTest, KeepsARequestIdThatIsOneAndReplacesOthers) {
  EXPECT_EQ(send({.x_request_id = "my-own.id/7"}).at("x-request-id"), "my-own.id/7");
  const std::string long_id(257, 'a');
  for (std::string_view id : {std::string_view("has space"), std::string_view("tab\t"),
                              std::string_view("\x80"), std::string_view(long_id)})
    EXPECT_EQ(send({.x_request_id = id}).at("x-request-id").size(), 36u) << id;
}

TEST(TraceContextCorpus, KeepsTheInvariants) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MESH_SOURCE_DIR "/tests/fuzz/corpus/trace_context")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string input{std::istreambuf_iterator<char>(file), {}};
    const TraceFields fields = trace_fields(input);
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
      Random random(seed);
      const TraceContext context(fields, random, seed % 2 == 0);
      EXPECT_EQ(check_trace_context(fields, context), "") << entry.path();
    }
    ++files;
  }
  EXPECT_GE(files, 10);
}

}  // namespace
}  // namespace mesh::telemetry
