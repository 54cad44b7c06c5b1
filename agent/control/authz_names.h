// Who is meant by the words of `meshctl authz check`. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "config/snapshot.h"
#include "control/kernel_policy.h"
#include "datapath/datapath.h"

namespace mesh::control {

// What is known of the workloads and services of a node.
struct Known {
  const config::Snapshot& snapshot;
  const datapath::State& kernel;
  const std::vector<Client>& clients;  // enrolled here, the gateway among them
};

// One end of a connection.
struct Party {
  const config::Workload* workload = nullptr;  // null: a stranger
  datapath::WorkloadId enrolled = 0;           // its id in the kernel; 0: not of this node
  bool shares_addresses = false;               // with its host: the gateway
  std::vector<IpAddress> addresses;            // that it may have here
  std::string text;                            // as people read it
};

// Where a connection arrives.
struct Destination {
  Party party;
  IpAddress address;
  std::optional<std::uint16_t> port;  // none: any
  bool proxied = false;
};
struct Destinations {
  std::string text;
  std::vector<Destination> all;  // none: a service without endpoints
  bool is_http = false;          // on one of its ports
  bool is_known = true;          // false: an address that neither workload nor service has
};

// "[workload/][NAMESPACE/]NAME" or an address; a name alone is of namespace `ns`. not_found: nobody
// is called so.
Result<Party> find_client(const Known& known, const std::string& text, const std::string& ns);

// "[service/|workload/][NAMESPACE/]NAME[:PORT]", a host of the mesh, or an address with or without
// a port; of a service, all endpoints that `client` may be sent to. A name is a service's where
// there is one of that name, as for who dials it, else a workload's; alone, of the client's
// namespace.
Result<Destinations> find_destinations(const Known& known, const Party& client,
                                       const std::string& text, const std::string& ns,
                                       config::Transport transport);

}  // namespace mesh::control
