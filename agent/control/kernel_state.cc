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
using datapath::VerdictEntry;
using datapath::VerdictKey;

constexpr std::uint32_t kMaxShare = 64;  // of one endpoint among the backends of a service

// The destinations that the same policies select; of one family, where these ask for the client's
// address.
struct Group {
  struct Member {
    const Workload* workload;
    IpAddress ip;
  };
  std::uint32_t id = 0;
  std::vector<const config::AuthorizationPolicy*> policies;
  std::vector<Member> members;
};

std::uint32_t policy_number(const config::Verdict& verdict, Numbers& numbers) {
  if (verdict.policy.empty()) return 0;
  return numbers.number(Space::kPolicy, verdict.policy + "#" + std::to_string(verdict.rule));
}

bool asks_for_address(const config::AuthorizationPolicy& policy) {
  const auto asks = [](const config::SourceMatch& match) {
    return !match.ip_blocks.empty() || !match.not_ip_blocks.empty();
  };
  return std::ranges::any_of(policy.rules, [&](const config::L4Rule& rule) {
    return std::ranges::any_of(rule.from, asks) || std::ranges::any_of(rule.when, asks);
  });
}

// Of a policy that is in several files, each version has a name of its own.
std::vector<std::string> policy_keys(const Snapshot& snapshot) {
  std::map<config::ObjectName, int> versions;
  std::vector<std::string> keys;
  for (const auto& policy : snapshot.policies) {
    const int version = versions[policy->name]++;
    keys.push_back(policy->name.to_string() + (version ? "#" + std::to_string(version) : "") + ",");
  }
  return keys;
}

std::vector<Group> groups_of(const Snapshot& snapshot, Numbers& numbers) {
  std::map<std::string, Group> by_policies;
  const std::vector<std::string> keys = policy_keys(snapshot);
  for (const auto& [name, workload] : snapshot.workloads) {
    std::string key;
    std::vector<const config::AuthorizationPolicy*> selecting;
    bool by_family = false;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto& policy = snapshot.policies[i];
      if (!policy->selects(*workload)) continue;
      key += keys[i];
      selecting.push_back(policy.get());
      by_family = by_family || asks_for_address(*policy);
    }
    if (selecting.empty()) continue;
    for (const IpAddress& ip : workload->addresses) {
      Group& group = by_policies[by_family && !ip.is_v4() ? key + "ipv6" : key];
      group.policies = selecting;
      group.members.push_back({workload.get(), ip});
    }
  }
  std::vector<Group> groups;
  for (auto& [key, group] : by_policies) {
    group.id = numbers.number(Space::kGroup, key);
    groups.push_back(std::move(group));
  }
  return groups;
}

void add_ports(const std::vector<config::PortMatch>& matches, std::set<std::uint16_t>& ports) {
  for (const auto& [wanted, unwanted] : matches) {
    ports.insert(wanted.begin(), wanted.end());
    ports.insert(unwanted.begin(), unwanted.end());
  }
}

// The ports whose verdict may differ from that of any other port.
std::set<std::uint16_t> named_ports(const Group& group) {
  std::set<std::uint16_t> ports;
  for (const auto* policy : group.policies)
    for (const config::L4Rule& rule : policy->rules) {
      add_ports(rule.to, ports);
      add_ports(rule.when_port, ports);
    }
  ports.erase(0);
  return ports;
}

std::uint16_t port_not_in(const std::set<std::uint16_t>& ports) {
  std::uint16_t port = 1;
  while (ports.contains(port)) ++port;
  return port;
}

void add_verdicts(const Snapshot& snapshot, const Client& client, const Group& group,
                  Numbers& numbers, State& state) {
  // A workload may always talk to itself; the group's verdict is that for the others in it.
  const auto other = std::ranges::find_if(group.members, [&](const Group::Member& member) {
    return member.workload->name != client.workload->name;
  });
  const Group::Member& server = other == group.members.end() ? group.members.front() : *other;
  std::set<std::uint16_t> ports = named_ports(group);
  const std::uint16_t any_other = port_not_in(ports);
  ports.insert(any_other);
  for (const std::uint16_t port : ports) {
    const config::Verdict verdict =
        config::authorize(snapshot, *client.workload, *server.workload, {server.ip, port});
    const std::uint16_t key_port = port == any_other ? std::uint16_t{0} : port;
    state.verdicts[{client.kernel.id, group.id, 0, key_port}] = {verdict.allowed,
                                                                 policy_number(verdict, numbers)};
  }
}

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
      state.verdicts[{client.kernel.id, 0, id, 0}] = {false, policy_number(*refusal, numbers)};
}

}  // namespace

datapath::State kernel_state(const KernelInput& input, Numbers& numbers) {
  State state;
  for (const Client& client : input.clients) state.workloads[client.kernel.id] = client.kernel;
  for (const Group& group : groups_of(input.snapshot, numbers)) {
    for (const Group::Member& member : group.members) state.endpoints[member.ip] = group.id;
    for (const Client& client : input.clients)
      add_verdicts(input.snapshot, client, group, numbers, state);
  }
  for (const auto& [host, service] : input.snapshot.services)
    for (const config::ServicePort& port : service->ports)
      if (port.transport() == config::Transport::kTcp)
        add_service(input, *service, port, numbers, state);
  return state;
}

// The connections that are open were made to addresses, so groups are spelt out as such; the sum of
// hashes does not depend on their order.
std::map<datapath::WorkloadId, std::string> denials(const State& state) {
  std::map<std::uint32_t, std::size_t> members;
  for (const auto& [ip, group] : state.endpoints) members[group] += std::hash<IpAddress>{}(ip);
  std::map<datapath::WorkloadId, std::size_t> sums;
  for (const auto& [key, verdict] : state.verdicts)
    if (!verdict.allowed && key.group != 0)
      sums[key.client] += (members[key.group] + key.port) * 0x9e3779b97f4a7c15U;
  std::map<datapath::WorkloadId, std::string> texts;
  for (const auto& [client, sum] : sums) texts[client] = std::to_string(sum);
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
