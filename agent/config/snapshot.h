// Snapshot: all configuration at one version, compiled and immutable.
//
// Values only, shared as shared_ptr<const Snapshot> between threads; unchanged parts are shared
// between successive snapshots, so pointer equality means "unchanged". Names are fully qualified
// here: every short host of an object was resolved against the object's namespace at compile time.
// Semantics of each field: networking.istio.io VirtualService, DestinationRule, Gateway,
// WorkloadEntry; ServiceEntry; core/v1 Service; discovery.k8s.io/v1 EndpointSlice; of policies:
// policy.h.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/address.h"
#include "base/shared_hash_map.h"
#include "base/shared_map.h"
#include "config/policy.h"
#include "config/values.h"

namespace mesh::config {

using Milliseconds = std::chrono::milliseconds;

// One network namespace with its processes: a WorkloadEntry (a Pod later), or the node's gateway.
struct Workload {
  ObjectName name;
  Labels labels;
  std::string service_account = "default";
  std::vector<IpAddress> addresses;  // the first is WorkloadEntry.address
  std::map<std::string, std::uint16_t>
      ports;  // WorkloadEntry.ports: a Service's port name -> number
  std::uint32_t weight = 1;
  std::string netns;      // annotation undermesh.io/netns; empty: it is of another machine
  std::string cgroup;     // annotation undermesh.io/cgroup; empty where netns is
  bool disabled = false;  // annotation undermesh.io/enrolment: disabled
  bool strict = false;    // annotation undermesh.io/mode; what nothing lets in is denied
  // Annotation undermesh.io/on-proxy-failure: without the proxy, straight to an endpoint.
  bool bypasses_proxy = false;
  bool fast_path = true;  // annotation undermesh.io/fastpath: disabled

  bool is_local() const { return !netns.empty() && !disabled; }  // to be enrolled here
  // "cluster.local/ns/<ns>/sa/<service account>", the principal without "spiffe://".
  std::string principal() const;
  friend bool operator==(const Workload&, const Workload&) = default;
};
using WorkloadPtr = std::shared_ptr<const Workload>;

enum class Protocol : std::uint8_t { kTcp, kHttp, kUdp };

struct ServicePort {
  std::string name;
  std::uint16_t port = 0;
  Protocol protocol = Protocol::kTcp;
  std::string target;     // targetPort: a number or a name; never empty
  bool fast_path = true;  // Service annotations fastpath: disabled, fastpath-exclude-ports

  Transport transport() const {
    return protocol == Protocol::kUdp ? Transport::kUdp : Transport::kTcp;
  }
  friend bool operator==(const ServicePort&, const ServicePort&) = default;
};

struct Service {
  ObjectName name;
  std::string host;                  // "reviews.default.svc.cluster.local", "api.example.com"
  std::vector<IpAddress> addresses;  // virtual addresses; empty when headless
  bool headless = false;             // clusterIP: None
  std::vector<ServicePort> ports;    // one number may be there twice: TCP or HTTP, and UDP
  Labels selector;
  std::optional<std::chrono::seconds> affinity;  // sessionAffinity ClientIP: for so long
  bool resets_on_removal = false;  // annotation undermesh.io/on-endpoint-removal: reset
  bool is_entry = false;           // a host of the ServiceEntry `name`

  const std::string& display_name() const { return is_entry ? host : name.name; }  // as in Istio
  std::string object() const {  // "Service default/reviews"
    return (is_entry ? "ServiceEntry " : "Service ") + name.to_string();
  }
  const ServicePort* find_port(std::uint16_t port, Transport transport = Transport::kTcp) const;
  bool has_slow_port() const { return !std::ranges::all_of(ports, &ServicePort::fast_path); }
  friend bool operator==(const Service&, const Service&) = default;
};
using ServicePtr = std::shared_ptr<const Service>;

struct Endpoint {
  SocketAddress address;
  WorkloadPtr workload;  // null when only an EndpointSlice knows the address
  std::uint32_t weight = 1;
  Labels labels;  // that a ServiceEntry gives it; none: those of the workload
  friend bool operator==(const Endpoint&, const Endpoint&) = default;
};

enum class Balancer : std::uint8_t { kLeastRequest, kRoundRobin, kRandom };

// What an object leaves out, or writes as 0 where Istio takes 0 for "unset", is the default here.
// A time-out that is switched off ("0s") is kNever.
struct ConnectionPool {
  static constexpr std::uint32_t kUnlimited = 0xffffffff;
  static constexpr Milliseconds kNever = std::chrono::hours(24 * 3650);
  std::uint32_t max_connections = kUnlimited;
  std::uint32_t max_pending_requests = kUnlimited;  // http1MaxPendingRequests
  std::uint32_t max_requests = kUnlimited;          // http2MaxRequests: active requests, H1 too
  std::uint32_t max_requests_per_connection = 0;    // 0: no limit
  Milliseconds connect_timeout{10'000};
  Milliseconds idle_timeout{3'600'000};  // http.idleTimeout, else tcp.idleTimeout
  std::optional<Milliseconds> max_connection_duration;
  struct Keepalive {
    std::uint32_t probes = 0;  // 0: the kernel's default
    Milliseconds time{0};
    Milliseconds interval{0};
    friend bool operator==(const Keepalive&, const Keepalive&) = default;
  };
  std::optional<Keepalive> tcp_keepalive;
  friend bool operator==(const ConnectionPool&, const ConnectionPool&) = default;
};

struct OutlierDetection {
  std::uint32_t consecutive_5xx = 5;      // 0: off
  std::uint32_t consecutive_gateway = 0;  // 502, 503, 504; 0: off
  bool split_local_origin = false;
  std::uint32_t consecutive_local_origin = 5;
  Milliseconds interval{10'000};
  Milliseconds base_ejection_time{30'000};
  std::uint32_t max_ejection_percent = 10;
  std::uint32_t min_health_percent = 0;
  friend bool operator==(const OutlierDetection&, const OutlierDetection&) = default;
};

struct TrafficPolicy {
  Balancer balancer = Balancer::kLeastRequest;
  ConnectionPool pool;
  std::optional<OutlierDetection> outlier;
  friend bool operator==(const TrafficPolicy&, const TrafficPolicy&) = default;
};

// The endpoints that one route destination chooses among.
struct Cluster {
  // "outbound|9080|v1|reviews.default.svc.cluster.local", "outbound|53/udp||..."; key of all live
  // state
  std::string name;
  ServicePtr service;
  std::uint16_t port = 0;  // the service's port
  Transport transport = Transport::kTcp;
  std::string subset;
  std::vector<Endpoint> endpoints;
  TrafficPolicy policy;
  friend bool operator==(const Cluster&, const Cluster&) = default;
};
using ClusterPtr = std::shared_ptr<const Cluster>;

struct HttpMatch {
  std::string name;
  std::optional<StringMatch> uri, scheme, method, authority;
  std::vector<std::pair<std::string, StringMatch>> headers;  // names in lower case
  std::vector<std::pair<std::string, StringMatch>> without_headers;
  std::vector<std::pair<std::string, StringMatch>> query_params;
  std::uint16_t port = 0;  // 0: any
  Labels source_labels;
  std::string source_namespace;
  std::vector<std::string> gateways;  // "mesh" or "ns/name"; empty: those of the VirtualService

  friend bool operator==(const HttpMatch&, const HttpMatch&) = default;
};

// `host` in set is the new authority. Neither list has headers of the connection's own framing.
struct HeaderOperations {
  std::vector<std::pair<std::string, std::string>> set, add;  // names in lower case
  std::vector<std::string> remove;
  bool empty() const { return set.empty() && add.empty() && remove.empty(); }
  friend bool operator==(const HeaderOperations&, const HeaderOperations&) = default;
};

struct WeightedDestination {
  std::string host;  // fully qualified where it names a known Service
  std::string subset;
  std::uint16_t port = 0;  // 0: the service's only port, else the port the client asked for
  std::uint32_t weight = 0;
  HeaderOperations request_headers, response_headers;
  friend bool operator==(const WeightedDestination&, const WeightedDestination&) = default;
};

// Shares are parts per million.
struct Fault {
  Milliseconds delay{0};
  std::uint32_t delay_ppm = 0;
  std::uint16_t abort_status = 0;
  std::uint32_t abort_ppm = 0;
  friend bool operator==(const Fault&, const Fault&) = default;
};

struct HttpRoute {
  std::string name;                // "" when the rule has none
  std::vector<HttpMatch> matches;  // empty: every request
  std::vector<WeightedDestination> destinations;
  std::uint32_t total_weight = 0;       // one destination: 1, whatever its weight says
  std::optional<Milliseconds> timeout;  // none: disabled
  Fault fault;
  HeaderOperations request_headers, response_headers;
  friend bool operator==(const HttpRoute&, const HttpRoute&) = default;
};

struct TcpMatch {
  std::vector<IpBlock> subnets;  // of the address that the client asked for; empty: any
  std::uint16_t port = 0;        // 0: any
  Labels source_labels;
  std::string source_namespace;
  std::vector<std::string> gateways;  // as in HttpMatch

  friend bool operator==(const TcpMatch&, const TcpMatch&) = default;
};

struct TcpRule {
  std::vector<TcpMatch> matches;  // any of them; empty: every connection
  std::vector<WeightedDestination> destinations;
  friend bool operator==(const TcpRule&, const TcpRule&) = default;
};

struct VirtualService {
  ObjectName name;
  std::vector<std::string> hosts;     // exact, "*.suffix" or "*"
  std::vector<std::string> gateways;  // "mesh" or "ns/name"; never empty
  std::vector<HttpRoute> http;        // ordered, first match wins
  std::vector<TcpRule> tcp;           // the same
  friend bool operator==(const VirtualService&, const VirtualService&) = default;
};
using VirtualServicePtr = std::shared_ptr<const VirtualService>;

// What a TCPRoute, or the `tcp` of a VirtualService, makes of a service's TCP ports.
struct TcpRoute {
  std::string name;              // "TCPRoute ns/name"
  std::uint16_t port = 0;        // of the service; 0: all of its TCP ports
  std::string client_namespace;  // a consumer's route: for its own clients alone; empty: for all
  std::vector<TcpRule> rules;    // ordered, first match wins; none: the next route
  friend bool operator==(const TcpRoute&, const TcpRoute&) = default;
};

// The routing of one host for one kind of listener (mesh clients, or one gateway).
struct HostRoutes {
  std::vector<VirtualServicePtr>
      services;  // mesh: one (the oldest); a gateway: merged, oldest first
  friend bool operator==(const HostRoutes&, const HostRoutes&) = default;
};

struct HostTable {
  StringMap<HostRoutes> exact;
  std::vector<std::pair<std::string, HostRoutes>> wildcards;  // longest suffix first, "*" last

  // Exact host first, then the longest wildcard ("*.foo.com" does not match "foo.com"); null when
  // none. `host`: lower case, no port.
  const HostRoutes* find(std::string_view host) const;
  friend bool operator==(const HostTable&, const HostTable&) = default;
};

// One HTTP server of a Gateway whose selector matches this node's gateway labels. Servers of one
// address and port (of any Gateway) share a listener: find_gateway_server() picks by host.
struct GatewayServer {
  ObjectName gateway;
  SocketAddress bind;              // unspecified address when the server has no `bind`
  std::vector<std::string> hosts;  // "*", "*.suffix" or exact; the "ns/" part is in host_namespaces
  std::vector<std::string> host_namespaces;  // parallel to hosts: "*", "." resolved, or a namespace
  HostTable routes;  // the VirtualServices bound to it, by the hosts that both name
  friend bool operator==(const GatewayServer&, const GatewayServer&) = default;
};

using Clusters = SharedHashMap<std::string, ClusterPtr, StringHash>;

// The next version shares what stayed as it was (base/shared_map.h).
struct Snapshot {
  std::uint64_t version = 0;
  SharedMap<ObjectName, WorkloadPtr> workloads;
  SharedHashMap<IpAddress, WorkloadPtr> workload_by_address;
  SharedMap<std::string, WorkloadPtr> workload_by_cgroup;  // those to be enrolled here
  SharedMap<std::string, ServicePtr> services;             // by host
  SharedHashMap<IpAddress, ServicePtr> service_by_address;
  StringMap<std::string> external_names;  // of ExternalName services: the name behind each host
  Clusters clusters;                      // by name, as seen from the service's namespace
  // What a DestinationRule of the client's own namespace makes of a service of another: key
  // "<client ns>/<cluster name>".
  Clusters client_clusters;
  std::set<std::string, std::less<>> client_hosts;  // that have client_clusters
  std::vector<VirtualServicePtr> virtual_services;  // oldest first
  // By the service's host: TCPRoutes of consumers, those of the service's own namespace, then the
  // VirtualService; oldest first in each.
  StringMap<std::vector<TcpRoute>> tcp_routes;
  HostTable mesh_hosts;
  std::vector<GatewayServer> gateway_servers;
  std::vector<AuthorizationPolicyPtr> policies;    // oldest first
  std::vector<NetworkPolicyPtr> network_policies;  // oldest first
  // Indexes into these by the namespace that they select in; "": in all of them.
  StringMap<std::vector<std::size_t>> policies_in, network_policies_in;
  StringMap<Labels> namespaces;           // labels of Namespace objects, with their own name
  std::vector<IpAddress> node_addresses;  // this node's own

  // The cluster as a client of `client_ns` sees it; null when service, port or subset is unknown.
  ClusterPtr find_cluster(std::string_view client_ns, std::string_view host, std::uint16_t port,
                          std::string_view subset, Transport transport = Transport::kTcp) const;
  // The VirtualService for mesh clients of `host` (no port, lower case); null when none.
  const HostRoutes* find_mesh_routes(std::string_view host) const { return mesh_hosts.find(host); }
  // The server of the listener at `bind` (as the listener was bound) that serves `host`: the most
  // specific host wins, then the oldest Gateway; null when none.
  const GatewayServer* find_gateway_server(const SocketAddress& bind, std::string_view host) const;
};
using SnapshotPtr = std::shared_ptr<const Snapshot>;

// "reviews.default.svc.cluster.local": what `host` means to an object or a client in namespace
// `ns`: short names are of that namespace; "name.ns" and "name.ns.svc" where such a Service exists.
std::string qualified_host(const Snapshot& snapshot, std::string_view host, std::string_view ns);

// A host as it is written in an object: in lower case, without the dot of the root.
std::string plain_host(std::string_view written);

std::string cluster_name(std::string_view host, std::uint16_t port, std::string_view subset,
                         Transport transport = Transport::kTcp);

// A share of the connections to a service.
struct TcpBackend {
  ClusterPtr cluster;  // null: there is no such destination, and its share is refused
  std::uint32_t weight = 1;
  friend bool operator==(const TcpBackend&, const TcpBackend&) = default;
};

// Where a connection of `client` to `to`, an address and TCP port of `service`, may go; the weights
// need not add up to anything. Empty: nowhere, it is refused.
std::vector<TcpBackend> tcp_backends(const Snapshot& snapshot, const Workload& client,
                                     const Service& service, const SocketAddress& to);
// Whether that differs from client to client.
bool is_client_dependent(const Snapshot& snapshot, const Service& service, std::uint16_t port);

}  // namespace mesh::config
