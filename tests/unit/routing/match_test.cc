// What a match says of a request and of a client.
#include <gmock/gmock.h>

#include "tests/unit/routing/world.h"

namespace mesh::routing {
namespace {

using config::HttpMatch;

// Whether a rule with this match takes the request, else it goes to v3.
bool takes(const HttpMatch& match, const RequestView& request, const Client* client = nullptr) {
  World world;
  world.add_rules(full_name("reviews"),
                  {rule("", {match}, {to("reviews", "v1")}), rule("", {}, {to("reviews", "v3")})});
  Client who = client != nullptr ? *client : world.client();
  who.service = world.service("reviews");
  return world.subset(who, request) == "v1";
}

TEST(PathMatch, ComparesThePathWithoutItsQuery) {
  struct {
    config::StringMatch match;
    std::string_view path;
    bool taken;
  } const cases[] = {
      {exact("/a"), "/a", true},
      {exact("/a"), "/a/", false},
      {exact("/a"), "/A", false},
      {prefix("/foo"), "/foobar", true},  // no path separator needed
      {prefix("/foo"), "/fo", false},
      {prefix("/"), "/anything", true},
      {regex("/v[0-9]+/.*"), "/v12/x", true},
      {regex("/v[0-9]+"), "/v12/x", false},  // the whole value, not a part of it
      {regex("v1"), "/v1", false},
  };
  for (const auto& c : cases) {
    RequestView r = request(c.path);
    r.query = "v=/zzz";
    EXPECT_EQ(takes({.uri = c.match}, r), c.taken) << c.match.value << " " << c.path;
  }
}

TEST(PathMatch, IgnoresCaseWhereToldSo) {
  auto match = prefix("/Foo");
  match.ignore_case = true;
  EXPECT_TRUE(takes({.uri = match}, request("/fOO/bar")));
}

TEST(HeaderMatch, ComparesNamesWithoutCaseAndValuesWithIt) {
  const TestField fields[] = {{"End-User", "jason"}, {"accept", "*/*"}};
  struct {
    std::string name;
    config::StringMatch match;
    bool taken;
  } const cases[] = {
      {"end-user", exact("jason"), true}, {"end-user", exact("Jason"), false},
      {"end-user", prefix("ja"), true},   {"end-user", regex("j.*n"), true},
      {"end-user", regex("jas"), false},  {"end-user", present(), true},
      {"end-user", exact("jaso"), false}, {"end", present(), false},
      {"x-missing", present(), false},    {"x-missing", exact(""), false},
      {"x-missing", regex(".*"), false},
  };
  for (const auto& c : cases) {
    RequestView r = request();
    r.fields = FieldList(fields, 2);
    EXPECT_EQ(takes({.headers = {{c.name, c.match}}}, r), c.taken) << c.name << c.match.value;
  }
}

TEST(HeaderMatch, SeesARepeatedFieldJoinedByCommas) {
  const TestField fields[] = {{"x-a", "1"}, {"other", "z"}, {"X-A", "2"}, {"x-a", "3"}};
  RequestView r = request();
  r.fields = FieldList(fields, 4);
  EXPECT_TRUE(takes({.headers = {{"x-a", exact("1,2,3")}}}, r));
  EXPECT_FALSE(takes({.headers = {{"x-a", exact("1")}}}, r));
}

TEST(HeaderMatch, OfAbsenceTakesAMissingFieldAsEmptyButForPresence) {
  const TestField fields[] = {{"x-debug", "on"}};
  struct {
    config::StringMatch match;
    bool with_on, without;  // taken when x-debug is "on", when it is missing
  } const cases[] = {
      {exact("on"), false, true},  {exact("off"), true, true},
      {regex(".*"), false, false},  // Istio: treat_missing_header_as_empty
      {regex("()"), true, false},  {present(), false, true},
  };
  for (const auto& c : cases) {
    RequestView r = request();
    EXPECT_EQ(takes({.without_headers = {{"x-debug", c.match}}}, r), c.without) << c.match.value;
    r.fields = FieldList(fields, 1);
    EXPECT_EQ(takes({.without_headers = {{"x-debug", c.match}}}, r), c.with_on) << c.match.value;
  }
}

TEST(QueryMatch, ComparesTheFirstParameterOfTheNameAsItWasSent) {
  struct {
    std::string_view query;
    std::string name;
    config::StringMatch match;
    bool taken;
  } const cases[] = {
      {"a=1&b=2", "b", exact("2"), true},  {"a=1&a=2", "a", exact("2"), false},
      {"a=1&a=2", "a", exact("1"), true},  {"key", "key", present(), true},
      {"key", "key", exact(""), true},     {"key=", "key", exact(""), true},
      {"xkey=1", "key", present(), false}, {"a=b=c", "a", exact("b=c"), true},
      {"a=%31", "a", exact("1"), false},  // not decoded
      {"a=%31", "a", exact("%31"), true},  {"&&a=1&", "a", regex("[0-9]"), true},
      {"", "a", present(), false},
  };
  for (const auto& c : cases) {
    RequestView r = request();
    r.query = c.query;
    EXPECT_EQ(takes({.query_params = {{c.name, c.match}}}, r), c.taken) << c.query;
  }
}

TEST(Match, SeesMethodSchemeAndTheAuthorityAsSent) {
  RequestView r = request();
  r.method = "POST";
  r.authority = "Reviews:9080";
  EXPECT_TRUE(takes({.method = exact("POST")}, r));
  EXPECT_FALSE(takes({.method = exact("GET")}, r));
  EXPECT_TRUE(takes({.scheme = exact("http")}, r));
  EXPECT_FALSE(takes({.scheme = exact("https")}, r));
  EXPECT_TRUE(takes({.authority = exact("Reviews:9080")}, r));
  EXPECT_FALSE(takes({.authority = exact("reviews")}, r));
}

TEST(Match, NeedsEverythingInsideOneBlock) {
  const TestField fields[] = {{"end-user", "jason"}};
  const HttpMatch match{.uri = prefix("/a"), .headers = {{"end-user", exact("jason")}}};
  EXPECT_FALSE(takes(match, request("/a")));
  RequestView r = request("/b");
  r.fields = FieldList(fields, 1);
  EXPECT_FALSE(takes(match, r));
  r.path = "/abc";
  EXPECT_TRUE(takes(match, r));
}

TEST(Match, AsksTheClientForLabelsNamespaceAndPort) {
  World world;
  struct {
    HttpMatch match;
    bool taken;
  } const cases[] = {
      {{.source_labels = {{"app", "productpage"}}}, true},
      {{.source_labels = {{"app", "productpage"}, {"version", "v2"}}}, false},
      {{.source_labels = {{"tier", ""}}}, false},
      {{.source_namespace = "default"}, true},
      {{.source_namespace = "other"}, false},
      {{.port = 9080}, true},
      {{.port = 80}, false},
      {{.gateways = {"mesh"}}, true},
      {{.gateways = {"default/gw"}}, false},
      {{.gateways = {"default/gw", "mesh"}}, true},
      {{.source_labels = {{"app", "ratings"}}, .gateways = {"mesh"}}, false},
  };
  const Client client = world.client();
  for (const auto& c : cases)
    EXPECT_EQ(takes(c.match, request(), &client), c.taken) << (&c - cases);
}

TEST(FieldList, ReadsAnyArrayWithNamesAndValues) {
  struct Wide {
    int before;
    std::string_view value, name;
  };
  const std::vector<Wide> fields = {{1, "a", "x"}, {2, "b", "y"}};
  const FieldList list(fields);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list.name(1), "y");
  EXPECT_EQ(list.value(1), "b");
  EXPECT_EQ(FieldList(std::vector<Wide>{}).size(), 0u);
}

}  // namespace
}  // namespace mesh::routing
