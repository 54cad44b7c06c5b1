// What people see of the kernel's part, from the pins alone.
#include "datapath/pins.h"

#include <gmock/gmock.h>

#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

using testing::Contains;
using testing::ElementsAre;

template <class Uses>
auto named(const Uses& uses, const std::string& name) {
  for (const auto& use : uses)
    if (use.name == name) return use;
  ADD_FAILURE() << "no " << name;
  return typename Uses::value_type{};
}

TEST_F(DatapathTest, ShowsProgramsAndWhereTheyAreAttached) {
  NetNs other = NetNs::create();
  Cgroup group = Cgroup::create("other");
  state_.workloads[8] = workload(8, other, group.path());
  apply_all();
  const auto programs = must(datapath::pinned_programs(options_.pin_dir));
  EXPECT_THAT(named(programs, "um_connect4").links, ElementsAre("7/connect4", "8/connect4"));
  EXPECT_EQ(named(programs, "um_connect4").instances, 1);
  EXPECT_GT(named(programs, "um_connect4").verified_instructions, 100);
  EXPECT_THAT(named(programs, "um_mesh_connect4").links, ElementsAre("mesh/connect4"));
  EXPECT_THAT(named(programs, "um_sk_lookup").links, ElementsAre("7/sk_lookup", "8/sk_lookup"));
  EXPECT_EQ(named(programs, "um_sk_lookup").instances, 2);
}

// Of a filter for packets, where the kernel has no tcx, the program itself is pinned.
TEST_F(DatapathTest, ShowsProgramsThatAreAttachedWithoutALink) {
  apply_all();
  const UniqueFd program(::bpf_obj_get((options_.pin_dir + "/programs/um_connect6").c_str()));
  ASSERT_TRUE(program);
  const std::string pin = options_.pin_dir + "/links/7/filter_from_1";
  ASSERT_EQ(::bpf_obj_pin(program.get(), pin.c_str()), 0);
  const auto programs = must(datapath::pinned_programs(options_.pin_dir));
  EXPECT_THAT(named(programs, "um_connect6").links, ElementsAre("7/connect6", "7/filter_from_1"));
  EXPECT_EQ(named(programs, "um_connect6").instances, 1);
}

TEST_F(DatapathTest, ShowsHowFullMapsAreWithTheMemoryOfSets) {
  apply_all();
  const auto before = must(datapath::pinned_maps(options_.pin_dir));
  for (datapath::SetId set = 1; set < 21; ++set) verdict(set, 80, true, 1);
  apply_all();
  const auto maps = must(datapath::pinned_maps(options_.pin_dir));
  EXPECT_EQ(named(maps, "um_sets").entries, 20);
  EXPECT_EQ(named(maps, "um_sets").max_entries, 2 * 64 + 1);
  EXPECT_GT(named(maps, "um_sets").bytes, named(before, "um_sets").bytes + 20 * 16);
  EXPECT_EQ(named(maps, "um_workloads").entries, 2);  // one, in both generations
  EXPECT_FALSE(named(maps, "um_sockets").entries);
  EXPECT_TRUE(named(maps, "um_sockets").outlives_upgrades);
  EXPECT_FALSE(named(maps, "um_services").outlives_upgrades);
}

TEST_F(DatapathTest, ShowsCountersAndRunsBesideItsOwner) {
  apply_all();
  accept_on_both_servers();
  const auto runs = [&] {
    return named(must(datapath::pinned_programs(options_.pin_dir)), "um_connect4").runs;
  };
  const auto before = runs();
  UniqueFd counting = must(datapath::count_runs());
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
  EXPECT_EQ(runs(), before + 1);
  EXPECT_EQ(must(datapath::pinned_counters(options_.pin_dir)).totals.at("connects_direct"), 1);
  datapath_.reset();
  EXPECT_EQ(must(datapath::pinned_counters(options_.pin_dir)).totals.at("connects_direct"), 1);
}

TEST_F(DatapathTest, WithoutPinsSaysSo) {
  const auto found = datapath::pinned_maps(options_.pin_dir + "-none");
  ASSERT_TRUE(found.has_error());
  EXPECT_EQ(found.error().code, Errc::not_found);
}

}  // namespace
}  // namespace mesh::test
