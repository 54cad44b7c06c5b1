// VirtualServices and Gateways: which host is routed by what.
#include <algorithm>

#include "config/assemble.h"

namespace mesh::config {
namespace {

HostRoutes& routes_of(HostTable& table, const std::string& host) {
  if (!host.starts_with('*')) return table.exact[host];
  auto found = std::find_if(table.wildcards.begin(), table.wildcards.end(),
                            [&](const auto& entry) { return entry.first == host; });
  if (found != table.wildcards.end()) return found->second;
  return table.wildcards.emplace_back(host, HostRoutes{}).second;
}

void sort_wildcards(HostTable& table) {
  std::sort(table.wildcards.begin(), table.wildcards.end(), [](const auto& a, const auto& b) {
    if (a.first.size() != b.first.size()) return a.first.size() > b.first.size();
    return a.first < b.first;
  });
}

bool has_port(const Service& service, Protocol protocol) {
  return std::any_of(service.ports.begin(), service.ports.end(),
                     [&](const auto& port) { return port.protocol == protocol; });
}

bool is_bound(const VirtualService& service, std::string_view gateway) {
  return std::find(service.gateways.begin(), service.gateways.end(), gateway) !=
         service.gateways.end();
}

void qualify(VirtualService& service, const Snapshot& snapshot, Report& report) {
  bool for_mesh = is_bound(service, "mesh");
  for (std::size_t i = 0; i < service.hosts.size(); ++i) {
    std::string& host = service.hosts[i];
    std::string full = qualified_host(snapshot, host, service.name.ns);
    if (!for_mesh && host.find('.') == std::string::npos && host != "*")
      report.warn(
          path_of_item("spec.hosts", i),
          "a short name: it means " + full + " here; write the whole name that clients use");
    host = std::move(full);
  }
  for (HttpRoute& route : service.http)
    for (WeightedDestination& destination : route.destinations)
      destination.host = qualified_host(snapshot, destination.host, service.name.ns);
  for (TcpRule& rule : service.tcp)
    for (WeightedDestination& destination : rule.destinations)
      destination.host = qualified_host(snapshot, destination.host, service.name.ns);
}

constexpr std::string_view kAnswered503 = " yet; requests for it are answered 503";
constexpr std::string_view kShareRefused = " yet; its share of the connections is refused";

// A reference to what does not exist (yet) is a warning: the order of creation is free.
// `outcome`: what comes of it until then.
void warn_of_destination(const WeightedDestination& destination, const std::string& path,
                         const std::string& ns, std::string_view outcome, const Snapshot& snapshot,
                         Report& report) {
  auto found = snapshot.services.find(destination.host);
  if (found == snapshot.services.end())
    return report.warn(path + ".host",
                       "no Service is named " + destination.host + std::string(outcome));
  const Service& target = *found->second;
  if (destination.port != 0 && !target.find_port(destination.port))
    return report.warn(path + ".port", target.host + " has no port " +
                                           std::to_string(destination.port) + std::string(outcome));
  if (destination.subset.empty() || target.ports.empty()) return;
  std::uint16_t port = destination.port != 0 ? destination.port : target.ports.front().port;
  if (!snapshot.find_cluster(ns, target.host, port, destination.subset))
    report.warn(path + ".subset", "no DestinationRule has the subset '" + destination.subset +
                                      "' of " + target.host + std::string(outcome));
}

template <class Rule>
void warn_of_references(const std::vector<Rule>& rules, std::string_view name,
                        const std::string& ns, std::string_view outcome, const Snapshot& snapshot,
                        Report& report) {
  for (std::size_t i = 0; i < rules.size(); ++i) {
    std::string routes = path_of_item(name, i) + ".route";
    const auto& destinations = rules[i].destinations;
    for (std::size_t j = 0; j < destinations.size(); ++j)
      warn_of_destination(destinations[j], path_of_item(routes, j) + ".destination", ns, outcome,
                          snapshot, report);
  }
}

void add_mesh_hosts(const VirtualServicePtr& service, Snapshot& snapshot, Report& report) {
  for (std::size_t i = 0; i < service->hosts.size(); ++i) {
    const std::string& host = service->hosts[i];
    std::string path = path_of_item("spec.hosts", i);
    HostRoutes& routes = routes_of(snapshot.mesh_hosts, host);
    if (!routes.services.empty()) {
      report.warn(path, host + " is already routed by VirtualService " +
                            routes.services.front()->name.to_string() +
                            ", which is older; this one is not used for it in the mesh");
      continue;
    }
    routes.services.push_back(service);
    auto known = snapshot.services.find(host);
    if (known == snapshot.services.end()) continue;
    if (!service->tcp.empty() && !has_port(*known->second, Protocol::kTcp))
      report.warn(path, host + " has no TCP port, so TCP routes have no effect");
    if (!service->http.empty() && !has_port(*known->second, Protocol::kHttp))
      report.warn(path, host +
                            " has no HTTP port, so HTTP routes have no effect; name a port "
                            "http or http-..., or set its appProtocol to http");
  }
}

// The host that a server and a VirtualService both serve; empty when none.
std::string common_host(const std::string& server, const std::string& service) {
  if (server == service || is_below(service, server)) return service;
  return is_below(server, service) ? server : std::string();
}

bool bind_to_server(const VirtualServicePtr& service, GatewayServer& server) {
  bool bound = false;
  for (std::size_t i = 0; i < server.hosts.size(); ++i) {
    if (server.host_namespaces[i] != "*" && server.host_namespaces[i] != service->name.ns) continue;
    for (const std::string& own : service->hosts) {
      std::string host = common_host(server.hosts[i], own);
      if (host.empty()) continue;
      auto& services = routes_of(server.routes, host).services;
      if (std::find(services.begin(), services.end(), service) == services.end())
        services.push_back(service);
      bound = true;
    }
  }
  return bound;
}

void bind_to_gateways(const VirtualServicePtr& service, const std::set<std::string>& known,
                      Snapshot& snapshot, Report& report) {
  for (const std::string& gateway : service->gateways) {
    if (gateway == "mesh") continue;
    bool here = false;
    bool bound = false;
    for (GatewayServer& server : snapshot.gateway_servers) {
      if (server.gateway.to_string() != gateway) continue;
      here = true;
      bound = bind_to_server(service, server) || bound;
    }
    if (!known.contains(gateway))
      report.warn("spec.gateways", "no Gateway is named " + gateway + " yet");
    else if (here && !bound)
      report.warn("spec.gateways", "none of the hosts is served by Gateway " + gateway);
  }
}

// ---- TCP

// Of a VirtualService's rules those that mesh clients may match.
std::vector<TcpRule> mesh_rules(const VirtualService& service) {
  std::vector<TcpRule> rules;
  for (TcpRule rule : service.tcp) {
    const bool every = rule.matches.empty();
    std::erase_if(rule.matches, [](const TcpMatch& match) {
      const auto& gateways = match.gateways;
      return !gateways.empty() &&
             std::find(gateways.begin(), gateways.end(), "mesh") == gateways.end();
    });
    if (every || !rule.matches.empty()) rules.push_back(std::move(rule));
  }
  return rules;
}

// The service's port that a parentRef means: 0 for all; none where there is no such port.
std::optional<std::uint16_t> parent_port(const TcpRoutePart::Parent& parent, const Service& service,
                                         Report& report) {
  if (parent.section.empty() && parent.port == 0) return std::uint16_t{0};
  for (const ServicePort& port : service.ports) {
    if (!parent.section.empty() && port.name != parent.section) continue;
    if (parent.port != 0 && port.port != parent.port) continue;
    if (port.protocol == Protocol::kTcp) return port.port;
  }
  report.warn(parent.path, service.host + " has no such TCP port; the route has no effect on it");
  return {};
}

void add_tcp_route(const TcpRoutePart& part, const TcpRoutePart::Parent& parent, Snapshot& snapshot,
                   Report& report) {
  auto service = snapshot.services.find(service_host(parent.service));
  if (service == snapshot.services.end())
    return report.warn(parent.path, "no Service is named " + service_host(parent.service) + " yet");
  if (service->second->headless)
    report.warn(parent.path, service->first +
                                 " is headless: its clients connect to endpoints, where the route "
                                 "has no effect");
  auto port = parent_port(parent, *service->second, report);
  if (!port) return;
  const bool is_consumer = parent.service.ns != part.name.ns;
  TcpRoute route{"TCPRoute " + part.name.to_string(), *port, is_consumer ? part.name.ns : "",
                 part.rules};
  std::vector<TcpRoute>& routes = snapshot.tcp_routes[service->first];
  for (const TcpRoute& older : routes)
    if (older.client_namespace == route.client_namespace &&
        (older.port == 0 || older.port == route.port))
      return report.warn(parent.path, service->first + " is already routed by " + older.name +
                                          ", which is older; this one is not used for it");
  // Consumers' routes come first.
  auto at = is_consumer ? std::find_if(routes.begin(), routes.end(),
                                       [](const auto& r) { return r.client_namespace.empty(); })
                        : routes.end();
  routes.insert(at, std::move(route));
}

void warn_of_backends(const TcpRoutePart& part, const Snapshot& snapshot, Report& report) {
  const std::string path = path_of_item("spec.rules", 0) + ".backendRefs";
  const auto& backends = part.rules.front().destinations;
  for (std::size_t i = 0; i < backends.size(); ++i)
    warn_of_destination(backends[i], path_of_item(path, i), part.name.ns, kShareRefused, snapshot,
                        report);
}

}  // namespace

void add_routes(Parts& parts, const CompileOptions& options, const Snapshot* previous,
                Snapshot& snapshot) {
  std::set<std::string> gateways;
  for (auto& [report, gateway] : parts.gateways) {
    gateways.insert(gateway.name.to_string());
    if (!has_labels(options.gateway_labels, gateway.selector))
      report->warn("spec.selector", "selects no gateway of this node");
    else
      std::move(gateway.servers.begin(), gateway.servers.end(),
                std::back_inserter(snapshot.gateway_servers));
  }
  std::map<ObjectName, VirtualServicePtr> before;
  if (previous)
    for (const VirtualServicePtr& service : previous->virtual_services)
      before.emplace(service->name, service);
  for (auto& [report, value] : parts.virtual_services) {
    qualify(value, snapshot, *report);
    warn_of_references(value.http, "spec.http", value.name.ns, kAnswered503, snapshot, *report);
    warn_of_references(value.tcp, "spec.tcp", value.name.ns, kShareRefused, snapshot, *report);
    auto old = before.find(value.name);
    VirtualServicePtr service =
        shared(std::move(value), old == before.end() ? nullptr : old->second);
    snapshot.virtual_services.push_back(service);
    if (is_bound(*service, "mesh")) add_mesh_hosts(service, snapshot, *report);
    bind_to_gateways(service, gateways, snapshot, *report);
  }
  sort_wildcards(snapshot.mesh_hosts);
  for (GatewayServer& server : snapshot.gateway_servers) sort_wildcards(server.routes);
}

void add_tcp_routes(Parts& parts, Snapshot& snapshot) {
  for (auto& [report, part] : parts.tcp_routes) {
    warn_of_backends(part, snapshot, *report);
    for (const TcpRoutePart::Parent& parent : part.parents)
      add_tcp_route(part, parent, snapshot, *report);
  }
  for (const auto& [host, service] : snapshot.services)
    if (const HostRoutes* routes = snapshot.find_mesh_routes(host))
      for (const VirtualServicePtr& owner : routes->services)
        if (auto rules = mesh_rules(*owner); !rules.empty())
          snapshot.tcp_routes[host].push_back(
              {"VirtualService " + owner->name.to_string(), 0, "", std::move(rules)});
}

}  // namespace mesh::config
