#include "datapath/counters.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>
#include <iterator>
#include <vector>

#include "bpf/shared.h"

namespace mesh::datapath {
namespace {

constexpr const char* kCounterNames[] = {
#define MESH_COUNTER_NAME(id, name) name,
    UM_COUNTERS(MESH_COUNTER_NAME)
#undef MESH_COUNTER_NAME
};
static_assert(std::size(kCounterNames) == UM_COUNTER_COUNT);

}  // namespace

const char* counter_name(std::uint32_t number) {
  return number < std::size(kCounterNames) ? kCounterNames[number] : "";
}

Result<Counters> read_counters(int counters, int policy_counts) {
  const auto cpus = static_cast<std::size_t>(::libbpf_num_possible_cpus());
  Counters out;
  std::vector<std::uint64_t> values(cpus);
  for (std::uint32_t i = 0; i < UM_COUNTER_COUNT; ++i) {
    if (::bpf_map_lookup_elem(counters, &i, values.data()) != 0)
      return errno_error(errno, "read counters");
    std::uint64_t& total = out.totals[kCounterNames[i]];
    for (const std::uint64_t value : values) total += value;
  }
  std::vector<um_policy_count> counts(cpus);
  std::uint32_t policy = 0, next = 0;
  for (const void* at = nullptr; ::bpf_map_get_next_key(policy_counts, at, &next) == 0;
       at = &policy) {
    policy = next;
    if (::bpf_map_lookup_elem(policy_counts, &policy, counts.data()) != 0) continue;
    for (const um_policy_count& count : counts) {
      if (count.denied != 0) out.denied_by_policy[policy] += count.denied;
      if (count.allowed != 0) out.allowed_by_policy[policy] += count.allowed;
      if (count.audited != 0) out.audited_by_policy[policy] += count.audited;
    }
  }
  return out;
}

}  // namespace mesh::datapath
