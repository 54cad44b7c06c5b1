// Which endpoints a TCP connection may go to: the kernel balances with this, so it is asked when a
// snapshot is compiled, never for a connection.
#include <algorithm>

#include "config/snapshot.h"

namespace mesh::config {
namespace {

bool is_for(const TcpRoute& route, std::uint16_t port) {
  return route.port == 0 || route.port == port;
}

bool matches(const TcpMatch& match, const Workload& client, const SocketAddress& to) {
  const bool in_subnets = match.subnets.empty() ||
                          std::any_of(match.subnets.begin(), match.subnets.end(),
                                      [&](const IpBlock& block) { return block.contains(to.ip); });
  return in_subnets && (match.port == 0 || match.port == to.port) &&
         (match.source_namespace.empty() || match.source_namespace == client.name.ns) &&
         has_labels(client.labels, match.source_labels);
}

bool matches(const TcpRule& rule, const Workload& client, const SocketAddress& to) {
  return rule.matches.empty() ||
         std::any_of(rule.matches.begin(), rule.matches.end(),
                     [&](const TcpMatch& match) { return matches(match, client, to); });
}

// Null when none: the service's own endpoints.
const TcpRule* find_rule(const Snapshot& snapshot, const Workload& client, const Service& service,
                         const SocketAddress& to) {
  auto routes = snapshot.tcp_routes.find(service.host);
  if (routes == snapshot.tcp_routes.end()) return nullptr;
  for (const TcpRoute& route : routes->second) {
    if (!is_for(route, to.port)) continue;
    if (!route.client_namespace.empty() && route.client_namespace != client.name.ns) continue;
    for (const TcpRule& rule : route.rules)
      if (matches(rule, client, to)) return &rule;
  }
  return nullptr;
}

// Without a port: the one that the client asked for, else the destination's only one.
ClusterPtr find_destination(const Snapshot& snapshot, const Workload& client, std::uint16_t port,
                            const WeightedDestination& destination) {
  const auto find = [&](std::uint16_t number) {
    return snapshot.find_cluster(client.name.ns, destination.host, number, destination.subset);
  };
  if (destination.port != 0) return find(destination.port);
  if (auto cluster = find(port)) return cluster;
  auto service = snapshot.services.find(destination.host);
  const bool has_one = service != snapshot.services.end() && service->second->ports.size() == 1;
  return has_one ? find(service->second->ports.front().port) : nullptr;
}

bool asks_for_client(const TcpRule& rule) {
  return std::any_of(rule.matches.begin(), rule.matches.end(), [](const TcpMatch& match) {
    return !match.source_labels.empty() || !match.source_namespace.empty();
  });
}

// Only subsets: without one, a DestinationRule of the client's changes no endpoint.
bool differs_by_client(const Snapshot& snapshot, const TcpRule& rule) {
  return std::any_of(rule.destinations.begin(), rule.destinations.end(),
                     [&](const WeightedDestination& destination) {
                       return !destination.subset.empty() &&
                              snapshot.client_hosts.contains(destination.host);
                     });
}

}  // namespace

std::vector<TcpBackend> tcp_backends(const Snapshot& snapshot, const Workload& client,
                                     const Service& service, const SocketAddress& to) {
  std::vector<TcpBackend> backends;
  const TcpRule* rule = find_rule(snapshot, client, service, to);
  if (!rule) {
    if (auto cluster = snapshot.find_cluster(client.name.ns, service.host, to.port, ""))
      backends.push_back({std::move(cluster)});
    return backends;
  }
  for (const WeightedDestination& destination : rule->destinations)
    if (destination.weight != 0)
      backends.push_back(
          {find_destination(snapshot, client, to.port, destination), destination.weight});
  return backends;
}

bool is_client_dependent(const Snapshot& snapshot, const Service& service, std::uint16_t port) {
  auto routes = snapshot.tcp_routes.find(service.host);
  if (routes == snapshot.tcp_routes.end()) return false;
  return std::any_of(routes->second.begin(), routes->second.end(), [&](const TcpRoute& route) {
    return is_for(route, port) &&
           (!route.client_namespace.empty() ||
            std::any_of(route.rules.begin(), route.rules.end(), [&](const TcpRule& rule) {
              return asks_for_client(rule) || differs_by_client(snapshot, rule);
            }));
  });
}

}  // namespace mesh::config
