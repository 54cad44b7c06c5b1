#include "routing/route_table.h"

#include <array>
#include <cstring>
#include <span>

#include "routing/match.h"

namespace mesh::routing {
namespace {

using config::Snapshot;
using config::VirtualService;

constexpr std::string_view kSuffix = ".svc.cluster.local";
constexpr std::uint32_t kMillion = 1'000'000;

const config::Service* find_service(const Snapshot& snapshot, std::string_view host) {
  const auto found = snapshot.services.find(host);
  return found != snapshot.services.end() ? found->second.get() : nullptr;
}

// Goes through rules in order and keeps what decides: the first match, but a catch-all only when
// no VirtualService offered later has anything better (Istio: SortVHostRoutes), and nothing behind
// a catch-all in its own VirtualService.
class RuleScan {
 public:
  RuleScan(const Client& client, const config::ObjectName* gateway, const RequestView& request)
      : client_(client), gateway_(gateway), request_(request) {}

  // True: decided, nothing that follows matters.
  bool offer(const VirtualService& service) {
    for (const config::HttpRoute& route : service.http) {
      if (route.matches.empty()) return keep_catch_all(service, route, nullptr);
      for (const config::HttpMatch& match : route.matches) {
        if (!applies_to(match, client_, gateway_)) continue;
        any_rule_ = true;
        if (is_catch_all(match)) return keep_catch_all(service, route, &match);
        if (!accepts(match, request_)) continue;
        service_ = &service;
        route_ = &route;
        match_ = &match;
        return true;
      }
    }
    return false;
  }

  // Some rule exists for this client, whether or not it matched.
  bool any_rule() const { return any_rule_; }
  const VirtualService* service() const { return service_; }
  const config::HttpRoute* route() const { return route_; }
  const config::HttpMatch* match() const { return match_; }

 private:
  bool keep_catch_all(const VirtualService& service, const config::HttpRoute& route,
                      const config::HttpMatch* match) {
    any_rule_ = true;
    if (route_ == nullptr) {
      service_ = &service;
      route_ = &route;
      match_ = match;
    }
    return false;
  }

  const Client& client_;
  const config::ObjectName* gateway_;
  const RequestView& request_;
  bool any_rule_ = false;
  const VirtualService* service_ = nullptr;
  const config::HttpRoute* route_ = nullptr;
  const config::HttpMatch* match_ = nullptr;
};

// Without a port: the destination's only one, else the one that the client asked for. The latter is
// tried first, since it is the same for most: one lookup.
config::ClusterPtr resolve(const Snapshot& snapshot, const Client& client,
                           const config::WeightedDestination& destination) {
  const auto find = [&](std::uint16_t port) {
    return snapshot.find_cluster(client.workload->name.ns, destination.host, port,
                                 destination.subset);
  };
  if (destination.port != 0) return find(destination.port);
  if (auto cluster = find(client.port)) return cluster;
  const config::Service* service = find_service(snapshot, destination.host);
  return service != nullptr && service->ports.size() == 1 ? find(service->ports[0].port) : nullptr;
}

const config::WeightedDestination* pick_destination(const config::HttpRoute& route,
                                                    Random& random) {
  if (route.destinations.empty()) return nullptr;
  if (route.destinations.size() == 1) return &route.destinations.front();
  std::uint32_t left = random.below(route.total_weight);
  for (const auto& destination : route.destinations) {
    if (left < destination.weight) return &destination;
    left -= destination.weight;
  }
  return nullptr;  // total_weight is not the sum: not made by compile()
}

bool rolled(std::uint32_t ppm, Random& random) { return ppm != 0 && random.below(kMillion) < ppm; }

std::string_view find_authority(const config::HeaderOperations& operations) {
  for (const auto* list : {&operations.set, &operations.add})
    for (const auto& [name, value] : *list)
      if ((name == "host" || name == ":authority") && !value.empty()) return value;
  return {};
}

Decision follow(const Snapshot& snapshot, const Client& client, const RuleScan& scan,
                Random& random) {
  Decision decision;
  const config::HttpRoute& route = *scan.route();
  decision.virtual_service = scan.service();
  decision.route = &route;
  decision.match = scan.match();
  decision.route_name = route.name;
  if (scan.match() != nullptr) decision.match_name = scan.match()->name;
  decision.timeout = route.timeout.value_or(config::Milliseconds{0});
  decision.destination = pick_destination(route, random);
  if (rolled(route.fault.delay_ppm, random)) decision.delay = route.fault.delay;
  if (rolled(route.fault.abort_ppm, random)) decision.abort_status = route.fault.abort_status;

  decision.kind = Decision::Kind::kClusterNotFound;
  if (decision.destination == nullptr) return decision;
  decision.host_rewrite = find_authority(route.request_headers);
  if (decision.host_rewrite.empty())
    decision.host_rewrite = find_authority(decision.destination->request_headers);
  decision.cluster = resolve(snapshot, client, *decision.destination);
  if (decision.cluster) decision.kind = Decision::Kind::kRoute;
  return decision;
}

Decision no_route() {
  Decision decision;
  decision.kind = Decision::Kind::kNoRoute;
  return decision;
}

// What a host means to a mesh client; both null: nothing.
struct Target {
  const config::HostRoutes* routes = nullptr;
  config::ClusterPtr cluster;  // of the service, without subset
};

// A service is known on the ports where it speaks HTTP; a host that is no service, by the rules
// that name it.
bool find_host(const Snapshot& snapshot, const Client& client, std::string_view host,
               Target& target) {
  target.cluster = snapshot.find_cluster(client.workload->name.ns, host, client.port, "");
  if (target.cluster) {
    const config::ServicePort* port = target.cluster->service->find_port(client.port);
    if (port == nullptr || port->protocol != config::Protocol::kHttp) return false;
    target.routes = snapshot.find_mesh_routes(host);
    return true;
  }
  target.routes = snapshot.find_mesh_routes(host);
  return target.routes != nullptr && find_service(snapshot, host) == nullptr;
}

// The full name of a short one in `buffer`: "reviews" and "reviews.default" and
// "reviews.default.svc" as a client of `ns` means them; empty: it has another form.
std::string_view expand(std::string_view host, std::string_view ns, std::span<char> buffer) {
  const auto dots = std::ranges::count(host, '.');
  std::array<std::string_view, 4> parts{host};
  if (dots == 0) {
    parts = {host, ".", ns, kSuffix};
  } else if (dots == 1) {
    parts = {host, kSuffix};
  } else if (dots == 2 && host.ends_with(".svc")) {
    parts = {host, kSuffix.substr(4)};
  } else {
    return {};
  }
  std::size_t size = 0;
  for (std::string_view part : parts) {
    if (part.size() > buffer.size() - size) return {};
    if (!part.empty()) std::memcpy(buffer.data() + size, part.data(), part.size());
    size += part.size();
  }
  return {buffer.data(), size};
}

bool find_by_address(const Snapshot& snapshot, const Client& client, std::string_view host,
                     Target& target) {
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  } else if (host.empty() || host.back() < '0' || host.back() > '9') {
    return false;  // not an IPv4 literal: spares the parser
  }
  const auto ip = IpAddress::parse(host);
  if (!ip) return false;
  const auto found = snapshot.service_by_address.find(ip.value());
  return found != snapshot.service_by_address.end() &&
         find_host(snapshot, client, found->second->host, target);
}

Target find_target(const Snapshot& snapshot, const Client& client, std::string_view host) {
  Target target;
  std::array<char, 512> buffer;
  const std::string_view full = expand(host, client.workload->name.ns, buffer);
  if (!full.empty() && find_host(snapshot, client, full, target)) return target;
  if (!host.empty() && find_host(snapshot, client, host, target)) return target;
  if (find_by_address(snapshot, client, host, target)) return target;
  if (client.service == nullptr) return {};
  return {snapshot.find_mesh_routes(client.service->host),
          snapshot.find_cluster(client.workload->name.ns, client.service->host, client.port, "")};
}

Decision service_default(config::ClusterPtr cluster) {
  Decision decision;
  decision.kind = Decision::Kind::kRoute;
  decision.route_name = "default";
  decision.cluster = std::move(cluster);
  return decision;
}

Decision decide_mesh(const Snapshot& snapshot, const Client& client, const RequestView& request,
                     Random& random) {
  Target target = find_target(snapshot, client, request.host);
  if (target.routes != nullptr) {
    RuleScan scan(client, nullptr, request);
    for (const auto& service : target.routes->services)
      if (scan.offer(*service)) break;
    if (scan.route() != nullptr) return follow(snapshot, client, scan, random);
    if (scan.any_rule()) return no_route();
    // No rule is for this client: as if there were none, as Istio compiles it.
  }
  if (target.cluster) return service_default(std::move(target.cluster));
  Decision decision;
  if (client.service != nullptr)
    decision.kind = Decision::Kind::kClusterNotFound;  // known, but not on this port
  else
    decision.route_name = "allow_any";
  return decision;
}

Decision decide_gateway(const Snapshot& snapshot, const Client& client, const RequestView& request,
                        Random& random) {
  const auto* server = snapshot.find_gateway_server(*client.listener, request.host);
  Decision decision = no_route();
  if (server != nullptr) {
    RuleScan scan(client, &server->gateway, request);
    if (const auto* routes = server->routes.find(request.host))
      for (const auto& service : routes->services)
        if (scan.offer(*service)) break;
    if (scan.route() != nullptr) decision = follow(snapshot, client, scan, random);
  }
  decision.server = server;
  return decision;
}

}  // namespace

Decision decide(const Snapshot& snapshot, const Client& client, const RequestView& request,
                Random& random) {
  return client.listener == nullptr ? decide_mesh(snapshot, client, request, random)
                                    : decide_gateway(snapshot, client, request, random);
}

std::vector<config::ClusterPtr> reachable_clusters(const Snapshot& snapshot,
                                                   const config::Workload& workload,
                                                   const config::Service& service,
                                                   std::uint16_t port) {
  const Client client{&workload, nullptr, port, &service};
  std::vector<config::ClusterPtr> clusters;
  auto reach = [&](const config::HttpRoute& route) {
    for (const auto& destination : route.destinations) {
      if (destination.weight == 0 && route.destinations.size() > 1) continue;
      auto cluster = resolve(snapshot, client, destination);
      if (cluster && std::ranges::find(clusters, cluster) == clusters.end())
        clusters.push_back(std::move(cluster));
    }
  };
  bool any_rule = false;
  // False: what follows in this VirtualService is never reached.
  auto reach_rule = [&](const config::HttpRoute& route) {
    if (route.matches.empty()) {
      any_rule = true;
      reach(route);
      return false;
    }
    for (const auto& match : route.matches) {
      if (!applies_to(match, client, nullptr)) continue;
      any_rule = true;
      reach(route);
      if (is_catch_all(match)) return false;
    }
    return true;
  };
  if (const auto* routes = snapshot.find_mesh_routes(service.host))
    for (const auto& virtual_service : routes->services)
      for (const auto& route : virtual_service->http)
        if (!reach_rule(route)) break;
  if (any_rule) return clusters;
  if (auto cluster = snapshot.find_cluster(workload.name.ns, service.host, port, ""))
    clusters.push_back(std::move(cluster));
  return clusters;
}

void append_route_name(const Decision& decision, std::string& out) {
  out += decision.route_name;
  if (!decision.match_name.empty()) out.append(".").append(decision.match_name);
}

}  // namespace mesh::routing
