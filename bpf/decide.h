// What happens to a connection at either end: the whole decision, over plain structs, without
// helper calls.
//
// Compiles in the kernel and on the host. Whoever includes it provides the lookups first:
//   __u32                        um_config_flags(void)                       once for a decision
//   const struct um_workload*    um_find_workload(__u64 netns_cookie, __u32 generation)
//   int                          um_is_own_address(__u32 workload, const struct um_address*)
//   int                          um_find_service(const struct um_destination*,
//                                                struct um_service*)          0: there is none
//   int                          um_find_client_service(const struct um_client_service*,
//                                                       struct um_service*)   0: there is none
//   const struct um_service_range* um_find_service_range(void)                0: not known
//   const struct um_backend*     um_find_backend(__u32 choice, __u32 index)
//   int                          um_is_member(__u32 choice, const struct um_destination*)
//   const struct um_affinity*    um_find_affinity(const struct um_affinity_key*)
//   const struct um_peer*        um_find_peer(const struct um_address*, __u32 generation)
//   __u32                        um_find_block(const struct um_address*, __u32 generation)
//                                                                             a class
//   const struct um_verdict*     um_find_verdict(__u32 set, const struct um_verdict_key*,
//                                                __u32 generation)
//   const __u32*                 um_find_refusal(__u32 client, __u32 service) a policy's number
//   const __u64*                 um_find_client(const struct um_destination* from, to)
//                                                                             a netns cookie
//   __u64                        um_heartbeat(void), um_now(void)             nanoseconds
//   __u32                        um_random(void)
// Every doubt refuses: no workload, no verdict where a policy selects, a map that was full.
#ifndef UM_DECIDE_H
#define UM_DECIDE_H

#include "shared.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

// Looked at by the verifier once, not on every way through its callers: in all a quarter of the
// work. Such a function returns an int, asked or not, and looks whether its pointers are there:
// without what it needs, a decision refuses. Behind a pointer that it was given, kernel 6.1 takes
// no key of a map: those are copied.
#ifdef __bpf__
#define UM_APART __attribute__((noinline))
#else
#define UM_APART inline
#endif

#ifdef __BYTE_ORDER__
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define um_be32(host) __builtin_bswap32(host)
#define um_be16(host) ((__u16)__builtin_bswap16(host))
#else
#define um_be32(host) (host)
#define um_be16(host) (host)
#endif
#endif

struct um_connect {
  __u64 netns_cookie;
  struct um_destination to;
  __u8 v4_only;  // an AF_INET socket: cannot reach an IPv6 backend
  __u8 no_lo;    // cannot reach 127.0.0.0/8: bound to a device
  __u8 zero[2];
};

// What arrives at a workload's address: a SYN, or a datagram for an unconnected socket.
struct um_arrival {
  __u64 netns_cookie;
  struct um_destination from;
  struct um_destination to;
};

enum um_action {
  UM_PASS = 0,
  UM_REFUSE = 1,
  UM_REDIRECT = 2,  // to the proxy, in the same namespace
  UM_BALANCE = 3,   // to `backend`
  UM_RESOLVE = 4,   // to `backend`, where the responder knows which resolver is meant
};

#define UM_NO_COUNTER 0xffffffffU

// The client's own policy may rule, and that of its destination.
#define UM_MAX_RULINGS 2

struct um_decision {
  __u32 action;    // um_action
  __u32 counter;   // um_counter, or UM_NO_COUNTER
  __u32 workload;  // whose namespace it is; 0: nobody's
  __u32 rulings;   // how many policies ruled; the last of them refused, where one did
  struct um_verdict ruling[UM_MAX_RULINGS];
  struct um_destination backend;
  // Of a service with affinity: where the caller writes `backend` and the time (um_affinities).
  __u32 has_affinity;
  struct um_affinity_key affinity;
};

static __always_inline int um_is_v4(const struct um_address* a) {
  return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == um_be32(0xffff);
}

static __always_inline int um_is_loopback(const struct um_address* a) {
  if (um_is_v4(a)) return (a->word[3] & um_be32(0xff000000)) == um_be32(0x7f000000);
  return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 && a->word[3] == um_be32(1);
}

// The kernel takes a connect to 0.0.0.0 or :: for one to itself.
static __always_inline int um_is_unspecified(const struct um_address* a) {
  if (a->word[0] != 0 || a->word[1] != 0 || a->word[3] != 0) return 0;
  return a->word[2] == 0 || a->word[2] == um_be32(0xffff);
}

// Whose it is depends on the link: no policy can name it.
static __always_inline int um_is_link_local6(const struct um_address* a) {
  return (a->word[0] & um_be32(0xffc00000)) == um_be32(0xfe800000);
}

static __always_inline int um_is_link_local(const struct um_address* a) {
  if (um_is_v4(a)) return (a->word[3] & um_be32(0xffff0000)) == um_be32(0xa9fe0000);
  return um_is_link_local6(a);
}

// 0.0.0.0/8 and 240/4 (with broadcast) go with multicast: nothing that an endpoint may be.
static __always_inline int um_is_no_host(const struct um_address* a) {
  if (um_is_v4(a)) {
    __u32 first = a->word[3] & um_be32(0xff000000);
    return first == 0 || (a->word[3] & um_be32(0xe0000000)) == um_be32(0xe0000000);
  }
  return (a->word[0] & um_be32(0xff000000)) == um_be32(0xff000000);
}

static __always_inline int um_is_forbidden_upstream(const struct um_address* a) {
  return um_is_loopback(a) || um_is_unspecified(a) || um_is_link_local(a) || um_is_no_host(a);
}

// A stamp from the future is as good as one from the past: the proxy may write while we read.
static __always_inline int um_is_proxy_alive(__u64 stamp, __u64 now) {
  if (stamp == 0) return 0;
  __u64 distance = now > stamp ? now - stamp : stamp - now;
  return distance <= UM_HEARTBEAT_LIMIT_NS;
}

static __always_inline __u32 um_generation(__u32 config) {
  return config & UM_CONFIG_GENERATION ? 1 : 0;
}

static __always_inline void um_decided(struct um_decision* out, __u32 action, __u32 counter) {
  out->action = action;
  out->counter = counter;
}

static __always_inline void um_ruled(struct um_decision* out, const struct um_verdict* verdict) {
  __u32 at = out->rulings;
  if (at >= UM_MAX_RULINGS) return;
  out->ruling[at] = *verdict;
  out->rulings = at + 1;
}

// The policy that refused, or else let in last; 0: of none.
static __always_inline __u32 um_last_policy(const struct um_decision* decision) {
  if (decision->rulings > 1) return decision->ruling[1].policy;
  return decision->rulings ? decision->ruling[0].policy : 0;
}

enum um_ruling {
  UM_ALLOWED = 0,
  UM_DENIED = 1,
  UM_NO_VERDICT = 2,  // refuses too
};

static __always_inline __u32 um_rule(__u32 set, __u32 peer_class, const struct um_destination* to,
                                     __u32 config, struct um_decision* out) {
  struct um_verdict_key key = {};
  key.bits = UM_ONE_PORT;
  key.peer_class = um_be32(peer_class);
  key.protocol = to->protocol;
  key.port = to->port;
  const struct um_verdict* verdict = um_find_verdict(set, &key, um_generation(config));
  if (!verdict && peer_class) {
    key.peer_class = 0;
    verdict = um_find_verdict(set, &key, um_generation(config));
  }
  if (!verdict) return UM_NO_VERDICT;
  um_ruled(out, verdict);
  return verdict->allowed ? UM_ALLOWED : UM_DENIED;
}

static __always_inline __u32 um_class_of(const struct um_peer* peer,
                                         const struct um_address* address, __u32 config) {
  if (peer) return peer->peer_class;
  return config & UM_CONFIG_HAS_BLOCKS ? um_find_block(address, um_generation(config)) : 0;
}

static __always_inline __u32 um_class_of_client(const struct um_workload* client,
                                                const struct um_address* to) {
  return um_is_v4(to) ? client->class4 : client->class6;
}

static __always_inline int um_is_allowed(__u32 ruling, __u32 mesh, struct um_decision* out) {
  if (ruling == UM_ALLOWED) return 1;
  if (ruling == UM_DENIED)
    um_decided(out, UM_REFUSE, mesh ? UM_MESH_CONNECTS_DENIED_POLICY : UM_CONNECTS_DENIED_POLICY);
  else
    um_decided(out, UM_REFUSE,
               mesh ? UM_MESH_CONNECTS_DENIED_NO_VERDICT : UM_CONNECTS_DENIED_NO_VERDICT);
  return 0;
}

// The policies of the client and of one destination address: true when the client may go there,
// else `out` refuses.
UM_APART int um_may_reach(const struct um_workload* client, const struct um_destination* to,
                          __u32 mesh, __u32 config, struct um_decision* out) {
  if (!out) return 0;
  if (!client || !to) {
    um_decided(
        out, UM_REFUSE,
        mesh ? UM_MESH_CONNECTS_DENIED_UNKNOWN_WORKLOAD : UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
    return 0;
  }
  const struct um_peer* peer = um_find_peer(&to->address, um_generation(config));
  if (!peer && config & UM_CONFIG_STATE_INCOMPLETE) {
    um_decided(out, UM_REFUSE,
               mesh ? UM_MESH_CONNECTS_DENIED_MAP_FULL : UM_CONNECTS_DENIED_MAP_FULL);
    return 0;
  }
  if (client->egress) {
    __u32 peer_class = um_class_of(peer, &to->address, config);
    if (!um_is_allowed(um_rule(client->egress, peer_class, to, config, out), mesh, out)) return 0;
  }
  if (!peer || !peer->ingress) return 1;
  __u32 own_class = um_class_of_client(client, &to->address);
  return um_is_allowed(um_rule(peer->ingress, own_class, to, config, out), mesh, out);
}

// False where nothing is decided: the proxy is away, and this client goes on without it.
static __always_inline int um_decide_proxied(const struct um_workload* client, __u32 service,
                                             struct um_decision* out) {
  const __u32* refusal = um_find_refusal(client->id, service);
  if (refusal) {
    struct um_verdict denied = {.policy = *refusal};
    um_ruled(out, &denied);
    um_decided(out, UM_REFUSE, UM_CONNECTS_DENIED_POLICY);
    return 1;
  }
  if (client->flags & UM_WORKLOAD_REFUSALS_INCOMPLETE) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_DENIED_MAP_FULL);
    return 1;
  }
  if (um_is_proxy_alive(um_heartbeat(), um_now())) {
    um_decided(out, UM_REDIRECT, UM_CONNECTS_REDIRECTED);
    return 1;
  }
  if (client->flags & UM_WORKLOAD_BYPASS) return 0;
  um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_PROXY_AWAY);
  return 1;
}

// The client's own state of the service, where that depends on the client. What is not there did
// not fit: it refuses, since another client's backends would be wrong.
static __always_inline void um_service_of_client(__u32 client, const struct um_destination* to,
                                                 struct um_service* service) {
  struct um_client_service key = {.client = client, .service = *to};
  struct um_service own = {};
  if (um_find_client_service(&key, &own) && own.kind != UM_SERVICE_BY_CLIENT)
    *service = own;
  else
    service->kind = UM_SERVICE_REFUSED;
}

// Where the client went last, while that is a backend still and the time is not over.
static __always_inline int um_stick(__u32 choice, __u32 seconds, struct um_decision* out) {
  struct um_affinity_key key = out->affinity;
  const struct um_affinity* last = um_find_affinity(&key);
  if (!last) return 0;
  __u64 used = last->used, now = um_now();
  // Used by another CPU after we read the clock: that is now.
  if (now > used && now - used > (__u64)seconds * 1000000000ULL) return 0;
  struct um_destination backend = last->backend;
  if (!um_is_member(choice, &backend)) return 0;
  out->backend = backend;
  return 1;
}

// A backend of a service, TCP or UDP, into out->backend: 1. Else `out` refuses.
static __always_inline int um_choose(__u32 client, const struct um_destination* to,
                                     const struct um_service* service, struct um_decision* out) {
  if (service->kind != UM_SERVICE_BALANCE) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_DENIED_MAP_FULL);
    return 0;
  }
  // The column from the upper half, what decides in it from the lower.
  __u64 spot = (__u64)um_random() * service->columns;
  const struct um_backend* column = 0;
  if (service->columns) column = um_find_backend(service->number, (__u32)(spot >> 32));
  if (!column) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_NO_ENDPOINT);
    return 0;
  }
  if (column->affinity_seconds) {
    out->has_affinity = 1;
    out->affinity.client = client;
    out->affinity.service = column->service;
    out->affinity.v4 = um_is_v4(&to->address) ? 1 : 0;
    out->affinity.protocol = to->protocol;
    if (um_stick(service->number, column->affinity_seconds, out)) return 1;
  }
  if ((__u32)spot <= column->threshold)
    out->backend = column->first;
  else
    out->backend = column->second;
  if (out->backend.protocol) return 1;
  um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_NO_DESTINATION);
  return 0;
}

static __always_inline void um_decide_balanced(const struct um_workload* client,
                                               const struct um_connect* in,
                                               const struct um_service* service, __u32 config,
                                               struct um_decision* out) {
  if (!um_choose(client->id, &in->to, service, out)) return;
  if (in->v4_only && !um_is_v4(&out->backend.address)) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_NO_ENDPOINT);
    return;
  }
  // A workload may always talk to itself, also through one of its services.
  if (um_is_own_address(client->id, &out->backend.address) ||
      um_may_reach(client, &out->backend, 0, config, out))
    um_decided(out, UM_BALANCE, UM_CONNECTS_BALANCED);
}

static __always_inline int um_is_in_service_range(const struct um_address* a) {
  const struct um_service_range* range = um_find_service_range();
  if (!range || range->mask.word[0] == 0) return 0;
  for (int i = 0; i < 4; ++i)
    if ((a->word[i] & range->mask.word[i]) != range->base.word[i]) return 0;
  return 1;
}

static __always_inline int um_is_canary(const struct um_destination* to) {
  return um_is_v4(&to->address) && to->address.word[3] == um_be32(UM_CANARY_ADDRESS) &&
         to->port == um_be16(UM_CANARY_PORT);
}

// A connect of an enrolled workload's application.
UM_APART int um_decide_workload_by(__u32 config, const struct um_connect* in,
                                   struct um_decision* out) {
  if (!out) return 0;
  um_decided(out, UM_REFUSE, UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
  if (!in) return 0;
  const struct um_workload* client = um_find_workload(in->netns_cookie, um_generation(config));
  if (!client) return 0;
  out->workload = client->id;
  if (um_is_loopback(&in->to.address) || um_is_unspecified(&in->to.address) ||
      um_is_own_address(client->id, &in->to.address)) {
    if (um_is_canary(&in->to))
      um_decided(out, UM_REFUSE, UM_CONNECTS_CANARY);
    else
      um_decided(out, UM_PASS, UM_CONNECTS_LOCAL);
    return 0;
  }
  if (um_is_link_local6(&in->to.address)) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_LINK_LOCAL);
    return 0;
  }
  struct um_destination to = in->to;
  struct um_service service = {};
  if (um_find_service(&to, &service)) {
    int is_proxied = service.kind == UM_SERVICE_PROXY;
    if (is_proxied && um_decide_proxied(client, service.number, out)) return 0;
    if (is_proxied || service.kind == UM_SERVICE_BY_CLIENT)
      um_service_of_client(client->id, &in->to, &service);
    um_decide_balanced(client, in, &service, config, out);
    if (is_proxied && out->action == UM_BALANCE) out->counter = UM_CONNECTS_BYPASSED;
    return 0;
  }
  // It would leave for an address that is nobody's, and hang.
  if (um_is_in_service_range(&in->to.address)) {
    um_decided(out, UM_REFUSE, UM_CONNECTS_REFUSED_NO_ENDPOINT);
    return 0;
  }
  if (um_may_reach(client, &in->to, 0, config, out)) um_decided(out, UM_PASS, UM_CONNECTS_DIRECT);
  return 0;
}

static __always_inline void um_decide_workload(const struct um_connect* in,
                                               struct um_decision* out) {
  um_decide_workload_by(um_config_flags(), in, out);
}

// A connect of one of the mesh's own sockets, on behalf of the workload whose namespace it is in:
// never redirected, and it gains nothing that the workload does not have.
static __always_inline void um_decide_mesh(const struct um_connect* in, struct um_decision* out) {
  um_decided(out, UM_PASS, UM_NO_COUNTER);
  if (um_is_forbidden_upstream(&in->to.address)) {
    um_decided(out, UM_REFUSE, UM_MESH_CONNECTS_REFUSED_ADDRESS);
    return;
  }
  const __u32 config = um_config_flags();
  const struct um_workload* client = um_find_workload(in->netns_cookie, um_generation(config));
  if (!client) {
    um_decided(out, UM_REFUSE, UM_MESH_CONNECTS_DENIED_UNKNOWN_WORKLOAD);
    return;
  }
  if (um_is_own_address(client->id, &in->to.address)) {
    um_decided(out, UM_PASS, UM_MESH_CONNECTS_ALLOWED);
    return;
  }
  // The proxy goes to endpoints. Only of a service that was removed while a connection to it was
  // open does it know no more than the address.
  if (um_is_in_service_range(&in->to.address)) {
    um_decided(out, UM_REFUSE, UM_MESH_CONNECTS_REFUSED_ADDRESS);
    return;
  }
  if (um_may_reach(client, &in->to, 1, config, out))
    um_decided(out, UM_PASS, UM_MESH_CONNECTS_ALLOWED);
}

// What the server at `in->to` takes the client for: 1. Else `out` refuses.
static __always_inline int um_class_of_arrival(const struct um_arrival* in, __u32 config,
                                               __u32* peer_class, struct um_decision* out) {
  const __u64* recorded = um_find_client(&in->from, &in->to);
  if (recorded) {
    const struct um_workload* client = um_find_workload(*recorded, um_generation(config));
    if (client) {
      *peer_class = um_class_of_client(client, &in->to.address);
      return 1;
    }
    um_decided(out, UM_REFUSE, UM_ARRIVALS_DENIED_UNKNOWN_WORKLOAD);  // it has just ended
    return 0;
  }
  const struct um_peer* peer = um_find_peer(&in->from.address, um_generation(config));
  if (!peer && config & UM_CONFIG_STATE_INCOMPLETE) {
    um_decided(out, UM_REFUSE, UM_ARRIVALS_DENIED_MAP_FULL);
    return 0;
  }
  *peer_class = um_class_of(peer, &in->from.address, config);
  return 1;
}

// The server's end, whoever the client is.
UM_APART int um_decide_arrival_by(__u32 config, const struct um_arrival* in,
                                  struct um_decision* out) {
  if (!out) return 0;
  um_decided(out, UM_REFUSE, UM_ARRIVALS_DENIED_UNKNOWN_WORKLOAD);
  if (!in) return 0;
  const struct um_workload* server = um_find_workload(in->netns_cookie, um_generation(config));
  if (!server) return 0;
  um_decided(out, UM_PASS, UM_NO_COUNTER);
  out->workload = server->id;
  if (!server->ingress || um_is_loopback(&in->from.address) ||
      um_is_own_address(server->id, &in->from.address))
    return 0;
  if (um_is_link_local6(&in->from.address)) {
    um_decided(out, UM_REFUSE, UM_ARRIVALS_REFUSED_LINK_LOCAL);
    return 0;
  }
  __u32 peer_class = 0;
  if (!um_class_of_arrival(in, config, &peer_class, out)) return 0;
  __u32 ruling = um_rule(server->ingress, peer_class, &in->to, config, out);
  if (ruling == UM_ALLOWED)
    um_decided(out, UM_PASS, UM_ARRIVALS_ALLOWED);
  else
    um_decided(out, UM_REFUSE,
               ruling == UM_DENIED ? UM_ARRIVALS_DENIED_POLICY : UM_ARRIVALS_DENIED_NO_VERDICT);
  return 0;
}

static __always_inline void um_decide_arrival(const struct um_arrival* in,
                                              struct um_decision* out) {
  um_decide_arrival_by(um_config_flags(), in, out);
}

#endif
