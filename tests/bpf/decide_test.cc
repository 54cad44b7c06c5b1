// The table of the unit test once more, in the kernel, over real maps (through a syscall program).
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gmock/gmock.h>
#include <time.h>
#include <unistd.h>

#include <memory>

#include "decide_shim.skel.h"
#include "tests/support/decide_cases.h"
// After bpf/decide.h, whose structs it uses.
#include "tests/bpf/decide_shim.h"

namespace mesh::test {
namespace {

struct Close {
  void operator()(decide_shim_bpf* skeleton) const { decide_shim_bpf__destroy(skeleton); }
};

class KernelDecide : public testing::TestWithParam<DecideCase> {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    shim_.reset(decide_shim_bpf__open_and_load());
    ASSERT_NE(shim_, nullptr) << std::strerror(errno);
  }
  template <class Entries>
  void fill(bpf_map* map, const Entries& entries) {
    for (const auto& [key, value] : entries)
      ASSERT_EQ(::bpf_map_update_elem(::bpf_map__fd(map), &key, &value, BPF_ANY), 0);
  }
  void fill(const World& world) {
    Lookups wanted(world);
    auto& maps = shim_->maps;
    fill(maps.um_workloads, wanted.workloads);
    std::map<um_own_key, std::uint32_t, Bytewise> own;
    for (const um_own_key& key : wanted.own) own[key] = 0;
    fill(maps.um_own_addresses, own);
    fill(maps.um_services, wanted.services);
    fill(maps.um_backends, wanted.backends);
    fill(maps.um_service_ranges,
         std::map<std::uint32_t, um_service_range>{{0, wanted.service_range}});
    fill(maps.um_groups, wanted.groups);
    fill(maps.um_verdicts, wanted.verdicts);
    fill(maps.um_config, std::map<std::uint32_t, std::uint32_t>{{0, world.config}});
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    std::uint64_t stamp = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
                          static_cast<std::uint64_t>(now.tv_nsec) + wanted.heartbeat - wanted.now;
    if (wanted.heartbeat == 0) stamp = 0;
    fill(maps.um_heartbeats, std::map<std::uint32_t, std::uint64_t>{{0, stamp}});
  }
  std::unique_ptr<decide_shim_bpf, Close> shim_;
};

TEST_P(KernelDecide, AsTheTableSays) {
  const DecideCase& c = GetParam();
  fill(c.world);
  um_shim shim{};
  shim.in.netns_cookie = c.cookie;
  shim.in.to = kernel_destination(c.to);
  shim.in.tcp = c.tcp ? 1 : 0;
  shim.in.v4_only = c.v4_only ? 1 : 0;
  shim.mesh = c.mesh ? 1 : 0;
  for (int tries = 0; tries < 100; ++tries) {  // the kernel's numbers are random
    LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = &shim, .ctx_size_in = sizeof shim);
    ASSERT_EQ(::bpf_prog_test_run_opts(::bpf_program__fd(shim_->progs.um_decide_shim), &options),
              0);
    if (c.backend.empty()) break;
    um_destination wanted = kernel_destination(c.backend);
    if (std::memcmp(&shim.out.backend, &wanted, sizeof wanted) == 0) break;
  }
  EXPECT_EQ(shim.out.action, c.action);
  EXPECT_EQ(shim.out.counter, c.counter);
  EXPECT_EQ(shim.out.policed != 0 ? shim.out.policy : 0, c.policy);
  if (!c.backend.empty()) {
    um_destination wanted = kernel_destination(c.backend);
    EXPECT_EQ(std::memcmp(&shim.out.backend, &wanted, sizeof wanted), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, KernelDecide, testing::ValuesIn(decide_cases()),
                         [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace mesh::test
