// Judge: what the kernel's programs decide by a State, for whoever wants to know beforehand.
//
// It is the programs' own code (bpf/decide.h), compiled for user space over the rows of the State;
// nothing of the decision is written twice. Pure; the State is borrowed. One thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "datapath/datapath.h"

namespace mesh::datapath {

struct Decision {
  enum class Action : std::uint8_t { kPass, kRefuse, kToProxy, kToBackend };
  Action action = Action::kPass;
  std::string reason;  // name of the counter; empty: nothing of the mesh has to do with it
  // Of the client's own policy, then of its destination's; the last of them refused, where one did.
  std::vector<VerdictEntry> rulings;

  bool is_refused() const { return action == Action::kRefuse; }
};

struct JudgedRows;  // the state as the maps have it

class Judge {
 public:
  // service_range: that of Options.
  Judge(const State& state, std::optional<IpBlock> service_range);
  ~Judge();

  // A connect, or a datagram that begins something, by the application of a workload of the state.
  // The proxy is taken to be there. What the kernel chooses by chance, it chooses somehow.
  Decision connect(WorkloadId client, const SocketAddress& to, Transport transport) const;
  // A connect of the proxy on behalf of a workload.
  Decision mesh_connect(WorkloadId client, const SocketAddress& to) const;
  // What arrives at a workload of the state. `recorded`: the workload that shares the address that
  // it comes from (the gateway); 0: none.
  Decision arrival(WorkloadId server, const SocketAddress& from, const SocketAddress& to,
                   Transport transport, WorkloadId recorded = 0) const;

 private:
  std::unique_ptr<JudgedRows> rows_;
};

}  // namespace mesh::datapath
