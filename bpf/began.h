// Who began what passes between two UDP ends, as it is remembered (struct um_udp_flow): what one
// direction's policy denies may be an answer to the other. Included after decide.h.
//
// While anything passes, who began stays who began: an answer, permitted or not by the policy of
// its own direction, never makes the one it answers a server. Else a client that may ask no more
// would go on as an answerer.
#ifndef UM_BEGAN_H
#define UM_BEGAN_H

static __always_inline int um_is_fresh(__u64 used, __u64 now, __u64 lasts) {
  return now < used || now - used < lasts;
}

// Most datagrams write nothing.
static __always_inline void um_use(__u64* used, __u64 now) {
  if (now > *used && now - *used >= UM_UDP_EXACT_NS) *used = now;
}

// False: nothing is known, or it is over; whose datagram passes now begins.
static __always_inline int um_goes_on(struct um_udp_flow* known, __u64 now, __u64 lasts) {
  if (!known) return 0;
  if (!um_is_fresh(known->used, now, lasts)) return 0;
  um_use(&known->used, now);
  return 1;
}

// Whether what passes is what that side began.
static __always_inline int um_is_begun(const struct um_udp_flow* known, __u32 began, __u64 now,
                                       __u64 lasts) {
  if (!known) return 0;
  return known->began == began && um_is_fresh(known->used, now, lasts);
}

#endif
