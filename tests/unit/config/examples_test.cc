// Each YAML under examples/ is accepted, except those that are there to show a refusal.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

const std::set<std::string> kRefused = {"authorization-unsupported.yaml"};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Examples, AreAccepted) {
  int seen = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(MESH_SOURCE_DIR "/examples")) {
    if (entry.path().extension() != ".yaml") continue;
    ++seen;
    auto objects = objects_of(read_file(entry.path()), entry.path().filename().string());
    EXPECT_FALSE(objects.empty()) << entry.path();
    bool refused = false;
    for (const ObjectPtr& object : objects)
      for (const Problem& problem : validate(*object))
        if (problem.severity == Problem::Severity::kError) {
          refused = true;
          EXPECT_TRUE(kRefused.contains(entry.path().filename())) << problem.to_string();
        }
    EXPECT_EQ(refused, kRefused.contains(entry.path().filename())) << entry.path();
  }
  EXPECT_GE(seen, 10);
}

}  // namespace
}  // namespace mesh::config
