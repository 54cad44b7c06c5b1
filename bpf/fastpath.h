// The shapes of the same-node fast path (fastpath.bpf.c): both ends of a connection on this node,
// data moved from one socket to the other past TCP. C and C++, rules as in shared.h; a change of
// any shape but that of um_fast_socket, which never changes, is a new UM_LAYOUT. Why it is as it
// is: docs/decisions/0013-fast-path.md and 0019.
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

// A connection that has lived for some round trips asks to join (SETTLED); um_fast_join lets it, or
// not (STAYS). From then on this is what the socket does with what it sends. TCP is for ever, since
// the reader takes what was redirected before what came by TCP.
enum um_fast_state {
  UM_FAST_SETTLED = 0,
  UM_FAST_STAYS = 1,      // not in um_fast_peers, and never will be
  UM_FAST_UNDECIDED = 2,  // in um_fast_peers; by TCP until the other end has joined and read it all
  UM_FAST_REDIRECT = 3,
  UM_FAST_TCP = 4,
};

// um_fast_sockets: socket storage of those that asked, not inherited, as long as the socket (of
// UM_LASTING_MAPS). Bytes that went past TCP: neither TCP_INFO nor sock_ops counts them.
struct um_fast_socket {
  struct um_fast_key peer;  // the other end's entry in um_fast_peers
  __u64 sent_bytes;
  __u64 received_bytes;
  __u32 state;     // um_fast_state
  __u32 messages;  // SETTLED: walks that found it with unread data; UNDECIDED: messages sent since
  __u32 smallest;  // of the messages since the other end had read all: bytes
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_fast_socket) == 80);

// An undecided socket looks for the other end at its 1st, 2nd, 4th, ... message, up to this one.
#define UM_FAST_LAST_MESSAGE (1U << 20)

// A socket that has unread data at so many walks stays.
#define UM_FAST_LAST_WALK 16

// What the kernel takes for a redirected message beside its bytes, and charges to nobody: struct
// sk_msg is 712 bytes on Linux 6.18.
#define UM_FAST_MESSAGE_BYTES 1024

// A connection of so many segments that has not made its round trips is a stream: nobody looks on.
#define UM_FAST_STREAM_SEGMENTS 1024

// um_fast_addresses: by um_address, the namespace (cookie, __u64) of the workload that has it.

// um_fast_settled: by a namespace's cookie (__u64; __u32, 1), where sockets have asked to join
// since somebody last looked and took it out.

// um_fast_excluded: listeners (struct um_destination; __u32, 1) whose service is annotated so.

enum um_fast_config_flags {
  UM_FAST_ON = 1,            // off: nobody asks, and who joined goes over to TCP with its next send
  UM_FAST_HAS_EXCLUDED = 2,  // um_fast_excluded has entries
};
// um_fast_config: one entry.
struct um_fast_config {
  __u32 flags;      // um_fast_config_flags
  __u32 min_trips;  // segments with data both ways, before a connection asks
};
UM_ASSERT(sizeof(struct um_fast_config) == 8);

#endif
