// Publisher: brings a snapshot to the proxy and to the kernel, in an order that never opens a gap.
//
// Policies, removals and kernel-balanced services go to the kernel at once. Then the proxy is told;
// when it acknowledges, the kernel points traffic at what is new. With the proxy away the kernel
// still gets the first part, and the proxy everything when it is back. A refusal by the proxy stops
// there: the proxy keeps its version, and the next publication starts from nothing. One thread.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "config/objects.h"
#include "control/kernel_state.h"
#include "control/numbers.h"
#include "control/peer.h"
#include "datapath/datapath.h"

namespace mesh::control {

struct Publication {
  config::SnapshotPtr snapshot;
  config::Objects objects;  // those that were accepted, for the proxy
  std::vector<Client> clients;
};

class Publisher {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::seconds kAckPatience{10};

  Publisher(datapath::Datapath& datapath, Peer& proxy, Numbers& numbers);

  // What the kernel has after a restart.
  void adopt(datapath::State state);

  std::uint64_t next_version() const { return version_ + 1; }
  void publish(Publication publication, Clock::time_point now);
  // Writes the kernel's state again, and what a failed write left out.
  void refresh_kernel();
  // Every 2 s: looks once more for connections that a change of policy forbids, or that go to what
  // is no endpoint any more; and has the kernel forget what it counted for former policies, where
  // that failed.
  void finish();

  void on_proxy_connected(Clock::time_point now);
  void on_proxy_lost();
  void on_ack(std::uint64_t version, Clock::time_point now);
  void on_nack(std::uint64_t version, std::vector<config::Problem> problems, Clock::time_point now);

  std::uint64_t version() const { return version_; }
  std::uint64_t acked_version() const { return acked_version_; }
  const config::Snapshot* acked() const { return acked_ ? acked_->snapshot.get() : nullptr; }
  // The proxy acknowledged that it is enrolled.
  bool is_told(std::uint32_t workload) const {
    return acked_version_ != 0 && told_.contains(workload);
  }
  // Whose DNS the proxy answers; what the last one said holds until another says something else.
  // The kernel has the first change at once, others at the next write_responders(): saying so costs
  // the proxy little, and writing the kernel's state much.
  void set_responders(std::set<std::uint32_t> workloads);
  // Every half second. Whether there was anything to write.
  bool write_responders();
  // And the kernel redirects its queries there.
  bool has_responder(std::uint32_t workload) const {
    const auto found = current_.workloads.find(workload);
    return found != current_.workloads.end() && found->second.has_responder;
  }
  bool is_in_flight() const { return is_in_flight_; }
  const std::vector<config::Problem>& refused_by_proxy() const { return nacked_; }
  bool is_ack_late(Clock::time_point now) const;
  const std::string& kernel_error() const { return kernel_error_; }
  const std::map<datapath::WorkloadId, Error>& kernel_errors() const { return kernel_errors_; }
  const datapath::State& kernel() const { return current_; }

 private:
  void apply_kernel();
  void end_forbidden();
  void end_removed();
  void forget_unused_numbers();
  void forget_counters();
  void send_update(Clock::time_point now);
  void send_frames(std::vector<boost::json::value> put, boost::json::array gone, bool reset);

  datapath::Datapath& datapath_;
  Peer& proxy_;
  Numbers& numbers_;
  KernelStates states_;
  Publication wanted_;
  std::optional<Publication> sent_;   // the last update of this connection
  std::optional<Publication> acked_;  // what the proxy uses; survives its absence
  std::set<std::uint32_t> told_;      // the workloads in it
  std::set<std::uint32_t> responders_;
  bool are_responders_due_ = false, may_write_responders_ = true;
  bool proxy_knows_sent_ = false;  // else the next update starts from nothing
  bool is_in_flight_ = false;
  std::uint64_t version_ = 0, sent_version_ = 0, acked_version_ = 0;
  Clock::time_point sent_at_{};
  datapath::State current_;
  std::set<std::uint32_t> counted_policies_;  // by number: those that the kernel may count
  bool are_counters_due_ = false;             // it may count others, too
  Error forget_error_;
  std::string kernel_error_;
  std::map<datapath::WorkloadId, Error> kernel_errors_;
  int looks_due_ = 0;          // for connections that are forbidden now
  int removal_looks_due_ = 0;  // for those to former endpoints
  Error look_error_;
  std::vector<config::Problem> nacked_;
};

}  // namespace mesh::control
