// UDP, live: what arrives and what answers, also after a change of policy, with little room and
// without an owner.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "tests/support/udp_fixture.h"

namespace mesh::test {
namespace {

// ---- arriving ------------------------------------------------------------------------------

TEST_F(UdpTest, ArrivalsAreJudgedWhoeverSends) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000", "10.9.0.2:7001", "[fd09::2]:7000"});
  this->server().ingress = kIn;
  udp_verdict(kIn, 0, false, 52, 0);
  udp_verdict(kIn, 7001, true, 51, 0);
  apply_all();
  EXPECT_EQ(stranger_asks("10.9.0.2:7000").err, kRefused);
  EXPECT_EQ(stranger_asks("[fd09::2]:7000").err, kRefused);
  EXPECT_EQ(server->asked(), 0);
  EXPECT_EQ(stranger_asks("10.9.0.2:7001").err, 0);
  EXPECT_EQ(server->asked(), 1);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[52], 2);
}

TEST_F(UdpTest, AServerMayAnswerWhomItMayNotAsk) {
  enrol_server_that_may_only_answer();
  const auto server = echo({"10.9.0.2:7000", "[fd09::2]:7000"});
  EXPECT_EQ(stranger_asks("10.9.0.2:7000").err, 0);
  EXPECT_EQ(stranger_asks("[fd09::2]:7000").err, 0);
  EXPECT_EQ(count("datagrams_answered"), 2);
  const auto send = [&](const char* to) {
    return in_child(&*server_group_, &*server_, [&] {
      return send_to(udp_socket(AF_INET, "10.9.0.2:7005").get(), to, AF_INET);
    });
  };
  EXPECT_EQ(send("10.9.0.1:4000"), EPERM) << "nobody asked";
  EXPECT_EQ(stranger_asks("10.9.0.2:7000", "10.9.0.1:4000").err, 0);
  EXPECT_EQ(send("10.9.0.1:4000"), EPERM) << "another port of the server was asked";
}

// Also where the server has no policy of its own, but the client has.
TEST_F(UdpTest, AServerMayAnswerAClientThatLetsNobodyIn) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000"});
  app().ingress = 7;
  has_set("10.9.0.1", 7);
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, 0);
  EXPECT_EQ(ask_connected("10.9.0.2:7000").err, 0);
  EXPECT_EQ(count("arrivals_answered"), 1) << "what is connected is not looked up";
  EXPECT_EQ(in_child(&*server_group_, &*server_,
                     [] { return send_to(udp_socket(AF_INET).get(), "10.9.0.1:4000", AF_INET); }),
            EPERM);
}

TEST_F(UdpTest, AClientGetsAnswersOnlyFromWhomItAsked) {
  const auto server = echo({"10.9.0.2:7000"});
  app().ingress = 7;
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  struct Result {
    Answer asked, unasked;
  };
  const Result result = in_app([&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
    Result out{ask(fd.get(), "10.9.0.2:7000", AF_INET), {}};
    out.unasked = in_child(&*elsewhere_, &*server_, [] {
      UniqueFd other = udp_socket(AF_INET, "10.9.0.2:7009");
      if (connect_udp(other.get(), "10.9.0.1:4000", AF_INET) != 0) return Answer{-1, {}};
      if (::send(other.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(other.get());
    });
    return out;
  });
  EXPECT_EQ(result.asked.err, 0);
  EXPECT_EQ(result.unasked.err, kRefused);
}

// The record stays; what it permits is the direction that began, by what holds now.
TEST_F(UdpTest, WhoTalksIsShownWithTheServiceThatWasAsked) {
  enrol_server();
  const auto echoing = echo({"10.9.0.2:7000"});
  server().ingress = kIn;
  udp_verdict(kIn, 7000, true, 51, 0);
  app().ingress = kOut;
  udp_verdict(kOut, 0, false, 61, 0);
  udp_service(kVip, {"10.9.0.2:7000"});
  apply_all();
  const Answer answer =
      in_app([] { return ask(udp_socket(AF_INET, "10.9.0.1:4000").get(), kVip, AF_INET); });
  EXPECT_STREQ(answer.text, "10.9.0.2:7000");
  auto flows = must(datapath_->udp_flows());
  ASSERT_EQ(flows.size(), 2U);
  std::ranges::sort(flows, {}, &datapath::UdpFlow::is_inbound);
  EXPECT_EQ(flows[0].workload, kApp);
  EXPECT_EQ(flows[0].port, 4000);
  EXPECT_EQ(flows[0].remote, at("10.9.0.2:7000"));
  EXPECT_EQ(flows[0].service, at(kVip));
  EXPECT_TRUE(flows[1].is_inbound);
  EXPECT_EQ(flows[1].workload, kServer);
  EXPECT_EQ(flows[1].port, 7000);
  EXPECT_EQ(flows[1].remote, at("10.9.0.1:4000"));
  EXPECT_FALSE(flows[1].service);
  for (const auto& flow : flows) EXPECT_LT(flow.quiet, std::chrono::seconds(60));
  age_flows();
  EXPECT_TRUE(must(datapath_->udp_flows()).empty()) << "over";
}

TEST_F(UdpTest, ARevocationEndsAnswersToo) {
  enrol_server_that_may_only_answer();
  Shared<std::atomic<int>> step;
  Child server(&*server_group_, &*server_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
    *step = 1;
    const Answer asked = receive(fd.get(), 30'000);
    const std::string who = asked.from.to_string();
    if (send_to(fd.get(), who, AF_INET) == 0) *step = 2;
    if (!eventually([&] { return *step == 3; })) return;
    *step = send_to(fd.get(), who, AF_INET) == EPERM ? 4 : 5;
  });
  ASSERT_TRUE(eventually([&] { return *step == 1; }));
  EXPECT_EQ(stranger_asks("10.9.0.2:7000").err, 0);
  ASSERT_TRUE(eventually([&] { return *step != 1; }));
  udp_verdict(kIn, 0, false, 51, 0);
  apply_all();
  *step = 3;
  server.wait();
  EXPECT_EQ(*step, 4);
}

// It answers all the time, which its own policy permits: that makes no server of who asks.
TEST_F(UdpTest, AnswersMakeNoAskerAServer) {
  enrol_server();
  const auto server = echo({"10.9.0.2:7000"});
  this->server().ingress = kIn;
  udp_verdict(kIn, 0, true, 51, 0);
  apply_all();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(stranger_asks("10.9.0.2:7000", "10.9.0.1:4000").err, 0);
  udp_verdict(kIn, 0, false, 51, 0);
  apply_all();
  EXPECT_EQ(stranger_asks("10.9.0.2:7000", "10.9.0.1:4000").err, kRefused);
  EXPECT_EQ(server->asked(), 3);
}

TEST_F(UdpTest, NothingForbiddenArrivesAfterAnAcknowledgement) {
  enrol_server();
  this->server().ingress = kIn;
  udp_verdict(kIn, 0, true, 51, 0);
  apply_all();
  struct Seen {
    // Odd: denied and acknowledged.
    std::atomic<std::uint64_t> epoch, wrong, sent, got;
    std::atomic<bool> is_ready;
  };
  Shared<Seen> seen;
  Child server(&*server_group_, &*server_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
    seen->is_ready = true;
    for (;;) {
      std::uint64_t epoch = 0;
      sockaddr_storage from{};
      socklen_t size = sizeof from;
      if (::recvfrom(fd.get(), &epoch, sizeof epoch, 0, reinterpret_cast<sockaddr*>(&from),
                     &size) != sizeof epoch)
        continue;
      ++seen->got;
      // Sent and received while it was denied.
      if (epoch % 2 == 1 && seen->epoch == epoch) ++seen->wrong;
      (void)::sendto(fd.get(), &epoch, sizeof epoch, 0, reinterpret_cast<sockaddr*>(&from), size);
    }
  });
  ASSERT_TRUE(eventually([&] { return seen->is_ready.load(); }));
  Child client(&*elsewhere_, &*app_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
    const RawAddress to = raw_address(at("10.9.0.2:7000"), AF_INET);
    for (;;) {
      const std::uint64_t epoch = seen->epoch;
      (void)::sendto(fd.get(), &epoch, sizeof epoch, 0, to.get(), to.size);
      ++seen->sent;
    }
  });
  const auto wait_for = [&](std::atomic<std::uint64_t>& what, std::uint64_t more) {
    const std::uint64_t until = what + more;
    const auto deadline = now_ns() + 60'000'000'000;
    while (what < until && now_ns() < deadline) std::this_thread::yield();
    EXPECT_GE(what, until);
  };
  for (int i = 0; i < times(40); ++i) {
    udp_verdict(kIn, 0, false, 52, 0);
    apply_all();
    ++seen->epoch;
    wait_for(seen->sent, 50);
    ++seen->epoch;
    udp_verdict(kIn, 0, true, 51, 0);
    apply_all();
    wait_for(seen->got, 1);
  }
  EXPECT_EQ(seen->wrong, 0);
}

// ---- connected sockets and changes of policy -----------------------------------------------

// What it may send is not asked any more; so it is ended.
TEST_F(UdpTest, ConnectedSocketsThatANewPolicyForbidsAreEnded) {
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000", "[fd09::2]:7000"});
  apply_all();
  struct Seen {
    std::atomic<int> step, forbidden, forbidden6, mapped, fine;
  };
  Shared<Seen> seen;
  Child client(&*app_group_, &*app_, [&] {
    const auto connected = [](const char* to, int family) {
      UniqueFd fd = udp_socket(family);
      (void)connect_udp(fd.get(), to, family);
      return fd;
    };
    const auto send_error = [](const UniqueFd& fd) {
      return ::send(fd.get(), "x", 1, 0) < 0 ? errno : 0;
    };
    UniqueFd forbidden = connected("10.9.0.2:7000", AF_INET),
             fine = connected("10.9.0.3:7000", AF_INET);
    UniqueFd forbidden6 = connected("[fd09::2]:7000", AF_INET6);
    UniqueFd mapped = connected("10.9.0.2:7000", AF_INET6);
    if (send_error(forbidden) == 0 && send_error(forbidden6) == 0 && send_error(mapped) == 0 &&
        send_error(fine) == 0)
      seen->step = 1;
    if (!eventually([&] { return seen->step == 2; })) return;
    seen->forbidden = send_error(forbidden);
    seen->forbidden6 = send_error(forbidden6);
    seen->mapped = send_error(mapped);
    seen->fine = send_error(fine);
  });
  ASSERT_TRUE(eventually([&] { return seen->step != 0; }));
  for (const char* address : {"10.9.0.2", "fd09::2"}) has_set(address, 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  must(datapath_->end_forbidden(state_));
  const std::uint64_t before = server->asked();
  seen->step = 2;
  client.wait();
  EXPECT_NE(seen->forbidden, 0);
  EXPECT_NE(seen->forbidden6, 0);
  EXPECT_NE(seen->mapped, 0);
  EXPECT_EQ(seen->fine, 0);
  EXPECT_EQ(count("connections_ended_by_policy"), 3);
  ASSERT_TRUE(eventually([&] { return server->asked() >= before + 1; }));
  EXPECT_EQ(server->asked(), before + 1);
}

// A server that connects to who asked it is judged as the server.
TEST_F(UdpTest, AConnectedAnswererIsJudgedByItsIngressPolicy) {
  enrol_server_that_may_only_answer();
  struct Seen {
    std::atomic<int> step, connected, kept, ended;
  };
  Shared<Seen> seen;
  Child server(&*server_group_, &*server_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
    seen->step = 1;
    const Answer asked = receive(fd.get(), 30'000);
    seen->connected = connect_udp(fd.get(), asked.from.to_string(), AF_INET);
    (void)::send(fd.get(), "x", 1, 0);
    seen->step = 2;
    if (!eventually([&] { return seen->step == 3; })) return;
    seen->kept = ::send(fd.get(), "x", 1, 0) < 0 ? errno : 0;
    seen->step = 4;
    if (!eventually([&] { return seen->step == 5; })) return;
    seen->ended = ::send(fd.get(), "x", 1, 0) < 0 ? errno : 0;
  });
  ASSERT_TRUE(eventually([&] { return seen->step == 1; }));
  Child asker(&*elsewhere_, &*app_, [&] {
    UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
    (void)send_to(fd.get(), "10.9.0.2:7000", AF_INET);
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return seen->step == 2; }));
  EXPECT_EQ(seen->connected, 0);
  age_flows();  // what it sends by now, no program sees
  must(datapath_->end_forbidden(state_));
  seen->step = 3;
  ASSERT_TRUE(eventually([&] { return seen->step == 4; }));
  EXPECT_EQ(seen->kept, 0);
  udp_verdict(kIn, 0, false, 51, 0);
  apply_all();
  must(datapath_->end_forbidden(state_));
  seen->step = 5;
  server.wait();
  EXPECT_NE(seen->ended, 0);
}

// Somebody asked there once; that it connected is its own doing, by its own right.
TEST_F(UdpTest, WhoConnectsLongAfterAQuestionIsJudgedByItsEgressPolicy) {
  enrol_server();
  this->server().ingress = kIn;
  this->server().egress = kOut;
  udp_verdict(kIn, 0, true, 51, 0);
  for (const bool knows_port : {true, false}) {
    udp_verdict(kOut, 0, true, 61, 0);
    apply_all();
    Shared<std::atomic<int>> step;
    Child server(&*server_group_, &*server_, [&] {
      UniqueFd fd = udp_socket(AF_INET, "10.9.0.2:7000");
      *step = 1;
      const Answer asked = receive(fd.get(), 30'000);
      *step = 2;
      if (!eventually([&] { return *step == 3; })) return;
      if (connect_udp(fd.get(), asked.from.to_string(), AF_INET) == 0) *step = 4;
      if (!eventually([&] { return *step == 5; })) return;
      *step = ::send(fd.get(), "x", 1, 0) < 0 ? 6 : 7;
    });
    ASSERT_TRUE(eventually([&] { return *step == 1; }));
    Child asker(&*elsewhere_, &*app_, [&] {
      UniqueFd fd = udp_socket(AF_INET, "10.9.0.1:4000");
      (void)send_to(fd.get(), "10.9.0.2:7000", AF_INET);
      ::pause();
    });
    ASSERT_TRUE(eventually([&] { return *step == 2; }));
    age_flows();
    *step = 3;
    ASSERT_TRUE(eventually([&] { return *step == 4; }));
    EXPECT_EQ(flow_of_the_asker().began, UM_BEGAN_HERE);
    if (!knows_port) {  // as where the kernel gave it that port only after the connect was judged
      um_udp_flow flow{};
      flow.began = UM_BEGAN_THERE;
      flow.used = now_ns();
      write_flow_of_the_asker(flow);
      age_flows();
    }
    udp_verdict(kOut, 0, false, 62, 0);
    apply_all();
    must(datapath_->end_forbidden(state_));
    *step = 5;
    server.wait();
    EXPECT_EQ(*step, 6) << knows_port;
  }
}

// ---- limits and deaths ---------------------------------------------------------------------

// An old record goes; who asks again is answered again, and nobody else. Which one goes is the
// kernel's approximation of the least recently used: in so small a map it may be one that waits for
// its answer, as it was seen on 6.12.
TEST_F(UdpTest, MoreFlowsThanRecordsLetNobodyIn) {
  datapath_.reset();
  must(datapath::disable_all(options_.pin_dir));
  options_.max_udp_flows = 256;
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  enrol_server();
  const auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  udp_service(kVip, {"10.9.0.2:7000", "10.9.0.3:7000"});
  app().ingress = 7;
  has_set("10.9.0.1", 7);
  udp_verdict(7, 0, false, 71, 0);
  apply_all();
  const int wrong = in_app([&] {
    const auto is_answered = [](int fd) {
      for (int tries = 0; tries < 5; ++tries)
        if (ask(fd, kVip, AF_INET).from == at(kVip)) return true;
      return false;
    };
    int failed = 0;
    std::vector<UniqueFd> sockets;
    for (int i = 0; i < 600; ++i) {
      sockets.push_back(udp_socket(AF_INET));
      if (!is_answered(sockets.back().get())) ++failed;
    }
    for (const UniqueFd& fd : sockets)
      if (!is_answered(fd.get())) ++failed;
    return failed;
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(entries_of("um_udp_flows"), 256);
  EXPECT_EQ(in_child(&*server_group_, &*server_,
                     [] { return send_to(udp_socket(AF_INET).get(), "10.9.0.1:4000", AF_INET); }),
            EPERM);
}

TEST_F(UdpTest, GoesOnWithoutItsOwner) {
  udp_service(kVip, {"10.9.0.3:7000"});
  has_set("10.9.0.2", 3);
  udp_verdict(3, 0, false, 21);
  apply_all();
  datapath_.reset();  // and then the server's process: it must not inherit the lock
  auto server = echo({"10.9.0.2:7000", "10.9.0.3:7000"});
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, EPERM);
  EXPECT_EQ(ask_from_app(kVip).from, at(kVip));
  server.reset();
  open();
  apply_all();
  EXPECT_EQ(ask_from_app("10.9.0.2:7000").err, EPERM);
}

}  // namespace
}  // namespace mesh::test
