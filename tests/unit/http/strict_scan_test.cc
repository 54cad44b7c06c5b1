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

// Whole heads: a request line, or the fields of a GET or POST, or the value of one field.
std::string request(std::string_view line) { return std::string(line) + "\r\nHost: a\r\n\r\n"; }
std::string target(std::string_view text) {
  return request("GET " + std::string(text) + " HTTP/1.1");
}
std::string get(std::string_view fields) {
  return "GET / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n";
}
std::string post(std::string_view fields) {
  return "POST / HTTP/1.1\r\nHost: a\r\n" + std::string(fields) + "\r\n";
}
std::string host(std::string_view value) {
  return "GET / HTTP/1.1\r\nHost: " + std::string(value) + "\r\n\r\n";
}
std::string length(std::string_view value) {
  return post("Content-Length: " + std::string(value) + "\r\n");
}
std::string coding(std::string_view value) {
  return post("Transfer-Encoding: " + std::string(value) + "\r\n");
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
    testing::Values(Case{"PlainGet", get(""), 0},
                    Case{"UnknownMethodTokenPasses", request("PURGE / HTTP/1.1"), 0},
                    Case{"LowerCaseMethodIsAnotherMethod", request("get / HTTP/1.1"), 0},
                    Case{"MethodWithBadCharacter", request("GE(T / HTTP/1.1"), 400},
                    Case{"MethodWithHighByte", request("G\xc3\x89T / HTTP/1.1"), 400},
                    Case{"EmptyMethod", request(" / HTTP/1.1"), 400},
                    Case{"LeadingSpace", request(" GET / HTTP/1.1"), 400},
                    Case{"LeadingTab", request("\tGET / HTTP/1.1"), 400},
                    Case{"MethodTooLong", request(std::string(33, 'A') + " / HTTP/1.1"), 501},
                    Case{"LongestMethod", request(std::string(32, 'A') + " / HTTP/1.1"), 0},
                    Case{"TwoSpacesBeforeTarget", request("GET  / HTTP/1.1"), 400},
                    Case{"TwoSpacesAfterTarget", request("GET /  HTTP/1.1"), 400},
                    Case{"TabInsteadOfSpace", request("GET\t/ HTTP/1.1"), 400},
                    Case{"SpaceInTarget", request("GET /a b HTTP/1.1"), 400},
                    Case{"TrailingSpaceAfterVersion", request("GET / HTTP/1.1 "), 400},
                    Case{"VerticalTabAsSpace", request("GET\x0b/ HTTP/1.1"), 400},
                    Case{"OneEmptyLineBefore", "\r\n" + get(""), 0},
                    Case{"FourEmptyLinesBefore", "\r\n\r\n\r\n\r\n" + get(""), 0},
                    Case{"FiveEmptyLinesBefore", "\r\n\r\n\r\n\r\n\r\n" + get(""), 400},
                    Case{"BareLineFeedBefore", "\n" + get(""), 400},
                    Case{"BareCarriageReturnBefore", "\r" + get(""), 400},
                    Case{"Garbage", "\x16\x03\x01\x02", 400},
                    Case{"GarbageLine", "hello\r\n", 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    Versions, StrictScan,
    testing::Values(Case{"Http10", request("GET / HTTP/1.0"), 0},
                    Case{"Http10WithoutHost", "GET / HTTP/1.0\r\n\r\n", 0},
                    Case{"Http09", "GET /\r\n", 400}, Case{"Http09WithSpace", "GET / \r\n", 400},
                    Case{"Http09InNumbers", "GET / HTTP/0.9\r\n\r\n", 505},
                    Case{"Http12", request("GET / HTTP/1.2"), 505},
                    Case{"Http20", request("GET / HTTP/2.0"), 505},
                    Case{"Http2Preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
                    Case{"TwoDigitMinor", request("GET / HTTP/1.10"), 400},
                    Case{"NoMinor", request("GET / HTTP/1"), 400},
                    Case{"LowerCaseName", request("GET / http/1.1"), 400},
                    Case{"OtherProtocol", request("GET / ICAP/1.0"), 400},
                    Case{"SignedMinor", request("GET / HTTP/1.+1"), 400}),
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
        Case{"ConnectWithPath", request("CONNECT / HTTP/1.1"), 501},
        Case{"AsteriskWithOptions", request("OPTIONS * HTTP/1.1"), 0},
        Case{"AsteriskWithGet", target("*"), 400},
        Case{"AsteriskAndMore", request("OPTIONS *x HTTP/1.1"), 400},
        Case{"RelativePath", target("a/b"), 400}, Case{"LeadingBackslash", target("\\a"), 400},
        Case{"QueryWithoutPath", target("?a"), 400}, Case{"Fragment", target("/a#b"), 400},
        Case{"FragmentInQuery", target("/a?b#c"), 400},
        Case{"ControlCharacter", target("/a\x01"), 400},
        Case{"Nul", "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n"s, 400},
        Case{"Delete", target("/a\x7f"), 400}, Case{"HighByte", target("/caf\xc3\xa9"), 400},
        Case{"CarriageReturn", request("GET /a\rb HTTP/1.1"), 400},
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
    testing::Values(
        Case{"Missing", "GET / HTTP/1.1\r\n\r\n", 400}, Case{"Empty", host(""), 400},
        Case{"Duplicate", host("a\r\nHost: b"), 400},
        Case{"DuplicateEqual", host("a\r\nhost: a"), 400},
        Case{"Http10Duplicate", "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400},
        Case{"List", host("a, b"), 400}, Case{"WithSpace", host("a b"), 400},
        Case{"WithPath", host("a/b"), 400}, Case{"WithUserInfo", host("u@a"), 400},
        Case{"WithEscape", host("ex%61mple"), 400}, Case{"WithHighByte", host("caf\xc3\xa9"), 400},
        Case{"WithFragment", host("a#b"), 400}, Case{"WithBackslash", host("a\\b"), 400},
        Case{"Port", host("a:8080"), 0}, Case{"EmptyPort", host("a:"), 0},
        Case{"PortTooLarge", host("a:65536"), 400}, Case{"PortOfSixDigits", host("a:000080"), 400},
        Case{"PortNotANumber", host("a:8o"), 400}, Case{"SignedPort", host("a:+80"), 400},
        Case{"TwoPorts", host("a:80:80"), 400}, Case{"OnlyPort", host(":80"), 400},
        Case{"Ipv4", host("10.0.0.1:80"), 0}, Case{"Ipv6", host("[fd00::1]:80"), 0},
        Case{"Ipv6Mapped", host("[::ffff:10.0.0.1]"), 0},
        Case{"Ipv6WithoutBrackets", host("fd00::1"), 400},
        Case{"Ipv6NotClosed", host("[fd00::1"), 400},
        Case{"Ipv6Zone", host("[fe80::1%25eth0]"), 400}, Case{"Ipv6Empty", host("[]"), 400},
        Case{"Ipv6AndJunk", host("[::1]x"), 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    ContentLength, StrictScan,
    testing::Values(
        Case{"Number", length("5"), 0}, Case{"Zero", length("0"), 0},
        Case{"LeadingZeros", length("005"), 0}, Case{"OnGet", get("Content-Length: 5\r\n"), 0},
        Case{"Empty", length(""), 400}, Case{"Plus", length("+5"), 400},
        Case{"Minus", length("-5"), 400}, Case{"Hexadecimal", length("0x5"), 400},
        Case{"HexadecimalDigits", length("5a"), 400}, Case{"Fraction", length("5.0"), 400},
        Case{"Exponent", length("5e1"), 400}, Case{"SpaceInside", length("5 5"), 400},
        Case{"Quoted", post("Content-Length: \"5\"\r\n"), 400},
        Case{"Largest", length("999999999999999999"), 0},
        Case{"Overflow63", length("9223372036854775808"), 400},
        Case{"Overflow64", length("18446744073709551621"), 400},
        Case{"ListOfEqual", length("5, 5"), 400}, Case{"ListOfDifferent", length("5, 6"), 400},
        Case{"DuplicateEqual", post("Content-Length: 5\r\nContent-Length: 5\r\n"), 400},
        Case{"DuplicateDifferent", post("Content-Length: 5\r\ncontent-length: 6\r\n"), 400},
        Case{"DuplicateApart", post("Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n"), 400}),
    case_name);

INSTANTIATE_TEST_SUITE_P(
    TransferEncoding, StrictScan,
    testing::Values(
        Case{"Chunked", coding("chunked"), 0}, Case{"ChunkedInOtherCase", coding("cHuNkEd"), 0},
        Case{"ChunkedInSpaces", coding("\t chunked "), 0},
        Case{"WithContentLength", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400},
        Case{"BeforeContentLength", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
             400},
        Case{"BeforeContentLengthZero", post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
             400},
        Case{"InHttp10", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
        Case{"Empty", coding(""), 400}, Case{"EmptyElement", coding("chunked,"), 400},
        Case{"LeadingComma", coding(", chunked"), 400}, Case{"XChunked", coding("xchunked"), 501},
        Case{"ChunkedX", coding("chunkedx"), 501}, Case{"Identity", coding("identity"), 501},
        Case{"ChunkedIdentity", coding("chunked, identity"), 501},
        Case{"IdentityChunked", coding("identity, chunked"), 501},
        Case{"Gzip", coding("gzip"), 501}, Case{"GzipChunked", coding("gzip, chunked"), 501},
        Case{"ChunkedGzip", coding("chunked, gzip"), 501},
        Case{"ChunkedTwice", coding("chunked, chunked"), 400},
        Case{"ChunkedOnTwoLines",
             post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
        Case{"GzipThenChunkedOnTwoLines",
             post("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 501},
        Case{"ChunkedThenCowOnTwoLines",
             post("Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n"), 501},
        Case{"Parameter", coding("chunked;q=1"), 501},
        Case{"Quoted", post("Transfer-Encoding: \"chunked\"\r\n"), 501},
        Case{"TwoWords", coding("chunked chunked"), 501},
        Case{"SpaceBeforeColon", post("Transfer-Encoding : chunked\r\n"), 400},
        Case{"Folded", post("Transfer-Encoding:\r\n chunked\r\n"), 400},
        Case{"UnderscoreNameIsAnotherField", post("Transfer_Encoding: chunked\r\n"), 0}),
    case_name);

}  // namespace
}  // namespace mesh::http
