#include "feed/hold.h"

#include <gtest/gtest.h>

#include <string>

namespace mesh::feed {
namespace {

HoldMessage valid() {
  HoldMessage message;
  message.type = HoldType::kListener;
  message.workload = 7;
  message.netns_cookie = 0x1122334455667788;
  message.port = kOutboundPort;
  message.family = kFamily4;
  message.kind = ListenerKind::kOutbound;
  return message;
}

TEST(HoldMessage, SurvivesTheWire) {
  const HoldMessage sent = valid();
  const auto got = parse_hold_message(as_bytes(sent));
  ASSERT_TRUE(got);
  EXPECT_EQ(got.value().workload, 7U);
  EXPECT_EQ(got.value().netns_cookie, 0x1122334455667788U);
  EXPECT_EQ(got.value().port, 15001);
}

TEST(HoldMessage, RefusesWhatIsMalformed) {
  EXPECT_FALSE(parse_hold_message(""));
  EXPECT_FALSE(parse_hold_message(std::string(sizeof(HoldMessage) - 1, '\1')));
  EXPECT_FALSE(parse_hold_message(std::string(sizeof(HoldMessage) + 1, '\1')));
  const auto refused = [](auto change) {
    HoldMessage message = valid();
    change(message);
    return !parse_hold_message(as_bytes(message));
  };
  EXPECT_TRUE(refused([](HoldMessage& m) { m.type = HoldType{0}; }));
  EXPECT_TRUE(refused([](HoldMessage& m) { m.type = HoldType{99}; }));
  EXPECT_TRUE(refused([](HoldMessage& m) { m.family = 5; }));
  EXPECT_TRUE(refused([](HoldMessage& m) { m.kind = ListenerKind{0}; }));
  EXPECT_TRUE(refused([](HoldMessage& m) { m.kind = ListenerKind{6}; }));
  EXPECT_TRUE(refused([](HoldMessage& m) { m.status = HoldStatus{99}; }));
  EXPECT_TRUE(refused([](HoldMessage& m) { m.count = kMaxSocketBatch + 1; }));
}

TEST(HoldMessage, EveryRefusalReadsAsASentence) {
  for (int status = 0; status <= static_cast<int>(HoldStatus::kShared); ++status)
    EXPECT_NE(to_string(static_cast<HoldStatus>(status)), "unknown status") << status;
}

}  // namespace
}  // namespace mesh::feed
