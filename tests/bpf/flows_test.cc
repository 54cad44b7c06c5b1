// Records of connections that go past no proxy: at their end, while they live, and refused ones.
#include <gmock/gmock.h>
#include <netinet/tcp.h>

#include <algorithm>

#include "tests/support/datapath_fixture.h"
#include "tests/support/eventually.h"
#include "tests/support/missing_page.h"

namespace mesh::test {
namespace {

using datapath::Flow;

constexpr const char* kService = "10.78.0.2:70";
constexpr const char* kFirst = "10.9.0.2:8080";
constexpr datapath::WorkloadId kServer = 9;

bool write_all(int fd, std::size_t bytes) {
  const std::vector<char> data(65536, 'x');
  while (bytes != 0) {
    const ssize_t done = ::write(fd, data.data(), std::min(bytes, data.size()));
    if (done <= 0) return false;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}
bool read_all(int fd, std::size_t bytes) {
  std::vector<char> data(65536);
  while (bytes != 0) {
    const ssize_t done = ::read(fd, data.data(), std::min(bytes, data.size()));
    if (done <= 0) return false;
    bytes -= static_cast<std::size_t>(done);
  }
  return true;
}

class FlowsTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    accept_on_both_servers();
    state_.services[at(kService)] = balanced(2, {kFirst});
    apply_all();
  }
  // Waits: a connection is closed some time after its sockets are.
  std::vector<Flow> take(std::size_t count) {
    std::vector<Flow> flows;
    for (int i = 0; i < 500 && flows.size() < count; ++i) {
      for (Flow& flow : must(datapath_->take_flows())) flows.push_back(std::move(flow));
      if (flows.size() < count) ::usleep(10'000);
    }
    EXPECT_EQ(flows.size(), count);
    flows.resize(count);
    return flows;
  }
  // A connection of the application that sends, and then receives, so many bytes.
  void talk(const char* to, std::size_t sent, std::size_t received, bool client_first) {
    Child client(&*app_group_, &*app_, [&] {
      const UniqueFd fd(dial(to));
      char end = 0;
      if (fd.get() < 0 || !write_all(fd.get(), sent) || !read_all(fd.get(), received)) ::_exit(1);
      if (!client_first && ::read(fd.get(), &end, 1) != 0) ::_exit(2);
    });
    UniqueFd accepted = accept_within(first_.get());
    ASSERT_TRUE(accepted);
    ASSERT_TRUE(read_all(accepted.get(), sent));
    ASSERT_TRUE(write_all(accepted.get(), received));
    char end = 0;
    if (client_first) {
      ASSERT_EQ(::read(accepted.get(), &end, 1), 0);
    }
    accepted.reset();
    EXPECT_EQ(client.wait(), 0);
  }
};

TEST_F(FlowsTest, AConnectionIsReportedWhenItIsClosed) {
  has_set("10.9.0.2", 3);
  verdict(3, 0, true, 21);
  apply_all();
  const auto before = std::chrono::nanoseconds(now_ns());
  talk(kService, 1'000'000, 77, true);
  const Flow flow = take(1).front();
  EXPECT_EQ(flow.kind, Flow::Kind::kClosed);
  EXPECT_EQ(flow.workload, kApp);
  EXPECT_FALSE(flow.is_inbound);
  EXPECT_TRUE(flow.is_established);
  EXPECT_EQ(flow.service, at(kService));
  EXPECT_EQ(flow.remote, at(kFirst));
  ASSERT_TRUE(flow.local);
  EXPECT_EQ(flow.local->ip, ip("10.9.0.1"));
  EXPECT_EQ(flow.sent, 1'000'000);
  EXPECT_EQ(flow.received, 77);
  EXPECT_EQ(flow.policy, 21);
  EXPECT_GE(flow.started, before);
  EXPECT_GE(flow.ended, flow.started);
  EXPECT_EQ(entries_of("um_connections"), 0);
}

// A FIN and a SYN count as bytes to the kernel, and who closes first decides which.
TEST_F(FlowsTest, BytesAreExactWhoeverClosesFirst) {
  for (const bool client_first : {true, false})
    for (const std::size_t sent : {0U, 1U, 5000U})
      for (const std::size_t received : {0U, 1U, 70000U}) {
        talk(kFirst, sent, received, client_first);
        const Flow flow = take(1).front();
        EXPECT_EQ(flow.sent, sent) << client_first << " " << received;
        EXPECT_EQ(flow.received, received) << client_first << " " << sent;
      }
}

TEST_F(FlowsTest, BothEndsAreReportedWhereBothAreEnrolled) {
  state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
  apply_all();
  for (const bool client_first : {true, false}) {
    // Its listener is of the server's cgroup.
    Child server(&*server_group_, &*server_, [&] {
      const UniqueFd listener = server_->listen("10.9.0.2:8090");
      const UniqueFd accepted = accept_within(listener.get());
      char end = 0;
      if (!accepted || !read_all(accepted.get(), 300) || !write_all(accepted.get(), 20)) ::_exit(1);
      if (client_first && ::read(accepted.get(), &end, 1) != 0) ::_exit(2);
    });
    const int error = in_child(&*app_group_, &*app_, [&] {
      UniqueFd fd;
      for (int i = 0; i < 500 && !fd; ++i) {  // until it listens
        if (const int made = dial("10.9.0.2:8090"); made >= 0)
          fd.reset(made);
        else
          ::usleep(10'000);
      }
      char end = 0;
      if (!fd || !write_all(fd.get(), 300) || !read_all(fd.get(), 20)) return 1;
      return !client_first && ::read(fd.get(), &end, 1) != 0 ? 2 : 0;
    });
    EXPECT_EQ(error, 0);
    EXPECT_EQ(server.wait(), 0);
    int ends = 0;
    for (int i = 0; i < 500 && ends < 2; ++i) {
      for (const Flow& flow : must(datapath_->take_flows())) {
        if (!flow.is_established) continue;  // before it listened
        ++ends;
        EXPECT_EQ(flow.workload, flow.is_inbound ? kServer : kApp);
        EXPECT_EQ(flow.is_inbound ? flow.received : flow.sent, 300);
        EXPECT_EQ(flow.is_inbound ? flow.sent : flow.received, 20);
        EXPECT_EQ(flow.is_inbound ? flow.local : flow.remote, at("10.9.0.2:8090"));
      }
      ::usleep(10'000);
    }
    EXPECT_EQ(ends, 2);
  }
}

TEST_F(FlowsTest, WhatIsRefusedByTheServerWasNeverEstablished) {
  EXPECT_EQ(connect_from_app("10.9.0.2:1"), kRefused);
  const Flow flow = take(1).front();
  EXPECT_EQ(flow.kind, Flow::Kind::kClosed);
  EXPECT_FALSE(flow.is_established);
  EXPECT_EQ(flow.tcp_state, TCP_SYN_SENT);
  EXPECT_EQ(flow.sent, 0);
}

TEST_F(FlowsTest, ARefusalNamesItsReasonAndPolicyAndIsBounded) {
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 21);
  state_.services[at("10.78.0.3:70")] = balanced(3, {});
  apply_all();
  EXPECT_EQ(connect_from_app(kService), kRefused);
  EXPECT_EQ(connect_from_app("10.78.0.3:70"), kRefused);
  const std::vector<Flow> flows = take(2);
  EXPECT_EQ(flows[0].kind, Flow::Kind::kDenied);
  EXPECT_EQ(flows[0].workload, kApp);
  EXPECT_EQ(flows[0].service, at(kService));
  EXPECT_EQ(flows[0].remote, at(kFirst));
  EXPECT_EQ(flows[0].policy, 21);
  EXPECT_EQ(flows[0].reason, "connects_denied_policy");
  EXPECT_EQ(flows[1].reason, "connects_refused_no_endpoint");
  EXPECT_FALSE(flows[1].remote);
  const int tries = 3000;
  in_child(&*app_group_, &*app_, [&] {
    for (int i = 0; i < tries; ++i) (void)try_connect(kService);
    return 0;
  });
  const std::uint64_t reported = must(datapath_->take_flows()).size();
  EXPECT_EQ(reported + count("denials_unreported"), tries);
  EXPECT_GT(count("denials_unreported"), 0) << "3000 take no minute";
  EXPECT_EQ(count("connection_events_lost"), 0);
}

TEST_F(FlowsTest, AnArrivalThatIsDeniedIsReportedAtTheServer) {
  state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
  state_.workloads[kServer].ingress = 5;
  verdict(5, 0, false, 31, 0);
  apply_all();
  Cgroup stranger = Cgroup::create("stranger");
  EXPECT_EQ(in_child(&stranger, &*app_, [] { return try_connect(kFirst); }), kRefused);
  const Flow flow = take(1).front();
  EXPECT_EQ(flow.kind, Flow::Kind::kDenied);
  EXPECT_TRUE(flow.is_inbound);
  EXPECT_EQ(flow.workload, kServer);
  EXPECT_EQ(flow.local, at(kFirst));
  ASSERT_TRUE(flow.remote);
  EXPECT_EQ(flow.remote->ip, ip("10.9.0.1"));
  EXPECT_EQ(flow.policy, 31);
  EXPECT_EQ(flow.reason, "arrivals_denied_policy");
}

// What let a connection in is in the server's record, whoever the client is: one that is not
// enrolled has none of its own.
class LetInTest : public FlowsTest {
 protected:
  static constexpr datapath::SetId kSet = 5;
  static constexpr datapath::ClassId kFriend = 71;

  void SetUp() override {
    FlowsTest::SetUp();
    if (IsSkipped()) return;
    state_.workloads.erase(kApp);
    state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
    state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("10.9.0.3"), ip("fd09::2")};
    state_.workloads[kServer].ingress = kSet;
    verdict(kSet, 0, true, 21, 0);
    apply_all();
    server_group_->enter();  // whose listeners these are
    four_ = server_->listen("0.0.0.0:8090");
    six_ = server_->listen("[::]:8090");
    both_ = server_->run([] {
      UniqueFd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const RawAddress any = raw_address(at("[::]:8091"), AF_INET6);
      if (::bind(fd.get(), any.get(), any.size) != 0 || ::listen(fd.get(), 9) != 0) fd.reset();
      return fd;
    });
    elsewhere_->enter();  // a stranger, not the mesh
    ASSERT_TRUE(both_);
  }
  // By what the record says; it is what was counted, once.
  std::uint32_t let_in_by(const std::string& to, const UniqueFd& listener, const NetNs& from) {
    auto expected = must(datapath_->counters()).allowed_by_policy;
    UniqueFd client = from.run([&] { return UniqueFd(dial(to)); });
    UniqueFd accepted = accept_within(listener.get());
    EXPECT_TRUE(accepted) << to;
    const auto counted = must(datapath_->counters()).allowed_by_policy;
    accepted.reset();
    client.reset();
    const std::uint32_t policy = policy_of_record(to);
    if (policy != 0) ++expected[policy];
    EXPECT_EQ(counted, expected) << to;
    return policy;
  }
  std::uint32_t policy_of_record(const std::string& to) {
    const Flow flow = take(1).front();
    EXPECT_TRUE(flow.is_inbound && flow.is_established);
    EXPECT_EQ(flow.workload, kServer);
    EXPECT_EQ(flow.local, at(to));
    return flow.policy;
  }

  UniqueFd four_, six_, both_;
};

TEST_F(LetInTest, ByThePolicyOfItsPortAndClient) {
  verdict(kSet, 8091, true, 22, 0);
  verdict(kSet, 0, true, 23, kFriend);
  apply_all();
  EXPECT_EQ(let_in_by("10.9.0.2:8090", four_, *app_), 21);
  EXPECT_EQ(let_in_by("[fd09::2]:8090", six_, *app_), 21);
  EXPECT_EQ(let_in_by("10.9.0.3:8091", both_, *app_), 22) << "at a socket of IPv6";
  state_.peers[ip("10.9.0.1")] = {kFriend, 0};
  apply_all();
  EXPECT_EQ(let_in_by("10.9.0.2:8090", four_, *app_), 23);
  EXPECT_EQ(let_in_by("10.9.0.2:8091", both_, *app_), 23) << "at a socket of IPv6";
  EXPECT_EQ(let_in_by("[fd09::2]:8091", both_, *app_), 22) << "another address of the client";
}

TEST_F(LetInTest, ByNoneWhereNoPolicySelectsAndOfItself) {
  EXPECT_EQ(let_in_by("10.9.0.3:8090", four_, *server_), 0) << "by another of its addresses";
  state_.workloads[kServer].ingress = 0;
  apply_all();
  EXPECT_EQ(let_in_by("10.9.0.2:8090", four_, *app_), 0);
}

TEST_F(LetInTest, TheGatewayIsKnownFromItsHost) {
  state_.workloads[1] = workload(1, *app_, "");
  has_set("10.9.0.2", kSet);
  verdict(kSet, 0, true, 24);
  apply_all();
  mesh_group_->enter();
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8090"), 0);
  EXPECT_TRUE(accept_within(four_.get()));
  EXPECT_EQ(policy_of_record("10.9.0.2:8090"), 24);
  elsewhere_->enter();
  EXPECT_EQ(let_in_by("10.9.0.2:8090", four_, *app_), 21);
}

// The policy changes between the SYN and the end of the handshake.
TEST_F(LetInTest, NoDenialStandsForWhatLetItIn) {
  const int seconds = 60;
  ::setsockopt(four_.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
  for (const bool allowed : {false, true}) {
    verdict(kSet, 0, true, 21, 0);
    apply_all();
    const UniqueFd client = app_->run([] { return UniqueFd(dial("10.9.0.2:8090")); });
    verdict(kSet, 0, allowed, 25, 0);
    apply_all();
    ASSERT_TRUE(write_all(client.get(), 1));
    EXPECT_TRUE(accept_within(four_.get()));
    EXPECT_EQ(policy_of_record("10.9.0.2:8090"), allowed ? 25 : 0);
  }
  EXPECT_EQ(count("arrivals_denied_policy"), 0);
}

// What is being made has neither a socket nor a record yet, and is the server's end all the same.
class BeingLetInTest : public LetInTest {
 protected:
  void SetUp() override {
    LetInTest::SetUp();
    if (IsSkipped()) return;
    const int seconds = 60;
    ::setsockopt(four_.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
    state_.workloads[kServer].egress = 6;
    verdict(6, 0, false, 61, 0);
    apply_all();
    client_ = app_->run([] { return UniqueFd(dial("10.9.0.2:8090")); });
    ASSERT_TRUE(client_);
    ASSERT_EQ(entries_of("um_connections"), 0);
  }

  UniqueFd client_;
};

TEST_F(BeingLetInTest, StaysWhereNobodyMayBeAsked) {
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 0);
  ASSERT_TRUE(write_all(client_.get(), 1));
  const UniqueFd accepted = accept_within(four_.get());
  ASSERT_TRUE(accepted);
  EXPECT_TRUE(read_all(accepted.get(), 1));
}

TEST_F(BeingLetInTest, EndsWhereNobodyMayComeAnyMore) {
  verdict(kSet, 0, false, 25, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
  ASSERT_TRUE(write_all(client_.get(), 1));
  pollfd end{client_.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&end, 1, 30'000), 1);
  char byte = 0;
  EXPECT_EQ(::recv(client_.get(), &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_FALSE(accept_within(four_.get(), 0));
}

TEST_F(FlowsTest, WhatIsOpenIsListedWithWhatItSentSoFar) {
  Child client(&*app_group_, &*app_, [&] {
    const UniqueFd fd(dial(kService));
    if (!write_all(fd.get(), 4321)) ::_exit(1);
    ::pause();
  });
  UniqueFd accepted = accept_within(first_.get());
  ASSERT_TRUE(accepted && read_all(accepted.get(), 4321) && write_all(accepted.get(), 5));
  const std::vector<Flow> open = must(datapath_->open_flows(state_));
  ASSERT_EQ(open.size(), 1);
  EXPECT_EQ(open[0].kind, Flow::Kind::kOpen);
  EXPECT_EQ(open[0].service, at(kService));
  EXPECT_EQ(open[0].remote, at(kFirst));
  EXPECT_EQ(open[0].tcp_state, TCP_ESTABLISHED);
  EXPECT_EQ(open[0].sent, 4321);
  EXPECT_EQ(open[0].received, 5);
  EXPECT_GT(open[0].ended, open[0].started);
  client.kill();
  const Flow closed = take(1).front();
  EXPECT_EQ(closed.cookie, open[0].cookie);
  EXPECT_TRUE(must(datapath_->open_flows(state_)).empty());
}

TEST_F(FlowsTest, WhatIsSentAgainIsCounted) {
  int starts[2];
  ASSERT_EQ(::pipe2(starts, O_CLOEXEC), 0);
  const UniqueFd start(starts[0]), starter(starts[1]);
  Child client(&*app_group_, &*app_, [&] {
    const UniqueFd fd(dial(kService));
    char go = 0;
    if (::read(start.get(), &go, 1) != 1 || !write_all(fd.get(), 4321)) ::_exit(1);
    (void)::read(fd.get(), &go, 1);
  });
  UniqueFd accepted = accept_within(first_.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(must(datapath_->open_flows(state_)).at(0).retransmits, 0);
  server_->command("ip link set veth0 down");
  ASSERT_TRUE(write_all(starter.get(), 1));
  const bool again = test::eventually([&] {
    const auto open = must(datapath_->open_flows(state_));
    return open.size() == 1 && open[0].retransmits > 0;
  });
  server_->command("ip link set veth0 up");
  ASSERT_TRUE(again);
  ASSERT_TRUE(read_all(accepted.get(), 4321));
  accepted.reset();
  EXPECT_EQ(client.wait(), 0);
  EXPECT_GT(take(1).front().retransmits, 0);
}

// Nobody waits for it, and what is known of its connections stays.
TEST_F(FlowsTest, AWorkloadThatHoldsItsSocketIsLeftOut) {
  Child client(&*app_group_, &*app_, [&] {
    const UniqueFd fd(dial(kService));
    if (!write_all(fd.get(), 7)) ::_exit(1);
    const test::HeldSocket held(fd.get());
    ::pause();
  });
  UniqueFd accepted = accept_within(first_.get());
  ASSERT_TRUE(accepted && read_all(accepted.get(), 7));
  ASSERT_TRUE(test::eventually([&] { return must(datapath_->open_flows(state_)).empty(); }));
  EXPECT_TRUE(must(datapath_->open_flows(state_)).empty());
  EXPECT_EQ(entries_of("um_connections"), 1);
  client.kill();
  EXPECT_TRUE(test::eventually([&] { return entries_of("um_connections") == 0; }));
}

TEST_F(FlowsTest, WhatAPolicyEndedSaysSo) {
  Child client(&*app_group_, &*app_, [&] {
    const UniqueFd fd(dial(kService));
    ::pause();
  });
  UniqueFd accepted = accept_within(first_.get());
  ASSERT_TRUE(accepted);
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 21);
  apply_all();
  must(datapath_->end_forbidden(state_));
  const Flow flow = take(1).front();
  EXPECT_EQ(flow.kind, Flow::Kind::kClosed);
  EXPECT_TRUE(flow.is_established);
  EXPECT_EQ(flow.reason, "connections_ended_by_policy");
  EXPECT_EQ(flow.tcp_state, TCP_ESTABLISHED);
}

TEST_F(FlowsTest, WhatEndedUnseenIsForgotten) {
  UniqueFd connections = map("um_connections");
  um_connection record{};
  record.workload = kApp;
  const std::uint64_t cookie = 1ULL << 60;
  ASSERT_EQ(::bpf_map_update_elem(connections.get(), &cookie, &record, BPF_ANY), 0);
  must(datapath_->open_flows(state_));
  EXPECT_EQ(entries_of("um_connections"), 1) << "it may just be connecting";
  must(datapath_->open_flows(state_));
  EXPECT_EQ(entries_of("um_connections"), 0);
  record.workload = 4711;
  ASSERT_EQ(::bpf_map_update_elem(connections.get(), &cookie, &record, BPF_ANY), 0);
  must(datapath_->open_flows(state_));
  EXPECT_EQ(entries_of("um_connections"), 0);
}

// --- connections to endpoints that are gone

class RemovalTest : public FlowsTest {
 protected:
  // Two connections, through the service and past it; the service then has another endpoint.
  // Which of them are open afterwards.
  std::pair<bool, bool> open_after_removal(bool resets) {
    Child client(&*app_group_, &*app_, [&] {
      const UniqueFd through(dial(kService)), past(dial(kFirst));
      ::pause();
    });
    state_.services[at(kService)].resets_on_removal = resets;
    UniqueFd ends[2] = {accept_within(first_.get()), accept_within(first_.get())};
    EXPECT_TRUE(ends[0] && ends[1]);
    must(datapath_->end_removed(state_));
    EXPECT_EQ(is_open(ends[0]), true) << "it is an endpoint";
    state_.services[at(kService)] = balanced(2, {"10.9.0.3:8080"});
    state_.services[at(kService)].resets_on_removal = resets;
    apply_all();
    must(datapath_->end_removed(state_));
    return {!resets || !is_reset(ends[0]) ? is_open(ends[0]) : false, is_open(ends[1])};
  }
  static bool is_open(const UniqueFd& fd) {
    char byte = 0;
    return ::recv(fd.get(), &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }
  // In time: it is the other end that was.
  static bool is_reset(const UniqueFd& fd) {
    pollfd end{fd.get(), POLLIN, 0};
    return ::poll(&end, 1, 30'000) == 1 && !is_open(fd);
  }
};

TEST_F(RemovalTest, LeavesConnectionsAlone) {
  EXPECT_EQ(open_after_removal(false), std::pair(true, true));
}

TEST_F(RemovalTest, ResetsThoseThroughAServiceThatWantsIt) {
  EXPECT_EQ(open_after_removal(true), std::pair(false, true));
  EXPECT_EQ(count("connections_reset_on_removal"), 1);
}

TEST_F(RemovalTest, ResetsThoseThroughAServiceThatIsNoMore) {
  Child client(&*app_group_, &*app_, [&] {
    const UniqueFd through(dial(kService)), past(dial(kFirst));
    ::pause();
  });
  UniqueFd ends[2] = {accept_within(first_.get()), accept_within(first_.get())};
  ASSERT_TRUE(ends[0] && ends[1]);
  state_.services.erase(at(kService));
  apply_all();
  must(datapath_->end_removed(state_));
  EXPECT_TRUE(is_open(ends[0])) << "it did not ask for it";
  state_.former_services.insert(at(kService));
  must(datapath_->end_removed(state_));
  EXPECT_TRUE(is_reset(ends[0]));
  EXPECT_TRUE(is_open(ends[1]));
  EXPECT_EQ(count("connections_reset_on_removal"), 1);
  const Flow flow = take(1).front();
  EXPECT_EQ(flow.service, at(kService));
  EXPECT_EQ(flow.reason, "connections_reset_on_removal");
  EXPECT_EQ(flow.tcp_state, TCP_ESTABLISHED);
}

TEST_F(RemovalTest, AClientsOwnEndpointsCount) {
  ServiceEntry& entry = state_.services[at(kService)];
  entry.of_clients = {{kApp, std::exchange(entry.columns, {})}};
  entry.resets_on_removal = true;
  apply_all();
  Child client(&*app_group_, &*app_, [&] {
    const UniqueFd through(dial(kService));
    ::pause();
  });
  UniqueFd end = accept_within(first_.get());
  ASSERT_TRUE(end);
  must(datapath_->end_removed(state_));
  EXPECT_TRUE(is_open(end));
  state_.services[at(kService)].of_clients->at(kApp) = {};
  apply_all();
  must(datapath_->end_removed(state_));
  EXPECT_TRUE(is_reset(end));
}

}  // namespace
}  // namespace mesh::test
