// TcpRecords: what the kernel saw of L4 connections that go past the proxy, as meshd tells it, in
// the words of Istio's metrics and access log.
//
// istio_tcp_connections_opened_total and _closed_total, istio_tcp_sent_bytes_total (what the
// destination sent) and _received_bytes_total, with the labels of the request metrics. Connections
// that arrive at HTTP ports are left out: the requests are counted. Main thread.
//
// Bounded as the request metrics are: the series of workloads that ended go, and what does not fit
// is summed in one series whose labels say "overflow". What belongs to no workload that is known is
// counted as lost.
#pragma once

#include <boost/json.hpp>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "config/snapshot.h"
#include "proxy/worker.h"

namespace mesh::proxy {

class TcpRecords {
 public:
  using Enrolled = std::map<WorkloadId, config::ObjectName>;
  static constexpr std::size_t kMaxSeries = 10'000;

  using Time = std::chrono::steady_clock::time_point;

  // A `flows` message (feed/messages.h). Appends lines of the access log.
  void add(const boost::json::object& message, const config::SnapshotPtr& snapshot,
           const Enrolled& enrolled, std::string& lines);
  // Call it now and then.
  void forget_ended_workloads(const config::Snapshot& snapshot, Time now);
  void write_prometheus(std::string& out) const;

 private:
  struct Sums {
    std::uint64_t opened = 0, closed = 0, sent = 0, received = 0, retransmits = 0;
  };
  struct Series {
    Sums sums;
    std::set<config::ObjectName> workloads;  // at its ends, as far as they are known
    std::optional<Time> ended_at;            // when one of them was first missed
  };
  struct Place {  // what is behind an endpoint's address
    config::ServicePtr service;
    bool is_http = false;
  };
  void use(const config::SnapshotPtr& snapshot);
  void add_edge(const boost::json::object& edge, const Enrolled& enrolled);
  void add_line(const boost::json::object& record, std::string& lines) const;

  config::SnapshotPtr snapshot_;
  std::map<SocketAddress, Place> places_;  // of snapshot_
  std::map<std::string, Series> series_;   // by labels
  std::uint64_t overflows_ = 0, lost_ = 0;
};

}  // namespace mesh::proxy
