// The one contract between the BPF programs and user space: every map key, value and enum.
//
// C and C++. Fixed-width types, padding explicit and zero. Addresses are 16 bytes in network order,
// IPv4 in its mapped form (::ffff:a.b.c.d), so one key serves both families and v4-mapped sockets.
// A change of any shape or meaning here is a new UM_LAYOUT: an upgrade fills maps of its own and
// then changes over. What is listed in UM_LASTING_MAPS never changes: connections outlive upgrades,
// and programs of two layouts meet on one of them. New facts about a connection go into a new map.
// (From the first release on. Before that, um_connection has changed: what is open as such a state
// is upgraded has no record of its end.)
#ifndef UM_SHARED_H
#define UM_SHARED_H

#include <linux/types.h>

#ifdef __cplusplus
#define UM_ASSERT(condition) static_assert(condition, #condition)
#else
#define UM_ASSERT(condition) _Static_assert(condition, #condition)
#endif

#define UM_LAYOUT 4
#define UM_LASTING_MAPS(X) \
  X(um_sockets)            \
  X(um_fast_sockets)       \
  X(um_mesh_sockets)       \
  X(um_connections)        \
  X(um_records)            \
  X(um_clients)            \
  X(um_resolvers)          \
  X(um_udp_flows)          \
  X(um_udp_choices)        \
  X(um_heartbeats)
#define UM_PROXY_PORT 15001  // the proxy's outbound listener in each namespace
#define UM_DNS_PORT 15053    // the responder's sockets there, UDP and TCP, on lo
// Where canaries connect to, 127.78.0.1 (a mapped one, too): a workload's hooks answer this error.
#define UM_CANARY_ADDRESS 0x7f4e0001
#define UM_CANARY_PORT 15001
#define UM_CANARY_ERROR 125                  // ECANCELED
#define UM_HEARTBEAT_LIMIT_NS 2000000000ULL  // older than this: the proxy is away

struct um_address {
  __u32 word[4];  // be32
};
UM_ASSERT(sizeof(struct um_address) == 16);

#define UM_TCP 6
#define UM_UDP 17

// An address and a port: the key of um_services, and wherever a destination is remembered.
struct um_destination {
  struct um_address address;
  __u16 port;     // be16
  __u8 protocol;  // UM_TCP, UM_UDP
  __u8 zero;
};
UM_ASSERT(sizeof(struct um_destination) == 20);

enum um_workload_flags {
  // A "refuse" for a proxied service of this client did not fit: a missing one refuses.
  UM_WORKLOAD_REFUSALS_INCOMPLETE = 1,
  // It shares its addresses with others (the gateway, with its host): servers know its connections
  // by a record.
  UM_WORKLOAD_RECORDED = 2,
  // The responder is there for it: what it asks of port 53 goes to 127.53.0.SLOT:UM_DNS_PORT.
  UM_WORKLOAD_DNS = 4,
  // While the proxy is away it goes straight to an endpoint (um_client_services) of what is
  // proxied.
  UM_WORKLOAD_BYPASS = 8,
};
// What policy is decided by - um_workloads, um_sets, um_peers, um_blocks - is there in two
// generations, told apart in their keys. A decision reads once which is active (um_config), and
// then only that; entries are written in the other alone, when no program can still be reading it,
// and one store makes it the active one.

// um_workloads. The classes are what it is to the sets of its destinations, by the family that it
// connects with; the sets are its own (0: no policy).
struct um_workload_key {
  __u64 netns_cookie;
  __u32 generation;
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_workload_key) == 16);
struct um_workload {
  __u32 id;     // never 0
  __u32 flags;  // um_workload_flags
  __u32 class4;
  __u32 class6;
  __u32 ingress;
  __u32 egress;
};
UM_ASSERT(sizeof(struct um_workload) == 24);

// um_own_addresses (the same in every layout, as user space reads that of the layout before): the
// addresses of a workload; the value (__u32) is their order, for user space.
struct um_own_key {
  __u32 workload;
  struct um_address address;
};
UM_ASSERT(sizeof(struct um_own_key) == 20);

// um_workload_records (the same in every layout): by id (__u32). For user space only: what a
// restarted agent must know.
#define UM_CGROUP_PATH_MAX 1016
struct um_workload_record {
  __u64 netns_cookie;
  char cgroup[UM_CGROUP_PATH_MAX];  // NUL-terminated; empty: no hooks of its own
};
UM_ASSERT(sizeof(struct um_workload_record) == 1024);

enum um_service_kind {
  UM_SERVICE_REFUSED = 0,    // it did not fit
  UM_SERVICE_PROXY = 1,      // L7: to the proxy; `number` is the service's id
  UM_SERVICE_BALANCE = 2,    // to a backend of the choice `number`
  UM_SERVICE_BY_CLIENT = 3,  // um_client_services says where each client goes
};
// um_services: by um_destination, where it stands in um_slots (__u32). Entries come and go, but are
// never overwritten: the kernel may reuse an element at once while a program still reads it.
// Both are the same in every layout from 3 on (before, um_services had id and kind itself).
// um_slots: array, mapped into user space, which stores an entry as one word: a service becomes
// another at once. A slot, or a choice, gets another meaning only when no program can remember it.
struct um_service {
  __u32 number;
  __u8 kind;  // um_service_kind
  __u8 zero;
  __u16 columns;  // of the choice
} __attribute__((aligned(8)));
UM_ASSERT(sizeof(struct um_service) == 8);

// um_client_services: where a client's own state of a service stands in um_slots (__u32); as
// um_services. Of a proxied service, where a client with UM_WORKLOAD_BYPASS goes.
struct um_client_service {
  __u32 client;
  struct um_destination service;
};
UM_ASSERT(sizeof(struct um_client_service) == 24);

// um_service_ranges: one entry, the block that virtual addresses are given from. An address in it
// that is no service's (no longer, or on that port) is nobody's.
struct um_service_range {
  struct um_address base;
  struct um_address mask;  // be32; all zero: there is no such block
};
UM_ASSERT(sizeof(struct um_service_range) == 32);

// um_backends: the columns of a choice, by which a connection finds its backend in one step,
// whatever the weights: any column with equal chance, then `first` where a random number of 32 bits
// is not above `threshold`, else `second` (Walker's alias method). A choice never changes: another
// takes its place.
struct um_backend_key {
  __u32 choice;
  __u32 index;
};
UM_ASSERT(sizeof(struct um_backend_key) == 8);
struct um_backend {
  struct um_destination first, second;  // protocol 0: nobody, it is refused
  __u32 threshold;
  __u32 service;           // id
  __u32 affinity_seconds;  // 0: none
  __u32 flags;             // um_backend_flags
};
UM_ASSERT(sizeof(struct um_backend) == 56);
enum um_backend_flags {
  // For user space: connections to what was a backend of the service are reset.
  UM_BACKEND_RESETS = 1,
};

// um_members: what may be chosen, of the choices of services with affinity (__u32, 1).
struct um_member {
  __u32 choice;
  struct um_destination backend;
};
UM_ASSERT(sizeof(struct um_member) == 24);

// um_affinities: least recently used out. Where a client went last.
struct um_affinity_key {
  __u32 client;
  __u32 service;  // id
  __u8 v4;        // of the service's address
  __u8 protocol;  // UM_TCP, UM_UDP
  __u16 zero;
};
UM_ASSERT(sizeof(struct um_affinity_key) == 12);
struct um_affinity {
  __u64 used;  // CLOCK_MONOTONIC nanoseconds, of the last connection
  struct um_destination backend;
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_affinity) == 32);

// A class is a set of peers that every policy treats alike; 0: strangers, of whom nothing is known.
// um_peers: those whose address is known as such.
struct um_peer_key {
  __u32 generation;
  struct um_address address;
};
UM_ASSERT(sizeof(struct um_peer_key) == 20);
struct um_peer {
  __u32 peer_class;
  __u32 ingress;  // the policy set of what is there; 0: no policy
};
UM_ASSERT(sizeof(struct um_peer) == 8);

// um_blocks: the classes of all other addresses, by the longest prefix (__u32); no entry: 0.
struct um_block_key {
  __u32 bits;  // of what follows: UM_BLOCK_BITS and those of the address
  __u32 generation;
  struct um_address address;
};
UM_ASSERT(sizeof(struct um_block_key) == 24);
#define UM_BLOCK_BITS 32

// um_sets: a map of its own for each policy set, which never changes: another takes its place.
struct um_set_key {
  __u32 set;
  __u32 generation;
};
UM_ASSERT(sizeof(struct um_set_key) == 8);
// Longest prefix of what follows `bits`; where a class has no answer, that of class 0 holds, and
// without that the set refuses.
struct um_verdict_key {
  __u32 bits;        // UM_ANY_PROTOCOL, UM_ANY_PORT, or up to UM_ONE_PORT
  __u32 peer_class;  // be32
  __u8 protocol;
  __u8 zero;
  __u16 port;  // be16
};
UM_ASSERT(sizeof(struct um_verdict_key) == 12);
#define UM_ANY_PROTOCOL 32
#define UM_ANY_PORT 48
#define UM_ONE_PORT 64
struct um_verdict {
  __u32 policy;  // number of the counter in um_policy_counts; 0: of none
  __u32 allowed;
  __u32 audit;  // number of the counter of an AUDIT policy that matched; 0: none did
};
UM_ASSERT(sizeof(struct um_verdict) == 12);

// um_refusals: a proxied service (by id) that refuses a client (by id), since every endpoint that
// its routes can reach does -> policy number (__u32).
struct um_refusal_key {
  __u32 client;
  __u32 service;
};
UM_ASSERT(sizeof(struct um_refusal_key) == 8);

// um_policy_counts: by policy number (__u32), per CPU.
struct um_policy_count {
  __u64 denied;
  __u64 allowed;
  __u64 audited;
};
UM_ASSERT(sizeof(struct um_policy_count) == 24);

enum um_config_flags {
  // Services, peers or blocks did not fit: a destination that is not found refuses.
  UM_CONFIG_STATE_INCOMPLETE = 1,
  UM_CONFIG_HAS_BLOCKS = 2,  // um_blocks has entries
  UM_CONFIG_GENERATION = 4,  // 1 is the active generation, not 0
};
// um_config: one entry.
struct um_config {
  __u32 flags;  // um_config_flags
};
UM_ASSERT(sizeof(struct um_config) == 4);

enum um_socket_flags {
  UM_SOCKET_REDIRECTED = 1,  // connected to the proxy
  UM_SOCKET_BALANCED = 2,    // connected to a backend
  UM_SOCKET_ACCEPTED = 4,    // the proxy's end: `service` is the original destination
  UM_SOCKET_RESOLVING = 8,   // connected to the responder
};
// um_sockets: socket storage, not inherited by accepted sockets.
struct um_socket {
  __u32 flags;                    // um_socket_flags; 0: nothing remembered
  struct um_destination service;  // what the application asked for
};
UM_ASSERT(sizeof(struct um_socket) == 24);

enum um_connection_flags {
  UM_CONNECTION_INBOUND = 1,      // at the server's end
  UM_CONNECTION_ESTABLISHED = 2,  // it once was
};
// um_connections: by socket cookie (__u64), the TCP connections of enrolled workloads that go past
// no proxy, from the connect (or the end of the handshake) until they are closed.
struct um_connection {
  __u64 started;                  // CLOCK_MONOTONIC nanoseconds
  __u64 at_fin_wait;              // bytes_received when our FIN was acknowledged
  struct um_destination service;  // what the application asked for; inbound: zero
  __u32 workload;                 // whose it is
  __u32 policy;                   // number of what allowed it; 0: of none
  __u32 flags;                    // um_connection_flags
};
UM_ASSERT(sizeof(struct um_connection) == 48);

enum um_event_kind {
  UM_EVENT_CLOSED = 1,
  UM_EVENT_DENIED = 2,  // as `counter` says
};
// um_events: a ring. What became of a connection; what finds no room is counted.
struct um_event {
  __u64 cookie;  // of the socket; 0: there is none
  __u64 at;      // CLOCK_MONOTONIC nanoseconds
  __u64 started;
  __u64 sent, received;                 // the application's bytes, `sent` as far as acknowledged
  struct um_destination local, remote;  // zero where not known
  struct um_destination service;        // what the application asked for; inbound: zero
  __u32 workload, policy;
  __u32 retransmits;
  __u32 counter;  // um_counter
  __u8 kind;      // um_event_kind
  __u8 flags;     // um_connection_flags
  __u8 state;     // TCP's before it was closed
  __u8 zero;
};
UM_ASSERT(sizeof(struct um_event) == 120);
#define UM_DENIALS_A_SECOND 50  // events, of each CPU

// um_denials: per CPU, one entry.
struct um_denials {
  __u64 since;  // CLOCK_MONOTONIC nanoseconds
  __u64 events;
};
UM_ASSERT(sizeof(struct um_denials) == 16);

// um_mesh_sockets: socket storage (__u32) of the mesh's own sockets, inherited by what they accept.
enum um_mesh_socket {
  UM_MESH_MADE = 1,
  UM_MESH_CONNECTED = 2,  // TCP: it sent a SYN
  UM_MESH_ACCEPTED = 3,   // TCP
};

// um_records: the original destination of a redirected connection, from its SYN until the proxy's
// end is established (or the client is closed), by the client's end.
struct um_record_key {
  __u64 netns_cookie;
  struct um_destination source;
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_record_key) == 32);
#ifndef __cplusplus
UM_ASSERT(__builtin_offsetof(struct um_record_key, zero) == 28);
#endif

// um_clients: the client (__u64, its netns cookie) of a recorded workload's connection, from its
// SYN until it is closed.
struct um_flow_key {
  struct um_destination from;
  struct um_destination to;
};
UM_ASSERT(sizeof(struct um_flow_key) == 40);

// um_resolvers: which resolver a workload means by 127.53.0.SLOT, as long as the workload lives ->
// um_destination (of protocol 0: UDP and TCP alike).
#define UM_DNS_SLOTS 64
struct um_resolver_key {
  __u64 netns_cookie;
  __u32 slot;  // 0..UM_DNS_SLOTS-1
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_resolver_key) == 16);
// getsockopt(SOL_IP, UM_SO_RESOLVER + SLOT) of a socket of the mesh at UM_DNS_PORT: the resolver of
// that slot in the socket's namespace, as sockaddr_in or sockaddr_in6. (Not by what the caller put
// into the buffer: the kernel shows that to programs only where its own getsockopt succeeded.)
#define UM_SO_RESOLVER 0x554d0000

// um_udp_flows: least recently used out. Who began what passes between a UDP port of a workload and
// somebody else; an answer may pass although its own direction is denied. Written where a datagram
// is permitted by the policy of its direction, and nothing of the other direction is fresh.
struct um_udp_flow_key {
  __u32 workload;
  __u16 port;  // be16, the workload's
  __u16 zero;
  struct um_destination other;
};
UM_ASSERT(sizeof(struct um_udp_flow_key) == 28);
enum um_udp_began { UM_BEGAN_HERE = 1, UM_BEGAN_THERE = 2 };
struct um_udp_flow {
  __u64 used;   // CLOCK_MONOTONIC nanoseconds, of either direction, to within UM_UDP_EXACT_NS
  __u32 began;  // um_udp_began
  // Not 0: a socket connected to who began, to answer. What it sends then is not seen here.
  __u32 connected;
};
UM_ASSERT(sizeof(struct um_udp_flow) == 16);
#define UM_UDP_LASTS_NS 60000000000ULL  // without a datagram it is over, as is a choice
#define UM_UDP_EXACT_NS 1000000000ULL

// um_datagrams: least recently used out. The same (struct um_udp_flow) of a strict workload's
// packets, by both ends' addresses.
struct um_datagram_key {
  __u32 workload;
  struct um_destination own;  // or a group's, or broadcast
  struct um_destination other;
};
UM_ASSERT(sizeof(struct um_datagram_key) == 44);
#define UM_DATAGRAM_LASTS_NS 120000000000ULL  // not before what the hooks remember is over

// um_udp_choices: least recently used out. To which backend an unconnected socket's datagrams to a
// service go, and by which service's address that backend answers.
struct um_udp_choice_key {
  __u64 socket;              // cookie
  struct um_destination at;  // the service, or the backend
  __u32 way;                 // um_udp_way
};
UM_ASSERT(sizeof(struct um_udp_choice_key) == 32);
enum um_udp_way { UM_TO_BACKEND = 1, UM_FROM_BACKEND = 2 };
struct um_udp_choice {
  __u64 used;                   // as of a flow
  struct um_destination other;  // the backend, or the service
  __u32 zero;
};
UM_ASSERT(sizeof(struct um_udp_choice) == 32);

// um_heartbeat: one __u64, CLOCK_MONOTONIC nanoseconds, stamped by the proxy through mmap; 0:
// never.

// um_counters: per CPU, by this enum; the names are the ones of datapath::Counters::totals.
#define UM_COUNTERS(X)                                                              \
  X(CONNECTS_REDIRECTED, "connects_redirected")                                     \
  X(CONNECTS_BALANCED, "connects_balanced")                                         \
  X(CONNECTS_LOCAL, "connects_local")                                               \
  X(CONNECTS_CANARY, "connects_canary")                                             \
  X(CONNECTS_DIRECT, "connects_direct")                                             \
  X(CONNECTS_DENIED_POLICY, "connects_denied_policy")                               \
  X(CONNECTS_DENIED_NO_VERDICT, "connects_denied_no_verdict")                       \
  X(CONNECTS_DENIED_MAP_FULL, "connects_denied_map_full")                           \
  X(CONNECTS_DENIED_UNKNOWN_WORKLOAD, "connects_denied_unknown_workload")           \
  X(CONNECTS_BYPASSED, "connects_bypassed")                                         \
  X(CONNECTS_REFUSED_PROXY_AWAY, "connects_refused_proxy_away")                     \
  X(CONNECTS_REFUSED_NO_ENDPOINT, "connects_refused_no_endpoint")                   \
  X(CONNECTS_REFUSED_NO_DESTINATION, "connects_refused_no_destination")             \
  X(CONNECTS_REFUSED_NO_MEMORY, "connects_refused_no_memory")                       \
  X(CONNECTS_REFUSED_BOUND_DEVICE, "connects_refused_bound_device")                 \
  X(CONNECTS_REFUSED_FAST_PATH, "connects_refused_fast_path")                       \
  X(CONNECTS_REFUSED_LINK_LOCAL, "connects_refused_link_local")                     \
  X(MESH_CONNECTS_ALLOWED, "mesh_connects_allowed")                                 \
  X(MESH_CONNECTS_DENIED_POLICY, "mesh_connects_denied_policy")                     \
  X(MESH_CONNECTS_DENIED_NO_VERDICT, "mesh_connects_denied_no_verdict")             \
  X(MESH_CONNECTS_DENIED_MAP_FULL, "mesh_connects_denied_map_full")                 \
  X(MESH_CONNECTS_DENIED_UNKNOWN_WORKLOAD, "mesh_connects_denied_unknown_workload") \
  X(MESH_CONNECTS_REFUSED_ADDRESS, "mesh_connects_refused_address")                 \
  X(DATAGRAMS_ALLOWED, "datagrams_allowed")                                         \
  X(DATAGRAMS_LOCAL, "datagrams_local")                                             \
  X(DATAGRAMS_BALANCED, "datagrams_balanced")                                       \
  X(DATAGRAMS_ANSWERED, "datagrams_answered")                                       \
  X(DATAGRAMS_RESOLVED, "datagrams_resolved")                                       \
  X(DATAGRAMS_DENIED, "datagrams_denied")                                           \
  X(DATAGRAMS_REFUSED_NO_ENDPOINT, "datagrams_refused_no_endpoint")                 \
  X(DATAGRAMS_REFUSED_PROTOCOL, "datagrams_refused_protocol")                       \
  X(DATAGRAM_RECORDS_LOST, "datagram_records_lost")                                 \
  X(ARRIVALS_ANSWERED, "arrivals_answered")                                         \
  X(DNS_REDIRECTED, "dns_redirected")                                               \
  X(DNS_LEFT_PROXY_AWAY, "dns_left_proxy_away")                                     \
  X(DNS_LEFT_NO_SLOT, "dns_left_no_slot")                                           \
  X(DNS_LEFT_BOUND_DEVICE, "dns_left_bound_device")                                 \
  X(DNS_LEFT_IPV6, "dns_left_ipv6")                                                 \
  X(DNS_LEFT_LINK_LOCAL, "dns_left_link_local")                                     \
  X(RECORDS_WRITTEN, "records_written")                                             \
  X(RECORDS_FULL, "records_full")                                                   \
  X(FLOWS_FULL, "flows_full")                                                       \
  X(RECORDS_UNUSED, "records_unused")                                               \
  X(ACCEPTED_WITH_DESTINATION, "accepted_with_destination")                         \
  X(ACCEPTED_WITHOUT_DESTINATION, "accepted_without_destination")                   \
  X(ARRIVALS_ALLOWED, "arrivals_allowed")                                           \
  X(ARRIVALS_DENIED_POLICY, "arrivals_denied_policy")                               \
  X(ARRIVALS_DENIED_NO_VERDICT, "arrivals_denied_no_verdict")                       \
  X(ARRIVALS_DENIED_MAP_FULL, "arrivals_denied_map_full")                           \
  X(ARRIVALS_DENIED_UNKNOWN_WORKLOAD, "arrivals_denied_unknown_workload")           \
  X(ARRIVALS_REFUSED_LINK_LOCAL, "arrivals_refused_link_local")                     \
  X(PACKETS_DROPPED_SOURCE, "packets_dropped_source")                               \
  X(PACKETS_DROPPED_DESTINATION, "packets_dropped_destination")                     \
  X(PACKETS_DROPPED_SERVICE, "packets_dropped_service")                             \
  X(PACKETS_DROPPED_PROTOCOL, "packets_dropped_protocol")                           \
  X(PACKETS_DROPPED_ICMP, "packets_dropped_icmp")                                   \
  X(PACKETS_DROPPED_OPTIONS, "packets_dropped_options")                             \
  X(PACKETS_DROPPED_FRAGMENT, "packets_dropped_fragment")                           \
  X(PACKETS_DROPPED_ETHERTYPE, "packets_dropped_ethertype")                         \
  X(PACKETS_DROPPED_MALFORMED, "packets_dropped_malformed")                         \
  X(POLICY_COUNTS_LOST, "policy_counts_lost")                                       \
  X(CONNECTIONS_UNRECORDED, "connections_unrecorded")                               \
  X(EVENTS_LOST, "connection_events_lost")                                          \
  X(DENIALS_UNREPORTED, "denials_unreported")                                       \
  X(FASTPATH_JOINED, "fastpath_joined")                                             \
  X(FASTPATH_NOT_JOINED, "fastpath_not_joined")                                     \
  X(FASTPATH_REDIRECTED, "fastpath_redirected")                                     \
  X(FASTPATH_TO_TCP_UNSAFE, "fastpath_to_tcp_unsafe")                               \
  X(FASTPATH_TO_TCP_NO_PEER, "fastpath_to_tcp_no_peer")                             \
  X(FASTPATH_TO_TCP_FULL, "fastpath_to_tcp_full")

enum um_counter {
#define UM_COUNTER_ID(id, name) UM_##id,
  UM_COUNTERS(UM_COUNTER_ID)
#undef UM_COUNTER_ID
      UM_COUNTER_COUNT,
};

#endif
