// What um_udp_flows remembers, for people. Descriptors are borrowed; any thread.
#pragma once

#include <vector>

#include "base/result.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

// As of Datapath::udp_flows(); the maps um_udp_flows and um_udp_choices.
Result<std::vector<UdpFlow>> read_udp_flows(int flows, int choices);

}  // namespace mesh::datapath
