// Audit of what is of no one workload, with fakes of everything around it; of workloads: node_test.
#include "control/audit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/numbers.h"
#include "control/workloads.h"
#include "tests/support/fake_datapath.h"
#include "tests/support/memory_files.h"

namespace mesh::control {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class NoPeer final : public Peer {
 public:
  bool is_connected() const override { return false; }
  std::uint64_t pid() const override { return 0; }
  void send(std::string_view, feed::Fds) override {}
};

class NoMachine final : public Machine {
 public:
  std::vector<IpAddress> node_addresses() override { return {}; }
  Result<UniqueFd> open_netns(const std::string&) override { return UniqueFd(); }
  Result<std::vector<IpAddress>> addresses_in(int) override { return std::vector<IpAddress>(); }
  Result<std::vector<std::uint64_t>> look_at_cgroup(const std::string&) override {
    return std::vector<std::uint64_t>();
  }
  std::optional<bool> is_populated(const std::string&) override { return std::nullopt; }
  std::vector<std::string> sandbox_groups() override { return {}; }
  Result<> remove_cgroup(const std::string&) override { return success(); }
  void watch_cgroup(const std::string&) override {}
  void unwatch_cgroup(const std::string&) override {}
};

class MeshAudit : public testing::Test {
 protected:
  // A whole round later.
  bool look() { return audit_.step(workloads_, true, now_ += Audit::kRound); }
  std::uint64_t counted(const char* name) const { return audit_.counters().at(name); }

  NoMachine machine_;
  NoPeer hold_;
  test::MemoryFiles files_;
  Numbers numbers_{files_, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  Workloads workloads_{machine_, hold_, numbers_};
  test::FakeDatapath datapath_;
  Audit audit_{datapath_, machine_};
  Audit::Clock::time_point now_{};
};

TEST_F(MeshAudit, LooksOnceARound) {
  EXPECT_FALSE(look());
  for (int step = 0; step < Audit::kSteps - 1; ++step)
    audit_.step(workloads_, true, now_ += Audit::Clock::duration(Audit::kRound) / Audit::kSteps);
  EXPECT_EQ(datapath_.mesh_audits, 1);
  audit_.step(workloads_, true, now_ += Audit::Clock::duration(Audit::kRound) / Audit::kSteps);
  EXPECT_EQ(datapath_.mesh_audits, 2);
}

TEST_F(MeshAudit, CountsWhatItFindsAndSaysWhatCouldNotBeRepaired) {
  EXPECT_FALSE(look());
  EXPECT_FALSE(audit_.last());
  datapath_.mesh_differences = {{"the mesh's hook connect4", true}};
  EXPECT_FALSE(look()) << "nothing is wrong any more";
  EXPECT_THAT(audit_.mesh_problems(), IsEmpty());
  ASSERT_TRUE(audit_.last());
  EXPECT_EQ(audit_.last()->what, "the mesh: the mesh's hook connect4");
  EXPECT_TRUE(audit_.last()->is_repaired);
  EXPECT_EQ(audit_.last()->at, now_);
  datapath_.mesh_differences = {{"program 9 (x) at the mesh's hook connect4", false}};
  EXPECT_TRUE(look());
  EXPECT_THAT(audit_.mesh_problems(), ElementsAre("program 9 (x) at the mesh's hook connect4"));
  EXPECT_EQ(counted("differences"), 2U);
  EXPECT_EQ(counted("repairs"), 1U);
  const auto found = now_;
  datapath_.mesh_differences.clear();
  EXPECT_TRUE(look());
  EXPECT_THAT(audit_.mesh_problems(), IsEmpty());
  EXPECT_EQ(audit_.last()->at, found) << "what was last stays";
}

TEST_F(MeshAudit, OneThatCannotLookIsAProblem) {
  datapath_.fail_at = 1;
  EXPECT_TRUE(look());
  EXPECT_THAT(audit_.mesh_problems(), testing::SizeIs(1));
  EXPECT_TRUE(look());
  EXPECT_THAT(audit_.mesh_problems(), IsEmpty());
}

}  // namespace
}  // namespace mesh::control
