// Proxy: the node's L7 proxy. Its workers serve; this hands them configuration, listeners and
// sockets, and sums up what they counted.
//
// Used from one thread, the main one, whose reactor it is given; callbacks come there. The life of
// a request is in exchange.h.
#pragma once

#include <boost/json/fwd.hpp>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "cluster/cluster.h"
#include "proxy/log_writer.h"
#include "proxy/worker.h"
#include "telemetry/metrics.h"
#include "telemetry/prometheus.h"

namespace mesh::proxy {

class Proxy final : private Sinks {
 public:
  struct Callbacks {  // on the main thread
    std::function<void(WorkloadId, SocketKind, std::uint32_t count)> want_sockets;
    std::function<void(const TapEvent&)> tap;
  };

  Proxy(net::Reactor& main, unsigned workers, const WorkerOptions& options, Callbacks callbacks);
  ~Proxy() override;  // stops

  // Every worker serves by it when `applied` is called.
  void publish(ConfigurationPtr configuration, std::function<void()> applied);
  // A workload's connections go to its home worker, the gateway's to all. Again the same: nothing.
  void add_listener(const ListenerId& id, UniqueFd fd);
  void remove_listener(const ListenerId& id);
  void add_sockets(WorkloadId workload, SocketKind kind, std::vector<UniqueFd> sockets);
  void ask_again_for_sockets();
  // Its listeners, connections and sockets end.
  void revoke(WorkloadId workload);
  std::vector<ListenerId> listeners() const;
  UniqueFd duplicate_listener(const ListenerId& id) const;  // none: there is no such one

  void set_access_log(UniqueFd file);                                         // none: off
  void write_log(std::string lines) { access_log_.write(std::move(lines)); }  // any thread
  void set_tap(bool on);

  // Prometheus text: requests, clusters, the proxy itself.
  void write_metrics(std::string& out) const;
  // Rows of live state for `config dump`; `done` comes later.
  void dump_clusters(std::function<void(boost::json::array)> done);
  boost::json::array dump_endpoints() const;
  boost::json::object stats() const;
  // When the one of our threads that is furthest behind last took its turn.
  net::Clock::time_point last_turn() const;
  // Every worker stops accepting, ends what is under way and itself; this thread goes on meanwhile.
  net::Task<> drain();
  // The same, but returns when they have.
  void stop();

 private:
  struct Housekeeping : net::Timer {
    explicit Housekeeping(Proxy* p);
    Proxy* proxy;
  };
  void log_lines(std::string lines) override;
  void tap(TapEvent event) override;
  void want_sockets(unsigned worker, WorkloadId workload, SocketKind kind,
                    std::uint32_t count) override;
  std::vector<Worker*> homes(WorkloadId workload);
  Worker& least_loaded();
  void begin_stop();
  void housekeeping();
  void write_dns_metrics(telemetry::PrometheusWriter& writer) const;

  net::Reactor& main_;
  Callbacks callbacks_;
  cluster::Registry registry_;
  telemetry::Metrics metrics_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::map<WorkloadId, Worker*> homes_;
  std::map<ListenerId, UniqueFd> listeners_;  // kept for a meshhold that asks for it
  LogWriter access_log_;
  // Who asked for sockets, in the order asked: answers come in that order.
  std::map<std::pair<WorkloadId, SocketKind>, std::deque<unsigned>> askers_;
  Housekeeping housekeeping_;
  std::atomic<std::uint32_t> taps_waiting_{0};
  bool stopping_ = false;
  std::size_t running_;  // workers
  net::WaitQueue all_ended_;
  bool held_up_ = false;  // a worker does not turn; said once
};

}  // namespace mesh::proxy
