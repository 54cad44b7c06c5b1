#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "http/message.h"

namespace mesh::http {
namespace {

std::string normalised(std::string_view path) {
  std::string storage;
  const auto result = normalise_path(path, storage);
  return result ? std::string(*result) : "refused";
}

TEST(NormalisePath, FollowsIstioBase) {
  struct Case {
    std::string_view path, expected;
  };
  const Case cases[] = {
      // Nothing to do.
      {"/", "/"},
      {"/a/b", "/a/b"},
      {"/a/b/", "/a/b/"},
      {"/a.b/c..d/e.", "/a.b/c..d/e."},
      {"/.well-known/x", "/.well-known/x"},
      {"/...", "/..."},
      {"/a/..b/.c", "/a/..b/.c"},
      // RFC 3986 5.2.4 and 5.4.
      {"/.", "/"},
      {"/..", "/"},
      {"/./", "/"},
      {"/../", "/"},
      {"/a/.", "/a/"},
      {"/a/..", "/"},
      {"/a/./b", "/a/b"},
      {"/a/../b", "/b"},
      {"/a/b/../..", "/"},
      {"/a/b/../../../c", "/c"},
      {"/../../etc/passwd", "/etc/passwd"},
      {"/a/b/c/./../../g", "/a/g"},
      // Slashes are not merged; an empty segment is a segment.
      {"//a", "//a"},
      {"/a//b", "/a//b"},
      {"/a//../b", "/a/b"},
      {"//..", "/"},
      {"//../..//", "//"},
      // Backslashes are slashes.
      {"/a\\b", "/a/b"},
      {"/a\\..\\b", "/b"},
      {"/a/..\\admin", "/admin"},
      {"/\\a", "//a"},
      // Escapes of unreserved characters are decoded, once, others stay as they are.
      {"/%61dmin", "/admin"},
      {"/%7Euser%2D%5f%2e", "/~user-_."},
      {"/a%2fb", "/a%2fb"},
      {"/a%2Fb", "/a%2Fb"},
      {"/a%5cb", "/a%5cb"},
      {"/a%20b", "/a%20b"},
      {"/a%2561", "/a%2561"},
      {"/caf%C3%A9", "/caf%C3%A9"},
      {"/a%3fb", "/a%3fb"},
      {"/a%23b", "/a%23b"},
      {"/a%0d%0ab", "/a%0d%0ab"},
      // Dots that hide.
      {"/a/%2e%2e/admin", "/admin"},
      {"/a/.%2E/admin", "/admin"},
      {"/%2e/admin", "/admin"},
      {"/a/%2e%2e%2fadmin", "/a/..%2fadmin"},
      {"/a\\%2e%2e\\admin", "/admin"},
      {"/..;/admin", "/..;/admin"},
      // Refused.
      {"", "refused"},
      {"a", "refused"},
      {"\\a", "refused"},
      {"/%", "refused"},
      {"/%2", "refused"},
      {"/%g0", "refused"},
      {"/%0g", "refused"},
      {"/%%32e", "refused"},
      {"/%2%65", "refused"},
      {"/%00", "refused"},
      {"/a/%2e%2e/%", "refused"},
  };
  for (const auto& [path, expected] : cases) {
    EXPECT_EQ(normalised(path), expected) << path;
    if (expected != "refused") EXPECT_EQ(normalised(expected), expected) << "not idempotent";
  }
}

TEST(NormalisePath, ViewsAPathThatDoesNotChange) {
  std::string storage;
  const std::string path = "/productpage/1";
  EXPECT_EQ(normalise_path(path, storage)->data(), path.data());
  EXPECT_EQ(normalise_path("/a/../b", storage)->data(), storage.data());
}

}  // namespace
}  // namespace mesh::http
