// Feeds: the proxy's side of its two channels. meshd sends configuration and gets acknowledgements
// and live state (feed/messages.h); meshhold sends listeners and sockets (feed/hold.h).
//
// Accepts peers of user 0 on the one socket that was bound before confinement; dials nobody. Either
// may go and come again: what it gave stays. Main thread.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "config/object.h"
#include "feed/channel.h"
#include "feed/hold.h"
#include "net/reactor.h"
#include "proxy/metrics_server.h"
#include "proxy/proxy.h"
#include "proxy/tcp_records.h"
#include "proxy/throttle.h"

namespace mesh::proxy {

struct FeedsOptions {
  std::string version;
  unsigned workers = 1;
  std::uint32_t peer_uid = 0;  // 0 but in tests
};

class Feeds {
 public:
  Feeds(net::Reactor& reactor, unsigned workers, const WorkerOptions& worker_options,
        FeedsOptions options);
  ~Feeds();
  // `listener`: a listening Unix socket, non-blocking.
  Result<> start(UniqueFd listener);
  // Drains the workers, with everything else in place until they have ended: a request in flight
  // may still need a socket from meshhold, and the kernel a heartbeat. The reactor may stop
  // afterwards.
  net::Task<> close();
  Proxy& proxy() { return *proxy_; }

 private:
  // A channel on the reactor. Destroyed by the coroutine that serves it.
  struct Peer;
  struct Heartbeat : net::Timer {
    explicit Heartbeat(Feeds* f);
    Feeds* feeds;
  };

  net::Task<> accept_all(std::unique_ptr<net::Listener> listener);
  net::Task<> serve(UniqueFd fd);
  Result<> on_hello(Peer& peer, std::string_view payload);
  Result<> on_meshd(std::string_view payload, feed::Fds fds);
  Result<> on_hold(std::string_view payload, feed::Fds fds);
  Result<> on_options(const boost::json::object& message, feed::Fds fds);
  Result<> on_update(const boost::json::object& message);
  Result<> on_tap(const boost::json::object& message);
  Result<> on_dump(const boost::json::object& message);
  Result<> on_listener(const feed::HoldMessage& message, feed::Fds fds);
  void give_back(feed::HoldMessage message);
  void on_sync();
  void tell_responders();
  void compile_and_publish(std::uint64_t version);
  void to_meshd(const boost::json::object& message);
  void send_tap(const TapEvent& event);
  void want_sockets(WorkloadId workload, SocketKind kind, std::uint32_t count);
  void write_metrics(std::string& out) const;
  void write_kernel_counters(std::string& out) const;
  void use_heartbeat(UniqueFd map);
  void stamp();

  net::Reactor& reactor_;
  const FeedsOptions options_;
  MetricsServer metrics_;
  std::unique_ptr<Proxy> proxy_;
  net::Scope scope_;
  net::Group group_;
  Peer* meshd_ = nullptr;  // the last to say so
  Peer* hold_ = nullptr;

  // What meshd said.
  std::map<config::ObjectKey, config::ObjectPtr> objects_;
  std::map<WorkloadId, config::ObjectName> enrolled_;
  std::map<WorkloadId, std::string> denials_;
  config::CompileOptions compile_options_;
  config::SnapshotPtr snapshot_;
  boost::json::object kernel_counters_;
  net::Clock::time_point kernel_counters_at_{};
  net::Clock::time_point source_read_at_ = net::Clock::now();
  TcpRecords tcp_records_;
  // What meshhold named on this connection.
  std::set<ListenerId> named_;
  bool responders_changed_ = false;  // meshd is told after the frames that are there
  // Once meshhold has named them all. Until then what the proxy before this one said of its
  // responders holds: the queries wait, as connections do.
  bool has_listeners_ = false;
  Throttle socket_failures_;

  volatile std::uint64_t* heartbeat_map_ = nullptr;
  Heartbeat heartbeat_;
};

}  // namespace mesh::proxy
