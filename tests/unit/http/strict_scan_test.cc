// Every request head that peers are known to read differently, and what we answer.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "http/http1.h"

namespace mesh::http {
namespace {

using std::string_literals::operator""s;

struct Case {
  const char* name;
  std::string input;
  int status;  // 0: accepted
};

std::string get(std::string_view fields) {
  return "GET / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n";
}
std::string post(std::string_view fields) {
  return "POST / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n";
}
std::string target(std::string_view text) {
  return "GET " + std::string(text) + " HTTP/1.1\r\nHost: a\r\n\r\n";
}
std::string host(std::string_view line) {
  return "GET / HTTP/1.1\r\n" + std::string(line) + "\r\n";
}
std::string many_fields(int n) {
  std::string fields;
  for (int i = 0; i < n; ++i) fields += "X: y\r\n";
  return fields;
}

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class StrictScan : public testing::TestWithParam<Case> {};

TEST_P(StrictScan, Answers) {
  RequestParser parser;
  RequestHead head;
  const auto& [name, input, status] = GetParam();
  const Parse parse = parser.parse(input, head);
  if (status == 0) {
    EXPECT_EQ(parse, Parse::done) << name << ": " << parser.error().detail;
    EXPECT_EQ(parser.consumed(), input.size());
  } else {
    EXPECT_EQ(parse, Parse::error) << name;
    EXPECT_EQ(parser.error().status, status) << name << ": " << parser.error().detail;
    EXPECT_FALSE(parser.error().detail.empty());
    EXPECT_EQ(parser.parse(input, head), Parse::error) << "an error is final";
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(
    RequestLine, StrictScan,
    testing::Values(
        Case{"PlainGet", get(""), 0},
        Case{"UnknownMethodTokenPasses", "PURGE / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        Case{"LowerCaseMethodIsAnotherMethod", "get / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        Case{"MethodWithBadCharacter", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"MethodWithHighByte", "G\xc3\x89T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"EmptyMethod", " / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"LeadingSpace", " GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"LeadingTab", "\tGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"MethodTooLong", std::string(33, 'A') + " / HTTP/1.1\r\nHost: a\r\n\r\n", 501},
        Case{"LongestMethod", std::string(32, 'A') + " / HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        Case{"TwoSpacesBeforeTarget", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"TwoSpacesAfterTarget", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"TabInsteadOfSpace", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"SpaceInTarget", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"TrailingSpaceAfterVersion", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400},
        Case{"VerticalTabAsSpace", "GET\x0b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"OneEmptyLineBefore", "\r\n" + get(""), 0},
        Case{"FourEmptyLinesBefore", "\r\n\r\n\r\n\r\n" + get(""), 0},
        Case{"FiveEmptyLinesBefore", "\r\n\r\n\r\n\r\n\r\n" + get(""), 400},
        Case{"BareLineFeedBefore", "\n" + get(""), 400},
        Case{"BareCarriageReturnBefore", "\r" + get(""), 400},
        Case{"Garbage", "\x16\x03\x01\x02", 400}, Case{"GarbageLine", "hello\r\n", 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Versions, StrictScan,
    testing::Values(Case{"Http10", "GET / HTTP/1.0\r\nHost: a\r\n\r\n", 0},
                    Case{"Http10WithoutHost", "GET / HTTP/1.0\r\n\r\n", 0},
                    Case{"Http09", "GET /\r\n", 400}, Case{"Http09WithSpace", "GET / \r\n", 400},
                    Case{"Http09InNumbers", "GET / HTTP/0.9\r\n\r\n", 505},
                    Case{"Http12", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505},
                    Case{"Http20", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505},
                    Case{"Http2Preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
                    Case{"TwoDigitMinor", "GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400},
                    Case{"NoMinor", "GET / HTTP/1\r\nHost: a\r\n\r\n", 400},
                    Case{"LowerCaseName", "GET / http/1.1\r\nHost: a\r\n\r\n", 400},
                    Case{"OtherProtocol", "GET / ICAP/1.0\r\nHost: a\r\n\r\n", 400},
                    Case{"SignedMinor", "GET / HTTP/1.+1\r\nHost: a\r\n\r\n", 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Targets, StrictScan,
    testing::Values(
        Case{"AbsoluteForm", target("http://b/x"), 0},
        Case{"AbsoluteFormUpperCaseScheme", target("HTTP://b/x"), 0},
        Case{"AbsoluteFormWithoutPath", target("http://b"), 0},
        Case{"AbsoluteFormQueryOnly", target("http://b?x=1"), 0},
        Case{"AbsoluteFormStillNeedsHost", "GET http://b/ HTTP/1.1\r\n\r\n", 400},
        Case{"AbsoluteFormBadHostField", "GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
        Case{"AbsoluteFormEmptyAuthority", target("http:///x"), 400},
        Case{"AbsoluteFormUserInfo", target("http://u:p@b/"), 400},
        Case{"AbsoluteFormBadPort", target("http://b:99999/"), 400},
        Case{"AbsoluteFormHttps", target("https://b/"), 421},
        Case{"AbsoluteFormOtherScheme", target("ftp://b/"), 400},
        Case{"AbsoluteFormOneSlash", target("http:/b/"), 400},
        Case{"AuthorityFormWithGet", target("b:80"), 400},
        Case{"Connect", "CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n", 501},
        Case{"ConnectWithPath", "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 501},
        Case{"AsteriskWithOptions", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 0},
        Case{"AsteriskWithGet", target("*"), 400},
        Case{"AsteriskAndMore", "OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"RelativePath", target("a/b"), 400}, Case{"LeadingBackslash", target("\\a"), 400},
        Case{"QueryWithoutPath", target("?a"), 400}, Case{"Fragment", target("/a#b"), 400},
        Case{"FragmentInQuery", target("/a?b#c"), 400},
        Case{"ControlCharacter", target("/a\x01"), 400},
        Case{"Nul", "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n"s, 400},
        Case{"Delete", target("/a\x7f"), 400}, Case{"HighByte", target("/caf\xc3\xa9"), 400},
        Case{"CarriageReturn", "GET /a\rb HTTP/1.1\r\nHost: a\r\n\r\n", 400},
        Case{"BracketsAndQuotesPass", target("/a[]{}|^\"<>`'"), 0},
        Case{"EscapeCutShort", target("/a%4"), 400},
        Case{"EscapeNotHexadecimal", target("/a%zz"), 400},
        Case{"EscapeInEscape", target("/%2%65%2%65/admin"), 400},
        Case{"EscapedNul", target("/a%00b"), 400},
        Case{"PercentInQueryPasses", target("/a?b=100%"), 0},
        Case{"EscapedLineEndPasses", target("/a%0d%0ab"), 0},
        Case{"LongestTarget", target("/" + std::string(8 * 1024 - 1, 'a')), 0},
        Case{"TargetTooLong", target("/" + std::string(8 * 1024, 'a')), 414},
        Case{"TargetTooLongWithoutEnd", "GET /" + std::string(9 * 1024, 'a'), 414}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    LineEnds, StrictScan,
    testing::Values(Case{"BareLineFeedAfterRequestLine", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
                    Case{"BareLineFeedAfterField", "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400},
                    Case{"BareLineFeedAtEnd", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400},
                    Case{"BareCarriageReturnInValue", get("X: a\rb\r\n"), 400},
                    Case{"BareCarriageReturnBeforeLineEnd", get("X: a\r\r\n"), 400},
                    Case{"CarriageReturnsOnly", "GET / HTTP/1.1\rHost: a\r\r", 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    FieldLines, StrictScan,
    testing::Values(
        Case{"EmptyValue", get("X:\r\n"), 0}, Case{"NoSpaceAfterColon", get("X:y\r\n"), 0},
        Case{"SpacesAroundValue", get("X: \t y \t \r\n"), 0},
        Case{"TabInValue", get("X: a\tb\r\n"), 0},
        Case{"HighBytesInValue", get("X: caf\xc3\xa9\r\n"), 0},
        Case{"ObsFoldSpace", get("X: a\r\n b\r\n"), 400},
        Case{"ObsFoldTab", get("X: a\r\n\tb\r\n"), 400},
        Case{"ObsFoldEmpty", get("X: a\r\n \r\n"), 400},
        Case{"WhiteSpaceBeforeFirstField", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
        Case{"SpaceBeforeColon", get("X : y\r\n"), 400},
        Case{"TabBeforeColon", get("X\t: y\r\n"), 400},
        Case{"SpaceBeforeColonOfContentLength", post("Content-Length : 5\r\n"), 400},
        Case{"NoColon", get("XY\r\n"), 400}, Case{"EmptyName", get(": y\r\n"), 400},
        Case{"NameWithSpace", get("X Y: z\r\n"), 400},
        Case{"NameWithHighByte", get("X\xe9: z\r\n"), 400},
        Case{"NameWithNul", get("X\0: z\r\n"s), 400},
        Case{"NameWithParenthesis", get("X(): z\r\n"), 400},
        Case{"NulInValue", get("X: a\0b\r\n"s), 400},
        Case{"ControlInValue", get("X: a\x01z\r\n"), 400},
        Case{"EscapeInLongValue", get("X: 0123456789abcdef\x1b[0m789\r\n"), 400},
        Case{"DeleteInValue", get("X: a\x7f\r\n"), 400},
        Case{"VerticalTabInValue",
             get("X: \x0b"
                 "chunked\r\n"),
             400},
        Case{"MostFields", get(many_fields(99)), 0},
        Case{"TooManyFields", get(many_fields(100)), 431},
        Case{"LargeHead", get("X: " + std::string(59 * 1024, 'y') + "\r\n"), 0},
        Case{"HeadTooLarge", get("X: " + std::string(60 * 1024, 'y') + "\r\n"), 431},
        Case{"HeadTooLargeWithoutEnd", "GET / HTTP/1.1\r\nX: " + std::string(60 * 1024, 'y'), 431},
        Case{"UnknownExpectation", post("Content-Length: 1\r\nExpect: 200-ok\r\n"), 417},
        Case{"ConnectionOptions", get("Connection: close, x-a , ,x-b\r\n"), 0},
        Case{"ConnectionOptionNotAToken", get("Connection: a b\r\n"), 400},
        Case{"TooManyConnectionOptions",
             get("Connection: "
                 "a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a\r\n"),
             400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Hosts, StrictScan,
    testing::Values(Case{"Missing", host(""), 400}, Case{"Empty", host("Host:\r\n"), 400},
                    Case{"Duplicate", host("Host: a\r\nHost: b\r\n"), 400},
                    Case{"DuplicateEqual", host("Host: a\r\nhost: a\r\n"), 400},
                    Case{"Http10Duplicate", "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400},
                    Case{"List", host("Host: a, b\r\n"), 400},
                    Case{"WithSpace", host("Host: a b\r\n"), 400},
                    Case{"WithPath", host("Host: a/b\r\n"), 400},
                    Case{"WithUserInfo", host("Host: u@a\r\n"), 400},
                    Case{"WithEscape", host("Host: ex%61mple\r\n"), 400},
                    Case{"WithHighByte", host("Host: caf\xc3\xa9\r\n"), 400},
                    Case{"WithFragment", host("Host: a#b\r\n"), 400},
                    Case{"WithBackslash", host("Host: a\\b\r\n"), 400},
                    Case{"Port", host("Host: a:8080\r\n"), 0},
                    Case{"EmptyPort", host("Host: a:\r\n"), 0},
                    Case{"PortTooLarge", host("Host: a:65536\r\n"), 400},
                    Case{"PortOfSixDigits", host("Host: a:000080\r\n"), 400},
                    Case{"PortNotANumber", host("Host: a:8o\r\n"), 400},
                    Case{"SignedPort", host("Host: a:+80\r\n"), 400},
                    Case{"TwoPorts", host("Host: a:80:80\r\n"), 400},
                    Case{"OnlyPort", host("Host: :80\r\n"), 400},
                    Case{"Ipv4", host("Host: 10.0.0.1:80\r\n"), 0},
                    Case{"Ipv6", host("Host: [fd00::1]:80\r\n"), 0},
                    Case{"Ipv6Mapped", host("Host: [::ffff:10.0.0.1]\r\n"), 0},
                    Case{"Ipv6WithoutBrackets", host("Host: fd00::1\r\n"), 400},
                    Case{"Ipv6NotClosed", host("Host: [fd00::1\r\n"), 400},
                    Case{"Ipv6Zone", host("Host: [fe80::1%25eth0]\r\n"), 400},
                    Case{"Ipv6Empty", host("Host: []\r\n"), 400},
                    Case{"Ipv6AndJunk", host("Host: [::1]x\r\n"), 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    ContentLength, StrictScan,
    testing::Values(
        Case{"Number", post("Content-Length: 5\r\n"), 0},
        Case{"Zero", post("Content-Length: 0\r\n"), 0},
        Case{"LeadingZeros", post("Content-Length: 005\r\n"), 0},
        Case{"OnGet", get("Content-Length: 5\r\n"), 0},
        Case{"Empty", post("Content-Length:\r\n"), 400},
        Case{"Plus", post("Content-Length: +5\r\n"), 400},
        Case{"Minus", post("Content-Length: -5\r\n"), 400},
        Case{"Hexadecimal", post("Content-Length: 0x5\r\n"), 400},
        Case{"HexadecimalDigits", post("Content-Length: 5a\r\n"), 400},
        Case{"Fraction", post("Content-Length: 5.0\r\n"), 400},
        Case{"Exponent", post("Content-Length: 5e1\r\n"), 400},
        Case{"SpaceInside", post("Content-Length: 5 5\r\n"), 400},
        Case{"Quoted", post("Content-Length: \"5\"\r\n"), 400},
        Case{"Largest", post("Content-Length: 999999999999999999\r\n"), 0},
        Case{"Overflow63", post("Content-Length: 9223372036854775808\r\n"), 400},
        Case{"Overflow64", post("Content-Length: 18446744073709551621\r\n"), 400},
        Case{"ListOfEqual", post("Content-Length: 5, 5\r\n"), 400},
        Case{"ListOfDifferent", post("Content-Length: 5, 6\r\n"), 400},
        Case{"DuplicateEqual", post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400},
        Case{"DuplicateDifferent", post("Content-Length: 5\r\ncontent-length: 6\r\n"), 400},
        Case{"DuplicateApart", post("Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n"), 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    TransferEncoding, StrictScan,
    testing::Values(
        Case{"Chunked", post("Transfer-Encoding: chunked\r\n"), 0},
        Case{"ChunkedInOtherCase", post("Transfer-Encoding: cHuNkEd\r\n"), 0},
        Case{"ChunkedInSpaces", post("Transfer-Encoding: \t chunked \r\n"), 0},
        Case{"WithContentLength", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400},
        Case{"BeforeContentLength", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
             400},
        Case{"BeforeContentLengthZero", post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
             400},
        Case{"InHttp10", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        Case{"Empty", post("Transfer-Encoding:\r\n"), 400},
        Case{"EmptyElement", post("Transfer-Encoding: chunked,\r\n"), 400},
        Case{"LeadingComma", post("Transfer-Encoding: , chunked\r\n"), 400},
        Case{"XChunked", post("Transfer-Encoding: xchunked\r\n"), 501},
        Case{"ChunkedX", post("Transfer-Encoding: chunkedx\r\n"), 501},
        Case{"Identity", post("Transfer-Encoding: identity\r\n"), 501},
        Case{"ChunkedIdentity", post("Transfer-Encoding: chunked, identity\r\n"), 501},
        Case{"IdentityChunked", post("Transfer-Encoding: identity, chunked\r\n"), 501},
        Case{"Gzip", post("Transfer-Encoding: gzip\r\n"), 501},
        Case{"GzipChunked", post("Transfer-Encoding: gzip, chunked\r\n"), 501},
        Case{"ChunkedGzip", post("Transfer-Encoding: chunked, gzip\r\n"), 501},
        Case{"ChunkedTwice", post("Transfer-Encoding: chunked, chunked\r\n"), 400},
        Case{"ChunkedOnTwoLines",
             post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
        Case{"GzipThenChunkedOnTwoLines",
             post("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 501},
        Case{"ChunkedThenCowOnTwoLines",
             post("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n"), 501},
        Case{"Parameter", post("Transfer-Encoding: chunked;q=1\r\n"), 501},
        Case{"Quoted", post("Transfer-Encoding: \"chunked\"\r\n"), 501},
        Case{"TwoWords", post("Transfer-Encoding: chunked chunked\r\n"), 501},
        Case{"SpaceBeforeColon", post("Transfer-Encoding : chunked\r\n"), 400},
        Case{"Folded", post("Transfer-Encoding:\r\n chunked\r\n"), 400},
        Case{"UnderscoreNameIsAnotherField", post("Transfer_Encoding: chunked\r\n"), 0}),
    case_name);

}  // namespace
}  // namespace mesh::http
