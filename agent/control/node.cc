#include "control/node.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/log.h"
#include "control/dumps.h"
#include "control/proxy_words.h"
#include "feed/messages.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::Object;
using config::ObjectKey;
using config::ObjectPtr;

constexpr int kRetryTicks = 3;
constexpr int kOrphanTicks = 5;
constexpr std::size_t kMaxQuestions = 64;
constexpr std::size_t kMaxLogged = 100;  // names at once

Logger log() {
  static const Logger made = logger("control");
  return made;
}

Error malformed(std::string_view what) {
  return {Errc::invalid_argument, "meshproxy sent a malformed message: " + std::string(what)};
}

// Its directory may be anybody's: nothing but a file is opened, and nothing is waited for.
Result<UniqueFd> open_access_log(const std::string& path, std::uint64_t& inode) {
  const std::string what = "the access log cannot be opened: " + path;
  UniqueFd fd(::open(path.c_str(),
                     O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW | O_NOCTTY,
                     0640));
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0) return errno_error(errno, what);
  if (!S_ISREG(status.st_mode)) return Error{Errc::refused, what + ": it is no file"};
  inode = status.st_ino;
  return fd;
}

json::array counts_by_rule(const std::map<std::uint32_t, std::uint64_t>& counts,
                           const std::map<std::uint32_t, PolicyRule>& rules) {
  json::array list;
  for (const auto& [number, count] : counts) {
    const auto rule = rules.find(number);
    if (rule == rules.end()) continue;
    list.push_back(
        {{"policy", rule->second.policy}, {"rule", rule->second.rule}, {"count", count}});
  }
  return list;
}

std::uint64_t since_clock_began_ms() {
  const auto since = Node::Clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(since).count());
}

// Of an earlier meshd, and from a configuration: the gateway is there without one.
bool has_workloads_or_services(const datapath::State& kernel) {
  return !kernel.services.empty() || !kernel.udp_services.empty() || !kernel.sets.empty() ||
         std::ranges::any_of(kernel.workloads,
                             [](const auto& one) { return one.first != feed::kGatewayWorkload; });
}

// To go on would take the hooks off every workload, and its policies out of the kernel.
Error lost_directory(const std::string& directory) {
  return {Errc::refused,
          "the kernel has workloads or services of an earlier meshd, but the state directory " +
              directory +
              " knows of none (it has no 'accepted'): nothing was changed, and what is enrolled is "
              "policed as before. Mount it, or restore it, and start again; to begin anew without "
              "what was: `meshctl disable --all`, then start again"};
}

}  // namespace

Node::Node(NodeOptions options, NodeParts parts, config::CompileOptions compile_options)
    : options_(std::move(options)),
      parts_(parts),
      gateway_(compile_options.gateway_workload),
      sources_(parts.store, parts.numbers, std::move(compile_options)),
      workloads_(parts.machine, parts.hold, parts.numbers),
      publisher_(parts.datapath, parts.proxy, parts.numbers),
      host_listeners_(parts.hold),
      audit_(parts.datapath, parts.machine) {}

Result<> Node::start(Clock::time_point now) {
  started_ = now_ = now;
  MESH_TRY(parts_.numbers.load());
  MESH_TRY(auto kernel, parts_.datapath.adopt());
  if (parts_.store.is_new() && has_workloads_or_services(kernel))
    return lost_directory(parts_.store.directory());
  MESH_TRY(parts_.store.open());
  for (const auto& [id, workload] : kernel.workloads)
    parts_.numbers.reserve_up_to(Space::kWorkload, id);
  for (const auto* services : {&kernel.services, &kernel.udp_services})
    for (const auto& [address, service] : *services)
      parts_.numbers.reserve_up_to(Space::kService, service.id);
  for (const auto& [id, set] : kernel.sets) {
    parts_.numbers.reserve_up_to(Space::kSet, id);
    for (const auto& [key, verdict] : set) {
      parts_.numbers.reserve_up_to(Space::kClass, key.peer);
      parts_.numbers.reserve_up_to(Space::kPolicy, std::max(verdict.policy, verdict.audit));
    }
  }
  for (const auto& [address, peer] : kernel.peers) {
    parts_.numbers.reserve_up_to(Space::kClass, peer.peer);
    parts_.numbers.reserve_up_to(Space::kSet, peer.ingress);
  }
  for (const auto& [block, peer] : kernel.blocks) parts_.numbers.reserve_up_to(Space::kClass, peer);
  for (const auto& [key, policy] : kernel.refusals)
    parts_.numbers.reserve_up_to(Space::kPolicy, policy);
  workloads_.adopt(kernel.workloads);
  publisher_.adopt(std::move(kernel));
  parts_.fast_path.start(now);
  if (auto map = parts_.datapath.heartbeat_map())
    if (auto opened = heartbeat_.open(map.value()); !opened)
      log()->error("a proxy that hangs will not be seen error={}", opened.error().message);
  host_listeners_.reconcile({});
  sources_.set_node_addresses(parts_.machine.node_addresses());
  recompile(now);
  return success();
}

// --- configuration

void Node::recompile(Clock::time_point now) {
  const config::SnapshotPtr before = compilation_.snapshot;
  compilation_ = sources_.compile(publisher_.next_version(), before.get());
  workloads_.reconcile(compilation_.snapshot->workloads, gateway_);
  publish(now);
}

void Node::publish(Clock::time_point now) {
  now_ = now;
  is_enrolment_due_ = false;
  if (publisher_.acked()) reconcile_host_listeners();  // removals come before the proxy is told
  // The proxy knows a workload's connections by its number, as long as it is told of it.
  if (is_any_ending() && take_ended_flows()) send_flows();
  publisher_.publish({compilation_.snapshot, compilation_.for_proxy, workloads_.clients()}, now);
  note_kernel_errors();
  tell_change();
}

// Of the last apply(): workloads, and what else did not fit, in the log once each.
void Node::note_kernel_errors() {
  workloads_.set_kernel_errors(publisher_.kernel_errors());
  NamedMisfits now;
  if (const datapath::Misfits& misfits = parts_.datapath.misfits(); misfits != datapath::Misfits{})
    now = name_misfits(misfits, publisher_.kernel(), *compilation_.snapshot,
                       policy_rules(parts_.numbers));
  std::size_t left = kMaxLogged;
  const auto log_new = [&left](const auto& before, const auto& names) {
    for (const auto& [name, what] : names)
      if (const auto known = before.find(name);
          (known == before.end() || known->second != what) && left != 0 && --left != 0)
        log()->warn("no room in the kernel object={} what={}", name, what);
  };
  log_new(misfits_.policies, now.policies);
  log_new(misfits_.others, now.others);
  if (left == 0) log()->warn("no room in the kernel for more; see `meshctl status`");
  if (now == NamedMisfits{} && misfits_ != now) log()->info("all fits into the kernel again");
  misfits_ = std::move(now);
}

bool Node::is_any_ending() const {
  std::set<std::uint32_t> there;
  for (const Client& client : workloads_.clients()) there.insert(client.kernel.id);
  return std::ranges::any_of(publisher_.kernel().workloads,
                             [&](const auto& known) { return !there.contains(known.first); });
}

void Node::on_store_changed(Clock::time_point now) {
  if (parts_.store.rescan()) recompile(now);
}

void Node::on_cgroups_changed(Clock::time_point now) { end_workloads(now); }

void Node::end_workloads(Clock::time_point now) {
  bool ended = false, removed = false;
  std::vector<std::string> empty_groups;
  for (const config::ObjectName& name : workloads_.find_ended()) {
    const ObjectKey key{"WorkloadEntry", name.ns, name.name};
    const config::WorkloadPtr workload = workloads_.all().at(name).workload;
    ended = workloads_.end(name, "its cgroup is empty: its processes have ended") || ended;
    if (!is_sandbox(*workload) || parts_.store.is_foreign(key)) continue;
    empty_groups.push_back(workload->cgroup);
    removed = true;
    if (auto gone = parts_.store.remove(key); !gone)
      log()->error("the entry of an ended sandbox cannot be removed name={} error={}",
                   name.to_string(), gone.error().message);
  }
  if (removed)
    on_store_changed(now);
  else if (ended)
    publish(now);
  for (const std::string& group : empty_groups)
    if (auto gone = parts_.machine.remove_cgroup(group); !gone)
      log()->debug("the group of an ended sandbox stays error={}", gone.error().message);
}

bool Node::is_sandbox(const config::Workload& workload) const {
  return !options_.sandbox_root.empty() && workload.cgroup.starts_with(options_.sandbox_root + "/");
}

// What a sandbox leaves whose starter was killed before it had an entry, or that ended while it was
// not enrolled.
void Node::remove_orphans() {
  std::set<std::string> used, groups;
  for (const auto& [name, enrolment] : workloads_.all()) used.insert(enrolment.workload->cgroup);
  for (const std::string& group : parts_.machine.sandbox_groups()) groups.insert(group);
  std::map<std::string, ObjectKey> entries;
  for (const auto& [name, workload] : compilation_.snapshot->workloads)
    if (const ObjectKey key{"WorkloadEntry", name.ns, name.name};
        is_sandbox(*workload) && !parts_.store.is_foreign(key))
      entries[workload->cgroup] = key;
  for (const auto& [group, key] : entries) groups.insert(group);
  std::map<std::string, int> orphans;
  for (const std::string& group : groups)
    if (!used.contains(group) && parts_.machine.is_populated(group) != true)
      orphans[group] = orphans_[group] + 1;
  orphans_ = std::move(orphans);
  bool removed = false;
  for (const auto& [group, ticks] : orphans_) {
    if (ticks <= kOrphanTicks) continue;
    if (const auto entry = entries.find(group); entry != entries.end()) {
      removed = true;
      if (auto gone = parts_.store.remove(entry->second); !gone)
        log()->error("the entry of an ended sandbox cannot be removed name={} error={}",
                     entry->second.to_string(), gone.error().message);
    }
    if (auto gone = parts_.machine.remove_cgroup(group); !gone)
      log()->warn("an empty group cannot be removed error={}", gone.error().message);
  }
  if (removed) on_store_changed(now_);
}

// --- meshhold

void Node::on_hold_connected() {
  workloads_.on_hold_connected();
  host_listeners_.on_hold_connected();
  is_hold_told_of_hang_.reset();
  is_sync_due_ = true;
  sync_hold();
}

// What meshhold holds and we did not name ends. Before the first acknowledgement we do not know
// which of the gateway's listeners stay.
void Node::sync_hold() {
  if (!is_sync_due_ || !publisher_.acked() || !parts_.hold.is_connected()) return;
  is_sync_due_ = false;
  feed::HoldMessage message;
  message.type = feed::HoldType::kSync;
  parts_.hold.send(feed::as_bytes(message), {});
}

// What became of an enrolment, the gateway's among them, is seen in status().
Result<> Node::on_hold_frame(std::string_view payload, feed::Fds fds) {
  MESH_TRY(auto message, feed::parse_hold_message(payload));
  if (message.type == feed::HoldType::kHostListening) {
    host_listeners_.on_hold_message(message, std::move(fds));
    return success();
  }
  MESH_TRY(const bool changed, workloads_.on_hold_message(message, std::move(fds)));
  is_enrolment_due_ = is_enrolment_due_ || changed;
  return success();
}

// Once for many answers: each costs the kernel's and the proxy's whole state.
void Node::on_hold_drained() {
  if (is_enrolment_due_) publish(Clock::now());
}

void Node::reconcile_host_listeners() {
  if (publisher_.acked())
    host_listeners_.reconcile(gateway_binds(*compilation_.snapshot, *publisher_.acked()));
}

// --- meshproxy

// A proxy that just came has not stamped yet; and it may be we who were stopped: so a second look.
void Node::watch_proxy(Clock::time_point now) {
  if (publisher_.write_responders()) {
    note_kernel_errors();
    tell_change();
  }
  if (!heartbeat_.is_open() || !parts_.proxy.is_connected()) return;
  const bool is_fresh = heartbeat_.is_fresh(now, feed::kProxyGrace);
  if (!is_fresh && now - proxy_connected_at_ <= feed::kProxyGrace) return;
  stale_looks_ = is_fresh ? 0 : stale_looks_ + 1;
  if (stale_looks_ == 1 || is_hold_told_of_hang_ == !is_fresh || !parts_.hold.is_connected())
    return;
  is_hold_told_of_hang_ = !is_fresh;
  feed::HoldMessage message;
  message.type = feed::HoldType::kProxyState;
  message.status = is_fresh ? feed::HoldStatus::kOk : feed::HoldStatus::kUnavailable;
  parts_.hold.send(feed::as_bytes(message), {});
}

// While the proxy is away or hangs, meshhold closes its listeners to whoever comes.
void Node::audit(Clock::time_point now) {
  const bool listens =
      parts_.hold.is_connected() && parts_.proxy.is_connected() && stale_looks_ == 0;
  if (audit_.step(workloads_, listens, now)) tell_change();
}

void Node::watch_fast_path(Clock::time_point now) {
  if (parts_.fast_path.step(now)) tell_change();
  const auto joined = parts_.datapath.let_settled_join(publisher_.kernel());
  std::string error = joined ? std::string() : joined.error().message;
  if (!error.empty() && error != join_error_)
    log()->warn("connections go on by TCP error={}", error);
  join_error_ = std::move(error);
}

Result<> Node::switch_fast_path(bool on, Clock::time_point now) {
  MESH_TRY(parts_.fast_path.set(on, now));
  tell_change();
  return success();
}

void Node::on_proxy_connected(Clock::time_point now) {
  proxy_connected_at_ = now;
  stale_looks_ = 0;
  send_json(parts_.proxy,
            {{"type", feed::kHello}, {"role", "meshd"}, {"version", options_.version}});
  send_options();
  if (!taps_.empty()) send_tap_state();
  publisher_.on_proxy_connected(now);
}

void Node::on_proxy_lost() {
  proxy_version_.clear();
  for (auto& [id, answer] : answers_)
    if (!answer) answer = json::value();
  publisher_.on_proxy_lost();
  tell_change();
}

void Node::send_options() {
  feed::Fds fds;
  json::object message = {{"type", feed::kOptions}, {"node", options_.node_name}};
  auto heartbeat = parts_.datapath.heartbeat_map();
  message["heartbeat"] = heartbeat.has_value();
  if (heartbeat) fds.push_back(std::move(heartbeat).value());
  UniqueFd access_log;
  access_log_error_.clear();
  if (!options_.access_log.empty()) {
    auto opened = open_access_log(options_.access_log, access_log_inode_);
    if (opened)
      access_log = std::move(opened).value();
    else
      access_log_error_ = opened.error().message;
  }
  message["access_log"] = static_cast<bool>(access_log);
  if (access_log) fds.push_back(std::move(access_log));
  if (gateway_) {
    json::object labels;
    for (const auto& [name, value] : gateway_->labels) labels[name] = value;
    json::array addresses;
    for (const IpAddress& address : gateway_->addresses)
      addresses.emplace_back(address.to_string());
    message["gateway"] = {{"id", feed::kGatewayWorkload},
                          {"namespace", gateway_->name.ns},
                          {"name", gateway_->name.name},
                          {"labels", std::move(labels)},
                          {"service_account", gateway_->service_account},
                          {"addresses", std::move(addresses)}};
    message["root_namespace"] = gateway_->name.ns;
  }
  send_json(parts_.proxy, message, std::move(fds));
}

void Node::reopen_access_log() {
  if (parts_.proxy.is_connected()) send_options();
}

Result<> Node::on_proxy_frame(std::string_view payload) {
  MESH_TRY(auto message, feed::parse_message(payload));
  const std::string type = text_of(message, "type");
  if (type == feed::kReady) {
    proxy_version_ = text_of(message, "version");
    const json::value* dns = message.if_contains("dns");
    proxy_answers_dns_ = dns != nullptr && dns->is_bool() && dns->get_bool();
    if (!proxy_answers_dns_) publisher_.set_responders({});
  } else if (type == feed::kDns) {
    return on_dns(message);
  } else if (type == feed::kAck) {
    const auto version = number_of(message, "version");
    if (!version) return malformed("ack without a version");
    on_ack(*version);
  } else if (type == feed::kNack) {
    const auto version = number_of(message, "version");
    if (!version) return malformed("nack without a version");
    publisher_.on_nack(*version, problems_in(message), Clock::now());
    tell_change();
  } else if (type == feed::kTapEvent) {
    auto event = api::from_json<api::TapEvent>(printable(message).as_object());
    if (!event) return malformed(event.error().message);
    for (const auto& [id, sink] : taps_) sink(event.value());
  } else if (type == feed::kDumpReply) {
    const auto id = number_of(message, "id");
    const json::value* body = message.if_contains("body");
    if (!id || !body) return malformed("dump_reply without id or body");
    if (auto asked = answers_.find(*id); asked != answers_.end()) asked->second = printable(*body);
    tell_change();
  } else if (type == feed::kLog) {
    log()->warn("meshproxy says level={} message={}", text_of(message, "level"),
                text_of(message, "message"));
  } else {
    log()->debug("meshproxy sent an unknown message type={}", type);
  }
  return success();
}

void Node::on_ack(std::uint64_t version) {
  publisher_.on_ack(version, Clock::now());
  note_kernel_errors();
  reconcile_host_listeners();
  sync_hold();
  tell_change();
}

Result<> Node::on_dns(const json::object& message) {
  const json::value* list = message.if_contains("workloads");
  if (!list || !list->is_array()) return malformed("dns without workloads");
  std::set<std::uint32_t> workloads;
  for (const json::value& id : list->get_array()) {
    boost::system::error_code error;
    const auto number = id.to_number<std::uint32_t>(error);
    if (error) return malformed("dns.workloads");
    workloads.insert(number);
  }
  publisher_.set_responders(std::move(workloads));
  note_kernel_errors();
  tell_change();
  return success();
}

std::uint64_t Node::add_change_sink(std::function<void()> sink) {
  change_sinks_[next_change_sink_] = std::move(sink);
  return next_change_sink_++;
}

void Node::tell_change() const {
  for (const auto& [id, sink] : change_sinks_) sink();
}

// --- time

void Node::tick(Clock::time_point now, std::uint64_t unix_ms) {
  now_ = now;
  on_store_changed(now);
  if (sources_.set_node_addresses(parts_.machine.node_addresses())) recompile(now);
  end_workloads(now);
  remove_orphans();
  if (!publisher_.kernel_error().empty() || !publisher_.kernel_errors().empty()) {
    publisher_.refresh_kernel();
    note_kernel_errors();
  }
  publisher_.finish();
  if (++ticks_ % kRetryTicks == 0) {
    workloads_.retry_failed();
    tell_change();
    reconcile_host_listeners();  // asks again for those that could not be had
  }
  if (!options_.access_log.empty()) {
    struct stat status{};
    if (::lstat(options_.access_log.c_str(), &status) != 0 || status.st_ino != access_log_inode_)
      reopen_access_log();
  }
  read_counters();
  push_counters(unix_ms);
}

void Node::read_counters() {
  if (auto counted = parts_.datapath.counters()) counters_ = std::move(counted).value();
}

void Node::push_counters(std::uint64_t unix_ms) {
  if (!parts_.proxy.is_connected()) return;
  json::object totals;
  for (const auto& [name, value] : counters_.totals) totals[name] = value;
  json::object audit;
  for (const auto& [name, value] : audit_.counters()) audit[name] = value;
  const auto rules = policy_rules(parts_.numbers);
  send_json(parts_.proxy,
            {{"type", feed::kKernelCounters},
             {"at_ms", unix_ms},
             {"totals", std::move(totals)},
             {"audit", std::move(audit)},
             {"source_read", parts_.store.is_source_read()},
             {"fast_path", api::to_json(parts_.fast_path.status())},
             {"denied_by_policy", counts_by_rule(counters_.denied_by_policy, rules)},
             {"allowed_by_policy", counts_by_rule(counters_.allowed_by_policy, rules)},
             {"audited_by_policy", counts_by_rule(counters_.audited_by_policy, rules)}});
}

// --- L4 connections

// Long connections are looked at every 15 s: that costs a list of each workload's sockets.
void Node::report_flows(std::uint64_t unix_ms) {
  constexpr int kLookAtOpen = 30;
  clock_began_ms_ = unix_ms - since_clock_began_ms();
  if (!take_ended_flows()) return;
  if (flow_reports_++ % kLookAtOpen == 0) {
    auto open = parts_.datapath.open_flows(publisher_.kernel());
    if (!open) return say_flows_failed(open.error());
    flow_book_.see_open(open.value());
  }
  flow_error_.clear();
  send_flows();
}

void Node::say_flows_failed(const Error& error) {
  if (error.message != flow_error_)
    log()->error("L4 connections cannot be reported error={}", error.message);
  flow_error_ = error.message;
}

// False: they wait, since they cannot be had, or the time of day is not known yet.
bool Node::take_ended_flows() {
  if (!clock_began_ms_) return false;
  auto ended = parts_.datapath.take_flows();
  if (!ended) {
    say_flows_failed(ended.error());
    return false;
  }
  if (!ended.value().empty())
    flow_book_.add(ended.value(), Clock::now().time_since_epoch(),
                   *clock_began_ms_ + since_clock_began_ms(), policy_rules(parts_.numbers));
  return true;
}

void Node::send_flows() {
  if (!parts_.proxy.is_connected() || !publisher_.acked()) return;
  auto message = flow_book_.take();
  if (!message) return;
  (*message)["type"] = feed::kFlows;
  send_json(parts_.proxy, *message);
}

Result<api::Dump> Node::open_flows() {
  MESH_TRY(auto open, parts_.datapath.open_flows(publisher_.kernel()));
  MESH_TRY(auto udp, parts_.datapath.udp_flows());
  return dump_flows(std::move(open), std::move(udp), *compilation_.snapshot, workloads_.clients(),
                    policy_rules(parts_.numbers));
}

// --- taps and questions

std::uint64_t Node::add_tap(TapSink sink) {
  const std::uint64_t id = next_tap_++;
  taps_[id] = std::move(sink);
  if (taps_.size() == 1) send_tap_state();
  return id;
}

void Node::remove_tap(std::uint64_t id) {
  if (taps_.erase(id) != 0 && taps_.empty()) send_tap_state();
}

void Node::send_tap_state() {
  send_json(parts_.proxy, {{"type", feed::kTap}, {"on", !taps_.empty()}});
}

std::uint64_t Node::ask_proxy(const std::string& what) {
  if (!parts_.proxy.is_connected() || answers_.size() >= kMaxQuestions) return 0;
  const std::uint64_t id = next_question_++;
  answers_[id];
  send_json(parts_.proxy, {{"type", feed::kDump}, {"id", id}, {"what", what}});
  return id;
}

std::optional<json::value> Node::take_answer(std::uint64_t id) {
  const auto asked = answers_.find(id);
  if (asked == answers_.end() || !asked->second) return std::nullopt;
  auto answer = std::move(asked->second);
  answers_.erase(asked);
  return answer;
}

bool Node::is_settled() const { return !publisher_.is_in_flight() || !parts_.proxy.is_connected(); }

}  // namespace mesh::control
