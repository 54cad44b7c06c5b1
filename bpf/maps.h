// The maps, and the lookups that decide.h asks for. The sizes are replaced by user space before the
// load (datapath::Options). All are pinned and outlive the agent, the storages of sockets included.
#ifndef UM_MAPS_H
#define UM_MAPS_H

// clang-format off
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
// clang-format on

#include "fastpath.h"
#include "shared.h"

#define UM_HASH(name, key_type, value_type, max, flags) \
  struct {                                              \
    __uint(type, BPF_MAP_TYPE_HASH);                    \
    __uint(max_entries, max);                           \
    __uint(map_flags, flags);                           \
    __type(key, key_type);                              \
    __type(value, value_type);                          \
  } name SEC(".maps")

UM_HASH(um_workloads, struct um_workload_key, struct um_workload, 8192, BPF_F_NO_PREALLOC);
UM_HASH(um_own_addresses, struct um_own_key, __u32, 16384, BPF_F_NO_PREALLOC);
UM_HASH(um_workload_records, __u32, struct um_workload_record, 4096, BPF_F_NO_PREALLOC);
UM_HASH(um_services, struct um_destination, __u32, 16384, BPF_F_NO_PREALLOC);
UM_HASH(um_client_services, struct um_client_service, __u32, 65536, BPF_F_NO_PREALLOC);
UM_HASH(um_backends, struct um_backend_key, struct um_backend, 262144, BPF_F_NO_PREALLOC);
UM_HASH(um_members, struct um_member, __u32, 131072, BPF_F_NO_PREALLOC);
UM_HASH(um_peers, struct um_peer_key, struct um_peer, 262144, BPF_F_NO_PREALLOC);
UM_HASH(um_refusals, struct um_refusal_key, __u32, 131072, BPF_F_NO_PREALLOC);
UM_HASH(um_clients, struct um_flow_key, __u64, 65536, BPF_F_NO_PREALLOC);
UM_HASH(um_resolvers, struct um_resolver_key, struct um_destination, 65536, BPF_F_NO_PREALLOC);
UM_HASH(um_connections, __u64, struct um_connection, 65536, BPF_F_NO_PREALLOC);
UM_HASH(um_records, struct um_record_key, struct um_destination, 32768, 0);

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 81920);
  __type(key, __u32);
  __type(value, struct um_service);
} um_slots SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct um_affinity_key);
  __type(value, struct um_affinity);
} um_affinities SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct um_datagram_key);
  __type(value, struct um_udp_flow);
} um_datagrams SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 32768);
  __type(key, struct um_block_key);
  __type(value, __u32);
} um_blocks SEC(".maps");

// What user space makes for each set has the same shape, and its own size.
struct um_set {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 1);
  __uint(key_size, sizeof(struct um_verdict_key));
  __uint(value_size, sizeof(struct um_verdict));
};
struct {
  __uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
  __uint(max_entries, 32768);
  __type(key, struct um_set_key);
  __array(values, struct um_set);
} um_sets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct um_config);
} um_config SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct um_service_range);
} um_service_ranges SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} um_heartbeats SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, UM_COUNTER_COUNT);
  __type(key, __u32);
  __type(value, __u64);
} um_counters SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 65536);
  __type(key, __u32);
  __type(value, struct um_policy_count);
} um_policy_counts SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct um_socket);
} um_sockets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 1 << 20);
} um_events SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct um_denials);
} um_denials SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
  __type(key, int);
  __type(value, __u32);
} um_mesh_sockets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct um_fast_socket);
} um_fast_sockets SEC(".maps");

static __always_inline const struct um_workload* um_find_workload(__u64 netns_cookie,
                                                                  __u32 generation) {
  struct um_workload_key key = {.netns_cookie = netns_cookie, .generation = generation};
  return bpf_map_lookup_elem(&um_workloads, &key);
}

static __always_inline int um_is_own_address(__u32 workload, const struct um_address* address) {
  struct um_own_key key = {.workload = workload, .address = *address};
  return bpf_map_lookup_elem(&um_own_addresses, &key) != 0;
}

// One load: the word is stored while we read.
static __always_inline void um_read_slot(__u32 at, struct um_service* out) {
  const __u64* word = bpf_map_lookup_elem(&um_slots, &at);
  __u64 value = word ? *(const volatile __u64*)word : 0;
  __builtin_memcpy(out, &value, sizeof value);
}

static __always_inline int um_find_service(const struct um_destination* to,
                                           struct um_service* out) {
  const __u32* at = bpf_map_lookup_elem(&um_services, to);
  if (!at) return 0;
  um_read_slot(*at, out);
  return 1;
}

static __always_inline int um_find_client_service(const struct um_client_service* key,
                                                  struct um_service* out) {
  const __u32* at = bpf_map_lookup_elem(&um_client_services, key);
  if (!at) return 0;
  um_read_slot(*at, out);
  return 1;
}

static __always_inline const struct um_service_range* um_find_service_range(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&um_service_ranges, &zero);
}

static __always_inline const struct um_backend* um_find_backend(__u32 choice, __u32 index) {
  struct um_backend_key key = {.choice = choice, .index = index};
  return bpf_map_lookup_elem(&um_backends, &key);
}

static __always_inline int um_is_member(__u32 choice, const struct um_destination* backend) {
  struct um_member key = {.choice = choice, .backend = *backend};
  return bpf_map_lookup_elem(&um_members, &key) != 0;
}

static __always_inline const struct um_affinity* um_find_affinity(
    const struct um_affinity_key* key) {
  return bpf_map_lookup_elem(&um_affinities, key);
}

static __always_inline const struct um_peer* um_find_peer(const struct um_address* address,
                                                          __u32 generation) {
  struct um_peer_key key = {.generation = generation, .address = *address};
  return bpf_map_lookup_elem(&um_peers, &key);
}

static __always_inline __u32 um_find_block(const struct um_address* address, __u32 generation) {
  struct um_block_key key = {
      .bits = UM_BLOCK_BITS + 128, .generation = generation, .address = *address};
  const __u32* peer_class = bpf_map_lookup_elem(&um_blocks, &key);
  return peer_class ? *peer_class : 0;
}

static __always_inline const struct um_verdict* um_find_verdict(__u32 set,
                                                                const struct um_verdict_key* key,
                                                                __u32 generation) {
  struct um_set_key set_key = {.set = set, .generation = generation};
  void* verdicts = bpf_map_lookup_elem(&um_sets, &set_key);
  return verdicts ? bpf_map_lookup_elem(verdicts, key) : 0;
}

static __always_inline const __u32* um_find_refusal(__u32 client, __u32 service) {
  struct um_refusal_key key = {.client = client, .service = service};
  return bpf_map_lookup_elem(&um_refusals, &key);
}

static __always_inline const __u64* um_find_client(const struct um_destination* from,
                                                   const struct um_destination* to) {
  struct um_flow_key key = {.from = *from, .to = *to};
  return bpf_map_lookup_elem(&um_clients, &key);
}

static __always_inline const struct um_destination* um_find_resolver(__u64 netns_cookie,
                                                                     __u32 slot) {
  struct um_resolver_key key = {.netns_cookie = netns_cookie, .slot = slot};
  return bpf_map_lookup_elem(&um_resolvers, &key);
}

// Whose the slot is afterwards; 0: nobody's, the map is full.
static __always_inline const struct um_destination* um_take_resolver(
    __u64 netns_cookie, __u32 slot, const struct um_destination* resolver) {
  struct um_resolver_key key = {.netns_cookie = netns_cookie, .slot = slot};
  bpf_map_update_elem(&um_resolvers, &key, resolver, BPF_NOEXIST);
  return bpf_map_lookup_elem(&um_resolvers, &key);
}

static __always_inline __u32 um_config_flags(void) {
  __u32 zero = 0;
  const struct um_config* config = bpf_map_lookup_elem(&um_config, &zero);
  return config ? *(const volatile __u32*)&config->flags : UM_CONFIG_STATE_INCOMPLETE;
}

static __always_inline __u64 um_heartbeat(void) {
  __u32 zero = 0;
  const __u64* stamp = bpf_map_lookup_elem(&um_heartbeats, &zero);
  return stamp ? *(const volatile __u64*)stamp : 0;
}

static __always_inline __u64 um_now(void) { return bpf_ktime_get_ns(); }
static __always_inline __u32 um_random(void) { return bpf_get_prandom_u32(); }

// Atomic although per CPU: a program may be preempted by one on the same CPU.
static __always_inline void um_count(__u32 counter) {
  __u64* value = bpf_map_lookup_elem(&um_counters, &counter);
  if (value) __sync_fetch_and_add(value, 1);
}

static __always_inline struct um_policy_count* um_policy_count_of(__u32 policy) {
  struct um_policy_count* count = bpf_map_lookup_elem(&um_policy_counts, &policy);
  if (count) return count;
  struct um_policy_count none = {};
  bpf_map_update_elem(&um_policy_counts, &policy, &none, BPF_NOEXIST);
  count = bpf_map_lookup_elem(&um_policy_counts, &policy);
  if (!count) um_count(UM_POLICY_COUNTS_LOST);
  return count;
}

static __always_inline void um_count_verdict(const struct um_verdict* verdict) {
  struct um_policy_count* count = verdict->policy ? um_policy_count_of(verdict->policy) : 0;
  if (count) __sync_fetch_and_add(verdict->allowed ? &count->allowed : &count->denied, 1);
  if (!verdict->audit) return;
  count = um_policy_count_of(verdict->audit);
  if (count) __sync_fetch_and_add(&count->audited, 1);
}

#endif
