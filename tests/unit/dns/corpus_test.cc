// The fuzzer's corpus, whole and cut at every byte: the invariants hold, and nothing reads too far.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "tests/fuzz/dns_invariants.h"

namespace mesh::dns {
namespace {

TEST(DnsCorpus, HoldsItsInvariantsHoweverItIsCut) {
  std::size_t queries = 0, kept = 0, refused = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MESH_SOURCE_DIR "/tests/fuzz/corpus/dns")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> text((std::istreambuf_iterator<char>(file)), {});
    const std::vector<std::uint8_t> bytes(text.begin(), text.end());
    for (std::size_t size = 0; size <= bytes.size(); ++size) {
      const std::vector<std::uint8_t> part(bytes.begin(),
                                           bytes.begin() + static_cast<std::ptrdiff_t>(size));
      check_message(part);  // a copy of its own: a sanitizer sees the end
    }
    const std::string name = entry.path().filename();
    const auto query = parse_query(bytes);
    if (name.starts_with("query-")) {
      EXPECT_TRUE(query && query->is_standard) << name;
      ++queries;
    } else if (name.starts_with("response-")) {
      EXPECT_FALSE(query) << name;
      EXPECT_TRUE(time_to_live(bytes)) << name;
      ++kept;
    } else {
      EXPECT_TRUE(name.starts_with("bad-")) << name;
      EXPECT_FALSE(query) << name;
      EXPECT_FALSE(time_to_live(bytes)) << name;
      ++refused;
    }
  }
  EXPECT_GE(queries, 4U);
  EXPECT_GE(kept, 4U);
  EXPECT_GE(refused, 6U);
}

}  // namespace
}  // namespace mesh::dns
