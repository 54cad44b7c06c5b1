#include "proxy/upstream.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

namespace mesh::proxy {
namespace {

using namespace std::chrono_literals;

// A pool of one connection, which another request has.
class UpstreamPoolTest : public testing::Test {
 protected:
  UpstreamPoolTest() {
    auto config = std::make_shared<config::Cluster>();
    config->name = "c";
    config->policy.pool.max_connections = 1;
    config->endpoints.push_back({.address = {IpAddress::v4(10, 77, 0, 1), 9080}});
    auto snapshot = std::make_shared<config::Snapshot>();
    snapshot->clusters.insert_or_assign("c", config);
    registry_.reconcile(*snapshot);
    clusters_.adopt(snapshot);
    auto cluster = clusters_.get(config, "default");
    pool_.emplace(reactor_, limits_, scope_, cluster, cluster->limits(1), stock_, stock_, false);
    Random random(1);
    endpoint_ = &pool_->at(cluster->pick(random));
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    server_.reset(ends[1]);
    auto stream = net::TcpStream::adopt(reactor_, UniqueFd(ends[0]));
    char byte = 0;
    (void)stream.value()->try_read({&byte, 1});  // known to be empty, as after a response
    connection_ = std::make_unique<UpstreamConnection>(
        *endpoint_, std::move(stream).value(), pool_->limits().try_connection(), reactor_.now());
  }
  ~UpstreamPoolTest() override {
    connection_.reset();
    net::Group last(reactor_);
    last.spawn(pool_->close());
    while (last.size() > 0) reactor_.run_once(10ms);
  }
  static net::Task<> obtain(UpstreamPool& pool, EndpointPool& endpoint, net::Scope& scope,
                            UpstreamPool::Obtained* into) {
    *into = co_await pool.obtain(endpoint, scope);
  }

  net::Reactor reactor_;
  net::Scope scope_{reactor_};
  Limits limits_;
  SocketStock stock_{reactor_, limits_, [](std::uint32_t) {}};
  cluster::Registry registry_;
  cluster::Clusters clusters_{registry_};
  std::optional<UpstreamPool> pool_;
  EndpointPool* endpoint_ = nullptr;
  UpstreamConnectionPtr connection_;
  UniqueFd server_;
};

TEST_F(UpstreamPoolTest, ThePlaceOfOneThatLeavesAsItsTurnComesIsNotLost) {
  net::Group waiting(reactor_);
  net::Scope leaves(scope_);
  UpstreamPool::Obtained none;
  waiting.spawn(obtain(*pool_, *endpoint_, leaves, &none));
  pool_->put_back(std::move(connection_), true);
  leaves.cancel(Errc::reset);
  while (waiting.size() > 0) reactor_.run_once(10ms);
  EXPECT_EQ(none.refusal->reason, Reason::kClientGone);
  connection_ = pool_->try_take(*endpoint_);
  EXPECT_TRUE(connection_);
}

TEST_F(UpstreamPoolTest, ThePlaceOfOneThatLeavesIsTheNextInLines) {
  net::Group waiting(reactor_);
  net::Scope leaves(scope_), stays(scope_);
  UpstreamPool::Obtained none, one;
  waiting.spawn(obtain(*pool_, *endpoint_, leaves, &none));
  waiting.spawn(obtain(*pool_, *endpoint_, stays, &one));
  pool_->put_back(std::move(connection_), true);
  leaves.cancel(Errc::reset);
  for (int turn = 0; turn < 100 && waiting.size() > 0; ++turn) reactor_.run_once(10ms);
  EXPECT_TRUE(one.connection);
  stays.cancel();
  while (waiting.size() > 0) reactor_.run_once(10ms);
  connection_ = std::move(one.connection);
}

}  // namespace
}  // namespace mesh::proxy
