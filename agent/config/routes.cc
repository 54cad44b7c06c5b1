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

bool has_http_port(const Service& service) {
  return std::any_of(service.ports.begin(), service.ports.end(),
                     [](const auto& port) { return port.protocol == Protocol::kHttp; });
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
}

// A reference to what does not exist (yet) is a warning: the order of creation is free.
void warn_of_destination(const WeightedDestination& destination, const std::string& path,
                         const VirtualService& service, const Snapshot& snapshot, Report& report) {
  auto found = snapshot.services.find(destination.host);
  if (found == snapshot.services.end())
    return report.warn(path + ".host", "no Service is named " + destination.host +
                                           " yet; requests for it are answered 503");
  const Service& target = *found->second;
  if (destination.port != 0 && !target.find_port(destination.port))
    return report.warn(path + ".port", target.host + " has no port " +
                                           std::to_string(destination.port) +
                                           " yet; requests for it are answered 503");
  if (destination.subset.empty() || target.ports.empty()) return;
  std::uint16_t port = destination.port != 0 ? destination.port : target.ports.front().port;
  if (!snapshot.find_cluster(service.name.ns, target.host, port, destination.subset))
    report.warn(path + ".subset", "no DestinationRule has the subset '" + destination.subset +
                                      "' of " + target.host +
                                      " yet; requests for it are answered 503");
}

void warn_of_references(const VirtualService& service, const Snapshot& snapshot, Report& report) {
  for (std::size_t i = 0; i < service.http.size(); ++i) {
    std::string routes = path_of_item("spec.http", i) + ".route";
    const auto& destinations = service.http[i].destinations;
    for (std::size_t j = 0; j < destinations.size(); ++j)
      warn_of_destination(destinations[j], path_of_item(routes, j) + ".destination", service,
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
    if (known != snapshot.services.end() && !has_http_port(*known->second))
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
    warn_of_references(value, snapshot, *report);
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

}  // namespace mesh::config
