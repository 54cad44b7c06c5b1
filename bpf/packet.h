// What a strict workload's packets are: read from the frame, and judged as the connects and
// arrivals that they stand for. Included after maps.h, decide.h, began.h and
// act.h.
#ifndef UM_PACKET_H
#define UM_PACKET_H

#include <bpf/bpf_endian.h>

#define UM_ETHERNET 14  // bytes of its header
#define UM_TYPE_IPV4 0x0800
#define UM_TYPE_ARP 0x0806
#define UM_TYPE_IPV6 0x86dd

#define UM_ICMP 1
#define UM_ICMPV6 58
#define UM_HOP_BY_HOP 0
#define UM_ROUTING 43
#define UM_FRAGMENT 44
#define UM_AUTHENTICATION 51
#define UM_DESTINATION_OPTIONS 60
#define UM_MOBILITY 135
#define UM_HOST_IDENTITY 139
#define UM_SHIM6 140

#define UM_FLAG_RST 0x04
#define UM_FLAG_SYN 0x02
#define UM_FLAG_ACK 0x10

struct um_ipv4_header {
  __u8 version_words;
  __u8 service;
  __u16 length;    // be16
  __u16 id;        // be16
  __u16 fragment;  // be16: 3 bits of flags, the offset in 8 bytes
  __u8 ttl;
  __u8 protocol;
  __u16 checksum;
  __u32 source;       // be32
  __u32 destination;  // be32
};

struct um_ipv6_header {
  __u32 version_flow;  // be32
  __u16 length;        // be16
  __u8 next;
  __u8 hops;
  struct um_address source;
  struct um_address destination;
};

struct um_tcp_header {
  __u16 source;        // be16
  __u16 destination;   // be16
  __u32 sequence;      // be32
  __u32 acknowledged;  // be32
  __u8 words;
  __u8 flags;
  __u16 window;
  __u16 checksum;
  __u16 urgent;
};

enum um_packet_kind {
  UM_PACKET_DROP = 0,       // `counter` says why
  UM_PACKET_NEIGHBOUR = 1,  // ND and MLD: addresses of the link are in order
  UM_PACKET_FOLLOWS = 2,    // belongs to what was judged: but its addresses must be in order
  UM_PACKET_SYN = 3,
  UM_PACKET_DATAGRAM = 4,
};

struct um_packet {
  struct um_destination from;
  struct um_destination to;
  __u32 kind;     // um_packet_kind
  __u32 counter;  // um_counter
  __u32 l4;       // offset of the layer 4 header, where there is one
  __u32 end;      // of the IP packet: the frame may be padded
};

static __always_inline void um_drop(struct um_packet* out, __u32 counter) {
  out->kind = UM_PACKET_DROP;
  out->counter = counter;
}

// The receiver of a redirect believes it, and so does that of a router advertisement.
static __always_inline int um_may_icmp4(__u8 type) {
  return type == 0 || type == 3 || type == 8 || type == 11 || type == 12;
}

static __always_inline int um_is_neighbour_message(__u8 type) { return type >= 133 && type <= 136; }

static __always_inline int um_is_listener_message(__u8 type) {
  return (type >= 130 && type <= 132) || type == 143;
}

static __always_inline void um_read_icmp6(struct __sk_buff* skb, struct um_packet* out) {
  __u8 type = 0;
  if (bpf_skb_load_bytes(skb, out->l4, &type, sizeof type))
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
  else if (um_is_neighbour_message(type))
    out->kind = UM_PACKET_NEIGHBOUR;
  else if ((type >= 1 && type <= 4) || type == 128 || type == 129)
    out->kind = UM_PACKET_FOLLOWS;
  else
    um_drop(out, UM_PACKETS_DROPPED_ICMP);
}

static __always_inline void um_read_icmp4(struct __sk_buff* skb, struct um_packet* out) {
  __u8 type = 0;
  if (bpf_skb_load_bytes(skb, out->l4, &type, sizeof type))
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
  else if (um_may_icmp4(type))
    out->kind = UM_PACKET_FOLLOWS;
  else
    um_drop(out, UM_PACKETS_DROPPED_ICMP);
}

static __always_inline void um_read_tcp(struct __sk_buff* skb, struct um_packet* out) {
  struct um_tcp_header tcp;
  if (bpf_skb_load_bytes(skb, out->l4, &tcp, sizeof tcp)) {
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
    return;
  }
  out->from.protocol = out->to.protocol = UM_TCP;
  out->from.port = tcp.source;
  out->to.port = tcp.destination;
  // Nothing else opens a connection: what is no SYN belongs to one that was judged, or is answered
  // with a reset.
  out->kind =
      (tcp.flags & (UM_FLAG_SYN | UM_FLAG_ACK)) == UM_FLAG_SYN ? UM_PACKET_SYN : UM_PACKET_FOLLOWS;
}

static __always_inline void um_read_udp(struct __sk_buff* skb, struct um_packet* out) {
  __u16 udp[4];
  if (bpf_skb_load_bytes(skb, out->l4, udp, sizeof udp)) {
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
    return;
  }
  out->from.protocol = out->to.protocol = UM_UDP;
  out->from.port = udp[0];
  out->to.port = udp[1];
  out->kind = UM_PACKET_DATAGRAM;
}

// A fragment after the first is nothing without that one, which was judged. TCP never needs any.
static __always_inline void um_read_later_fragment(__u8 protocol, __u8 icmp,
                                                   struct um_packet* out) {
  if (protocol == UM_UDP || protocol == icmp)
    out->kind = UM_PACKET_FOLLOWS;
  else
    um_drop(out, UM_PACKETS_DROPPED_FRAGMENT);
}

static __always_inline void um_read_ipv4(struct __sk_buff* skb, struct um_packet* out) {
  struct um_ipv4_header ip;
  if (bpf_skb_load_bytes(skb, UM_ETHERNET, &ip, sizeof ip) || ip.version_words >> 4 != 4 ||
      (ip.version_words & 15) < 5) {
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
    return;
  }
  um_mapped(&out->from.address, ip.source);
  um_mapped(&out->to.address, ip.destination);
  out->l4 = UM_ETHERNET + sizeof ip;
  out->end = UM_ETHERNET + bpf_ntohs(ip.length);
  if ((ip.version_words & 15) != 5) {
    um_drop(out, UM_PACKETS_DROPPED_OPTIONS);
    return;
  }
  if (ip.fragment & bpf_htons(0x1fff)) {
    um_read_later_fragment(ip.protocol, UM_ICMP, out);
    return;
  }
  int is_first = (ip.fragment & bpf_htons(0x2000)) != 0;
  if (ip.protocol == UM_TCP && is_first)
    um_drop(out, UM_PACKETS_DROPPED_FRAGMENT);
  else if (ip.protocol == UM_TCP)
    um_read_tcp(skb, out);
  else if (ip.protocol == UM_UDP)
    um_read_udp(skb, out);
  else if (ip.protocol == UM_ICMP)
    um_read_icmp4(skb, out);
  else
    um_drop(out, UM_PACKETS_DROPPED_PROTOCOL);
}

static __always_inline int um_is_extension(__u8 next) {
  return next == UM_HOP_BY_HOP || next == UM_ROUTING || next == UM_FRAGMENT ||
         next == UM_AUTHENTICATION || next == UM_DESTINATION_OPTIONS || next == UM_MOBILITY ||
         next == UM_HOST_IDENTITY || next == UM_SHIM6;
}

// MLD, which snooping bridges want before they pass what ND sends: always behind a router alert.
static __always_inline void um_read_hop_by_hop(struct __sk_buff* skb, struct um_packet* out) {
  __u8 option[8], type = 0;
  um_drop(out, UM_PACKETS_DROPPED_OPTIONS);
  if (bpf_skb_load_bytes(skb, out->l4, option, sizeof option) || option[0] != UM_ICMPV6 ||
      option[1] != 0 || option[2] != 5)
    return;
  if (bpf_skb_load_bytes(skb, out->l4 + sizeof option, &type, sizeof type) == 0 &&
      um_is_listener_message(type))
    out->kind = UM_PACKET_NEIGHBOUR;
}

static __always_inline void um_read_fragment6(struct __sk_buff* skb, struct um_packet* out) {
  struct {
    __u8 next, zero;
    __u16 offset;  // be16, the last bit: more follow
    __u32 id;
  } fragment;
  if (bpf_skb_load_bytes(skb, out->l4, &fragment, sizeof fragment)) {
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
    return;
  }
  out->l4 += sizeof fragment;
  if (fragment.offset & bpf_htons(0xfff8))
    um_read_later_fragment(fragment.next, UM_ICMPV6, out);
  else if (fragment.next == UM_UDP)
    um_read_udp(skb, out);
  else if (fragment.next == UM_ICMPV6)
    um_read_icmp6(skb, out);
  else
    um_drop(out, UM_PACKETS_DROPPED_FRAGMENT);
}

static __always_inline void um_read_ipv6(struct __sk_buff* skb, struct um_packet* out) {
  struct um_ipv6_header ip;
  if (bpf_skb_load_bytes(skb, UM_ETHERNET, &ip, sizeof ip) ||
      (ip.version_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000)) {
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
    return;
  }
  out->from.address = ip.source;
  out->to.address = ip.destination;
  out->l4 = UM_ETHERNET + sizeof ip;
  out->end = out->l4 + bpf_ntohs(ip.length);
  // An IPv6 packet with an address of the mapped form would be judged as another.
  if (um_is_v4(&ip.source) || um_is_v4(&ip.destination))
    um_drop(out, UM_PACKETS_DROPPED_MALFORMED);
  else if (ip.next == UM_TCP)
    um_read_tcp(skb, out);
  else if (ip.next == UM_UDP)
    um_read_udp(skb, out);
  else if (ip.next == UM_ICMPV6)
    um_read_icmp6(skb, out);
  else if (ip.next == UM_FRAGMENT)
    um_read_fragment6(skb, out);
  else if (ip.next == UM_HOP_BY_HOP)
    um_read_hop_by_hop(skb, out);
  else
    um_drop(out,
            um_is_extension(ip.next) ? UM_PACKETS_DROPPED_OPTIONS : UM_PACKETS_DROPPED_PROTOCOL);
}

// ---- from the workload ---------------------------------------------------------------------

// As if it had been connected to. Service addresses are in no packet: who asked for one by connect
// was sent elsewhere.
static __always_inline void um_decide_sent(const struct um_workload* client,
                                           const struct um_destination* to, __u32 config,
                                           struct um_decision* out) {
  if (um_is_link_local6(&to->address)) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_LINK_LOCAL);
    return;
  }
  struct um_service service = {};
  if (um_find_service(to, &service) || um_is_in_service_range(&to->address)) {
    um_decided(out, UM_REFUSE, UM_PACKETS_DROPPED_SERVICE);
    return;
  }
  um_decided(out, UM_PASS, UM_NO_COUNTER);
  um_may_reach(client, to, 0, config, out);
}

// ---- datagrams: who began ------------------------------------------------------------------

static __always_inline int um_has_begun(__u32 workload, const struct um_destination* own,
                                        const struct um_destination* other, __u32 began) {
  struct um_datagram_key key = {.workload = workload, .own = *own, .other = *other};
  const struct um_udp_flow* known = bpf_map_lookup_elem(&um_datagrams, &key);
  return um_is_begun(known, began, um_now(), UM_DATAGRAM_LASTS_NS);
}

// It passes; where nothing did, that side begins. No room: answers are refused.
static __always_inline void um_note_datagram(__u32 workload, const struct um_destination* own,
                                             const struct um_destination* other, __u32 began) {
  struct um_datagram_key key = {.workload = workload, .own = *own, .other = *other};
  struct um_udp_flow* known = bpf_map_lookup_elem(&um_datagrams, &key);
  __u64 now = um_now();
  if (um_goes_on(known, now, UM_DATAGRAM_LASTS_NS)) return;
  struct um_udp_flow flow = {.used = now, .began = began};
  if (bpf_map_update_elem(&um_datagrams, &key, &flow, BPF_ANY)) um_count(UM_DATAGRAM_RECORDS_LOST);
}

// ---- the answer to a SYN that is refused -----------------------------------------------------

// Turns it into the reset that sk_lookup would have had sent, options and all, and sends it back.
// Exchanging addresses and ports leaves the checksum as it is.
static __always_inline int um_answer_reset(struct __sk_buff* skb, struct um_packet* packet) {
  struct um_tcp_header tcp;
  __u8 mac[12], back[12];
  if (bpf_skb_load_bytes(skb, packet->l4, &tcp, sizeof tcp) ||
      bpf_skb_load_bytes(skb, 0, mac, sizeof mac))
    return -1;
  // Who dials a broadcast or multicast address is not answered.
  if (mac[0] & 1) return -1;
  __builtin_memcpy(back, mac + 6, 6);
  __builtin_memcpy(back + 6, mac, 6);
  __u32 at = packet->l4, data = 0;
  __u32 header = (tcp.words >> 4) * 4U;
  if (packet->end > at + header) data = packet->end - at - header;
  __u32 acknowledged = bpf_htonl(bpf_ntohl(tcp.sequence) + 1 + data);
  __u16 flags_before = bpf_htons((__u16)(tcp.words << 8 | tcp.flags));
  __u16 flags_after = bpf_htons((__u16)(tcp.words << 8 | UM_FLAG_RST | UM_FLAG_ACK));
  __u32 sum = at + __builtin_offsetof(struct um_tcp_header, checksum);
  __u16 ports[2] = {tcp.destination, tcp.source};
  __u32 none = 0;
  if (bpf_l4_csum_replace(skb, sum, tcp.sequence, 0, 4) ||
      bpf_l4_csum_replace(skb, sum, tcp.acknowledged, acknowledged, 4) ||
      bpf_l4_csum_replace(skb, sum, flags_before, flags_after, 2) ||
      bpf_skb_store_bytes(skb, at, ports, sizeof ports, 0) ||
      bpf_skb_store_bytes(skb, at + 4, &none, 4, 0) ||
      bpf_skb_store_bytes(skb, at + 8, &acknowledged, 4, 0) ||
      bpf_skb_store_bytes(skb, at + 12, &flags_after, 2, 0) ||
      bpf_skb_store_bytes(skb, 0, back, sizeof back, 0))
    return -1;
  if (um_is_v4(&packet->from.address)) {
    __u32 addresses[2] = {packet->to.address.word[3], packet->from.address.word[3]};
    if (bpf_skb_store_bytes(skb, UM_ETHERNET + 12, addresses, sizeof addresses, 0)) return -1;
  } else {
    struct um_address addresses[2] = {packet->to.address, packet->from.address};
    if (bpf_skb_store_bytes(skb, UM_ETHERNET + 8, addresses, sizeof addresses, 0)) return -1;
  }
  return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

#endif
