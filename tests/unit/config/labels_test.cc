// Labels are what Kubernetes takes for such, wherever they come in.
#include <gmock/gmock.h>

#include "config/fields.h"
#include "config/policy_parts.h"
#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

TEST(Labels, AreThoseOfKubernetes) {
  const std::string longest(63, 'a');
  for (const std::string& key : {std::string("app"), std::string("A.b_c-9"), longest,
                                 "example.com/" + longest, std::string("a-b.c0/x")})
    EXPECT_EQ(fault_of_label_key(key), "") << key;
  for (const std::string& key :
       {std::string(), longest + "a", std::string("-app"), std::string("app."), std::string("a b"),
        std::string("a=b"), std::string("a,b"), std::string("*"), std::string("/app"),
        std::string("example.com/"), std::string("a/b/c"), std::string("Example.com/app"),
        std::string("a_b/app"), std::string("a..b/app"), std::string("-a/app"),
        std::string(254, 'a') + "/app", std::string("\xc3\xa9")})
    EXPECT_NE(fault_of_label_key(key), "") << key;
  for (const std::string& value :
       {std::string(), std::string("v1"), std::string("V_1.0-b"), longest})
    EXPECT_EQ(fault_of_label_value(value), "") << value;
  for (const std::string& value :
       {longest + "a", std::string("page,tier=front"), std::string("a b"), std::string("_a"),
        std::string("a/b"), std::string("*")})
    EXPECT_NE(fault_of_label_value(value), "") << value;
}

TEST(Labels, OthersAreRefusedByNameAndPlace) {
  struct Place {
    const char *kind, *head, *before, *after, *field;
  };
  const Place places[] = {
      {"WorkloadEntry", "networking.istio.io/v1", "spec: {address: 10.0.0.1, labels: ", "}",
       "spec.labels"},
      {"WorkloadEntry", "networking.istio.io/v1", "  labels: ", "", "metadata.labels"},
      {"Namespace", "v1", "  labels: ", "", "metadata.labels"},
      {"Service", "v1", "spec: {ports: [{port: 80}], selector: ", "}", "spec.selector"},
      {"AuthorizationPolicy", "security.istio.io/v1", "spec: {selector: {matchLabels: ", "}}",
       "spec.selector.matchLabels"},
      {"NetworkPolicy", "networking.k8s.io/v1", "spec: {podSelector: {matchLabels: ", "}}",
       "spec.podSelector.matchLabels"},
      {"DestinationRule", "networking.istio.io/v1",
       "spec: {host: a, subsets: [{name: x, labels: ", "}]}", "spec.subsets[0].labels"},
  };
  for (const Place& place : places) {
    const auto problems = [&](const std::string& value) {
      return validate_text("apiVersion: " + std::string(place.head) + "\nkind: " + place.kind +
                           "\nmetadata:\n  name: o\n" + place.before + "{app: \"" + value + "\"}" +
                           place.after + "\n");
    };
    EXPECT_THAT(problems("page"), Not(Contains(HasSubstr("label")))) << place.field;
    EXPECT_THAT(problems("page,tier=front"),
                Contains(HasSubstr(std::string(place.field) +
                                   ".app: 'page,tier=front' is no value of a label")))
        << place.kind << " " << place.field;
  }
  const auto expression = validate_text(
      "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: o}\nspec: "
      "{podSelector: {matchExpressions: [{key: 'a b', operator: In, values: ['x,y']}]}}\n");
  EXPECT_THAT(expression, Contains(HasSubstr("matchExpressions[0].key: 'a b' is no key")));
  EXPECT_THAT(expression, Contains(HasSubstr("matchExpressions[0].values: 'x,y' is no value")));
}

// A policy whose selector cannot be read denies all that it might have selected.
TEST(Labels, APolicyWithAnotherSelectsItsWholeNamespace) {
  const auto compiled = compile_text(
      "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: o}\nspec: "
      "{selector: {matchLabels: {app: 'a,b', tier: front}}}\n");
  ASSERT_EQ(compiled.snapshot->policies.size(), 1U);
  EXPECT_TRUE(compiled.snapshot->policies[0]->refused);
  EXPECT_THAT(compiled.snapshot->policies[0]->selector, IsEmpty());
}

// Whatever their labels and ports are: who is alike is told by the key.
TEST(Labels, TwoWorkloadsThatDifferHaveTwoKeys) {
  const auto compiled = compile_text(
      "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: o}\nspec: "
      "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a, tier: b}}}]}]}\n");
  const PolicyParts parts(*compiled.snapshot);
  Workload one, other;
  one.labels = {{"app", "page,tier=front"}};
  other.labels = {{"app", "page"}, {"tier", "front"}};
  EXPECT_NE(parts.peer_key(one), parts.peer_key(other));
  one.labels = {{"app", "x|"}};
  other.labels = {{"app", "x"}};
  EXPECT_NE(parts.peer_key(one), parts.peer_key(other));
}

}  // namespace
}  // namespace mesh::config
