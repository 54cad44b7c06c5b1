// The fuzz corpus as a unit test. A file named ok-* is accepted whole, one named bad-* is not.
#include "tests/fuzz/config_invariants.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace mesh::config {
namespace {

TEST(Corpus, KeepsTheInvariants) {
  int files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MESH_SOURCE_DIR "/tests/fuzz/corpus/config")) {
    const std::string name = entry.path().filename();
    if (name.starts_with('.')) continue;
    ++files;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string input{std::istreambuf_iterator<char>(file), {}};
    const ConfigVerdict verdict = check_config(input);
    EXPECT_EQ(verdict.broken, "") << name;
    ASSERT_TRUE(name.starts_with("ok-") || name.starts_with("bad-")) << name;
    EXPECT_EQ(verdict.accepted, name.starts_with("ok-")) << name;
  }
  EXPECT_GE(files, 25);
}

}  // namespace
}  // namespace mesh::config
