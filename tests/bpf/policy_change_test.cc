// Changes of policy under fire: while clients connect, every verdict is that of the state before or
// of the state after, never of a mixture of the two.
#include <gmock/gmock.h>

#include <atomic>
#include <functional>
#include <thread>

#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

constexpr datapath::WorkloadId kServer = 8;

struct Seen {
  std::atomic<std::uint64_t> tries, wrongly_allowed, wrongly_denied;
};

// Who is policed: the client's end, at connect; the server's, by its own program; or both.
enum class Ends : std::uint8_t { kClient, kServer, kBoth };

class PolicyChangeTest : public DatapathTest, public testing::WithParamInterface<Ends> {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    if (GetParam() == Ends::kServer) state_.workloads.erase(kApp);
    if (GetParam() != Ends::kClient) {
      state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
      state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("10.9.0.3"), ip("fd09::2")};
    }
    // A full backlog would hold the client for a second each time.
    first_ = server_->listen("10.9.0.2:8080", "", 4096);
    second_ = server_->listen("10.9.0.3:8080", "", 4096);
    void* page =
        ::mmap(nullptr, sizeof(Seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(page, MAP_FAILED);
    seen_ = new (page) Seen{};
  }
  void TearDown() override {
    if (seen_ != nullptr) ::munmap(seen_, sizeof(Seen));
    DatapathTest::TearDown();
  }

  // Everything that has numbers gets others.
  void becomes(int round, const std::function<void(datapath::ClassId, datapath::SetId)>& policy) {
    state_.sets.clear();
    state_.peers.clear();
    const auto number = static_cast<std::uint32_t>(100 + round);
    if (auto client = state_.workloads.find(kApp); client != state_.workloads.end())
      client->second.class4 = client->second.class6 = number;
    state_.peers[ip("10.9.0.1")] = {number, 0};
    policy(number, number);
    apply_all();
  }

  // As fast as changes are acknowledged, while a client connects to who denies it in every state,
  // and to who allows it in every state.
  void flip(const std::function<void(int round)>& change, const char* denied, const char* allowed) {
    change(0);
    Cgroup& group = GetParam() == Ends::kServer ? *elsewhere_ : *app_group_;
    Child client(&group, &*app_, [&] {
      for (;;) {
        if (denied != nullptr && try_connect(denied) == 0) ++seen_->wrongly_allowed;
        if (allowed != nullptr && try_connect(allowed) != 0) ++seen_->wrongly_denied;
        ++seen_->tries;
      }
    });
    std::atomic<bool> is_done{false};
    std::thread acceptor([&] {
      while (!is_done)
        for (const UniqueFd* listening : {&first_, &second_})
          while (accept_within(listening->get(), 0)) {
          }
    });
    const auto tries = static_cast<std::uint64_t>(times(1000));
    for (int round = 1; round <= times(60) || seen_->tries < tries; ++round) change(round);
    client.kill();
    is_done = true;
    acceptor.join();
    EXPECT_EQ(seen_->wrongly_allowed, 0) << "of " << seen_->tries;
    EXPECT_EQ(seen_->wrongly_denied, 0) << "of " << seen_->tries;
  }

  Seen* seen_ = nullptr;
};

class PolicyOfTheClientsTest : public PolicyChangeTest {};

// A stranger would be let in by the one and not by the other.
TEST_P(PolicyOfTheClientsTest, AnotherSetAndAnotherClassAtOnceMakeNobodyAStranger) {
  flip(
      [&](int round) {
        becomes(round, [&](datapath::ClassId client, datapath::SetId set) {
          set = 2 * set;
          verdict(set, 0, true, 51, 0);
          verdict(set, 0, false, 52, client);
          verdict(set + 1, 0, false, 53, 0);
          verdict(set + 1, 0, true, 54, client);
          has_set("10.9.0.2", set);
          has_set("10.9.0.3", set + 1);
        });
      },
      "10.9.0.2:8080", "10.9.0.3:8080");
}

// The server's program knows one set for all of its addresses.
TEST_P(PolicyChangeTest, ASetOfTheServersOwn) {
  for (const bool denies : {true, false})
    flip(
        [&](int round) {
          becomes(round, [&](datapath::ClassId client, datapath::SetId set) {
            verdict(set, 0, denies, 51, 0);
            verdict(set, 0, !denies, 52, client);
            for (const char* address : {"10.9.0.2", "10.9.0.3"}) has_set(address, set);
            if (auto server = state_.workloads.find(kServer); server != state_.workloads.end())
              server->second.ingress = set;
          });
        },
        denies ? "10.9.0.2:8080" : nullptr, denies ? nullptr : "10.9.0.3:8080");
}

// A block takes the place of a known address, and back.
TEST_P(PolicyChangeTest, AnAddressThatBecomesOneOfABlock) {
  flip(
      [&](int round) {
        state_.blocks.clear();
        becomes(round, [&](datapath::ClassId client, datapath::SetId set) {
          verdict(set, 0, true, 51, 0);
          verdict(set, 0, false, 52, client);
          has_set("10.9.0.2", set);
          if (auto server = state_.workloads.find(kServer); server != state_.workloads.end())
            server->second.ingress = set;
          if (round % 2 == 0) return;
          state_.peers.erase(ip("10.9.0.1"));
          state_.blocks[IpBlock::parse("10.9.0.0/24").value()] = client;
        });
      },
      "10.9.0.2:8080", nullptr);
}

// In each state one end denies, and the other does not.
TEST_P(PolicyOfTheClientsTest, ADenialThatMovesFromOneEndToTheOther) {
  flip(
      [&](int round) {
        state_.sets.clear();
        state_.workloads[kApp].egress = 6;
        verdict(6, 0, round % 2 == 0, 51, 0);
        verdict(5, 0, round % 2 != 0, 52);
        has_set("10.9.0.2", 5);
        apply_all();
      },
      "10.9.0.2:8080", nullptr);
}

std::string name_of(const testing::TestParamInfo<Ends>& at) {
  return at.param == Ends::kClient   ? "TheClient"
         : at.param == Ends::kServer ? "TheServer"
                                     : "BothEnds";
}
INSTANTIATE_TEST_SUITE_P(At, PolicyChangeTest,
                         testing::Values(Ends::kClient, Ends::kServer, Ends::kBoth), name_of);
INSTANTIATE_TEST_SUITE_P(At, PolicyOfTheClientsTest, testing::Values(Ends::kClient, Ends::kBoth),
                         name_of);

}  // namespace
}  // namespace mesh::test
