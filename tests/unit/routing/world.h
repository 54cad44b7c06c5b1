// Snapshots made by hand: services, clusters and rules in a few words.
#pragma once

#include <re2/re2.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/snapshot.h"
#include "routing/route_table.h"

namespace mesh::routing {

inline std::string full_name(std::string_view service) {  // "reviews" or "reviews.other"
  std::string host(service);
  if (host.find('.') == std::string::npos) host += ".default";
  return host + ".svc.cluster.local";
}

inline config::StringMatch exact(std::string value) {
  return {.kind = config::StringMatch::Kind::kExact, .value = std::move(value)};
}
inline config::StringMatch prefix(std::string value) {
  return {.kind = config::StringMatch::Kind::kPrefix, .value = std::move(value)};
}
inline config::StringMatch regex(const std::string& value) {
  return {.kind = config::StringMatch::Kind::kRegex,
          .value = value,
          .regex = std::make_shared<const re2::RE2>(value)};
}
inline config::StringMatch present() { return {}; }

inline config::WeightedDestination to(std::string_view service, std::string subset = "",
                                      std::uint32_t weight = 0, std::uint16_t port = 0) {
  return {.host = full_name(service), .subset = std::move(subset), .port = port, .weight = weight};
}

inline config::HttpRoute rule(std::string name, std::vector<config::HttpMatch> matches,
                              std::vector<config::WeightedDestination> destinations) {
  config::HttpRoute route{.name = std::move(name),
                          .matches = std::move(matches),
                          .destinations = std::move(destinations)};
  if (route.destinations.size() == 1) {
    route.total_weight = 1;
  } else {
    for (const auto& destination : route.destinations) route.total_weight += destination.weight;
  }
  return route;
}

class World {
 public:
  World() { add_service("reviews", {"v1", "v2", "v3"}); }

  void add_service(std::string_view name, std::vector<std::string> subsets = {},
                   std::vector<std::uint16_t> ports = {9080}) {
    auto service = std::make_shared<config::Service>();
    service->host = full_name(name);
    service->name.name = std::string(name.substr(0, name.find('.')));
    service->name.ns = service->host.substr(service->name.name.size() + 1);
    service->name.ns.resize(service->name.ns.find('.'));
    service->addresses = {
        IpAddress::v4(10, 78, 0, static_cast<std::uint8_t>(snapshot.services.size() + 1))};
    for (std::uint16_t port : ports)
      service->ports.push_back({.name = "http",
                                .port = port,
                                .protocol = config::Protocol::kHttp,
                                .target = std::to_string(port)});
    snapshot.services[service->host] = service;
    for (const auto& address : service->addresses)
      snapshot.service_by_address.insert_or_assign(address, service);
    subsets.emplace_back();
    for (std::uint16_t port : ports)
      for (const auto& subset : subsets) {
        auto [key, made] = cluster(service, port, subset);
        snapshot.clusters.emplace(std::move(key), std::move(made));
      }
  }

  // A DestinationRule of a client's namespace makes a cluster of its own.
  void add_client_cluster(const std::string& ns, std::string_view service) {
    auto [name, made] = cluster(snapshot.services.find(full_name(service))->second, 9080, "");
    snapshot.client_clusters.insert_or_assign(ns + "/" + name, made);
  }

  config::VirtualService& add_rules(const std::string& host, std::vector<config::HttpRoute> http) {
    auto service = std::make_shared<config::VirtualService>();
    service->name = {"default", host};
    service->hosts = {host};
    service->gateways = {"mesh"};
    service->http = std::move(http);
    snapshot.virtual_services.push_back(service);
    if (host.starts_with('*'))
      snapshot.mesh_hosts.wildcards.push_back({host, {{service}}});
    else
      snapshot.mesh_hosts.exact[host] = {{service}};
    return *service;
  }

  const config::Service* service(std::string_view name) const {
    return snapshot.services.find(full_name(name))->second.get();
  }

  Client client(std::string_view destination = "reviews") {
    return {&workload, nullptr, 9080, service(destination)};
  }

  Decision decide(const RequestView& request) { return decide(client(), request); }
  Decision decide(const Client& who, const RequestView& request) {
    return routing::decide(snapshot, who, request, random);
  }
  // The cluster that a request to reviews goes to: "v1" its subset, "-" another kind of decision.
  std::string subset(const RequestView& request) { return subset(client(), request); }
  std::string subset(const Client& who, const RequestView& request) {
    const Decision decision = decide(who, request);
    return decision.kind == Decision::Kind::kRoute ? decision.cluster->subset : "-";
  }

  config::Snapshot snapshot;
  config::Workload workload{.name = {"default", "productpage"},
                            .labels = {{"app", "productpage"}, {"version", "v1"}}};
  Random random{7};

 private:
  static std::pair<std::string, config::ClusterPtr> cluster(const config::ServicePtr& service,
                                                            std::uint16_t port,
                                                            const std::string& subset) {
    auto made = std::make_shared<config::Cluster>();
    made->name = config::cluster_name(service->host, port, subset);
    made->service = service;
    made->port = port;
    made->subset = subset;
    return {made->name, made};
  }
};

struct TestField {
  std::string_view name, value;
};

inline RequestView request(std::string_view path = "/", std::string_view host = "reviews") {
  return {.method = "GET", .path = path, .query = {}, .host = host, .authority = host};
}

}  // namespace mesh::routing
