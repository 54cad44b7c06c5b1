// Which of a workload's queries go to the mesh's responder instead of their resolver.
//
// Included after decide.h; as there, whoever includes it provides the lookups first:
//   const struct um_destination* um_find_resolver(__u64 netns_cookie, __u32 slot)
//   const struct um_destination* um_take_resolver(__u64 netns_cookie, __u32 slot,
//                                                 const struct um_destination*)
// No doubt refuses here: the policy has judged the way to the resolver already, and a query that
// does not go to the responder goes where the application sent it.
#ifndef UM_DNS_H
#define UM_DNS_H

#define UM_DNS_PROBES 8

static __always_inline int um_is_same(const struct um_destination* a,
                                      const struct um_destination* b) {
  if (a->address.word[0] != b->address.word[0] || a->address.word[1] != b->address.word[1])
    return 0;
  if (a->address.word[2] != b->address.word[2] || a->address.word[3] != b->address.word[3])
    return 0;
  return a->port == b->port && a->protocol == b->protocol;
}

// The slots of a workload are never given back: two resolvers that want the same one lie side by
// side, and what was found once is found again. Negative: there is none.
UM_APART int um_resolver_slot(__u64 netns_cookie, const struct um_address* at, __u16 port) {
  if (!at) return -1;
  struct um_destination resolver = {.address = *at, .port = port};
  __u32 hash = at->word[0] ^ at->word[1] ^ at->word[2] ^ at->word[3];
  hash = (hash ^ hash >> 16 ^ hash >> 8) * 0x9e3779b1U;
  for (__u32 i = 0; i < UM_DNS_PROBES; ++i) {
    __u32 slot = ((hash >> 24) + i) % UM_DNS_SLOTS;
    const struct um_destination* there = um_find_resolver(netns_cookie, slot);
    if (!there) there = um_take_resolver(netns_cookie, slot, &resolver);
    if (!there) return -1;
    if (um_is_same(there, &resolver)) return (int)slot;
  }
  return -1;
}

// After um_decide_workload: what may leave for port 53 of somebody else.
UM_APART int um_decide_resolver(const struct um_connect* in, struct um_decision* out) {
  if (!in || !out) return 0;
  if (in->to.port != um_be16(53)) return 0;
  if (out->action != UM_BALANCE && (out->action != UM_PASS || out->counter == UM_CONNECTS_LOCAL))
    return 0;
  const struct um_workload* client =
      um_find_workload(in->netns_cookie, um_generation(um_config_flags()));
  if (!client || !(client->flags & UM_WORKLOAD_DNS)) return 0;
  if (!um_is_proxy_alive(um_heartbeat(), um_now())) {
    out->counter = UM_DNS_LEFT_PROXY_AWAY;
    return 0;
  }
  if (in->no_lo) {
    out->counter = UM_DNS_LEFT_BOUND_DEVICE;
    return 0;
  }
  // An IPv6 socket reaches 127.53.0.0 only where it may speak IPv4, which no program can see.
  if (!um_is_v4(&in->to.address)) {
    out->counter = UM_DNS_LEFT_IPV6;
    return 0;
  }
  // The responder could not ask it: the mesh's own sockets may not go there.
  if (um_is_link_local(&in->to.address)) {
    out->counter = UM_DNS_LEFT_LINK_LOCAL;
    return 0;
  }
  int slot = um_resolver_slot(in->netns_cookie, &in->to.address, in->to.port);
  if (slot < 0) {
    out->counter = UM_DNS_LEFT_NO_SLOT;
    return 0;
  }
  um_decided(out, UM_RESOLVE, UM_DNS_REDIRECTED);
  out->backend = (struct um_destination){};
  out->backend.address.word[2] = um_be32(0xffff);
  out->backend.address.word[3] = um_be32(0x7f350000U | (__u32)slot);
  out->backend.port = um_be16(UM_DNS_PORT);
  out->backend.protocol = in->to.protocol;
  return 0;
}

#endif
