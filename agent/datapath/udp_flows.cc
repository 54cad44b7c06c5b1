#include "datapath/udp_flows.h"

#include <chrono>
#include <map>
#include <set>

#include "bpf/shared.h"
#include "datapath/batches.h"
#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

// As the programs see it: datagrams pass while this reads.
std::uint64_t quiet_for(std::uint64_t used, std::uint64_t now) {
  return now < used ? 0 : now - used;
}

}  // namespace

Result<std::vector<UdpFlow>> read_udp_flows(int flows, int choices) {
  // CLOCK_MONOTONIC, as the programs have it.
  const auto now = static_cast<std::uint64_t>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
  std::map<SocketAddress, std::set<SocketAddress>> services;  // by backend
  MESH_TRY((for_each_entry<um_udp_choice_key, um_udp_choice>(
      choices, "um_udp_choices", [&](const um_udp_choice_key& key, const um_udp_choice& choice) {
        if (key.way == UM_FROM_BACKEND && quiet_for(choice.used, now) < UM_UDP_LASTS_NS)
          services[user_destination(key.at)].insert(user_destination(choice.other));
      })));
  std::vector<UdpFlow> found;
  MESH_TRY((for_each_entry<um_udp_flow_key, um_udp_flow>(
      flows, "um_udp_flows", [&](const um_udp_flow_key& key, const um_udp_flow& known) {
        const std::uint64_t quiet = quiet_for(known.used, now);
        if (quiet >= UM_UDP_LASTS_NS) return;
        UdpFlow flow;
        flow.workload = key.workload;
        flow.port = network_order(key.port);
        flow.is_inbound = known.began == UM_BEGAN_THERE;
        flow.is_connected = known.connected != 0;
        flow.remote = user_destination(key.other);
        flow.quiet = std::chrono::nanoseconds(quiet);
        const auto service = services.find(flow.remote);
        if (!flow.is_inbound && service != services.end() && service->second.size() == 1)
          flow.service = *service->second.begin();
        found.push_back(flow);
      })));
  return found;
}

}  // namespace mesh::datapath
