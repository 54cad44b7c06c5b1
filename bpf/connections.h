// Records of TCP connections: what is remembered of one while it lives, and the event at its end.
// Included after maps.h, decide.h and act.h. User space reads the ring when it likes: no wake-ups.
// Nothing here decides anything: what finds no room is counted, and the connection goes on.
#ifndef UM_CONNECTIONS_H
#define UM_CONNECTIONS_H

#define EEXIST 17

static __always_inline struct um_event* um_new_event(__u8 kind) {
  struct um_event* event = bpf_ringbuf_reserve(&um_events, sizeof *event, 0);
  if (!event) {
    um_count(UM_EVENTS_LOST);
    return 0;
  }
  __builtin_memset(event, 0, sizeof *event);
  event->kind = kind;
  event->at = bpf_ktime_get_ns();
  return event;
}

static __always_inline int um_may_report_denial(void) {
  __u32 zero = 0;
  struct um_denials* denials = bpf_map_lookup_elem(&um_denials, &zero);
  if (!denials) return 0;
  __u64 now = bpf_ktime_get_ns();
  if (now - denials->since > 1000000000ULL) {
    denials->since = now;
    denials->events = 0;
  }
  return ++denials->events <= UM_DENIALS_A_SECOND;
}

// `from`: null of a connect, which has no address yet.
static __always_inline void um_report_denial(const struct um_decision* decision,
                                             const struct um_destination* from,
                                             const struct um_destination* to) {
  if (to->protocol != UM_TCP) return;
  if (!um_may_report_denial()) {
    um_count(UM_DENIALS_UNREPORTED);
    return;
  }
  struct um_event* event = um_new_event(UM_EVENT_DENIED);
  if (!event) return;
  event->started = event->at;
  if (from) {
    event->remote = *from;
    event->local = *to;
    event->flags = UM_CONNECTION_INBOUND;
  } else {
    event->service = *to;
    event->remote = decision->backend;
  }
  event->workload = decision->workload;
  event->policy = um_last_policy(decision);
  event->counter = decision->counter;
  bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

// A connect that goes to where it asked, or to a backend.
static __always_inline void um_record_connect(void* ctx, const struct um_connect* in,
                                              const struct um_decision* decision) {
  struct um_connection connection = {};
  connection.started = bpf_ktime_get_ns();
  connection.service = in->to;
  connection.workload = decision->workload;
  connection.policy = um_last_policy(decision);
  __u64 cookie = bpf_get_socket_cookie(ctx);
  if (bpf_map_update_elem(&um_connections, &cookie, &connection, BPF_ANY))
    um_count(UM_CONNECTIONS_UNRECORDED);
}

// The policy that lets in what has just been established, as it is by now: the SYN may have come
// before a change. Where it denies, none. Nothing is counted, as sk_lookup did that.
static __always_inline __u32 um_let_in_by(struct bpf_sock_ops* ops, __u64 netns_cookie,
                                          __u32 config) {
  struct um_flow_key ends = {};
  um_own_end(ops, &ends);
  struct um_arrival in = {.netns_cookie = netns_cookie, .from = ends.to, .to = ends.from};
  struct um_decision decision = {};
  um_decide_arrival_by(config, &in, &decision);
  return decision.action == UM_PASS ? um_last_policy(&decision) : 0;
}

static __always_inline void um_record_accept(struct bpf_sock_ops* ops) {
  __u64 netns_cookie = bpf_get_netns_cookie(ops);
  __u32 config = um_config_flags();
  const struct um_workload* server = um_find_workload(netns_cookie, um_generation(config));
  if (!server) return;
  struct um_connection connection = {};
  connection.started = bpf_ktime_get_ns();
  connection.workload = server->id;
  if (server->ingress) connection.policy = um_let_in_by(ops, netns_cookie, config);
  connection.flags = UM_CONNECTION_INBOUND | UM_CONNECTION_ESTABLISHED;
  __u64 cookie = bpf_get_socket_cookie(ops);
  long error = bpf_map_update_elem(&um_connections, &cookie, &connection, BPF_NOEXIST);
  // Both ends connected at once: this one is the client that it was.
  if (error && error != -EEXIST) um_count(UM_CONNECTIONS_UNRECORDED);
}

// A FIN is counted as a byte, at either end, and so is a SYN that we sent.
static __always_inline void um_count_bytes(struct bpf_sock_ops* ops,
                                           const struct um_connection* connection, __u32 from,
                                           struct um_event* event) {
  __u64 sent = ops->bytes_acked, received = ops->bytes_received, extra = 0;
  int is_fin_sent = from == BPF_TCP_FIN_WAIT1 || from == BPF_TCP_FIN_WAIT2 ||
                    from == BPF_TCP_CLOSING || from == BPF_TCP_LAST_ACK;
  if (is_fin_sent && ops->snd_una == ops->snd_nxt) ++extra;
  if (!(connection->flags & UM_CONNECTION_INBOUND)) ++extra;
  int is_fin_received = from == BPF_TCP_CLOSE_WAIT || from == BPF_TCP_LAST_ACK ||
                        from == BPF_TCP_CLOSING ||
                        (from == BPF_TCP_FIN_WAIT2 && received != connection->at_fin_wait);
  event->sent = sent > extra ? sent - extra : 0;
  event->received = is_fin_received && received ? received - 1 : received;
  struct bpf_sock* sk = ops->sk;
  if (!sk) return;
  const struct um_fast_socket* fast = bpf_sk_storage_get(&um_fast_sockets, sk, 0, 0);
  if (!fast) return;
  event->sent += fast->sent_bytes;
  event->received += fast->received_bytes;
}

static __always_inline void um_report_close(struct bpf_sock_ops* ops, __u64 cookie,
                                            const struct um_connection* connection, __u32 from) {
  struct um_event* event = um_new_event(UM_EVENT_CLOSED);
  if (!event) return;
  event->cookie = cookie;
  event->started = connection->started;
  event->service = connection->service;
  event->workload = connection->workload;
  event->policy = connection->policy;
  event->flags = (__u8)connection->flags;
  event->state = (__u8)from;
  event->retransmits = ops->total_retrans;
  um_count_bytes(ops, connection, from, event);
  struct um_flow_key ends = {};
  um_own_end(ops, &ends);
  event->local = ends.from;
  event->remote = ends.to;
  bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

static __always_inline void um_see_state(struct bpf_sock_ops* ops, __u32 from, __u32 to) {
  if (to != BPF_TCP_CLOSE && to != BPF_TCP_ESTABLISHED && to != BPF_TCP_FIN_WAIT2) return;
  __u64 cookie = bpf_get_socket_cookie(ops);
  struct um_connection* connection = bpf_map_lookup_elem(&um_connections, &cookie);
  if (!connection) return;
  if (to == BPF_TCP_ESTABLISHED) {
    connection->flags |= UM_CONNECTION_ESTABLISHED;
  } else if (to == BPF_TCP_FIN_WAIT2) {
    connection->at_fin_wait = ops->bytes_received;
  } else {
    // Who sees the event finds the record gone.
    struct um_connection last = *connection;
    bpf_map_delete_elem(&um_connections, &cookie);
    um_report_close(ops, cookie, &last, from);
  }
}

#endif
