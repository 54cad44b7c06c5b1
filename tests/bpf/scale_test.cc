// What a change costs the kernel's maps, however much is there that it has nothing to do with.
#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

constexpr int kColumns = 2;  // of a service

class ScaleTest : public DatapathTest {
 protected:
  static IpAddress numbered(int network, int number) {
    return IpAddress::v4(10, static_cast<std::uint8_t>(network), 0,
                         static_cast<std::uint8_t>(number));
  }
  void add_service(int number, int endpoint) {
    const std::vector<datapath::Share> shares = {{SocketAddress{numbered(1, number), 80}, 1},
                                                 {SocketAddress{numbered(2, endpoint), 80}, 1}};
    state_.services[{numbered(96, number), 80}] = {static_cast<datapath::ServiceId>(100 + number),
                                                   ServiceEntry::Kind::kBalance,
                                                   datapath::columns_of(shares)};
    ASSERT_EQ((state_.services.at({numbered(96, number), 80}).columns.size()), kColumns);
  }
  // So many services with their endpoints, and sets that judge them.
  void fill(int count) {
    for (int i = 1; i <= count; ++i) {
      const auto set = static_cast<datapath::SetId>(100 + i);
      add_service(i, i);
      has_set(numbered(1, i).to_string(), set);
      has_set(numbered(2, i).to_string(), set);
      verdict(set, 0, true, 1);
      verdict(set, 80, i % 2 == 0, 1);
    }
    apply_all();
  }
  // Returns how many entries one apply() wrote or deleted.
  std::uint64_t written() {
    const std::uint64_t before = count("map_entries_written");
    apply_all();
    return count("map_entries_written") - before;
  }
  // An endpoint of the first service moves.
  std::uint64_t move_endpoint(int from, int to) {
    state_.peers.erase(numbered(2, from));
    state_.peers[numbered(2, to)] = {0, 101};
    add_service(1, to);
    return written();
  }
  // Another verdict each time: the generation that is not active still has the one before.
  std::uint64_t change_policy(std::uint32_t policy) {
    verdict(101, 80, true, policy);
    return written();
  }
};

TEST_F(ScaleTest, AChangeWritesAsManyEntriesHoweverMuchThereIs) {
  std::uint64_t endpoint = 0, policy = 0;
  for (const int count : {4, 24}) {
    fill(count);
    // Each change is written into the generation that was not active: so both are to be full.
    move_endpoint(1, 60);
    const std::uint64_t moved = move_endpoint(60, 61);
    change_policy(2);
    const std::uint64_t changed = change_policy(3);
    EXPECT_EQ(written(), 0U) << "nothing changed";
    if (count == 4) {
      endpoint = moved;
      policy = changed;
      // Its address in, the last one and the one before out; columns in and out; the slot.
      EXPECT_LE(endpoint, 3U + 3U + 2 * kColumns + 1U);
      EXPECT_LE(policy, 8U);
    }
    EXPECT_EQ(moved, endpoint) << count;
    EXPECT_EQ(changed, policy) << count;
    move_endpoint(61, 1);
  }
  EXPECT_GT(endpoint, 0U);
  EXPECT_GT(policy, 0U);
}

}  // namespace
}  // namespace mesh::test
