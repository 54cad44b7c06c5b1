#include "control/fast_path.h"

#include <gmock/gmock.h>

#include "tests/support/fake_datapath.h"
#include "tests/support/memory_files.h"

namespace mesh::control {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

class FastPathSwitchTest : public testing::Test {
 protected:
  FastPathSwitchTest() {
    EXPECT_TRUE(files_.make_directory("/s"));
    files_.set("/s/fastpath", "on\n");
    restart();
  }
  void restart() {
    switch_.emplace(datapath_, files_, "/s/fastpath");
    switch_->start(now_);
  }
  // What a self-test says in the end.
  bool finish(Result<> outcome) {
    datapath_.fast_path_outcome = std::move(outcome);
    return switch_->step(now_ += 500ms);
  }
  const api::FastPathStatus& status() const { return switch_->status(); }

  test::FakeDatapath datapath_;
  test::MemoryFiles files_;
  std::optional<FastPathSwitch> switch_;
  FastPathSwitch::Clock::time_point now_{1h};
};

TEST_F(FastPathSwitchTest, IsOffWhereNobodySwitchedItOn) {
  datapath_.fast_path = true;  // left on, and what the operator said is gone
  const int tests = datapath_.fast_path_tests;
  files_.texts.clear();
  restart();
  EXPECT_EQ(status().cause, "default");
  EXPECT_THAT(status().reason, HasSubstr("meshctl datapath fastpath on"));
  EXPECT_FALSE(datapath_.fast_path);
  EXPECT_EQ(datapath_.fast_path_tests, tests) << "nobody asked for one";
}

TEST_F(FastPathSwitchTest, IsOffUntilItsTestPasses) {
  EXPECT_EQ(status().cause, "testing");
  EXPECT_FALSE(switch_->step(now_));
  EXPECT_FALSE(datapath_.fast_path);
  EXPECT_TRUE(finish(success()));
  EXPECT_EQ(status(), (api::FastPathStatus{true, "", ""}));
  EXPECT_TRUE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, StaysOffWithTheReasonOfTheKernel) {
  datapath_.why_no_fast_path = "Linux 6.12 is too old";
  datapath_.fast_path = true;  // as another kernel's meshd would have left it
  restart();
  EXPECT_EQ(status(), (api::FastPathStatus{false, "kernel", "Linux 6.12 is too old"}));
  EXPECT_FALSE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, IsSwitchedOffWhereItsTestFails) {
  datapath_.fast_path = true;  // left on by the meshd before
  EXPECT_TRUE(finish(Error{Errc::refused, "its self-test failed: bytes were lost"}));
  EXPECT_EQ(status().cause, "test");
  EXPECT_THAT(status().reason, HasSubstr("bytes were lost"));
  EXPECT_FALSE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, IsOffWhereItsTestCannotBegin) {
  datapath_.fail_at = 1;
  restart();
  EXPECT_EQ(status().cause, "test");
  EXPECT_THAT(status().reason, HasSubstr("could not be started"));
}

TEST_F(FastPathSwitchTest, WhatTheOperatorSaidOutlivesMeshd) {
  files_.texts.clear();
  restart();
  ASSERT_TRUE(switch_->set(true, now_));
  EXPECT_EQ(status().cause, "testing");
  EXPECT_TRUE(finish(success()));
  restart();
  EXPECT_EQ(status().cause, "testing");
  EXPECT_TRUE(datapath_.fast_path) << "left on while it is tested";
  finish(success());
  ASSERT_TRUE(switch_->set(false, now_));
  EXPECT_EQ(status().cause, "operator");
  EXPECT_FALSE(datapath_.fast_path);
  const int tests = datapath_.fast_path_tests;
  restart();
  EXPECT_EQ(status().cause, "operator");
  EXPECT_EQ(datapath_.fast_path_tests, tests);
}

TEST_F(FastPathSwitchTest, OnTestsAgain) {
  finish(Error{Errc::refused, "no"});
  ASSERT_TRUE(switch_->set(true, now_));
  EXPECT_EQ(datapath_.fast_path_tests, 2);
  finish(success());
  EXPECT_TRUE(status().on);
}

TEST_F(FastPathSwitchTest, OnOutlivesATestThatFails) {
  finish(Error{Errc::refused, "no"});
  restart();
  EXPECT_EQ(status().cause, "testing");
  EXPECT_TRUE(finish(success()));
  EXPECT_TRUE(status().on);
}

TEST_F(FastPathSwitchTest, OffWhileItIsTestedStaysOff) {
  ASSERT_TRUE(switch_->set(false, now_));
  EXPECT_FALSE(finish(success()));
  EXPECT_FALSE(status().on);
  EXPECT_FALSE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, WhatCannotBeReadIsTakenForOff) {
  files_.set_odd("/s/fastpath", Files::Type::kLink);
  restart();
  EXPECT_FALSE(status().on);
  EXPECT_EQ(status().cause, "operator");
  EXPECT_THAT(status().reason, HasSubstr("cannot be read"));
}

TEST_F(FastPathSwitchTest, WhatIsNeitherOnNorOffIsTakenForOff) {
  files_.set("/s/fastpath", "");
  restart();
  EXPECT_FALSE(status().on);
  EXPECT_EQ(status().cause, "operator");
  EXPECT_THAT(status().reason, HasSubstr("neither"));
}

TEST_F(FastPathSwitchTest, OnThatCannotBeStoredIsNotDone) {
  ASSERT_TRUE(switch_->set(false, now_));
  files_.fail_at = 1;
  EXPECT_FALSE(switch_->set(true, now_));
  EXPECT_EQ(status().cause, "operator");
  EXPECT_FALSE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, OffThatCannotBeStoredIsDoneAndSaysSo) {
  finish(success());
  files_.fail_at = 1;
  const auto said = switch_->set(false, now_);
  ASSERT_FALSE(said);
  EXPECT_THAT(said.error().message, HasSubstr("could not be stored"));
  EXPECT_EQ(status().cause, "operator");
  EXPECT_FALSE(status().on);
  EXPECT_FALSE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, WhatCannotBeDetachedIsSaidToBeOnAndTriedAgain) {
  finish(success());
  datapath_.fail_at = 1;
  ASSERT_TRUE(switch_->set(false, now_));
  EXPECT_TRUE(status().on);
  EXPECT_THAT(status().reason, HasSubstr("cannot be detached"));
  EXPECT_TRUE(datapath_.fast_path);
  datapath_.fail_at = 1;
  EXPECT_FALSE(switch_->step(now_ += 500ms)) << "says the same again";
  EXPECT_TRUE(status().on);
  EXPECT_TRUE(switch_->step(now_ += 500ms));
  EXPECT_FALSE(status().on);
  EXPECT_EQ(status().cause, "operator");
  EXPECT_THAT(status().reason, testing::Not(HasSubstr("detached")));
  EXPECT_FALSE(datapath_.fast_path);
  const int tests = datapath_.fast_path_tests;
  ASSERT_TRUE(switch_->set(true, now_));
  EXPECT_EQ(datapath_.fast_path_tests, tests + 1);
}

TEST_F(FastPathSwitchTest, OnEndsTheAttemptsToDetachIt) {
  finish(success());
  datapath_.fail_at = 1;
  ASSERT_TRUE(switch_->set(false, now_));
  ASSERT_TRUE(switch_->set(true, now_));
  EXPECT_TRUE(finish(success()));
  EXPECT_EQ(status(), (api::FastPathStatus{true, "", ""}));
  EXPECT_FALSE(switch_->step(now_ += 500ms));
  EXPECT_TRUE(datapath_.fast_path);
}

TEST_F(FastPathSwitchTest, IsOffWhereWhoStaysOutDoesNotFit) {
  finish(success());
  datapath_.fast_path_stopped = "write map um_fast_excluded: no space";
  EXPECT_TRUE(switch_->step(now_ += 500ms));
  EXPECT_EQ(status(), (api::FastPathStatus{false, "full", datapath_.fast_path_stopped}));
  EXPECT_FALSE(datapath_.fast_path);
  EXPECT_FALSE(switch_->step(now_ += 500ms));
}

}  // namespace
}  // namespace mesh::control
