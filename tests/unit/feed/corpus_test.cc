// The fuzzer's corpus of frames, cut in every way: no crash, and the same frames however cut.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "feed/channel.h"
#include "feed/hold.h"

namespace mesh::feed {
namespace {

struct Outcome {
  std::vector<std::string> frames;
  bool is_error = false;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};

Outcome decode(std::string_view bytes, std::size_t step) {
  Outcome outcome;
  FrameDecoder decoder;
  for (std::size_t at = 0; at < bytes.size() && !outcome.is_error; at += step) {
    const auto fed =
        decoder.feed(bytes.substr(at, step), [&](std::string_view payload, Fds) -> Result<> {
          outcome.frames.emplace_back(payload);
          (void)parse_hold_message(payload).has_value();
          (void)parse_message(payload).has_value();
          return success();
        });
    outcome.is_error = !fed.has_value();
  }
  return outcome;
}

TEST(FrameCorpus, ReadsTheSameHoweverItIsCut) {
  std::size_t files = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(MESH_SOURCE_DIR "/tests/fuzz/corpus/frame")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), {});
    ASSERT_FALSE(all.empty()) << entry.path();
    const std::string_view bytes = std::string_view(all).substr(1);  // the first is the step
    const Outcome whole = decode(bytes, bytes.size() + 1);
    for (std::size_t step = 1; step <= 64; ++step)
      EXPECT_EQ(decode(bytes, step), whole) << entry.path() << " " << step;
    ++files;
  }
  EXPECT_GE(files, 8U);
}

}  // namespace
}  // namespace mesh::feed
