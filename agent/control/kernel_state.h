// The kernel's state wanted for a snapshot: which services exist and how, which destinations belong
// together, and the verdict of every enrolled client. Pure but for the numbers it asks for.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "config/snapshot.h"
#include "control/kernel_policy.h"
#include "control/numbers.h"
#include "datapath/datapath.h"

namespace mesh::control {

struct KernelInput {
  const config::Snapshot& snapshot;  // what is wanted: its policies hold at once
  const config::Snapshot* acked;     // what the proxy has; null: nothing is known
  const datapath::State& current;    // what the kernel has
  const std::vector<Client>& clients;
};

// A proxied service is pointed at the proxy once the proxy has it (or where it is already pointed
// there: a meshd that restarted knows no acknowledgement); until then the address keeps what it
// has, or refuses when that is nothing. Everything else, all removals among it, holds at once: the
// proxy is told afterwards.
datapath::State kernel_state(const KernelInput& input, Numbers& numbers);

// A short text for each client that changes when the set of destinations that it is denied does.
std::map<datapath::WorkloadId, std::string> denials(const datapath::State& state);

// config::display_name() and rule of a policy's number; nullopt: not a number of ours.
struct PolicyRule {
  std::string policy;
  int rule = -1;
};
std::map<std::uint32_t, PolicyRule> policy_rules(const Numbers& numbers);

}  // namespace mesh::control
