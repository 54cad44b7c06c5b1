#include "proxy/feeds.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <utility>
#include <vector>

#include "base/log.h"
#include "feed/messages.h"
#include "telemetry/prometheus.h"

namespace mesh::proxy {

namespace {

namespace json = boost::json;
using namespace std::chrono_literals;
using feed::HoldMessage;
using feed::HoldType;

constexpr auto kHeartbeat = 200ms;
constexpr std::size_t kHeartbeatPage = 4096;  // an mmapable array of one u64 takes one page

Logger& log() {
  static Logger instance = logger("feed");
  return instance;
}

Error malformed(std::string_view what) {
  return {Errc::invalid_argument, "malformed message: " + std::string(what)};
}

std::string text_of(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : "";
}

std::optional<std::uint64_t> number_of(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  boost::system::error_code error;
  const auto number = value->to_number<std::uint64_t>(error);
  if (error) return std::nullopt;
  return number;
}

bool flag_of(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value != nullptr && value->is_bool() && value->get_bool();
}

const json::array& list_of(const json::object& object, std::string_view name) {
  static const json::array none;
  const json::value* value = object.if_contains(name);
  return value != nullptr && value->is_array() ? value->get_array() : none;
}

std::string rfc3339(std::chrono::system_clock::time_point at) {
  const auto since = std::chrono::duration_cast<std::chrono::milliseconds>(at.time_since_epoch());
  const std::time_t seconds = since.count() / 1000;
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  std::array<char, 32> text;
  const std::size_t size = std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::string result(text.data(), size);
  const std::string ms = std::to_string(since.count() % 1000);
  return result + "." + std::string(3 - ms.size(), '0') + ms + "Z";
}

SocketKind kind_of(const HoldMessage& message) {
  if ((message.flags & feed::kFlagDatagram) != 0)
    return message.family == feed::kFamily4 ? SocketKind::kUdp4 : SocketKind::kUdp6;
  return message.family == feed::kFamily4 ? SocketKind::kTcp4 : SocketKind::kTcp6;
}

ListenerId listener_id(const HoldMessage& message) {
  return {message.workload, message.kind, message.family, {IpAddress(message.ip), message.port}};
}

}  // namespace

struct Feeds::Peer {
  enum class Role : std::uint8_t { kUnknown, kMeshd, kHold };
  // Writes what the socket did not take at first.
  struct Flush : net::Waiter {
    explicit Flush(Peer* p)
        : Waiter([](Waiter& waiter) { static_cast<Flush&>(waiter).peer->flush(); }), peer(p) {}
    Peer* peer;
  };
  Peer(net::Scope& parent, UniqueFd fd) : channel(std::move(fd)), scope(parent), flusher(this) {}
  ~Peer() { io.detach(); }

  void send(std::string_view payload, feed::Fds fds = {}) {
    sent(channel.send_bytes(payload, std::move(fds)));
  }
  void flush() {
    flusher.leave();
    sent(channel.flush());
  }
  void sent(Result<> result) {
    if (!result) {
      log()->warn("channel broken while sending error={}", result.error().message);
      scope.cancel();
    } else if (channel.wants_write()) {
      flusher.wait_at(io.writer);
    }
  }

  feed::Channel channel;
  net::IoHandle io;
  net::Scope scope;
  Flush flusher;
  Role role = Role::kUnknown;
};

Feeds::Heartbeat::Heartbeat(Feeds* f)
    : Timer([](Timer& timer) { static_cast<Heartbeat&>(timer).feeds->stamp(); }), feeds(f) {}

Feeds::Feeds(net::Reactor& reactor, unsigned workers, const WorkerOptions& worker_options,
             FeedsOptions options)
    : reactor_(reactor),
      options_(std::move(options)),
      metrics_(reactor, [this](std::string& out) { write_metrics(out); }),
      scope_(reactor),
      group_(reactor),
      heartbeat_(this) {
  Proxy::Callbacks callbacks;
  callbacks.tap = [this](const TapEvent& event) { send_tap(event); };
  callbacks.want_sockets = [this](WorkloadId workload, SocketKind kind, std::uint32_t count) {
    want_sockets(workload, kind, count);
  };
  proxy_ = std::make_unique<Proxy>(reactor, workers, worker_options, std::move(callbacks));
}

Feeds::~Feeds() {
  if (heartbeat_map_ != nullptr) {
    ::munmap(const_cast<std::uint64_t*>(heartbeat_map_), kHeartbeatPage);
  }
}

Result<> Feeds::start(UniqueFd listener) {
  MESH_TRY(auto accepting, net::Listener::adopt(reactor_, std::move(listener)));
  group_.spawn(accept_all(std::move(accepting)));
  return success();
}

net::Task<> Feeds::close() {
  co_await proxy_->drain();
  heartbeat_.disarm();
  scope_.cancel();
  co_await group_.wait();
  co_await metrics_.close();
  proxy_->stop();
}

net::Task<> Feeds::accept_all(std::unique_ptr<net::Listener> listener) {
  while (!scope_.is_cancelled()) {
    auto fd = co_await listener->accept(scope_);
    if (scope_.is_cancelled()) break;
    if (!fd) {
      (void)co_await net::sleep_for(scope_, 100ms);
      continue;
    }
    const auto uid = feed::peer_uid(fd.value().get());
    if (!uid || uid.value() != options_.peer_uid) {
      log()->error("a stranger dialled and was refused uid={}", uid ? uid.value() : ~0u);
      continue;
    }
    group_.spawn(serve(std::move(fd).value()));
  }
}

net::Task<> Feeds::serve(UniqueFd fd) {
  Peer peer(scope_, std::move(fd));
  if (!peer.io.attach(reactor_, peer.channel.fd())) co_return;
  const feed::Channel::Handler handler = [this, &peer](std::string_view payload, feed::Fds fds) {
    switch (peer.role) {
      case Peer::Role::kMeshd:
        return on_meshd(payload, std::move(fds));
      case Peer::Role::kHold:
        return on_hold(payload, std::move(fds));
      default:
        return on_hello(peer, payload);
    }
  };
  std::string why = "replaced by a new connection";
  while (co_await net::IoReadable(peer.io, peer.scope)) {
    peer.io.readable = false;
    auto received = peer.channel.receive(handler);
    if (!received) {
      why = received.error().message;
      break;
    }
    if (responders_changed_ && has_listeners_) tell_responders();
    if (received.value()) {
      peer.io.readable = true;
      (void)co_await net::yield(peer.scope);
    }
  }
  if (meshd_ == &peer) meshd_ = nullptr;
  if (hold_ == &peer) hold_ = nullptr;
  const auto name = peer.role == Peer::Role::kMeshd  ? "meshd"
                    : peer.role == Peer::Role::kHold ? "meshhold"
                                                     : "unknown";
  if (!scope_.is_cancelled()) log()->info("peer gone peer={} reason={}", name, why);
  if (peer.role == Peer::Role::kMeshd && meshd_ == nullptr) proxy_->set_tap(false);
}

Result<> Feeds::on_hello(Peer& peer, std::string_view payload) {
  MESH_TRY(auto message, feed::parse_message(payload));
  const std::string role = text_of(message, "role");
  if (text_of(message, "type") != feed::kHello) return malformed("no hello");
  Peer*& place = role == "meshd" ? meshd_ : hold_;
  if (role == "meshd") {
    peer.role = Peer::Role::kMeshd;
  } else if (role == "meshhold") {
    peer.role = Peer::Role::kHold;
  } else {
    return malformed("hello of an unknown role");
  }
  if (place != nullptr) place->scope.cancel();
  place = &peer;
  log()->info("peer connected peer={}", role);
  if (role == "meshd") {
    to_meshd({{"type", feed::kReady},
              {"version", options_.version},
              {"workers", options_.workers},
              {"dns", true}});
    responders_changed_ = true;
  } else {
    named_.clear();
    proxy_->ask_again_for_sockets();
  }
  return success();
}

// meshd

void Feeds::to_meshd(const json::object& message) {
  if (meshd_ != nullptr) meshd_->send(json::serialize(message));
}

Result<> Feeds::on_meshd(std::string_view payload, feed::Fds fds) {
  MESH_TRY(auto message, feed::parse_message(payload));
  const std::string type = text_of(message, "type");
  if (type == feed::kOptions) return on_options(message, std::move(fds));
  if (type == feed::kUpdate) return on_update(message);
  if (type == feed::kTap) return on_tap(message);
  if (type == feed::kDump) return on_dump(message);
  if (type == feed::kKernelCounters) {
    kernel_counters_ = std::move(message);
    kernel_counters_at_ = reactor_.now();
    const json::value* is_read = kernel_counters_.if_contains("source_read");
    if (is_read != nullptr && is_read->is_bool() && is_read->get_bool())
      source_read_at_ = reactor_.now();
    if (snapshot_) tcp_records_.forget_ended_workloads(*snapshot_, reactor_.now());
    return success();
  }
  if (type == feed::kFlows) {
    std::string lines;
    tcp_records_.add(message, snapshot_, enrolled_, lines);
    if (!lines.empty()) proxy_->write_log(std::move(lines));
    return success();
  }
  log()->debug("meshd sent an unknown message type={}", type);
  return success();
}

Result<> Feeds::on_options(const json::object& message, feed::Fds fds) {
  std::size_t next = 0;
  const auto take_fd = [&]() { return next < fds.size() ? std::move(fds[next++]) : UniqueFd(); };
  if (flag_of(message, "heartbeat")) use_heartbeat(take_fd());
  proxy_->set_access_log(flag_of(message, "access_log") ? take_fd() : UniqueFd());
  const std::string root = text_of(message, "root_namespace");
  if (!root.empty()) compile_options_.root_namespace = root;
  const json::value* gateway = message.if_contains("gateway");
  if (gateway == nullptr || !gateway->is_object()) return success();
  const json::object& from = gateway->get_object();
  auto workload = std::make_shared<config::Workload>();
  workload->name = {text_of(from, "namespace"), text_of(from, "name")};
  workload->service_account = text_of(from, "service_account");
  if (const json::value* labels = from.if_contains("labels"); labels && labels->is_object()) {
    for (const auto& [name, value] : labels->get_object()) {
      if (value.is_string()) workload->labels[std::string(name)] = value.get_string();
    }
  }
  for (const auto& address : list_of(from, "addresses")) {
    if (!address.is_string()) return malformed("options.gateway.addresses");
    MESH_TRY(auto ip, IpAddress::parse(address.get_string()));
    workload->addresses.push_back(ip);
  }
  compile_options_.gateway_workload = std::move(workload);
  return success();
}

Result<> Feeds::on_update(const json::object& message) {
  const auto version = number_of(message, "version");
  if (!version) return malformed("update without a version");
  if (flag_of(message, "reset")) objects_.clear();
  for (const auto& gone : list_of(message, "delete")) {
    if (!gone.is_object()) return malformed("update.delete");
    const auto& key = gone.get_object();
    objects_.erase({text_of(key, "kind"), text_of(key, "namespace"), text_of(key, "name")});
  }
  for (const auto& tree : list_of(message, "put")) {
    if (!tree.is_object()) return malformed("update.put");
    MESH_TRY(auto object, config::make_object(tree.get_object()));
    auto kept = std::make_shared<config::Object>(std::move(object));
    objects_[kept->key] = std::move(kept);
  }
  if (message.contains("enrolled")) {
    enrolled_.clear();
    denials_.clear();
    for (const auto& entry : list_of(message, "enrolled")) {
      if (!entry.is_object()) return malformed("update.enrolled");
      const auto id = number_of(entry.get_object(), "id");
      if (!id) return malformed("update.enrolled without an id");
      enrolled_[static_cast<WorkloadId>(*id)] = {text_of(entry.get_object(), "namespace"),
                                                 text_of(entry.get_object(), "name")};
      denials_[static_cast<WorkloadId>(*id)] = text_of(entry.get_object(), "denials");
    }
  }
  if (!flag_of(message, "more")) compile_and_publish(*version);
  return success();
}

void Feeds::compile_and_publish(std::uint64_t version) {
  std::vector<config::ObjectPtr> objects;
  objects.reserve(objects_.size());
  for (const auto& [key, object] : objects_) objects.push_back(object);
  auto compiled = config::compile(objects, version, compile_options_, snapshot_.get());
  // meshd has accepted them; a policy that is refused is part of the configuration: it denies.
  json::array problems;
  for (const auto& problem : compiled.problems) {
    if (problem.severity != config::Problem::Severity::kError) continue;
    if (config::is_policy(problem.object)) continue;
    problems.push_back({{"kind", problem.object.kind},
                        {"namespace", problem.object.ns},
                        {"name", problem.object.name},
                        {"field", problem.field},
                        {"message", problem.message}});
  }
  if (!problems.empty()) {
    log()->error("configuration refused version={} problems={}", version, problems.size());
    return to_meshd(
        {{"type", feed::kNack}, {"version", version}, {"problems", std::move(problems)}});
  }
  snapshot_ = compiled.snapshot;
  auto configuration = std::make_shared<Configuration>();
  configuration->snapshot = snapshot_;
  configuration->gateway = compile_options_.gateway_workload;
  configuration->enrolled = enrolled_;
  configuration->denials = denials_;
  proxy_->publish(std::move(configuration), [this, version] {
    log()->info("configuration in use version={}", version);
    to_meshd({{"type", feed::kAck}, {"version", version}});
  });
}

Result<> Feeds::on_tap(const json::object& message) {
  proxy_->set_tap(flag_of(message, "on"));
  return success();
}

void Feeds::send_tap(const TapEvent& event) {
  to_meshd({{"type", feed::kTapEvent},
            {"time", rfc3339(event.at)},
            {"source", event.source},
            {"destination", event.destination},
            {"route", event.route},
            {"cluster", event.cluster},
            {"endpoint", event.endpoint},
            {"workload", event.workload},
            {"method", event.method},
            {"path", event.path},
            {"status", event.status},
            {"flags", event.flags},
            {"duration_ms", std::chrono::duration<double, std::milli>(event.latency).count()},
            {"request_id", event.request_id},
            {"details", event.details},
            {"authority", event.authority},
            {"bytes_received", event.bytes_received},
            {"bytes_sent", event.bytes_sent}});
}

Result<> Feeds::on_dump(const json::object& message) {
  const auto id = number_of(message, "id");
  if (!id) return malformed("dump without an id");
  const std::string what = text_of(message, "what");
  const auto reply = [this, id = *id](json::array columns, json::array rows) {
    to_meshd({{"type", feed::kDumpReply},
              {"id", id},
              {"body", {{"columns", std::move(columns)}, {"rows", std::move(rows)}}}});
  };
  if (what == "clusters") {
    proxy_->dump_clusters([reply](json::array rows) {
      reply({"cluster", "connections", "idle", "pending", "requests", "rq_total", "overflow",
             "ejected"},
            std::move(rows));
    });
  } else if (what == "endpoints") {
    reply({"cluster", "endpoint", "health"}, proxy_->dump_endpoints());
  } else if (what == "stats") {
    reply({}, {proxy_->stats()});
  } else {
    reply({}, {});  // routes and policies have no live state here
  }
  return success();
}

// The kernel refuses or diverts new connections when this is too old.
void Feeds::use_heartbeat(UniqueFd map) {
  void* page = ::mmap(nullptr, kHeartbeatPage, PROT_READ | PROT_WRITE, MAP_SHARED, map.get(), 0);
  if (page == MAP_FAILED) {
    log()->error("heartbeat map cannot be mapped error={}", errno_error(errno, "mmap").message);
    to_meshd({{"type", feed::kLog}, {"level", "error"}, {"message", "heartbeat map: mmap failed"}});
    return;
  }
  if (heartbeat_map_ != nullptr) {
    ::munmap(const_cast<std::uint64_t*>(heartbeat_map_), kHeartbeatPage);
  }
  heartbeat_map_ = static_cast<volatile std::uint64_t*>(page);
  stamp();
}

void Feeds::stamp() {
  const std::chrono::nanoseconds turned = proxy_->last_turn().time_since_epoch();
  *heartbeat_map_ = static_cast<std::uint64_t>(turned.count());  // steady_clock: CLOCK_MONOTONIC
  reactor_.timers().arm(heartbeat_, reactor_.now() + kHeartbeat);
}

// meshhold

void Feeds::want_sockets(WorkloadId workload, SocketKind kind, std::uint32_t count) {
  if (hold_ == nullptr) return;  // asked again when it comes
  HoldMessage message;
  message.type = HoldType::kWantSockets;
  message.workload = workload;
  message.family =
      kind == SocketKind::kTcp4 || kind == SocketKind::kUdp4 ? feed::kFamily4 : feed::kFamily6;
  if (kind == SocketKind::kUdp4 || kind == SocketKind::kUdp6) message.flags = feed::kFlagDatagram;
  message.count = std::min(count, feed::kMaxSocketBatch);
  hold_->send(feed::as_bytes(message));
}

Result<> Feeds::on_hold(std::string_view payload, feed::Fds fds) {
  MESH_TRY(auto message, feed::parse_hold_message(payload));
  switch (message.type) {
    case HoldType::kListener:
      return on_listener(message, std::move(fds));
    case HoldType::kSockets:
      if (message.status != feed::HoldStatus::kOk) {
        if (const auto times = socket_failures_.add(reactor_.now())) {
          log()->warn("meshhold made no sockets workload={} reason={} times={}", message.workload,
                      feed::to_string(message.status), *times);
        }
      }
      proxy_->add_sockets(message.workload, kind_of(message), std::move(fds));
      return success();
    case HoldType::kRevoke:
      responders_changed_ = true;
      std::erase_if(named_, [&](const ListenerId& id) { return id.workload == message.workload; });
      proxy_->revoke(message.workload);
      return success();
    case HoldType::kRevokeListener:
      responders_changed_ = true;
      named_.erase(listener_id(message));
      proxy_->remove_listener(listener_id(message));
      metrics_.remove_listener(listener_id(message));
      return success();
    case HoldType::kGiveBack:
      give_back(message);
      return success();
    case HoldType::kSync:
      on_sync();
      return success();
    default:
      return malformed("of meshhold");
  }
}

Result<> Feeds::on_listener(const HoldMessage& message, feed::Fds fds) {
  if (fds.size() != 1) return malformed("listener without its descriptor");
  const ListenerId id = listener_id(message);
  named_.insert(id);
  if (message.kind == feed::ListenerKind::kMetrics) {
    metrics_.add_listener(id, std::move(fds.front()));
  } else {
    proxy_->add_listener(id, std::move(fds.front()));
    responders_changed_ = responders_changed_ || feed::is_dns(id.kind);
  }
  return success();
}

// meshd and meshhold died together, and the duplicates with them.
void Feeds::give_back(HoldMessage message) {
  feed::Fds fds;
  for (const auto& id : proxy_->listeners())
    if (id.workload == message.workload &&
        (message.kind == feed::ListenerKind::kOutbound || id == listener_id(message)))
      fds.push_back(proxy_->duplicate_listener(id));
  if (message.kind == feed::ListenerKind::kMetrics)
    if (UniqueFd fd = metrics_.duplicate_listener(listener_id(message)))
      fds.push_back(std::move(fd));
  std::erase_if(fds, [](const UniqueFd& fd) { return !fd; });
  log()->info("meshhold takes listeners back workload={} count={}", message.workload, fds.size());
  message.type = HoldType::kGivenBack;
  hold_->send(feed::as_bytes(message), std::move(fds));
}

// A workload's datagrams and connections, both.
void Feeds::tell_responders() {
  responders_changed_ = false;
  std::set<WorkloadId> datagrams;
  json::array workloads;
  for (const auto& id : proxy_->listeners()) {  // UDP before TCP
    if (id.kind == feed::ListenerKind::kDnsUdp) datagrams.insert(id.workload);
    if (id.kind == feed::ListenerKind::kDnsTcp && datagrams.contains(id.workload))
      workloads.push_back(id.workload);
  }
  to_meshd({{"type", feed::kDns}, {"workloads", std::move(workloads)}});
}

void Feeds::on_sync() {
  responders_changed_ = has_listeners_ = true;
  std::set<WorkloadId> workloads;
  for (const auto& id : named_) workloads.insert(id.workload);
  for (const auto& id : proxy_->listeners()) {
    if (named_.contains(id)) continue;
    if (workloads.contains(id.workload) || id.workload == feed::kGatewayWorkload) {
      proxy_->remove_listener(id);
    } else {
      proxy_->revoke(id.workload);
    }
  }
  for (const auto& id : metrics_.listeners()) {
    if (!named_.contains(id)) metrics_.remove_listener(id);
  }
}

// /metrics

void Feeds::write_metrics(std::string& out) const {
  proxy_->write_metrics(out);
  telemetry::PrometheusWriter writer(out);
  using Type = telemetry::PrometheusWriter::Type;
  writer.family("undermesh_peer_connected", "Whether meshd and meshhold are connected",
                Type::kGauge);
  writer.sample({{"peer", "meshd"}}, meshd_ != nullptr ? 1 : 0);
  writer.sample({{"peer", "meshhold"}}, hold_ != nullptr ? 1 : 0);
  writer.family("undermesh_snapshot_version", "Version of the configuration in use", Type::kGauge);
  writer.sample({}, snapshot_ ? static_cast<double>(snapshot_->version) : 0);
  writer.family("undermesh_snapshot_age_seconds",
                "How long ago meshd last read the source of the configuration in use, or this "
                "proxy began: it grows while the source is gone, or meshd is away",
                Type::kGauge);
  writer.sample({}, std::chrono::duration<double>(net::Clock::now() - source_read_at_).count());
  writer.family("undermesh_socket_requests_failed_total",
                "Requests for upstream sockets that meshhold could not meet", Type::kCounter);
  writer.sample({}, static_cast<double>(socket_failures_.total()));
  tcp_records_.write_prometheus(out);
  write_kernel_counters(out);
}

void Feeds::write_kernel_counters(std::string& out) const {
  const json::value* totals = kernel_counters_.if_contains("totals");
  if (totals == nullptr || !totals->is_object()) return;
  telemetry::PrometheusWriter writer(out);
  using Type = telemetry::PrometheusWriter::Type;
  const auto number = [](const json::value& value) {
    return value.is_number() ? value.to_number<double>() : 0;
  };
  writer.family("undermesh_kernel_counters_age_seconds",
                "How old the kernel's counters below are: meshd reads them", Type::kGauge);
  writer.sample({}, std::chrono::duration<double>(net::Clock::now() - kernel_counters_at_).count());
  for (const auto& [name, value] : totals->get_object()) {
    writer.family("undermesh_kernel_" + std::string(name) + "_total",
                  "Counted by the mesh's BPF programs", Type::kCounter);
    writer.sample({}, number(value));
  }
  if (const json::value* audit = kernel_counters_.if_contains("audit"); audit && audit->is_object())
    for (const auto& [name, value] : audit->get_object()) {
      writer.family("undermesh_audit_" + std::string(name) + "_total",
                    "Counted by meshd's audit of what is captured", Type::kCounter);
      writer.sample({}, number(value));
    }
  if (const json::value* fast = kernel_counters_.if_contains("fast_path");
      fast && fast->is_object()) {
    const json::value* on = fast->get_object().if_contains("on");
    writer.family("undermesh_fastpath_enabled",
                  "Whether the same-node fast path is on; reason: what it is off for",
                  Type::kGauge);
    writer.sample({{"reason", text_of(fast->get_object(), "cause")}},
                  on != nullptr && on->is_bool() && on->get_bool() ? 1 : 0);
  }
  for (const auto& [list, help] :
       {std::pair{"denied_by_policy", "Connects refused by this policy and rule"},
        std::pair{"allowed_by_policy", "Connects allowed by this policy and rule"},
        std::pair{"audited_by_policy", "Connects that this AUDIT policy and rule matched"}}) {
    writer.family("undermesh_kernel_" + std::string(list) + "_total", help, Type::kCounter);
    for (const auto& entry : list_of(kernel_counters_, list)) {
      if (!entry.is_object()) continue;
      const auto& object = entry.get_object();
      const json::value* rule = object.if_contains("rule");
      const json::value* count = object.if_contains("count");
      const std::string policy = text_of(object, "policy");
      const std::string rule_text = rule != nullptr ? json::serialize(*rule) : "-1";
      writer.sample({{"policy", policy}, {"rule", rule_text}},
                    count != nullptr ? number(*count) : 0);
    }
  }
}

}  // namespace mesh::proxy
