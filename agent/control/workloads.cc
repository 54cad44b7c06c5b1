#include "control/workloads.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace mesh::control {
namespace {

using feed::HoldMessage;
using feed::HoldStatus;
using feed::HoldType;

Logger log() {
  static const Logger made = logger("control");
  return made;
}

UniqueFd duplicate(const UniqueFd& fd) { return UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3)); }

constexpr int kPatientLooks = 3;
constexpr int kMaxRoundsToRetry = 8;

// Whether one of the groups is the other, or below it.
bool overlap(const std::vector<std::uint64_t>& a, const std::vector<std::uint64_t>& b) {
  return !a.empty() && !b.empty() &&
         (std::ranges::count(a, b.front()) != 0 || std::ranges::count(b, a.front()) != 0);
}

}  // namespace

Workloads::Workloads(Machine& machine, Peer& hold, Numbers& numbers)
    : machine_(machine), hold_(hold), numbers_(numbers) {}

void Workloads::adopt(const std::map<datapath::WorkloadId, datapath::EnrolledWorkload>& kernel) {
  adopted_ = kernel;
}

// Another namespace or cgroup under the same name is another workload: it gets another id.
std::string Workloads::number_name(const config::Workload& workload) const {
  return workload.name.to_string() + " " + workload.netns + " " + workload.cgroup;
}

bool Workloads::reconcile(const Wanted& wanted, const config::WorkloadPtr& gateway) {
  each_difference(reconciled_, wanted, [this](const auto* before, const auto* now) {
    if (now && now->second->is_local())
      local_.insert_or_assign(now->first, now->second);
    else
      local_.erase((now ? now : before)->first);
  });
  reconciled_ = wanted;
  bool changed = false;
  for (auto at = enrolments_.begin(); at != enrolments_.end();) {
    const bool is_gateway = gateway && at->first == gateway->name;
    const auto found = local_.find(at->first);
    const bool stays = is_gateway || (found != local_.end() &&
                                      found->second->netns == at->second.workload->netns &&
                                      found->second->cgroup == at->second.workload->cgroup);
    if (stays) {
      ++at;
      continue;
    }
    let_go(at->second);
    numbers_.forget(Space::kWorkload, number_name(*at->second.workload));
    if (at->second.id != 0)
      log()->info("workload ended name={} id={}", at->first.to_string(), at->second.id);
    at = enrolments_.erase(at);
    changed = true;
  }
  // Whom the kernel has goes first: it keeps the group that another may ask for, too.
  std::vector<Enrolment*> known, came;
  const auto keep = [&](const config::WorkloadPtr& workload, std::uint32_t id) {
    auto [at, is_new] = enrolments_.try_emplace(workload->name);
    changed = changed || is_new || !at->second.workload || *at->second.workload != *workload;
    at->second.workload = workload;
    if (!is_new) return;
    at->second.id = id;
    (adopted_.contains(id) ? known : came).push_back(&at->second);
  };
  if (gateway) keep(gateway, feed::kGatewayWorkload);
  for (const auto& [name, workload] : local_)
    if (!(gateway && name == gateway->name))
      keep(workload, enrolments_.contains(name)
                         ? 0
                         : numbers_.number(Space::kWorkload, number_name(*workload)));
  for (const auto* list : {&known, &came})
    for (Enrolment* enrolment : *list) begin(*enrolment);
  return changed;
}

void Workloads::begin(Enrolment& enrolment) {
  if (const auto known = adopted_.find(enrolment.id); known != adopted_.end()) {
    enrolment.cookie = known->second.netns_cookie;  // its policy holds while meshhold is asked
    adopted_.erase(known);
  }
  if (auto taken = take_cgroup(enrolment); !taken) return fail(enrolment, taken.error().message);
  if (const std::string& cgroup = enrolment.workload->cgroup; !cgroup.empty()) {
    machine_.watch_cgroup(cgroup);
    enrolment.was_populated = machine_.is_populated(cgroup) == true;
  }
  // Where it cannot be opened meshhold may hold it all the same, or says that it does not.
  (void)open_netns(enrolment).has_value();
  start_waiting(enrolment);
}

// The compiler has seen that no two have one path; but one directory may have several.
Result<> Workloads::take_cgroup(Enrolment& enrolment) {
  const std::string& cgroup = enrolment.workload->cgroup;
  enrolment.cgroup_ids.clear();
  if (cgroup.empty()) return success();
  MESH_TRY(auto ids, machine_.look_at_cgroup(cgroup));
  for (const auto& [name, other] : enrolments_)
    if (&other != &enrolment && overlap(ids, other.cgroup_ids))
      return Error{Errc::refused,
                   cgroup + ": is " +
                       (ids.front() == other.cgroup_ids.front() ? "" : "above or below ") +
                       other.workload->cgroup + ", the control group of " + name.to_string() +
                       "; give each workload a group of its own, beside the other's"};
  enrolment.cgroup_ids = std::move(ids);
  return success();
}

Result<> Workloads::open_netns(Enrolment& enrolment) {
  enrolment.netns_error.clear();
  if (enrolment.netns || enrolment.workload->netns.empty()) return success();
  auto opened = machine_.open_netns(enrolment.workload->netns);
  if (!opened) {
    enrolment.netns_error =
        opened.error().message + "; start the workload, or mend or delete its WorkloadEntry";
    return Error{opened.error().code, enrolment.netns_error};
  }
  enrolment.netns = std::move(opened).value();
  return success();
}

std::string Workloads::refusal_text(const Enrolment& enrolment, const HoldMessage& message) const {
  if (message.status == HoldStatus::kNotHeld && !enrolment.netns_error.empty())
    return enrolment.netns_error;
  std::string text(feed::to_string(message.status));
  if (message.status == HoldStatus::kNotANamespace) text += ": " + enrolment.workload->netns;
  if (message.status == HoldStatus::kUnavailable && message.detail != 0)
    text += std::string(": ") + ::strerror(static_cast<int>(message.detail));
  if (message.status == HoldStatus::kShared)
    for (const auto& [name, other] : enrolments_)
      if (other.id != 0 && other.id == message.detail) text += ": " + name.to_string();
  return text;
}

void Workloads::start_waiting(Enrolment& enrolment) {
  enrolment.state = Enrolment::State::kWaiting;
  enrolment.reason =
      hold_.is_connected() ? "waiting for meshhold" : "meshhold is away; see its log";
  ask_to_hold(enrolment);
}

void Workloads::ask_to_hold(const Enrolment& enrolment) {
  if (!hold_.is_connected()) return;
  HoldMessage message;
  message.type = HoldType::kEnrol;
  message.workload = enrolment.id;
  feed::Fds fds;
  if (enrolment.id == feed::kGatewayWorkload) {
    message.flags = feed::kFlagHostNamespace;
  } else if (enrolment.netns) {
    fds.push_back(duplicate(enrolment.netns));
    for (const UniqueFd& listener : enrolment.listeners) fds.push_back(duplicate(listener));
  }
  hold_.send(feed::as_bytes(message), std::move(fds));
}

void Workloads::on_hold_connected() {
  for (auto& [name, enrolment] : enrolments_) {
    if (enrolment.id == 0) continue;  // it ended
    if (enrolment.state == Enrolment::State::kFailed)
      ask_to_hold(enrolment);
    else
      start_waiting(enrolment);
  }
}

void Workloads::fail(Enrolment& enrolment, std::string reason) {
  enrolment.rounds_to_retry = std::min(1 << std::min(enrolment.failures, 8), kMaxRoundsToRetry);
  ++enrolment.failures;
  if (enrolment.state != Enrolment::State::kFailed || enrolment.reason != reason)
    log()->warn("workload cannot be enrolled name={} reason={}",
                enrolment.workload->name.to_string(), reason);
  enrolment.state = Enrolment::State::kFailed;
  enrolment.reason = std::move(reason);
}

Result<bool> Workloads::on_hold_message(const HoldMessage& message, feed::Fds fds) {
  if (message.type != HoldType::kEnrolled) return false;
  for (auto& [name, enrolment] : enrolments_) {
    if (enrolment.id != message.workload) continue;
    if (message.status != HoldStatus::kOk) {
      fail(enrolment, refusal_text(enrolment, message));
      return false;  // what is in the kernel stays there: its processes run
    }
    const bool changed = enrolment.cookie != message.netns_cookie;
    enrolment.state = Enrolment::State::kHeld;
    enrolment.failures = 0;
    enrolment.cookie = message.netns_cookie;
    enrolment.families = message.families;
    enrolment.dns_error = static_cast<int>(message.detail);
    enrolment.listeners = std::move(fds);
    enrolment.reason = "waiting for meshproxy";
    return changed;
  }
  return false;  // it ended meanwhile
}

std::vector<config::ObjectName> Workloads::find_ended() {
  std::vector<config::ObjectName> ended;
  for (auto& [name, enrolment] : enrolments_) {
    const std::string& cgroup = enrolment.workload->cgroup;
    if (cgroup.empty()) continue;
    const auto populated = machine_.is_populated(cgroup);
    if (populated == true) {
      enrolment.was_populated = true;
      enrolment.looks_at_empty = 0;
      continue;
    }
    // A cgroup that is there and has not had a process yet may be about to get one.
    ++enrolment.looks_at_empty;
    if (!populated || enrolment.was_populated || enrolment.looks_at_empty > kPatientLooks)
      ended.push_back(name);
  }
  return ended;
}

bool Workloads::end(const config::ObjectName& name, const std::string& reason) {
  const auto at = enrolments_.find(name);
  if (at == enrolments_.end()) return false;
  at->second.cgroup_ids.clear();  // another may have it
  if (at->second.state == Enrolment::State::kFailed && at->second.cookie == 0 && !at->second.netns)
    return false;
  log()->info("workload ended name={} id={} reason={}", name.to_string(), at->second.id, reason);
  let_go(at->second);
  at->second.state = Enrolment::State::kFailed;
  at->second.reason = reason;
  at->second.cookie = 0;
  at->second.was_populated = false;
  at->second.looks_at_empty = 0;
  at->second.failures = at->second.rounds_to_retry = 0;
  // Should it come back, it is another one.
  numbers_.forget(Space::kWorkload, number_name(*at->second.workload));
  at->second.id = 0;
  return true;
}

void Workloads::let_go(Enrolment& enrolment) {
  if (!enrolment.workload->cgroup.empty()) machine_.unwatch_cgroup(enrolment.workload->cgroup);
  enrolment.netns.reset();
  enrolment.listeners.clear();
  if (enrolment.id == 0) return;
  HoldMessage message;
  message.type = HoldType::kEnd;
  message.workload = enrolment.id;
  hold_.send(feed::as_bytes(message), {});
}

void Workloads::retry_failed() {
  for (auto& [name, enrolment] : enrolments_) {
    if (enrolment.state != Enrolment::State::kFailed || !hold_.is_connected()) continue;
    const std::string& cgroup = enrolment.workload->cgroup;
    if (!cgroup.empty() && machine_.is_populated(cgroup) != true) continue;
    if (enrolment.rounds_to_retry > 0 && --enrolment.rounds_to_retry > 0) continue;
    if (enrolment.id == 0)
      enrolment.id = numbers_.number(Space::kWorkload, number_name(*enrolment.workload));
    auto ready = take_cgroup(enrolment);
    if (ready) ready = open_netns(enrolment);
    if (!ready) {
      fail(enrolment, ready.error().message);
      continue;
    }
    if (!cgroup.empty()) machine_.watch_cgroup(cgroup);
    ask_to_hold(enrolment);
  }
}

void Workloads::set_kernel_errors(const std::map<datapath::WorkloadId, Error>& errors) {
  for (auto& [name, enrolment] : enrolments_) {
    const auto error = errors.find(enrolment.id);
    std::string now = error == errors.end() ? std::string() : error->second.message;
    if (!now.empty() && now != enrolment.kernel_error)
      log()->warn("the kernel does not take a workload name={} error={}", name.to_string(), now);
    enrolment.kernel_error = std::move(now);
  }
}

std::vector<Client> Workloads::clients() const {
  std::vector<Client> clients;
  for (const auto& [name, enrolment] : enrolments_) {
    if (!enrolment.is_in_kernel()) continue;
    datapath::EnrolledWorkload kernel;
    kernel.id = enrolment.id;
    kernel.netns_cookie = enrolment.cookie;
    kernel.cgroup = enrolment.workload->cgroup;
    kernel.addresses = enrolment.workload->addresses;
    kernel.netns = enrolment.netns.get();
    kernel.strict = enrolment.workload->strict;
    kernel.bypasses_proxy = enrolment.workload->bypasses_proxy;
    kernel.fast_path = enrolment.workload->fast_path;
    clients.push_back({std::move(kernel), enrolment.workload});
  }
  return clients;
}

}  // namespace mesh::control
