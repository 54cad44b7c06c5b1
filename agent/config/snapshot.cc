#include "config/snapshot.h"

#include <re2/re2.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

namespace mesh::config {
namespace {

char lower_char(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](char x, char y) { return lower_char(x) == lower_char(y); });
}

// The text of a key, built without allocation where it is of the usual size.
class KeyText {
 public:
  KeyText& operator<<(std::string_view part) {
    if (part.empty()) return *this;  // it may point nowhere, which memcpy must not be given
    if (spilled_.empty() && size_ + part.size() <= small_.size()) {
      std::memcpy(small_.data() + size_, part.data(), part.size());
      size_ += part.size();
    } else {
      if (spilled_.empty()) spilled_.assign(small_.data(), size_);
      spilled_ += part;
    }
    return *this;
  }
  KeyText& cluster(std::string_view host, std::uint16_t port, std::string_view subset,
                   Transport transport) {
    std::array<char, 8> digits;
    char* end = std::to_chars(digits.data(), digits.data() + digits.size(), port).ptr;
    return *this << "outbound|" << std::string_view(digits.data(), end)
                 << (transport == Transport::kUdp ? "/udp|" : "|") << subset << "|" << host;
  }
  std::string_view view() const {
    return spilled_.empty() ? std::string_view(small_.data(), size_) : std::string_view(spilled_);
  }

 private:
  std::array<char, 512> small_;
  std::size_t size_ = 0;
  std::string spilled_;
};

ClusterPtr find_in(const Clusters& clusters, const KeyText& key) {
  auto found = clusters.find(key.view());
  return found == clusters.end() ? nullptr : found->second;
}

bool is_within(std::string_view host, std::string_view wildcard) {
  return wildcard == "*" ||
         (host.size() > wildcard.size() - 1 && host.ends_with(wildcard.substr(1)));
}

}  // namespace

bool has_labels(const Labels& labels, const Labels& wanted) {
  return std::all_of(wanted.begin(), wanted.end(), [&](const auto& want) {
    auto label = labels.find(want.first);
    return label != labels.end() && label->second == want.second;
  });
}

std::string Workload::principal() const {
  return "cluster.local/ns/" + name.ns + "/sa/" + service_account;
}

const ServicePort* Service::find_port(std::uint16_t port, Transport transport) const {
  auto found = std::find_if(ports.begin(), ports.end(), [&](const auto& p) {
    return p.port == port && p.transport() == transport;
  });
  return found == ports.end() ? nullptr : &*found;
}

bool StringMatch::matches(std::string_view text) const {
  switch (kind) {
    case Kind::kPresent:
      return true;
    case Kind::kExact:
      return ignore_case ? equal_ignoring_case(text, value) : text == value;
    case Kind::kPrefix:
      return ignore_case ? equal_ignoring_case(text.substr(0, value.size()), value)
                         : text.starts_with(value);
    case Kind::kSuffix:
      return text.ends_with(value);
    case Kind::kRegex:
      return regex && RE2::FullMatch(re2::StringPiece(text.data(), text.size()), *regex);
  }
  return false;
}

const HostRoutes* HostTable::find(std::string_view host) const {
  if (auto found = exact.find(host); found != exact.end()) return &found->second;
  for (const auto& [wildcard, routes] : wildcards)
    if (is_within(host, wildcard)) return &routes;
  return nullptr;
}

ClusterPtr Snapshot::find_cluster(std::string_view client_ns, std::string_view host,
                                  std::uint16_t port, std::string_view subset,
                                  Transport transport) const {
  if (!client_clusters.empty()) {
    // Where the client's namespace has a rule for the host, that rule alone counts: its subsets,
    // and no others. The cluster without subset is there whenever the rule is.
    KeyText whole;
    whole << client_ns << "/";
    if (auto own = find_in(client_clusters, whole.cluster(host, port, "", transport))) {
      if (subset.empty()) return own;
      KeyText part;
      part << client_ns << "/";
      return find_in(client_clusters, part.cluster(host, port, subset, transport));
    }
  }
  return find_in(clusters, KeyText().cluster(host, port, subset, transport));
}

const GatewayServer* Snapshot::find_gateway_server(const SocketAddress& bind,
                                                   std::string_view host) const {
  const GatewayServer* best = nullptr;
  std::size_t best_length = 0;  // an exact host outdoes every wildcard
  for (const GatewayServer& server : gateway_servers) {
    if (server.bind != bind) continue;
    for (const std::string& served : server.hosts) {
      std::size_t length = 0;
      if (served == host)
        length = SIZE_MAX;
      else if (served.starts_with('*') && is_within(host, served))
        length = served.size();
      if (length > best_length) {
        best_length = length;
        best = &server;
      }
    }
  }
  return best;
}

std::string qualified_host(const Snapshot& snapshot, std::string_view host, std::string_view ns) {
  std::string name(host);
  if (host.empty() || host.find('*') != std::string_view::npos || snapshot.services.contains(name))
    return name;
  std::size_t dots = static_cast<std::size_t>(std::count(host.begin(), host.end(), '.'));
  if (dots == 0) return name + "." + std::string(ns) + ".svc.cluster.local";
  std::string full = dots == 1 ? name + ".svc.cluster.local" : name + ".cluster.local";
  return snapshot.services.contains(full) ? full : name;
}

std::string cluster_name(std::string_view host, std::uint16_t port, std::string_view subset,
                         Transport transport) {
  return std::string(KeyText().cluster(host, port, subset, transport).view());
}

}  // namespace mesh::config
