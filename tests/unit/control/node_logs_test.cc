// Node: the access log, the tap, and what the proxy says.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(NodeTest, TheAccessLogIsAFileAndNothingElse) {
  std::string directory = testing::TempDir() + "log-XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  std::filesystem::create_symlink(directory + "/file", directory + "/link");
  ASSERT_EQ(::mkfifo((directory + "/fifo").c_str(), 0600), 0);
  const UniqueFd reader(::open((directory + "/fifo").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  for (const char* name : {"/link", "/fifo", "", "/file"}) {
    access_log_ = directory + name;
    proxy_.payloads.clear();
    restart();
    connect();
    const bool is_file = access_log_.ends_with("/file");
    EXPECT_EQ(messages(feed::kOptions).back().at("access_log").as_bool(), is_file) << name;
    EXPECT_THAT(node_->status(now_).reasons,
                testing::Conditional(
                    is_file, testing::IsEmpty(),
                    testing::Contains(HasSubstr("access log cannot be opened: " + access_log_))));
  }
  EXPECT_FALSE(std::filesystem::is_symlink(directory + "/file"));
  std::filesystem::remove_all(directory);
}

TEST_F(NodeTest, TheTapIsOnOnlyWhileSomebodyListens) {
  connect();
  std::vector<std::string> seen;
  const auto id = node_->add_tap([&](const api::TapEvent& event) { seen.push_back(event.path); });
  EXPECT_TRUE(messages(feed::kTap).back().at("on").as_bool());
  from_proxy({{"type", "tap_event"}, {"path", "/x"}});
  EXPECT_THAT(seen, ElementsAre("/x"));
  node_->remove_tap(id);
  EXPECT_FALSE(messages(feed::kTap).back().at("on").as_bool());
}

TEST_F(NodeTest, WhatTheProxySaysIsCutAndPrintable) {
  connect();
  const std::string evil = "\x1b[2J\n\xc2\x9b" + std::string(100'000, 'x');
  const std::string tame = "\\x1b[2J\\x0a\\x9bxxx";
  const auto is_tame = [&](const std::string& text) {
    return text.find(tame) != std::string::npos && text.size() < 5'000;
  };
  std::vector<std::string> seen;
  node_->add_tap([&](const api::TapEvent& event) { seen.push_back(event.path); });
  from_proxy({{"type", "tap_event"}, {"path", evil}});
  EXPECT_THAT(seen, ElementsAre(testing::Truly(is_tame)));
  const std::uint64_t question = node_->ask_proxy("clusters");
  from_proxy({{"type", "dump_reply"},
              {"id", question},
              {"body", {{"rows", json::array{{{"cluster", evil}, {evil, 1}}}}}}});
  const json::value answer = node_->take_answer(question).value();
  EXPECT_PRED1(is_tame, answer.at("rows").at(0).at("cluster").as_string().c_str());
  EXPECT_PRED1(is_tame, std::string(answer.at("rows").at(0).as_object().begin()[1].key()));
  outcome(service("reviews"));
  json::array problems;
  for (int i = 0; i < 1'000; ++i) problems.push_back({{"message", evil}});
  from_proxy({{"type", "ready"}, {"version", evil}});
  from_proxy({{"type", "nack"},
              {"version", last_update().at("version")},
              {"problems", std::move(problems)}});
  const auto status = node_->status(now_);
  EXPECT_PRED1(is_tame, status.programs.at("meshproxy").version);
  EXPECT_EQ(status.reasons.size(), 100U);
  for (const std::string& reason : status.reasons) EXPECT_PRED1(is_tame, reason);
}

}  // namespace
}  // namespace mesh::control
