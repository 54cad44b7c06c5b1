// meshhold: when it, meshd or meshproxy is another one, or none: listeners are kept and taken back,
// and nobody is left waiting.
#include <netinet/in.h>

#include "tests/support/meshhold_fixture.h"

namespace mesh::feed {
namespace {

TEST_F(MeshHold, TheNextMeshholdTakesTheListenersBackAndWaitingConnectionsSurvive) {
  const NetNs ns = NetNs::create();
  Fds listeners;
  {
    Peer meshd = connect_meshd();
    listeners = enrolled(meshd, 7, ns.fd()).fds;
  }
  const int waiting = ns.run([] { return test::dial("127.0.0.1:15001"); });
  ASSERT_GE(waiting, 0);
  kill();
  start();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  const Received answer = enrolled(meshd, 7, ns.fd(), std::move(listeners));
  ASSERT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.netns_cookie, ns.cookie());
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  EXPECT_TRUE(test::accept_within(offered->fds.at(0).get())) << "the connection was lost";
  ::close(waiting);
}

void drop_datagrams(Fds& listeners) {
  std::erase_if(listeners, [](const UniqueFd& fd) {
    int type = 0;
    socklen_t size = sizeof type;
    return ::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type == SOCK_DGRAM;
  });
  ASSERT_EQ(listeners.size(), 3U);
}

TEST_F(MeshHold, WhatDnsLacksIsMadeWhereHalfCameBack) {
  const NetNs ns = NetNs::create();
  Fds listeners;
  {
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    listeners = enrolled(meshd, 7, ns.fd()).fds;
    // Before the channel ends: else it dials again, and what it sends waits in a connection that
    // nobody accepts, duplicates of the listeners among it.
    kill();
  }
  start();
  drop_datagrams(listeners);
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, ns.fd(), std::move(listeners));
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  EXPECT_EQ(answer.fds.size(), 4U);
}

TEST_F(MeshHold, RefusesAListenerThatIsNotOfTheNamespace) {
  const NetNs ns = NetNs::create();
  const NetNs other = NetNs::create();
  Peer meshd = connect_meshd();
  Fds foreign;
  foreign.push_back(other.listen("127.0.0.1:15001"));
  EXPECT_EQ(enrolled(meshd, 7, ns.fd(), std::move(foreign)).message.status, HoldStatus::kForeign);
  Fds wrong_port;
  wrong_port.push_back(ns.listen("127.0.0.1:15002"));
  EXPECT_EQ(enrolled(meshd, 7, ns.fd(), std::move(wrong_port)).message.status,
            HoldStatus::kForeign);
}

HoldMessage given_back(const HoldMessage& asked) {
  HoldMessage answer = asked;
  answer.type = HoldType::kGivenBack;
  return answer;
}

TEST_F(MeshHold, WhatOnlyTheProxyStillHasIsTakenBackAndNoConnectionIsLost) {
  const NetNs ns = NetNs::create();
  Fds held_by_proxy;
  {
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    (void)enrolled(meshd, 7, ns.fd());
    for (int i = 0; i < 4; ++i) {
      auto listener = proxy.next(HoldType::kListener);
      ASSERT_TRUE(listener);
      held_by_proxy.push_back(std::move(listener->fds.at(0)));
    }
    kill();  // and meshd with it: nobody else has a duplicate to give back
  }
  const UniqueFd waiting(ns.run([] { return test::dial("127.0.0.1:15001"); }));
  ASSERT_TRUE(waiting) << "the proxy's listener is there all the time";
  start();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(ns.fd()));
  meshd.send(enrol(7), std::move(fds));
  meshd.send(of_type(HoldType::kSync));
  auto asked = proxy.next(HoldType::kGiveBack);
  ASSERT_TRUE(asked);
  EXPECT_EQ(asked->message.workload, 7U);
  EXPECT_EQ(asked->message.kind, ListenerKind::kOutbound);
  EXPECT_FALSE(proxy.next(HoldType::kSync, std::chrono::milliseconds(50)))
      << "the proxy would drop what it is about to give back";
  proxy.send(given_back(asked->message), std::move(held_by_proxy));
  auto answer = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.status, HoldStatus::kOk);
  EXPECT_EQ(answer->message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  ASSERT_EQ(answer->fds.size(), 4U);
  EXPECT_TRUE(proxy.next(HoldType::kListener));
  EXPECT_TRUE(proxy.next(HoldType::kSync));
  EXPECT_FALSE(proxy.next(HoldType::kRevoke, std::chrono::milliseconds(0)));
  EXPECT_TRUE(test::accept_within(answer->fds.at(0).get())) << "what waited is served";
}

TEST_F(MeshHold, WhatDnsLacksIsTakenBackFromTheProxyThatStillHasIt) {
  const NetNs ns = NetNs::create();
  Fds listeners, held_by_proxy;
  {
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    listeners = enrolled(meshd, 7, ns.fd()).fds;
    for (int i = 0; i < 4; ++i) {
      auto listener = proxy.next(HoldType::kListener);
      ASSERT_TRUE(listener);
      held_by_proxy.push_back(std::move(listener->fds.at(0)));
    }
    kill();
  }
  start();
  drop_datagrams(listeners);
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(ns.fd()));
  for (UniqueFd& listener : listeners) fds.push_back(std::move(listener));
  meshd.send(enrol(7), std::move(fds));
  auto asked = proxy.next(HoldType::kGiveBack);
  ASSERT_TRUE(asked);
  proxy.send(given_back(asked->message), std::move(held_by_proxy));
  auto answer = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.status, HoldStatus::kOk);
  EXPECT_EQ(answer->message.families, kHasFamily4 | kHasFamily6 | kHasDns);
  EXPECT_EQ(answer->fds.size(), 4U) << "what meshd and the proxy both brought counts once";
}

// As after a death of all three at once: one of the old sockets ends later than the others.
TEST_F(MeshHold, APortForDnsThatOneBeforeStillHasIsWaitedFor) {
  const NetNs ns = NetNs::create();
  UniqueFd squatter = ns.listen("127.0.0.1:15053");
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  Fds fds;
  fds.push_back(copy_of(ns.fd()));
  meshd.send(enrol(7), std::move(fds));
  auto asked = proxy.next(HoldType::kGiveBack);
  ASSERT_TRUE(asked) << "it goes without DNS though the port may be its own";
  proxy.send(given_back(asked->message));
  squatter.reset();
  auto answer = meshd.next(HoldType::kEnrolled);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->message.families, kHasFamily4 | kHasFamily6 | kHasDns);
}

TEST_F(MeshHold, APortForDnsThatStaysTakenIsGivenUp) {
  const NetNs ns = NetNs::create();
  const UniqueFd squatter = ns.listen("127.0.0.1:15053");
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, ns.fd());
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.families, kHasFamily4 | kHasFamily6);
  EXPECT_EQ(connect_in(ns), 0);
}

TEST_F(MeshHold, TakesNothingBackFromTheProxyThatIsNotItsOwn) {
  struct Case {
    const char* name;
    const char* address;
    bool on_loopback, in_namespace;
  };
  for (const Case& c : {Case{"another port", "127.0.0.1:15002", true, true},
                        Case{"another namespace", "127.0.0.1:15001", true, false},
                        Case{"every device", "127.0.0.1:15001", false, true}}) {
    const NetNs ns = NetNs::create();
    const NetNs other = NetNs::create();
    const UniqueFd squatter = c.in_namespace && std::string_view(c.address).ends_with(":15001")
                                  ? UniqueFd()
                                  : ns.listen("127.0.0.1:15001");
    UniqueFd offered = (c.in_namespace ? ns : other).listen(c.address);
    if (c.on_loopback)
      ASSERT_EQ(::setsockopt(offered.get(), SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), 0);
    Peer meshd = connect_meshd();
    Peer proxy = accept_proxy();
    Fds fds;
    fds.push_back(copy_of(ns.fd()));
    meshd.send(enrol(7), std::move(fds));
    auto asked = proxy.next(HoldType::kGiveBack);
    ASSERT_TRUE(asked) << c.name;
    Fds lie;
    lie.push_back(std::move(offered));
    proxy.send(given_back(asked->message), std::move(lie));
    auto answer = meshd.next(HoldType::kEnrolled);
    ASSERT_TRUE(answer) << c.name;
    EXPECT_EQ(answer->message.status, HoldStatus::kForeign) << c.name;
    kill();
    start();
  }
}

TEST_F(MeshHold, ARestartedMeshdGetsTheSameListenersAndSyncEndsTheRest) {
  const NetNs ns = NetNs::create();
  const NetNs forgotten = NetNs::create();
  Peer proxy = accept_proxy();
  {
    Peer meshd = connect_meshd();
    (void)enrolled(meshd, 7, ns.fd());
    (void)enrolled(meshd, 8, forgotten.fd());
  }
  Peer meshd = connect_meshd();
  const Received answer = enrolled(meshd, 7, -1);
  EXPECT_EQ(answer.message.status, HoldStatus::kOk);
  EXPECT_EQ(answer.message.netns_cookie, ns.cookie());
  EXPECT_EQ(answer.fds.size(), 4U);
  meshd.send(of_type(HoldType::kSync));
  auto revoke = proxy.next(HoldType::kRevoke);
  ASSERT_TRUE(revoke);
  EXPECT_EQ(revoke->message.workload, 8U);
  EXPECT_TRUE(proxy.next(HoldType::kSync));
  EXPECT_EQ(connect_in(ns), 0);
}

TEST_F(MeshHold, ARestartedProxyGetsEverythingAgain) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  (void)proxy_with_listener(meshd, ns);  // and it ends
  const int waiting = ns.run([] { return test::dial("127.0.0.1:15001"); });
  Peer proxy = accept_proxy();
  auto v4 = proxy.next(HoldType::kListener);
  ASSERT_TRUE(v4);
  EXPECT_TRUE(test::accept_within(v4->fds.at(0).get()));
  EXPECT_TRUE(proxy.next(HoldType::kListener));
  ::close(waiting);
}

void expect_reset(const UniqueFd& waiting) {
  pollfd reset{waiting.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&reset, 1, 10'000), 1);
  char byte = 0;
  EXPECT_EQ(::read(waiting.get(), &byte, 1), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

TEST_F(MeshHold, AfterTheGraceTheBacklogIsResetAndConnectionsAreRefusedUntilTheNextProxy) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  {
    const Peer proxy = proxy_with_listener(meshd, ns);
    proxy_listener_.reset();
  }
  const UniqueFd waiting(ns.run([] { return test::dial("127.0.0.1:15001"); }));
  ASSERT_TRUE(waiting);
  expect_reset(waiting);
  EXPECT_EQ(connect_in(ns), ECONNREFUSED);
  EXPECT_NE(ns.run([] {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const auto raw = test::raw_address(test::endpoint("127.0.0.1:15001"), AF_INET);
    return ::bind(fd.get(), raw.get(), raw.size);
  }),
            0)
      << "the application took the port while it was closed";

  proxy_listener_ = listen_unix(run_dir_ + "/proxy.sock", 0600).value();
  Peer proxy = accept_proxy();
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  EXPECT_EQ(connect_in(ns), 0);
  EXPECT_TRUE(test::accept_within(offered->fds.at(0).get()));
}

TEST_F(MeshHold, WhileTheProxyHangsConnectionsAreRefusedAlsoThoseThatWait) {
  const NetNs ns = NetNs::create();
  Peer meshd = connect_meshd();
  Peer proxy = accept_proxy();
  ASSERT_EQ(enrolled(meshd, 7, ns.fd()).message.status, HoldStatus::kOk);
  auto offered = proxy.next(HoldType::kListener);
  ASSERT_TRUE(offered);
  const UniqueFd waiting(ns.run([] { return test::dial("127.0.0.1:15001"); }));
  ASSERT_TRUE(waiting);
  HoldMessage state = of_type(HoldType::kProxyState);
  state.status = HoldStatus::kUnavailable;
  meshd.send(state);
  expect_reset(waiting);
  (void)enrolled(meshd, 7, -1);  // answered when all of them refuse, of which one was the first
  EXPECT_EQ(connect_in(ns), ECONNREFUSED);
  EXPECT_EQ(connect_in(ns, "[::1]:15001"), ECONNREFUSED);
  state.status = HoldStatus::kOk;
  meshd.send(state);
  (void)enrolled(meshd, 7, -1);
  EXPECT_EQ(connect_in(ns), 0);
  EXPECT_TRUE(test::accept_within(offered->fds.at(0).get())) << "it is the same listener";
}

}  // namespace
}  // namespace mesh::feed
