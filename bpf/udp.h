// What happens to a datagram at either end, and to a UDP socket that connects.
//
// Included after decide.h, began.h and dns.h; as there, whoever includes it provides the lookups
// first, and what is remembered of a datagram:
//   struct um_udp_flow*         um_find_udp_flow(const struct um_udp_flow_key*)
//   void                        um_write_udp_flow(const struct um_udp_flow_key*,
//                                                 const struct um_udp_flow*)
//   struct um_udp_choice*       um_find_udp_choice(const struct um_udp_choice_key*)
//   void                        um_write_udp_choice(const struct um_udp_choice_key*,
//                                                   const struct um_udp_choice*)
//   int                         um_is_service(const struct um_destination*)
// Each direction is judged as TCP is: by the policies of who sends, and of who receives. What one
// of them denies may still be an answer: then the direction that began is judged, by the policies
// that hold now, so a revocation ends answers too (began.h).
#ifndef UM_UDP_H
#define UM_UDP_H

// What a socket sends, or connects to.
struct um_datagram {
  struct um_connect to;
  __u64 socket;   // cookie, of one that sends
  __u16 port;     // be16, its own; 0: none yet
  __u8 own_peer;  // it is connected there: neither a service nor a resolver for it
  __u8 zero[5];
};

static __always_inline void um_flow_key_of(struct um_udp_flow_key* key, __u32 workload, __u16 port,
                                           const struct um_destination* other) {
  key->workload = workload;
  key->port = port;
  key->zero = 0;
  key->other = *other;
}

// A datagram that its own direction's policy permits.
UM_APART int um_note_flow(__u32 workload, __u16 port, const struct um_destination* other,
                          __u32 began) {
  if (!other) return 0;
  struct um_udp_flow_key key;
  um_flow_key_of(&key, workload, port, other);
  __u64 now = um_now();
  struct um_udp_flow* known = um_find_udp_flow(&key);
  if (um_goes_on(known, now, UM_UDP_LASTS_NS)) return 0;
  struct um_udp_flow flow = {.used = now, .began = began};
  um_write_udp_flow(&key, &flow);
  return 0;
}

// Whether it answers what the other side began; then it counts as use of that.
UM_APART int um_answers(__u32 workload, __u16 port, const struct um_destination* other,
                        __u32 began) {
  if (!other) return 0;
  struct um_udp_flow_key key;
  um_flow_key_of(&key, workload, port, other);
  __u64 now = um_now();
  struct um_udp_flow* known = um_find_udp_flow(&key);
  if (!um_is_begun(known, began, now, UM_UDP_LASTS_NS)) return 0;
  um_use(&known->used, now);
  return 1;
}

// A socket connects there; what it sends and gets then is not seen. What was over begins anew,
// here.
UM_APART int um_note_connected(__u32 workload, __u16 port, const struct um_destination* other,
                               __u32 answers) {
  if (!other) return 0;
  struct um_udp_flow_key key;
  um_flow_key_of(&key, workload, port, other);
  struct um_udp_flow* known = um_find_udp_flow(&key);
  if (!known) return 0;
  if (answers) {
    known->connected = 1;
    return 0;
  }
  __u64 now = um_now();
  if (um_is_fresh(known->used, now, UM_UDP_LASTS_NS)) return 0;
  struct um_udp_flow flow = {.used = now, .began = UM_BEGAN_HERE};
  um_write_udp_flow(&key, &flow);
  return 0;
}

static __always_inline int um_is_denied_by_policy(const struct um_decision* decision) {
  if (decision->action != UM_REFUSE) return 0;
  switch (decision->counter) {
    case UM_CONNECTS_DENIED_POLICY:
    case UM_CONNECTS_DENIED_NO_VERDICT:
    case UM_ARRIVALS_DENIED_POLICY:
    case UM_ARRIVALS_DENIED_NO_VERDICT:
      return 1;
  }
  return 0;
}

// ---- sending -------------------------------------------------------------------------------

// Where the socket's datagrams to this service went, while they go on.
UM_APART int um_stay(const struct um_datagram* in, __u32 config, struct um_decision* out) {
  if (!in || !out) return 0;
  struct um_udp_choice_key key = {.socket = in->socket, .at = in->to.to, .way = UM_TO_BACKEND};
  struct um_udp_choice* choice = um_find_udp_choice(&key);
  __u64 now = um_now();
  if (!choice || !um_is_fresh(choice->used, now, UM_UDP_LASTS_NS)) return 0;
  const struct um_workload* client = um_find_workload(in->to.netns_cookie, um_generation(config));
  if (!client) return 0;
  um_use(&choice->used, now);
  out->backend = choice->other;
  if (um_is_own_address(client->id, &out->backend.address) ||
      um_may_reach(client, &out->backend, 0, config, out))
    um_decided(out, UM_BALANCE, UM_CONNECTS_BALANCED);
  return 1;
}

UM_APART int um_note_choice(const struct um_datagram* in, const struct um_destination* backend) {
  if (!in || !backend) return 0;
  // sendmsg6 takes no mapped address: this datagram is refused, the next may go elsewhere.
  if (!in->to.v4_only && um_is_v4(&backend->address)) return 0;
  struct um_udp_choice_key key = {.socket = in->socket, .at = in->to.to, .way = UM_TO_BACKEND};
  struct um_udp_choice choice = {.used = um_now(), .other = *backend};
  um_write_udp_choice(&key, &choice);
  key.at = *backend;
  key.way = UM_FROM_BACKEND;
  choice.other = in->to.to;
  um_write_udp_choice(&key, &choice);
  return 0;
}

// Denied as something of its own: the server's answer to what somebody else began?
static __always_inline void um_send_answer(const struct um_workload* self,
                                           const struct um_datagram* in, int connects, __u32 config,
                                           struct um_decision* out) {
  if (!in->port || !um_answers(self->id, in->port, &in->to.to, UM_BEGAN_THERE)) return;
  out->rulings = 0;
  if (self->ingress) {
    struct um_destination own = {.port = in->port, .protocol = UM_UDP};
    const struct um_address* other = &in->to.to.address;
    const struct um_peer* peer = um_find_peer(other, um_generation(config));
    __u32 peer_class = um_class_of(peer, other, config);
    if (um_rule(self->ingress, peer_class, &own, config, out) != UM_ALLOWED) return;
  }
  um_decided(out, UM_PASS, UM_DATAGRAMS_ANSWERED);
  if (connects) um_note_connected(self->id, in->port, &in->to.to, 1);
}

// A datagram, or a connect (of TCP too), of an enrolled workload's application. Beyond the decision
// it remembers what the next datagram is judged by.
static __always_inline void um_decide_datagram(const struct um_datagram* in, int connects,
                                               struct um_decision* out) {
  const __u32 config = um_config_flags();
  int stays = !connects && !in->own_peer && um_stay(in, config, out);
  if (!stays) um_decide_workload_by(config, &in->to, out);
  if (!in->own_peer) um_decide_resolver(&in->to, out);
  if (in->to.to.protocol != UM_UDP) return;
  if (out->action == UM_RESOLVE || out->counter == UM_CONNECTS_LOCAL) return;
  const struct um_workload* self = um_find_workload(in->to.netns_cookie, um_generation(config));
  if (!self) return;
  if (um_is_denied_by_policy(out)) um_send_answer(self, in, connects, config, out);
  if (out->action == UM_REFUSE || out->counter == UM_DATAGRAMS_ANSWERED) return;
  int is_balanced = out->action == UM_BALANCE;
  if (is_balanced && !connects && !stays) um_note_choice(in, &out->backend);
  if (!in->port) return;
  // What a connected socket gets, nobody judges: no answer of it needs to be known. And nothing is
  // denied to a workload without ingress policy.
  const struct um_destination* other = is_balanced ? &out->backend : &in->to.to;
  if (connects)
    um_note_connected(self->id, in->port, other, 0);
  else if (self->ingress)
    um_note_flow(self->id, in->port, other, UM_BEGAN_HERE);
}

// A UDP socket of the mesh connects, on behalf of a workload: services are translated as for the
// workload itself, as a resolver may be one.
static __always_inline void um_decide_mesh_udp(const struct um_connect* in,
                                               struct um_decision* out) {
  if (um_is_service(&in->to))
    um_decide_workload(in, out);
  else
    um_decide_mesh(in, out);
}

// ---- arriving ------------------------------------------------------------------------------

// Denied as something of its own: an answer to what the workload began?
static __always_inline void um_arrive_answer(const struct um_workload* self,
                                             const struct um_arrival* in, __u32 config,
                                             struct um_decision* out) {
  if (!um_answers(self->id, in->to.port, &in->from, UM_BEGAN_HERE)) return;
  __u32 denied = out->counter;
  out->rulings = 0;
  if (um_may_reach(self, &in->from, 0, config, out))
    um_decided(out, UM_PASS, UM_ARRIVALS_ANSWERED);
  else
    um_decided(out, UM_REFUSE, denied);
}

// At an unconnected socket.
static __always_inline void um_decide_datagram_arrival(const struct um_arrival* in,
                                                       struct um_decision* out) {
  const __u32 config = um_config_flags();
  um_decide_arrival_by(config, in, out);
  const struct um_workload* self = um_find_workload(in->netns_cookie, um_generation(config));
  if (!self) return;
  if (um_is_denied_by_policy(out)) um_arrive_answer(self, in, config, out);
  if (out->action == UM_REFUSE || out->counter == UM_ARRIVALS_ANSWERED) return;
  // Without policy, and from itself: only where its own answer would be judged.
  if (out->counter == UM_NO_COUNTER && !self->egress) {
    const struct um_peer* peer = um_find_peer(&in->from.address, um_generation(config));
    if (!peer || !peer->ingress) return;
  }
  if (um_is_loopback(&in->from.address)) return;
  um_note_flow(self->id, in->to.port, &in->from, UM_BEGAN_THERE);
}

#endif
