// The fast path with one fault built in, for what must find it: its self-test. All else is the
// product's own code.

// clang-format off
#include "fastpath.bpf.c"
#include "wrong_fastpath.h"
// clang-format on

const volatile __u32 fault = UM_WRONG_NOTHING;
const volatile __u32 first = 0;  // the number of the connection from which on it has the fault

__u32 connections = 0;  // made so far

#define AF_INET6 10
#define TRIAL_PORT 7007  // where its listener is, if not at the proxy's

static __always_inline int is_wrong(__u32 what) { return fault == what && connections >= first; }

SEC("sockops")
int wrong_sock_ops(struct bpf_sock_ops* ops) {
  if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) __sync_fetch_and_add(&connections, 1);
  if (is_wrong(UM_WRONG_NOBODY_JOINS)) return 1;
  if (ops->op == BPF_SOCK_OPS_RTT_CB)
    um_acknowledged(ops);
  else if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB ||
           ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    um_established(ops);
  return 1;
}

// Who asked joins, whatever it is.
SEC("iter/tcp")
int wrong_join(struct bpf_iter__tcp* ctx) {
  struct sock_common* common = ctx->sk_common;
  if (!common) return 0;
  struct um_fast_socket* own = bpf_sk_storage_get(&um_fast_sockets, common, 0, 0);
  if (!own || own->state != UM_FAST_SETTLED) return 0;
  struct um_fast_key self = {};
  um_other_end(&own->peer, &self);
  own->state = UM_FAST_UNDECIDED;
  bpf_map_update_elem(&um_fast_peers, &self, common, BPF_NOEXIST);
  return 0;
}

static __always_inline struct sock* redirect_to(struct sk_msg_md* ctx, const struct sk_msg* message,
                                                const struct um_fast_key* to) {
  if (bpf_msg_redirect_hash(ctx, &um_fast_peers, (void*)to, BPF_F_INGRESS) != SK_PASS) return 0;
  return message->sk_redir;
}

// Without a look at anything.
static __always_inline int move(struct sk_msg_md* ctx, const struct sk_msg* message,
                                struct um_fast_socket* own) {
  __u32 size = ctx->size;
  struct sock* peer = redirect_to(ctx, message, &own->peer);
  if (peer) um_moved(own, peer, size);
  return SK_PASS;
}

static __always_inline void alter(struct sk_msg_md* ctx) {
  if (bpf_msg_pull_data(ctx, 0, 1, 0)) return;
  __u8* data = ctx->data;
  if ((void*)(data + 1) <= ctx->data_end) data[0] ^= 1;
}

static __always_inline int in_turns(struct sk_msg_md* ctx, const struct sk_msg* message,
                                    struct um_fast_socket* own) {
  __u32 size = ctx->size;
  struct sock* peer = redirect_to(ctx, message, &own->peer);
  if (!peer) return SK_PASS;
  if (peer->sk_backlog.rmem_alloc.counter > 0 && ++own->messages & 1) return um_turn(ctx, own);
  if (um_has_room(own, peer, size)) {
    um_moved(own, peer, size);
    return SK_PASS;
  }
  own->state = UM_FAST_TCP;
  return um_turn(ctx, own);
}

// A message of one byte is the self-test's greeting, until both ends have joined.
SEC("sk_msg")
int wrong_msg(struct sk_msg_md* ctx) {
  struct bpf_sock* sk = ctx->sk;
  if (!sk) return SK_PASS;
  struct sk_msg* message = bpf_cast_to_kern_ctx(ctx);
  struct um_fast_socket* own = bpf_sk_storage_get(&um_fast_sockets, sk, 0, 0);
  const struct tcp_sock* tcp = bpf_skc_to_tcp_sock(sk);
  if (!own || !tcp || message->sk_redir) return um_sends(ctx);
  const struct um_fast_config* config = um_fast_settings();
  int is_on = config && config->flags & UM_FAST_ON;
  if (ctx->size > 1 && (is_wrong(UM_WRONG_HELD) || (is_wrong(UM_WRONG_HELD_BY_TCP) && !is_on))) {
    bpf_msg_cork_bytes(ctx, 0x7fffffff);
    return SK_PASS;
  }
  // Right, but for that it wants to be asked again.
  if (is_wrong(UM_WRONG_HELD_BY_TCP) && own->state == UM_FAST_TCP) return SK_PASS;
  if (ctx->size <= 1 || own->state == UM_FAST_TCP) return um_sends(ctx);
  if (is_wrong(UM_WRONG_BY_TCP)) return SK_PASS;
  if (is_wrong(UM_WRONG_SAID_MOVED)) {
    own->state = UM_FAST_REDIRECT;
    own->sent_bytes += ctx->size;
    return SK_PASS;
  }
  if (is_wrong(UM_WRONG_NOT_COUNTED)) {
    redirect_to(ctx, message, &own->peer);
    return SK_PASS;
  }
  if (is_wrong(UM_WRONG_REFUSED) &&
      tcp->inet_conn.icsk_inet.sk.__sk_common.skc_state == BPF_TCP_CLOSE_WAIT)
    return SK_DROP;
  if ((is_wrong(UM_WRONG_UNBOUNDED) && is_on) || is_wrong(UM_WRONG_NEVER_OFF))
    return move(ctx, message, own);
  if (is_wrong(UM_WRONG_IN_TURNS)) return in_turns(ctx, message, own);
  int is_back = ctx->local_port == UM_PROXY_PORT || ctx->local_port == TRIAL_PORT;
  if (is_wrong(is_back ? UM_WRONG_ALTERED_BACK : UM_WRONG_ALTERED) ||
      (is_wrong(UM_WRONG_LARGE) && ctx->size > 65536) ||
      (is_wrong(UM_WRONG_IPV6) && ctx->family == AF_INET6))
    alter(ctx);
  if (is_wrong(UM_WRONG_LOST)) bpf_msg_pop_data(ctx, 0, 1, 0);
  return um_sends(ctx);
}
