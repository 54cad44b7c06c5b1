#include "control/audit.h"

#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace mesh::control {
namespace {

Logger log() {
  static const Logger made = logger("control");
  return made;
}

int option(const UniqueFd& socket, int name) {
  int value = 0;
  socklen_t size = sizeof value;
  return ::getsockopt(socket.get(), SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

bool is_bound_to_lo(const UniqueFd& socket) {
  char device[IFNAMSIZ] = {};
  socklen_t size = sizeof device;
  return ::getsockopt(socket.get(), SOL_SOCKET, SO_BINDTODEVICE, device, &size) == 0 &&
         std::string_view(device) == "lo";
}

bool bind_to_lo(const UniqueFd& socket) {
  return ::setsockopt(socket.get(), SOL_SOCKET, SO_BINDTODEVICE, "lo", sizeof "lo") == 0;
}

// One that was closed under its owners (ss -K, for one) is still bound to its port: it can listen
// again. One of UDP receives on, but from every device, neighbours' too.
void look_at_listeners(const Enrolment& enrolment, std::vector<datapath::Difference>& out) {
  for (const UniqueFd& listener : enrolment.listeners) {
    if (option(listener, SO_TYPE) == SOCK_DGRAM) {
      if (!is_bound_to_lo(listener))
        out.push_back({"the mesh's UDP socket for DNS in it", bind_to_lo(listener)});
    } else if (option(listener, SO_ACCEPTCONN) != 1) {
      out.push_back({"a listener of the mesh in it", ::listen(listener.get(), SOMAXCONN) == 0});
    }
  }
}

std::string joined(const std::vector<std::string>& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : ", ") + text;
  return out;
}

}  // namespace

std::string Audit::Record::problem() const {
  std::string text = canary;
  if (!differences.empty())
    text +=
        (text.empty() ? "not as it should be: " : "; not as it should be: ") + joined(differences);
  return text;
}

bool Audit::step(const Workloads& workloads, bool listens, Clock::time_point now) {
  std::map<datapath::WorkloadId, datapath::EnrolledWorkload> kernel;
  for (Client& client : workloads.clients())
    if (!client.kernel.cgroup.empty()) kernel.emplace(client.kernel.id, std::move(client.kernel));
  bool changed =
      std::erase_if(records_, [&](const auto& item) { return !kernel.contains(item.first); }) != 0;
  changed = take_canaries(now) || changed;
  changed = look_at_mesh(now) || changed;
  std::size_t left = kernel.size() / kSteps + 1;
  for (const auto& [name, enrolment] : workloads.all()) {
    const auto found = kernel.find(enrolment.id);
    if (left == 0) break;
    if (found == kernel.end() || enrolment.state != Enrolment::State::kHeld) continue;
    Record& record = records_[enrolment.id];
    if (record.due > now) continue;
    const std::string before = record.problem(), missing = record.missing_addresses;
    look_at(enrolment, found->second, listens, record, now);
    changed = changed || record.problem() != before || record.missing_addresses != missing;
    --left;
  }
  return changed;
}

void Audit::look_at(const Enrolment& enrolment, const datapath::EnrolledWorkload& kernel,
                    bool listens, Record& record, Clock::time_point now) {
  record.due = now + kRound;
  ++counters_["workloads_looked_at"];
  note(differences_of(enrolment, kernel, listens),
       "workload " + enrolment.workload->name.to_string(), record, now);
  record.missing_addresses = look_for_addresses(enrolment);
  ++counters_["canaries_sent"];
  if (auto sent = datapath_.send_canary(kernel, now); !sent) {
    ++counters_["canaries_lost"];
    record.canary = sent.error().message;
  }
}

// It is said, and nothing is refused: DHCP may still bring an address, or it may be away for a
// moment, and what runs is captured and policed without it.
std::string Audit::look_for_addresses(const Enrolment& enrolment) {
  if (!enrolment.netns) return {};
  const auto there = machine_.addresses_in(enrolment.netns.get());
  if (!there) {
    log()->debug("the addresses of a workload are not known name={} error={}",
                 enrolment.workload->name.to_string(), there.error().message);
    return {};
  }
  std::vector<std::string> missing;
  for (const IpAddress& ip : enrolment.workload->addresses)
    if (std::ranges::count(there.value(), ip) == 0) missing.push_back(ip.to_string());
  if (missing.empty()) return {};
  return "its network namespace has no address " + joined(missing) +
         ", so nobody reaches it there; add it to an interface, or mend the WorkloadEntry";
}

bool Audit::look_at_mesh(Clock::time_point now) {
  if (mesh_.due > now) return false;
  mesh_.due = now + kRound;
  const auto before = mesh_.differences;
  auto found = datapath_.audit_mesh();
  note(found ? std::move(found).value()
             : std::vector<datapath::Difference>{{found.error().message, false}},
       "the mesh", mesh_, now);
  return mesh_.differences != before;
}

void Audit::note(std::vector<datapath::Difference> differences, const std::string& whose,
                 Record& record, Clock::time_point now) {
  record.differences.clear();
  for (datapath::Difference& difference : differences) {
    ++counters_["differences"];
    log()->warn("not as it should be whose={} difference={} repaired={}", whose, difference.what,
                difference.is_repaired);
    last_ = {whose + ": " + difference.what, difference.is_repaired, now};
    if (difference.is_repaired)
      ++counters_["repairs"];
    else if (!difference.is_harmless)
      record.differences.push_back(std::move(difference.what));
  }
}

std::vector<datapath::Difference> Audit::differences_of(const Enrolment& enrolment,
                                                        const datapath::EnrolledWorkload& kernel,
                                                        bool listens) {
  std::vector<datapath::Difference> differences;
  if (auto found = datapath_.audit(kernel))
    differences = std::move(found).value();
  else
    differences.push_back({found.error().message, false});
  if (listens) look_at_listeners(enrolment, differences);
  return differences;
}

bool Audit::take_canaries(Clock::time_point now) {
  bool changed = false;
  for (auto& [id, outcome] : datapath_.take_canaries(now)) {
    const auto at = records_.find(id);
    if (!outcome) ++counters_["canaries_lost"];
    if (at == records_.end()) continue;
    Record& record = at->second;
    std::string text = outcome ? std::string() : outcome.error().message;
    changed = changed || !record.is_canary_back || record.canary != text;
    if (!text.empty() && record.canary != text)
      log()->warn("a canary says that a workload is not captured id={} reason={}", id, text);
    record.is_canary_back = true;
    record.canary = std::move(text);
  }
  return changed;
}

std::string Audit::captured(datapath::WorkloadId id) const {
  const auto at = records_.find(id);
  if (at == records_.end()) return {};
  const std::string problem = at->second.problem();
  if (!problem.empty()) return "no";
  return at->second.is_canary_back ? "yes" : "";
}

std::string Audit::missing_addresses(datapath::WorkloadId id) const {
  const auto at = records_.find(id);
  return at == records_.end() ? std::string() : at->second.missing_addresses;
}

std::string Audit::problem(datapath::WorkloadId id) const {
  const auto at = records_.find(id);
  return at == records_.end() ? std::string() : at->second.problem();
}

}  // namespace mesh::control
