// The messages between meshd and meshproxy: JSON objects, one a frame (feed/channel.h), on
// proxy.sock. meshproxy listens (bound as root, mode 0600, then listen() as the proxy's user: the
// dialler checks that user by SO_PEERCRED), accepts only uid 0 and never dials. Both sides ignore
// members they do not know; an unknown "type" is logged and ignored; a missing or mistyped member
// of a known type ends the channel. [fd n]: the n-th descriptor of the frame.
//
// The first frame of every peer says who it is; meshhold goes on with feed/hold.h. meshd does not
// trust what the proxy says: texts of it are cut and made printable.
//   hello      {type, role: "meshd", version}; a second meshd replaces the first
//
// meshd -> meshproxy
//   options    {type, node, root_namespace, heartbeat: bool [fd 0], access_log: bool [next fd],
//               gateway: {id, namespace, name, labels:{}, service_account, addresses:[]}}
//              After the hello, and again when the log is reopened. heartbeat: a BPF array of one
//              u64 to mmap and stamp, at least every 250 ms, with the CLOCK_MONOTONIC nanoseconds
//              at which the slowest of the proxy's threads last took its turn.
//              access_log: true brings a descriptor opened for append; false: no log.
//   update     {type, version: u64, reset: bool, put: [object trees], delete: [{kind, namespace,
//               name}], enrolled: [{id, namespace, name, denials}]}
//              reset: forget all objects first (the first update of a connection). Objects are
//              whole resources (apiVersion, kind, metadata, spec), Services with their addresses.
//              enrolled is always the whole list; a workload that is not in it is not accepted for,
//              whatever meshhold sent. denials: opaque; when it changes, the kernel's policy for
//              that client did, and connections opened before are not used again. Versions grow on
//              one connection. Large changes are cut into several frames: `more: true` on all but
//              the last of one version; nothing is compiled or answered before the last.
//   kernel_counters {type, at_ms: unix time, totals: {name: n}, audit: {name: n}, fast_path,
//               denied_by_policy: [{policy, rule, count}], allowed_by_policy, audited_by_policy:
//               the same, source_read: bool}
//              Every 2 s; rule -1: the policy's default. fast_path: an api::FastPathStatus.
//              source_read: the source of the configuration could just be read.
//   flows      {type, edges: [{workload: id, inbound, failed: bool, service, other: addresses,
//               opened, closed, sent, received, retransmits}], records: [{denied, inbound,
//               established: bool, workload: id, local, remote, service: addresses, start_ms,
//               duration_ms, sent, received, retransmits, reason, policy, rule, end:
//               "closed_by_client"| "closed_by_server"|"reset"}], dropped: n}
//              Every half second, of L4 connections past the proxy: what is to be added to the sums
//              of each edge, and a line of the access log each; "": unknown. service: what the
//              application asked for, inbound where it arrived. dropped: what is not in here.
//   tap        {type, on: bool}                          on while somebody listens
//   dump       {type, id: u64, what: "routes"|"clusters"|"endpoints"|"policies"|"stats"}
//
// meshproxy -> meshd
//   ready      {type, version: string, workers: n, dns: bool}
//              After the hello: the proxy's own version, and whether it will send `dns`.
//   dns        {type, workloads: [id]}
//              After ready, and when it changes: whose DNS it has the sockets for and answers.
//   ack        {type, version}                           the workers use this version now
//   nack       {type, version, problems: [{kind, namespace, name, field, message}]}
//              the version before stays in use
//   tap_event  {type, ...the members of api::TapEvent}: time, source, destination, route, cluster,
//               endpoint, workload, method, path, status, flags, duration_ms, request_id
//   dump_reply {type, id, body: {columns: [names], rows: [{}]}}  rows as api::Dump has them
//   log        {type, level, message}                    what an operator must see
#pragma once

#include <cstdint>
#include <string_view>

namespace mesh::feed {

inline constexpr std::string_view kHello = "hello";
inline constexpr std::string_view kOptions = "options";
inline constexpr std::string_view kUpdate = "update";
inline constexpr std::string_view kKernelCounters = "kernel_counters";
inline constexpr std::string_view kFlows = "flows";
inline constexpr std::string_view kTap = "tap";
inline constexpr std::string_view kDump = "dump";
inline constexpr std::string_view kReady = "ready";
inline constexpr std::string_view kDns = "dns";
inline constexpr std::string_view kAck = "ack";
inline constexpr std::string_view kNack = "nack";
inline constexpr std::string_view kTapEvent = "tap_event";
inline constexpr std::string_view kDumpReply = "dump_reply";
inline constexpr std::string_view kLog = "log";

}  // namespace mesh::feed
