#include "api/messages.h"

#include <gmock/gmock.h>

namespace mesh::api {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string text_of(const boost::json::object& object) { return boost::json::serialize(object); }

TEST(Messages, AnApplyRequestSurvivesTheWire) {
  ApplyRequest request;
  request.dry_run = true;
  request.objects.push_back({{{"kind", "Service"}, {"spec", {{"ports", boost::json::array{1, 2}}}}},
                             "a.yaml",
                             {{"spec", 3}}});
  auto read = from_text<ApplyRequest>(text_of(to_json(request))).value();
  EXPECT_TRUE(read.dry_run);
  ASSERT_EQ(read.objects.size(), 1u);
  EXPECT_EQ(read.objects[0].tree, request.objects[0].tree);
  EXPECT_EQ(read.objects[0].file, "a.yaml");
  EXPECT_EQ(read.objects[0].lines.at("spec"), 3);
}

TEST(Messages, AnApplyReplyKeepsOutcomesAndProblems) {
  ApplyReply reply;
  reply.version = 7;
  reply.not_in_force = "no space left";
  reply.results.push_back({{"VirtualService", "default", "reviews"},
                           "networking.istio.io/v1",
                           "refused",
                           {"reviews.yaml:14: no"}});
  auto read = from_text<ApplyReply>(text_of(to_json(reply))).value();
  EXPECT_EQ(read.version, 7u);
  EXPECT_EQ(read.not_in_force, "no space left");
  ASSERT_EQ(read.results.size(), 1u);
  EXPECT_EQ(read.results[0].object, reply.results[0].object);
  EXPECT_EQ(read.results[0].outcome, "refused");
  EXPECT_THAT(read.results[0].problems, ElementsAre("reviews.yaml:14: no"));
}

TEST(Messages, AStatusKeepsEveryPart) {
  Status status;
  status.state = "degraded";
  status.reasons = {"the proxy refused version 4"};
  status.programs["meshproxy"] = {true, 12, "0.1.0", 60, 4, "slow"};
  status.snapshot = {5, 22, {"a problem"}};
  status.workloads.push_back({"default",
                              "reviews-v1",
                              3,
                              {"10.77.0.2", "fd77::2"},
                              "enrolled",
                              "",
                              "reviews",
                              "/c",
                              "/n",
                              true});
  status.notes = {"a note"};
  status.kernel["connects_redirected"] = 99;
  status.fast_path = {false, "kernel", "Linux 6.1"};
  status.audit = {3, 2, "the mesh: the mesh's hook connect4", true, 12};
  status.policies.push_back({"default/only-productpage", 0, 3, 4});
  auto read = from_text<Status>(text_of(to_json(status))).value();
  EXPECT_EQ(to_json(read), to_json(status));
  EXPECT_EQ(read.programs.at("meshproxy").acked_version, 4u);
  EXPECT_EQ(read.fast_path, status.fast_path);
  EXPECT_EQ(read.audit, status.audit);
  EXPECT_THAT(read.workloads.at(0).addresses, ElementsAre("10.77.0.2", "fd77::2"));
}

TEST(Messages, TapEventsDumpsAndListsSurviveTheWire) {
  TapEvent event{"2026-01-01T00:00:00.000Z",
                 "default/a",
                 "b",
                 "r",
                 "c",
                 "e",
                 "w",
                 "GET",
                 "/x",
                 503,
                 "UO",
                 1.5,
                 "id"};
  EXPECT_EQ(to_json(from_text<TapEvent>(text_of(to_json(event))).value()), to_json(event));
  Dump dump{"routes", 3, {"HOST"}, {{{"HOST", "reviews"}}}, {"a note"}};
  EXPECT_EQ(to_json(from_text<Dump>(text_of(to_json(dump))).value()), to_json(dump));
  ObjectList list;
  list.objects.push_back({{{"kind", "Service"}}, "f", "refused", {"p"}});
  EXPECT_EQ(to_json(from_text<ObjectList>(text_of(to_json(list))).value()), to_json(list));
  DeleteRequest gone{{{"Service", "default", "reviews"}}};
  EXPECT_EQ(from_text<DeleteRequest>(text_of(to_json(gone))).value().objects, gone.objects);
}

TEST(Messages, MissingMembersTakeDefaultsAndUnknownOnesAreIgnored) {
  auto status = from_text<Status>(R"({"state":"ready","later":[1,2]})").value();
  EXPECT_EQ(status.state, "ready");
  EXPECT_TRUE(status.workloads.empty());
}

TEST(Messages, AWrongTypeIsNamedWithItsPath) {
  struct Case {
    const char* text;
    const char* message;
  };
  for (const Case& c :
       {Case{R"({"objects":[{"tree":{}},{"tree":3}]})", "objects[1].tree: must be an object"},
        Case{R"({"objects":{}})", "objects: must be a list"},
        Case{R"({"dry_run":"yes"})", "dry_run: must be true or false"},
        Case{R"({"objects":[{"lines":{"spec":1.5}}]})",
             "objects[0].lines[spec]: must be a whole number"},
        Case{"[]", "body: must be an object"}}) {
    auto read = from_text<ApplyRequest>(c.text);
    ASSERT_TRUE(read.has_error()) << c.text;
    EXPECT_EQ(read.error().code, Errc::invalid_argument);
    EXPECT_THAT(read.error().message, HasSubstr(c.message));
  }
}

TEST(Messages, ABrokenBodyIsAnErrorNotACrash) {
  for (const char* text : {"", "{", "{}x", "nul", "\xff", "{\"a\":"})
    EXPECT_TRUE(parse_body(text).has_error()) << text;
  EXPECT_TRUE(parse_body(std::string(1000, '[')).has_error());
}

TEST(Messages, ErrorsTravelWithTheirCode) {
  auto reply =
      from_text<ErrorReply>(text_of(to_json(ErrorReply{"not_found", "no such object"}))).value();
  EXPECT_EQ(to_error(reply), (Error{Errc::not_found, "no such object"}));
  EXPECT_EQ(to_error({"tomorrow", "x"}).code, Errc::internal);
  EXPECT_EQ(http_status(Errc::permission), 403);
}

TEST(Target, QueriesAreEncodedAndDecoded) {
  std::string odd = "default/a b&c=+%\xc3\xa9";
  auto target =
      parse_target("/v1/workloads?wait=" + encode_query(odd) + "&seconds=5&&flag").value();
  EXPECT_EQ(target.path, "/v1/workloads");
  EXPECT_EQ(target.query.at("wait"), odd);
  EXPECT_EQ(target.query.at("seconds"), "5");
  EXPECT_EQ(target.query.at("flag"), "");
  EXPECT_EQ(parse_target("/v1/x?a=b+c").value().query.at("a"), "b c");
  EXPECT_TRUE(parse_target("/v1/x?a=%2").has_error());
  EXPECT_TRUE(parse_target("/%zz").has_error());
}

}  // namespace
}  // namespace mesh::api
