// The maps of UDP alone, and the lookups that udp.h asks for. Included after maps.h.
#ifndef UM_UDP_MAPS_H
#define UM_UDP_MAPS_H

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct um_udp_flow_key);
  __type(value, struct um_udp_flow);
} um_udp_flows SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct um_udp_choice_key);
  __type(value, struct um_udp_choice);
} um_udp_choices SEC(".maps");

static __always_inline struct um_udp_flow* um_find_udp_flow(const struct um_udp_flow_key* key) {
  return bpf_map_lookup_elem(&um_udp_flows, key);
}

// Lost: an answer may be refused, until the next datagram of who began.
static __always_inline void um_write_udp_flow(const struct um_udp_flow_key* key,
                                              const struct um_udp_flow* flow) {
  if (bpf_map_update_elem(&um_udp_flows, key, flow, BPF_ANY)) um_count(UM_DATAGRAM_RECORDS_LOST);
}

static __always_inline struct um_udp_choice* um_find_udp_choice(
    const struct um_udp_choice_key* key) {
  return bpf_map_lookup_elem(&um_udp_choices, key);
}

// Lost: the next datagram may go to another backend, or the application sees the backend's address.
static __always_inline void um_write_udp_choice(const struct um_udp_choice_key* key,
                                                const struct um_udp_choice* choice) {
  if (bpf_map_update_elem(&um_udp_choices, key, choice, BPF_ANY))
    um_count(UM_DATAGRAM_RECORDS_LOST);
}

static __always_inline int um_is_service(const struct um_destination* to) {
  return bpf_map_lookup_elem(&um_services, to) != 0;
}

#endif
