#include "base/arguments.h"

#include <gmock/gmock.h>

namespace mesh {
namespace {

TEST(ParseNumber, TakesDigitsAndNothingElse) {
  EXPECT_EQ(parse_number("--uid", "65530").value(), 65530u);
  EXPECT_EQ(parse_number("--uid", "4294967295").value(), 4294967295u);
  for (const char* wrong : {"", "x", "1x", " 1", "-1", "+1", "4294967296"}) {
    auto parsed = parse_number("--uid", wrong);
    ASSERT_TRUE(parsed.has_error()) << wrong;
    EXPECT_EQ(parsed.error().code, Errc::invalid_argument);
    EXPECT_EQ(parsed.error().message, std::string("--uid wants a number, not '") + wrong + "'");
  }
}

}  // namespace
}  // namespace mesh
