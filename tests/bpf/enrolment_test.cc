// What a workload has before it counts as enrolled, and what it had open before that.
#include <fcntl.h>
#include <gmock/gmock.h>

#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

class EnrolmentTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    accept_on_both_servers();
    six_ = server_->listen("[fd09::2]:8080");
  }
  datapath::EnrolledWorkload& app() { return state_.workloads[kApp]; }
  // No sk_lookup can be attached to this.
  void break_namespace() {
    nothing_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    app().netns = nothing_.get();
  }

  UniqueFd six_, nothing_;
};

TEST_F(EnrolmentTest, WhoCannotBeGuardedIsNotCapturedEither) {
  break_namespace();
  EXPECT_TRUE(apply().contains(kApp));
  EXPECT_EQ(pins(), pins_of_the_mesh()) << "of the mesh alone";
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
  app().netns = app_->fd();
  apply_all();
  EXPECT_EQ(pins(), pins_of_the_mesh() + pins_of_a_workload());
}

TEST_F(EnrolmentTest, AStrictWorkloadThatCannotBeGuardedIsRefusedEverything) {
  app().strict = true;
  break_namespace();
  for (int round = 0; round < 2; ++round) {
    const auto problems = apply();
    ASSERT_TRUE(problems.contains(kApp));
    EXPECT_THAT(problems.at(kApp).message, testing::HasSubstr("sk_lookup"));
    EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
    EXPECT_EQ(connect_from_app("[fd09::2]:8080"), kRefused);
    EXPECT_EQ(connect_from_app(kProxy4), kRefused);
  }
  EXPECT_EQ(count("connects_denied_unknown_workload"), 6);
  EXPECT_EQ(entries_of("um_workloads"), 0);
  datapath_.reset();
  open();
  EXPECT_TRUE(apply().contains(kApp)) << "nor after a restart";
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  app().netns = app_->fd();
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(EnrolmentTest, AStrictWorkloadWithoutANamespaceIsRefusedEverything) {
  app().strict = true;
  app().netns = -1;
  EXPECT_TRUE(apply().contains(kApp));
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
}

// Another build's programs, for one: what can be guarded no more is refused from then on.
TEST_F(EnrolmentTest, AStrictWorkloadThatLosesItsGuardIsRefused) {
  app().strict = true;
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
  datapath_.reset();
  open();
  break_namespace();
  EXPECT_TRUE(apply().contains(kApp));
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
}

// Made in the workload's namespace by somebody who is in none of its hooks' cgroups, as is what was
// there before them.
struct Old {
  Old(const NetNs& ns, int type, const std::string& to)
      : fd(ns.run([&] {
          UniqueFd made(::socket(family_of(at(to)), type | SOCK_CLOEXEC, 0));
          EXPECT_EQ(connect_socket(made.get(), to), 0) << to;
          return made;
        })) {}
  // 0: it is as it was.
  int error(int patience_ms = 0) const {
    pollfd changed{fd.get(), POLLIN, 0};
    if (::poll(&changed, 1, patience_ms) == 0) return 0;
    int error = 0;
    socklen_t size = sizeof error;
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
  }
  bool is_connected() const { return peer_of(fd.get()).err == 0; }
  UniqueFd fd;
};

TEST_F(EnrolmentTest, AStrictWorkloadLosesWhatItHadOpenBefore) {
  elsewhere_->enter();
  UniqueFd own = app_->listen("10.9.0.1:8070"), lo = app_->listen("127.0.0.1:8070");
  Old tcp(*app_, SOCK_STREAM, "10.9.0.2:8080"), six(*app_, SOCK_STREAM, "[fd09::2]:8080");
  Old udp(*app_, SOCK_DGRAM, "10.9.0.2:53"), udp_six(*app_, SOCK_DGRAM, "[fd09::2]:53");
  Old inbound(*server_, SOCK_STREAM, "10.9.0.1:8070");
  Old with_itself(*app_, SOCK_STREAM, "10.9.0.1:8070"), local(*app_, SOCK_STREAM, "127.0.0.1:8070");
  Old local_udp(*app_, SOCK_DGRAM, "127.0.0.1:53");
  app().strict = true;
  apply_all();
  for (const Old* ended : {&tcp, &six}) EXPECT_EQ(ended->error(5000), ECONNABORTED);
  EXPECT_EQ(inbound.error(5000), ECONNRESET) << "the other end sees it";
  for (const Old* ended : {&udp, &udp_six}) EXPECT_EQ(ended->error(5000), ECONNABORTED);
  EXPECT_FALSE(udp.is_connected());
  for (const Old* kept : {&with_itself, &local, &local_udp}) {
    EXPECT_EQ(kept->error(), 0);
    EXPECT_TRUE(kept->is_connected());
  }
}

TEST_F(EnrolmentTest, ARestartedAgentEndsNothing) {
  elsewhere_->enter();
  app().strict = true;
  apply_all();
  Old unseen(*app_, SOCK_STREAM, "10.9.0.2:8080");
  datapath_.reset();
  open();
  apply_all();
  EXPECT_EQ(unseen.error(), 0);
}

TEST_F(EnrolmentTest, APermissiveWorkloadKeepsWhatItHadOpen) {
  elsewhere_->enter();
  Old tcp(*app_, SOCK_STREAM, "10.9.0.2:8080"), udp(*app_, SOCK_DGRAM, "10.9.0.2:53");
  apply_all();
  EXPECT_EQ(tcp.error(), 0);
  EXPECT_EQ(udp.error(), 0);
}

}  // namespace
}  // namespace mesh::test
