// The kernel's policy for a snapshot: which peers are alike, what each policy set says of them, and
// who has which set.
//
// Two peers are of one class when no policy can tell them apart: the same identity, within the same
// of the address blocks that policies name. Workloads have one set when the same policies select
// them. A class that no set treats otherwise than a stranger is none (class 0).
#pragma once

#include <cstdint>
#include <memory>
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

// Keeps what it computed: where one snapshot follows from another by few workloads that came, went
// or changed, only what they touch is computed again. Whatever else changes (a policy, a namespace,
// this node's addresses), all is. One thread at a time.
class KernelPolicy {
 public:
  explicit KernelPolicy(Numbers& numbers);
  ~KernelPolicy();

  // Fills in sets, peers and blocks of `state`, and classes and sets of its workloads.
  void update(const config::Snapshot& snapshot, const std::vector<Client>& clients,
              datapath::State& state);
  // The number that a verdict's policy and rule are counted under; 0: of no policy.
  std::uint32_t policy_number(const config::Verdict& verdict);

  // Another one whenever all was computed again: what else follows from policies is to be, too.
  std::uint64_t ground() const;
  // Whether something that had a number is gone since this was asked last.
  bool take_ended();
  // Whether a number (of Space::kClass, kSet or kPolicy) is in use.
  bool uses(Space space, std::uint32_t number) const;

 private:
  class Tables;
  std::unique_ptr<Tables> tables_;
};

}  // namespace mesh::control
