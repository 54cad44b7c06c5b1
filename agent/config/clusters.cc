// Workloads, services, endpoints, and what DestinationRules make of them.
#include <algorithm>
#include <set>

#include "config/assemble.h"

namespace mesh::config {
namespace {

// ---- endpoints

// Workloads of a namespace by each of their labels ("key=value").
class WorkloadIndex {
 public:
  explicit WorkloadIndex(const Snapshot& snapshot) {
    for (const auto& [name, workload] : snapshot.workloads)
      for (const auto& [key, value] : workload->labels)
        by_label_[entry(name.ns, key, value)].push_back(&workload);
  }

  std::vector<WorkloadPtr> select(const std::string& ns, const Labels& selector) const {
    std::vector<WorkloadPtr> selected;
    const std::vector<const WorkloadPtr*>* fewest = nullptr;
    for (const auto& [key, value] : selector) {
      auto found = by_label_.find(entry(ns, key, value));
      if (found == by_label_.end()) return selected;
      if (!fewest || found->second.size() < fewest->size()) fewest = &found->second;
    }
    if (!fewest) return selected;
    for (const WorkloadPtr* workload : *fewest)
      if (has_labels((*workload)->labels, selector)) selected.push_back(*workload);
    return selected;
  }

 private:
  static std::string entry(const std::string& ns, const std::string& key,
                           const std::string& value) {
    return ns + "/" + key + "=" + value;
  }
  StringMap<std::vector<const WorkloadPtr*>> by_label_;
};

using SliceIndex = std::map<ObjectName, std::vector<const EndpointSlice*>>;  // by service

// As Istio: the entry's port by name wins over a numbered target; a named target must be there.
std::optional<std::uint16_t> target_port(const ServicePort& port, const Workload& workload) {
  bool is_number = port.target.find_first_not_of("0123456789") == std::string::npos;
  auto own = workload.ports.find(is_number ? port.name : port.target);
  if (own != workload.ports.end()) return own->second;
  if (!is_number) return {};
  return static_cast<std::uint16_t>(std::stoul(port.target));
}

// Sorted by address, one of each.
void make_unique(std::vector<Endpoint>& endpoints) {
  std::sort(endpoints.begin(), endpoints.end(),
            [](const auto& a, const auto& b) { return a.address < b.address; });
  auto same = [](const auto& a, const auto& b) { return a.address == b.address; };
  endpoints.erase(std::unique(endpoints.begin(), endpoints.end(), same), endpoints.end());
}

class EndpointFinder {
 public:
  EndpointFinder(const Snapshot& snapshot, const std::vector<Part<EndpointSlice>>& slices)
      : snapshot_(snapshot), workloads_(snapshot) {
    for (const auto& slice : slices)
      if (!slice.value.service.empty())
        slices_[{slice.value.name.ns, slice.value.service}].push_back(&slice.value);
  }

  // Lists of endpoints, one a port of the service; sorted by address.
  std::vector<std::vector<Endpoint>> find(const Service& service, const ServicePart& part,
                                          Report& report) const {
    std::vector<WorkloadPtr> selected = workloads_.select(service.name.ns, service.selector);
    std::vector<std::vector<Endpoint>> lists;
    for (std::size_t i = 0; i < service.ports.size(); ++i) {
      std::vector<Endpoint> endpoints = of_workloads(service, i, selected, report);
      add_spelt_out(part, service.ports[i], endpoints);
      if (!service.is_entry) add_slices(service, service.ports[i], endpoints);
      make_unique(endpoints);
      lists.push_back(std::move(endpoints));
    }
    return lists;
  }

 private:
  std::vector<Endpoint> of_workloads(const Service& service, std::size_t index,
                                     const std::vector<WorkloadPtr>& selected,
                                     Report& report) const {
    const ServicePort& port = service.ports[index];
    std::vector<Endpoint> endpoints;
    for (const WorkloadPtr& workload : selected) {
      auto number = target_port(port, *workload);
      if (number && !workload->addresses.empty()) {
        endpoints.push_back(
            {{workload->addresses.front(), *number}, workload, workload->weight, {}});
      } else {
        report.warn("spec.ports", "port " + std::to_string(port.port) + ": WorkloadEntry " +
                                      workload->name.to_string() + " has no port named '" +
                                      port.target + "' in spec.ports; it gets no traffic");
      }
    }
    return endpoints;
  }

  void add_slices(const Service& service, const ServicePort& port,
                  std::vector<Endpoint>& endpoints) const {
    auto slices = slices_.find(service.name);
    if (slices == slices_.end()) return;
    for (const EndpointSlice* slice : slices->second)
      for (const EndpointSlice::Port& own : slice->ports) {
        if (own.name != port.name || own.transport != port.transport()) continue;
        for (const IpAddress& ip : slice->addresses) {
          WorkloadPtr workload = workload_at(ip);
          const std::uint32_t weight = workload ? workload->weight : 1;
          endpoints.push_back({{ip, own.port}, std::move(workload), weight, {}});
        }
      }
  }

  // What a ServiceEntry says of them goes for it alone: a workload that is at the address stays
  // what it is.
  void add_spelt_out(const ServicePart& part, const ServicePort& port,
                     std::vector<Endpoint>& endpoints) const {
    for (const Workload& one : part.endpoints)
      if (const auto number = target_port(port, one))
        endpoints.push_back({{one.addresses.front(), *number},
                             workload_at(one.addresses.front()),
                             one.weight,
                             one.labels});
  }

  WorkloadPtr workload_at(const IpAddress& ip) const {
    const auto found = snapshot_.workload_by_address.find(ip);
    return found == snapshot_.workload_by_address.end() ? nullptr : found->second;
  }

  const Snapshot& snapshot_;
  WorkloadIndex workloads_;
  SliceIndex slices_;
};

// ---- what a workload has for itself alone

void judge_address(const IpAddress& ip, const Workload& workload, const CompileOptions& options,
                   const Snapshot& snapshot, Report& report) {
  const auto error = [&](const std::string& what) {
    report.error("spec.address", ip.to_string() + what);
  };
  if (const auto taken = snapshot.workload_by_address.find(ip);
      taken != snapshot.workload_by_address.end())
    return error(" is already the address of " + taken->second->name.to_string() +
                 "; one address is one workload");
  if (options.service_range && options.service_range->contains(ip))
    return error(" is of the block that services get their addresses from (" +
                 options.service_range->to_string() +
                 "), where the kernel looks for services alone; give the workload an address "
                 "outside of it, or the mesh another block (meshctl up --service-cidr)");
  // One of another machine may be a process on this one that is not of the mesh.
  if (workload.is_local() && std::ranges::count(options.node_addresses, ip) != 0)
    error(
        " is this machine's own address, and the workload has a network namespace of its own; "
        "write the address that it has there");
}

// The workload whose group is the same, one above or one below; null: none.
const Workload* sharing_cgroup(const Snapshot& snapshot, const std::string& cgroup) {
  const auto& groups = snapshot.workload_by_cgroup;
  for (std::size_t end = cgroup.size(); end != 0; end = cgroup.rfind('/', end - 1))
    if (const auto found = groups.find(cgroup.substr(0, end)); found != groups.end())
      return found->second.get();
  const auto below = groups.lower_bound(cgroup + "/");
  const bool is_below = below != groups.end() && below->first.starts_with(cgroup + "/");
  return is_below ? below->second.get() : nullptr;
}

// Programs of both would run for one's connections. Groups that a workload makes below its own are
// its own too.
void judge_cgroup(const Workload& workload, const Snapshot& snapshot, Report& report) {
  const Workload* other = sharing_cgroup(snapshot, workload.cgroup);
  if (!other) return;
  const std::string name = other->name.to_string();
  const std::string what = other->cgroup == workload.cgroup
                               ? "is already the control group of " + name
                           : other->cgroup.size() < workload.cgroup.size()
                               ? "is below " + other->cgroup + ", the control group of " + name
                               : "is above " + other->cgroup + ", the control group of " + name;
  report.error(path_of_key("metadata.annotations", "undermesh.io/cgroup"),
               what + "; give each workload a group of its own, beside the other's");
}

// ---- destination rules

// The rules of one namespace for one host, put together.
struct MergedRule {
  std::vector<const Part<DestinationRule>*> rules;  // oldest first
};

class RuleTable {
 public:
  void add(const std::string& host, const Part<DestinationRule>& rule) {
    auto& table = host.starts_with('*') ? wildcards_ : exact_;
    table[host].rules.push_back(&rule);
  }
  // Exact host, else the longest wildcard; null when none.
  const MergedRule* find(std::string_view host) const {
    if (auto exact = exact_.find(host); exact != exact_.end()) return &exact->second;
    const MergedRule* best = nullptr;
    std::size_t best_length = 0;
    for (const auto& [wildcard, rule] : wildcards_) {
      if (wildcard.size() <= best_length || !is_below(host, wildcard)) continue;
      best = &rule;
      best_length = wildcard.size();
    }
    return best;
  }

 private:
  std::map<std::string, MergedRule, std::less<>> exact_, wildcards_;
};

struct Rules {
  std::map<std::string, RuleTable> all, exported;  // by namespace

  Rules(const std::vector<Part<DestinationRule>>& rules, const Snapshot& snapshot) {
    for (const Part<DestinationRule>& part : rules) {
      const DestinationRule& rule = part.value;
      std::string host = qualified_host(snapshot, rule.host, rule.name.ns);
      all[rule.name.ns].add(host, part);
      if (!rule.own_namespace_only) exported[rule.name.ns].add(host, part);
    }
  }
  static const MergedRule* find(const std::map<std::string, RuleTable>& tables,
                                const std::string& ns, std::string_view host) {
    auto table = tables.find(ns);
    return table == tables.end() ? nullptr : table->second.find(host);
  }
};

void override_blocks(PolicyBlocks& base, const PolicyBlocks& over) {
  if (over.balancer) base.balancer = over.balancer;
  if (over.pool) base.pool = over.pool;
  if (over.outlier) base.outlier = over.outlier;
}

// A port's settings replace everything below them; what they leave out is the default.
void override_policy(PolicyBlocks& base, const DestinationPolicy& over, std::uint16_t port) {
  override_blocks(base, over.blocks);
  if (auto own = over.ports.find(port); own != over.ports.end()) base = own->second;
}

TrafficPolicy finished(const PolicyBlocks& blocks) {
  TrafficPolicy policy;
  if (blocks.balancer) policy.balancer = *blocks.balancer;
  if (blocks.pool) policy.pool = *blocks.pool;
  policy.outlier = blocks.outlier;
  return policy;
}

// The policy of the destination itself: the oldest rule that has one.
PolicyBlocks base_policy(const MergedRule* merged, std::uint16_t port) {
  PolicyBlocks blocks;
  if (!merged) return blocks;
  for (const auto* rule : merged->rules) {
    if (!rule->value.has_policy) continue;
    override_policy(blocks, rule->value.policy, port);
    break;
  }
  return blocks;
}

class ClusterBuilder {
 public:
  ClusterBuilder(Clusters& clusters, const Clusters* previous)
      : clusters_(clusters), previous_(previous) {}

  // The service's clusters under `merged` (null: no rule), their keys behind `prefix`.
  void add(const std::string& prefix, const ServicePtr& service,
           const std::vector<std::vector<Endpoint>>& endpoints, const MergedRule* merged) {
    for (std::size_t i = 0; i < service->ports.size(); ++i) {
      const std::uint16_t port = service->ports[i].port;
      const Transport transport = service->ports[i].transport();
      PolicyBlocks base = base_policy(merged, port);
      put(prefix, {"", service, port, transport, "", endpoints[i], finished(base)});
      if (!merged) continue;
      for (const auto* rule : merged->rules)
        for (const DestinationRule::Subset& subset : rule->value.subsets) {
          PolicyBlocks blocks = base;
          override_policy(blocks, subset.policy, port);
          std::vector<Endpoint> chosen;
          for (const Endpoint& endpoint : endpoints[i])
            if (has_labels(endpoint.labels.empty() && endpoint.workload ? endpoint.workload->labels
                                                                        : endpoint.labels,
                           subset.labels))
              chosen.push_back(endpoint);
          put(prefix,
              {"", service, port, transport, subset.name, std::move(chosen), finished(blocks)});
        }
    }
  }

 private:
  void put(const std::string& prefix, Cluster cluster) {
    cluster.name =
        cluster_name(cluster.service->host, cluster.port, cluster.subset, cluster.transport);
    std::string key = prefix + cluster.name;
    if (clusters_.contains(key)) return;  // a subset of an older rule has the name
    ClusterPtr before;
    if (previous_)
      if (auto found = previous_->find(key); found != previous_->end()) before = found->second;
    clusters_.emplace(std::move(key), shared(std::move(cluster), before));
  }

  Clusters& clusters_;
  const Clusters* previous_;
};

// Warnings on rules that say the same thing twice, and on what a TCP port cannot honour.
void warn_of_overlap(const MergedRule& merged) {
  std::set<std::string_view> names;
  bool has_policy = false;
  for (const auto* rule : merged.rules) {
    for (std::size_t i = 0; i < rule->value.subsets.size(); ++i)
      if (!names.insert(rule->value.subsets[i].name).second)
        rule->report->warn(
            path_of_item("spec.subsets", i),
            "an older DestinationRule of the same host has this subset; that one counts");
    if (rule->value.has_policy && has_policy)
      rule->report->warn("spec.trafficPolicy",
                         "an older DestinationRule of the same host has one; that one counts");
    has_policy = has_policy || rule->value.has_policy;
  }
}

void warn_of_tcp(const DestinationRule& rule, const Service& service, Report& report) {
  auto is_set = [](const DestinationPolicy& policy) {
    return policy.blocks.balancer || policy.blocks.pool || policy.blocks.outlier ||
           !policy.ports.empty();
  };
  bool sets = is_set(rule.policy) || std::any_of(rule.subsets.begin(), rule.subsets.end(),
                                                 [&](const auto& s) { return is_set(s.policy); });
  if (!sets) return;
  for (const ServicePort& port : service.ports)
    if (port.protocol != Protocol::kHttp)
      report.warn("spec.trafficPolicy", "has no effect on port " + std::to_string(port.port) +
                                            " of " + service.host +
                                            ", which the kernel balances as " +
                                            (port.protocol == Protocol::kTcp ? "TCP" : "UDP"));
}

void warn_of_rules(const std::vector<Part<DestinationRule>>& rules, const Snapshot& snapshot) {
  std::map<std::pair<std::string, std::string>, MergedRule> same;
  for (const auto& part : rules) {
    const DestinationRule& rule = part.value;
    std::string host = qualified_host(snapshot, rule.host, rule.name.ns);
    same[{rule.name.ns, host}].rules.push_back(&part);
    if (host.starts_with('*')) continue;
    auto service = snapshot.services.find(host);
    if (service == snapshot.services.end())
      part.report->warn("spec.host", "no Service is named " + host + " yet");
    else
      warn_of_tcp(rule, *service->second, *part.report);
  }
  for (const auto& [key, merged] : same) warn_of_overlap(merged);
}

}  // namespace

bool is_below(std::string_view host, std::string_view wildcard) {
  if (wildcard == "*") return true;
  return wildcard.starts_with('*') && host.size() > wildcard.size() - 1 &&
         host.ends_with(wildcard.substr(1));
}

bool follow_workloads(const Service& service, Snapshot& snapshot) {
  std::vector<const WorkloadPtr*> selected;
  for (auto at = snapshot.workloads.lower_bound({service.name.ns, ""});
       at != snapshot.workloads.end() && at->first.ns == service.name.ns; ++at)
    if (has_labels(at->second->labels, service.selector)) selected.push_back(&at->second);
  for (const ServicePort& port : service.ports) {
    const std::string name = cluster_name(service.host, port.port, "", port.transport());
    const auto known = snapshot.clusters.find(name);
    if (known == snapshot.clusters.end()) return false;
    Cluster cluster = *known->second;
    cluster.endpoints.clear();
    for (const WorkloadPtr* workload : selected) {
      const auto number = target_port(port, **workload);
      if (!number || (*workload)->addresses.empty()) return false;
      cluster.endpoints.push_back(
          {{(*workload)->addresses.front(), *number}, *workload, (*workload)->weight, {}});
    }
    make_unique(cluster.endpoints);
    snapshot.clusters.insert_or_assign(name, shared(std::move(cluster), known->second));
  }
  return true;
}

std::set<std::string> strict_namespaces(const Parts& parts) {
  std::set<std::string> strict;
  for (const auto& [report, part] : parts.namespaces)
    if (part.strict) strict.insert(report->object().key.name);
  return strict;
}

void judge_workload(const Workload& workload, const CompileOptions& options,
                    const Snapshot& snapshot, Report& report) {
  for (const IpAddress& ip : workload.addresses)
    judge_address(ip, workload, options, snapshot, report);
  if (workload.is_local()) judge_cgroup(workload, snapshot, report);
}

void add_workload(const WorkloadPtr& workload, Snapshot& snapshot) {
  for (const IpAddress& ip : workload->addresses)
    snapshot.workload_by_address.emplace(ip, workload);
  if (workload->is_local()) snapshot.workload_by_cgroup.emplace(workload->cgroup, workload);
  snapshot.workloads.emplace(workload->name, workload);
}

void remove_workload(const WorkloadPtr& workload, Snapshot& snapshot) {
  for (const IpAddress& ip : workload->addresses) snapshot.workload_by_address.erase(ip);
  if (workload->is_local()) snapshot.workload_by_cgroup.erase(workload->cgroup);
  snapshot.workloads.erase(workload->name);
}

void add_workloads(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                   Snapshot& snapshot) {
  if (options.gateway_workload) add_workload(options.gateway_workload, snapshot);
  const std::set<std::string> strict = strict_namespaces(parts);
  for (auto& [report, part] : parts.workloads) {
    Workload& workload = part.workload;
    if (!part.has_mode) workload.strict = strict.contains(workload.name.ns);
    if (snapshot.workloads.contains(workload.name)) {
      report->error("metadata.name", "is the name of this node's gateway");
      continue;
    }
    judge_workload(workload, options, snapshot, *report);
    if (report->failed()) continue;
    WorkloadPtr before;
    if (previous)
      if (auto found = previous->workloads.find(workload.name); found != previous->workloads.end())
        before = found->second;
    add_workload(shared(std::move(workload), before), snapshot);
  }
}

// Whole objects are refused, so before any of their hosts is there. Services cannot share one.
void refuse_taken_hosts(const Parts& parts) {
  std::map<std::string_view, const Service*> owners;
  for (const auto& [report, part] : parts.services) {
    if (!part.service.is_entry) continue;
    const auto [owner, is_new] = owners.emplace(part.service.host, &part.service);
    if (!is_new)
      report->error("spec.hosts", part.service.host + " is already a host of ServiceEntry " +
                                      owner->second->name.to_string());
  }
}

void add_services(Parts& parts, const Snapshot* previous, Snapshot& snapshot) {
  refuse_taken_hosts(parts);
  for (auto& [report, part] : parts.services) {
    const Service& service = part.service;
    const std::string_view field = service.is_entry ? "spec.addresses" : "spec.clusterIP";
    if (!part.external_name.empty()) {
      snapshot.external_names.emplace(service.host, part.external_name);
      continue;
    }
    for (const IpAddress& ip : service.addresses) {
      auto taken = snapshot.service_by_address.find(ip);
      if (taken != snapshot.service_by_address.end())
        report->error(field, ip.to_string() + " is already the address of " + taken->second->host);
      if (snapshot.workload_by_address.contains(ip))
        report->error(field, ip.to_string() + " is the address of a workload");
    }
    if (report->failed()) continue;
    ServicePtr before;
    if (previous)
      if (auto found = previous->services.find(service.host); found != previous->services.end())
        before = found->second;
    ServicePtr added = shared(Service(service), before);
    for (const IpAddress& ip : added->addresses) snapshot.service_by_address.emplace(ip, added);
    snapshot.services.emplace(added->host, added);
  }
}

void add_clusters(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                  Snapshot& snapshot) {
  EndpointFinder finder(snapshot, parts.slices);
  Rules rules(parts.destination_rules, snapshot);
  ClusterBuilder common(snapshot.clusters, previous ? &previous->clusters : nullptr);
  ClusterBuilder own(snapshot.client_clusters, previous ? &previous->client_clusters : nullptr);
  for (const auto& part : parts.services) {
    auto found = snapshot.services.find(part.value.service.host);
    if (found == snapshot.services.end() || part.report->failed()) continue;
    const ServicePtr& service = found->second;
    auto endpoints = finder.find(*service, part.value, *part.report);
    const std::string& ns = service->name.ns;
    const MergedRule* rule = Rules::find(rules.exported, ns, service->host);
    if (!rule) rule = Rules::find(rules.exported, options.root_namespace, service->host);
    common.add("", service, endpoints, rule);
    for (const auto& [client_ns, table] : rules.all) {
      const MergedRule* client_rule = table.find(service->host);
      bool same = rule && client_rule && client_rule->rules == rule->rules;
      if (!client_rule || same) continue;
      own.add(client_ns + "/", service, endpoints, client_rule);
      snapshot.client_hosts.insert(service->host);
    }
  }
  warn_of_rules(parts.destination_rules, snapshot);
}

}  // namespace mesh::config
