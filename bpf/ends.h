// The two ends of the socket that a sock_ops program runs for. Included after act.h.
#ifndef UM_ENDS_H
#define UM_ENDS_H

#define AF_INET 2

static __always_inline void um_own_end(struct bpf_sock_ops* ops, struct um_flow_key* key) {
  key->from.protocol = key->to.protocol = UM_TCP;
  key->from.port = bpf_htons((__u16)ops->local_port);
  key->to.port = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
  if (ops->family == AF_INET) {
    um_mapped(&key->from.address, ops->local_ip4);
    um_mapped(&key->to.address, ops->remote_ip4);
    UM_KEEP_APART();
    return;
  }
  key->from.address.word[0] = ops->local_ip6[0];
  key->from.address.word[1] = ops->local_ip6[1];
  key->from.address.word[2] = ops->local_ip6[2];
  key->from.address.word[3] = ops->local_ip6[3];
  key->to.address.word[0] = ops->remote_ip6[0];
  key->to.address.word[1] = ops->remote_ip6[1];
  key->to.address.word[2] = ops->remote_ip6[2];
  key->to.address.word[3] = ops->remote_ip6[3];
}

// Both ends have one address: a workload talks to itself.
static __always_inline int um_is_to_itself(struct bpf_sock_ops* ops) {
  struct um_flow_key ends = {};
  um_own_end(ops, &ends);
  for (int i = 0; i < 4; ++i)
    if (ends.from.address.word[i] != ends.to.address.word[i]) return 0;
  return 1;
}

#endif
