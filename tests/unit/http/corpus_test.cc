// The fuzz corpora as a unit test. A file named ok-* holds only messages that are accepted; one
// named bad-* holds at least one that is refused.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/fuzz/http1_invariants.h"

namespace mesh::http {
namespace {

template <class Check>
void run(const std::string& corpus, int at_least, Check check) {
  int files = 0;
  const std::filesystem::path folder = std::string(MESH_SOURCE_DIR "/tests/fuzz/corpus/") + corpus;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.starts_with('.')) continue;
    ++files;
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string input{std::istreambuf_iterator<char>(file), {}};
    ASSERT_FALSE(input.empty()) << name;
    const Verdict verdict = check(input);
    EXPECT_EQ(verdict.broken, "") << name;
    if (name.starts_with("ok-")) {
      EXPECT_TRUE(verdict.accepted && verdict.messages > 0) << name;
    } else {
      ASSERT_TRUE(name.starts_with("bad-")) << name;
      EXPECT_FALSE(verdict.accepted) << name;
    }
  }
  EXPECT_GE(files, at_least);
}

TEST(Corpus, RequestsKeepTheInvariants) { run("http1_request", 60, check_requests); }

TEST(Corpus, ResponsesKeepTheInvariants) {
  run("http1_response", 30, [](std::string_view input) {
    const Verdict head = check_responses(input, Method::head);
    EXPECT_EQ(head.broken, "");
    return check_responses(input, Method::get);
  });
}

}  // namespace
}  // namespace mesh::http
