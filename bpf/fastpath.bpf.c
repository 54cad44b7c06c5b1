// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
// The same-node fast path, of connections that last: sock_ops sees which do, an iterator lets both
// ends join, and sk_msg moves what they send to the other end's socket, past TCP. An object of its
// own, as it is optional: it needs a kernel that charges redirected data to the receiver (6.13),
// and reads structures of the kernel, which a program may only under the GPL.
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
#define O_NONBLOCK 04000

// ---- what is read of the kernel's structures (CO-RE: found by name) -------------------------

typedef struct {
  int counter;
} atomic_t;

typedef struct {
  long counter;
} atomic_long_t;

struct page_counter {
  atomic_long_t usage;  // pages
  unsigned long max;
  struct page_counter* parent;
} __attribute__((preserve_access_index));

struct mem_cgroup {
  struct page_counter memory;
} __attribute__((preserve_access_index));

struct file {
  unsigned int f_flags;
} __attribute__((preserve_access_index));

struct socket {
  struct file* file;
} __attribute__((preserve_access_index));

struct sock_common {
  volatile unsigned char skc_state;
} __attribute__((preserve_access_index));

struct sock {
  struct sock_common __sk_common;
  struct {
    atomic_t rmem_alloc;
  } sk_backlog;
  int sk_rcvbuf;
  int sk_rcvlowat;
  int sk_forward_alloc;
  struct mem_cgroup* sk_memcg;
  struct socket* sk_socket;
} __attribute__((preserve_access_index));

struct inet_sock {
  struct sock sk;
} __attribute__((preserve_access_index));

struct inet_connection_sock {
  struct inet_sock icsk_inet;
  void* icsk_ulp_ops;
} __attribute__((preserve_access_index));

struct tcp_sock {
  struct inet_connection_sock inet_conn;
  __u32 write_seq;
  __u32 copied_seq;
  __u32 rcv_nxt;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
  union {
    struct sock_common* sk_common;
  };
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

UM_HASH(um_fast_settled, __u64, __u32, 16384, BPF_F_NO_PREALLOC);
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

// ---- which connections last ----------------------------------------------------------------

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

// Either end's listener is: which of them it is nobody knows later on. A service's address stands
// for the listener where the way goes through the proxy.
static __always_inline int um_is_excluded(struct bpf_sock* sk, const struct um_fast_key* end) {
  struct um_destination listener = {
      .protocol = UM_TCP, .address = end->remote, .port = end->remote_port};
  if (bpf_map_lookup_elem(&um_fast_excluded, &listener)) return 1;
  listener.address = end->local;
  listener.port = end->local_port;
  if (bpf_map_lookup_elem(&um_fast_excluded, &listener)) return 1;
  if (!um_is_leg_to_proxy(end)) return 0;
  const struct um_socket* socket = bpf_sk_storage_get(&um_sockets, sk, 0, 0);
  if (!socket) return 0;
  listener = socket->service;
  return bpf_map_lookup_elem(&um_fast_excluded, &listener) != 0;
}

// Between workloads of this node, or on the way to the proxy.
static __always_inline int um_may_join(struct bpf_sock* sk, const struct um_fast_key* end,
                                       __u64 netns_cookie, const struct um_fast_config* config) {
  if (!(config->flags & UM_FAST_ON)) return 0;
  if (um_is_loopback(&end->local)) {
    if (!um_is_leg_to_proxy(end)) return 0;
  } else if (!um_are_on_this_node(end, netns_cookie)) {
    return 0;
  }
  return !(config->flags & UM_FAST_HAS_EXCLUDED) || !um_is_excluded(sk, end);
}

// The flag may be an earlier connection's of this socket.
static __always_inline void um_established(struct bpf_sock_ops* ops) {
  const struct um_fast_config* config = um_fast_settings();
  struct bpf_sock* sk = ops->sk;
  if (!config || !sk) return;
  struct um_fast_key end = {};
  um_read_ends(ops, &end);
  __u32 was = ops->bpf_sock_ops_cb_flags;
  __u32 flags = was & ~BPF_SOCK_OPS_RTT_CB_FLAG;
  if (um_may_join(sk, &end, bpf_get_netns_cookie(ops), config)) flags |= BPF_SOCK_OPS_RTT_CB_FLAG;
  if (flags != was) bpf_sock_ops_cb_flags_set(ops, flags);
}

// An acknowledgement that measures the round trip: most of them. Segments with data both ways stand
// for round trips. Whether it may join is judged again: that may have changed.
static __always_inline void um_acknowledged(struct bpf_sock_ops* ops) {
  const struct um_fast_config* config = um_fast_settings();
  __u32 out = ops->data_segs_out, in = ops->data_segs_in;
  if (!config) return;
  int has_settled = (out < in ? out : in) >= config->min_trips;
  if (!has_settled && out < UM_FAST_STREAM_SEGMENTS && in < UM_FAST_STREAM_SEGMENTS) return;
  bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
  struct bpf_sock* sk = ops->sk;
  if (!sk || !has_settled) return;
  __u64 cookie = bpf_get_netns_cookie(ops);
  struct um_fast_key end = {};
  um_read_ends(ops, &end);
  if (!um_may_join(sk, &end, cookie, config)) return;
  if (um_is_loopback(&end.local)) end.netns_cookie = cookie;
  struct um_fast_socket fresh = {.state = UM_FAST_SETTLED};
  um_other_end(&end, &fresh.peer);
  if (!bpf_sk_storage_get(&um_fast_sockets, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE)) return;
  __u32 one = 1;
  bpf_map_update_elem(&um_fast_settled, &cookie, &one, BPF_ANY);
}

// sock_ops at the cgroup of each workload and at the mesh's own, beside the mesh's others: notes
// which connections last, where both ends are here. Changes nothing of the connection. Agent gone:
// the same, and nobody joins.
SEC("sockops")
int um_fast_sock_ops(struct bpf_sock_ops* ops) {
  if (ops->op == BPF_SOCK_OPS_RTT_CB)
    um_acknowledged(ops);
  else if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB ||
           ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    um_established(ops);
  return 1;
}

// ---- joining -------------------------------------------------------------------------------

// The kernel's reader of a socket in a sockmap waits once, whatever it is woken for, and says
// EAGAIN then (tcp_msg_wait_data, Linux 6.18): no answer for an application that blocks.
static __always_inline int um_never_blocks(const struct sock* sk) {
  struct socket* socket = sk->sk_socket;
  if (!socket) return 0;  // nobody has accepted it
  struct file* file = socket->file;
  return file && file->f_flags & O_NONBLOCK;
}

// An application that waits for more than a byte (SO_RCVLOWAT) is not told of it in time.
static __always_inline int um_can_join(const struct tcp_sock* tcp) {
  const struct sock* sk = &tcp->inet_conn.icsk_inet.sk;
  return !tcp->inet_conn.icsk_ulp_ops && sk->sk_rcvlowat <= 1 && um_never_blocks(sk);
}

// Asks once more, for the next walk.
static __always_inline void um_ask_again(const struct um_fast_key* self) {
  const __u64* owner = &self->netns_cookie;
  if (!um_is_loopback(&self->local)) owner = bpf_map_lookup_elem(&um_fast_addresses, &self->local);
  if (!owner) return;
  __u64 cookie = *owner;
  __u32 one = 1;
  bpf_map_update_elem(&um_fast_settled, &cookie, &one, BPF_ANY);
}

// The sockets of one namespace, each of them locked. Who asked joins, or never will; or later,
// where its application has not read all: the kernel's reader takes what was redirected first.
SEC("iter/tcp")
int um_fast_join(struct bpf_iter__tcp* ctx) {
  struct sock_common* common = ctx->sk_common;
  if (!common) return 0;
  struct um_fast_socket* own = bpf_sk_storage_get(&um_fast_sockets, common, 0, 0);
  if (!own || own->state != UM_FAST_SETTLED) return 0;
  struct um_fast_key self = {};
  um_other_end(&own->peer, &self);
  const struct tcp_sock* tcp = bpf_skc_to_tcp_sock(common);
  if (tcp && tcp->rcv_nxt != tcp->copied_seq && own->messages < UM_FAST_LAST_WALK) {
    own->messages++;
    um_ask_again(&self);
    return 0;
  }
  own->state = UM_FAST_STAYS;
  if (!tcp || tcp->rcv_nxt != tcp->copied_seq || !um_can_join(tcp)) {
    um_count(UM_FASTPATH_NOT_JOINED);
    return 0;
  }
  own->state = UM_FAST_UNDECIDED;
  own->messages = 0;
  // Refused for a socket of MPTCP, and where its like is there already.
  if (bpf_map_update_elem(&um_fast_peers, &self, common, BPF_NOEXIST)) {
    own->state = UM_FAST_STAYS;
    um_count(UM_FASTPATH_NOT_JOINED);
    return 0;
  }
  um_count(UM_FASTPATH_JOINED);
  return 0;
}

// ---- sending -------------------------------------------------------------------------------

// For ever: the kernel need not ask us again for the next 2 GB.
static __always_inline int um_by_tcp(struct sk_msg_md* ctx, struct um_fast_socket* own) {
  own->state = UM_FAST_TCP;
  bpf_msg_apply_bytes(ctx, 0x7fffffff);
  return SK_PASS;
}

// TLS. The sockets may be given to the kernel's afterwards, which takes what was redirected for
// plain text.
static __always_inline int um_is_tls(const struct sk_msg_md* ctx) {
  const __u8* data = ctx->data;
  if ((void*)(data + 3) > ctx->data_end) return 0;
  return data[0] >= 20 && data[0] <= 23 && data[1] == 3 && data[2] <= 4;
}

// Whether an undecided socket looks for the other end now.
static __always_inline int um_is_time_to_look(struct um_fast_socket* own) {
  __u32 count = ++own->messages;
  return (count & (count - 1)) == 0;
}

#define UM_FAST_LEVELS 6
#define UM_FAST_SPARE_PAGES 256

// Whether the receiver's control groups allow it so much: else the sender would be told ENOMEM,
// where TCP waits. What the socket has in hand needs nobody's leave.
static __always_inline int um_has_memory(const struct sock* peer, __u32 size) {
  if (peer->sk_forward_alloc >= (int)size) return 1;
  if (!bpf_core_field_exists(peer->sk_memcg)) return 1;
  struct mem_cgroup* group = peer->sk_memcg;
  struct page_counter* counter = group ? &group->memory : 0;
  for (int level = 0; level < UM_FAST_LEVELS && counter; ++level) {
    if ((unsigned long)counter->usage.counter + size / 4096 + UM_FAST_SPARE_PAGES > counter->max)
      return 0;
    counter = counter->parent;
  }
  return 1;
}

// Half of its buffer, so that TCP, whose window comes out of the same, has the rest; one message at
// least. What the kernel takes for each message counts too, as if all that wait were as small as
// the smallest.
static __always_inline int um_has_room(struct um_fast_socket* own, const struct sock* peer,
                                       __u32 size) {
  __u32 waiting = (__u32)peer->sk_backlog.rmem_alloc.counter;
  __u32 room = (__u32)peer->sk_rcvbuf / (waiting == 0 ? 1 : 2);
  if (waiting == 0 || size < own->smallest) own->smallest = size;
  if (own->smallest == 0) return 0;
  __u64 messages = waiting / own->smallest + 1;
  return waiting + size + messages * UM_FAST_MESSAGE_BYTES <= room && um_has_memory(peer, size);
}

// One that was ended, or has ended its side, may send nothing, whatever the kernel's redirection
// would take.
static __always_inline int um_may_send(const struct tcp_sock* own) {
  __u8 state = own->inet_conn.icsk_inet.sk.__sk_common.skc_state;
  return state == BPF_TCP_ESTABLISHED || state == BPF_TCP_CLOSE_WAIT;
}

// The other end is the one that it was, and its application has read all that went by TCP: what is
// redirected comes after it. Both count in the sender's sequence numbers, which hold still while it
// redirects, and begin anew with another connection.
static __always_inline int um_may_receive(const struct tcp_sock* own, const struct tcp_sock* peer) {
  __u8 state = peer->inet_conn.icsk_inet.sk.__sk_common.skc_state;
  if (state != BPF_TCP_ESTABLISHED && state != BPF_TCP_FIN_WAIT1 && state != BPF_TCP_FIN_WAIT2)
    return 0;
  return peer->copied_seq == own->write_seq && !peer->inet_conn.icsk_ulp_ops;
}

static __always_inline void um_moved(struct um_fast_socket* own, struct sock* peer, __u32 size) {
  if (own->state == UM_FAST_UNDECIDED) um_count(UM_FASTPATH_REDIRECTED);
  own->state = UM_FAST_REDIRECT;
  own->sent_bytes += size;
  struct um_fast_socket* other = bpf_sk_storage_get(&um_fast_sockets, peer, 0, 0);
  if (other) other->received_bytes += size;
}

// A redirection cannot be taken back, but turned: out of the sender's own socket, by TCP. Not
// SK_PASS: that is in the map no more, since it is closed.
static __always_inline int um_turn(struct sk_msg_md* ctx, const struct um_fast_socket* own) {
  struct um_fast_key self = {};
  um_other_end(&own->peer, &self);
  return bpf_msg_redirect_hash(ctx, &um_fast_peers, &self, 0);
}

// To the other end, where it has joined and read all, and has room.
static __always_inline int um_redirect(struct sk_msg_md* ctx, const struct sk_msg* message,
                                       struct um_fast_socket* own, const struct tcp_sock* tcp) {
  __u32 size = ctx->size;
  int is_undecided = own->state == UM_FAST_UNDECIDED;
  if (bpf_msg_redirect_hash(ctx, &um_fast_peers, &own->peer, BPF_F_INGRESS) != SK_PASS) {
    if (is_undecided && own->messages < UM_FAST_LAST_MESSAGE) return SK_PASS;
    um_count(UM_FASTPATH_TO_TCP_NO_PEER);
    return um_by_tcp(ctx, own);
  }
  struct sock* peer = message->sk_redir;
  if (!peer) return SK_DROP;
  const struct tcp_sock* peer_tcp = bpf_skc_to_tcp_sock(peer);
  if (!peer_tcp) return SK_DROP;
  int may_receive = um_may_receive(tcp, peer_tcp);
  if (is_undecided && !may_receive) return um_turn(ctx, own);
  if (may_receive && um_has_room(own, peer, size)) {
    um_moved(own, peer, size);
    return SK_PASS;
  }
  um_count(may_receive ? UM_FASTPATH_TO_TCP_FULL : UM_FASTPATH_TO_TCP_UNSAFE);
  own->state = UM_FAST_TCP;
  return um_turn(ctx, own);
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
  return um_turn(ctx, own);
}

static __always_inline int um_sends(struct sk_msg_md* ctx) {
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
      !um_may_send(tcp) || um_is_tls(ctx)) {
    um_count(UM_FASTPATH_TO_TCP_UNSAFE);
    return um_by_tcp(ctx, own);
  }
  if (own->state == UM_FAST_UNDECIDED && !um_is_time_to_look(own)) return SK_PASS;
  return um_redirect(ctx, message, own, tcp);
}

// sk_msg of every socket in um_fast_peers: what it sends goes to the other end's socket, or by TCP.
// A message is moved as a whole, but for its rest where the kernel has no memory. Switched off,
// peer gone, no room: TCP, from then on. Agent gone: the same.
SEC("sk_msg")
int um_fast_msg(struct sk_msg_md* ctx) { return um_sends(ctx); }

char _license[] SEC("license") = "GPL";
