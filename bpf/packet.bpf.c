// The programs at the host's side of a strict workload's link: its packets, both ways, where nobody
// inside can take them away. An instance for each workload.
//
// What the socket's hooks have let through passes; what went round them (raw and packet sockets,
// sockets of other cgroups, forwarded traffic) is judged alike, or dropped. Nothing here remembers
// a connection: a SYN is judged, all else of TCP follows one. Agent gone: goes on with the last
// state.

// clang-format off
#include "maps.h"
#include "decide.h"
#include "began.h"
#include "act.h"
#include "packet.h"
// clang-format on

#define UM_CONTINUE (-1)  // TC_ACT_UNSPEC, TCX_NEXT: what comes after us may look, too
#define UM_STOP 2         // TC_ACT_SHOT

const volatile __u64 um_netns_cookie = 0;
const volatile __u32 um_workload_id = 0;

static __always_inline int um_stop(__u32 counter) {
  um_count(counter);
  return UM_STOP;
}

static __always_inline int um_stop_refused(const struct um_decision* decision) {
  um_count_rulings(decision);
  return um_stop(decision->counter);
}

// By the bytes on the wire, which is what the other end goes by.
static __always_inline __u16 um_read_type(struct __sk_buff* skb) {
  __u16 type = 0;
  if (skb->vlan_present || bpf_skb_load_bytes(skb, 12, &type, sizeof type)) return 0;
  return bpf_ntohs(type);
}

static __always_inline int um_is_multicast(const struct um_address* a) {
  if (!um_is_v4(a)) return (a->word[0] & um_be32(0xff000000)) == um_be32(0xff000000);
  return (a->word[3] & um_be32(0xf0000000)) == um_be32(0xe0000000) || a->word[3] == 0xffffffff;
}

// ARP and ND say who has an address: the workload speaks for itself alone.
static __always_inline int um_speaks_for_itself_arp(struct __sk_buff* skb) {
  struct {
    __u16 hardware, protocol;
    __u8 hardware_size, protocol_size;
    __u16 operation;
    __u8 sender_hardware[6];
    __u8 sender[4];
  } arp;
  if (bpf_skb_load_bytes(skb, UM_ETHERNET, &arp, sizeof arp) || arp.hardware != bpf_htons(1) ||
      arp.protocol != bpf_htons(UM_TYPE_IPV4) || arp.hardware_size != 6 || arp.protocol_size != 4)
    return 0;
  __u32 sender;
  __builtin_memcpy(&sender, arp.sender, sizeof sender);
  if (sender == 0) return 1;  // asks whether an address is free
  struct um_address address;
  um_mapped(&address, sender);
  return um_is_own_address(um_workload_id, &address);
}

static __always_inline int um_is_of_this_link(const struct um_address* a) {
  return um_is_link_local6(a) || um_is_own_address(um_workload_id, a);
}

static __always_inline int um_speaks_for_itself(struct __sk_buff* skb,
                                                const struct um_packet* packet) {
  if (!um_is_unspecified(&packet->from.address) && !um_is_of_this_link(&packet->from.address))
    return 0;
  __u8 type = 0;
  if (bpf_skb_load_bytes(skb, packet->l4, &type, sizeof type)) return 0;
  if (type == 134) return 0;  // no router
  if (type != 136) return 1;
  struct um_address target;
  if (bpf_skb_load_bytes(skb, packet->l4 + 8, &target, sizeof target)) return 0;
  return um_is_of_this_link(&target);
}

static __always_inline int um_sent_datagram(const struct um_workload* client,
                                            const struct um_packet* packet, __u32 config,
                                            struct um_decision* decision) {
  um_decide_sent(client, &packet->to, config, decision);
  if (decision->action == UM_PASS) {
    um_note_datagram(um_workload_id, &packet->from, &packet->to, UM_BEGAN_HERE);
    return UM_CONTINUE;
  }
  if (!um_has_begun(um_workload_id, &packet->from, &packet->to, UM_BEGAN_THERE))
    return um_stop_refused(decision);
  // An answer: as what it answers would be judged now.
  struct um_arrival asked = {
      .netns_cookie = um_netns_cookie, .from = packet->to, .to = packet->from};
  struct um_decision answer = {};
  um_decide_arrival(&asked, &answer);
  if (answer.action == UM_REFUSE) return um_stop_refused(decision);
  um_note_datagram(um_workload_id, &packet->from, &packet->to, UM_BEGAN_THERE);
  return UM_CONTINUE;
}

// tc ingress at the host's side: what the workload sends. Passes on or drops.
SEC("tc")
int um_packet_from(struct __sk_buff* skb) {
  struct um_packet packet = {};
  switch (um_read_type(skb)) {
    case UM_TYPE_ARP:
      return um_speaks_for_itself_arp(skb) ? UM_CONTINUE : um_stop(UM_PACKETS_DROPPED_SOURCE);
    case UM_TYPE_IPV4:
      um_read_ipv4(skb, &packet);
      break;
    case UM_TYPE_IPV6:
      um_read_ipv6(skb, &packet);
      break;
    default:
      return um_stop(UM_PACKETS_DROPPED_ETHERTYPE);
  }
  if (packet.kind == UM_PACKET_DROP) return um_stop(packet.counter);
  if (packet.kind == UM_PACKET_NEIGHBOUR)
    return um_speaks_for_itself(skb, &packet) ? UM_CONTINUE : um_stop(UM_PACKETS_DROPPED_SOURCE);
  if (!um_is_own_address(um_workload_id, &packet.from.address))
    return um_stop(UM_PACKETS_DROPPED_SOURCE);
  if (packet.kind == UM_PACKET_FOLLOWS) return UM_CONTINUE;

  const __u32 config = um_config_flags();
  const struct um_workload* client = um_find_workload(um_netns_cookie, um_generation(config));
  if (!client) return um_stop(UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
  struct um_decision decision = {};
  if (packet.kind == UM_PACKET_DATAGRAM)
    return um_sent_datagram(client, &packet, config, &decision);
  um_decide_sent(client, &packet.to, config, &decision);
  return decision.action == UM_PASS ? UM_CONTINUE : um_stop_refused(&decision);
}

static __always_inline int um_arrived_datagram(const struct um_packet* packet,
                                               struct um_decision* decision) {
  struct um_arrival in = {.netns_cookie = um_netns_cookie, .from = packet->from, .to = packet->to};
  um_decide_arrival(&in, decision);
  if (decision->action != UM_REFUSE) {
    um_note_datagram(um_workload_id, &packet->to, &packet->from, UM_BEGAN_THERE);
    return UM_CONTINUE;
  }
  if (!um_has_begun(um_workload_id, &packet->to, &packet->from, UM_BEGAN_HERE))
    return um_stop_refused(decision);
  const __u32 config = um_config_flags();
  const struct um_workload* client = um_find_workload(um_netns_cookie, um_generation(config));
  if (!client) return um_stop_refused(decision);
  struct um_decision asked = {};
  um_decide_sent(client, &packet->from, config, &asked);
  if (asked.action != UM_PASS) return um_stop_refused(decision);
  um_note_datagram(um_workload_id, &packet->to, &packet->from, UM_BEGAN_HERE);
  return UM_CONTINUE;
}

// tc egress at the host's side: what comes for the workload. Passes on, drops, or sends a reset
// back.
SEC("tc")
int um_packet_to(struct __sk_buff* skb) {
  struct um_packet packet = {};
  switch (um_read_type(skb)) {
    case UM_TYPE_ARP:
      return UM_CONTINUE;
    case UM_TYPE_IPV4:
      um_read_ipv4(skb, &packet);
      break;
    case UM_TYPE_IPV6:
      um_read_ipv6(skb, &packet);
      break;
    default:
      return um_stop(UM_PACKETS_DROPPED_ETHERTYPE);
  }
  if (packet.kind == UM_PACKET_DROP) return um_stop(packet.counter);
  if (packet.kind == UM_PACKET_NEIGHBOUR) return UM_CONTINUE;
  if (!um_is_multicast(&packet.to.address) &&
      !um_is_own_address(um_workload_id, &packet.to.address))
    return um_stop(UM_PACKETS_DROPPED_DESTINATION);
  // What the workload sends to itself never comes this way, and would be judged as that.
  if (um_is_loopback(&packet.from.address) ||
      um_is_own_address(um_workload_id, &packet.from.address))
    return um_stop(UM_PACKETS_DROPPED_SOURCE);
  if (packet.kind == UM_PACKET_FOLLOWS) return UM_CONTINUE;

  struct um_decision decision = {};
  if (packet.kind == UM_PACKET_DATAGRAM) return um_arrived_datagram(&packet, &decision);
  struct um_arrival in = {.netns_cookie = um_netns_cookie, .from = packet.from, .to = packet.to};
  um_decide_arrival(&in, &decision);
  if (decision.action != UM_REFUSE) return UM_CONTINUE;
  int stopped = um_stop_refused(&decision);
  int answered = um_answer_reset(skb, &packet);
  return answered < 0 ? stopped : answered;
}

char _license[] SEC("license") = "Apache-2.0";
