#include "control/kernel_state.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <set>

#include "routing/route_table.h"

namespace mesh::control {
namespace {

using config::Snapshot;
using config::Workload;
using datapath::ServiceEntry;
using datapath::State;

constexpr std::uint32_t kMaxShare = 64;  // of one endpoint among the backends of a service

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

// How often each endpoint is among the backends, of which the kernel takes any with equal chance:
// by weight, exactly where the reduced weights are small, else as near as kMaxShare allows.
std::vector<std::uint32_t> shares_of(const std::vector<config::Endpoint>& endpoints) {
  std::uint32_t divisor = 0, greatest = 1;
  for (const config::Endpoint& endpoint : endpoints) {
    divisor = std::gcd(divisor, endpoint.weight);
    greatest = std::max(greatest, endpoint.weight);
  }
  divisor = std::max(divisor, 1U);
  std::vector<std::uint32_t> shares;
  for (const config::Endpoint& endpoint : endpoints) {
    std::uint64_t share = endpoint.weight / divisor;
    if (greatest / divisor > kMaxShare)
      share = (std::uint64_t{endpoint.weight} * kMaxShare + greatest / 2) / greatest;
    shares.push_back(static_cast<std::uint32_t>(std::max<std::uint64_t>(share, 1)));
  }
  return shares;
}

ServiceEntry balanced(const Snapshot& snapshot, const config::Service& service, std::uint16_t port,
                      std::uint32_t id) {
  ServiceEntry entry{id, ServiceEntry::Kind::kBalance, {}};
  const auto cluster = snapshot.find_cluster(service.name.ns, service.host, port, "");
  if (!cluster) return entry;
  const std::vector<std::uint32_t> shares = shares_of(cluster->endpoints);
  for (std::size_t i = 0; i < shares.size(); ++i)
    entry.endpoints.insert(entry.endpoints.end(), shares[i], cluster->endpoints[i].address);
  return entry;
}

void add_service(const KernelInput& input, const config::Service& service,
                 const config::ServicePort& port, Numbers& numbers, State& state) {
  const std::uint32_t id =
      numbers.number(Space::kService, service.host + ":" + std::to_string(port.port));
  bool is_proxied = false;
  for (const IpAddress& ip : service.addresses) {
    const SocketAddress address{ip, port.port};
    if (port.protocol == config::Protocol::kTcp) {
      state.services[address] = balanced(input.snapshot, service, port.port, id);
      continue;
    }
    const auto now = input.current.services.find(address);
    const bool has_entry = now != input.current.services.end() && now->second.id == id;
    const bool is_there = has_entry && now->second.kind == ServiceEntry::Kind::kProxy;
    if (is_there || is_proxied_by(input.acked, address, service.host)) {
      state.services[address] = {id, ServiceEntry::Kind::kProxy, {}};
      is_proxied = true;
    } else {
      // Without an entry a connect would leave for an address that is nobody's, and hang; without
      // endpoints it is refused at once.
      state.services[address] =
          has_entry ? now->second : ServiceEntry{id, ServiceEntry::Kind::kBalance, {}};
    }
  }
  if (!is_proxied) return;
  for (const Client& client : input.clients)
    if (auto refusal = refusal_of_all(input.snapshot, *client.workload, service, port.port))
      state.refusals[{client.kernel.id, id}] = policy_number(*refusal, numbers);
}

}  // namespace

datapath::State kernel_state(const KernelInput& input, Numbers& numbers) {
  State state;
  for (const Client& client : input.clients) state.workloads[client.kernel.id] = client.kernel;
  add_policy(input.snapshot, input.clients, numbers, state);
  for (const auto& [host, service] : input.snapshot.services)
    for (const config::ServicePort& port : service->ports)
      if (port.transport() == config::Transport::kTcp)
        add_service(input, *service, port, numbers, state);
  return state;
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
