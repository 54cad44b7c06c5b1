// The table of the unit test once more, in the kernel, over real maps (through a tc program).
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gmock/gmock.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <memory>

#include "base/unique_fd.h"
#include "tests/support/decide_cases.h"
// clang-format off: each uses the structs of the one before
#include "tests/bpf/decide_shim.h"
#include "decide_shim.skel.h"
// clang-format on

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
  void fill_sets(const Lookups& wanted) {
    for (const auto& [number, verdicts] : wanted.sets) {
      LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_NO_PREALLOC);
      UniqueFd set(::bpf_map_create(BPF_MAP_TYPE_LPM_TRIE, "um_set", sizeof(um_verdict_key),
                                    sizeof(um_verdict), 64, &options));
      ASSERT_TRUE(set);
      for (const auto& [key, verdict] : verdicts)
        ASSERT_EQ(::bpf_map_update_elem(set.get(), &key, &verdict, BPF_ANY), 0);
      const int fd = set.get();
      ASSERT_EQ(::bpf_map_update_elem(::bpf_map__fd(shim_->maps.um_sets), &number, &fd, BPF_ANY),
                0);
    }
  }
  void fill(const World& world) {
    Lookups wanted(world);
    auto& maps = shim_->maps;
    fill(maps.um_workloads, wanted.workloads);
    std::map<um_own_key, std::uint32_t, Bytewise> own;
    for (const um_own_key& key : wanted.own) own[key] = 0;
    fill(maps.um_own_addresses, own);
    fill(maps.um_services, wanted.services);
    fill(maps.um_client_services, wanted.client_services);
    fill(maps.um_slots, wanted.slots);
    fill(maps.um_backends, wanted.backends);
    fill(maps.um_members, wanted.members);
    fill(maps.um_service_ranges,
         std::map<std::uint32_t, um_service_range>{{0, wanted.service_range}});
    fill(maps.um_peers, wanted.peers);
    fill(maps.um_blocks, wanted.blocks);
    fill(maps.um_refusals, wanted.refusals);
    fill(maps.um_clients, wanted.clients);
    fill_sets(wanted);
    fill(maps.um_config, std::map<std::uint32_t, std::uint32_t>{{0, wanted.config}});
    timespec clock{};
    ::clock_gettime(CLOCK_MONOTONIC, &clock);
    const std::uint64_t later = static_cast<std::uint64_t>(clock.tv_sec) * 1'000'000'000U +
                                static_cast<std::uint64_t>(clock.tv_nsec) - wanted.now;
    for (auto& [key, affinity] : wanted.affinities) affinity.used += later;
    fill(maps.um_affinities, wanted.affinities);
    const std::uint64_t stamp = wanted.heartbeat == 0 ? 0 : wanted.heartbeat + later;
    fill(maps.um_heartbeats, std::map<std::uint32_t, std::uint64_t>{{0, stamp}});
  }
  std::unique_ptr<decide_shim_bpf, Close> shim_;
};

TEST_P(KernelDecide, AsTheTableSays) {
  const DecideCase& c = GetParam();
  fill(c.world);
  um_shim& shim = shim_->bss->shim;
  shim.in.netns_cookie = c.cookie;
  shim.in.to = kernel_destination(c.to);
  shim.in.v4_only = c.v4_only ? 1 : 0;
  shim.arrival.netns_cookie = c.cookie;
  shim.arrival.to = shim.in.to;
  if (!c.from.empty()) shim.arrival.from = kernel_destination(c.from);
  shim.asked = static_cast<std::uint32_t>(c.asked);
  for (int tries = 0; tries < 100; ++tries) {  // the kernel's numbers are random
    std::array<std::uint8_t, 64> packet{};
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet.data(),
                .data_size_in = packet.size());
    ASSERT_EQ(::bpf_prog_test_run_opts(::bpf_program__fd(shim_->progs.um_decide_shim), &options),
              0);
    if (c.backend.empty()) break;
    um_destination wanted = kernel_destination(c.backend);
    if (std::memcmp(&shim.out.backend, &wanted, sizeof wanted) == 0) break;
  }
  EXPECT_EQ(shim.out.action, c.action);
  EXPECT_EQ(shim.out.counter, c.counter);
  EXPECT_EQ(shim.out.rulings == 0 ? 0 : shim.out.ruling[shim.out.rulings - 1].policy, c.policy);
  if (!c.backend.empty()) {
    um_destination wanted = kernel_destination(c.backend);
    EXPECT_EQ(std::memcmp(&shim.out.backend, &wanted, sizeof wanted), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, KernelDecide, testing::ValuesIn(all_decide_cases()),
                         [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace mesh::test
