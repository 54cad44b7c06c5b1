// The kernel's policy for a snapshot: which peers are alike, what each policy set says of them, and
// who has which set. Pure but for the numbers it asks for.
//
// Two peers are of one class when no policy can tell them apart: the same identity, within the same
// of the address blocks that policies name. Workloads have one set when the same policies select
// them. A class that no set treats otherwise than a stranger is none (class 0).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "config/snapshot.h"
#include "control/numbers.h"
#include "datapath/datapath.h"

namespace mesh::control {

// An enrolled workload as the kernel and the snapshot know it.
struct Client {
  datapath::EnrolledWorkload kernel;
  config::WorkloadPtr workload;
};

// Fills in sets, peers and blocks of `state`, and classes and sets of its workloads.
void add_policy(const config::Snapshot& snapshot, const std::vector<Client>& clients,
                Numbers& numbers, datapath::State& state);

// The number that a verdict's policy and rule are counted under; 0: of no policy.
std::uint32_t policy_number(const config::Verdict& verdict, Numbers& numbers);

}  // namespace mesh::control
