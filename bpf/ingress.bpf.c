// The program of a workload's network namespace: what arrives there. One instance for each, as
// sk_lookup cannot tell where it runs.

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

const volatile __u64 um_netns_cookie = 0;

static __always_inline void um_read_arrival(struct bpf_sk_lookup* ctx, struct um_arrival* in) {
  in->netns_cookie = um_netns_cookie;
  in->from.protocol = in->to.protocol = (__u8)ctx->protocol;
  in->from.port = (__u16)ctx->remote_port;
  in->to.port = bpf_htons((__u16)ctx->local_port);
  if (ctx->family == AF_INET) {
    um_mapped(&in->from.address, ctx->remote_ip4);
    um_mapped(&in->to.address, ctx->local_ip4);
    UM_KEEP_APART();
    return;
  }
  in->from.address.word[0] = ctx->remote_ip6[0];
  in->from.address.word[1] = ctx->remote_ip6[1];
  in->from.address.word[2] = ctx->remote_ip6[2];
  in->from.address.word[3] = ctx->remote_ip6[3];
  in->to.address.word[0] = ctx->local_ip6[0];
  in->to.address.word[1] = ctx->local_ip6[1];
  in->to.address.word[2] = ctx->local_ip6[2];
  in->to.address.word[3] = ctx->local_ip6[3];
}

// sk_lookup in a workload's namespace: a SYN (or the ACK that ends a handshake with a SYN cookie),
// and every datagram that is not for a connected socket. Passes or drops (the client gets a reset,
// or port unreachable). Agent gone: goes on with the last state.
SEC("sk_lookup")
int um_sk_lookup(struct bpf_sk_lookup* ctx) {
  struct um_arrival in = {};
  um_read_arrival(ctx, &in);
  struct um_decision decision = {};
  if (in.to.protocol == UM_UDP)
    um_decide_datagram_arrival(&in, &decision);
  else
    um_decide_arrival(&in, &decision);
  um_count_rulings(&decision);
  if (decision.counter != UM_NO_COUNTER) um_count(decision.counter);
  if (decision.action != UM_REFUSE) return SK_PASS;
  um_report_denial(&decision, &in.from, &in.to);
  return SK_DROP;
}

char _license[] SEC("license") = "Apache-2.0";
