// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// The same-node fast path: sock_ops lets both ends of a connection join, sk_msg moves what they
// send to the other end's socket, past TCP. An object of its own, as it is optional: it needs a
// kernel that charges redirected data to the receiver (6.13), and reads structures of the kernel,
// which a program may only under the GPL.
//
// Whatever is doubtful goes by TCP, which is always right.

// clang-format off
#include "maps.h"
#include "fastpath.h"
#include "decide.h"
#include "act.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
// clang-format on

#define AF_INET 2
#define SOCK_RCVBUF_LOCK 2  // the application set SO_RCVBUF

// ---- what is read of the kernel's structures (CO-RE: found by name) -------------------------

typedef struct {
  int counter;
} atomic_t;

struct sock {
  struct {
    atomic_t rmem_alloc;
  } sk_backlog;
  int sk_rcvbuf;
  __u8 sk_userlocks : 4;
} __attribute__((preserve_access_index));

struct inet_connection_sock {
  void* icsk_ulp_ops;
} __attribute__((preserve_access_index));

struct tcp_sock {
  struct inet_connection_sock inet_conn;
  __u64 bytes_sent;
  __u32 write_seq;
  __u32 snd_nxt;
} __attribute__((preserve_access_index));

struct sk_msg {
  struct sock* sk_redir;
} __attribute__((preserve_access_index));

extern void* bpf_cast_to_kern_ctx(void* ctx) __ksym;

// ---- maps ----------------------------------------------------------------------------------

struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 65536);
  __type(key, struct um_fast_key);
  __type(value, __u64);
} um_fast_peers SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct um_fast_port_key);
  __type(value, struct um_fast_port);
} um_fast_ports SEC(".maps");

UM_HASH(um_fast_addresses, struct um_address, __u64, 16384, BPF_F_NO_PREALLOC);
UM_HASH(um_fast_excluded, struct um_destination, __u32, 65536, BPF_F_NO_PREALLOC);

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct um_fast_config);
} um_fast_config SEC(".maps");

static __always_inline const struct um_fast_config* um_fast_settings(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&um_fast_config, &zero);
}

// ---- joining -------------------------------------------------------------------------------

static __always_inline void um_read_ends(struct bpf_sock_ops* ops, struct um_fast_key* key) {
  key->local_port = bpf_htons((__u16)ops->local_port);
  key->remote_port = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
  if (ops->family == AF_INET) {
    um_mapped(&key->local, ops->local_ip4);
    um_mapped(&key->remote, ops->remote_ip4);
    UM_KEEP_APART();
  } else {
    key->local.word[0] = ops->local_ip6[0];
    key->local.word[1] = ops->local_ip6[1];
    key->local.word[2] = ops->local_ip6[2];
    key->local.word[3] = ops->local_ip6[3];
    key->remote.word[0] = ops->remote_ip6[0];
    key->remote.word[1] = ops->remote_ip6[1];
    key->remote.word[2] = ops->remote_ip6[2];
    key->remote.word[3] = ops->remote_ip6[3];
  }
}

static __always_inline void um_listener_of(const struct um_fast_key* end, int active,
                                           struct um_fast_port_key* key) {
  key->netns_cookie = end->netns_cookie;
  key->listener.protocol = UM_TCP;
  key->listener.address = active ? end->remote : end->local;
  key->listener.port = active ? end->remote_port : end->local_port;
}

static __always_inline void um_other_end(const struct um_fast_key* end, struct um_fast_key* other) {
  other->netns_cookie = end->netns_cookie;
  other->local = end->remote;
  other->remote = end->local;
  other->local_port = end->remote_port;
  other->remote_port = end->local_port;
}

// A workload's own loopback is none of our business, but for the way to the proxy.
static __always_inline int um_is_leg_to_proxy(const struct um_fast_key* end) {
  return end->local_port == bpf_htons(UM_PROXY_PORT) ||
         end->remote_port == bpf_htons(UM_PROXY_PORT);
}

// Both ends are at addresses of workloads here, and ours is this namespace's. (Who pretends to one
// of another's addresses has no entry of its own.)
static __always_inline int um_are_on_this_node(const struct um_fast_key* end, __u64 netns_cookie) {
  const __u64* owner = bpf_map_lookup_elem(&um_fast_addresses, &end->local);
  if (!owner || *owner != netns_cookie) return 0;
  return bpf_map_lookup_elem(&um_fast_addresses, &end->remote) != 0;
}

// A service's address stands for the listener where the way goes through the proxy.
static __always_inline int um_is_excluded(struct bpf_sock* sk,
                                          const struct um_destination* listener) {
  if (listener->port != bpf_htons(UM_PROXY_PORT))
    return bpf_map_lookup_elem(&um_fast_excluded, listener) != 0;
  const struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  if (!socket) return 0;
  struct um_destination service = socket->service;
  return bpf_map_lookup_elem(&um_fast_excluded, &service) != 0;
}

// Client ports are mostly even.
static __always_inline int um_is_sample(const struct um_fast_port* port, __u16 client /* be16 */) {
  return port->samples < UM_FAST_FIRST_SAMPLES || (bpf_ntohs(client) & 0xe) == 0;
}

// Whether the port's connections are worth it. At the client's end also: whether this one shall be
// looked at when it closes.
static __always_inline int um_does_pay(struct bpf_sock_ops* ops, const struct um_fast_key* end,
                                       const struct um_fast_port_key* key, int active) {
  struct um_fast_port* port = bpf_map_lookup_elem(&um_fast_ports, key);
  if (!port) {
    // Nothing is known: who stays for long may have come to stay, so the first ones join.
    struct um_fast_port fresh = {.joins = 1};
    bpf_map_update_elem(&um_fast_ports, key, &fresh, BPF_NOEXIST);
    port = bpf_map_lookup_elem(&um_fast_ports, key);
    if (!port) return 0;
  }
  if (active && um_is_sample(port, end->local_port))
    bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
  return port->joins != 0;
}

static __always_inline void um_join(struct bpf_sock_ops* ops, struct bpf_sock* sk,
                                    struct um_fast_key* end, int active) {
  struct um_fast_socket fresh = {.active = (__u32)active};
  um_other_end(end, &fresh.peer);
  if (!bpf_sk_storage_get(&um_fast_sockets, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE)) return;
  // Refused for a socket of MPTCP or with an upper protocol, and where its like is there already.
  if (bpf_sock_hash_update(ops, &um_fast_peers, end, BPF_NOEXIST)) {
    bpf_sk_storage_delete(&um_fast_sockets, sk);
    um_count(UM_FASTPATH_NOT_JOINED);
    return;
  }
  um_count(UM_FASTPATH_JOINED);
}

static __always_inline void um_established(struct bpf_sock_ops* ops, int active) {
  const struct um_fast_config* config = um_fast_settings();
  if (!config || !(config->flags & UM_FAST_ON)) return;
  struct bpf_sock* sk = ops->sk;
  if (!sk) return;
  struct um_fast_key end = {};
  um_read_ends(ops, &end);
  __u64 cookie = bpf_get_netns_cookie(ops);
  if (um_is_loopback(&end.local)) {
    if (!um_is_leg_to_proxy(&end)) return;
    end.netns_cookie = cookie;
  } else if (!um_are_on_this_node(&end, cookie)) {
    return;
  }
  struct um_fast_port_key port = {};
  um_listener_of(&end, active, &port);
  if ((config->flags & UM_FAST_HAS_EXCLUDED) && um_is_excluded(sk, &port.listener)) return;
  if (um_does_pay(ops, &end, &port, active)) um_join(ops, sk, &end, active);
}

// ---- learning ------------------------------------------------------------------------------

// Data segments both ways stand for the round trips of a connection that went by TCP.
static __always_inline __u32 um_trips(struct bpf_sock_ops* ops, const struct um_fast_socket* fast) {
  __u32 out = ops->data_segs_out, in = ops->data_segs_in;
  __u32 trips = out < in ? out : in;
  // One that went over to TCP was no gain, however long it went on.
  if (fast) trips = fast->trips;
  return trips < UM_FAST_TRIPS_MAX ? trips : UM_FAST_TRIPS_MAX;
}

static __always_inline void um_learn(struct bpf_sock_ops* ops) {
  struct bpf_sock* sk = ops->sk;
  if (!sk) return;
  const struct um_fast_socket* fast = bpf_sk_storage_get(&um_fast_sockets, sk, 0, 0);
  if (fast && !fast->active) return;
  struct um_fast_key end = {};
  um_read_ends(ops, &end);
  if (um_is_loopback(&end.local)) end.netns_cookie = bpf_get_netns_cookie(ops);
  struct um_fast_port_key key = {};
  um_listener_of(&end, 1, &key);
  struct um_fast_port* port = bpf_map_lookup_elem(&um_fast_ports, &key);
  const struct um_fast_config* config = um_fast_settings();
  // A server's end has no such port at the other side.
  if (!port || !config || !um_is_sample(port, end.local_port)) return;
  __u32 trips16 = um_trips(ops, fast) * 16;
  // Two at once may lose one of their samples.
  port->trips16 = port->samples ? port->trips16 - port->trips16 / 8 + trips16 / 8 : trips16;
  port->samples++;
  port->joins = port->trips16 >= config->min_trips * 16;
}

// sock_ops at the cgroup of each workload and at the mesh's own, beside the mesh's others: as a
// connection is established its end joins, where both ends are here; as it closes, its port's
// record learns from it. Changes nothing of the connection. Agent gone: the same.
SEC("sockops")
int um_fast_sock_ops(struct bpf_sock_ops* ops) {
  if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
    um_established(ops, 1);
  else if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    um_established(ops, 0);
  else if (ops->op == BPF_SOCK_OPS_STATE_CB && ops->args[1] == BPF_TCP_CLOSE)
    um_learn(ops);
  return 1;
}

// ---- sending -------------------------------------------------------------------------------

// For ever: the kernel need not ask us again for the next 2 GB.
static __always_inline int um_by_tcp(struct sk_msg_md* ctx, struct um_fast_socket* own) {
  own->state = UM_FAST_TCP;
  bpf_msg_apply_bytes(ctx, 0x7fffffff);
  return SK_PASS;
}

// The application sent something before the socket joined (TFO), or what it sent is unknown.
static __always_inline int um_has_sent(const struct tcp_sock* tcp) {
  return tcp->bytes_sent != 0 || tcp->write_seq != tcp->snd_nxt;
}

// A TLS handshake. The sockets may be given to the kernel's TLS afterwards, which takes what was
// redirected for plain text.
static __always_inline int um_is_tls(const struct sk_msg_md* ctx) {
  const __u8* data = ctx->data;
  if ((void*)(data + 3) > ctx->data_end) return 0;
  return data[0] == 22 && data[1] == 3 && data[2] <= 4;
}

// How much may lie at a receiver, in bytes. An application that chose its buffer gets what it asked
// for (the kernel doubles it). Others: twice of what they start with; TCP would let it grow.
static __always_inline __u32 um_room(const struct sock* peer) {
  __u32 buffer = (__u32)peer->sk_rcvbuf;
  return BPF_CORE_READ_BITFIELD(peer, sk_userlocks) & SOCK_RCVBUF_LOCK ? buffer / 2 : buffer * 2;
}

static __always_inline int um_has_room(const struct sock* peer, __u32 size) {
  return (__u32)peer->sk_backlog.rmem_alloc.counter + size <= um_room(peer);
}

static __always_inline void um_moved(struct um_fast_socket* own, struct sock* peer, __u32 size) {
  own->sent_bytes += size;
  own->waits = 1;
  struct um_fast_socket* other = bpf_sk_storage_get(&um_fast_sockets, peer, 0, 0);
  if (!other) return;
  other->received_bytes += size;
  if (!other->waits) return;
  other->waits = 0;
  other->trips++;
}

// Out of the sender's own socket, by TCP. False: it is in the map no more, since it is closed.
static __always_inline int um_turn(struct sk_msg_md* ctx, const struct um_fast_socket* own) {
  struct um_fast_key self = {};
  um_other_end(&own->peer, &self);
  return bpf_msg_redirect_hash(ctx, &um_fast_peers, &self, 0) == SK_PASS;
}

// All of the message was counted as moved.
static __always_inline void um_uncount(struct sk_msg_md* ctx, const struct sk_msg* message,
                                       struct um_fast_socket* own, __u32 size) {
  own->sent_bytes -= size;
  if (bpf_msg_redirect_hash(ctx, &um_fast_peers, &own->peer, BPF_F_INGRESS) != SK_PASS) return;
  struct sock* peer = message->sk_redir;
  if (!peer) return;
  struct um_fast_socket* other = bpf_sk_storage_get(&um_fast_sockets, peer, 0, 0);
  if (other) other->received_bytes -= size;
}

// The kernel had no memory at the receiver for all of a message, and asks for its rest. That goes
// to the socket which it remembers and does not hold, whatever SK_PASS was meant to say: it is
// turned, or not sent. What went past TCP is read first, so that by TCP the rest is in order.
static __always_inline int um_rest(struct sk_msg_md* ctx, const struct sk_msg* message,
                                   struct um_fast_socket* own) {
  if (!own) return SK_DROP;
  if (own->state == UM_FAST_REDIRECT) {
    um_uncount(ctx, message, own, ctx->size);
    um_count(UM_FASTPATH_TO_TCP_FULL);
  }
  own->state = UM_FAST_TCP;
  return um_turn(ctx, own) ? SK_PASS : SK_DROP;
}

// sk_msg of every socket in um_fast_peers: what it sends goes to the other end's socket, or by TCP.
// A message is moved as a whole, but for its rest where the kernel has no memory. Switched off,
// peer gone, no room: TCP, from then on. Agent gone: the same.
SEC("sk_msg")
int um_fast_msg(struct sk_msg_md* ctx) {
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return SK_PASS;
  struct sk_msg* message = bpf_cast_to_kern_ctx(ctx);
  struct um_fast_socket* own = bpf_sk_storage_get(&um_fast_sockets, sk, 0, 0);
  if (message->sk_redir) return um_rest(ctx, message, own);
  if (!own) return SK_PASS;
  if (own->state == UM_FAST_TCP) return um_by_tcp(ctx, own);
  const struct um_fast_config* config = um_fast_settings();
  const struct tcp_sock* tcp = bpf_skc_to_tcp_sock(sk);
  if (!tcp || !config || !(config->flags & UM_FAST_ON) || tcp->inet_conn.icsk_ulp_ops ||
      um_is_tls(ctx) || (own->state == UM_FAST_UNDECIDED && um_has_sent(tcp))) {
    um_count(UM_FASTPATH_TO_TCP_UNSAFE);
    return um_by_tcp(ctx, own);
  }
  __u32 size = ctx->size;
  if (bpf_msg_redirect_hash(ctx, &um_fast_peers, &own->peer, BPF_F_INGRESS) != SK_PASS) {
    um_count(UM_FASTPATH_TO_TCP_NO_PEER);
    return um_by_tcp(ctx, own);
  }
  struct sock* peer = message->sk_redir;
  if (!peer) return SK_PASS;
  if (um_has_room(peer, size)) {
    if (own->state == UM_FAST_UNDECIDED) um_count(UM_FASTPATH_REDIRECTED);
    own->state = UM_FAST_REDIRECT;
    um_moved(own, peer, size);
    return SK_PASS;
  }
  // A redirection cannot be taken back, but turned.
  if (!um_turn(ctx, own)) um_moved(own, peer, size);
  um_count(UM_FASTPATH_TO_TCP_FULL);
  own->state = UM_FAST_TCP;
  return SK_PASS;
}

char _license[] SEC("license") = "GPL";
