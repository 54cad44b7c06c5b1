#include "datapath/judge.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <list>
#include <utility>

#include "bpf/shared.h"
#include "datapath/byte_order.h"
#include "datapath/counters.h"
#include "datapath/map.h"
#include "datapath/policy_sets.h"

namespace mesh::datapath {
namespace {

// The first `bits` of two keys, but for the count in front.
bool begins_alike(const void* a, const void* b, std::uint32_t bits) {
  const auto* left = static_cast<const std::uint8_t*>(a) + sizeof(std::uint32_t);
  const auto* right = static_cast<const std::uint8_t*>(b) + sizeof(std::uint32_t);
  if (std::memcmp(left, right, bits / 8) != 0) return false;
  const auto mask = static_cast<std::uint8_t>(0xff00U >> (bits % 8));
  return bits % 8 == 0 || ((left[bits / 8] ^ right[bits / 8]) & mask) == 0;
}

// As the kernel's tries do; null: none.
template <class Entries, class Key>
const typename Entries::mapped_type* longest_prefix(const Entries& entries, const Key& wanted) {
  const typename Entries::mapped_type* best = nullptr;
  std::uint32_t most = 0;
  for (const auto& [key, value] : entries) {
    if ((best && key.bits < most) || !begins_alike(&key, &wanted, key.bits)) continue;
    best = &value;
    most = key.bits;
  }
  return best;
}

um_service_range range_of(const std::optional<IpBlock>& block) {
  um_service_range range{};
  if (!block) return range;
  const std::uint32_t bits = kernel_block(*block).bits - UM_BLOCK_BITS;
  auto* mask = reinterpret_cast<std::uint8_t*>(&range.mask);
  for (std::uint32_t bit = 0; bit < bits; ++bit)
    mask[bit / 8] = static_cast<std::uint8_t>(mask[bit / 8] | 0x80U >> (bit % 8));
  range.base = kernel_address(block->base);
  for (int i = 0; i < 4; ++i) range.base.word[i] &= range.mask.word[i];
  return range;
}

}  // namespace

// By what decide.h asks for.
struct JudgedRows {
  const State& state;
  const um_service_range service_range;
  std::map<um_block_key, std::uint32_t, ByteOrder> blocks;
  std::map<SetId, PolicySets::Verdicts> sets;  // those that were asked for

  // Of the decision that is being made.
  std::list<um_workload> workloads;
  um_peer peer{};
  std::uint32_t refusal = 0;
  const Columns* columns = nullptr;
  um_backend backend{};
  __u64 recorded = 0;

  JudgedRows(const State& of, const std::optional<IpBlock>& range)
      : state(of), service_range(range_of(range)) {
    for (const auto& [block, peer_class] : of.blocks) blocks[kernel_block(block)] = peer_class;
  }

  const um_workload* workload(std::uint64_t cookie) {
    for (const auto& [id, own] : state.workloads) {
      if (own.netns_cookie != cookie) continue;
      const std::uint32_t flags = (own.cgroup.empty() ? UM_WORKLOAD_RECORDED : 0U) |
                                  (own.bypasses_proxy ? UM_WORKLOAD_BYPASS : 0U);
      return &workloads.emplace_back(
          um_workload{id, flags, own.class4, own.class6, own.ingress, own.egress});
    }
    return nullptr;
  }
  bool is_own_address(WorkloadId id, const IpAddress& ip) const {
    const auto own = state.workloads.find(id);
    return own != state.workloads.end() &&
           std::ranges::find(own->second.addresses, ip) != own->second.addresses.end();
  }
  const ServiceEntry* entry(const um_destination& to) const {
    const auto& services = to.protocol == UM_UDP ? state.udp_services : state.services;
    const auto found = services.find(user_destination(to));
    return found == services.end() ? nullptr : &found->second;
  }
  um_service choice(const Columns& of) {
    columns = &of;
    return {0, UM_SERVICE_BALANCE, 0, static_cast<std::uint16_t>(of.size())};
  }
  bool service(const um_destination& to, um_service& out) {
    const ServiceEntry* found = entry(to);
    if (!found) return false;
    if (found->kind == ServiceEntry::Kind::kProxy)
      out = {found->id, UM_SERVICE_PROXY, 0, 0};
    else if (found->of_clients)
      out = {0, UM_SERVICE_BY_CLIENT, 0, 0};
    else
      out = choice(found->columns);
    return true;
  }
  bool client_service(const um_client_service& key, um_service& out) {
    const ServiceEntry* found = entry(key.service);
    if (!found || !found->of_clients) return false;
    const auto own = found->of_clients->find(key.client);
    if (own == found->of_clients->end()) return false;
    out = choice(own->second);
    return true;
  }
  const um_backend* column(std::uint32_t index) {
    if (!columns || index >= columns->size()) return nullptr;
    const Column& found = (*columns)[index];
    const auto one = [](const std::optional<SocketAddress>& address) {
      return address ? kernel_destination(*address) : um_destination{};
    };
    backend = {one(found.first), one(found.second), found.threshold, 0, 0, 0};
    return &backend;
  }
  const um_peer* peer_at(const um_address& address) {
    const auto found = state.peers.find(user_address(address));
    if (found == state.peers.end()) return nullptr;
    peer = {found->second.peer, found->second.ingress};
    return &peer;
  }
  const um_verdict* verdict(SetId set, const um_verdict_key& key) {
    const auto wanted = state.sets.find(set);
    if (wanted == state.sets.end()) return nullptr;
    auto known = sets.find(set);
    if (known == sets.end()) known = sets.emplace(set, kernel_verdicts(wanted->second)).first;
    return longest_prefix(known->second, key);
  }
  const std::uint32_t* refusal_of(WorkloadId client, ServiceId of) {
    const auto found = state.refusals.find({client, of});
    if (found == state.refusals.end()) return nullptr;
    refusal = found->second;
    return &refusal;
  }

  template <class Decide>
  Decision decide(Decide decide_it);
};

namespace {

// The lookups of decide.h have no context: whose decision this thread is making.
thread_local JudgedRows* rows;

std::uint32_t um_config_flags() { return rows->blocks.empty() ? 0 : UM_CONFIG_HAS_BLOCKS; }
const um_workload* um_find_workload(std::uint64_t cookie, std::uint32_t) {
  return rows->workload(cookie);
}
int um_is_own_address(std::uint32_t workload, const um_address* address) {
  return rows->is_own_address(workload, user_address(*address)) ? 1 : 0;
}
int um_find_service(const um_destination* to, um_service* out) {
  return rows->service(*to, *out) ? 1 : 0;
}
int um_find_client_service(const um_client_service* key, um_service* out) {
  return rows->client_service(*key, *out) ? 1 : 0;
}
const um_service_range* um_find_service_range() { return &rows->service_range; }
const um_backend* um_find_backend(std::uint32_t, std::uint32_t index) {
  return rows->column(index);
}
// Who went where before is not asked: no client sticks to a backend here.
int um_is_member(std::uint32_t, const um_destination*) { return 0; }
const um_affinity* um_find_affinity(const um_affinity_key*) { return nullptr; }
const um_peer* um_find_peer(const um_address* address, std::uint32_t) {
  return rows->peer_at(*address);
}
std::uint32_t um_find_block(const um_address* address, std::uint32_t) {
  const um_block_key key{UM_BLOCK_BITS + 128, 0, *address};
  const std::uint32_t* found = longest_prefix(rows->blocks, key);
  return found ? *found : 0;
}
const um_verdict* um_find_verdict(std::uint32_t set, const um_verdict_key* key, std::uint32_t) {
  return rows->verdict(set, *key);
}
const std::uint32_t* um_find_refusal(std::uint32_t client, std::uint32_t service) {
  return rows->refusal_of(client, service);
}
const __u64* um_find_client(const um_destination*, const um_destination*) {
  return rows->recorded != 0 ? &rows->recorded : nullptr;
}
__u64 um_heartbeat() { return 1; }
__u64 um_now() { return 1; }
std::uint32_t um_random() { return 0; }

// In here, and not in the namespace of all: whoever else compiles it has lookups of their own.
#include "bpf/decide.h"

Decision::Action action_of(std::uint32_t action) {
  switch (action) {
    case UM_PASS:
      return Decision::Action::kPass;
    case UM_REDIRECT:
      return Decision::Action::kToProxy;
    case UM_BALANCE:
    case UM_RESOLVE:
      return Decision::Action::kToBackend;
    default:
      return Decision::Action::kRefuse;
  }
}

std::uint8_t protocol_of(Transport transport) { return static_cast<std::uint8_t>(transport); }

}  // namespace

template <class Decide>
Decision JudgedRows::decide(Decide decide_it) {
  workloads.clear();
  columns = nullptr;
  rows = this;
  um_decision made{};
  decide_it(made);
  rows = nullptr;
  Decision decision{action_of(made.action), counter_name(made.counter), {}};
  for (std::uint32_t i = 0; i < made.rulings; ++i) {
    const um_verdict& ruling = made.ruling[i];
    decision.rulings.push_back({ruling.allowed != 0, ruling.policy, ruling.audit});
  }
  return decision;
}

Judge::Judge(const State& state, std::optional<IpBlock> service_range)
    : rows_(std::make_unique<JudgedRows>(state, service_range)) {}
Judge::~Judge() = default;

namespace {

um_connect connect_of(const State& state, WorkloadId client, const SocketAddress& to,
                      Transport transport) {
  um_connect in{};
  const auto own = state.workloads.find(client);
  if (own != state.workloads.end()) in.netns_cookie = own->second.netns_cookie;
  in.to = kernel_destination(to, protocol_of(transport));
  return in;
}

}  // namespace

Decision Judge::connect(WorkloadId client, const SocketAddress& to, Transport transport) const {
  const um_connect in = connect_of(rows_->state, client, to, transport);
  return rows_->decide([&](um_decision& out) { um_decide_workload(&in, &out); });
}

Decision Judge::mesh_connect(WorkloadId client, const SocketAddress& to) const {
  const um_connect in = connect_of(rows_->state, client, to, Transport::kTcp);
  return rows_->decide([&](um_decision& out) { um_decide_mesh(&in, &out); });
}

Decision Judge::arrival(WorkloadId server, const SocketAddress& from, const SocketAddress& to,
                        Transport transport, WorkloadId recorded) const {
  um_arrival in{};
  in.netns_cookie = connect_of(rows_->state, server, to, transport).netns_cookie;
  in.from = kernel_destination(from, protocol_of(transport));
  in.to = kernel_destination(to, protocol_of(transport));
  const auto client = rows_->state.workloads.find(recorded);
  rows_->recorded = client == rows_->state.workloads.end() ? 0 : client->second.netns_cookie;
  return rows_->decide([&](um_decision& out) { um_decide_arrival(&in, &out); });
}

}  // namespace mesh::datapath
