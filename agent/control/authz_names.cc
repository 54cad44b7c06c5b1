#include "control/authz_names.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>
#include <utility>

#include "routing/route_table.h"

namespace mesh::control {
namespace {

using config::ObjectName;
using config::Service;
using config::ServicePort;
using config::Transport;
using config::Workload;

struct Words {
  enum class Kind : std::uint8_t { kAny, kService, kWorkload };
  Kind kind = Kind::kAny;
  std::string ns;  // empty: not said
  std::string name;
};

Words words_of(std::string text) {
  Words words;
  for (const auto& [prefix, kind] : {std::pair{std::string_view("service/"), Words::Kind::kService},
                                     {"svc/", Words::Kind::kService},
                                     {"workload/", Words::Kind::kWorkload}})
    if (text.starts_with(prefix)) {
      words.kind = kind;
      text.erase(0, prefix.size());
      break;
    }
  const std::size_t slash = text.find('/');
  if (slash != std::string::npos) words.ns = text.substr(0, slash);
  words.name = slash == std::string::npos ? std::move(text) : text.substr(slash + 1);
  return words;
}

struct NameAndPort {
  std::string name;
  std::optional<std::uint16_t> port;
};

Result<NameAndPort> split_port(const std::string& text) {
  if (auto whole = IpAddress::parse(text)) return NameAndPort{text, {}};
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) return NameAndPort{text, {}};
  NameAndPort out{text.substr(0, colon), 0};
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data() + colon + 1, end, *out.port);
  if (error != std::errc{} || at != end || *out.port == 0)
    return Error{Errc::invalid_argument,
                 "'" + text + "': the port must be a number from 1 to 65535"};
  if (out.name.starts_with('[') && out.name.ends_with(']'))
    out.name = out.name.substr(1, out.name.size() - 2);
  return out;
}

Party party_of(const Known& known, const Workload& workload) {
  Party party;
  party.workload = &workload;
  party.addresses = workload.addresses;
  party.text = workload.name.to_string();
  for (const Client& client : known.clients)
    if (client.workload->name == workload.name && known.kernel.workloads.contains(client.kernel.id))
      party.enrolled = client.kernel.id;
  party.shares_addresses = !known.snapshot.workloads.contains(workload.name);
  return party;
}

Party party_at(const Known& known, const IpAddress& address) {
  const auto found = known.snapshot.workload_by_address.find(address);
  Party party;
  if (found != known.snapshot.workload_by_address.end())
    party = party_of(known, *found->second);
  else
    party.text = address.to_string();
  party.addresses = {address};
  return party;
}

const Workload* find_workload(const Known& known, const ObjectName& name) {
  if (const auto found = known.snapshot.workloads.find(name);
      found != known.snapshot.workloads.end())
    return found->second.get();
  for (const Client& client : known.clients)
    if (client.workload->name == name) return client.workload.get();
  return nullptr;
}

const Service* find_service(const Known& known, const Words& words, const std::string& ns) {
  const auto by_host = [&](const std::string& host) -> const Service* {
    const auto found = known.snapshot.services.find(host);
    return found == known.snapshot.services.end() ? nullptr : found->second.get();
  };
  if (words.ns.empty()) return by_host(config::qualified_host(known.snapshot, words.name, ns));
  for (const auto& [host, service] : known.snapshot.services)
    if (service->name == ObjectName{words.ns, words.name}) return service.get();
  return nullptr;
}

// The endpoints that the kernel chooses among for this client; nullopt: it does not know the
// service, or leaves it to the proxy.
std::optional<std::set<SocketAddress>> kernel_endpoints(const Known& known, const Party& client,
                                                        const SocketAddress& at,
                                                        Transport transport) {
  const auto& services =
      transport == Transport::kUdp ? known.kernel.udp_services : known.kernel.services;
  const auto entry = services.find(at);
  if (client.enrolled == 0 || entry == services.end() ||
      entry->second.kind == datapath::ServiceEntry::Kind::kProxy)
    return std::nullopt;
  const datapath::Columns* columns = &entry->second.columns;
  if (entry->second.of_clients) {
    const auto own = entry->second.of_clients->find(client.enrolled);
    if (own == entry->second.of_clients->end()) return std::nullopt;
    columns = &own->second;
  }
  std::set<SocketAddress> endpoints;
  for (const datapath::Column& column : *columns)
    for (const auto& endpoint : {column.first, column.second})
      if (endpoint) endpoints.insert(*endpoint);
  return endpoints;
}

void add_of(const config::ClusterPtr& cluster, std::set<SocketAddress>& endpoints) {
  if (!cluster) return;
  for (const config::Endpoint& endpoint : cluster->endpoints) endpoints.insert(endpoint.address);
}

std::set<SocketAddress> endpoints_of(const Known& known, const Party& client,
                                     const Service& service, const ServicePort& port) {
  std::set<SocketAddress> endpoints;
  if (port.protocol == config::Protocol::kHttp && client.workload) {
    for (const auto& cluster :
         routing::reachable_clusters(known.snapshot, *client.workload, service, port.port))
      add_of(cluster, endpoints);
    return endpoints;
  }
  bool is_known = false;
  for (const IpAddress& ip : service.addresses)
    if (auto chosen = kernel_endpoints(known, client, {ip, port.port}, port.transport())) {
      is_known = true;
      endpoints.merge(*chosen);
    }
  if (!is_known)
    add_of(known.snapshot.find_cluster(client.workload ? client.workload->name.ns : service.name.ns,
                                       service.host, port.port, "", port.transport()),
           endpoints);
  return endpoints;
}

Result<Destinations> service_destinations(const Known& known, const Party& client,
                                          const Service& service,
                                          std::optional<std::uint16_t> wanted,
                                          Transport transport) {
  Destinations out;
  out.text = "service " + service.host + (wanted ? ":" + std::to_string(*wanted) : "");
  bool has_port = false;
  for (const ServicePort& port : service.ports) {
    if (port.transport() != transport || (wanted && *wanted != port.port)) continue;
    has_port = true;
    const bool is_http = port.protocol == config::Protocol::kHttp;
    out.is_http = out.is_http || is_http;
    for (const SocketAddress& endpoint : endpoints_of(known, client, service, port)) {
      const bool is_there = std::ranges::any_of(out.all, [&](const Destination& d) {
        return d.address == endpoint.ip && d.port == endpoint.port;
      });
      if (is_there) continue;
      out.all.push_back({party_at(known, endpoint.ip), endpoint.ip, endpoint.port,
                         is_http && !service.addresses.empty() && client.enrolled != 0});
    }
  }
  if (has_port) return out;
  return Error{Errc::not_found, "service " + service.host + " has no " +
                                    (transport == Transport::kUdp ? "UDP" : "TCP") + " port" +
                                    (wanted ? " " + std::to_string(*wanted) : "")};
}

Destinations workload_destinations(const Known& known, const Workload& workload,
                                   std::optional<std::uint16_t> port) {
  Destinations out;
  const Party party = party_of(known, workload);
  out.text = "workload " + party.text + (port ? ":" + std::to_string(*port) : "");
  for (const IpAddress& address : workload.addresses)
    out.all.push_back({party, address, port, false});
  return out;
}

}  // namespace

Result<Party> find_client(const Known& known, const std::string& text, const std::string& ns) {
  if (const auto address = IpAddress::parse(text)) return party_at(known, address.value());
  const Words words = words_of(text);
  if (words.kind == Words::Kind::kService)
    return Error{Errc::invalid_argument, "'" + text + "': only a workload or an address connects"};
  const ObjectName name{words.ns.empty() ? ns : words.ns, words.name};
  if (const Workload* found = find_workload(known, name)) return party_of(known, *found);
  return Error{Errc::not_found, "no workload " + name.to_string() +
                                    "; `meshctl get workloadentry -A` lists those there are"};
}

Result<Destinations> find_destinations(const Known& known, const Party& client,
                                       const std::string& text, const std::string& ns,
                                       Transport transport) {
  MESH_TRY(const auto wanted, split_port(text));
  const std::string own_ns = client.workload ? client.workload->name.ns : ns;
  if (const auto parsed = IpAddress::parse(wanted.name)) {
    const IpAddress& address = parsed.value();
    if (const auto service = known.snapshot.service_by_address.find(address);
        service != known.snapshot.service_by_address.end())
      return service_destinations(known, client, *service->second, wanted.port, transport);
    const Party party = party_at(known, address);
    return Destinations{
        (party.workload ? "workload " + party.text + " " : "") +
            (wanted.port ? SocketAddress{address, *wanted.port}.to_string() : address.to_string()),
        {{party, address, wanted.port, false}},
        false,
        party.workload != nullptr};
  }
  const Words words = words_of(wanted.name);
  if (words.kind != Words::Kind::kWorkload)
    if (const Service* service = find_service(known, words, own_ns))
      return service_destinations(known, client, *service, wanted.port, transport);
  const ObjectName name{words.ns.empty() ? own_ns : words.ns, words.name};
  if (words.kind != Words::Kind::kService)
    if (const Workload* workload = find_workload(known, name))
      return workload_destinations(known, *workload, wanted.port);
  const char* what = words.kind == Words::Kind::kService    ? "service "
                     : words.kind == Words::Kind::kWorkload ? "workload "
                                                            : "service or workload ";
  return Error{Errc::not_found, "no " + (what + name.to_string()) +
                                    "; `meshctl get service -A` and `meshctl get workloadentry -A` "
                                    "list those there are"};
}

}  // namespace mesh::control
