// UDP, at the cgroup of each enrolled workload and at the mesh's own: what unconnected sockets
// send, and whose it looks like when they receive. Sockets that connect are judged in mesh.bpf.c.
//
// As there: all is pinned, none of it needs the agent, and what is not found is refused.

// clang-format off
#include "maps.h"
#include "udp_maps.h"
#include "decide.h"
#include "began.h"
#include "dns.h"
#include "udp.h"
#include "act.h"
#include <bpf/bpf_endian.h>
// clang-format on

#define EACCES 13
#define ECONNREFUSED 111
#define LOOPBACK_IFINDEX 1

#define UM_SOCKET_ELSEWHERE (UM_SOCKET_BALANCED | UM_SOCKET_RESOLVING)

static __always_inline int um_is_mesh_socket(struct bpf_sock* sk) {
  return bpf_sk_storage_get(&um_mesh_sockets, sk, 0, 0) != 0;
}

// Where a socket is connected, in the words of a datagram to or from an IPv4 (or mapped) address.
static __always_inline int um_is_peer4(struct bpf_sock* sk, __u32 ip, __u16 port) {
  return sk->state == BPF_TCP_ESTABLISHED && sk->dst_ip4 == ip && sk->dst_port == port;
}

static __always_inline int um_is_peer6(struct bpf_sock* sk, const struct um_address* ip,
                                       __u16 port) {
  if (sk->state != BPF_TCP_ESTABLISHED || sk->dst_port != port) return 0;
  if (sk->dst_ip6[0] != ip->word[0] || sk->dst_ip6[1] != ip->word[1]) return 0;
  return sk->dst_ip6[2] == ip->word[2] && sk->dst_ip6[3] == ip->word[3];
}

// The service (or resolver) that a connected socket asked for.
static __always_inline const struct um_destination* um_connected_service(struct bpf_sock* sk) {
  if (sk->state != BPF_TCP_ESTABLISHED) return 0;
  const struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  if (!socket || !(socket->flags & UM_SOCKET_ELSEWHERE)) return 0;
  return &socket->service;
}

// ---- sending -------------------------------------------------------------------------------

static __always_inline __u32 um_counter_of(const struct um_decision* decision) {
  switch (decision->counter) {
    case UM_CONNECTS_LOCAL:
      return UM_DATAGRAMS_LOCAL;
    case UM_CONNECTS_DIRECT:
      return UM_DATAGRAMS_ALLOWED;
    case UM_CONNECTS_BALANCED:
      return UM_DATAGRAMS_BALANCED;
    case UM_CONNECTS_REFUSED_NO_ENDPOINT:
      return UM_DATAGRAMS_REFUSED_NO_ENDPOINT;
    case UM_DNS_REDIRECTED:
      return UM_DATAGRAMS_RESOLVED;
  }
  // What was counted as such for a connect is the reason of a datagram too.
  return decision->action == UM_REFUSE ? UM_DATAGRAMS_DENIED : decision->counter;
}

// EPERM, as the kernel says of a datagram that a filter drops; ECONNREFUSED where nobody is there.
static __always_inline int um_refuse_datagram(__u32 counter) {
  um_count(counter);
  if (counter == UM_DATAGRAMS_REFUSED_NO_ENDPOINT) bpf_set_retval(-ECONNREFUSED);
  return 0;
}

static __always_inline int um_send(const struct um_datagram* in, struct um_decision* decision) {
  um_decide_datagram(in, 0, decision);
  um_count_rulings(decision);
  __u32 counter = um_counter_of(decision);
  if (decision->action == UM_REFUSE) return um_refuse_datagram(counter);
  if (counter != UM_NO_COUNTER) um_count(counter);
  if (decision->action == UM_BALANCE) um_remember_affinity(decision);
  return 1;
}

// A socket of the mesh: the responder's answer, which stays in the workload, or what could as well
// have been connected.
static __always_inline int um_send_mesh(struct bpf_sock* sk, const struct um_connect* in) {
  if (sk->src_port == UM_DNS_PORT) {
    if (um_is_loopback(&in->to.address)) return 1;
    const struct um_workload* client =
        um_find_workload(in->netns_cookie, um_generation(um_config_flags()));
    if (client) {
      if (um_is_own_address(client->id, &in->to.address)) return 1;
    }
  }
  struct um_decision decision = {};
  um_decide_mesh(in, &decision);
  um_count_rulings(&decision);
  if (decision.counter != UM_NO_COUNTER) um_count(decision.counter);
  if (decision.action != UM_REFUSE) return 1;
  bpf_set_retval(-EACCES);
  return 0;
}

static __always_inline void um_read_send4(struct bpf_sock_addr* ctx, struct bpf_sock* sk,
                                          struct um_datagram* in) {
  in->to.netns_cookie = bpf_get_netns_cookie(ctx);
  um_mapped(&in->to.to.address, ctx->user_ip4);
  in->to.to.port = (__u16)ctx->user_port;
  in->to.to.protocol = UM_UDP;
  in->to.v4_only = 1;
  in->to.no_lo = sk->bound_dev_if > LOOPBACK_IFINDEX;
  in->socket = bpf_get_socket_cookie(ctx);
  in->port = bpf_htons((__u16)sk->src_port);
}

static __always_inline void um_read_send6(struct bpf_sock_addr* ctx, struct bpf_sock* sk,
                                          struct um_datagram* in) {
  in->to.netns_cookie = bpf_get_netns_cookie(ctx);
  in->to.to.address.word[0] = ctx->user_ip6[0];
  in->to.to.address.word[1] = ctx->user_ip6[1];
  in->to.to.address.word[2] = ctx->user_ip6[2];
  in->to.to.address.word[3] = ctx->user_ip6[3];
  in->to.to.port = (__u16)ctx->user_port;
  in->to.to.protocol = UM_UDP;
  in->socket = bpf_get_socket_cookie(ctx);
  in->port = bpf_htons((__u16)sk->src_port);
}

// sendmsg4 at a workload's cgroup: sendto() of an unconnected socket, IPv4-mapped destinations of
// AF_INET6 sockets among them; and what a connected one sends with an address (an AF_INET6 one that
// is connected to a mapped address: always). May change the destination. Agent gone: goes on with
// the last state.
SEC("cgroup/sendmsg4")
int um_sendmsg4(struct bpf_sock_addr* ctx) {
  // No address: to whom the socket was allowed to connect.
  if (ctx->user_port == 0) return 1;
  struct bpf_sock* sk = ctx->sk;
  if (!sk || ctx->protocol != UM_UDP) return um_refuse_datagram(UM_DATAGRAMS_REFUSED_PROTOCOL);
  struct um_datagram in = {};
  um_read_send4(ctx, sk, &in);
  if (um_is_mesh_socket(sk)) return um_send_mesh(sk, &in.to);
  in.own_peer = um_is_peer4(sk, in.to.to.address.word[3], in.to.to.port);
  const struct um_destination* service = um_connected_service(sk);
  if (service) {
    if (um_is_same(service, &in.to.to)) {  // where it is connected, by the name that it knows
      ctx->user_ip4 = sk->dst_ip4;
      ctx->user_port = sk->dst_port;
      return 1;
    }
  }
  struct um_decision decision = {};
  if (!um_send(&in, &decision)) return 0;
  if (decision.action == UM_BALANCE || decision.action == UM_RESOLVE) {
    ctx->user_ip4 = decision.backend.address.word[3];
    ctx->user_port = decision.backend.port;
  }
  return 1;
}

// sendmsg6 at a workload's cgroup: as sendmsg4, for destinations that are not mapped ones. The
// kernel takes no mapped address for them.
SEC("cgroup/sendmsg6")
int um_sendmsg6(struct bpf_sock_addr* ctx) {
  if (ctx->user_port == 0) return 1;
  struct bpf_sock* sk = ctx->sk;
  if (!sk || ctx->protocol != UM_UDP) return um_refuse_datagram(UM_DATAGRAMS_REFUSED_PROTOCOL);
  struct um_datagram in = {};
  um_read_send6(ctx, sk, &in);
  if (um_is_mesh_socket(sk)) return um_send_mesh(sk, &in.to);
  in.own_peer = um_is_peer6(sk, &in.to.to.address, in.to.to.port);
  const struct um_destination* service = um_connected_service(sk);
  if (service) {
    if (um_is_same(service, &in.to.to)) {
      ctx->user_ip6[0] = sk->dst_ip6[0];
      ctx->user_ip6[1] = sk->dst_ip6[1];
      ctx->user_ip6[2] = sk->dst_ip6[2];
      ctx->user_ip6[3] = sk->dst_ip6[3];
      ctx->user_port = sk->dst_port;
      return 1;
    }
  }
  struct um_decision decision = {};
  if (!um_send(&in, &decision)) return 0;
  if (decision.action != UM_BALANCE) return 1;
  if (um_is_v4(&decision.backend.address))
    return um_refuse_datagram(UM_DATAGRAMS_REFUSED_NO_ENDPOINT);
  ctx->user_ip6[0] = decision.backend.address.word[0];
  ctx->user_ip6[1] = decision.backend.address.word[1];
  ctx->user_ip6[2] = decision.backend.address.word[2];
  ctx->user_ip6[3] = decision.backend.address.word[3];
  ctx->user_port = decision.backend.port;
  return 1;
}

// sendmsg4/6 at the mesh's cgroup: the mesh's own sockets, in whatever namespace. Changes nothing,
// refuses what the namespace's workload may not reach. Agent gone: goes on with the last state.
SEC("cgroup/sendmsg4")
int um_mesh_sendmsg4(struct bpf_sock_addr* ctx) {
  if (ctx->user_port == 0) return 1;
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 0;
  struct um_datagram in = {};
  um_read_send4(ctx, sk, &in);
  return um_send_mesh(sk, &in.to);
}

SEC("cgroup/sendmsg6")
int um_mesh_sendmsg6(struct bpf_sock_addr* ctx) {
  if (ctx->user_port == 0) return 1;
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 0;
  struct um_datagram in = {};
  um_read_send6(ctx, sk, &in);
  return um_send_mesh(sk, &in.to);
}

// ---- receiving -----------------------------------------------------------------------------

// By which address the application knows who sent this: 1. 0: by his own.
static __always_inline int um_known_as(struct bpf_sock_addr* ctx, const struct um_destination* from,
                                       struct um_destination* known) {
  if (from->port == bpf_htons(UM_DNS_PORT) && um_is_v4(&from->address) &&
      (from->address.word[3] & bpf_htonl(0xffffff00)) == bpf_htonl(0x7f350000)) {
    const struct um_destination* resolver =
        um_find_resolver(bpf_get_netns_cookie(ctx), bpf_ntohl(from->address.word[3]) & 0xff);
    if (!resolver) return 0;
    *known = *resolver;
    return 1;
  }
  struct um_udp_choice_key key = {
      .socket = bpf_get_socket_cookie(ctx), .at = *from, .way = UM_FROM_BACKEND};
  const struct um_udp_choice* choice = um_find_udp_choice(&key);
  if (!choice) return 0;
  *known = choice->other;
  return 1;
}

// recvmsg4/6 at a workload's cgroup: the application sees the service, or the resolver, that it
// asked. Changes nothing else. Agent gone: the same.
SEC("cgroup/recvmsg4")
int um_recvmsg4(struct bpf_sock_addr* ctx) {
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 1;
  struct um_destination from = {.port = (__u16)ctx->user_port, .protocol = UM_UDP};
  um_mapped(&from.address, ctx->user_ip4);
  const struct um_destination* service = um_connected_service(sk);
  struct um_destination known = {};
  if (service && um_is_peer4(sk, from.address.word[3], from.port))
    known = *service;
  else if (!um_known_as(ctx, &from, &known))
    return 1;
  ctx->user_ip4 = known.address.word[3];
  ctx->user_port = known.port;
  return 1;
}

SEC("cgroup/recvmsg6")
int um_recvmsg6(struct bpf_sock_addr* ctx) {
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 1;
  struct um_destination from = {.port = (__u16)ctx->user_port, .protocol = UM_UDP};
  from.address.word[0] = ctx->user_ip6[0];
  from.address.word[1] = ctx->user_ip6[1];
  from.address.word[2] = ctx->user_ip6[2];
  from.address.word[3] = ctx->user_ip6[3];
  const struct um_destination* service = um_connected_service(sk);
  struct um_destination known = {};
  if (service && um_is_peer6(sk, &from.address, from.port))
    known = *service;
  else if (!um_known_as(ctx, &from, &known))
    return 1;
  ctx->user_ip6[0] = known.address.word[0];
  ctx->user_ip6[1] = known.address.word[1];
  ctx->user_ip6[2] = known.address.word[2];
  ctx->user_ip6[3] = known.address.word[3];
  ctx->user_port = known.port;
  return 1;
}

char _license[] SEC("license") = "Apache-2.0";
