#include "control/flow_book.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

namespace mesh::control {
namespace {

namespace json = boost::json;
using datapath::Flow;

std::string text_of(const std::optional<SocketAddress>& address) {
  return address ? address->to_string() : std::string();
}

void add_rule(std::uint32_t policy, const FlowBook::Rules& rules, json::object& out) {
  const auto rule = rules.find(policy);
  if (rule == rules.end()) return;
  out["policy"] = rule->second.policy;
  out["rule"] = rule->second.rule;
}

std::string_view state_name(std::uint8_t state) {
  static constexpr std::array<std::string_view, 13> kNames = {
      "?",      "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait",
      "closed", "close-wait",  "last-ack", "listen",   "closing",    "syn-recv"};
  return kNames[state < kNames.size() ? state : 0];
}

// Its own state tells who ended it first: a connection that both ends closed in turn passes through
// FIN_WAIT_2 (or CLOSING) where it began, and through LAST_ACK at the other end. From any other
// state it went at once: a reset by either end, or the kernel gave up.
const char* end_of(const Flow& flow) {
  if (flow.kind != Flow::Kind::kClosed || !flow.is_established) return nullptr;
  const std::string_view state = state_name(flow.tcp_state);
  if (state == "last-ack") return flow.is_inbound ? "closed_by_client" : "closed_by_server";
  if (state == "fin-wait-2" || state == "closing")
    return flow.is_inbound ? "closed_by_server" : "closed_by_client";
  return "reset";
}

json::object record_of(const Flow& flow, std::int64_t start_ms, const FlowBook::Rules& rules) {
  json::object record = {
      {"denied", flow.kind == Flow::Kind::kDenied},
      {"workload", flow.workload},
      {"inbound", flow.is_inbound},
      {"established", flow.is_established},
      {"local", text_of(flow.local)},
      {"remote", text_of(flow.remote)},
      {"service", text_of(flow.service)},
      {"start_ms", start_ms},
      {"duration_ms",
       std::chrono::duration_cast<std::chrono::milliseconds>(flow.ended - flow.started).count()},
      {"sent", flow.sent},
      {"received", flow.received}};
  if (flow.retransmits != 0) record["retransmits"] = flow.retransmits;
  if (!flow.reason.empty()) record["reason"] = flow.reason;
  if (const char* end = end_of(flow); end != nullptr) record["end"] = end;
  add_rule(flow.policy, rules, record);
  return record;
}

std::uint64_t above(std::uint64_t now, std::uint64_t before) {
  return now > before ? now - before : 0;
}

std::string name_of(const SocketAddress& at, const config::Snapshot& snapshot) {
  const auto service = snapshot.service_by_address.find(at.ip);
  if (service == snapshot.service_by_address.end()) return at.to_string();
  return service->second->host + ":" + std::to_string(at.port);
}

std::string destination_of(const Flow& flow, const config::Snapshot& snapshot) {
  return flow.service ? name_of(*flow.service, snapshot) : text_of(flow.local);
}

}  // namespace

// The other end's port is of no interest, that where it arrived is.
void FlowBook::count(const Flow& flow) {
  const bool has_failed = flow.kind == Flow::Kind::kClosed && !flow.is_established;
  std::optional<IpAddress> other;
  if (flow.remote) other = flow.remote->ip;
  const Edge edge{flow.workload, flow.is_inbound, has_failed,
                  flow.is_inbound ? flow.local : flow.service, other};
  const auto known = known_.find(flow.cookie);
  const Known told = known == known_.end() ? Known{} : known->second;
  auto sums = edges_.find(edge);
  if (sums == edges_.end()) {
    if (edges_.size() >= kMaxEdges) {
      ++dropped_;
      return;
    }
    sums = edges_.emplace(edge, Sums{}).first;
  }
  sums->second.opened += known == known_.end() ? 1U : 0U;
  sums->second.closed += flow.kind == Flow::Kind::kClosed ? 1U : 0U;
  sums->second.sent += above(flow.sent, told.sent);
  sums->second.received += above(flow.received, told.received);
  sums->second.retransmits += above(flow.retransmits, told.retransmits);
}

void FlowBook::add(const std::vector<Flow>& ended, std::chrono::nanoseconds monotonic_now,
                   std::uint64_t unix_ms, const Rules& rules) {
  using std::chrono::milliseconds;
  for (const Flow& flow : ended) {
    if (flow.kind == Flow::Kind::kClosed) count(flow);
    known_.erase(flow.cookie);
    if (records_.size() >= kMaxRecords) {
      ++dropped_;
      continue;
    }
    const auto ago = std::chrono::duration_cast<milliseconds>(monotonic_now - flow.started);
    records_.push_back(record_of(flow, static_cast<std::int64_t>(unix_ms) - ago.count(), rules));
  }
}

void FlowBook::see_open(const std::vector<Flow>& open) {
  for (auto& [cookie, known] : known_) ++known.missed;
  for (const Flow& flow : open) {
    if (!flow.is_established) continue;
    const bool is_new = !known_.contains(flow.cookie);
    if (is_new && known_.size() >= kMaxKnown) continue;  // it counts when it is closed
    if (has_seen_open_ || !is_new) count(flow);
    known_[flow.cookie] = {flow.sent, flow.received, flow.retransmits};
  }
  // What closed between the last add() and this look is not open, and what was told of it counts
  // when its end is added.
  std::erase_if(known_, [](const auto& known) { return known.second.missed > 1; });
  has_seen_open_ = true;
}

std::optional<json::object> FlowBook::take() {
  if (edges_.empty() && records_.empty() && dropped_ == 0) return std::nullopt;
  json::array edges, records;
  for (const auto& [edge, sums] : edges_) {
    const auto& [workload, is_inbound, has_failed, service, other] = edge;
    edges.push_back({{"workload", workload},
                     {"inbound", is_inbound},
                     {"failed", has_failed},
                     {"service", text_of(service)},
                     {"other", other ? other->to_string() : std::string()},
                     {"opened", sums.opened},
                     {"closed", sums.closed},
                     {"sent", sums.sent},
                     {"received", sums.received},
                     {"retransmits", sums.retransmits}});
  }
  for (json::object& record : records_) records.push_back(std::move(record));
  json::object message = {{"edges", std::move(edges)},
                          {"records", std::move(records)},
                          {"dropped", std::exchange(dropped_, 0)}};
  edges_.clear();
  records_.clear();
  return message;
}

namespace {

json::object row_of(const Flow& flow, const config::Snapshot& snapshot,
                    const FlowBook::Rules& rules) {
  const auto age = std::chrono::duration_cast<std::chrono::seconds>(flow.ended - flow.started);
  json::object row = {{"protocol", "TCP"},
                      {"direction", flow.is_inbound ? "in" : "out"},
                      {"destination", destination_of(flow, snapshot)},
                      {"peer", text_of(flow.remote)},
                      {"state", state_name(flow.tcp_state)},
                      {"seconds", age.count()},
                      {"sent", flow.sent},
                      {"received", flow.received},
                      {"retransmits", flow.retransmits},
                      {"verdict", "allowed"},  // what is not is ended
                      {"local", text_of(flow.local)},
                      {"cookie", flow.cookie}};
  add_rule(flow.policy, rules, row);
  return row;
}

// Its bytes, its beginning and its rule nobody writes down.
json::object row_of(const datapath::UdpFlow& flow, const config::Snapshot& snapshot) {
  const std::string own = "*:" + std::to_string(flow.port);
  return {{"protocol", "UDP"},
          {"direction", flow.is_inbound ? "in" : "out"},
          {"destination", flow.is_inbound ? own
                          : flow.service  ? name_of(*flow.service, snapshot)
                                          : flow.remote.to_string()},
          {"peer", flow.remote.to_string()},
          {"state", flow.is_connected ? "connected" : "open"},
          {"quiet_seconds", std::chrono::duration_cast<std::chrono::seconds>(flow.quiet).count()},
          {"verdict", "allowed"},
          {"local", own}};
}

}  // namespace

api::Dump dump_flows(std::vector<Flow> tcp, std::vector<datapath::UdpFlow> udp,
                     const config::Snapshot& snapshot, const std::vector<Client>& clients,
                     const FlowBook::Rules& rules, std::size_t most) {
  std::map<datapath::WorkloadId, std::string> names;
  for (const Client& client : clients) names[client.kernel.id] = client.workload->name.to_string();
  std::ranges::sort(
      tcp, [](const Flow& a, const Flow& b) { return a.sent + a.received > b.sent + b.received; });
  if (tcp.size() > most) tcp.resize(most);
  std::ranges::sort(udp, {}, &datapath::UdpFlow::quiet);
  if (udp.size() > most) udp.resize(most);
  api::Dump dump{"flows", 0, {}, {}};
  dump.columns = {"workload", "protocol", "direction", "destination", "peer",   "state",
                  "seconds",  "sent",     "received",  "retransmits", "verdict"};
  const auto add = [&](datapath::WorkloadId workload, json::object row) {
    row["workload"] = names[workload];
    dump.rows.push_back(std::move(row));
  };
  for (const Flow& flow : tcp) add(flow.workload, row_of(flow, snapshot, rules));
  for (const datapath::UdpFlow& flow : udp) add(flow.workload, row_of(flow, snapshot));
  return dump;
}

}  // namespace mesh::control
