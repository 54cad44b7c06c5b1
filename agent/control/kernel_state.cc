#include "control/kernel_state.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "routing/route_table.h"

namespace mesh::control {
namespace {

using config::Snapshot;
using config::Workload;
using datapath::ServiceEntry;
using datapath::State;

// The refusal that every endpoint shares which the service's routes can reach for this client.
std::optional<config::Verdict> refusal_of_all(const Snapshot& snapshot, const Workload& client,
                                              const config::Service& service, std::uint16_t port) {
  std::optional<config::Verdict> refusal;
  for (const auto& cluster : routing::reachable_clusters(snapshot, client, service, port))
    for (const config::Endpoint& endpoint : cluster->endpoints) {
      if (!endpoint.workload) return std::nullopt;
      config::Verdict verdict =
          config::authorize(snapshot, client, *endpoint.workload, endpoint.address);
      if (verdict.allowed) return std::nullopt;
      if (!refusal) refusal = std::move(verdict);
    }
  return refusal;
}

bool is_proxied_by(const Snapshot* acked, const SocketAddress& address, const std::string& host) {
  if (!acked) return false;
  const auto at = acked->service_by_address.find(address.ip);
  if (at == acked->service_by_address.end() || at->second->host != host) return false;
  const config::ServicePort* port = at->second->find_port(address.port);
  return port && port->protocol == config::Protocol::kHttp;
}

// The endpoints that a socket which asked for `to` can reach. IPv4 ones are an IPv6 socket's last
// resort, and by TCP alone: sendmsg6 takes no mapped address, and who speaks only IPv6 takes none.
std::vector<const config::Endpoint*> reachable(const config::Cluster& cluster,
                                               const SocketAddress& to) {
  const auto of = [&cluster](bool v4) {
    std::vector<const config::Endpoint*> endpoints;
    for (const config::Endpoint& endpoint : cluster.endpoints)
      if (endpoint.address.ip.is_v4() == v4) endpoints.push_back(&endpoint);
    return endpoints;
  };
  auto own = of(to.ip.is_v4());
  const bool may_be_mapped = !to.ip.is_v4() && cluster.transport == config::Transport::kTcp;
  return own.empty() && may_be_mapped ? of(true) : own;
}

// By their weights; their sum is the cluster's. None: its share is refused.
void add_shares(const config::TcpBackend& backend, const SocketAddress& to,
                std::vector<datapath::Share>& shares) {
  std::vector<datapath::Share> own;
  double total = 0;
  if (backend.cluster)
    for (const config::Endpoint* endpoint : reachable(*backend.cluster, to)) {
      const double weight = std::max(endpoint->weight, 1U);
      own.push_back({endpoint->address, weight});
      total += weight;
    }
  if (own.empty()) own.push_back({std::nullopt, total = 1});
  for (const datapath::Share& share : own)
    shares.push_back({share.endpoint, backend.weight * share.weight / total});
}

datapath::Columns columns_for(const Snapshot& snapshot, const Workload& client,
                              const config::Service& service, const SocketAddress& to) {
  std::vector<datapath::Share> shares;
  bool has_destinations = true;
  for (const config::TcpBackend& backend : config::tcp_backends(snapshot, client, service, to)) {
    has_destinations = has_destinations && backend.cluster;
    add_shares(backend, to, shares);
  }
  const bool is_nowhere = std::ranges::none_of(
      shares, [](const datapath::Share& share) { return share.endpoint.has_value(); });
  // There is where to go, but nobody: counted as such.
  if (is_nowhere && has_destinations) return {};
  return datapath::columns_of(shares);
}

ServiceEntry balanced(const KernelInput& input, const config::Service& service,
                      const SocketAddress& to, std::uint32_t id) {
  ServiceEntry entry{id, ServiceEntry::Kind::kBalance, {}};
  entry.affinity = service.affinity.value_or(std::chrono::seconds{0});
  entry.resets_on_removal = service.resets_on_removal;
  if (config::is_client_dependent(input.snapshot, service, to.port)) {
    entry.of_clients.emplace();
    for (const Client& client : input.clients)
      (*entry.of_clients)[client.kernel.id] =
          columns_for(input.snapshot, *client.workload, service, to);
    return entry;
  }
  Workload anybody;
  anybody.name.ns = service.name.ns;
  entry.columns = columns_for(input.snapshot, anybody, service, to);
  return entry;
}

// No route, and no client, makes a difference.
ServiceEntry balanced_udp(const Snapshot& snapshot, const config::Service& service,
                          const SocketAddress& to, std::uint32_t id) {
  ServiceEntry entry{id, ServiceEntry::Kind::kBalance, {}};
  entry.affinity = service.affinity.value_or(std::chrono::seconds{0});
  const auto cluster =
      snapshot.find_cluster(service.name.ns, service.host, to.port, "", config::Transport::kUdp);
  std::vector<datapath::Share> shares;
  if (cluster) add_shares({cluster, 1}, to, shares);
  const bool is_somebody_there = std::ranges::any_of(
      shares, [](const datapath::Share& share) { return share.endpoint.has_value(); });
  if (is_somebody_there) entry.columns = datapath::columns_of(shares);
  return entry;
}

// Where those clients go that bypass the proxy while it is away: as they would without its rules.
void add_bypass(const KernelInput& input, const config::Service& service, const SocketAddress& to,
                ServiceEntry& entry) {
  for (const Client& client : input.clients) {
    if (!client.kernel.bypasses_proxy) continue;
    if (!entry.of_clients) entry.of_clients.emplace();
    (*entry.of_clients)[client.kernel.id] =
        columns_for(input.snapshot, *client.workload, service, to);
  }
  if (entry.of_clients) entry.affinity = service.affinity.value_or(std::chrono::seconds{0});
}

// The proxy has it, or the kernel points there already.
bool is_proxied(const KernelInput& input, const config::Service& service,
                const SocketAddress& address, std::uint32_t id) {
  const auto now = input.current.services.find(address);
  const bool is_there = now != input.current.services.end() && now->second.id == id &&
                        now->second.kind == ServiceEntry::Kind::kProxy;
  return is_there || is_proxied_by(input.acked, address, service.host);
}

// What routes make of it, or DestinationRules of its clients, may depend on any service.
bool is_routed(const Snapshot& snapshot, const config::Service& service) {
  return snapshot.tcp_routes.contains(service.host) ||
         snapshot.find_mesh_routes(service.host) != nullptr ||
         snapshot.client_hosts.contains(service.host);
}

// What its clients connect to, and what the proxy does; endpoints elsewhere have no fast path.
void exclude_from_fast_path(const Snapshot& snapshot, const config::Service& service,
                            const std::set<IpAddress>& here, State& state) {
  for (const config::ServicePort& port : service.ports) {
    if (port.fast_path || port.transport() != config::Transport::kTcp) continue;
    for (const IpAddress& ip : service.addresses) state.slow_listeners.insert({ip, port.port});
    const auto cluster = snapshot.find_cluster(service.name.ns, service.host, port.port, "");
    if (!cluster) continue;
    for (const config::Endpoint& endpoint : cluster->endpoints)
      if (here.contains(endpoint.address.ip)) state.slow_listeners.insert(endpoint.address);
  }
}

}  // namespace

// --- services

bool KernelStates::is_ground_new(const KernelInput& input) {
  std::vector<ClientInput> clients;
  for (const Client& client : input.clients)
    clients.push_back({client.kernel.id, client.kernel.bypasses_proxy, client.workload});
  const bool is_new = ground_ != policy_.ground() || clients != clients_;
  ground_ = policy_.ground();
  clients_ = std::move(clients);
  return is_new;
}

bool KernelStates::is_current(const KernelInput& input, const Known& known,
                              const config::ServicePtr& service) const {
  const Snapshot& snapshot = input.snapshot;
  if (known.service != service || !known.is_final || is_routed(snapshot, *service)) return false;
  for (std::size_t i = 0; i < service->ports.size(); ++i) {
    const config::ServicePort& port = service->ports[i];
    if (snapshot.find_cluster(service->name.ns, service->host, port.port, "", port.transport()) !=
        known.clusters[i])
      return false;
    if (port.protocol != config::Protocol::kHttp) continue;
    for (const IpAddress& ip : service->addresses)
      if (!is_proxied(input, *service, {ip, port.port}, known.ids[i])) return false;
  }
  return true;
}

void KernelStates::forget(Known& known) {
  if (known.service) unsettled_.erase(known.service->host);
  for (const SocketAddress& address : known.tcp) services_.erase(address);
  for (const SocketAddress& address : known.udp) udp_services_.erase(address);
  for (const auto& key : known.refusals) refusals_.erase(key);
  for (const datapath::ServiceId id : known.ids)
    if (--ids_[id] == 0) {
      ids_.erase(id);
      ended_ = true;
    }
  known = {};
}

datapath::ServiceId KernelStates::id_of(std::uint16_t port, Known& known) {
  const datapath::ServiceId id =
      numbers_.number(Space::kService, known.service->host + ":" + std::to_string(port));
  ++ids_[id];
  known.ids.push_back(id);
  return id;
}

void KernelStates::add_udp_port(const KernelInput& input, std::uint16_t port, Known& known) {
  const datapath::ServiceId id = id_of(port, known);
  for (const IpAddress& ip : known.service->addresses) {
    const SocketAddress address{ip, port};
    udp_services_.insert_or_assign(address,
                                   balanced_udp(input.snapshot, *known.service, address, id));
    known.udp.push_back(address);
  }
}

void KernelStates::add_port(const KernelInput& input, const config::ServicePort& port,
                            Known& known) {
  const config::Service& service = *known.service;
  const datapath::ServiceId id = id_of(port.port, known);
  bool is_refusable = false;
  for (const IpAddress& ip : service.addresses) {
    const SocketAddress address{ip, port.port};
    known.tcp.push_back(address);
    if (port.protocol == config::Protocol::kTcp) {
      services_.insert_or_assign(address, balanced(input, service, address, id));
    } else if (is_proxied(input, service, address, id)) {
      ServiceEntry entry{id, ServiceEntry::Kind::kProxy, {}};
      add_bypass(input, service, address, entry);
      services_.insert_or_assign(address, std::move(entry));
      is_refusable = true;
    } else {
      // Without an entry a connect would leave for an address that is nobody's, and hang; without
      // endpoints it is refused at once.
      const auto now = input.current.services.find(address);
      const bool has_entry = now != input.current.services.end() && now->second.id == id;
      services_.insert_or_assign(
          address, has_entry ? now->second : ServiceEntry{id, ServiceEntry::Kind::kBalance, {}});
      known.is_final = false;
    }
  }
  if (!is_refusable) return;
  for (const Client& client : input.clients)
    if (auto refusal = refusal_of_all(input.snapshot, *client.workload, service, port.port)) {
      known.refusals.emplace_back(client.kernel.id, id);
      refusals_.insert_or_assign(known.refusals.back(), policy_.policy_number(*refusal));
    }
}

void KernelStates::compute_service(const KernelInput& input, Known& known) {
  const config::Service& service = *known.service;
  known.is_final = !is_routed(input.snapshot, service);
  for (const config::ServicePort& port : service.ports) {
    known.clusters.push_back(input.snapshot.find_cluster(service.name.ns, service.host, port.port,
                                                         "", port.transport()));
    if (port.transport() == config::Transport::kTcp)
      add_port(input, port, known);
    else
      add_udp_port(input, port.port, known);
  }
  if (!known.is_final) unsettled_.insert(service.host);
}

bool KernelStates::are_routes_new(const Snapshot& snapshot) {
  if (seen_.tcp_routes == snapshot.tcp_routes && seen_.client_hosts == snapshot.client_hosts &&
      seen_.mesh_hosts == snapshot.mesh_hosts)
    return false;
  seen_.tcp_routes = snapshot.tcp_routes;
  seen_.client_hosts = snapshot.client_hosts;
  seen_.mesh_hosts = snapshot.mesh_hosts;
  return true;
}

// Of services that came, went or are others, or of which something is another that is_current()
// asks for, but routes.
KernelStates::Hosts KernelStates::touched_hosts(const KernelInput& input) {
  const Snapshot& snapshot = input.snapshot;
  Hosts touched = unsettled_;
  each_difference(seen_.services, snapshot.services, [&](const auto* before, const auto* now) {
    touched.insert((now ? now : before)->first);
  });
  const auto touch = [&](const config::Service& service) { touched.insert(service.host); };
  each_difference(seen_.clusters, snapshot.clusters, [&](const auto* before, const auto* now) {
    touch(*(now ? now : before)->second->service);
  });
  const auto acked = input.acked ? input.acked->service_by_address : decltype(seen_.acked)();
  each_difference(seen_.acked, acked, [&](const auto* before, const auto* now) {
    if (before) touch(*before->second);
    if (now) touch(*now->second);
  });
  each_difference(seen_.current, input.current.services, [&](const auto* before, const auto* now) {
    const auto owner = snapshot.service_by_address.find((now ? now : before)->first.ip);
    if (owner != snapshot.service_by_address.end()) touch(*owner->second);
  });
  seen_.services = snapshot.services;
  seen_.clusters = snapshot.clusters;
  seen_.acked = acked;
  seen_.current = input.current.services;
  return touched;
}

void KernelStates::follow_services(const KernelInput& input) {
  const Snapshot& snapshot = input.snapshot;
  const bool is_all_stale = is_ground_new(input);
  Hosts looked_at = touched_hosts(input);
  if (are_routes_new(snapshot) || is_all_stale)
    for (const auto& [host, service] : snapshot.services) looked_at.insert(host);
  std::vector<std::pair<Known*, config::ServicePtr>> stale;
  for (const std::string& host : looked_at) {
    const auto service = snapshot.services.find(host);
    slow_.erase(host);
    if (service == snapshot.services.end()) {
      const auto gone = known_.find(host);
      if (gone == known_.end()) continue;
      forget(gone->second);
      known_.erase(gone);
      continue;
    }
    if (service->second->has_slow_port()) slow_.insert(host);
    Known& known = known_[host];
    if (is_all_stale || !is_current(input, known, service->second))
      stale.emplace_back(&known, service->second);
  }
  // All of them first: an address may go from one to another.
  for (auto& [service, now] : stale) forget(*service);
  for (auto& [service, now] : stale) {
    service->service = now;
    compute_service(input, *service);
  }
}

State KernelStates::compute(const KernelInput& input) {
  State state;
  for (const Client& client : input.clients) state.workloads[client.kernel.id] = client.kernel;
  policy_.update(input.snapshot, input.clients, state);
  follow_services(input);
  state.services = services_;
  state.udp_services = udp_services_;
  state.refusals = refusals_;
  std::set<IpAddress> here;
  for (const auto& [id, workload] : state.workloads)
    here.insert(workload.addresses.begin(), workload.addresses.end());
  for (const std::string& host : slow_)
    exclude_from_fast_path(input.snapshot, *input.snapshot.services.at(host), here, state);
  return state;
}

bool KernelStates::take_ended() {
  const bool policy_ended = policy_.take_ended();
  return std::exchange(ended_, false) || policy_ended;
}

bool KernelStates::uses(Space space, std::uint32_t number) const {
  return space == Space::kService ? ids_.contains(number) : policy_.uses(space, number);
}

State kernel_state(const KernelInput& input, Numbers& numbers) {
  return KernelStates(numbers).compute(input);
}

namespace {

std::size_t mixed(std::size_t sum, std::size_t value) {
  return (sum ^ value) * 0x9e3779b97f4a7c15U;
}

// What the set denies to a class, 0: nothing. Where it says nothing of the class, what it says of
// strangers.
std::size_t denied_by(const datapath::PolicySet& set, datapath::ClassId peer) {
  const auto first_of = [&](datapath::ClassId c) {
    return set.lower_bound({c, datapath::Transport::kAny, 0, 0});
  };
  auto at = first_of(peer);
  if (at == set.end() || at->first.peer != peer) at = first_of(peer = 0);
  std::size_t sum = 0;
  bool is_denied = false;
  for (; at != set.end() && at->first.peer == peer; ++at) {
    sum = mixed(sum, static_cast<std::size_t>(at->first.transport));
    sum = mixed(sum, at->first.first);
    sum = mixed(sum, at->first.last + (at->second.allowed ? 1U << 20U : 0U));
    is_denied = is_denied || !at->second.allowed;
  }
  return is_denied ? sum | 1U : 0;
}

}  // namespace

// The connections that are open were made to addresses, so sets are spelt out as such; the sum of
// hashes does not depend on their order.
std::map<datapath::WorkloadId, std::string> denials(const State& state) {
  std::map<datapath::SetId, std::size_t> members;
  for (const auto& [ip, peer] : state.peers) members[peer.ingress] += std::hash<IpAddress>{}(ip);
  std::map<datapath::WorkloadId, std::string> texts;
  for (const auto& [client, workload] : state.workloads) {
    std::size_t sum = 0;
    for (const auto& [id, set] : state.sets)
      for (const auto peer : {workload.class4, workload.class6})
        if (const std::size_t denied = denied_by(set, peer)) sum += mixed(members[id], denied);
    if (sum != 0) texts[client] = std::to_string(sum);
  }
  return texts;
}

std::map<std::uint32_t, PolicyRule> policy_rules(const Numbers& numbers) {
  std::map<std::uint32_t, PolicyRule> rules;
  for (const auto& [name, number] : numbers.names(Space::kPolicy)) {
    const auto hash = name.rfind('#');
    if (hash == std::string::npos) continue;
    PolicyRule rule{name.substr(0, hash), -1};
    std::from_chars(name.data() + hash + 1, name.data() + name.size(), rule.rule);
    rules[number] = std::move(rule);
  }
  return rules;
}

}  // namespace mesh::control
