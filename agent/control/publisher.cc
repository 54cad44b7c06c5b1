#include "control/publisher.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "feed/messages.h"

namespace mesh::control {
namespace {

namespace json = boost::json;

constexpr std::size_t kFrameTarget = std::size_t{4} << 20U;

Logger log() {
  static const Logger made = logger("control");
  return made;
}

constexpr int kLooks = 2;

// Whether nothing that was allowed can be forbidden now.
bool has_same_policy(const datapath::State& before, const datapath::State& now) {
  return now.sets.empty() || (before.sets == now.sets && before.peers == now.peers &&
                              before.blocks == now.blocks && before.workloads == now.workloads);
}

json::array enrolled_list(const std::vector<Client>& clients, const datapath::State& kernel) {
  const auto denied = denials(kernel);
  json::array list;
  for (const Client& client : clients) {
    const auto found = denied.find(client.kernel.id);
    list.push_back({{"id", client.kernel.id},
                    {"namespace", client.workload->name.ns},
                    {"name", client.workload->name.name},
                    {"denials", found == denied.end() ? std::string() : found->second}});
  }
  return list;
}

// How many rules each policy has, by the name that a verdict gives it.
std::map<std::string, int> policy_sizes(const config::Snapshot& snapshot) {
  std::map<std::string, int> sizes;
  const auto add = [&sizes](const std::string& name, std::size_t rules) {
    int& size = sizes[name];
    size = std::max(size, static_cast<int>(rules));
  };
  for (const auto& policy : snapshot.policies) add(display_name(*policy), policy->rules.size());
  for (const auto& policy : snapshot.network_policies)
    add(display_name(*policy), std::max(policy->ingress_rules.size(), policy->egress_rules.size()));
  return sizes;
}

// What `now` has no more of services that reset connections, or `before` had not already.
std::set<SocketAddress> former_services(const datapath::State& before, const datapath::State& now) {
  std::set<SocketAddress> former = before.former_services;
  each_difference(before.services, now.services, [&](const auto* was, const auto* is) {
    if (!is && was->second.resets_on_removal &&
        was->second.kind == datapath::ServiceEntry::Kind::kBalance)
      former.insert(was->first);
  });
  std::erase_if(former, [&now](const SocketAddress& at) { return now.services.contains(at); });
  return former;
}

}  // namespace

Publisher::Publisher(datapath::Datapath& datapath, Peer& proxy, Numbers& numbers)
    : datapath_(datapath), proxy_(proxy), numbers_(numbers), states_(numbers) {}

void Publisher::adopt(datapath::State state) {
  for (const auto& [id, workload] : state.workloads)
    if (workload.has_responder) responders_.insert(id);
  current_ = std::move(state);
}

void Publisher::set_responders(std::set<std::uint32_t> workloads) {
  if (workloads == responders_) return;
  responders_ = std::move(workloads);
  are_responders_due_ = true;
  if (std::exchange(may_write_responders_, false)) refresh_kernel();
}

bool Publisher::write_responders() {
  may_write_responders_ = !are_responders_due_;
  if (!are_responders_due_) return false;
  are_responders_due_ = false;
  refresh_kernel();
  return true;
}

void Publisher::publish(Publication publication, Clock::time_point now) {
  wanted_ = std::move(publication);
  ++version_;
  apply_kernel();
  if (!is_in_flight_) send_update(now);
}

void Publisher::refresh_kernel() {
  if (wanted_.snapshot) apply_kernel();
}

void Publisher::apply_kernel() {
  are_responders_due_ = false;
  datapath::State state = states_.compute({*wanted_.snapshot, acked(), current_, wanted_.clients});
  for (auto& [id, workload] : state.workloads) workload.has_responder = responders_.contains(id);
  if (auto saved = numbers_.save(); !saved) {
    kernel_error_ = saved.error().message;  // a number that is not kept must not be used
    return;
  }
  auto applied = datapath_.apply(state);
  if (!applied) {
    if (kernel_error_ != applied.error().message)
      log()->error("the kernel's state could not be written error={}", applied.error().message);
    kernel_error_ = applied.error().message;
    return;
  }
  kernel_error_.clear();
  kernel_errors_ = std::move(applied).value();
  const bool is_policy_new = !has_same_policy(current_, state);
  state.former_services = former_services(current_, state);
  current_ = std::move(state);
  forget_unused_numbers();
  if (is_policy_new) looks_due_ = kLooks;
  removal_looks_due_ = kLooks;
  end_forbidden();
}

void Publisher::finish() {
  end_forbidden();
  if (are_counters_due_) forget_counters();
}

// What was connecting when the policy changed may be open only now: so it is looked at twice, and
// what failed again.
void Publisher::end_forbidden() {
  end_removed();
  if (looks_due_ == 0) return;
  auto ended = datapath_.end_forbidden(current_);
  if (ended) {
    --looks_due_;
  } else if (ended.error() != look_error_) {
    log()->error("connections that a policy forbids could not be looked at or ended error={}",
                 ended.error().message);
    look_error_ = ended.error();
  }
}

void Publisher::end_removed() {
  if (removal_looks_due_ == 0) return;
  auto ended = datapath_.end_removed(current_);
  if (ended) {
    if (--removal_looks_due_ == 0) current_.former_services.clear();
  } else if (ended.error() != look_error_) {
    log()->error("connections to former endpoints could not be reset error={}",
                 ended.error().message);
    look_error_ = ended.error();
  }
}

// The state that the kernel has now names all that is used but what policies count: as long as a
// policy is there its counters stay, also while it decides about nobody.
void Publisher::forget_unused_numbers() {
  if (!states_.take_ended()) return;
  for (std::size_t i = 0; i < kSpaces; ++i)
    if (const Space space{static_cast<std::uint8_t>(i)};
        space != Space::kWorkload && space != Space::kPolicy)
      numbers_.keep_only(space, [&](std::uint32_t number) { return states_.uses(space, number); });
  const auto rules = policy_rules(numbers_);
  const std::map<std::string, int> sizes = policy_sizes(*wanted_.snapshot);
  numbers_.keep_only(Space::kPolicy, [&](std::uint32_t number) {
    if (states_.uses(Space::kPolicy, number)) return true;
    const auto rule = rules.find(number);
    const auto size = rule == rules.end() ? sizes.end() : sizes.find(rule->second.policy);
    return size != sizes.end() && rule->second.rule < size->second;
  });
  forget_counters();
}

void Publisher::forget_counters() {
  std::set<std::uint32_t> counted = {0};
  for (const auto& [name, number] : numbers_.names(Space::kPolicy)) counted.insert(number);
  are_counters_due_ = counted != counted_policies_;
  if (!are_counters_due_) return;
  if (auto forgotten = datapath_.forget_policies_but(counted); !forgotten) {
    if (forgotten.error() != forget_error_)
      log()->warn("counters of former policies stay, which is tried again error={}",
                  forgotten.error().message);
    forget_error_ = forgotten.error();
    return;
  }
  are_counters_due_ = false;
  forget_error_ = {};
  counted_policies_ = std::move(counted);
}

void Publisher::send_update(Clock::time_point now) {
  if (!proxy_.is_connected() || !wanted_.snapshot) return;
  const bool reset = !proxy_knows_sent_;
  const config::Objects none;
  std::vector<json::value> put;
  json::array gone;
  each_change(reset || !sent_ ? none : sent_->objects, wanted_.objects,
              [&](const config::ObjectPtr& before, const config::ObjectPtr& now) {
                if (!now)
                  gone.push_back({{"kind", before->key.kind},
                                  {"namespace", before->key.ns},
                                  {"name", before->key.name}});
                else if (!before || before->tree != now->tree)
                  put.emplace_back(now->tree);
              });
  sent_ = wanted_;
  sent_version_ = version_;
  sent_at_ = now;
  proxy_knows_sent_ = is_in_flight_ = true;
  send_frames(std::move(put), std::move(gone), reset);
}

void Publisher::send_frames(std::vector<json::value> put, json::array gone, bool reset) {
  json::object frame = {{"type", feed::kUpdate}, {"version", version_}, {"reset", reset}};
  frame["delete"] = std::move(gone);
  frame["enrolled"] = enrolled_list(wanted_.clients, current_);
  json::array part;
  std::size_t bytes = 0;
  for (json::value& tree : put) {
    const std::size_t size = json::serialize(tree).size();
    if (bytes != 0 && bytes + size > kFrameTarget) {
      frame["more"] = true;
      frame["put"] = std::exchange(part, {});
      send_json(proxy_, frame);
      frame["reset"] = false;
      frame["delete"] = json::array();
      bytes = 0;
    }
    part.push_back(std::move(tree));
    bytes += size;
  }
  frame["more"] = false;
  frame["put"] = std::move(part);
  send_json(proxy_, frame);
}

void Publisher::on_proxy_connected(Clock::time_point now) {
  proxy_knows_sent_ = is_in_flight_ = false;
  send_update(now);
}

// acked_ stays: the kernel goes on pointing at the proxy, which is only away.
void Publisher::on_proxy_lost() {
  proxy_knows_sent_ = is_in_flight_ = false;
  acked_version_ = 0;
}

void Publisher::on_ack(std::uint64_t version, Clock::time_point now) {
  if (!is_in_flight_ || version != sent_version_) return;
  is_in_flight_ = false;
  acked_version_ = version;
  acked_ = sent_;
  told_.clear();
  for (const Client& client : sent_->clients) told_.insert(client.kernel.id);
  nacked_.clear();
  apply_kernel();
  if (version_ != sent_version_) send_update(now);
}

void Publisher::on_nack(std::uint64_t version, std::vector<config::Problem> problems,
                        Clock::time_point now) {
  if (!is_in_flight_ || version != sent_version_) return;
  is_in_flight_ = proxy_knows_sent_ = false;
  nacked_ = std::move(problems);
  if (nacked_.empty()) {
    config::Problem unnamed;
    unnamed.object = {"Snapshot", "", std::to_string(version)};
    unnamed.message = "meshproxy refused this version; see its log";
    nacked_.push_back(std::move(unnamed));
  }
  for (const config::Problem& problem : nacked_)
    log()->error("meshproxy refused the configuration problem={}", problem.to_string());
  if (version_ != sent_version_) send_update(now);
}

bool Publisher::is_ack_late(Clock::time_point now) const {
  return is_in_flight_ && now - sent_at_ > kAckPatience;
}

}  // namespace mesh::control
