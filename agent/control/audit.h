// Audit: is what should be captured captured? Every enrolled workload is looked at once in kRound:
// its hooks, rows and packet programs in the kernel, its listeners and addresses, and a canary from
// inside; so are the mesh's own hooks, and a part of the rows that all share. What differs is put
// right where that can be, and counted and shown in any case. The work is spread over the round.
// One thread; time is an argument.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "control/workloads.h"
#include "datapath/datapath.h"

namespace mesh::control {

class Audit {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kRound{10};
  static constexpr int kSteps = 20;  // of a round: step() is called every half second

  Audit(datapath::Datapath& datapath, Machine& machine) : datapath_(datapath), machine_(machine) {}

  // `listens`: the proxy is there, so its listeners shall listen. Returns true when what it says of
  // somebody changed.
  bool step(const Workloads& workloads, bool listens, Clock::time_point now);

  // "yes" (a canary proved it, and nothing is missing), "no", or empty: not looked at yet.
  std::string captured(datapath::WorkloadId id) const;
  // Why it is not captured as it should be; empty where it is.
  std::string problem(datapath::WorkloadId id) const;
  // Which of its addresses its network namespace does not have; empty: none, or that is not known.
  std::string missing_addresses(datapath::WorkloadId id) const;
  // What of the mesh's own, of no one workload, is not as it should be and could not be repaired.
  std::vector<std::string> mesh_problems() const { return mesh_.differences; }
  // The difference that was found last, repaired or not: "workload ns/name: its hook connect4".
  struct Last {
    std::string what;
    bool is_repaired = false;
    Clock::time_point at;
  };
  const std::optional<Last>& last() const { return last_; }
  // By name: "workloads_looked_at", "differences", "repairs", "canaries_sent", "canaries_lost".
  const std::map<std::string, std::uint64_t>& counters() const { return counters_; }

 private:
  struct Record {
    Clock::time_point due;
    std::vector<std::string> differences;  // that could not be repaired
    std::string canary;                    // why the last one says no
    bool is_canary_back = false;
    std::string missing_addresses;
    std::string problem() const;
  };

  void look_at(const Enrolment& enrolment, const datapath::EnrolledWorkload& kernel, bool listens,
               Record& record, Clock::time_point now);
  std::vector<datapath::Difference> differences_of(const Enrolment& enrolment,
                                                   const datapath::EnrolledWorkload& kernel,
                                                   bool listens);
  std::string look_for_addresses(const Enrolment& enrolment);
  bool look_at_mesh(Clock::time_point now);
  // Counts, logs and remembers them; those that could not be repaired are the record's.
  void note(std::vector<datapath::Difference> differences, const std::string& whose, Record& record,
            Clock::time_point now);
  bool take_canaries(Clock::time_point now);

  datapath::Datapath& datapath_;
  Machine& machine_;
  std::map<datapath::WorkloadId, Record> records_;
  Record mesh_;
  std::optional<Last> last_;
  std::map<std::string, std::uint64_t> counters_ = {{"workloads_looked_at", 0},
                                                    {"differences", 0},
                                                    {"repairs", 0},
                                                    {"canaries_sent", 0},
                                                    {"canaries_lost", 0}};
};

}  // namespace mesh::control
