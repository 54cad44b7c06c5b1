// The programs at the host's side of a strict workload's links (bpf/packet.bpf.c): an instance for
// each workload, attached by tcx links (kernel 6.6) or clsact filters. Devices are those of the
// calling thread's network namespace, which is the host's. Needs root.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

struct PacketPrograms {
  UniqueFd from, to;
};
// Loads them over these maps, by name.
Result<PacketPrograms> load_packet(const std::map<std::string, UniqueFd>& maps,
                                   std::uint64_t netns_cookie, WorkloadId id);

struct Sides {
  std::vector<std::uint32_t> here;     // veth devices whose other end is in the namespace, by index
  std::vector<std::string> unpoliced;  // devices of the namespace by which packets go elsewhere
};
// Enters the namespace.
Result<Sides> sides_of(int netns);
// Why a strict workload's packets are not all policed; empty: they are.
std::string why_uncovered(const Sides& sides);

// Has both programs at each device, before all others there, pinned below `dir`; what is pinned
// there for other devices is detached.
Result<> attach_packets(const std::string& dir, const std::vector<std::uint32_t>& devices,
                        const PacketPrograms& programs);

// What of that is not there.
std::vector<std::string> missing_packets(const std::string& dir,
                                         const std::vector<std::uint32_t>& devices);

// True when `name` is the pin of a filter, which was then detached: closing a program does not.
bool detach_filter(const std::string& dir, const std::string& name);

}  // namespace mesh::datapath
