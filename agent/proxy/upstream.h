// Connections to endpoints: the stock of unconnected sockets, and the pools of connected ones.
//
// A pool belongs to one client workload and one cluster on one worker, so the configuration's
// limits are counted for that client alone. Everything here is one worker's; nothing allocates when
// an idle connection is taken or put back.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/address.h"
#include "base/unique_fd.h"
#include "cluster/cluster.h"
#include "net/reactor.h"
#include "net/task.h"
#include "net/tcp.h"
#include "proxy/answer.h"
#include "proxy/limits.h"
#include "telemetry/metrics.h"

namespace mesh::proxy {

enum class SocketKind : std::uint8_t { kTcp4, kTcp6, kUdp4, kUdp6 };

// Unconnected sockets of one workload's namespace and one kind. Asks for more before it is empty.
class SocketStock {
 public:
  using Want = std::function<void(std::uint32_t count)>;  // asks meshhold; the answer is add()

  SocketStock(net::Reactor& reactor, const Limits& limits, Want want)
      : reactor_(reactor), limits_(limits), want_(std::move(want)), target_(limits.stock_first) {}

  // Waits where none is left; unavailable when none comes in time.
  net::Task<Result<UniqueFd>> take(net::Scope& scope);
  std::optional<UniqueFd> try_take();
  void add(std::vector<UniqueFd> sockets);  // empty: none could be made; who waits is told
  void refill();
  // Who makes sockets was replaced: what was asked of the last one does not come.
  void ask_again();
  void clear() { sockets_.clear(); }
  std::size_t size() const { return sockets_.size(); }

 private:
  net::Reactor& reactor_;
  const Limits& limits_;
  Want want_;
  std::vector<UniqueFd> sockets_;
  std::uint32_t target_;
  bool used_ = false;  // sockets were asked for before
  std::uint32_t asked_ = 0;
  net::Clock::time_point asked_at_{};
  std::uint64_t refusals_ = 0;
  net::WaitQueue waiting_;
};

class UpstreamPool;
struct EndpointPool;

// One connection; in a request's hands, or idle in its EndpointPool.
class UpstreamConnection : private net::ListNode {
 public:
  UpstreamConnection(EndpointPool& home, std::unique_ptr<net::TcpStream> stream,
                     cluster::Limits::Slot slot, net::Clock::time_point opened);
  ~UpstreamConnection();
  net::TcpStream& stream() { return *stream_; }
  EndpointPool& home() { return home_; }
  // True: the configuration allows no other after this one; so the server is told, and trusted to
  // end the connection (who ends it first keeps its port busy for a minute).
  bool begin_request();
  bool is_reused() const { return requests_ > 1; }
  const SocketAddress& local_address();  // asked of the kernel at first use

 private:
  friend class UpstreamPool;
  // While idle: whatever arrives (the end, or bytes that nobody asked for) closes it.
  struct Watch : net::Waiter {
    explicit Watch(UpstreamConnection* c);
    UpstreamConnection* connection;
  };
  struct Expiry : net::Timer {
    explicit Expiry(UpstreamConnection* c);
    UpstreamConnection* connection;
  };
  EndpointPool& home_;
  cluster::Limits::Slot slot_;
  std::unique_ptr<net::TcpStream> stream_;
  Watch watch_;
  Expiry expiry_;
  net::Clock::time_point opened_;
  std::uint32_t requests_ = 0;
  bool is_used_up_ = false;
  std::optional<SocketAddress> local_;
  std::uint32_t generation_ = 0;  // of the pool when it was opened
};
using UpstreamConnectionPtr = std::unique_ptr<UpstreamConnection>;

struct EndpointPool {
  EndpointPool(UpstreamPool& o, cluster::EndpointPtr e) : owner(o), endpoint(std::move(e)) {}
  UpstreamPool& owner;
  cluster::EndpointPtr endpoint;
  net::ListNode idle;  // UpstreamConnections; the last used is in front
  std::uint32_t in_use = 0;
  // Metric series, looked up again when the labels may have changed.
  telemetry::WorkerMetrics::Edge* source_edge = nullptr;
  telemetry::WorkerMetrics::Edge* destination_edge = nullptr;  // null: not enrolled on this node
  std::uint64_t edges_epoch = 0, edges_generation = 0;
};

class UpstreamPool {
 public:
  struct Obtained {
    UpstreamConnectionPtr connection;
    std::optional<Refusal> refusal;
  };

  // The stocks must outlive the pool.
  UpstreamPool(net::Reactor& reactor, const Limits& limits, net::Scope& parent,
               cluster::ClusterPtr cluster, cluster::LimitsPtr cluster_limits, SocketStock& v4,
               SocketStock& v6, bool shared);
  ~UpstreamPool();

  cluster::Cluster& cluster() { return *cluster_; }
  cluster::Limits& limits() { return *cluster_limits_; }
  EndpointPool& at(const cluster::EndpointPtr& endpoint);

  // An idle connection to the endpoint, unless others wait before us; null: obtain().
  UpstreamConnectionPtr try_take(EndpointPool& endpoint);
  // Waits in line for a connection, or opens one. At the connection limit it may be one to another
  // endpoint than asked for.
  net::Task<Obtained> obtain(EndpointPool& endpoint, net::Scope& scope);
  // After a whole exchange, or none: idle again, or closed where a limit says so. `keep_alive`:
  // the server will not end it.
  void put_back(UpstreamConnectionPtr connection, bool keep_alive);
  // Closed; then its place is free.
  void discard(UpstreamConnectionPtr connection);

  // After a change of configuration: idle connections to endpoints that are gone end.
  void prune();
  void close_idle();
  // What was opened before now takes no further request: a connect was allowed that may not be now.
  void reopen();
  // Workers that share the budget: gives an idle connection up when another waits, and looks again
  // for those who wait here.
  void share();
  bool is_shared() const { return shared_; }
  bool is_used() const { return users_ != 0 || retiring_.size() != 0; }
  // Ends what idles and waits for what is ending; nobody uses it any more.
  net::Task<> close();
  std::size_t idle_count() const;

  // Held by every request that uses the pool: it is not forgotten meanwhile.
  class User {
   public:
    User() = default;
    explicit User(UpstreamPool& pool) : pool_(&pool) { ++pool.users_; }
    User(User&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)) {}
    User& operator=(User&& other) noexcept {
      std::swap(pool_, other.pool_);
      return *this;
    }
    ~User() { reset(); }
    void reset() {
      if (pool_ != nullptr) --std::exchange(pool_, nullptr)->users_;
    }
    UpstreamPool* get() const { return pool_; }

   private:
    UpstreamPool* pool_ = nullptr;
  };

 private:
  friend class UpstreamConnection;
  net::Task<Obtained> open(EndpointPool& endpoint, cluster::Limits::Slot slot, net::Scope& scope);
  enum class First : std::uint8_t { kWe, kServer };
  net::Task<> retire(UpstreamConnectionPtr connection, First ends);
  UpstreamConnectionPtr take_any_idle();
  void close_idle_of(EndpointPool& endpoint);
  bool close_one_idle();
  void freed();
  UpstreamConnectionPtr unlink(UpstreamConnection& connection);
  bool has_few_connections() const;

  net::Reactor& reactor_;
  const Limits& proxy_limits_;
  cluster::ClusterPtr cluster_;
  cluster::LimitsPtr cluster_limits_;
  SocketStock& v4_;
  SocketStock& v6_;
  const bool shared_;
  std::uint32_t users_ = 0;
  std::uint32_t generation_ = 0;
  std::uint32_t promised_ = 0;  // woken, not yet run: what was freed is theirs
  net::WaitQueue waiting_;
  net::Scope retire_scope_;
  net::Group retiring_;
  std::unordered_map<const cluster::Endpoint*, std::unique_ptr<EndpointPool>> endpoints_;
};

}  // namespace mesh::proxy
