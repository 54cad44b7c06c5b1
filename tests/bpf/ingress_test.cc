// The server's end, live: whoever connects, the program in its namespace judges. And what becomes
// of open connections when policy changes: those of a known direction (IngressTest, EgressTest),
// then those that nobody wrote down, which may be either end (Unrecorded*).
#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/bpf.h>  // BPF_TCP_*
#include <linux/tcp.h>
#include <poll.h>

#include <atomic>
#include <thread>

#include "tests/support/accepts_once.h"
#include "tests/support/datagrams.h"
#include "tests/support/datapath_fixture.h"
#include "tests/support/eventually.h"

namespace mesh::test {
namespace {

constexpr datapath::WorkloadId kServer = 8;
constexpr datapath::ClassId kFriend = 71;

// The client is not enrolled: nothing but the server's own program stands in its way.
class IngressTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    state_.workloads.erase(kApp);
    state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
    state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("10.9.0.3"), ip("fd09::2")};
    accept_on_both_servers();
    six_ = server_->listen("[fd09::2]:8080");
  }
  void serves_by(datapath::SetId set) { state_.workloads[kServer].ingress = set; }
  int stranger(const std::string& to) {
    return in_child(&*elsewhere_, &*app_, [&] { return try_connect(to); });
  }

  UniqueFd six_;
};

TEST_F(IngressTest, WithoutPolicyEveryoneMayCome) {
  apply_all();
  EXPECT_EQ(stranger("10.9.0.2:8080"), 0);
  EXPECT_EQ(stranger("[fd09::2]:8080"), 0);
}

TEST_F(IngressTest, AClientThatIsNotEnrolledIsRefusedAtOnce) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  apply_all();
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(stranger("[fd09::2]:8080"), kRefused);
  EXPECT_FALSE(accept_within(first_.get(), 0));
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[52], 2);
  EXPECT_EQ(count("arrivals_denied_policy"), 2);
}

TEST_F(IngressTest, KnowsAPeerByItsAddressAndJudgesTheServersPort) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  verdict(5, 8080, true, 51, kFriend);
  state_.peers[ip("10.9.0.1")] = {kFriend, 0};
  apply_all();
  UniqueFd other = server_->listen("10.9.0.2:8081");
  EXPECT_EQ(stranger("10.9.0.2:8080"), 0);
  EXPECT_EQ(stranger("10.9.0.2:8081"), kRefused);
  EXPECT_EQ(stranger("[fd09::2]:8080"), kRefused) << "another address of the client";
  EXPECT_EQ(must(datapath_->counters()).allowed_by_policy[51], 1);
}

TEST_F(IngressTest, KnowsStrangersByTheirBlock) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  verdict(5, 0, true, 53, kFriend);
  state_.blocks[IpBlock::parse("10.9.0.0/24").value()] = kFriend;
  apply_all();
  EXPECT_EQ(stranger("10.9.0.2:8080"), 0);
  state_.blocks[IpBlock::parse("10.9.0.1/32").value()] = 0;
  apply_all();
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
}

TEST_F(IngressTest, TheWidestBlockOfIpv6HasNoIpv4StrangersInIt) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  verdict(5, 0, true, 53, kFriend);
  state_.blocks[IpBlock::parse("::/0").value()] = kFriend;
  state_.blocks[IpBlock::parse("0.0.0.0/0").value()] = 0;
  apply_all();
  EXPECT_EQ(stranger("[fd09::2]:8080"), 0);
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
}

TEST_F(IngressTest, TheServerMayAlwaysTalkToItself) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  apply_all();
  UniqueFd lo = server_->listen("127.0.0.1:8082");
  for (const char* to : {"10.9.0.2:8080", "10.9.0.3:8080", "[fd09::2]:8080", "127.0.0.1:8082"})
    EXPECT_EQ(in_child(&*elsewhere_, &*server_, [&] { return try_connect(to); }), 0) << to;
}

// The gateway has its host's address, which everybody on the host has.
TEST_F(IngressTest, KnowsTheConnectionsOfTheGatewayFromThoseOfItsHost) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  verdict(5, 0, true, 51);
  state_.workloads[1] = workload(1, *app_, "");
  has_set("10.9.0.2", 5);
  apply_all();
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), 0);
  EXPECT_TRUE(accept_within(first_.get()));
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
  first_.reset();
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), kRefused) << "nobody listens";
  for (const auto deadline = now_ns() + 30'000'000'000; entries_of("um_clients") != 0;) {
    if (now_ns() > deadline) break;
    ::poll(nullptr, 0, 5);
  }
  EXPECT_EQ(entries_of("um_clients"), 0) << "closed ones are forgotten";
}

// A connection that stays open: its error once it has ended, 0 while it has not.
struct Open {
  explicit Open(const NetNs& ns, const std::string& to)
      : fd(ns.run([&] { return UniqueFd(dial(to, AF_INET, 5000)); })) {}
  int error(int patience_ms) const {
    pollfd end{fd.get(), POLLIN, 0};
    if (::poll(&end, 1, patience_ms) == 0) return 0;
    char byte;
    return ::recv(fd.get(), &byte, 1, MSG_DONTWAIT) < 0 ? errno : -1;
  }
  UniqueFd fd;
};

TEST_F(IngressTest, EndsTheConnectionsThatANewPolicyForbidsAndNoOthers) {
  elsewhere_->enter();  // a stranger, not the mesh
  apply_all();
  Open first(*app_, "10.9.0.2:8080"), second(*app_, "10.9.0.3:8080");
  ASSERT_GE(first.fd.get(), 0);
  UniqueFd other_port = server_->listen("10.9.0.2:8081");
  Open other(*app_, "10.9.0.2:8081");
  serves_by(5);
  verdict(5, 0, true, 51, 0);
  verdict(5, 8080, false, 52, 0);
  apply_all();
  EXPECT_EQ(first.error(0), 0) << "only when it is looked for";
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(first.error(30'000), ECONNRESET);
  EXPECT_EQ(second.error(30'000), ECONNRESET);
  EXPECT_EQ(other.error(0), 0);
  EXPECT_EQ(count("connections_ended_by_policy"), 2);
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(other.error(0), 0);
  EXPECT_EQ(count("connections_ended_by_policy"), 2);
}

TEST_F(IngressTest, EndsTheClientsEndWhereTheServerIsNotEnrolled) {
  elsewhere_->enter();
  state_.workloads.erase(kServer);
  state_.workloads[kApp] = workload(kApp, *app_, app_group_->path());
  state_.workloads[kApp].addresses = {ip("10.9.0.1"), ip("fd09::1")};
  apply_all();
  Open forbidden(*app_, "10.9.0.2:8080"), fine(*app_, "10.9.0.3:8080");
  has_set("10.9.0.2", 5);
  verdict(5, 0, false, 52, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_NE(forbidden.error(30'000), 0);
  EXPECT_EQ(fine.error(0), 0);
  state_.workloads[kApp].egress = 6;
  verdict(6, 0, false, 53, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_NE(fine.error(30'000), 0);
}

UniqueFd bound(const std::string& to) {
  UniqueFd fd = tcp_socket_for(to);
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  const RawAddress raw = raw_address(at(to), family_of(at(to)));
  if (::bind(fd.get(), raw.get(), raw.size) != 0) fixture_failed("bind " + to);
  return fd;
}

// Whether a connection ends, with an error, in time.
bool ends(const UniqueFd& fd) {
  pollfd end{fd.get(), POLLIN, 0};
  char byte;
  return ::poll(&end, 1, 60'000) == 1 && ::recv(fd.get(), &byte, 1, MSG_DONTWAIT) < 0;
}

// The client is enrolled, and the server not.
class EgressTest : public IngressTest {
 protected:
  void SetUp() override {
    IngressTest::SetUp();
    if (IsSkipped()) return;
    state_.workloads.erase(kServer);
    state_.workloads[kApp] = workload(kApp, *app_, app_group_->path());
    state_.workloads[kApp].addresses = {ip("10.9.0.1")};
    verdict(6, 0, false, 61, 0);
    apply_all();
  }
  // From now on it may connect to nobody.
  void revoke() {
    state_.workloads[kApp].egress = 6;
    apply_all();
    must(datapath_->end_forbidden(state_));
  }
};

// Its port is a listener's, too, which has another address.
TEST_F(EgressTest, WhoConnectsFromAPortWhereItListensIsAClient) {
  // The second one's connect no program saw.
  for (const Cgroup* group : {&*app_group_, &*elsewhere_}) {
    state_.workloads[kApp].egress = 0;
    apply_all();
    const std::uint64_t before = count("connections_ended_by_policy");
    Shared<std::atomic<int>> step;
    Child client(group, &*app_, [&] {
      UniqueFd listener = bound("127.0.0.1:40000"), fd = bound("10.9.0.1:40000");
      if (::listen(listener.get(), 1) != 0 || connect_socket(fd.get(), "10.9.0.2:8080") != 0)
        return;
      *step = 1;
      *step = ends(fd) ? 2 : 3;
    });
    ASSERT_TRUE(eventually([&] { return *step == 1; }));
    revoke();
    EXPECT_EQ(count("connections_ended_by_policy"), before + 1);
    if (count("connections_ended_by_policy") == before) continue;
    client.wait();
    EXPECT_EQ(*step, 2);
  }
}

// By what is left to go by, a listener at its own address and port, it would be a server.
TEST_F(EgressTest, WhoListensWhereItConnectsFromIsAClientAlsoWhereTheMapOfConnectionsIsFull) {
  const UniqueFd connections = map("um_connections");
  std::vector<std::uint64_t> keys(65536);
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = ~std::uint64_t{i};
  std::vector<um_connection> nobodys(keys.size());
  auto filled = static_cast<std::uint32_t>(keys.size());
  ASSERT_EQ(
      ::bpf_map_update_batch(connections.get(), keys.data(), nobodys.data(), &filled, nullptr), 0);
  Shared<std::atomic<int>> step;
  Child client(&*app_group_, &*app_, [&] {
    const auto shared = [] {
      UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const int on = 1;
      ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
      sockaddr_in own{};
      own.sin_family = AF_INET;
      own.sin_port = htons(40000);
      ::inet_pton(AF_INET, "10.9.0.1", &own.sin_addr);
      if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&own), sizeof own) != 0) fd.reset();
      return fd;
    };
    UniqueFd listener = shared(), fd = shared();
    if (!listener || !fd || ::listen(listener.get(), 1) != 0 ||
        connect_socket(fd.get(), "10.9.0.2:8080") != 0)
      return;
    *step = 1;
    *step = ends(fd) ? 2 : 3;
  });
  ASSERT_TRUE(eventually([&] { return *step == 1; }));
  EXPECT_EQ(count("connections_unrecorded"), 1);
  revoke();
  ASSERT_EQ(count("connections_ended_by_policy"), 1);
  client.wait();
  EXPECT_EQ(*step, 2);
}

// To the kernel this end is as one that accepted.
TEST_F(EgressTest, WhoConnectsWhileTheOtherEndDoesIsAClient) {
  server_->command("ip link set veth0 address 02:00:00:00:00:02");
  const auto server_is_at = [&](const char* mac) {
    app_->command(std::string("ip neigh replace 10.9.0.2 dev veth0 nud permanent lladdr ") + mac);
  };
  server_is_at("02:00:00:00:00:99");  // the SYN does not arrive, so it is sent again
  Shared<std::atomic<int>> step;
  Child client(&*app_group_, &*app_, [&] {
    UniqueFd fd = bound("10.9.0.1:40001");
    ::fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    if (connect_socket(fd.get(), "10.9.0.2:40002") != EINPROGRESS) return;
    *step = 1;
    pollfd made{fd.get(), POLLOUT, 0};
    if (::poll(&made, 1, 60'000) != 1 || ::send(fd.get(), "x", 1, MSG_NOSIGNAL) != 1) return;
    *step = 2;
    *step = ends(fd) ? 3 : 4;
  });
  ASSERT_TRUE(eventually([&] { return *step == 1; }));
  Shared<std::atomic<int>> server_step;
  Child server(&*elsewhere_, &*server_, [&] {
    UniqueFd fd = bound("10.9.0.2:40002");
    ::fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    if (connect_socket(fd.get(), "10.9.0.1:40001") != EINPROGRESS) return;
    *server_step = 1;
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return *server_step == 1; }));
  server_is_at("02:00:00:00:00:02");
  ASSERT_TRUE(eventually([&] { return *step == 2; }));
  revoke();
  ASSERT_EQ(count("connections_ended_by_policy"), 1);
  client.wait();
  EXPECT_EQ(*step, 3);
}

TEST_F(IngressTest, WhoAcceptedAndListensNoMoreIsAServer) {
  serves_by(5);
  verdict(5, 0, true, 51, 0);
  state_.workloads[kServer].egress = 6;
  verdict(6, 0, false, 61, 0);
  apply_all();
  const AcceptsOnce server(*server_group_, *server_, "10.9.0.2:8090");
  elsewhere_->enter();
  Open client(*app_, "10.9.0.2:8090");
  ASSERT_TRUE(server.listens_no_more());
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 0);
  verdict(5, 0, false, 52, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
  EXPECT_EQ(client.error(30'000), ECONNRESET);
}

// Nothing was written down of any of these.
class UnrecordedTest : public IngressTest {
 protected:
  // What it has open to its database, from a port that the kernel chose, no such policy speaks of.
  void from_now_on_nobody_may_come() {
    serves_by(5);
    state_.sets.clear();
    verdict(5, 0, false, 52, 0);
    apply_all();
    must(datapath_->end_forbidden(state_));
  }
};

TEST_F(UnrecordedTest, WhoAcceptedBeforeItsEnrolmentAndListensNoMoreIsAServer) {
  const datapath::EnrolledWorkload enrolled = state_.workloads.at(kServer);
  state_.workloads.erase(kServer);
  apply_all();
  elsewhere_->enter();
  const UniqueFd database = app_->listen("10.9.0.1:5432");
  const Open of_database(*server_, "10.9.0.1:5432");
  const AcceptsOnce server(*server_group_, *server_, "10.9.0.2:8090");
  Open client(*app_, "10.9.0.2:8090");
  ASSERT_TRUE(server.listens_no_more());
  state_.workloads[kServer] = enrolled;
  serves_by(5);
  verdict(5, 0, true, 51, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 0);
  from_now_on_nobody_may_come();
  EXPECT_EQ(client.error(30'000), ECONNRESET);
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
  EXPECT_EQ(of_database.error(0), 0);
}

TEST_F(UnrecordedTest, WhoAcceptedInAnotherGroupAndListensNoMoreIsAServer) {
  apply_all();
  const AcceptsOnce server(*elsewhere_, *server_, "10.9.0.2:8090");
  elsewhere_->enter();
  const UniqueFd database = app_->listen("10.9.0.1:5432");
  const Open of_database(*server_, "10.9.0.1:5432");
  Open client(*app_, "10.9.0.2:8090");
  ASSERT_TRUE(server.listens_no_more());
  ASSERT_EQ(entries_of("um_connections"), 0);
  from_now_on_nobody_may_come();
  EXPECT_EQ(client.error(30'000), ECONNRESET);
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
  EXPECT_EQ(of_database.error(0), 0);
}

// Connections that the workload has, of which nobody wrote anything down: one that it made, one
// that it accepted, at a port that the kernel gives to clients, where it listens no more.
class UnrecordedPairTest : public UnrecordedTest {
 protected:
  void have(const std::string& database, const std::string& server, const char* from = nullptr) {
    apply_all();
    elsewhere_->enter();
    {
      const UniqueFd listener = app_->listen(database);
      made_ = server_->run([&] { return connected(database, from); });
      others_[0] = accept_within(listener.get());
    }
    {
      const UniqueFd listener = server_->listen(server);
      others_[1] = app_->run([&] { return connected(server, nullptr); });
      accepted_ = accept_within(listener.get());
    }
    for (const UniqueFd* fd : all()) {
      ASSERT_TRUE(*fd);
      ASSERT_EQ(::fcntl(fd->get(), F_SETFL, O_NONBLOCK), 0);
    }
    ASSERT_EQ(entries_of("um_connections"), 0);
  }
  std::vector<const UniqueFd*> own() const { return {&made_, &accepted_}; }
  std::vector<const UniqueFd*> all() const {
    return {&made_, &accepted_, &others_[0], &others_[1]};
  }
  static tcp_info info_of(const UniqueFd& fd) {
    tcp_info info{};
    socklen_t size = sizeof info;
    if (::getsockopt(fd.get(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
      fixture_failed("TCP_INFO");
    return info;
  }
  // As much as there is room for, as nobody reads.
  static void fill(const UniqueFd& fd) {
    const std::string some(65536, 'x');
    const auto is_full = [&] {
      while (::send(fd.get(), some.data(), some.size(), MSG_NOSIGNAL) > 0) continue;
      return info_of(fd).tcpi_notsent_bytes != 0;
    };
    ASSERT_TRUE(eventually(is_full));
  }
  void what_is_sent_is_lost() const {
    server_->command("ip neigh replace 10.9.0.1 dev veth0 nud permanent lladdr 02:00:00:00:00:99");
  }
  static bool has_ended(const UniqueFd& fd) {
    pollfd end{fd.get(), 0, 0};
    return ::poll(&end, 1, 0) == 1 && (end.revents & POLLERR) != 0;
  }
  void expect_that_only_what_came_ends() {
    from_now_on_nobody_may_come();
    EXPECT_TRUE(has_ended(accepted_));
    EXPECT_FALSE(has_ended(made_));
    EXPECT_EQ(count("connections_ended_by_policy"), 1);
  }

  UniqueFd made_, accepted_, others_[2];

 private:
  static UniqueFd connected(const std::string& to, const char* from) {
    UniqueFd fd = from ? bound(from) : tcp_socket_for(to);
    if (connect_socket(fd.get(), to) != 0) fixture_failed("connect to " + to);
    return fd;
  }
};

TEST_F(UnrecordedPairTest, WhoConnectedIsNoServer) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, WhoConnectedIsNoServerByIpv6) {
  have("[fd09::1]:5432", "[fd09::2]:40010");
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, WhoConnectedFromAServersPortIsNoServer) {
  have("10.9.0.1:5432", "10.9.0.2:40010", "10.9.0.2:8070");
  const UniqueFd listener = server_->listen("10.9.0.3:8070");
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, WhoStillConnectsIsNoServer) {
  server_->command("ip neigh replace 10.9.0.99 dev veth0 nud permanent lladdr 02:00:00:00:00:99");
  have("10.9.0.1:5432", "10.9.0.2:40010");
  const UniqueFd connects = server_->run([] {
    UniqueFd fd = tcp_socket_for("10.9.0.99:1");
    ::fcntl(fd.get(), F_SETFL, O_NONBLOCK);
    return connect_socket(fd.get(), "10.9.0.99:1") == EINPROGRESS ? std::move(fd) : UniqueFd();
  });
  ASSERT_TRUE(connects);
  expect_that_only_what_came_ends();
  EXPECT_FALSE(has_ended(connects));
}

// There is no SYN to count before there is data.
TEST_F(UnrecordedPairTest, WhoConnectsWithItsFirstDataIsNoServer) {
  app_->command("sysctl -qw net.ipv4.tcp_fastopen=3");
  have("10.9.0.1:5432", "10.9.0.2:40010");
  const UniqueFd listener = app_->listen("10.9.0.1:5433");
  const int queue = 5;
  ASSERT_EQ(::setsockopt(listener.get(), IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof queue), 0);
  const auto connected = [&] {
    return server_->run([] {
      UniqueFd fd = tcp_socket_for("10.9.0.1:5433");
      const int on = 1;
      ::setsockopt(fd.get(), IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on);
      return connect_socket(fd.get(), "10.9.0.1:5433") == 0 ? std::move(fd) : UniqueFd();
    });
  };
  const UniqueFd first = connected();  // gets the cookie that the others have
  ASSERT_TRUE(first);
  ASSERT_TRUE(eventually([&] { return info_of(first).tcpi_state == BPF_TCP_ESTABLISHED; }));
  const UniqueFd connects = connected();
  ASSERT_TRUE(connects);
  ASSERT_EQ(info_of(connects).tcpi_state, BPF_TCP_SYN_SENT);
  expect_that_only_what_came_ends();
  EXPECT_FALSE(has_ended(connects));
  EXPECT_EQ(::send(connects.get(), "x", 1, MSG_NOSIGNAL), 1);
}

TEST_F(UnrecordedPairTest, AlsoWithDataThatNobodyReads) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  for (const UniqueFd* fd : all()) fill(*fd);
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, AlsoWithAFinThatWaitsBehindData) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  for (const UniqueFd* fd : all()) fill(*fd);
  for (const UniqueFd* fd : all()) ASSERT_EQ(::shutdown(fd->get(), SHUT_WR), 0);
  for (const UniqueFd* fd : own()) ASSERT_EQ(info_of(*fd).tcpi_state, BPF_TCP_FIN_WAIT1);
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, AlsoHalfClosed) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  for (const UniqueFd* fd : own()) {
    ASSERT_EQ(::send(fd->get(), "x", 1, MSG_NOSIGNAL), 1);
    ASSERT_EQ(::shutdown(fd->get(), SHUT_WR), 0);
    ASSERT_TRUE(eventually([&] { return info_of(*fd).tcpi_state == BPF_TCP_FIN_WAIT2; }));
  }
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, AlsoHalfClosedByTheOther) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  for (const UniqueFd& fd : others_) ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  for (const UniqueFd* fd : own()) {
    ASSERT_TRUE(eventually([&] { return info_of(*fd).tcpi_state == BPF_TCP_CLOSE_WAIT; }));
    ASSERT_EQ(::send(fd->get(), "x", 1, MSG_NOSIGNAL), 1);
  }
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, AlsoWhatIsSentAgainAndAgain) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  for (const UniqueFd& fd : others_) ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  for (const UniqueFd* fd : own())
    ASSERT_TRUE(eventually([&] { return info_of(*fd).tcpi_state == BPF_TCP_CLOSE_WAIT; }));
  what_is_sent_is_lost();
  for (const UniqueFd* fd : own()) {
    ASSERT_EQ(::send(fd->get(), "hello", 5, MSG_NOSIGNAL), 5);
    ASSERT_EQ(::shutdown(fd->get(), SHUT_WR), 0);
  }
  for (const UniqueFd* fd : own()) {
    ASSERT_TRUE(eventually([&] { return info_of(*fd).tcpi_bytes_retrans > 5; }));
    ASSERT_EQ(info_of(*fd).tcpi_state, BPF_TCP_LAST_ACK);
  }
  expect_that_only_what_came_ends();
}

TEST_F(UnrecordedPairTest, AlsoWhatWasSentAgain) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  what_is_sent_is_lost();
  for (const UniqueFd* fd : own()) ASSERT_EQ(::send(fd->get(), "hello", 5, MSG_NOSIGNAL), 5);
  for (const UniqueFd* fd : own())
    ASSERT_TRUE(eventually([&] { return info_of(*fd).tcpi_bytes_retrans >= 5; }));
  server_->command("ip neigh del 10.9.0.1 dev veth0");
  for (const UniqueFd* fd : own())
    ASSERT_TRUE(eventually([&] { return info_of(*fd).tcpi_unacked == 0; }));
  expect_that_only_what_came_ends();
}

// The kernel keeps no counts of it, and it carries nothing any more.
TEST_F(UnrecordedPairTest, WhatIsClosedAndNotYetByTheOtherIsLeftAlone) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  made_.reset();
  ASSERT_TRUE(eventually([&] { return info_of(others_[0]).tcpi_state == BPF_TCP_CLOSE_WAIT; }));
  from_now_on_nobody_may_come();
  EXPECT_TRUE(has_ended(accepted_));
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
}

// Any process can do that: without a way to the other end, what it sends is counted as sent, and
// again when it leaves. So to look as who accepted is worth nothing.
TEST_F(UnrecordedPairTest, WhoLooksAsIfItHadAcceptedIsJudgedBothWays) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  server_->command("ip route add prohibit 10.9.0.1/32");
  ASSERT_EQ(::send(made_.get(), "x", 1, MSG_NOSIGNAL), 1);
  ASSERT_EQ(info_of(made_).tcpi_bytes_sent, 1);
  server_->command("ip route del prohibit 10.9.0.1/32");
  ASSERT_TRUE(eventually([&] { return info_of(made_).tcpi_bytes_acked == 2; }));
  ASSERT_GT(info_of(made_).tcpi_bytes_sent, 1);
  state_.workloads[kServer].egress = 6;
  verdict(6, 0, false, 61, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_TRUE(has_ended(made_));
  EXPECT_TRUE(has_ended(accepted_));
}

// A socket's counts are none of what it accepts later.
TEST_F(UnrecordedPairTest, WhoListensOnASocketThatHadConnectedIsAServer) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  ASSERT_EQ(::send(made_.get(), "x", 1, MSG_NOSIGNAL), 1);
  sockaddr nobody{};
  nobody.sa_family = AF_UNSPEC;
  ASSERT_EQ(::connect(made_.get(), &nobody, sizeof nobody), 0);
  const RawAddress raw = raw_address(at("10.9.0.2:40011"), AF_INET);
  ASSERT_EQ(::bind(made_.get(), raw.get(), raw.size), 0);
  ASSERT_EQ(::listen(made_.get(), 1), 0);
  others_[0] = app_->run([] { return UniqueFd(dial("10.9.0.2:40011", AF_INET)); });
  const UniqueFd accepted = accept_within(made_.get());
  ASSERT_TRUE(accepted);
  from_now_on_nobody_may_come();
  EXPECT_TRUE(has_ended(accepted));
  EXPECT_EQ(count("connections_ended_by_policy"), 2);
}

TEST_F(UnrecordedTest, InAStrictWorkloadItMayGoOnIfBothWaysAreAllowed) {
  state_.workloads[kServer].strict = true;
  apply_all();
  const AcceptsOnce server(*elsewhere_, *server_, "10.9.0.2:40010");
  elsewhere_->enter();
  Open client(*app_, "10.9.0.2:40010");
  ASSERT_TRUE(server.listens_no_more());
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(client.error(0), 0);
  from_now_on_nobody_may_come();
  EXPECT_EQ(client.error(30'000), ECONNRESET) << "at a port that the kernel gives to clients, too";
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
}

// What nobody wrote down is older than its mode, or a stranger's.
TEST_F(UnrecordedPairTest, WhoBecomesStrictKeepsWhatWasWrittenDown) {
  have("10.9.0.1:5432", "10.9.0.2:40010");
  const UniqueFd database = app_->listen("10.9.0.1:5433");
  server_group_->enter();
  const Open written_down(*server_, "10.9.0.1:5433");
  elsewhere_->enter();
  ASSERT_EQ(entries_of("um_connections"), 1);
  state_.workloads[kServer].strict = true;
  from_now_on_nobody_may_come();
  EXPECT_TRUE(has_ended(made_));
  EXPECT_TRUE(has_ended(accepted_));
  EXPECT_EQ(count("connections_ended_by_policy"), 2);
  EXPECT_EQ(written_down.error(0), 0);
}

TEST_F(IngressTest, AWorkloadThatCannotBeLookedAtHoldsUpNoOther) {
  elsewhere_->enter();
  apply_all();
  Open client(*app_, "10.9.0.2:8080");
  ASSERT_GE(client.fd.get(), 0);
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  apply_all();
  const UniqueFd no_namespace(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  State state = state_;
  datapath::EnrolledWorkload& broken = state.workloads[kServer - 1] = state.workloads[kServer];
  broken.id = kServer - 1;
  broken.netns = no_namespace.get();
  EXPECT_TRUE(datapath_->end_forbidden(state).has_error());
  EXPECT_EQ(client.error(30'000), ECONNRESET);
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
}

// Peers are renumbered while others connect: nobody is judged as a stranger meanwhile.
TEST_F(IngressTest, AClassThatGetsAnotherNumberIsDeniedAllTheTime) {
  serves_by(5);
  struct Shared {
    std::atomic<std::uint64_t> tries, wrong;
  };
  void* page =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  auto* shared = new (page) Shared{};
  const auto denied_as = [&](datapath::ClassId peer) {
    state_.sets.clear();
    verdict(5, 0, true, 51, 0);
    verdict(5, 0, false, 52, peer);
    state_.peers[ip("10.9.0.1")] = {peer, 0};
    apply_all();
  };
  denied_as(100);
  Child client(&*elsewhere_, &*app_, [&] {
    for (;;) {
      if (try_connect("10.9.0.2:8080") == 0) ++shared->wrong;
      ++shared->tries;
    }
  });
  for (int i = 0; i < times(200) || shared->tries < static_cast<unsigned>(times(1000)); ++i)
    denied_as(static_cast<datapath::ClassId>(101 + i));
  client.kill();
  EXPECT_EQ(shared->wrong, 0);
  ::munmap(page, sizeof(Shared));
}

// Who it is was recorded at its SYN, what that means may have changed since.
TEST_F(IngressTest, AConnectionOfTheGatewayOutlivesItsNumber) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  verdict(5, 0, true, 51);
  state_.workloads[1] = workload(1, *app_, "");
  has_set("10.9.0.2", 5);
  apply_all();
  UniqueFd open = app_->run([&] { return tcp_socket_for("10.9.0.2:8080"); });
  ASSERT_EQ(connect_socket(open.get(), "10.9.0.2:8080"), 0);
  UniqueFd accepted = accept_within(first_.get());
  state_.workloads[1].class4 = 99;
  state_.sets.clear();
  verdict(5, 0, false, 52, 0);
  verdict(5, 0, true, 51, 99);
  apply_all();
  must(datapath_->end_forbidden(state_));
  ASSERT_EQ(::write(open.get(), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(accepted.get(), &byte, 1), 1);
  EXPECT_EQ(count("connections_ended_by_policy"), 0);
}

TEST_F(IngressTest, GoesOnWithoutItsOwnerAndIsReplacedInPlace) {
  serves_by(5);
  verdict(5, 0, false, 52, 0);
  apply_all();
  const bpf_link_info before = link_info("8/sk_lookup");
  datapath_.reset();
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
  open();
  apply_all();
  EXPECT_EQ(link_info("8/sk_lookup").id, before.id);
  EXPECT_NE(link_info("8/sk_lookup").prog_id, before.prog_id);
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
  state_.workloads.erase(kServer);
  apply_all();
  EXPECT_EQ(stranger("10.9.0.2:8080"), 0);
}

// As fast as changes are acknowledged, while clients connect: what began after the acknowledgement
// of a denial does not succeed before the next change.
TEST_F(IngressTest, NothingForbiddenSucceedsAfterAnAcknowledgement) {
  serves_by(5);
  verdict(5, 0, true, 51, 0);
  apply_all();
  // A full backlog would hold the client for a second each time.
  UniqueFd listening = server_->listen("10.9.0.2:8090", "", 4096);
  struct Shared {
    // Odd: denied and acknowledged. Who saw the same odd number before and after was denied.
    std::atomic<std::uint64_t> epoch, wrong, within;
  };
  void* page =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  auto* shared = new (page) Shared{};
  Child client(&*elsewhere_, &*app_, [&] {
    for (;;) {
      const std::uint64_t before = shared->epoch;
      const int error = try_connect("10.9.0.2:8090");
      if (before % 2 == 0 || shared->epoch != before) continue;
      if (error == 0) ++shared->wrong;
      ++shared->within;
    }
  });
  std::atomic<bool> is_done{false};
  std::thread acceptor([&] {
    while (!is_done) (void)accept_within(listening.get(), 10);
  });
  for (int i = 0; i < times(40); ++i) {
    verdict(5, 0, false, 52, 0);
    apply_all();
    const std::uint64_t seen = shared->within;
    ++shared->epoch;
    ASSERT_TRUE(eventually([&] { return shared->within != seen; })) << "one attempt lies within";
    ++shared->epoch;
    verdict(5, 0, true, 51, 0);
    apply_all();
  }
  client.kill();
  is_done = true;
  acceptor.join();
  EXPECT_EQ(shared->wrong, 0);
  ::munmap(page, sizeof(Shared));
}

}  // namespace
}  // namespace mesh::test
