#include "dns/resolve.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>
#include <vector>

namespace mesh::dns {
namespace {

using config::Endpoint;
using config::ServicePort;
using config::Snapshot;
using config::Transport;

constexpr std::string_view kZone = "cluster.local";
constexpr std::string_view kServiceZone = ".svc.cluster.local";
constexpr int kMostAliases = 8;  // of ExternalName services that name each other

bool is_below(std::string_view name, std::string_view zone) {
  return name == zone || (name.size() > zone.size() && name.ends_with(zone) &&
                          name[name.size() - zone.size() - 1] == '.');
}

// Without its first `count` labels; empty: it has no more than that.
std::string_view without_labels(std::string_view name, int count) {
  for (; count > 0 && !name.empty(); --count)
    name.remove_prefix(std::min(name.size(), std::min(name.find('.'), name.size()) + 1));
  return name;
}

// What a name says of a Service or a ServiceEntry: its host, and the labels in front of that.
struct Place {
  std::string host;         // "reviews.default.svc.cluster.local", "api.example.com"
  std::string_view prefix;  // "web-0", "_http._tcp"; empty: the Service itself
};

class Resolver {
 public:
  Resolver(const Snapshot& snapshot, std::string_view ns, std::uint32_t turn)
      : snapshot_(snapshot), ns_(ns), turn_(turn) {}

  Resolution resolve(std::string_view name, std::uint16_t asked) const;

 private:
  bool has(const std::string& host) const {
    return snapshot_.services.contains(host) || snapshot_.external_names.contains(host);
  }
  const config::Service* find_entry(std::string_view host) const {
    const auto found = snapshot_.services.find(host);
    return found != snapshot_.services.end() && found->second->is_entry ? found->second.get()
                                                                        : nullptr;
  }
  std::optional<Place> find_place(std::string_view name) const;
  bool is_searched(std::string_view name) const;
  void fill(const Place& place, std::uint16_t asked, Resolution& result) const;
  void follow(const std::string& target, std::uint16_t asked, Resolution& result) const;
  bool fill_addresses(const config::Service& service, std::string_view endpoint,
                      std::uint16_t asked, const std::string& owner, Resolution& result) const;
  bool fill_services(const config::Service& service, std::string_view prefix,
                     Resolution& result) const;
  std::vector<const Endpoint*> endpoints(const config::Service& service,
                                         const ServicePort& port) const;

  const Snapshot& snapshot_;
  const std::string_view ns_;
  const std::uint32_t turn_;
};

std::string dashed(const IpAddress& ip) {
  std::string text = ip.to_string();
  std::ranges::replace(text, '.', '-');
  std::ranges::replace(text, ':', '-');
  return text;
}

// The name of an endpoint below its headless Service.
std::string label_of(const Endpoint& endpoint) {
  return endpoint.workload ? endpoint.workload->name.name : dashed(endpoint.address.ip);
}

bool is_named(const Endpoint& endpoint, std::string_view label) {
  return label == dashed(endpoint.address.ip) ||
         (endpoint.workload && endpoint.workload->name.name == label);
}

void add_address(const IpAddress& ip, std::uint16_t asked, const std::string& owner,
                 std::vector<Record>& records) {
  if (asked == (ip.is_v4() ? type::kA : type::kAaaa)) records.push_back({owner, asked, kTtl, ip});
}

// The forms are tried with the fewest labels before the Service first: "a.b" is Service a of
// namespace b, and only then endpoint a of Service b.
std::optional<Place> Resolver::find_place(std::string_view name) const {
  if (find_entry(name) != nullptr) return Place{std::string(name), {}};
  std::string_view rest = name;
  std::string end;  // what the name leaves out
  if (rest.ends_with(kServiceZone)) {
    rest.remove_suffix(kServiceZone.size());
  } else if (rest.ends_with(".svc")) {
    rest.remove_suffix(4);
  } else if (is_below(rest, kZone)) {
    return std::nullopt;
  } else {
    end = "." + std::string(ns_);
  }
  for (const std::string& added : {std::string(), end}) {
    for (int labels = 0; labels <= 2; ++labels) {
      const std::string_view service = without_labels(rest, labels);
      const std::string host = std::string(service) + added + std::string(kServiceZone);
      if (service.empty() || !has(host)) continue;
      return Place{host, rest.substr(0, rest.size() - service.size())};
    }
    if (end.empty()) break;
  }
  return std::nullopt;
}

// A name of the mesh that a resolver library has put a search suffix of a pod behind.
bool Resolver::is_searched(std::string_view name) const {
  const std::string own = std::string(ns_) + std::string(kServiceZone);
  for (const std::string_view suffix : {std::string_view(own), kServiceZone.substr(1), kZone}) {
    if (!is_below(name, suffix) || name.size() == suffix.size()) continue;
    const std::string_view first = name.substr(0, name.size() - suffix.size() - 1);
    if (first.find('.') != std::string_view::npos && find_place(first)) return true;
  }
  return false;
}

std::vector<const Endpoint*> Resolver::endpoints(const config::Service& service,
                                                 const ServicePort& port) const {
  const auto cluster = snapshot_.find_cluster(ns_, service.host, port.port, "", port.transport());
  std::vector<const Endpoint*> found;
  if (cluster)
    for (const Endpoint& endpoint : cluster->endpoints) found.push_back(&endpoint);
  if (!found.empty())
    std::ranges::rotate(found, found.begin() + static_cast<std::ptrdiff_t>(turn_ % found.size()));
  return found;
}

// False: there is no such endpoint.
bool Resolver::fill_addresses(const config::Service& service, std::string_view endpoint,
                              std::uint16_t asked, const std::string& owner,
                              Resolution& result) const {
  if (!service.headless) {
    for (const IpAddress& ip : service.addresses)
      add_address(ip, asked, owner, result.answer.records);
    return endpoint.empty();
  }
  std::vector<IpAddress> seen;
  for (const ServicePort& port : service.ports)
    for (const Endpoint* one : endpoints(service, port)) {
      const IpAddress& ip = one->address.ip;
      if (std::ranges::find(seen, ip) != seen.end()) continue;
      if (!endpoint.empty() && !is_named(*one, endpoint)) continue;
      seen.push_back(ip);
      add_address(ip, asked, owner, result.answer.records);
    }
  return endpoint.empty() || !seen.empty();
}

// `prefix`: "_http._tcp", or empty for all ports. False: there is no such port.
bool Resolver::fill_services(const config::Service& service, std::string_view prefix,
                             Resolution& result) const {
  bool found = prefix.empty();
  for (const ServicePort& port : service.ports) {
    const std::string_view transport = port.transport() == Transport::kUdp ? "_udp" : "_tcp";
    if (!prefix.empty() && prefix != "_" + port.name + "." + std::string(transport)) continue;
    if (port.name.empty()) continue;
    found = true;
    const auto add = [&](std::uint16_t number, std::string target) {
      result.answer.records.push_back(
          {"", type::kSrv, kTtl, Service{0, 100, number, std::move(target)}});
    };
    if (!service.headless) {
      add(port.port, service.host);
      continue;
    }
    for (const Endpoint* endpoint : endpoints(service, port))
      add(endpoint->address.port, label_of(*endpoint) + "." + service.host);
  }
  return found;
}

void Resolver::follow(const std::string& target, std::uint16_t asked, Resolution& result) const {
  std::string name = target;
  for (int aliases = 0; aliases < kMostAliases; ++aliases) {
    const std::string owner = aliases == 0 ? std::string() : result.target;
    result.answer.records.push_back({owner, type::kCname, kTtl, name});
    result.target = name;
    if (asked == type::kCname) return;
    const auto place = find_place(name);
    if (!place || (!is_below(name, kZone) && find_entry(name) == nullptr)) {
      if (asked == type::kA || asked == type::kAaaa) result.kind = Resolution::Kind::kElsewhere;
      return;
    }
    const auto external = snapshot_.external_names.find(place->host);
    if (external == snapshot_.external_names.end()) {
      fill_addresses(*snapshot_.services.find(place->host)->second, place->prefix, asked, name,
                     result);
      return;
    }
    name = external->second;
  }
}

void Resolver::fill(const Place& place, std::uint16_t asked, Resolution& result) const {
  const std::string_view prefix =
      place.prefix.empty() ? place.prefix : place.prefix.substr(0, place.prefix.size() - 1);
  result.kind = Resolution::Kind::kAnswer;
  bool exists = false;
  if (const auto external = snapshot_.external_names.find(place.host);
      external != snapshot_.external_names.end()) {
    const std::string_view host = place.host;
    const std::string_view name = host.substr(0, host.find('.'));
    const std::string_view rest = without_labels(host, 1);
    result.object =
        "Service " + std::string(rest.substr(0, rest.find('.'))) + "/" + std::string(name);
    exists = prefix.empty();
    if (exists) follow(external->second, asked, result);
  } else {
    const config::Service& service = *snapshot_.services.find(place.host)->second;
    result.object = service.object();
    const bool is_port = prefix.starts_with('_');
    if (is_port || (asked == type::kSrv && prefix.empty())) {
      exists = fill_services(service, prefix, result);
      if (asked != type::kSrv) result.answer.records.clear();
    } else {
      exists = fill_addresses(service, prefix, asked, "", result);
    }
  }
  if (!exists) {
    result.kind = Resolution::Kind::kNoSuchName;
    result.answer = no_such_name(kZone, 0);
  }
}

Resolution Resolver::resolve(std::string_view name, std::uint16_t asked) const {
  Resolution result;
  if (const auto place = find_place(name)) {
    fill(*place, asked, result);
    // Only below its own zone can the mesh say that there is no such name.
    if (result.kind == Resolution::Kind::kNoSuchName && !is_below(name, kZone)) return {};
  } else if (is_searched(name)) {
    result.kind = Resolution::Kind::kNoSuchName;
    result.object = "search suffix";
    result.answer = no_such_name(kZone, 0);
  } else {
    return result;
  }
  result.answer.serial = static_cast<std::uint32_t>(snapshot_.version);
  if (result.answer.records.empty()) {
    result.answer.zone = find_entry(name) != nullptr ? name : kZone;
    result.answer.negative_ttl = kNegativeTtl;
  }
  return result;
}

}  // namespace

Resolution resolve(const Snapshot& snapshot, std::string_view ns, std::string_view name,
                   std::uint16_t type, std::uint32_t turn) {
  if (name.empty()) return {};
  return Resolver(snapshot, ns, turn).resolve(name, type);
}

Answer no_such_name(std::string_view name, std::uint32_t serial) {
  Answer answer;
  answer.rcode = Rcode::kNoSuchName;
  answer.serial = serial;
  if (!is_below(name, kZone)) return answer;
  answer.zone = kZone;
  answer.negative_ttl = kNegativeTtl;
  return answer;
}

}  // namespace mesh::dns
