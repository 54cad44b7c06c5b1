// Putting the objects of a whole set together: the second half of compile().
//
// Everything here is oldest first. Reports take errors and warnings that only the set shows.
#pragma once

#include <deque>
#include <set>
#include <string>
#include <vector>

#include "config/kinds.h"

namespace mesh::config {

template <class T>
struct Part {
  Report* report;
  T value;
};

struct Parts {
  std::vector<Part<ServicePart>> services;
  std::vector<Part<WorkloadPart>> workloads;
  std::vector<Part<EndpointSlice>> slices;
  std::vector<Part<VirtualService>> virtual_services;
  std::vector<Part<TcpRoutePart>> tcp_routes;
  std::vector<Part<DestinationRule>> destination_rules;
  std::vector<Part<Gateway>> gateways;
  std::vector<Part<PolicyPart>> policies;
  std::vector<Part<NetworkPolicy>> network_policies;
  std::vector<Part<NamespacePart>> namespaces;
};

// What of other objects says what becomes of a workload, and of the services that select it.
struct Surroundings {
  bool has_slices = false;
  std::set<std::string> strict_namespaces;
  // Of the hosts of DestinationRules: the first label, or "*".
  std::set<std::string, std::less<>> rule_labels;
  StringMap<std::vector<ServicePtr>> selecting;  // those that select workloads, by namespace
  std::vector<ServicePtr> spelt_out;             // those that have a list of their own
};

std::set<std::string> strict_namespaces(const Parts& parts);

// Reads the object into its part, where it has no error.
void read_object(Report& report, const CompileOptions& options, Parts& parts);

// The previous value where nothing changed, so that pointers tell what did.
template <class T>
std::shared_ptr<const T> shared(T value, const std::shared_ptr<const T>& previous) {
  if (previous && *previous == value) return previous;
  return std::make_shared<const T>(std::move(value));
}

void add_namespaces(Parts& parts, Snapshot& snapshot);
// Reports what the workload has of what belongs to others: to workloads of `snapshot`, to services,
// to this machine.
void judge_workload(const Workload& workload, const CompileOptions& options,
                    const Snapshot& snapshot, Report& report);
void add_workload(const WorkloadPtr& workload, Snapshot& snapshot);
void remove_workload(const WorkloadPtr& workload, Snapshot& snapshot);
// In this order: each needs what the ones before put into `snapshot`.
void add_workloads(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                   Snapshot& snapshot);
void add_services(Parts& parts, const Snapshot* previous, Snapshot& snapshot);
void add_clusters(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                  Snapshot& snapshot);
// The clusters of a service that workloads alone are behind, and no DestinationRule is about, as
// they were but for their endpoints. False: there is something to report.
bool follow_workloads(const Service& service, Snapshot& snapshot);
void add_routes(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                Snapshot& snapshot);
void add_network_policies(Parts& parts, const Snapshot* previous, Snapshot& snapshot);
void add_tcp_routes(Parts& parts, Snapshot& snapshot);
void add_policies(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                  Snapshot& snapshot);

// Refuses, or warns of, the fields of a policy that HTTP alone can judge.
void judge_http_fields(PolicyPart& part, bool tcp_only, Report& report);
// Says what it means that a policy is refused.
void report_refusal(const AuthorizationPolicy& policy, Report& report);
void report_refusal(const NetworkPolicy& policy, Report& report);

// Whether `host` lies below `wildcard` ("*.suffix" or "*"); a wildcard may lie below a wider one.
bool is_below(std::string_view host, std::string_view wildcard);

}  // namespace mesh::config
