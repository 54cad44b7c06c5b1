// Worker: one thread with its reactor, and everything it serves. A client workload lives on its
// home worker: its connections, pools, limits and sockets; so a request takes no lock.
//
// Methods that say so are called on the worker's thread only (post() brings you there).
#pragma once

#include <array>
#include <atomic>
#include <boost/smart_ptr/local_shared_ptr.hpp>
#include <boost/smart_ptr/make_local_shared.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/counter.h"
#include "base/random.h"
#include "cluster/cluster.h"
#include "config/snapshot.h"
#include "feed/hold.h"
#include "net/buffer_pool.h"
#include "net/reactor.h"
#include "net/tcp.h"
#include "proxy/dns_responder.h"
#include "proxy/limits.h"
#include "proxy/upstream.h"
#include "telemetry/metrics.h"

namespace mesh::proxy {

using WorkloadId = std::uint32_t;

// What all workers serve by, swapped between events. Immutable.
struct Configuration {
  config::SnapshotPtr snapshot;
  config::WorkloadPtr gateway;  // the node's gateway workload; may be null
  // Workloads enrolled on this node.
  std::map<WorkloadId, config::ObjectName> enrolled;
  // Changes with what the kernel's policy denies a client; the kernel checks connects alone.
  std::map<WorkloadId, std::string> denials;
};
using ConfigurationPtr = std::shared_ptr<const Configuration>;

// The configuration as one worker holds it: counted without atomic operations.
struct View {
  ConfigurationPtr configuration;
  std::uint64_t epoch = 0;
  std::unordered_set<const config::Workload*> local;  // enrolled here
  const config::Snapshot& snapshot() const { return *configuration->snapshot; }
};
using ViewPtr = boost::local_shared_ptr<const View>;

// One finished request as `meshctl tap` shows it.
struct TapEvent {
  std::chrono::system_clock::time_point at;
  std::string source;       // "ns/name" of the client workload
  std::string destination;  // the service's host
  std::string workload;     // "ns/name" behind the endpoint; empty: unknown
  std::string method, path, authority, flags, route, cluster, endpoint, request_id, details;
  int status = 0;
  std::chrono::nanoseconds latency{0};
  std::uint64_t bytes_received = 0, bytes_sent = 0;
};

// Where finished things go; called on workers, must not block.
class Sinks {
 public:
  virtual ~Sinks() = default;
  virtual void log_lines(std::string lines) = 0;
  virtual void tap(TapEvent event) = 0;
  virtual void want_sockets(unsigned worker, WorkloadId workload, SocketKind kind,
                            std::uint32_t count) = 0;
};

struct WorkerCounters {  // of one worker; any thread reads
  Counter connections_total, connections_active;
  Counter connections_without_destination;  // someone dialled 15001: reset
  Counter connections_refused;              // over the workload's limit, or not enrolled
  Counter requests_refused;                 // over the workload's limits
  Counter bad_requests;
  Counter retries;
  DnsCounters dns;
};

class Worker;
class Exchange;

// A client workload on one worker.
class Client {
 public:
  Client(Worker& worker, WorkloadId id, bool shared);
  WorkloadId id() const { return id_; }
  // Null: the configuration does not (or not yet) know it; then it is not served.
  const config::Workload* workload() const { return workload_.get(); }
  net::WaitQueue& known() { return known_; }  // notified when the configuration changed
  UpstreamPool::User use_pool(const cluster::ClusterPtr& cluster);
  SocketStock& stock(SocketKind kind) { return stocks_[static_cast<std::size_t>(kind)]; }
  DnsResponder& dns() { return dns_; }
  net::Scope& scope() { return scope_; }
  net::Group& connections() { return connections_; }
  // A request may begin: its slot, unless a limit of the workload is reached.
  bool has_room() const;
  // A buffer may be taken for a head.
  bool has_buffers() const;
  std::uint32_t requests = 0;  // in flight
  std::size_t buffers = 0;     // held by its connections and requests

  void adopt(const View& view);
  void adopt_denials(const Configuration& configuration);
  void housekeeping();
  // Ends everything: connections first. Await it before destruction.
  net::Task<> close();
  struct PoolInfo {
    std::string cluster;
    std::size_t idle;
    std::uint32_t connections, pending, requests;
  };
  std::vector<PoolInfo> pools() const;

 private:
  bool is_current(const View& view, const cluster::Cluster& cluster) const;
  SocketStock stock_of(SocketKind kind);

  Worker& worker_;
  const WorkloadId id_;
  const bool shared_;
  config::WorkloadPtr workload_;
  std::optional<std::string> denials_;
  net::Scope scope_;
  net::Group connections_;
  net::WaitQueue known_;
  std::array<SocketStock, 4> stocks_;  // by SocketKind
  DnsResponder dns_;
  std::unordered_map<const cluster::Cluster*, std::unique_ptr<UpstreamPool>> pools_;
};

struct ListenerId {
  WorkloadId workload = 0;
  feed::ListenerKind kind{};
  std::uint8_t family = 0;
  SocketAddress address;
  friend auto operator<=>(const ListenerId&, const ListenerId&) = default;
};

// A listener on one worker. Which listener accepted says who the client is.
struct Source {
  Source(Client& c, ListenerId i, net::Scope& parent)
      : client(c), id(std::move(i)), scope(parent) {}
  Client& client;
  const ListenerId id;
  std::unique_ptr<net::Listener> listener;
  std::shared_ptr<net::UdpSocket> datagrams;  // of a kDnsUdp, instead
  net::Scope scope;
};

struct WorkerOptions {
  Limits limits;
  // How an accepted connection's original destination is found.
  Result<SocketAddress> (*original_destination)(int fd) = &net::original_destination;
  // And which resolver a query was for that came to this address of ours.
  Result<SocketAddress> (*original_resolver)(int fd, const IpAddress& at) = &net::original_resolver;
};

class Worker {
 public:
  Worker(unsigned number, const WorkerOptions& options, cluster::Registry& registry,
         telemetry::WorkerMetrics& metrics, Sinks& sinks, std::uint64_t seed);
  ~Worker();  // stopped
  void start();
  // Stops accepting, drains for the limit's time, cancels; `ended` is called on the worker's
  // thread, the last thing it does. Then join(). Any other thread.
  void begin_stop(std::function<void()> ended);
  void join();
  void post(std::function<void()> action) { reactor_.post(std::move(action)); }
  const WorkerCounters& counters() const { return counters_; }
  std::size_t buffers_in_use() const { return buffers_.in_use(); }  // any thread
  // When it last looked at its timers, a few times a second also where nothing happens; an old
  // time: something holds it up. Ended: the end of time. Any thread.
  net::Clock::time_point last_turn() const {
    return net::Clock::time_point(net::Clock::duration(last_turn_.load(std::memory_order_relaxed)));
  }
  // Client workloads here: the main thread chooses the home of the next by it.
  unsigned clients = 0;  // main thread

  // On the worker's thread:
  void adopt(ConfigurationPtr configuration);
  void add_listener(const ListenerId& id, UniqueFd fd, bool shared);
  void remove_listener(const ListenerId& id);
  void add_sockets(WorkloadId workload, SocketKind kind, std::vector<UniqueFd> sockets);
  void ask_again();  // meshhold was replaced
  void revoke(WorkloadId workload);
  void set_access_log(bool on) { access_log_ = on; }
  void set_tap(bool on) { tap_ = on; }
  std::vector<Client::PoolInfo> pools(WorkloadId workload) const;
  std::vector<WorkloadId> client_ids() const;

  unsigned number() const { return number_; }
  net::Reactor& reactor() { return reactor_; }
  const Limits& limits() const { return options_.limits; }
  const ViewPtr& view() const { return view_; }
  Random& random() { return random_; }
  net::BufferPool& buffers() { return buffers_; }
  // Large enough for any datagram; whoever receives one is done with it before it waits again.
  std::span<std::uint8_t> datagram() { return datagram_; }
  cluster::Clusters& clusters() { return clusters_; }
  telemetry::WorkerMetrics& metrics() { return metrics_; }
  WorkerCounters& counters() { return counters_; }
  Sinks& sinks() { return sinks_; }
  bool logs_access() const { return access_log_; }
  bool taps() const { return tap_; }
  bool is_draining() const { return draining_; }
  Result<SocketAddress> original_destination(int fd) const {
    return options_.original_destination(fd);
  }
  Result<SocketAddress> original_resolver(int fd, const IpAddress& at) const {
    return options_.original_resolver(fd, at);
  }
  void log_line(const std::string& line);
  // The wall clock, as IMF-fixdate for answers made here; one formatting a second.
  std::string_view http_date();
  // Of one endpoint, for a destination that nobody configured; null: there are too many.
  config::ClusterPtr passthrough_cluster(const SocketAddress& destination);

  // Exchanges are large: recycled.
  std::unique_ptr<Exchange> take_exchange();
  void give_back(std::unique_ptr<Exchange> exchange);

 private:
  struct Housekeeping : net::Timer {
    explicit Housekeeping(Worker* w);
    Worker* worker;
  };
  void run();
  Result<> open_source(Source& source, UniqueFd fd);
  net::Task<> serve(Source& source);
  net::Task<> accept_all(Source& source);
  void end_source(std::map<ListenerId, std::unique_ptr<Source>>::iterator source);
  void end_sources(const std::function<bool(const ListenerId&)>& which);
  net::Task<> end_client(std::unique_ptr<Client> client);
  net::Task<> drain(std::function<void()> ended);
  void housekeeping();
  void forget_ended_workloads();
  void turned(net::Clock::time_point now);
  Client& client(WorkloadId id, bool shared);

  const unsigned number_;
  const WorkerOptions options_;
  net::Reactor reactor_;
  Random random_;
  net::BufferPool buffers_;
  std::vector<std::uint8_t> datagram_ = std::vector<std::uint8_t>(64 * 1024);
  cluster::Clusters clusters_;
  telemetry::WorkerMetrics& metrics_;
  Sinks& sinks_;
  WorkerCounters counters_;
  ViewPtr view_;
  std::uint64_t epoch_ = 0;
  bool access_log_ = false;
  bool tap_ = false;
  bool draining_ = false;
  std::string log_;
  std::string date_;
  std::time_t date_second_ = 0;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::map<SocketAddress, config::ClusterPtr> passthrough_;
  net::Scope scope_;
  net::Group tasks_;  // accept loops, and clients that are ending
  net::Group last_;   // drain(), which waits for tasks_
  std::map<WorkloadId, std::unique_ptr<Client>> clients_;
  std::map<ListenerId, std::unique_ptr<Source>> sources_;
  // Cancelled; each ends with its accept loop. The same listener may be added anew meanwhile.
  std::vector<std::unique_ptr<Source>> ending_sources_;
  Housekeeping housekeeping_;
  net::Clock::time_point forgot_{};
  std::atomic<net::Clock::rep> last_turn_{0};
  std::thread thread_;
};

// Serves one connection until it ends. (session.cc)
net::Task<> serve_connection(Worker& worker, Client& client, ListenerId via, UniqueFd fd);

}  // namespace mesh::proxy
