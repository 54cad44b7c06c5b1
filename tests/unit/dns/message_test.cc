#include "dns/message.h"

#include <arpa/nameser.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/dns_bytes.h"

namespace mesh::dns {
namespace {

namespace bytes = dns_bytes;
using testing::ElementsAre;

Bytes view(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}
std::vector<std::uint8_t> copy(const std::string& text) { return {text.begin(), text.end()}; }

Record a(std::string owner, int last) {
  return {std::move(owner), type::kA, 30,
          IpAddress::v4(10, 78, 0, static_cast<std::uint8_t>(last))};
}

// "name type ttl data" of each record of a section, as glibc's own parser has it.
std::vector<std::string> by_glibc(const std::vector<std::uint8_t>& message, ns_sect section) {
  ns_msg handle;
  std::vector<std::string> records;
  if (::ns_initparse(message.data(), static_cast<int>(message.size()), &handle) != 0)
    return {"glibc cannot parse it"};
  for (int i = 0; i < ns_msg_count(handle, section); ++i) {
    ns_rr record;
    if (::ns_parserr(&handle, section, i, &record) != 0) return {"glibc cannot parse a record"};
    std::string text = std::string(ns_rr_name(record)) + " " + std::to_string(ns_rr_type(record)) +
                       " " + std::to_string(ns_rr_ttl(record)) + " ";
    const std::uint8_t* data = ns_rr_rdata(record);
    char name[NS_MAXDNAME];
    const int skip = ns_rr_type(record) == ns_t_srv ? 6 : 0;
    if (ns_rr_type(record) == ns_t_cname || skip != 0) {
      if (skip != 0) text += std::to_string(data[4] << 8 | data[5]) + " ";
      if (::ns_name_uncompress(message.data(), message.data() + message.size(), data + skip, name,
                               sizeof name) < 0)
        return {"glibc cannot read a name"};
      text += name;
    } else if (ns_rr_type(record) == ns_t_a || ns_rr_type(record) == ns_t_aaaa) {
      for (int b = 0; b < ns_rr_rdlen(record); ++b)
        text += (b ? "." : "") + std::to_string(data[b]);
    }
    records.push_back(text);
  }
  return records;
}

TEST(DnsQuery, SaysWhatIsAsked) {
  const std::string wire = bytes::query("ReViews.Default", 28, 0xabcd);
  const auto query = parse_query(view(wire));
  ASSERT_TRUE(query);
  EXPECT_EQ(query->id, 0xabcd);
  EXPECT_TRUE(query->is_standard && query->is_plain && query->is_cacheable);
  EXPECT_EQ(query->name, "reviews.default");
  EXPECT_EQ(query->type, type::kAaaa);
  EXPECT_EQ(query->klass, kClassIn);
  EXPECT_EQ(query->question_size, wire.size() - kHeaderSize);
  EXPECT_FALSE(query->has_edns);
  EXPECT_EQ(query->udp_size, 512);
}

TEST(DnsQuery, ReadsWhatTheClientCanTake) {
  const auto with = [](const std::string& records, unsigned count = 1) {
    return parse_query(
        view(bytes::header(1, 0x100, 1, 0, 0, count) + bytes::question("a.b", 1) + records));
  };
  EXPECT_TRUE(with(bytes::opt(4096))->has_edns);
  EXPECT_EQ(with(bytes::opt(4096))->udp_size, 4096);
  EXPECT_EQ(with(bytes::opt(100))->udp_size, 512);  // RFC 6891 6.2.3
  EXPECT_FALSE(with(bytes::opt(4096))->wants_dnssec);
  EXPECT_TRUE(with(bytes::opt(4096, true))->wants_dnssec);
  EXPECT_TRUE(with(bytes::opt(4096))->is_cacheable);
  EXPECT_FALSE(with(bytes::opt(4096, false, std::string("\0\x0a\0\0", 4)))->is_cacheable);
  EXPECT_FALSE(with(bytes::opt(4096, false, "", 1))->is_cacheable);
  EXPECT_EQ(with(bytes::opt(4096, false, "", 1))->edns_version, 1);
  EXPECT_FALSE(with(bytes::record(std::string(1, '\0'), 250, 0, "signature"))->is_cacheable);
  EXPECT_FALSE(with(bytes::opt(512) + bytes::opt(512), 2));
}

TEST(DnsQuery, TakesNoOddNameForAHostName) {
  std::string odd = bytes::query("a.b", 1);
  odd[13] = '.';  // one label of one dot
  EXPECT_FALSE(parse_query(view(odd))->is_plain);
  EXPECT_EQ(parse_query(view(odd))->name, "");
  odd[13] = '\0';
  EXPECT_FALSE(parse_query(view(odd))->is_plain);
  EXPECT_TRUE(parse_query(view(bytes::query("_http._tcp.a-b", 33)))->is_plain);
}

// A record whose data are `pointers` pointers, each to the one before and the first to the
// question's name, and one that is owned by the name at the last of them. The question: a, A.
std::string with_pointers(unsigned flags, unsigned pointers) {
  const std::string question = bytes::question("a", 1);
  const unsigned first = 12 + static_cast<unsigned>(question.size()) + 11;
  std::string data;
  for (unsigned i = 0; i < pointers; ++i)
    data += bytes::u16(0xc000U | (i == 0 ? 12U : first + 2 * (i - 1)));
  return bytes::header(1, flags, 1, 2) + question +
         bytes::record(std::string(1, '\0'), 10, 60, data) +
         bytes::record(bytes::u16(0xc000U | (first + 2 * (pointers - 1))), 1, 60,
                       bytes::address(1, 2, 3, 4));
}

// Else a message of 64 KB takes millions of steps: thousands of names of thousands of pointers.
TEST(DnsMessage, FollowsABoundedNumberOfPointersOfOneName) {
  EXPECT_TRUE(parse_query(view(with_pointers(0x0100, 63))));  // and the one that leads to them
  EXPECT_FALSE(parse_query(view(with_pointers(0x0100, 64))));
  EXPECT_EQ(time_to_live(view(with_pointers(0x8180, 63))), 60U);
  EXPECT_FALSE(time_to_live(view(with_pointers(0x8180, 64))));
  EXPECT_TRUE(read_records(view(with_pointers(0x8180, 63))));
  EXPECT_FALSE(read_records(view(with_pointers(0x8180, 64))));
}

// 255 bytes with the lengths of its labels and the root's (RFC 1035, 3.1): 253 as it is written.
TEST(DnsQuery, HasANameAsLongAsANameMayBe) {
  const std::string label(49, 'a');
  const std::string start = label + "." + label + "." + label + "." + label + ".";  // 200
  const std::string longest = start + std::string(53, 'b');
  ASSERT_EQ(longest.size(), 253U);
  const auto query = parse_query(view(bytes::query(longest, type::kA)));
  ASSERT_TRUE(query);
  EXPECT_EQ(query->name, longest);
  EXPECT_FALSE(parse_query(view(bytes::query(longest + "b", type::kA))));
}

TEST(DnsQuery, IsNoLongerThanAQueryNeeds) {
  const auto padded = [](std::size_t size, unsigned flags = 0x0100) {
    const std::string start = bytes::header(1, flags, 1, 0, 0, 1) + bytes::question("a.b", 1);
    return start + bytes::opt(1232, false, std::string(size - start.size() - 11, '\0'));
  };
  ASSERT_EQ(padded(4096).size(), 4096U);
  EXPECT_TRUE(parse_query(view(padded(4096))));
  EXPECT_FALSE(parse_query(view(padded(4097))));
  const auto update = parse_query(view(padded(40'000, 0x2800)));  // its records are not read
  EXPECT_TRUE(update && !update->is_standard);
}

TEST(DnsQuery, IsNotWhatIsNone) {
  EXPECT_FALSE(parse_query({}));
  EXPECT_FALSE(parse_query(view(bytes::query("a", 1, 1, 0x8100))));  // a response: never answered
  EXPECT_FALSE(parse_query(view(bytes::query("a", 1, 1, 0x2800)))->is_standard);  // an update
  EXPECT_FALSE(parse_query(view(bytes::header(1, 0x100, 0)))->is_standard);
  EXPECT_FALSE(parse_query(view(bytes::header(1, 0x100, 2) + bytes::question("a", 1) +
                                bytes::question("b", 1)))
                   ->is_standard);
}

TEST(DnsAnswer, IsReadByAnotherParser) {
  const std::string wire = bytes::query("ReViews.default", type::kA);
  const Query query = parse_query(view(wire)).value();
  Answer answer;
  answer.records = {{"", type::kCname, 30, std::string("web.example.com")},
                    a("web.example.com", 1),
                    {"", type::kSrv, 7, Service{0, 100, 9080, "a.b.svc.cluster.local"}},
                    {"", type::kAaaa, 30, IpAddress::parse("fd00::1").value()},
                    {"", type::kAaaa, 30, IpAddress::v4(1, 2, 3, 4)}};
  const auto written = write_answer(query, view(wire), answer, 512);
  EXPECT_THAT(by_glibc(written, ns_s_qd), testing::SizeIs(1));
  EXPECT_THAT(by_glibc(written, ns_s_an),
              ElementsAre("ReViews.default 5 30 web.example.com", "web.example.com 1 30 10.78.0.1",
                          "ReViews.default 33 7 9080 a.b.svc.cluster.local",
                          "ReViews.default 28 30 253.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1",
                          "ReViews.default 28 30 0.0.0.0.0.0.0.0.0.0.255.255.1.2.3.4"));
  // The question comes back letter by letter; AA, RD and RA are set.
  EXPECT_EQ(std::string(written.begin() + 12, written.begin() + 12 + 21), wire.substr(12));
  EXPECT_EQ(written[2] << 8 | written[3], 0x8580);
  EXPECT_TRUE(is_response(written, query, view(wire), 0x1234));
}

TEST(DnsAnswer, DeniesWithTheZoneItSpeaksFor) {
  const std::string wire = bytes::header(1, 0x0110, 1, 0, 0, 1) +
                           bytes::question("x.default.svc.cluster.local", 1) +
                           bytes::opt(4096, true);
  const Query query = parse_query(view(wire)).value();
  const Answer answer{
      .rcode = Rcode::kNoSuchName, .zone = "cluster.local", .serial = 7, .negative_ttl = 5};
  const auto written = write_answer(query, view(wire), answer, 512);
  EXPECT_EQ(rcode_of(written), Rcode::kNoSuchName);
  EXPECT_THAT(by_glibc(written, ns_s_ns), ElementsAre("cluster.local 6 5 "));
  EXPECT_THAT(by_glibc(written, ns_s_ar), ElementsAre(". 41 32768 "));
  EXPECT_EQ(time_to_live(written), 5U);
}

TEST(DnsAnswer, IsCutToWhatTheClientTakes) {
  for (const bool edns : {false, true}) {
    const std::string wire = bytes::header(1, 0x100, 1, 0, 0, edns ? 1 : 0) +
                             bytes::question("big.default", 1) + (edns ? bytes::opt(512) : "");
    const Query query = parse_query(view(wire)).value();
    Answer answer;
    for (int i = 0; i < 100; ++i) answer.records.push_back(a("", i));
    const auto cut = write_answer(query, view(wire), answer, 512);
    EXPECT_LE(cut.size(), 512U);
    EXPECT_GT(cut.size(), 512U - 16);
    EXPECT_TRUE(is_truncated(cut));
    EXPECT_EQ(by_glibc(cut, ns_s_an).size(), edns ? 29U : 30U);
    EXPECT_EQ(by_glibc(cut, ns_s_ar).size(), edns ? 1U : 0U);
    EXPECT_FALSE(time_to_live(cut));
    const auto whole = write_answer(query, view(wire), answer, kMaxMessage);
    EXPECT_FALSE(is_truncated(whole));
    EXPECT_EQ(by_glibc(whole, ns_s_an).size(), 100U);
  }
}

TEST(DnsResponse, IsOnlyWhatAnswersTheQuestion) {
  const std::string wire = bytes::query("Example.com", 1);
  const Query query = parse_query(view(wire)).value();
  const auto accepts = [&](const std::string& response) {
    return is_response(view(response), query, view(wire), 0x99);
  };
  const auto with = [](unsigned id, unsigned flags, std::string_view name, unsigned type,
                       unsigned klass = 1) {
    return bytes::header(id, flags, 1) + bytes::question(name, type, klass);
  };
  EXPECT_TRUE(accepts(with(0x99, 0x8180, "Example.com", 1)));
  EXPECT_TRUE(accepts(with(0x99, 0x8182, "example.COM", 1)));
  EXPECT_FALSE(accepts(with(0x1234, 0x8180, "Example.com", 1)));  // the client's own number
  EXPECT_FALSE(accepts(with(0x99, 0x0180, "Example.com", 1)));
  EXPECT_FALSE(accepts(with(0x99, 0xa980, "Example.com", 1)));
  EXPECT_FALSE(accepts(with(0x99, 0x8180, "Example.org", 1)));
  EXPECT_FALSE(accepts(with(0x99, 0x8180, "Example.com", 28)));
  EXPECT_FALSE(accepts(with(0x99, 0x8180, "Example.com", 1, 3)));
  EXPECT_FALSE(accepts(with(0x99, 0x8180, "Example", 1)));
  EXPECT_FALSE(accepts(bytes::header(0x99, 0x8180, 0)));
  EXPECT_TRUE(accepts(bytes::header(0x99, 0x8181, 0)));  // it could not read the question
  EXPECT_FALSE(accepts(bytes::header(0x99, 0x8180, 2) + bytes::question("Example.com", 1) +
                       bytes::question("Example.com", 1)));
  EXPECT_FALSE(accepts("short"));
}

std::string response(unsigned flags, unsigned answers, unsigned authorities,
                     const std::string& records) {
  return bytes::header(1, flags, 1, answers, authorities) + bytes::question("a.example", 1) +
         records;
}

TEST(DnsResponse, IsKeptForItsShortestTtl) {
  const auto ttl = [](unsigned flags, unsigned answers, unsigned authorities,
                      const std::string& records) {
    return time_to_live(view(response(flags, answers, authorities, records)));
  };
  const auto at = [](std::uint32_t seconds) {
    return bytes::record(bytes::kQuestionName, 1, seconds, bytes::address(1, 2, 3, 4));
  };
  EXPECT_EQ(ttl(0x8180, 2, 0, at(300) + at(60)), 60U);
  EXPECT_EQ(ttl(0x8180, 1, 0, at(0x80000000)), 0U);
  EXPECT_EQ(ttl(0x8180, 1, 0, at(9'999'999)), 86'400U);
  EXPECT_EQ(ttl(0x8183, 0, 1, bytes::soa("example", 900, 300)), 300U);
  EXPECT_EQ(ttl(0x8180, 0, 1, bytes::soa("example", 30, 300)), 30U);
  EXPECT_FALSE(ttl(0x8180, 0, 0, ""));               // negative, and nobody says how long
  EXPECT_FALSE(ttl(0x8182, 1, 0, at(60)));           // SERVFAIL
  EXPECT_FALSE(ttl(0x8380, 1, 0, at(60)));           // TC
  EXPECT_FALSE(ttl(0x8180, 1, 0, at(60) + "more"));  // more than it says
  EXPECT_FALSE(ttl(0x8180, 2, 0, at(60)));           // less
  const std::string alias = bytes::record(bytes::kQuestionName, 5, 60, bytes::name("b.example"));
  EXPECT_FALSE(ttl(0x8180, 1, 0, alias));  // an alias of nothing, without SOA
  EXPECT_EQ(ttl(0x8180, 1, 1, alias + bytes::soa("example", 40, 300)), 40U);
}

TEST(DnsResponse, AgesEachTtlAndNothingElse) {
  const std::string fresh =
      bytes::header(1, 0x8180, 1, 2, 0, 1) + bytes::question("a.example", 1) +
      bytes::record(bytes::kQuestionName, 1, 300, bytes::address(1, 2, 3, 4)) +
      bytes::record(bytes::kQuestionName, 1, 20, bytes::address(1, 2, 3, 5)) +
      bytes::opt(1232, true);
  const std::string expected =
      bytes::header(1, 0x8180, 1, 2, 0, 1) + bytes::question("a.example", 1) +
      bytes::record(bytes::kQuestionName, 1, 270, bytes::address(1, 2, 3, 4)) +
      bytes::record(bytes::kQuestionName, 1, 0, bytes::address(1, 2, 3, 5)) +
      bytes::opt(1232, true);
  auto aged = copy(fresh);
  age(aged, 30);
  EXPECT_EQ(aged, copy(expected));
}

TEST(DnsResponse, GivesItsRecordsWithWholeNames) {
  const std::string wire =
      bytes::header(1, 0x8180, 1, 4) + bytes::question("www.Example.com", 1) +
      bytes::record(bytes::kQuestionName, 5, 60, std::string("\x03web\xc0\x10")) +
      bytes::record("\xc0\x2d", 1, 50, bytes::address(1, 2, 3, 4)) +
      bytes::record(bytes::kQuestionName, 46, 60, "signature") +
      bytes::record("\xc0\x2d", 28, 50, std::string("\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1", 16));
  const auto records = read_records(view(wire));
  ASSERT_TRUE(records);
  ASSERT_EQ(records->size(), 3U);
  EXPECT_EQ((*records)[0].owner, "www.example.com");
  EXPECT_EQ(std::get<std::string>((*records)[0].data), "web.example.com");
  EXPECT_EQ((*records)[1].owner, "web.example.com");
  EXPECT_EQ(std::get<IpAddress>((*records)[1].data), IpAddress::v4(1, 2, 3, 4));
  EXPECT_EQ(std::get<IpAddress>((*records)[2].data).to_string(), "fd00::1");
}

TEST(DnsWriter, AsksForAnotherNameAsTheClientDid) {
  const Query client = parse_query(view(bytes::header(9, 0x0110, 1, 0, 0, 1) +
                                        bytes::question("a", 28) + bytes::opt(4096, true)))
                           .value();
  const auto asked = parse_query(write_query(client, "web.example.com"));
  ASSERT_TRUE(asked);
  EXPECT_EQ(asked->name, "web.example.com");
  EXPECT_EQ(asked->type, type::kAaaa);
  EXPECT_EQ(asked->flags, 0x0110);
  EXPECT_TRUE(asked->wants_dnssec);
}

}  // namespace
}  // namespace mesh::dns
