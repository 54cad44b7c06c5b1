#include "datapath/flows.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <time.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "datapath/byte_order.h"
#include "datapath/connections.h"
#include "datapath/counters.h"

namespace mesh::datapath {
namespace {

using std::chrono::nanoseconds;

Logger log() {
  static const Logger made = logger("datapath");
  return made;
}

std::optional<SocketAddress> known(const um_destination& end) {
  if (end.protocol == 0) return std::nullopt;
  return user_destination(end);
}

nanoseconds monotonic_now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::chrono::seconds(now.tv_sec) + nanoseconds(now.tv_nsec);
}

Flow open_flow(const Connection& connection, const TcpCounts& counts, const um_connection& record,
               nanoseconds now) {
  Flow flow;
  flow.cookie = connection.cookie;
  flow.workload = record.workload;
  flow.is_inbound = (record.flags & UM_CONNECTION_INBOUND) != 0;
  flow.is_established = (record.flags & UM_CONNECTION_ESTABLISHED) != 0;
  flow.tcp_state = connection.state;
  flow.local = connection.local;
  flow.remote = connection.remote;
  flow.service = known(record.service);
  flow.started = nanoseconds(record.started);
  flow.ended = now;
  flow.sent = counts.sent;
  flow.received = counts.received;
  flow.retransmits = counts.retransmits;
  flow.policy = record.policy;
  return flow;
}

Flow reported_flow(const um_event& event) {
  Flow flow;
  flow.kind = event.kind == UM_EVENT_DENIED ? Flow::Kind::kDenied : Flow::Kind::kClosed;
  flow.cookie = event.cookie;
  flow.workload = event.workload;
  flow.is_inbound = (event.flags & UM_CONNECTION_INBOUND) != 0;
  flow.is_established = (event.flags & UM_CONNECTION_ESTABLISHED) != 0;
  flow.tcp_state = event.state;
  flow.local = known(event.local);
  flow.remote = known(event.remote);
  flow.service = known(event.service);
  flow.started = nanoseconds(event.started);
  flow.ended = nanoseconds(event.at);
  flow.sent = event.sent;
  flow.received = event.received;
  flow.retransmits = event.retransmits;
  flow.policy = event.policy;
  if (flow.kind == Flow::Kind::kDenied) flow.reason = counter_name(event.counter);
  return flow;
}

}  // namespace

Flows::Flows(const Object& object, SocketWork& work)
    : work_(work),
      connections_fd_(object.map("um_connections")),
      fast_sockets_fd_(object.map("um_fast_sockets")),
      events_fd_(object.map("um_events")),
      ring_(::ring_buffer__new(events_fd_, &on_event, this, nullptr)) {}

Flows::~Flows() { ::ring_buffer__free(ring_); }

int Flows::on_event(void* self, void* data, std::size_t size) {
  auto* flows = static_cast<Flows*>(self);
  um_event event{};
  if (size < sizeof event) return 0;
  std::memcpy(&event, data, sizeof event);
  flows->taken_.push_back(reported_flow(event));
  return 0;
}

Result<std::vector<Flow>> Flows::take() {
  if (ring_ == nullptr)
    return Error{Errc::exhausted, "the ring of connection events could not be opened"};
  if (const int error = ::ring_buffer__consume(ring_); error < 0)
    return errno_error(-error, "read the ring of connection events");
  for (Flow& flow : taken_)
    if (const auto ended = ended_.find(flow.cookie); ended != ended_.end())
      flow.reason = ended->second;
  ended_.clear();
  return std::exchange(taken_, {});
}

void Flows::note_ended(const std::vector<std::uint64_t>& cookies, const std::string& reason) {
  if (ring_ == nullptr) return;
  for (const std::uint64_t cookie : cookies) ended_.emplace(cookie, reason);
}

std::optional<um_connection> Flows::find(std::uint64_t cookie) const {
  um_connection record{};
  if (::bpf_map_lookup_elem(connections_fd_, &cookie, &record) != 0) return std::nullopt;
  return record;
}

Result<std::vector<Flow>> Flows::open(const State& state) {
  std::vector<Flow> flows;
  std::set<std::uint64_t> found;
  const nanoseconds now = monotonic_now();
  for (const auto& [id, workload] : state.workloads) {
    if (workload.netns < 0 || workload.cgroup.empty()) continue;
    auto listed =
        for_each_connection(work_, workload.netns, fast_sockets_fd_,
                            [&](const Connection& connection, const TcpCounts& counts) {
                              const auto record = find(connection.cookie);
                              if (!record) return;
                              found.insert(connection.cookie);
                              flows.push_back(open_flow(connection, counts, *record, now));
                            });
    if (listed) {
      unlisted_.erase(id);
    } else if (listed.error().code != Errc::timed_out) {
      return std::move(listed).assume_error();
    } else if (unlisted_.insert(id).second) {
      log()->warn("open connections are not counted workload={} error={}", workload.cgroup,
                  listed.error().message);
    }
  }
  std::erase_if(unlisted_, [&](WorkloadId id) { return !state.workloads.contains(id); });
  MESH_TRY(forget_orphans(state, found));
  return flows;
}

// Of connections whose end no program saw: their workload ended first, or they never began.
Result<> Flows::forget_orphans(const State& state, const std::set<std::uint64_t>& found) {
  std::vector<std::uint64_t> gone;
  std::set<std::uint64_t> missing;
  std::uint64_t cookie = 0, next = 0;
  for (const void* at = nullptr; ::bpf_map_get_next_key(connections_fd_, at, &next) == 0;
       at = &cookie) {
    cookie = next;
    if (found.contains(cookie)) continue;
    const auto record = find(cookie);
    if (!record) continue;
    const auto workload = state.workloads.find(record->workload);
    const bool is_over = workload == state.workloads.end() ||
                         (missing_.contains(cookie) && workload->second.netns >= 0 &&
                          !unlisted_.contains(record->workload));
    if (is_over)
      gone.push_back(cookie);
    else
      missing.insert(cookie);
  }
  missing_ = std::move(missing);
  for (const std::uint64_t orphan : gone)
    if (::bpf_map_delete_elem(connections_fd_, &orphan) != 0 && errno != ENOENT)
      return errno_error(errno, "forget a connection");
  return success();
}

}  // namespace mesh::datapath
