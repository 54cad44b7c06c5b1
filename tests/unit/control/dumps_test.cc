// The tables that are made of more than a snapshot.
#include "control/dumps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mesh::control {
namespace {

TEST(PoliciesOfSets, AreThoseOfItsVerdictsEachOnce) {
  datapath::State state;
  state.sets[5] = {{{1}, {true, 50, 0}}, {{2}, {false, 51, 52}}};
  state.sets[6] = {{{1}, {true, 60, 0}}};
  const std::map<std::uint32_t, PolicyRule> rules = {{50, {"NetworkPolicy default/a", 0}},
                                                     {51, {"NetworkPolicy default/a", -1}},
                                                     {52, {"AuthorizationPolicy default/w", 0}},
                                                     {60, {"NetworkPolicy default/b", 0}}};
  EXPECT_THAT(policies_of_sets(state, {5, 7}, rules),
              testing::ElementsAre("AuthorizationPolicy default/w", "NetworkPolicy default/a"));
  EXPECT_THAT(policies_of_sets(state, {}, rules), testing::IsEmpty());
}

}  // namespace
}  // namespace mesh::control
