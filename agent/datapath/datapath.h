// Datapath: the kernel's share of the mesh, as meshd drives it.
//
// Declarative: apply() takes the whole state wanted and writes only the differences, in an order
// that never opens a gap. All of policy changes at once, before the services that reach new
// addresses: while apply() runs a program decides by the policy before or by the new one, and when
// it returns by the new one alone. Programs, links and maps are pinned:
// a destroyed Datapath leaves everything running, and the next one adopts it. One thread at a time.
// Kernel floor 6.1.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/address.h"
#include "base/result.h"
#include "base/shared_map.h"
#include "base/unique_fd.h"

namespace mesh::datapath {

using WorkloadId = std::uint32_t;  // never 0, never reused while the maps live
using ServiceId = std::uint32_t;   // never 0
using ClassId = std::uint32_t;     // peers that every policy set treats alike; 0: strangers
using SetId = std::uint32_t;       // a policy set; 0: no policy

enum class Transport : std::uint8_t { kAny = 0, kTcp = 6, kUdp = 17 };

struct EnrolledWorkload {
  WorkloadId id = 0;
  std::uint64_t netns_cookie = 0;
  std::string cgroup;  // path; empty: no hooks of its own (the gateway, in the host's namespace)
  std::vector<IpAddress> addresses;
  ClassId class4 = 0, class6 = 0;  // what its destinations' sets take it for, by family
  SetId ingress = 0, egress = 0;
  // The responder serves it (127.0.0.0/8:15053 on lo, UDP and TCP): it asks that, not its resolver.
  bool has_responder = false;
  // While the proxy is away it goes straight to endpoints (ServiceEntry::of_clients).
  bool bypasses_proxy = false;
  // Borrowed; for its hook on what arrives. -1: that hook stays as it is, or is not there.
  int netns = -1;
  // Without all that it shall have it may talk to nobody, and what it had open before is ended. Its
  // packets are policed too, where a veth device of this machine leads to it.
  bool strict = false;
  bool fast_path = true;  // its connections may join the same-node fast path

  auto kernel_part() const {
    return std::tie(id, netns_cookie, cgroup, addresses, class4, class6, ingress, egress,
                    has_responder, bypasses_proxy, fast_path);
  }
  friend bool operator==(const EnrolledWorkload& a, const EnrolledWorkload& b) {
    return a.kernel_part() == b.kernel_part();
  }
};

// A share of the connections to a service; the weights need not add up to anything.
struct Share {
  std::optional<SocketAddress> endpoint;  // nullopt: they are refused
  double weight = 1;
};
// What the kernel picks by: any column with equal chance, then `first` where a random number of 32
// bits is not above `threshold`, else `second`.
struct Column {
  std::optional<SocketAddress> first, second;
  std::uint32_t threshold = 0xffffffff;
  friend bool operator==(const Column&, const Column&) = default;
};
using Columns = std::vector<Column>;  // at most 65535; none: ECONNREFUSED
// At most one column for each endpoint; the chances are those of the shares to within 2^-32.
Columns columns_of(const std::vector<Share>& shares);

struct ServiceEntry {
  enum class Kind : std::uint8_t { kProxy, kBalance };  // L7 through the proxy; L4 in the kernel
  ServiceId id = 0;
  Kind kind = Kind::kBalance;
  // Of kBalance. An IPv4 service address has no IPv6 endpoints: its clients could not go there.
  Columns columns;
  // In place of `columns`, where they depend on the client; one that is not here is refused. Of
  // kProxy, where those clients go that bypass the proxy while it is away.
  std::optional<std::map<WorkloadId, Columns>> of_clients = {};
  std::chrono::seconds affinity{0};  // a client keeps its endpoint for so long; 0: it does not
  bool resets_on_removal = false;    // connections to what was an endpoint (end_removed())
  friend bool operator==(const ServiceEntry&, const ServiceEntry&) = default;
};

// What somebody of a class may do, at ports first..last.
struct VerdictKey {
  ClassId peer = 0;  // where a class has no answer, that of class 0 holds
  Transport transport = Transport::kAny;
  std::uint16_t first = 0, last = 65535;
  friend auto operator<=>(const VerdictKey&, const VerdictKey&) = default;
};
struct VerdictEntry {
  bool allowed = false;
  std::uint32_t policy = 0;  // number of the counter; policy_rules() in control says of what
  std::uint32_t audit = 0;   // number of an AUDIT policy's counter; 0: none matched
  friend bool operator==(const VerdictEntry&, const VerdictEntry&) = default;
};
// The most specific entry holds: the longest prefix of the ports that it is cut into, all ports of
// a transport, any transport. Nothing found refuses.
using PolicySet = std::map<VerdictKey, VerdictEntry>;
// As the kernel finds it; null: none, which refuses.
const VerdictEntry* find_verdict(const PolicySet& set, ClassId peer, Transport transport,
                                 std::uint16_t port);

struct Peer {
  ClassId peer = 0;
  SetId ingress = 0;  // who may connect to it
  friend bool operator==(const Peer&, const Peer&) = default;
};

// What stayed from one state to the next is to be shared by them (base/shared_map.h): then apply()
// costs what changed.
struct State {
  std::map<WorkloadId, EnrolledWorkload> workloads;
  // By virtual address and port: TCP, and UDP (kBalance alone).
  SharedMap<SocketAddress, ServiceEntry> services, udp_services;
  SharedMap<SetId, PolicySet, std::less<>, 16> sets;
  SharedMap<IpAddress, Peer> peers;
  std::map<IpBlock, ClassId> blocks;  // all other addresses, by the longest prefix
  // Proxied services that refuse a client, as every endpoint does that its routes can reach.
  SharedMap<std::pair<WorkloadId, ServiceId>, std::uint32_t> refusals;  // -> policy
  // No services any more, that had resets_on_removal: nothing is their endpoint (end_removed()).
  std::set<SocketAddress> former_services;
  // Endpoints here, and services, whose connections stay out of the fast path.
  std::set<SocketAddress> slow_listeners;
};

// What of a State has no room in the kernel, but for what is of one workload alone.
struct Misfits {
  std::set<SetId> sets;  // whom they judge is refused
  // Where one of these is missing every address that is not found is refused, in both directions.
  std::set<IpAddress> peers;
  std::set<IpBlock> blocks;
  std::set<SocketAddress> services, udp_services;       // refused
  std::set<std::pair<WorkloadId, ServiceId>> refusals;  // all proxied services refuse the client
  friend bool operator==(const Misfits&, const Misfits&) = default;
};

// A TCP connection of an enrolled workload that goes past no proxy, or the refusal of one.
struct Flow {
  enum class Kind : std::uint8_t { kOpen, kClosed, kDenied };
  Kind kind = Kind::kOpen;
  std::uint64_t cookie = 0;  // of the socket; 0 where it was denied
  WorkloadId workload = 0;   // whose end this is
  bool is_inbound = false;
  bool is_established = false;           // it once was
  std::uint8_t tcp_state = 0;            // of netinet/tcp.h: now, or before it was closed
  std::optional<SocketAddress> local;    // unknown where a connect was denied
  std::optional<SocketAddress> remote;   // the endpoint, or the client; unknown: none was chosen
  std::optional<SocketAddress> service;  // outbound: what the application asked for
  std::chrono::nanoseconds started{0}, ended{0};  // CLOCK_MONOTONIC; open: now
  std::uint64_t sent = 0, received = 0;           // the application's bytes
  std::uint32_t retransmits = 0;
  std::uint32_t policy = 0;  // number of what allowed or denied it; 0: of none
  // Of a denial, and of what the mesh ended: the counter's name.
  std::string reason;
};

// Who talks by UDP with a port of an enrolled workload, as far as the kernel remembers it: where an
// answer may have to be told from a question. Without a datagram for 60 s it is over.
struct UdpFlow {
  WorkloadId workload = 0;
  std::uint16_t port = 0;     // the workload's
  bool is_inbound = false;    // the other end began
  bool is_connected = false;  // it answers by a connected socket: what that sends is not seen
  SocketAddress remote;
  // Outbound: the service that `remote` is a backend of to whoever asks it here; none, or several:
  // not known.
  std::optional<SocketAddress> service;
  std::chrono::nanoseconds quiet{0};  // since the last datagram, to within a second
};

// Sums over CPUs since the maps were made, by name ("connects_redirected",
// "connects_denied_policy", ...).
struct Counters {
  std::map<std::string, std::uint64_t> totals;
  // By VerdictEntry::policy, both ends of a connection on one node counted.
  std::map<std::uint32_t, std::uint64_t> denied_by_policy, allowed_by_policy, audited_by_policy;
};

// Between what a workload should have and what it has.
struct Difference {
  std::string what;  // "its hook connect4", ...
  bool is_repaired = false;
  bool is_harmless = false;  // nothing is unpoliced without it
  friend bool operator==(const Difference&, const Difference&) = default;
};

class Datapath {
 public:
  virtual ~Datapath() = default;
  // Programs on the mesh's own cgroup (connect, sock_ops, getsockopt, sock_create). Idempotent.
  virtual Result<> attach_mesh(const std::string& cgroup_path) = 0;
  // Returns the workloads that could not be enrolled or kept, with the reason; all else is applied.
  // Such a workload is not captured at all where it was not before; a strict one is refused
  // everything that its hooks see. The next apply() tries again.
  // Under id 0: what is of no one workload and did not fit (misfits()), each map once; it refuses
  // until it fits. What did not fit of a workload refuses too.
  virtual Result<std::map<WorkloadId, Error>> apply(const State& wanted) = 0;
  // Of the last apply().
  virtual const Misfits& misfits() const = 0;
  // The strict workloads that are enrolled although packets can go round the hooks of their
  // sockets, with the reason.
  virtual const std::map<WorkloadId, std::string>& uncovered() const = 0;
  // Looks whether an enrolled workload has what apply() gave it (hooks, rows, packet programs) and
  // gives it again what it has not; programs of others are only named. Nothing for one that apply()
  // could not enrol.
  virtual Result<std::vector<Difference>> audit(const EnrolledWorkload& workload) = 0;
  // The same for what is of no one workload: the mesh's own hooks, which of its two states the
  // programs decide by (um_config), the block of services' addresses, the switch of the fast path
  // where it is on, and the rows of services, refusals, peers, blocks and the fast path: so many of
  // each at a time (kAuditedRows), the next ones next time.
  static constexpr std::size_t kAuditedRows = 2000;
  virtual Result<std::vector<Difference>> audit_mesh() = 0;
  // Proves that its connects are captured, by one from inside. The outcomes of those that are back,
  // or overdue, are taken later: `refused`, when one was not captured.
  virtual Result<> send_canary(const EnrolledWorkload& workload,
                               std::chrono::steady_clock::time_point now) = 0;
  virtual std::map<WorkloadId, Result<>> take_canaries(
      std::chrono::steady_clock::time_point now) = 0;
  // Ends the TCP connections and connected UDP sockets of enrolled workloads that the policies of
  // `state` forbid, at whichever end. What is connecting while this looks may be missed: ask again
  // later.
  virtual Result<> end_forbidden(const State& state) = 0;
  // Resets connections that were made through a service with resets_on_removal, or one that is no
  // more, to what is none of its endpoints by `state`. What is connecting while this looks may be
  // missed: ask again later.
  virtual Result<> end_removed(const State& state) = 0;
  // What was closed and denied since this was asked last; what nobody asked for in time is counted
  // as lost ("connection_events_lost").
  virtual Result<std::vector<Flow>> take_flows() = 0;
  // What is open, of workloads whose namespace is known. Takes as long as the kernel needs to list
  // the sockets of each.
  virtual Result<std::vector<Flow>> open_flows(const State& state) = 0;
  virtual Result<std::vector<UdpFlow>> udp_flows() = 0;
  virtual Result<Counters> counters() = 0;
  // What was counted for policies of other numbers is counted no more.
  virtual Result<> forget_policies_but(const std::set<std::uint32_t>& numbers) = 0;
  // What the maps hold now: read once by a restarted meshd, to keep its numbers.
  virtual Result<State> adopt() = 0;
  // The same-node fast path, off at first; apply() keeps it at all enrolled workloads. Off:
  // detached, and what had joined goes on by TCP; after an error it is to be called again.
  // Errc::unavailable: not on this kernel, with the reason.
  virtual Result<> switch_fast_path(bool on) = 0;
  // Empty: it is as it was switched. Else it stopped at an apply(): what shall stay out of it could
  // not be written.
  virtual const std::string& why_fast_path_stopped() const = 0;
  // Sends data of its own through it, in a namespace and control group of its own, beside the one
  // that attach_mesh() named; the outcome is taken later. Errc::unavailable: not on this kernel.
  // take: nothing while none is done, or none was started. Errc::refused: it is wrong here.
  virtual Result<> start_fast_path_test(std::chrono::steady_clock::time_point now) = 0;
  virtual std::optional<Result<>> take_fast_path_test(
      std::chrono::steady_clock::time_point now) = 0;
  // Connections that have lived for some round trips since this was called last may join; to be
  // called every half second. Nothing where it is off.
  virtual Result<> let_settled_join(const State& state) = 0;
  // A duplicate of the map that the proxy stamps with CLOCK_MONOTONIC nanoseconds (one mmapped
  // u64).
  virtual Result<UniqueFd> heartbeat_map() = 0;
};

// Sizes count when the maps are made; adopted ones keep theirs.
struct Options {
  std::string pin_dir = "/sys/fs/bpf/undermesh";
  std::uint32_t max_services = 16384;
  std::uint32_t max_endpoints = 131072;
  std::uint32_t max_sets = 16384;
  std::uint32_t max_refusals = 131072;
  std::uint32_t max_workloads = 4096;
  std::uint32_t max_udp_flows = 65536;  // and choices of sockets; the least recently used goes
  // Where virtual addresses are given from: what is no service in it refuses. IPv4.
  std::optional<IpBlock> service_range = {};
};
// Loads the programs, or adopts the pinned ones. Programs of another build are replaced in place,
// without a gap, by attach_mesh() and apply(). Where the pinned ones are of another layout (the
// shapes of maps), they go on with their maps until the first apply() has filled new ones; adopt()
// then knows the enrolled workloads and the proxied services only, and the counters begin at 0.
// pin_dir lies on a bpffs (ensure_bpffs) and has one owner at a time: unavailable while another
// process has it. Needs root.
Result<std::unique_ptr<Datapath>> open_kernel_datapath(const Options& options);

// Detaches every link, unpins everything below pin_dir; works with meshd dead. Idempotent.
Result<std::vector<std::string>> disable_all(const std::string& pin_dir);

// The mount point of cgroup2, by file-system type (/proc/self/mounts).
Result<std::string> find_cgroup2();
// Mounts a bpffs at `dir` where none is; true when it did (then the caller unmounts it at the end).
Result<bool> ensure_bpffs(const std::string& dir = "/sys/fs/bpf");

struct Finding {
  enum class Level : std::uint8_t { kOk, kWarning, kError };
  Level level = Level::kOk;
  std::string subject;  // "kernel", "cgroup2", "btf", ...
  std::string message;
  std::string remedy;  // empty when ok
};
// What `meshctl check` says about this machine before anything is tried: root, cgroup2, BTF, kernel
// 6.1, programs on our hooks from the root down with exclusive or PREORDER flags, lo, limits.
std::vector<Finding> check_machine(const std::string& cgroup_path);
// Whether the mesh's own hooks are where attach_mesh() put them; nothing where it did not. Works
// with meshd dead. Needs root: nothing without.
std::vector<Finding> check_mesh_hooks(const std::string& pin_dir, const std::string& cgroup_path);

}  // namespace mesh::datapath
