// What each kind reads from its object, before hosts are resolved and objects are put together.
//
// A reader reports every error of its object; where it reported one its result is not used, except
// a policy's. Values.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"

namespace mesh::config {

struct Metadata {
  Labels labels;
  Labels annotations;
};
Metadata read_metadata(Report& report);

// The object's spec under its table; an absent spec is an empty one. Strict: the top level too.
Fields open_spec(Report& report, Schema schema, Strictness strictness = Strictness::kStrict);

struct EndpointSlice {
  struct Port {
    std::string name;
    std::uint16_t port = 0;
    Transport transport = Transport::kTcp;
  };
  ObjectName name;
  std::string service;  // label kubernetes.io/service-name, in the slice's namespace
  std::vector<Port> ports;
  std::vector<IpAddress> addresses;  // of ready endpoints
};

struct PolicyBlocks {  // those that are written
  std::optional<Balancer> balancer;
  std::optional<ConnectionPool> pool;
  std::optional<OutlierDetection> outlier;
};
struct DestinationPolicy {
  PolicyBlocks blocks;
  std::map<std::uint16_t, PolicyBlocks> ports;  // portLevelSettings
};
struct DestinationRule {
  struct Subset {
    std::string name;
    Labels labels;
    DestinationPolicy policy;
  };
  ObjectName name;
  std::string host;  // as written, in lower case
  bool own_namespace_only = false;
  bool has_policy = false;  // spec.trafficPolicy is there
  DestinationPolicy policy;
  std::vector<Subset> subsets;
};

struct TcpRoutePart {
  struct Parent {
    std::string path;
    ObjectName service;
    std::string section;     // the name of one of its ports
    std::uint16_t port = 0;  // 0: any
  };
  ObjectName name;
  std::vector<Parent> parents;
  std::vector<TcpRule> rules;
};

struct Gateway {
  ObjectName name;
  Labels selector;
  std::vector<GatewayServer> servers;
};

// A policy and what only its surroundings can judge.
struct PolicyPart {
  AuthorizationPolicy policy;
  std::vector<std::string> http_fields;  // paths of fields that only HTTP can judge
};

struct ServicePart {
  Service service;
  std::string external_name;        // of an ExternalName service, which has nothing else
  std::vector<Workload> endpoints;  // that a ServiceEntry spells out; they have no name
};
// The mesh's own annotations of a Service or a ServiceEntry, whose ports are read.
void read_service_annotations(Report& report, Service& service);
// Of each of them, that it has no effect.
void warn_of_annotations(Report& report, std::string_view why);
// An L7 protocol that the mesh knows by name alone, as `path` of the port says.
void warn_of_tcp_only(const Fields& port, std::string_view path, const std::string& protocol);
ServicePart read_service(Report& report);
std::vector<ServicePart> read_service_entry(Report& report);  // one a host; none: resolution NONE
EndpointSlice read_endpoint_slice(Report& report);
struct WorkloadPart {
  Workload workload;
  bool has_mode = false;  // its own, not its namespace's
};
WorkloadPart read_workload_entry(Report& report);
// What a WorkloadEntry's spec and an endpoint of a ServiceEntry have in common.
Schema workload_fields();
Workload read_workload(const Fields& fields);
VirtualService read_virtual_service(Report& report);  // hosts as written
DestinationRule read_destination_rule(Report& report);
Gateway read_gateway(Report& report);
TcpRoutePart read_tcp_route(Report& report);
struct NamespacePart {
  Labels labels;
  bool strict = false;  // annotation undermesh.io/mode, of workloads that have none of their own
};
NamespacePart read_namespace(Report& report);
NetworkPolicy read_network_policy(Report& report);
PolicyPart read_authorization_policy(Report& report, const std::string& root_namespace);

// Whether an endpoint may live at `ip`: not loopback, link-local, metadata, multicast, unspecified.
bool is_endpoint_address(const IpAddress& ip);
std::string lower(std::string_view text);             // ASCII
std::string service_host(const ObjectName& service);  // "reviews.default.svc.cluster.local"
bool is_host(std::string_view host);  // a DNS name in lower case, perhaps "*" or "*.suffix"

}  // namespace mesh::config
