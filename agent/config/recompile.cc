// compile() at the cost of what changed: workloads come, go and move all the time, and of other
// objects they concern the services that select them alone.
#include <algorithm>
#include <set>

#include "config/assemble.h"
#include "config/objects.h"

namespace mesh::config {
namespace {

bool is_workload(const ObjectPtr& object) { return object->key.kind == "WorkloadEntry"; }

// Who else may be refused, or not be any more, because of a workload.
bool depends_on_workloads(const ObjectKey& key) {
  return key.kind == "WorkloadEntry" || key.kind == "Service" || key.kind == "ServiceEntry";
}

class Follower {
 public:
  Follower(const Compiled& compiled, const CompileOptions& options)
      : compiled_(compiled), around_(*compiled.surroundings), options_(options) {}

  bool note_changes(const Objects& before, const Objects& objects) {
    bool are_workloads = true;
    each_change(before, objects, [&](const ObjectPtr& old, const ObjectPtr& now) {
      are_workloads = are_workloads && (!old || is_workload(old)) && (!now || is_workload(now)) &&
                      gone_.size() + came_.size() < kFewChanges;
      if (!are_workloads) return;
      if (old) gone_.push_back(old);
      if (now) came_.push_back(now);
    });
    return are_workloads;
  }

  // Whether nothing that is known of other objects hangs on these in a way that is not followed.
  bool is_simple() const {
    const Snapshot& snapshot = *compiled_.snapshot;
    if (around_.has_slices || snapshot.node_addresses != options_.node_addresses) return false;
    if (const WorkloadPtr& gateway = options_.gateway_workload) {
      const auto known = snapshot.workloads.find(gateway->name);
      if (known == snapshot.workloads.end() || known->second != gateway) return false;
    }
    if (std::ranges::any_of(compiled_.refused, depends_on_workloads)) return false;
    return std::ranges::none_of(compiled_.problems, [&](const Problem& problem) {
      return problem.object.kind == "AuthorizationPolicy" || is_gone(problem.object);
    });
  }

  std::shared_ptr<const Snapshot> follow(std::uint64_t version) {
    auto snapshot = std::make_shared<Snapshot>(*compiled_.snapshot);
    snapshot->version = version;
    std::map<ObjectName, WorkloadPtr> before;
    for (const ObjectPtr& object : gone_)
      if (!remove({object->key.ns, object->key.name}, *snapshot, before)) return nullptr;
    for (const ObjectPtr& object : came_)
      if (!add(object, *snapshot, before)) return nullptr;
    for (const ServicePtr& service : around_.spelt_out)
      if (is_spelt_out_at(*service)) return nullptr;
    std::set<ServicePtr> concerned;
    for (const WorkloadPtr& workload : touched_)
      if (const auto known = around_.selecting.find(workload->name.ns);
          known != around_.selecting.end())
        for (const ServicePtr& service : known->second)
          if (has_labels(workload->labels, service->selector)) concerned.insert(service);
    for (const ServicePtr& service : concerned)
      if (!is_plain(*service) || !follow_workloads(*service, *snapshot)) return nullptr;
    return snapshot;
  }

 private:
  bool is_gone(const ObjectKey& key) const {
    return std::ranges::any_of(gone_, [&](const ObjectPtr& object) { return object->key == key; });
  }

  bool remove(const ObjectName& name, Snapshot& snapshot,
              std::map<ObjectName, WorkloadPtr>& before) {
    const auto known = snapshot.workloads.find(name);
    if (known == snapshot.workloads.end()) return false;
    const WorkloadPtr workload = known->second;
    touched_.push_back(workload);
    before.emplace(name, workload);
    remove_workload(workload, snapshot);
    return true;
  }

  bool add(const ObjectPtr& object, Snapshot& snapshot,
           const std::map<ObjectName, WorkloadPtr>& before) {
    std::vector<Problem> problems;
    Report report(*object, problems);
    Parts parts;
    read_object(report, options_, parts);
    if (!problems.empty() || parts.workloads.size() != 1) return false;
    auto& [workload, has_mode] = parts.workloads[0].value;
    if (!has_mode) workload.strict = around_.strict_namespaces.contains(workload.name.ns);
    judge_workload(workload, options_, snapshot, report);
    const auto is_of_service = [&](const IpAddress& ip) {
      return snapshot.service_by_address.contains(ip);
    };
    if (!problems.empty() || snapshot.workloads.contains(workload.name) ||
        std::ranges::any_of(workload.addresses, is_of_service))
      return false;
    const auto old = before.find(workload.name);
    const WorkloadPtr now =
        shared(std::move(workload), old == before.end() ? nullptr : old->second);
    add_workload(now, snapshot);
    touched_.push_back(now);
    return true;
  }

  // An endpoint of its own list is the workload that is at its address.
  bool is_spelt_out_at(const Service& service) const {
    for (const ServicePort& port : service.ports) {
      const auto cluster = compiled_.snapshot->find_cluster(service.name.ns, service.host,
                                                            port.port, "", port.transport());
      if (!cluster) continue;
      for (const Endpoint& endpoint : cluster->endpoints)
        for (const WorkloadPtr& workload : touched_)
          if (std::ranges::count(workload->addresses, endpoint.address.ip) != 0) return true;
    }
    return false;
  }

  // Nothing is reported of it, and it has no clusters but its own.
  bool is_plain(const Service& service) const {
    const std::string_view label = std::string_view(service.host).substr(0, service.host.find('.'));
    return !around_.rule_labels.contains(label) && !around_.rule_labels.contains("*") &&
           !compiled_.snapshot->client_hosts.contains(service.host) &&
           std::ranges::none_of(compiled_.problems, [&](const Problem& problem) {
             return depends_on_workloads(problem.object) && problem.object.ns == service.name.ns &&
                    problem.object.name == service.name.name;
           });
  }

  const Compiled& compiled_;
  const Surroundings& around_;
  const CompileOptions& options_;
  std::vector<ObjectPtr> gone_, came_;
  std::vector<WorkloadPtr> touched_;  // as they were, and as they are
};

}  // namespace

std::optional<Compiled> recompile(const Compiled& compiled, const Objects& before,
                                  const Objects& objects, std::uint64_t version,
                                  const CompileOptions& options) {
  Follower follower(compiled, options);
  if (!follower.note_changes(before, objects) || !follower.is_simple()) return std::nullopt;
  SnapshotPtr snapshot = follower.follow(version);
  if (!snapshot) return std::nullopt;
  Compiled now = compiled;
  now.snapshot = std::move(snapshot);
  return now;
}

}  // namespace mesh::config
