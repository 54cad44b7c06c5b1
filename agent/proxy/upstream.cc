#include "proxy/upstream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>

namespace mesh::proxy {

namespace {

using namespace std::chrono_literals;
using cluster::Use;

// After so long an answer of meshhold is not waited for before it is asked again.
constexpr auto kAskAgain = 500ms;
// How often a worker that shares its budget with others looks for a free place.
constexpr auto kShareInterval = 10ms;
// A server is given so long to end its side of a connection whose place another waits for.
constexpr auto kRetire = 500ms;
// And so long to end first where it said, or was told, that it should.
constexpr auto kServerEnds = 100ms;

// A service must not lead back into the client's own loopback or to metadata services.
bool is_forbidden(const IpAddress& ip, bool loopback_allowed) {
  return (ip.is_loopback() && !loopback_allowed) || ip.is_link_local() || ip.is_unspecified() ||
         ip.is_multicast();
}

void set_keepalive(int fd, const config::ConnectionPool::Keepalive& keepalive) {
  const auto set = [fd](int level, int name, int value) {
    if (value > 0) ::setsockopt(fd, level, name, &value, sizeof value);
  };
  const auto seconds = [](config::Milliseconds time) {
    return static_cast<int>(std::chrono::ceil<std::chrono::seconds>(time).count());
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPCNT, static_cast<int>(keepalive.probes));
  set(IPPROTO_TCP, TCP_KEEPIDLE, seconds(keepalive.time));
  set(IPPROTO_TCP, TCP_KEEPINTVL, seconds(keepalive.interval));
}

// True: the server ended its side, in good order or not.
net::Task<bool> wait_for_end(net::Stream& stream, net::Scope& scope) {
  std::array<char, 1024> rest;
  while (true) {
    auto read = co_await stream.read_some(rest, scope);
    if (!read) co_return !scope.is_cancelled();
    if (read.value() == 0) co_return true;
  }
}

}  // namespace

// SocketStock

void SocketStock::refill() {
  used_ = true;
  if (sockets_.size() * 2 > target_) return;
  const auto now = reactor_.now();
  if (asked_ > 0 && now - asked_at_ < kAskAgain) return;
  asked_ = target_ - static_cast<std::uint32_t>(sockets_.size());
  asked_at_ = now;
  want_(asked_);
}

void SocketStock::ask_again() {
  if (!used_) return;
  asked_ = 0;
  refill();
}

std::optional<UniqueFd> SocketStock::try_take() {
  if (sockets_.empty()) {
    target_ = std::min(target_ * 2, limits_.stock_most);
    refill();
    return std::nullopt;
  }
  UniqueFd fd = std::move(sockets_.back());
  sockets_.pop_back();
  refill();
  return fd;
}

net::Task<Result<UniqueFd>> SocketStock::take(net::Scope& parent) {
  net::Scope scope(parent);
  scope.expires_after(limits_.socket_timeout);
  const std::uint64_t refusals = refusals_;
  while (true) {
    if (auto fd = try_take()) co_return std::move(*fd);
    if (refusals_ != refusals) {
      co_return Error{Errc::unavailable, "no socket could be made in the client's namespace"};
    }
    // In slices, so that a request that was lost with meshhold is made again.
    net::Scope slice(scope);
    slice.expires_after(kAskAgain);
    auto turn = waiting_.wait(slice);
    if (!co_await turn && scope.is_cancelled()) {
      if (turn.was_notified()) waiting_.notify_one(reactor_);  // the socket is the next one's
      if (parent.is_cancelled()) co_return net::cancelled_error(*parent.cancelled());
      co_return Error{Errc::unavailable, "no socket came from meshhold in time"};
    }
  }
}

void SocketStock::add(std::vector<UniqueFd> sockets) {
  asked_ = 0;
  if (sockets.empty()) {
    ++refusals_;
    waiting_.notify_all(reactor_);
    return;
  }
  for (auto& fd : sockets) {
    sockets_.push_back(std::move(fd));
    waiting_.notify_one(reactor_);
  }
}

// UpstreamConnection

UpstreamConnection::Watch::Watch(UpstreamConnection* c)
    : Waiter([](Waiter& waiter) {
        UpstreamConnection& self = *static_cast<Watch&>(waiter).connection;
        if (!self.stream_->is_readable()) return self.stream_->wait_readable(waiter);
        UpstreamPool& pool = self.home_.owner;
        pool.discard(pool.unlink(self));
      }),
      connection(c) {}

UpstreamConnection::Expiry::Expiry(UpstreamConnection* c)
    : Timer([](Timer& timer) {
        UpstreamConnection& self = *static_cast<Expiry&>(timer).connection;
        UpstreamPool& pool = self.home_.owner;
        pool.discard(pool.unlink(self));
      }),
      connection(c) {}

UpstreamConnection::UpstreamConnection(EndpointPool& home, std::unique_ptr<net::TcpStream> stream,
                                       cluster::Limits::Slot slot, net::Clock::time_point opened)
    : home_(home),
      slot_(std::move(slot)),
      stream_(std::move(stream)),
      watch_(this),
      expiry_(this),
      opened_(opened) {
  ++home_.in_use;
}

UpstreamConnection::~UpstreamConnection() = default;

bool UpstreamConnection::begin_request() {
  const auto most = home_.owner.cluster().config().policy.pool.max_requests_per_connection;
  ++requests_;
  is_used_up_ = most != 0 && requests_ >= most;
  return is_used_up_;
}

const SocketAddress& UpstreamConnection::local_address() {
  if (!local_) {
    auto address = net::local_address(stream_->fd());
    local_ = address ? address.value() : SocketAddress{};
  }
  return *local_;
}

// UpstreamPool

UpstreamPool::UpstreamPool(net::Reactor& reactor, const Limits& limits, net::Scope& parent,
                           cluster::ClusterPtr cluster, cluster::LimitsPtr cluster_limits,
                           SocketStock& v4, SocketStock& v6, bool shared)
    : reactor_(reactor),
      proxy_limits_(limits),
      cluster_(std::move(cluster)),
      cluster_limits_(std::move(cluster_limits)),
      v4_(v4),
      v6_(v6),
      shared_(shared),
      retire_scope_(parent),
      retiring_(reactor) {}

UpstreamPool::~UpstreamPool() {
  retire_scope_.cancel();
  close_idle();
  assert(!is_used());
}

net::Task<> UpstreamPool::close() {
  retire_scope_.cancel();
  close_idle();
  co_await retiring_.wait();
}

EndpointPool& UpstreamPool::at(const cluster::EndpointPtr& endpoint) {
  auto& entry = endpoints_[endpoint.get()];
  if (!entry) entry = std::make_unique<EndpointPool>(*this, endpoint);
  return *entry;
}

UpstreamConnectionPtr UpstreamPool::unlink(UpstreamConnection& connection) {
  static_cast<net::ListNode&>(connection).unlink();
  connection.watch_.leave();
  connection.expiry_.disarm();
  ++connection.home_.in_use;
  return UpstreamConnectionPtr(&connection);
}

UpstreamConnectionPtr UpstreamPool::try_take(EndpointPool& endpoint) {
  if (promised_ > 0 || !waiting_.is_empty()) return nullptr;
  while (!endpoint.idle.is_empty()) {
    auto connection = unlink(static_cast<UpstreamConnection&>(*endpoint.idle.front()));
    if (!connection->stream().is_readable()) return connection;
    discard(std::move(connection));  // it ended, and its event is still to be run
  }
  return nullptr;
}

UpstreamConnectionPtr UpstreamPool::take_any_idle() {
  for (auto& [key, endpoint] : endpoints_) {
    if (endpoint->endpoint->is_ejected() || endpoint->endpoint->is_removed()) continue;
    while (!endpoint->idle.is_empty()) {
      auto connection = unlink(static_cast<UpstreamConnection&>(*endpoint->idle.front()));
      if (!connection->stream().is_readable()) return connection;
      discard(std::move(connection));
    }
  }
  return nullptr;
}

bool UpstreamPool::close_one_idle() {
  for (auto& [key, endpoint] : endpoints_) {
    if (endpoint->idle.is_empty()) continue;
    discard(unlink(static_cast<UpstreamConnection&>(*endpoint->idle.back())));
    return true;
  }
  return false;
}

net::Task<UpstreamPool::Obtained> UpstreamPool::obtain(EndpointPool& endpoint, net::Scope& scope) {
  auto pending = cluster_limits_->try_pending();
  if (!pending) co_return Obtained{nullptr, Refusal{.reason = Reason::kOverflow}};
  const bool first_come = promised_ == 0 && waiting_.is_empty();
  if (first_come) {
    if (auto slot = cluster_limits_->try_connection()) {
      co_return co_await open(endpoint, std::move(slot), scope);
    }
    // A connection that idles to another endpoint gives its place up.
    if (close_one_idle()) {
      if (auto slot = cluster_limits_->retry_connection()) {
        co_return co_await open(endpoint, std::move(slot), scope);
      }
    }
  }
  cluster::Limits::Slot waits;
  if (shared_) waits = cluster_limits_->wait();
  while (true) {
    net::Scope slice(scope);
    if (shared_) slice.expires_after(kShareInterval);
    auto turn = waiting_.wait(slice);
    (void)co_await turn;
    if (turn.was_notified()) --promised_;
    if (scope.is_cancelled()) {
      if (turn.was_notified()) freed();  // for the next in line
      co_return Obtained{nullptr, ended(*scope.cancelled())};
    }
    if (auto connection = take_any_idle()) co_return Obtained{std::move(connection), {}};
    if (auto slot = cluster_limits_->retry_connection()) {
      co_return co_await open(endpoint, std::move(slot), scope);
    }
  }
}

net::Task<UpstreamPool::Obtained> UpstreamPool::open(EndpointPool& endpoint,
                                                     cluster::Limits::Slot slot,
                                                     net::Scope& parent) {
  const SocketAddress address = endpoint.endpoint->address();
  const std::uint32_t generation = generation_;
  const auto& pool = cluster_->config().policy.pool;
  const auto failed = [&](Error error) {
    slot.reset();
    freed();
    return Obtained{nullptr, Refusal{.reason = Reason::kConnectFailed, .cause = std::move(error)}};
  };
  if (is_forbidden(address.ip, proxy_limits_.allow_loopback_endpoints)) {
    co_return failed({Errc::permission,
                      "endpoint " + address.to_string() + " is loopback, link-local or multicast"});
  }
  auto socket = co_await (address.ip.is_v4() ? v4_ : v6_).take(parent);
  if (!socket) {
    if (parent.is_cancelled()) {
      slot.reset();
      freed();
      co_return Obtained{nullptr, ended(*parent.cancelled())};
    }
    co_return failed(std::move(socket).error());
  }
  const int fd = socket.value().get();
  if (auto set = net::set_no_delay(fd); !set) co_return failed(std::move(set).error());
  if (pool.tcp_keepalive) set_keepalive(fd, *pool.tcp_keepalive);
  net::Scope scope(parent);
  scope.expires_after(pool.connect_timeout);
  auto stream = co_await net::connect(reactor_, std::move(socket).value(), address, scope);
  if (!stream) {
    if (parent.is_cancelled()) {
      slot.reset();
      freed();
      co_return Obtained{nullptr, ended(*parent.cancelled())};
    }
    if (stream.error().code == Errc::timed_out) {
      cluster_->counters().upstream_cx_connect_timeout.add();
    }
    // Refused by the kernel's policy for this client: the endpoint is not to blame.
    const bool endpoint_failed = stream.error().code != Errc::permission;
    auto result = failed(std::move(stream).error());
    result.refusal->endpoint_failed = endpoint_failed;
    co_return result;
  }
  auto connection = std::make_unique<UpstreamConnection>(endpoint, std::move(stream).value(),
                                                         std::move(slot), reactor_.now());
  connection->generation_ = generation;
  co_return Obtained{std::move(connection), {}};
}

// A place or an idle connection is there for the first in line.
void UpstreamPool::freed() {
  if (waiting_.notify_one(reactor_)) ++promised_;
}

void UpstreamPool::put_back(UpstreamConnectionPtr connection, bool keep_alive) {
  if ((!keep_alive || connection->is_used_up_) && !retire_scope_.is_cancelled()) {
    return retiring_.spawn(retire(std::move(connection), First::kServer));
  }
  EndpointPool& home = connection->home();
  const auto& policy = cluster_->config().policy.pool;
  const auto now = reactor_.now();
  const bool too_old = policy.max_connection_duration &&
                       now - connection->opened_ >= *policy.max_connection_duration;
  const bool given_up = shared_ && waiting_.is_empty() && cluster_limits_->someone_waits();
  if (!keep_alive || too_old || given_up || connection->generation_ != generation_ ||
      home.endpoint->is_removed() || connection->stream().is_readable()) {
    return discard(std::move(connection));
  }
  --home.in_use;
  UpstreamConnection* idle = connection.release();
  // The last used in front: its caches are warm, and those not needed age at the back.
  net::ListNode others;
  others.splice_back(home.idle);
  home.idle.push_back(*idle);
  home.idle.splice_back(others);
  idle->watch_.join(retire_scope_);
  idle->stream_->wait_readable(idle->watch_);
  auto until = now + policy.idle_timeout;
  if (policy.max_connection_duration) {
    until = std::min(until, idle->opened_ + *policy.max_connection_duration);
  }
  reactor_.timers().arm(idle->expiry_, until);
  freed();
}

bool UpstreamPool::has_few_connections() const {
  return cluster_->config().policy.pool.max_connections != config::ConnectionPool::kUnlimited &&
         cluster_->config().policy.pool.max_connections != 0;
}

void UpstreamPool::discard(UpstreamConnectionPtr connection) {
  if (!connection) return;
  // Where connections are counted the server must have seen the end of this one before it can see
  // the next: its place is free when the server ended its side too.
  if (has_few_connections() && !connection->stream_->is_broken() && !retire_scope_.is_cancelled()) {
    return retiring_.spawn(retire(std::move(connection), First::kWe));
  }
  --connection->home_.in_use;
  connection.reset();
  freed();
}

net::Task<> UpstreamPool::retire(UpstreamConnectionPtr connection, First ends) {
  net::Stream& stream = connection->stream();
  bool ended = false;
  if (ends == First::kServer) {
    net::Scope scope(retire_scope_);
    scope.expires_after(kServerEnds);
    ended = co_await wait_for_end(stream, scope);
  }
  if (!ended) {
    net::Scope scope(retire_scope_);
    scope.expires_after(kRetire);
    stream.shutdown_write();
    (void)co_await wait_for_end(stream, scope);
  }
  --connection->home_.in_use;
  connection.reset();
  freed();
}

void UpstreamPool::close_idle_of(EndpointPool& endpoint) {
  while (!endpoint.idle.is_empty()) {
    discard(unlink(static_cast<UpstreamConnection&>(*endpoint.idle.front())));
  }
}

void UpstreamPool::close_idle() {
  for (auto& [key, endpoint] : endpoints_) close_idle_of(*endpoint);
}

void UpstreamPool::reopen() {
  ++generation_;
  close_idle();
}

void UpstreamPool::prune() {
  std::erase_if(endpoints_, [&](auto& entry) {
    EndpointPool& endpoint = *entry.second;
    if (!endpoint.endpoint->is_removed()) return false;
    close_idle_of(endpoint);
    return endpoint.in_use == 0 && users_ == 0;
  });
}

void UpstreamPool::share() {
  if (cluster_limits_->someone_waits() && waiting_.is_empty()) close_one_idle();
}

std::size_t UpstreamPool::idle_count() const {
  std::size_t count = 0;
  for (const auto& [key, endpoint] : endpoints_) {
    for (auto* node = endpoint->idle.front(); node != &endpoint->idle; node = node->next()) ++count;
  }
  return count;
}

}  // namespace mesh::proxy
