// What policies tell apart: for whoever computes verdicts ahead of the flows (control's
// kernel_policy). A value that borrows the policies; pure.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "config/snapshot.h"

namespace mesh::config {

struct PortRange {
  std::uint16_t first = 0, last = 65535;
};

// Whether a namespaceSelector selects the namespace, which need not have an object.
bool selects_namespace(const Snapshot& snapshot, const LabelSelector& selector,
                       const std::string& ns);

// The blocks that a policy names, as often as it does.
std::vector<IpBlock> address_blocks(const AuthorizationPolicy& policy);
std::vector<IpBlock> address_blocks(const NetworkPolicy& policy);

class PolicyParts {
 public:
  explicit PolicyParts(const Snapshot& snapshot);

  // The blocks that policies name, as often as they do.
  const std::vector<IpBlock>& address_blocks() const { return blocks_; }
  // The same for workloads of which the same policies speak in one direction; empty: none does.
  std::string key(const Selection& selection, const Workload& workload) const;
  // All ports of the server's end, in ranges within which the selection tells no ports apart.
  // `server`: whose port names count; null: anybody's.
  std::vector<PortRange> ingress_ports(const Selection& selection, Transport transport,
                                       const Workload& server) const;
  std::vector<PortRange> egress_ports(const Snapshot& snapshot, const Selection& selection,
                                      Transport transport, const Workload* server) const;
  // The same for workloads that no policy tells apart as the other end, addresses aside.
  std::string peer_key(const Workload& workload) const;
  // Its labels and ports that policies ask for: "name=value".
  std::vector<std::string> asked_labels(const Workload& workload) const;
  std::vector<std::string> asked_ports(const Workload& workload) const;

 private:
  void see(const NetworkPeer& peer);

  std::map<const void*, std::string> names_;  // of each policy; two of one name differ
  std::vector<IpBlock> blocks_;
  std::set<std::string> labels_;  // that policies ask for of the other end
  std::set<std::string> port_names_;
};

}  // namespace mesh::config
