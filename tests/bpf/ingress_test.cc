// The server's end, live: whoever connects, the program in its namespace judges.
#include <gmock/gmock.h>
#include <poll.h>

#include <atomic>
#include <thread>

#include "tests/support/datapath_fixture.h"

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
    server_group_.emplace(Cgroup::create("server"));
    elsewhere_.emplace(Cgroup::create("elsewhere"));
    state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
    state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("10.9.0.3"), ip("fd09::2")};
    accept_on_both_servers();
    six_ = server_->listen("[fd09::2]:8080");
  }
  void serves_by(datapath::SetId set) { state_.workloads[kServer].ingress = set; }
  int stranger(const std::string& to) {
    return in_child(&*elsewhere_, &*app_, [&] { return try_connect(to); });
  }

  std::optional<Cgroup> server_group_, elsewhere_;
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
  EXPECT_TRUE(accept_within(first_.get(), 1000));
  EXPECT_EQ(stranger("10.9.0.2:8080"), kRefused);
  first_.reset();
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), kRefused) << "nobody listens";
  for (const auto deadline = now_ns() + 30'000'000'000; entries_of("um_flows") != 0;) {
    if (now_ns() > deadline) break;
    ::poll(nullptr, 0, 5);
  }
  EXPECT_EQ(entries_of("um_flows"), 0) << "closed ones are forgotten";
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
  struct Shared {
    // Odd: denied and acknowledged. Who saw the same odd number before and after was denied.
    std::atomic<std::uint64_t> epoch, wrong, denied, allowed;
  };
  void* page =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  auto* shared = new (page) Shared{};
  Child client(&*elsewhere_, &*app_, [&] {
    for (;;) {
      const std::uint64_t before = shared->epoch;
      const int error = try_connect("10.9.0.2:8080");
      const bool was_stable = shared->epoch == before;
      (error == 0 ? shared->allowed : shared->denied)++;
      if (was_stable && before % 2 == 1 && error == 0) ++shared->wrong;
    }
  });
  for (int i = 0; i < 200 || shared->denied < 50 || shared->allowed < 50; ++i) {
    verdict(5, 0, false, 52, 0);
    apply_all();
    ++shared->epoch;
    std::this_thread::yield();
    ++shared->epoch;
    verdict(5, 0, true, 51, 0);
    apply_all();
    while (accept_within(first_.get(), 0)) continue;
    ASSERT_LT(i, 100'000);
  }
  client.kill();
  EXPECT_EQ(shared->wrong, 0);
  ::munmap(page, sizeof(Shared));
}

}  // namespace
}  // namespace mesh::test
