#include "base/address.h"

#include <gmock/gmock.h>

namespace mesh {
namespace {

TEST(IpAddress, ReadsBothFamiliesAndWritesThemBack) {
  for (const char* text : {"10.1.2.3", "127.0.0.1", "fd00::1", "::1", "::"})
    EXPECT_EQ(IpAddress::parse(text).value().to_string(), text);
}

TEST(IpAddress, ReadsAMappedAddressAsIpv4) {
  EXPECT_EQ(IpAddress::parse("::ffff:10.1.2.3").value(), IpAddress::v4(10, 1, 2, 3));
}

TEST(IpAddress, RefusesWhatIsNoAddress) {
  for (const char* text : {"", "10.1.2", "10.1.2.256", "fd00:::1", "localhost", "1.2.3.4 "})
    EXPECT_TRUE(IpAddress::parse(text).has_error()) << text;
}

TEST(SocketAddress, ReadsBracketsForIpv6) {
  EXPECT_EQ(SocketAddress::parse("[fd00::1]:80").value().to_string(), "[fd00::1]:80");
  EXPECT_TRUE(SocketAddress::parse("fd00::1:80").has_error());
  EXPECT_TRUE(SocketAddress::parse("1.2.3.4:65536").has_error());
}

TEST(IpBlock, ContainsByPrefixWithinOneFamily) {
  auto block = IpBlock::parse("10.1.128.0/17").value();
  EXPECT_TRUE(block.contains(IpAddress::v4(10, 1, 200, 9)));
  EXPECT_FALSE(block.contains(IpAddress::v4(10, 1, 127, 9)));
  EXPECT_TRUE(IpBlock::parse("0.0.0.0/0").value().contains(IpAddress::v4(1, 2, 3, 4)));
  EXPECT_FALSE(IpBlock::parse("::/0").value().contains(IpAddress::v4(1, 2, 3, 4)));
  EXPECT_TRUE(IpBlock::parse("10.0.0.0/33").has_error());
}

}  // namespace
}  // namespace mesh
