// The shapes of the same-node fast path (fastpath.bpf.c): both ends of a connection on this node,
// data moved from one socket to the other past TCP. C and C++, rules as in shared.h; a change of
// any shape is a new UM_LAYOUT. Why it is as it is: docs/decisions/0013-fast-path.md.
#ifndef UM_FASTPATH_H
#define UM_FASTPATH_H

#include "shared.h"

// um_fast_peers (SOCKHASH): the sockets that joined, by their own end. An entry is never replaced
// or deleted by us: the kernel takes it out when the socket is closed.
struct um_fast_key {
  __u64 netns_cookie;  // of loopback addresses, which every namespace has; else 0
  struct um_address local;
  struct um_address remote;
  __u16 local_port;   // be16
  __u16 remote_port;  // be16
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_fast_key) == 48);
#ifndef __cplusplus
UM_ASSERT(__builtin_offsetof(struct um_fast_key, zero) == 44);
#endif

// What a socket does with what it sends. The first send decides; TCP is for ever, since the reader
// takes what was redirected before what came by TCP.
enum um_fast_state {
  UM_FAST_UNDECIDED = 0,
  UM_FAST_REDIRECT = 1,
  UM_FAST_TCP = 2,
};

// um_fast_sockets: socket storage of those that joined, not inherited. Bytes that went past TCP:
// neither TCP_INFO nor sock_ops counts them. `trips`: how often it received after it had sent.
struct um_fast_socket {
  struct um_fast_key peer;  // the other end's entry in um_fast_peers
  __u64 sent_bytes;
  __u64 received_bytes;
  __u32 trips;
  __u32 state;   // um_fast_state, of what it sends
  __u32 waits;   // it has sent since it received last
  __u32 active;  // this end connected
};
UM_ASSERT(sizeof(struct um_fast_socket) == 80);

// um_fast_addresses: by um_address, the namespace (cookie, __u64) of the workload that has it.

// um_fast_ports (LRU): what is known of the connections to one port of one address.
struct um_fast_port_key {
  __u64 netns_cookie;  // as in um_fast_key
  struct um_destination listener;
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_fast_port_key) == 32);
#ifndef __cplusplus
UM_ASSERT(__builtin_offsetof(struct um_fast_port_key, zero) == 28);
#endif
struct um_fast_port {
  __u32 trips16;  // round trips of a connection times 16, smoothed
  __u32 samples;  // connections that it was learned from
  __u32 joins;    // 0: its connections are too short to gain
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_fast_port) == 16);

// The first connections of a port are all looked at, later ones one in eight. One connection
// counts at most UM_FAST_TRIPS_MAX.
#define UM_FAST_FIRST_SAMPLES 4
#define UM_FAST_TRIPS_MAX 64

// um_fast_excluded: listeners (struct um_destination; __u32, 1) whose service is annotated so.

enum um_fast_config_flags {
  UM_FAST_ON = 1,            // off: who joined goes over to TCP with its next send
  UM_FAST_HAS_EXCLUDED = 2,  // um_fast_excluded has entries
};
// um_fast_config: one entry.
struct um_fast_config {
  __u32 flags;      // um_fast_config_flags
  __u32 min_trips;  // fewer a connection: does not pay
};
UM_ASSERT(sizeof(struct um_fast_config) == 8);

#endif
