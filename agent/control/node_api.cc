// What Node answers over the admin socket.
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/log.h"
#include "control/dumps.h"
#include "control/node.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::Object;
using config::ObjectKey;
using config::ObjectPtr;
using config::Problem;

constexpr std::size_t kMaxProblems = 1000;

std::vector<std::string> texts_for(const ObjectKey& key, const std::vector<Problem>& problems) {
  std::vector<std::string> texts;
  for (const Problem& problem : problems)
    if (problem.object == key) texts.push_back(problem.to_string());
  return texts;
}

std::string joined(const std::vector<std::string>& files) {
  std::string text;
  for (const std::string& file : files) text += (text.empty() ? "" : " and ") + file;
  return text;
}

api::ObjectRef ref_of(const ObjectKey& key) { return {key.kind, key.ns, key.name}; }

// For an object that could not even be read.
api::ObjectRef ref_of(const json::object& tree) {
  const auto text = [](const json::object* object, std::string_view name) {
    const json::value* value = object ? object->if_contains(name) : nullptr;
    return value && value->is_string() ? std::string(value->get_string()) : std::string();
  };
  const json::value* metadata = tree.if_contains("metadata");
  const json::object* named = metadata ? metadata->if_object() : nullptr;
  return {text(&tree, "kind"), text(named, "namespace"), text(named, "name")};
}

}  // namespace

// --- objects

api::ObjectList Node::objects(const std::string& kind, const std::string& ns,
                              const std::string& name) const {
  api::ObjectList list;
  for (const ObjectPtr& object : compilation_.objects) {
    const ObjectKey& key = object->key;
    if ((!kind.empty() && key.kind != kind) || (!ns.empty() && key.ns != ns) ||
        (!name.empty() && key.name != name))
      continue;
    api::StoredObject stored;
    stored.tree = object->tree;
    stored.file = object->file;
    stored.problems = texts_for(key, compilation_.problems);
    if (const auto refused = compilation_.refused.find(key); refused != compilation_.refused.end())
      stored.state = refused->second ? "previous" : "refused";
    list.objects.push_back(std::move(stored));
  }
  return list;
}

// `object` is set unless it cannot even be read.
api::ObjectResult Node::judge(const api::ApplyObject& wanted, ObjectPtr& object) const {
  api::ObjectResult result;
  auto made = config::make_object(wanted.tree, wanted.file, wanted.lines);
  if (!made) {
    result.object = ref_of(wanted.tree);
    result.outcome = "refused";
    result.problems.push_back((wanted.file.empty() ? "" : wanted.file + ": ") +
                              made.error().message);
    return result;
  }
  const Object prepared = parts_.store.prepare(std::move(made).value());
  result.object = ref_of(prepared.key);
  result.api_version = prepared.api_version;
  const ObjectPtr now = parts_.store.find(prepared.key);
  if (!now)
    result.outcome = "created";
  else if (without_server_fields(now->tree) == without_server_fields(prepared.tree))
    result.outcome = "unchanged";
  else
    result.outcome = "configured";
  const auto files = parts_.store.files_of(prepared.key);
  if (files.size() > 1) {
    result.outcome = "refused";
    result.problems.push_back(prepared.key.to_string() + ": is defined in " + joined(files) +
                              "; an object has one owner: remove it from all but one");
    return result;
  }
  if (parts_.store.is_foreign(prepared.key) && result.outcome != "unchanged") {
    result.outcome = "refused";
    result.problems.push_back(prepared.key.to_string() + ": is defined in " + files[0] +
                              "; change it there, or remove it there first");
    return result;
  }
  object = std::make_shared<const Object>(prepared);
  return result;
}

// Refused objects take part in the judgement of the others only as far as they would act.
std::vector<api::ObjectResult> Node::judge_all(const api::ApplyRequest& request,
                                               std::vector<ObjectPtr>& objects) {
  std::vector<api::ObjectResult> results;
  std::vector<ObjectPtr> candidates;
  std::set<ObjectKey> seen;
  for (const api::ApplyObject& wanted : request.objects) {
    ObjectPtr object;
    api::ObjectResult result = judge(wanted, object);
    if (object && !seen.insert(object->key).second) {
      result.outcome = "refused";
      result.problems = {object->file + ": " + object->key.to_string() +
                         ": is in this request twice; remove one of them"};
      object = nullptr;
    }
    if (object) candidates.push_back(object);
    results.push_back(std::move(result));
    objects.push_back(std::move(object));
  }
  const Compilation compiled = sources_.compile_with(candidates, publisher_.next_version());
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (!objects[i]) continue;
    auto texts = texts_for(objects[i]->key, compiled.problems);
    results[i].problems.insert(results[i].problems.end(), texts.begin(), texts.end());
    if (compiled.refused.contains(objects[i]->key)) results[i].outcome = "refused";
  }
  return results;
}

api::ApplyReply Node::validate(const api::ApplyRequest& request) {
  api::ApplyReply reply;
  std::vector<ObjectPtr> objects;
  reply.results = judge_all(request, objects);
  for (api::ObjectResult& result : reply.results)
    if (result.outcome != "refused") result.outcome = "valid";
  return reply;
}

// A policy that is refused is stored all the same: it denies what it selects.
void Node::store_accepted(std::vector<api::ObjectResult>& results,
                          const std::vector<ObjectPtr>& objects) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (!objects[i] || results[i].outcome == "unchanged") continue;
    if (results[i].outcome == "refused" && !config::is_policy(objects[i]->key)) continue;
    if (auto stored = parts_.store.put(*objects[i]); !stored) {
      results[i].outcome = "refused";
      results[i].problems.push_back(objects[i]->key.to_string() +
                                    ": cannot be stored: " + stored.error().message);
    } else if (results[i].outcome == "refused") {
      results[i].problems.push_back(
          objects[i]->key.to_string() +
          ": a policy that is refused denies everything to what it selects, until it is corrected "
          "or deleted");
    }
  }
}

api::ApplyReply Node::apply(const api::ApplyRequest& request, Clock::time_point now) {
  api::ApplyReply reply;
  std::vector<ObjectPtr> objects;
  reply.results = judge_all(request, objects);
  if (request.dry_run) return reply;
  store_accepted(reply.results, objects);
  on_store_changed(now);
  reply.version = publisher_.version();
  return reply;
}

std::string Node::old_state_text() const {
  return "the kernel's state cannot be written, so what was in force before stays: " +
         publisher_.kernel_error();
}

void Node::add_misfit(api::ObjectResult& result) const {
  const std::string name =
      ObjectKey{result.object.kind, result.object.ns, result.object.name}.to_string();
  for (const auto* misfits : {&misfits_.policies, &misfits_.others})
    if (const auto misfit = misfits->find(name); misfit != misfits->end())
      result.problems.push_back(name + ": " + misfit->second);
}

void Node::add_refusals_of_proxy(api::ApplyReply& reply) const {
  for (const Problem& problem : publisher_.refused_by_proxy())
    for (api::ObjectResult& result : reply.results) {
      if (result.object != ref_of(problem.object)) continue;
      result.outcome = "refused";
      result.problems.push_back(problem.to_string());
    }
}

void Node::add_what_is_due(api::ApplyReply& reply) const {
  for (api::ObjectResult& result : reply.results) add_misfit(result);
  if (!publisher_.kernel_error().empty()) {
    reply.not_in_force = old_state_text();
    return;
  }
  const bool is_away = !parts_.proxy.is_connected();
  if (!is_away && !publisher_.is_in_flight()) return;
  const auto last = std::find_if(reply.results.rbegin(), reply.results.rend(), [](const auto& r) {
    return r.outcome != "refused" && r.outcome != "not_found";
  });
  if (last == reply.results.rend()) return;
  last->problems.push_back(
      std::string("stored; not in force yet: ") +
      (is_away ? "meshproxy is away" : "meshproxy has not acknowledged it") +
      "; policies and TCP services hold already; see `meshctl status` and logs/meshproxy.log");
}

api::ApplyReply Node::remove(const api::DeleteRequest& request, Clock::time_point now) {
  api::ApplyReply reply;
  for (const api::ObjectRef& ref : request.objects) {
    const ObjectKey key{ref.kind, ref.ns.empty() && ref.kind != "Namespace" ? "default" : ref.ns,
                        ref.name};
    api::ObjectResult result;
    result.object = ref_of(key);
    const ObjectPtr object = parts_.store.find(key);
    auto files = parts_.store.files_of(key);
    const bool is_foreign = std::erase(files, parts_.store.object_path(key)) == 0;
    if (!object) {
      result.outcome = "not_found";
    } else if (is_foreign) {
      result.outcome = "refused";
      result.problems.push_back(key.to_string() + ": is defined in " + joined(files) +
                                "; remove it there");
    } else if (auto removed = parts_.store.remove(key); !removed) {
      result.outcome = "refused";
      result.problems.push_back(key.to_string() + ": " + removed.error().message);
    } else {
      result.outcome = "deleted";
      if (!files.empty())
        result.problems.push_back(key.to_string() + ": is still defined in " + joined(files));
    }
    if (object) result.api_version = object->api_version;
    reply.results.push_back(std::move(result));
  }
  on_store_changed(now);
  reply.version = publisher_.version();
  return reply;
}

// --- status

namespace {

// What an enrolled workload does without.
std::string shortcomings_of(const Enrolment& enrolment) {
  if (enrolment.id == feed::kGatewayWorkload) return {};
  std::string text;
  if ((enrolment.families & feed::kHasFamily6) == 0)
    text = "IPv4 only: its namespace has no IPv6 loopback";
  if ((enrolment.families & feed::kHasDns) != 0) return text;
  if (!text.empty()) text += "; ";
  return text + "no names of the mesh: its sockets for DNS (port 15053) could not be made" +
         (enrolment.dns_error != 0 ? std::string(": ") + ::strerror(enrolment.dns_error)
                                   : "; meshhold is of an older version");
}

}  // namespace

api::WorkloadStatus Node::status_of(const config::ObjectName& name,
                                    const Enrolment& enrolment) const {
  const config::Workload& workload = *enrolment.workload;
  api::WorkloadStatus status;
  status.ns = name.ns;
  status.name = name.name;
  status.id = enrolment.id;
  for (const IpAddress& address : workload.addresses)
    status.addresses.push_back(address.to_string());
  status.service_account = workload.service_account;
  status.cgroup = workload.cgroup;
  status.netns = workload.netns;
  status.sandbox = is_sandbox(workload);
  if (enrolment.state == Enrolment::State::kFailed) {
    status.state = "failed";
    status.reason = enrolment.reason;
  } else if (!enrolment.kernel_error.empty()) {
    status.state = "failed";
    status.reason = enrolment.kernel_error;
  } else if (enrolment.state == Enrolment::State::kWaiting) {
    status.reason = enrolment.reason;
  } else if (!publisher_.kernel_error().empty()) {
    status.reason = "the kernel's state cannot be written: " + publisher_.kernel_error();
  } else if (!publisher_.is_told(enrolment.id)) {
    status.reason = parts_.proxy.is_connected() ? "waiting for meshproxy to acknowledge it"
                                                : "meshproxy is away; see its log";
  } else if (proxy_answers_dns_ && (enrolment.families & feed::kHasDns) != 0 &&
             !publisher_.has_responder(enrolment.id)) {
    status.reason = "waiting for meshproxy to answer its DNS";
  } else {
    status.state = "enrolled";
    status.reason = shortcomings_of(enrolment);
    const auto add = [&status](const std::string& why) {
      if (!why.empty()) status.reason += (status.reason.empty() ? "" : "; ") + why;
    };
    const auto& uncovered = parts_.datapath.uncovered();
    if (const auto why = uncovered.find(enrolment.id); why != uncovered.end()) add(why->second);
    status.captured = audit_.captured(enrolment.id);
    add(audit_.problem(enrolment.id));
    add(audit_.missing_addresses(enrolment.id));
  }
  return status;
}

std::optional<api::WorkloadStatus> Node::workload(const config::ObjectName& name) const {
  if (const auto known = workloads_.all().find(name); known != workloads_.all().end())
    return status_of(name, known->second);
  const auto remote = compilation_.snapshot->workloads.find(name);
  if (remote == compilation_.snapshot->workloads.end()) return std::nullopt;
  api::WorkloadStatus status;
  status.ns = name.ns;
  status.name = name.name;
  status.state = remote->second->disabled ? "disabled" : "remote";
  status.service_account = remote->second->service_account;
  for (const IpAddress& address : remote->second->addresses)
    status.addresses.push_back(address.to_string());
  return status;
}

api::WorkloadList Node::workloads() const {
  api::WorkloadList list;
  const auto add = [&](const config::ObjectName& name) {
    if (auto status = workload(name)) list.workloads.push_back(*std::move(status));
  };
  for (const auto& [name, enrolment] : workloads_.all()) add(name);
  for (const auto& [name, remote] : compilation_.snapshot->workloads)
    if (!workloads_.all().contains(name)) add(name);
  return list;
}

std::vector<api::Status::PolicyCount> Node::policy_counts() {
  read_counters();
  std::vector<api::Status::PolicyCount> list;
  const auto count_of = [](const std::map<std::uint32_t, std::uint64_t>& counts,
                           std::uint32_t number) {
    const auto at = counts.find(number);
    return at == counts.end() ? 0 : at->second;
  };
  for (const auto& [number, rule] : policy_rules(parts_.numbers)) {
    api::Status::PolicyCount count{rule.policy, rule.rule,
                                   count_of(counters_.denied_by_policy, number),
                                   count_of(counters_.allowed_by_policy, number),
                                   count_of(counters_.audited_by_policy, number)};
    if (count.denied != 0 || count.allowed != 0 || count.audited != 0)
      list.push_back(std::move(count));
  }
  return list;
}

api::Dump Node::policies() {
  std::set<config::ObjectName> enrolled;
  for (const Client& client : workloads_.clients()) enrolled.insert(client.workload->name);
  auto dump =
      dump_policies(*compilation_.snapshot, policy_counts(), enrolled, compilation_.problems);
  for (json::object& row : dump.rows)
    if (const auto misfit = misfits_.policies.find(std::string(row["policy"].as_string()));
        misfit != misfits_.policies.end())
      row["state"] = misfit->second;
  if (!publisher_.kernel_error().empty()) dump.notes.push_back(old_state_text());
  return dump;
}

Result<api::Dump> Node::look_up(const std::string& name, const std::string& from) const {
  DnsClient client;
  if (!from.empty()) {
    const std::size_t slash = from.find('/');
    if (slash != std::string::npos) client.ns = from.substr(0, slash);
    const config::ObjectName asks{client.ns,
                                  slash == std::string::npos ? from : from.substr(slash + 1)};
    const auto status = workload(asks);
    if (!status)
      return Error{Errc::not_found, "no workload " + asks.to_string() +
                                        "; `meshctl get workloadentry -A` lists those there are"};
    if (!publisher_.has_responder(status->id)) {
      client.resolver = DnsClient::Resolver::kNotMesh;
      const bool is_ours = status->state != "remote" && status->state != "disabled";
      client.why = !is_ours                 ? "this node has not enrolled the workload"
                   : status->reason.empty() ? "the workload has no sockets for DNS (port 15053)"
                                            : status->reason;
    } else if (status->sandbox) {
      client.resolver = DnsClient::Resolver::kMesh;
    }
  }
  return dump_dns(*compilation_.snapshot, client, name);
}

Result<api::AuthzReply> Node::check_authz(const AuthzQuestion& question) const {
  const std::vector<Client> clients = workloads_.clients();
  const auto rules = policy_rules(parts_.numbers);
  MESH_TRY(auto reply, control::check_authz({{*compilation_.snapshot, publisher_.kernel(), clients},
                                             rules,
                                             parts_.numbers.range(),
                                             compilation_.problems},
                                            question));
  reply.version = publisher_.version();
  if (!publisher_.kernel_error().empty())
    reply.notes.push_back("the kernel's state cannot be written, so this is the one before: " +
                          publisher_.kernel_error());
  for (const auto& [id, error] : publisher_.kernel_errors())
    reply.notes.push_back("not all of it is in the kernel, which refuses the rest: " +
                          error.message);
  return reply;
}

void Node::add_reasons(api::Status& status, Clock::time_point now) const {
  auto& reasons = status.reasons;
  if (!parts_.hold.is_connected())
    reasons.push_back("meshhold is away: nothing new is enrolled; see logs/meshhold.log");
  if (!parts_.proxy.is_connected())
    reasons.push_back(
        "meshproxy is away: HTTP services refuse connections; see logs/meshproxy.log");
  else if (stale_looks_ > 1)
    reasons.push_back(
        "meshproxy hangs: it has not stamped its heartbeat for 2 s, connections to it are refused; "
        "see logs/meshproxy.log, and restart it: kill " +
        std::to_string(parts_.proxy.pid()));
  else if (publisher_.is_ack_late(now))
    reasons.push_back(
        "meshproxy has not acknowledged the configuration for 10 s; see "
        "logs/meshproxy.log");
  if (!publisher_.kernel_error().empty())
    reasons.push_back("the kernel's state cannot be written: " + publisher_.kernel_error());
  if (const auto errors = publisher_.kernel_errors().find(0);
      errors != publisher_.kernel_errors().end())
    reasons.push_back("the kernel: " + errors->second.message);
  for (const auto* names : {&misfits_.policies, &misfits_.others})
    for (const auto& [name, what] : *names)
      if (reasons.size() < kMaxProblems) reasons.push_back(name + ": " + what);
  if (!misfits_.policies.empty())
    reasons.push_back(
        "policies fit where there are fewer of them, or fewer peers, ports and address blocks in "
        "them; `meshctl bpf maps` says what is full");
  for (const std::string& problem : audit_.mesh_problems())
    reasons.push_back("the mesh's own programs and maps: " + problem +
                      "; see `meshctl check`, and end what attached or changed it");
  if (!access_log_error_.empty()) reasons.push_back(access_log_error_);
  for (const std::string& error : sources_.write_errors()) reasons.push_back(error);
  for (std::string& problem : host_listeners_.problems()) reasons.push_back(std::move(problem));
  for (const Problem& problem : compilation_.problems)
    if (problem.severity == Problem::Severity::kError && reasons.size() < kMaxProblems)
      reasons.push_back(problem.to_string());
  for (const Problem& problem : publisher_.refused_by_proxy())
    reasons.push_back(problem.to_string());
  const auto& uncovered = parts_.datapath.uncovered();
  for (const api::WorkloadStatus& workload : status.workloads)
    if (workload.state == "failed" || workload.captured == "no" || uncovered.contains(workload.id))
      reasons.push_back("workload " + workload.ns + "/" + workload.name + ": " + workload.reason);
}

api::Status Node::status(Clock::time_point now) {
  api::Status status;
  const auto up = std::chrono::duration_cast<std::chrono::seconds>(now - started_);
  status.programs["meshd"] = {true,
                              static_cast<std::uint64_t>(::getpid()),
                              options_.version,
                              static_cast<std::uint64_t>(up.count()),
                              0,
                              ""};
  status.programs["meshhold"] = {parts_.hold.is_connected(), parts_.hold.pid(), "", 0, 0, ""};
  status.programs["meshproxy"] = {parts_.proxy.is_connected(),
                                  parts_.proxy.pid(),
                                  proxy_version_,
                                  0,
                                  publisher_.acked_version(),
                                  ""};
  status.snapshot.version = publisher_.version();
  status.snapshot.objects = compilation_.objects.size();
  for (const Problem& problem : compilation_.problems)
    if (status.snapshot.problems.size() < kMaxProblems)
      status.snapshot.problems.push_back(problem.to_string());
  status.workloads = workloads().workloads;
  status.policies = policy_counts();
  status.kernel = counters_.totals;
  status.fast_path = parts_.fast_path.status();
  status.audit.differences = audit_.counters().at("differences");
  status.audit.repairs = audit_.counters().at("repairs");
  if (const auto& last = audit_.last()) {
    status.audit.last = last->what;
    status.audit.is_last_repaired = last->is_repaired;
    const auto ago = std::chrono::duration_cast<std::chrono::seconds>(now - last->at);
    status.audit.last_seconds_ago = static_cast<std::uint64_t>(std::max(ago.count(), {}));
  }
  status.notes.push_back(
      "what arrives at workloads that are not enrolled is policed only where an enrolled workload "
      "or the gateway sends it (docs/security.md)");
  add_reasons(status, now);
  const bool is_starting = !publisher_.acked() && publisher_.refused_by_proxy().empty() &&
                           now - started_ < std::chrono::seconds(30);
  status.state = is_starting ? "starting" : status.reasons.empty() ? "ready" : "degraded";
  return status;
}

}  // namespace mesh::control
