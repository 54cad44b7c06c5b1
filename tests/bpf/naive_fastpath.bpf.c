// The fast path as most published examples have it, for tests that must fail with it: a socket's
// tuple is its key, later sockets replace earlier ones, and everything is redirected.

// clang-format off
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
// clang-format on

// Whether what the redirection returns is the verdict, as in some of them.
const volatile int returns_verdict = 0;

struct ends {
  __u32 local;
  __u32 remote;
  __u32 local_port;
  __u32 remote_port;
};

struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 4096);
  __type(key, struct ends);
  __type(value, __u64);
} sockets SEC(".maps");

SEC("sockops")
int naive_sock_ops(struct bpf_sock_ops* ops) {
  if (ops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
      ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
    return 1;
  struct ends key = {ops->local_ip4, ops->remote_ip4, ops->local_port, bpf_ntohl(ops->remote_port)};
  bpf_sock_hash_update(ops, &sockets, &key, BPF_ANY);
  return 1;
}

SEC("sk_msg")
int naive_msg(struct sk_msg_md* msg) {
  struct ends key = {msg->remote_ip4, msg->local_ip4, bpf_ntohl(msg->remote_port), msg->local_port};
  int verdict = bpf_msg_redirect_hash(msg, &sockets, &key, BPF_F_INGRESS);
  return returns_verdict ? verdict : SK_PASS;
}

char _license[] SEC("license") = "Apache-2.0";
