// A decision allocates nothing.
#include "tests/support/allocations.h"

#include <gtest/gtest.h>

#include "tests/unit/routing/world.h"

namespace mesh::routing {
namespace {

TEST(Allocations, OfADecisionAreNone) {
  World world;
  world.add_service("ratings.other");
  auto& rules = world.add_rules(
      full_name("reviews"),
      {rule("a-name-that-is-longer-than-a-short-string",
            {{.name = "and-a-match-name-as-well-as-that", .uri = regex("/r.*")}},
            {to("reviews", "v1", 1), to("reviews", "v2", 3)}),
       rule("", {{.headers = {{"end-user", exact("jason")}}, .query_params = {{"a", present()}}}},
            {to("reviews", "v3")})});
  rules.http[0].fault = {.delay_ppm = 500'000, .abort_ppm = 500'000};
  const TestField fields[] = {{"End-User", "jason"}, {"x-other", "1"}};
  RequestView with_fields = request("/other", "reviews.default");
  with_fields.fields = FieldList(fields, 2);
  with_fields.query = "b=2&a=1";
  const Client client = world.client();
  const RequestView requests[] = {request("/reviews/0"), with_fields, request("/none"),
                                  request("/", "ratings.other.svc.cluster.local"),
                                  request("/", "some.host.that.nobody.knows.example.com")};
  for (const auto& r : requests)
    EXPECT_EQ(test::count_allocations([&] { (void)world.decide(client, r); }), 0u) << r.path;
}

}  // namespace
}  // namespace mesh::routing
