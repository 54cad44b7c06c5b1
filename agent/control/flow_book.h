// FlowBook: what is told of the L4 connections of enrolled workloads: sums for the metrics, a
// record for the access log, a table for `meshctl bpf flows`.
//
// Sums are kept until the proxy takes them; records for the log are dropped (and counted) where
// there are more than a message holds. Pure. One thread.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "api/messages.h"
#include "control/kernel_policy.h"
#include "control/kernel_state.h"
#include "datapath/datapath.h"

namespace mesh::control {

class FlowBook {
 public:
  using Rules = std::map<std::uint32_t, PolicyRule>;
  static constexpr std::size_t kMaxEdges = 4096, kMaxRecords = 500, kMaxKnown = 65536;

  // What take_flows() gave. The two clocks at one moment, to tell the time of day.
  void add(const std::vector<datapath::Flow>& ended, std::chrono::nanoseconds monotonic_now,
           std::uint64_t unix_ms, const Rules& rules);
  // What open_flows() gave: long connections count while they live. The first time only what is
  // new from then on: another meshd told of the rest.
  void see_open(const std::vector<datapath::Flow>& open);
  // The members of a `flows` message (feed/messages.h); nullopt: there is nothing to tell.
  std::optional<boost::json::object> take();

 private:
  // Workload, inbound, failed, service (or where it arrived), other end.
  using Edge = std::tuple<datapath::WorkloadId, bool, bool, std::optional<SocketAddress>,
                          std::optional<IpAddress>>;
  struct Sums {
    std::uint64_t opened = 0, closed = 0, sent = 0, received = 0, retransmits = 0;
  };
  struct Known {  // of a connection that was seen open: what was told of it
    std::uint64_t sent = 0, received = 0, retransmits = 0;
    int missed = 0;  // looks at what is open, one after the other
  };
  void count(const datapath::Flow& flow);

  std::map<Edge, Sums> edges_;
  std::unordered_map<std::uint64_t, Known> known_;  // by cookie
  std::vector<boost::json::object> records_;
  std::uint64_t dropped_ = 0;  // records, and sums of edges
  bool has_seen_open_ = false;
};

// TCP before UDP; at most `most` rows of each, those with the most bytes and those that were quiet
// for the shortest time.
api::Dump dump_flows(std::vector<datapath::Flow> tcp, std::vector<datapath::UdpFlow> udp,
                     const config::Snapshot& snapshot, const std::vector<Client>& clients,
                     const FlowBook::Rules& rules, std::size_t most = 5000);

}  // namespace mesh::control
