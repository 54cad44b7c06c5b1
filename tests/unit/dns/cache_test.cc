#include "dns/cache.h"

#include <gtest/gtest.h>

#include "tests/support/dns_bytes.h"

namespace mesh::dns {
namespace {

using namespace std::chrono_literals;
namespace bytes = dns_bytes;

Bytes view(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string response(std::string_view name, std::uint32_t ttl) {
  return bytes::header(1, 0x8180, 1, 1) + bytes::question(name, type::kA) +
         bytes::record(bytes::kQuestionName, type::kA, ttl, bytes::address(192, 0, 2, 1));
}

const Cache::Time kStart = Cache::Time{} + 1h;

TEST(DnsCache, KeepsAnAnswerForItsTimeAndCountsItsTtlDown) {
  Cache cache(10, 10'000);
  cache.put("a", view(response("a.example", 60)), kStart);
  EXPECT_TRUE(cache.find("b", kStart).empty());
  EXPECT_EQ(time_to_live(cache.find("a", kStart)), 60U);
  EXPECT_EQ(time_to_live(cache.find("a", kStart + 45s)), 15U);
  EXPECT_EQ(time_to_live(cache.find("a", kStart + 59s)), 1U);
  EXPECT_TRUE(cache.find("a", kStart + 60s).empty());
  EXPECT_EQ(cache.size(), 0U);
  EXPECT_EQ(cache.bytes(), 0U);
}

TEST(DnsCache, GivesNoMoreThanTheClientTakes) {
  Cache cache(10, 10'000);
  const std::string answer = response("a.example", 60);
  cache.put("a", view(answer), kStart);
  EXPECT_TRUE(cache.find("a", kStart, answer.size() - 1).empty());
  EXPECT_EQ(cache.find("a", kStart, answer.size()).size(), answer.size());
}

TEST(DnsCache, KeepsNothingThatHasNoTime) {
  Cache cache(10, 10'000);
  cache.put("a", view(response("a.example", 0)), kStart);
  cache.put("b", view(bytes::header(1, 0x8182, 1) + bytes::question("b.example", 1)), kStart);
  EXPECT_EQ(cache.size(), 0U);
}

TEST(DnsCache, IsBoundedInEntriesAndBytes) {
  Cache few(2, 10'000);
  for (const char* name : {"a", "b"}) few.put(name, view(response(name, 60)), kStart);
  EXPECT_FALSE(few.find("a", kStart).empty());  // used: b is the oldest now
  few.put("c", view(response("c", 60)), kStart);
  EXPECT_EQ(few.size(), 2U);
  EXPECT_FALSE(few.find("a", kStart).empty());
  EXPECT_TRUE(few.find("b", kStart).empty());

  Cache small(1000, 2'000);
  for (int i = 0; i < 100; ++i) small.put(std::to_string(i), view(response("a", 60)), kStart);
  EXPECT_LE(small.bytes(), 2'000U);
  EXPECT_GT(small.size(), 2U);
  small.put("large", view(response("a", 60) + std::string(5'000, 'x')), kStart);
  EXPECT_LE(small.bytes(), 2'000U);
}

TEST(DnsCache, TellsApartWhatAnAnswerDependsOn) {
  const SocketAddress one{IpAddress::v4(192, 0, 2, 53), 53},
      other{IpAddress::v4(192, 0, 2, 54), 53};
  const auto parse = [](const std::string& text) { return parse_query(view(text)).value(); };
  const std::string question = bytes::question("example.com", 1);
  const Query plain = parse(bytes::header(1, 0x0100, 1) + question);
  const std::string key = cache_key(one, plain);
  EXPECT_EQ(key, cache_key(one, parse(bytes::query("EXAMPLE.com", 1, 77))));
  EXPECT_NE(key, cache_key(other, plain));
  EXPECT_NE(key, cache_key(one, parse(bytes::query("example.com", 28))));
  EXPECT_NE(key, cache_key(one, parse(bytes::query("example.org", 1))));
  for (const unsigned flags : {0x0000U, 0x0110U, 0x0120U})
    EXPECT_NE(key, cache_key(one, parse(bytes::header(1, flags, 1) + question))) << flags;
  for (const bool dnssec : {false, true})
    EXPECT_NE(key, cache_key(one, parse(bytes::header(1, 0x0100, 1, 0, 0, 1) + question +
                                        bytes::opt(1232, dnssec))));
}

}  // namespace
}  // namespace mesh::dns
