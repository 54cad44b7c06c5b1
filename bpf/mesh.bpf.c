// The programs of the mesh: at the cgroup of each enrolled workload, and at the mesh's own.
//
// None of them needs the agent: they and their maps are pinned. What they do not find, they refuse.
// Cgroup programs of a child run before those of its parents, and the last bpf_set_retval wins.

// clang-format off
#include "maps.h"
#include "udp_maps.h"
#include "decide.h"
#include "began.h"
#include "dns.h"
#include "udp.h"
#include "act.h"
#include <bpf/bpf_endian.h>
#include "ends.h"
#include "connections.h"
// clang-format on

#define EPERM 1
#define EACCES 13
#define ECONNREFUSED 111
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80  // and IP6T_SO_ORIGINAL_DST
#define LOOPBACK_IFINDEX 1

static __always_inline int um_refuse_as(__u32 counter, int error) {
  if (counter != UM_NO_COUNTER) um_count(counter);
  bpf_set_retval(-error);
  return 0;
}

static __always_inline int um_refuse(__u32 counter) { return um_refuse_as(counter, ECONNREFUSED); }

// ---- connect -------------------------------------------------------------------------------

static __always_inline int um_connect_mesh(const struct um_connect* in,
                                           struct um_decision* decision) {
  if (in->to.protocol == UM_UDP)
    um_decide_mesh_udp(in, decision);
  else
    um_decide_mesh(in, decision);
  um_count_rulings(decision);
  // Not ECONNREFUSED: the proxy must not take its client's lack of a permission for an endpoint's
  // failure, which would eject it for every other client.
  if (decision->action == UM_REFUSE) return um_refuse_as(decision->counter, EACCES);
  if (decision->counter != UM_NO_COUNTER) um_count(decision->counter);
  return 1;
}

// A socket bound to another device would send what is for lo there and hang.
static __always_inline int um_unbind_device(struct bpf_sock_addr* ctx, struct bpf_sock* sk) {
  __u32 device = sk->bound_dev_if;
  if (device == 0 || device == LOOPBACK_IFINDEX) return 1;
  char none[4] = {};
  return bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, none, 1) == 0;
}

// What was sent past TCP to a socket that has joined the fast path waits in a queue that the kernel
// empties as the socket is closed, and not before: another connection's reader would get it. One
// that has not joined begins anew.
static __always_inline int um_is_in_fast_path(struct bpf_sock* sk) {
  const struct um_fast_socket* fast = bpf_sk_storage_get(&um_fast_sockets, sk, 0, 0);
  if (!fast) return 0;
  if (fast->state >= UM_FAST_UNDECIDED) return 1;
  bpf_sk_storage_delete(&um_fast_sockets, sk);
  return 0;
}

// Decides, counts and remembers; true where the caller shall go on and act on `decision`.
static __always_inline int um_connect_workload(struct bpf_sock_addr* ctx, struct bpf_sock* sk,
                                               struct um_datagram* datagram,
                                               struct um_decision* decision) {
  const struct um_connect* in = &datagram->to;
  if (um_is_in_fast_path(sk)) return um_refuse_as(UM_CONNECTS_REFUSED_FAST_PATH, EPERM);
  // A socket can connect again (after AF_UNSPEC, or a refusal): what it remembers is over. One of
  // UDP that is refused stays connected where it was.
  struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  if (socket) {
    if (in->to.protocol != UM_UDP) socket->flags = 0;
  }

  datagram->port = bpf_htons((__u16)sk->src_port);
  um_decide_datagram(datagram, 1, decision);
  um_count_rulings(decision);
  if (decision->action == UM_REFUSE) {
    if (decision->counter == UM_CONNECTS_CANARY)
      return um_refuse_as(decision->counter, UM_CANARY_ERROR);
    um_report_denial(decision, 0, &in->to);
    return um_refuse(decision->counter);
  }
  if (socket) socket->flags = 0;
  if (decision->action == UM_PASS) {
    if (decision->counter != UM_NO_COUNTER) um_count(decision->counter);
    // Also what is left to its resolver, whose counter says why.
    if (decision->counter != UM_CONNECTS_LOCAL && in->to.protocol == UM_TCP)
      um_record_connect(ctx, in, decision);
    return 1;
  }
  if (decision->action == UM_REDIRECT && !um_unbind_device(ctx, sk))
    return um_refuse(UM_CONNECTS_REFUSED_BOUND_DEVICE);
  if (!socket) socket = bpf_sk_storage_get(&um_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!socket) return um_refuse(UM_CONNECTS_REFUSED_NO_MEMORY);
  socket->service = in->to;
  socket->flags = decision->action == UM_REDIRECT  ? UM_SOCKET_REDIRECTED
                  : decision->action == UM_RESOLVE ? UM_SOCKET_RESOLVING
                                                   : UM_SOCKET_BALANCED;
  if (decision->action == UM_BALANCE) {
    um_remember_affinity(decision);
    if (in->to.protocol == UM_TCP) um_record_connect(ctx, in, decision);
  }
  um_count(decision->counter);
  return 1;
}

static __always_inline int um_is_mesh_socket(struct bpf_sock* sk) {
  return bpf_sk_storage_get(&um_mesh_sockets, sk, 0, 0) != 0;
}

static __always_inline void um_read_connect4(struct bpf_sock_addr* ctx, struct um_connect* in) {
  in->netns_cookie = bpf_get_netns_cookie(ctx);
  um_mapped(&in->to.address, ctx->user_ip4);
  in->to.port = (__u16)ctx->user_port;
  in->to.protocol = ctx->type == SOCK_STREAM ? UM_TCP : UM_UDP;
  in->v4_only = 1;
}

static __always_inline void um_read_connect6(struct bpf_sock_addr* ctx, struct um_connect* in) {
  in->netns_cookie = bpf_get_netns_cookie(ctx);
  in->to.address.word[0] = ctx->user_ip6[0];
  in->to.address.word[1] = ctx->user_ip6[1];
  in->to.address.word[2] = ctx->user_ip6[2];
  in->to.address.word[3] = ctx->user_ip6[3];
  in->to.port = (__u16)ctx->user_port;
  in->to.protocol = ctx->type == SOCK_STREAM ? UM_TCP : UM_UDP;
}

static __always_inline int um_is_bound_elsewhere(struct bpf_sock* sk) {
  return sk->bound_dev_if != 0 && sk->bound_dev_if != LOOPBACK_IFINDEX;
}

static __always_inline int um_go4(struct bpf_sock_addr* ctx, const struct um_decision* decision) {
  if (decision->action == UM_REDIRECT) {
    ctx->user_ip4 = bpf_htonl(0x7f000001);
    ctx->user_port = bpf_htons(UM_PROXY_PORT);
  } else if (decision->action == UM_BALANCE || decision->action == UM_RESOLVE) {
    ctx->user_ip4 = decision->backend.address.word[3];
    ctx->user_port = decision->backend.port;
  }
  return 1;
}

static __always_inline int um_go6(struct bpf_sock_addr* ctx, const struct um_connect* in,
                                  const struct um_decision* decision) {
  if (decision->action == UM_REDIRECT) {
    int mapped = um_is_v4(&in->to.address);
    ctx->user_ip6[0] = 0;
    ctx->user_ip6[1] = 0;
    ctx->user_ip6[2] = mapped ? bpf_htonl(0xffff) : 0;
    ctx->user_ip6[3] = mapped ? bpf_htonl(0x7f000001) : bpf_htonl(1);
    ctx->user_port = bpf_htons(UM_PROXY_PORT);
  } else if (decision->action == UM_BALANCE || decision->action == UM_RESOLVE) {
    ctx->user_ip6[0] = decision->backend.address.word[0];
    ctx->user_ip6[1] = decision->backend.address.word[1];
    ctx->user_ip6[2] = decision->backend.address.word[2];
    ctx->user_ip6[3] = decision->backend.address.word[3];
    ctx->user_port = decision->backend.port;
  }
  return 1;
}

enum um_kind_of_connect { UM_JUDGED, UM_NOT_JUDGED, UM_NO_SUCH_PROTOCOL };

// Echo requests (sockets of ping) are of no policy's protocol. What else is no TCP and no UDP, as
// UDP-Lite, would pass by all that judges UDP.
static __always_inline int um_kind_of(struct bpf_sock_addr* ctx) {
  if (ctx->type == SOCK_STREAM || ctx->protocol == UM_UDP) return UM_JUDGED;
  if (ctx->type != SOCK_DGRAM) return UM_NOT_JUDGED;
  __u32 protocol = ctx->protocol;
  return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 ? UM_NOT_JUDGED
                                                                : UM_NO_SUCH_PROTOCOL;
}

// connect4 at a workload's cgroup: connect() of AF_INET sockets. May change the destination, and
// takes a redirected socket off its device. Agent gone: goes on with the last state; refuses what
// the proxy should serve once its heartbeat is 2 s old.
SEC("cgroup/connect4")
int um_connect4(struct bpf_sock_addr* ctx) {
  int kind = um_kind_of(ctx);
  if (kind == UM_NOT_JUDGED) return 1;
  if (kind == UM_NO_SUCH_PROTOCOL) return um_refuse(UM_DATAGRAMS_REFUSED_PROTOCOL);
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return um_refuse(UM_CONNECTS_REFUSED_NO_MEMORY);
  struct um_datagram in = {};
  um_read_connect4(ctx, &in.to);
  in.to.no_lo = um_is_bound_elsewhere(sk);
  struct um_decision decision = {};
  int goes = um_is_mesh_socket(sk) ? um_connect_mesh(&in.to, &decision)
                                   : um_connect_workload(ctx, sk, &in, &decision);
  if (!goes) return 0;
  return um_go4(ctx, &decision);
}

// connect6 at a workload's cgroup: connect() of AF_INET6 sockets, IPv4-mapped destinations among
// them. As connect4.
SEC("cgroup/connect6")
int um_connect6(struct bpf_sock_addr* ctx) {
  int kind = um_kind_of(ctx);
  if (kind == UM_NOT_JUDGED) return 1;
  if (kind == UM_NO_SUCH_PROTOCOL) return um_refuse(UM_DATAGRAMS_REFUSED_PROTOCOL);
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return um_refuse(UM_CONNECTS_REFUSED_NO_MEMORY);
  struct um_datagram in = {};
  um_read_connect6(ctx, &in.to);
  in.to.no_lo = um_is_bound_elsewhere(sk);
  struct um_decision decision = {};
  int goes = um_is_mesh_socket(sk) ? um_connect_mesh(&in.to, &decision)
                                   : um_connect_workload(ctx, sk, &in, &decision);
  if (!goes) return 0;
  return um_go6(ctx, &in.to, &decision);
}

// connect4/6 at the mesh's cgroup: the mesh's own sockets, in whatever namespace. Refuses what the
// namespace's workload may not reach; changes the destination of UDP to a service, of nothing else.
// Agent gone: goes on with the last state.
SEC("cgroup/connect4")
int um_mesh_connect4(struct bpf_sock_addr* ctx) {
  struct um_connect in = {};
  um_read_connect4(ctx, &in);
  struct um_decision decision = {};
  return um_connect_mesh(&in, &decision) && um_go4(ctx, &decision);
}

SEC("cgroup/connect6")
int um_mesh_connect6(struct bpf_sock_addr* ctx) {
  struct um_connect in = {};
  um_read_connect6(ctx, &in);
  struct um_decision decision = {};
  return um_connect_mesh(&in, &decision) && um_go6(ctx, &in, &decision);
}

// ---- getpeername ---------------------------------------------------------------------------

#define UM_SOCKET_ELSEWHERE (UM_SOCKET_REDIRECTED | UM_SOCKET_BALANCED | UM_SOCKET_RESOLVING)

static __always_inline const struct um_destination* um_asked_for(struct bpf_sock* sk) {
  struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  if (!socket || !(socket->flags & UM_SOCKET_ELSEWHERE)) return 0;
  return &socket->service;
}

// getpeername4/6 at a workload's cgroup: the application sees the service that it connected to.
// Agent gone: the same.
SEC("cgroup/getpeername4")
int um_getpeername4(struct bpf_sock_addr* ctx) {
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 1;
  const struct um_destination* service = um_asked_for(sk);
  if (!service) return 1;
  ctx->user_ip4 = service->address.word[3];
  ctx->user_port = service->port;
  return 1;
}

SEC("cgroup/getpeername6")
int um_getpeername6(struct bpf_sock_addr* ctx) {
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 1;
  const struct um_destination* service = um_asked_for(sk);
  if (!service) return 1;
  ctx->user_ip6[0] = service->address.word[0];
  ctx->user_ip6[1] = service->address.word[1];
  ctx->user_ip6[2] = service->address.word[2];
  ctx->user_ip6[3] = service->address.word[3];
  ctx->user_port = service->port;
  return 1;
}

// ---- the original destination, from the client's SYN to the proxy's accepted socket -----------

static __always_inline void um_client_end(struct bpf_sock_ops* ops, struct um_record_key* key) {
  key->netns_cookie = bpf_get_netns_cookie(ops);
  key->source.port = bpf_htons((__u16)ops->local_port);
  if (ops->family == AF_INET) {
    um_mapped(&key->source.address, ops->local_ip4);
  } else {
    key->source.address.word[0] = ops->local_ip6[0];
    key->source.address.word[1] = ops->local_ip6[1];
    key->source.address.word[2] = ops->local_ip6[2];
    key->source.address.word[3] = ops->local_ip6[3];
  }
}

static __always_inline void um_proxy_end(struct bpf_sock_ops* ops, struct um_record_key* key) {
  key->netns_cookie = bpf_get_netns_cookie(ops);
  key->source.port = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
  if (ops->family == AF_INET) {
    um_mapped(&key->source.address, ops->remote_ip4);
  } else {
    key->source.address.word[0] = ops->remote_ip6[0];
    key->source.address.word[1] = ops->remote_ip6[1];
    key->source.address.word[2] = ops->remote_ip6[2];
    key->source.address.word[3] = ops->remote_ip6[3];
  }
}

static __always_inline const struct um_socket* um_redirected(struct bpf_sock* sk) {
  const struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  return socket && (socket->flags & UM_SOCKET_REDIRECTED) ? socket : 0;
}

static __always_inline void um_see_connect(struct bpf_sock_ops* ops) {
  if (ops->remote_port != bpf_htonl(UM_PROXY_PORT)) {
    __u64 cookie = bpf_get_socket_cookie(ops);
    if (bpf_map_lookup_elem(&um_connections, &cookie))
      bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
    return;
  }
  struct bpf_sock* sk = ops->sk;
  if (!sk) return;
  const struct um_socket* socket = um_redirected(sk);
  if (!socket) return;
  struct um_record_key key = {};
  um_client_end(ops, &key);
  struct um_destination service = socket->service;
  if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG) ||
      bpf_map_update_elem(&um_records, &key, &service, BPF_ANY))
    um_count(UM_RECORDS_FULL);
  else
    um_count(UM_RECORDS_WRITTEN);
}

static __always_inline void um_see_redirected_close(struct bpf_sock_ops* ops) {
  struct bpf_sock* sk = ops->sk;
  if (!sk || !um_redirected(sk)) return;
  struct um_record_key key = {};
  um_client_end(ops, &key);
  if (bpf_map_delete_elem(&um_records, &key) == 0) um_count(UM_RECORDS_UNUSED);
}

// sock_ops at a workload's cgroup: a redirected socket leaves a record as it sends its SYN, and
// takes it back when it is closed before the proxy's end was established. No room: no record, and
// the proxy resets the connection, having no destination. Of all other connections it keeps the
// books (connections.h). Agent gone: the same.
SEC("sockops")
int um_sock_ops(struct bpf_sock_ops* ops) {
  if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
    um_see_connect(ops);
  } else if (ops->op == BPF_SOCK_OPS_STATE_CB) {
    __u32 from = ops->args[0], to = ops->args[1];
    if (ops->remote_port != bpf_htonl(UM_PROXY_PORT)) um_see_state(ops, from, to);
    // At TCP_CLOSE alone: until the proxy's end acknowledged the FIN it may still be established.
    else if (to == BPF_TCP_CLOSE)
      um_see_redirected_close(ops);
  } else if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && !um_is_to_itself(ops)) {
    if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG))
      return 1;
    um_record_accept(ops);
  }
  return 1;
}

// Who the client of a recorded workload's connection is, for its servers. No room: they know it by
// its address.
static __always_inline void um_record_client(struct bpf_sock_ops* ops) {
  __u64 cookie = bpf_get_netns_cookie(ops);
  const struct um_workload* client = um_find_workload(cookie, um_generation(um_config_flags()));
  if (!client || !(client->flags & UM_WORKLOAD_RECORDED)) return;
  struct um_flow_key key = {};
  um_own_end(ops, &key);
  if (bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG) ||
      bpf_map_update_elem(&um_clients, &key, &cookie, BPF_ANY))
    um_count(UM_FLOWS_FULL);
}

static __always_inline void um_forget_client(struct bpf_sock_ops* ops) {
  struct um_flow_key key = {};
  um_own_end(ops, &key);
  bpf_map_delete_elem(&um_clients, &key);
}

// Which end of a connection one of the mesh's own sockets is. Both ends may connect at once: this
// one is the client that it was.
static __always_inline void um_note_mesh_end(struct bpf_sock_ops* ops) {
  struct bpf_sock* sk = ops->sk;
  if (!sk) return;
  __u32* end = bpf_sk_storage_get(&um_mesh_sockets, sk, 0, 0);
  if (!end) return;
  if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
    *end = UM_MESH_CONNECTED;
  else if (*end == UM_MESH_MADE)
    *end = UM_MESH_ACCEPTED;
}

// sock_ops at the mesh's cgroup: the proxy's end of a redirected connection is established; the
// record moves into its storage. And which end each is, and who the gateway is, for the servers
// that it connects to. Agent gone: the same.
SEC("sockops")
int um_mesh_sock_ops(struct bpf_sock_ops* ops) {
  if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
    um_note_mesh_end(ops);
    um_record_client(ops);
    return 1;
  }
  if (ops->op == BPF_SOCK_OPS_STATE_CB) {
    if (ops->args[1] == BPF_TCP_CLOSE) um_forget_client(ops);
    return 1;
  }
  if (ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) return 1;
  um_note_mesh_end(ops);
  if (ops->local_port != UM_PROXY_PORT) return 1;
  struct bpf_sock* sk = ops->sk;
  if (!sk) return 1;
  struct um_record_key key = {};
  um_proxy_end(ops, &key);
  struct um_destination* record = bpf_map_lookup_elem(&um_records, &key);
  if (!record) {
    um_count(UM_ACCEPTED_WITHOUT_DESTINATION);
    return 1;
  }
  struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (socket) {
    socket->service = *record;
    socket->flags = UM_SOCKET_ACCEPTED;
  }
  um_count(socket ? UM_ACCEPTED_WITH_DESTINATION : UM_ACCEPTED_WITHOUT_DESTINATION);
  bpf_map_delete_elem(&um_records, &key);
  return 1;
}

struct um_sockaddr_in {
  __u16 family;
  __u16 port;
  __u32 address;
  __u8 zero[8];
};
struct um_sockaddr_in6 {
  __u16 family;
  __u16 port;
  __u32 flow;
  __u32 address[4];
  __u32 scope;
};

// The answer to a getsockopt: an address, as long as the caller's buffer.
static __always_inline int um_answer_address(struct bpf_sockopt* ctx,
                                             const struct um_destination* address) {
  void* value = ctx->optval;
  void* end = ctx->optval_end;
  if (um_is_v4(&address->address)) {
    struct um_sockaddr_in* in = value;
    if ((void*)(in + 1) > end) return 1;
    __builtin_memset(in, 0, sizeof *in);
    in->family = AF_INET;
    in->port = address->port;
    in->address = address->address.word[3];
    ctx->optlen = sizeof *in;
  } else {
    struct um_sockaddr_in6* in = value;
    if ((void*)(in + 1) > end) return 1;
    __builtin_memset(in, 0, sizeof *in);
    in->family = AF_INET6;
    in->port = address->port;
    in->address[0] = address->address.word[0];
    in->address[1] = address->address.word[1];
    in->address[2] = address->address.word[2];
    in->address[3] = address->address.word[3];
    ctx->optlen = sizeof *in;
  }
  ctx->retval = 0;
  return 1;
}

static __always_inline int um_is_resolver_option(const struct bpf_sockopt* ctx) {
  return ctx->level == SOL_IP && ctx->optname >= UM_SO_RESOLVER &&
         ctx->optname < UM_SO_RESOLVER + UM_DNS_SLOTS;
}

// getsockopt at the mesh's cgroup: SO_ORIGINAL_DST of an accepted socket that has one, for IPv4
// destinations at SOL_IP and IPv6 ones at SOL_IPV6; and UM_SO_RESOLVER of the responder's. One
// accepted on the proxy's port without a destination gets an error, whatever conntrack would
// answer. Touches nothing else: every other answer is the kernel's own. Agent gone: the same.
SEC("cgroup/getsockopt")
int um_mesh_getsockopt(struct bpf_sockopt* ctx) {
  if (um_is_resolver_option(ctx)) {
    struct bpf_sock* asked = ctx->sk;
    if (!asked || asked->src_port != UM_DNS_PORT) return 1;
    const struct um_destination* resolver =
        um_find_resolver(bpf_get_netns_cookie(ctx), (__u32)ctx->optname - UM_SO_RESOLVER);
    return resolver ? um_answer_address(ctx, resolver) : 1;
  }
  if (ctx->optname != SO_ORIGINAL_DST || (ctx->level != SOL_IP && ctx->level != SOL_IPV6)) {
    // The kernel shows us at most a page; length 0 leaves its own, longer answer in place.
    if (ctx->optlen > 4096) ctx->optlen = 0;
    return 1;
  }
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return 1;
  struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  if (!socket || !(socket->flags & UM_SOCKET_ACCEPTED)) return sk->src_port != UM_PROXY_PORT;
  if (um_is_v4(&socket->service.address) != (ctx->level == SOL_IP)) return 0;
  return um_answer_address(ctx, &socket->service);
}

// sock_create at the mesh's cgroup: flags the mesh's own sockets for ever, and what they accept, so
// that no program redirects them, wherever they are used. No memory: no socket.
SEC("cgroup/sock_create")
int um_mesh_sock_create(struct bpf_sock* sk) {
  __u32* flag = bpf_sk_storage_get(&um_mesh_sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!flag) return 0;
  *flag = UM_MESH_MADE;
  return 1;
}

char _license[] SEC("license") = "Apache-2.0";
