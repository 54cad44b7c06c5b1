// Routing: a request head and a Snapshot in, a Decision out.
//
// Pure and stateless: nothing waits, locks, logs or fails; randomness is an argument. Thread-safe
// on one Snapshot. Every pointer and view of a Decision points into the Snapshot (or into
// constants): hold the Snapshot for as long as the Decision. Semantics: networking.istio.io
// VirtualService, as Istio's pilot/pkg/networking/core/route/route.go and httproute.go compile it,
// except that sourceLabels, sourceNamespace, port and gateways are asked of the client at run time,
// since one proxy serves many.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/random.h"
#include "config/snapshot.h"

namespace mesh::routing {

// A view of the fields of a request in whatever array the caller has them: any contiguous elements
// with `std::string_view name, value`. Copies nothing.
class FieldList {
 public:
  FieldList() = default;
  template <class Field>
  FieldList(const Field* first, std::size_t size) : size_(size), stride_(sizeof(Field)) {
    static_assert(std::is_same_v<decltype(Field::name), std::string_view> &&
                  std::is_same_v<decltype(Field::value), std::string_view>);
    if (size == 0) return;
    names_ = reinterpret_cast<const std::byte*>(&first->name);
    values_ = reinterpret_cast<const std::byte*>(&first->value);
  }
  template <class Fields>
    requires requires(const Fields& f) {
      f.begin()->name;
      f.size();
    }
  explicit FieldList(const Fields& fields)
      : FieldList(fields.size() == 0 ? nullptr : &*fields.begin(), fields.size()) {}

  std::size_t size() const { return size_; }
  std::string_view name(std::size_t i) const { return at(names_, i); }
  std::string_view value(std::size_t i) const { return at(values_, i); }

 private:
  std::string_view at(const std::byte* base, std::size_t i) const {
    return *reinterpret_cast<const std::string_view*>(base + i * stride_);
  }
  const std::byte* names_ = nullptr;
  const std::byte* values_ = nullptr;
  std::size_t size_ = 0;
  std::size_t stride_ = 0;
};

struct RequestView {
  std::string_view method;     // as received
  std::string_view path;       // normalised, without the query: what will be forwarded
  std::string_view query;      // without '?', as received: values are compared raw, as Envoy does
  std::string_view host;       // the authority in lower case, without port; decides which rules
  std::string_view authority;  // as received, port included: what `match.authority` sees
  std::string_view scheme = "http";
  FieldList fields;  // names are compared case-insensitively
};

// Who asks, and where. One per connection.
struct Client {
  const config::Workload* workload = nullptr;  // never null when deciding
  // Null: a client of the mesh. Else the gateway's listener that accepted, as it was bound: the
  // request's host then chooses among the Gateway servers there.
  const SocketAddress* listener = nullptr;
  std::uint16_t port = 0;  // mesh: of the original destination; a gateway: of its listener
  const config::Service* service =
      nullptr;  // of the original destination; null: none, or a gateway
};

struct Decision {
  enum class Kind : std::uint8_t {
    kRoute,            // send it to `cluster`
    kNoRoute,          // 404, flag NR: rules exist and none matches; no Gateway serves the host
    kClusterNotFound,  // 503, flag NC: the destination, its port or subset is unknown
    kPassthrough,      // to the original destination: neither host nor address is known
  };
  Kind kind = Kind::kPassthrough;
  const config::GatewayServer* server = nullptr;            // null: a client of the mesh
  const config::VirtualService* virtual_service = nullptr;  // null: the service's own route
  const config::HttpRoute* route = nullptr;                 // null without virtual_service
  const config::HttpMatch* match = nullptr;                 // null: the route matches every request
  const config::WeightedDestination* destination = nullptr;
  config::ClusterPtr cluster;  // kRoute only

  // The name for the access log and tap: see append_route_name. "default": the service's own route;
  // "allow_any": passthrough.
  std::string_view route_name, match_name;
  std::string_view host_rewrite;    // instead of the request's authority, unless empty
  config::Milliseconds timeout{0};  // of the whole request; 0: none
  config::Milliseconds delay{0};    // fault, rolled: wait first (flag DI); 0: none
  std::uint16_t abort_status = 0;   // fault, rolled: then answer this (flag FI); 0: none
};

// Order of random numbers: destination (only when there are several), delay, abort (only where
// set).
Decision decide(const config::Snapshot& snapshot, const Client& client, const RequestView& request,
                Random& random);

// Every cluster that a mesh client's requests to this service and port can be sent to, whatever
// they carry; without duplicates. Destinations of weight 0 among several, and unknown ones, are
// none.
std::vector<config::ClusterPtr> reachable_clusters(const config::Snapshot& snapshot,
                                                   const config::Workload& client,
                                                   const config::Service& service,
                                                   std::uint16_t port);

// "<route>.<match>", or "<route>" where the match has no name, as Istio names its routes.
void append_route_name(const Decision& decision, std::string& out);

// The header changes of a route and its chosen destination as one list, to be applied as remove,
// then set (replaces all of that name), then add: the removals of both, then what the route sets
// and adds, then what the destination does, as Istio orders them. Appends views; Value is any
// aggregate {name, value}. Either pointer may be null. Host and pseudo-headers are left out: they
// are Decision::host_rewrite, or ignored.
template <class Value>
void merge_headers(const config::HeaderOperations* route,
                   const config::HeaderOperations* destination, std::vector<Value>& set,
                   std::vector<Value>& add, std::vector<std::string_view>& remove) {
  auto is_plain = [](std::string_view name) { return name != "host" && !name.starts_with(':'); };
  auto replaced = [&](const config::HeaderOperations* level, std::string_view name) {
    return level == route && destination != nullptr &&
           std::ranges::any_of(destination->set, [&](auto& item) { return item.first == name; });
  };
  for (const auto* level : {route, destination}) {
    if (level == nullptr) continue;
    for (const auto& name : level->remove)
      if (is_plain(name)) remove.push_back(name);
    for (const auto& [name, value] : level->set)
      if (is_plain(name) && !replaced(level, name)) set.push_back(Value{name, value});
    for (const auto& [name, value] : level->add)
      if (is_plain(name) && !replaced(level, name)) add.push_back(Value{name, value});
  }
}

}  // namespace mesh::routing
