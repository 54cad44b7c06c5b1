#include "datapath/udp_choices.h"

#include <bpf/bpf.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "bpf/shared.h"
#include "datapath/batches.h"
#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

using Backends = std::map<SocketAddress, std::set<SocketAddress>>;

Backends backends_of(const State& state) {
  Backends backends;
  for (const auto& [address, service] : state.udp_services) {
    std::set<SocketAddress>& own = backends[address];
    for (const Column& column : service.columns)
      for (const auto& endpoint : {column.first, column.second})
        if (endpoint) own.insert(*endpoint);
  }
  return backends;
}

bool contains_all(const Backends& now, const Backends& before) {
  return std::ranges::all_of(before, [&](const auto& service) {
    const auto found = now.find(service.first);
    return found != now.end() && std::ranges::includes(found->second, service.second);
  });
}

Result<> forget_all_but(int map, const Backends& backends) {
  const auto is_backend = [&](const um_destination& service, const um_destination& backend) {
    const auto found = backends.find(user_destination(service));
    return found != backends.end() && found->second.contains(user_destination(backend));
  };
  std::vector<um_udp_choice_key> gone;
  MESH_TRY((for_each_entry<um_udp_choice_key, um_udp_choice>(
      map, "um_udp_choices", [&](const um_udp_choice_key& key, const um_udp_choice& choice) {
        // How a backend is shown stays: it may answer still.
        if (key.way == UM_TO_BACKEND && !is_backend(key.at, choice.other)) gone.push_back(key);
      })));
  for (const um_udp_choice_key& forgotten : gone)
    if (::bpf_map_delete_elem(map, &forgotten) != 0 && errno != ENOENT)
      return errno_error(errno, "delete from map um_udp_choices");
  return success();
}

}  // namespace

Result<> UdpChoices::forget_choices(int map, const State& state) {
  if (!known_ || services_ != state.udp_services) {
    Backends now = backends_of(state);
    if (!known_ || !contains_all(now, *known_)) {
      MESH_TRY(forget_all_but(map, now));
    }
    known_ = std::move(now);
    services_ = state.udp_services;
  }
  is_changing_ = false;
  return success();
}

}  // namespace mesh::datapath
