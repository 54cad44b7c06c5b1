#include <algorithm>
#include <utility>

#include "http/chars.h"
#include "http/head_scan.h"
#include "http/http1.h"

namespace mesh::http {
namespace {

constexpr ParseError kFine{};

Method method_of(std::string_view text) {  // case-sensitive (RFC 9110 9.1)
  constexpr std::pair<std::string_view, Method> kMethods[] = {
      {"GET", Method::get},         {"POST", Method::post},       {"PUT", Method::put},
      {"HEAD", Method::head},       {"DELETE", Method::delete_},  {"PATCH", Method::patch},
      {"OPTIONS", Method::options}, {"CONNECT", Method::connect}, {"TRACE", Method::trace}};
  for (const auto& [name, method] : kMethods) {
    if (text == name) return method;
  }
  return Method::other;
}

// method SP target SP HTTP-version, single spaces (RFC 9112 3).
ParseError scan_request_line(std::string_view line, const Limits& limits, HeadFacts& facts,
                             RequestHead& head) {
  const auto* const begin = line.data();
  const auto* const end = begin + line.size();
  const auto* p = std::find_if_not(begin, end, [](char c) { return kToken[c]; });
  if (p == begin || p == end || *p != ' ') return {400, "invalid method"};
  const std::string_view method(begin, static_cast<std::size_t>(p - begin));
  if (method.size() > limits.method_bytes) return {501, "method too long"};

  const auto* const target = ++p;
  while (p != end && kTarget[*p]) ++p;
  if (static_cast<std::size_t>(p - target) > limits.target_bytes) return {414, "target too long"};
  if (p == target) return {400, "empty target"};
  if (p == end) return {400, "no HTTP version"};
  if (*p == '#') return {400, "fragment in the target"};
  if (*p != ' ') return {400, "invalid character in the target"};

  const std::string_view version(p + 1, static_cast<std::size_t>(end - p - 1));
  if (version == "HTTP/1.1") {
    facts.version = Version::http11;
  } else if (version == "HTTP/1.0") {
    facts.version = Version::http10;
  } else if (line == "PRI * HTTP/2.0") {
    return {505, "HTTP/2 preface on an HTTP/1 port"};
  } else if (version.size() == 8 && version.starts_with("HTTP/") && is_digit(version[5]) &&
             version[6] == '.' && is_digit(version[7])) {
    return {505, "unsupported HTTP version"};
  } else {
    return {400, "invalid HTTP version"};
  }
  head.method_text = method;
  head.method = method_of(method);
  head.target = {target, p};
  head.version = facts.version;
  if (head.method == Method::connect) return {501, "CONNECT is not supported"};
  return kFine;
}

// uri-host [":" port] (RFC 9112 3.2.3); a colon without a port is dropped.
bool read_authority(std::string_view text, RequestHead& head) {
  std::size_t end = 0;
  if (text.starts_with('[')) {
    end = text.find(']');
    if (end == std::string_view::npos || end < 3) return false;
    for (const char c : text.substr(1, end - 1)) {
      if (hex_digit(c) < 0 && c != ':' && c != '.') return false;
    }
    ++end;
  } else {
    while (end < text.size() && kHost[text[end]]) ++end;
    if (end == 0) return false;
  }
  head.host = text.substr(0, end);
  head.authority = text;
  if (end < text.size()) {
    const std::string_view port = text.substr(end + 1);
    if (text[end] != ':' || port.size() > 5) return false;
    std::uint32_t number = 0;
    for (const char c : port) {
      if (!is_digit(c)) return false;
      number = number * 10 + static_cast<std::uint32_t>(c - '0');
    }
    if (number > 65535) return false;
    if (port.empty()) {
      head.authority = head.host;
    } else {
      head.port = static_cast<std::uint16_t>(number);
    }
  }
  if (std::ranges::any_of(head.host, [](char c) { return c != to_lower(c); })) {
    head.host_storage.resize(head.host.size());
    std::ranges::transform(head.host, head.host_storage.begin(), to_lower);
    head.host = head.host_storage;
  }
  return true;
}

// Path and query; `rest` is what follows the authority of an absolute-form target, or the target.
ParseError read_path(std::string_view rest, RequestHead& head) {
  const std::size_t question = rest.find('?');
  if (question != std::string_view::npos) {
    head.has_query = true;
    head.query = rest.substr(question + 1);
    rest = rest.substr(0, question);
  }
  if (rest.empty()) rest = "/";  // RFC 9110 4.2.3
  const auto path = normalise_path(rest, head.path_storage);
  if (!path) return {400, "invalid path"};
  head.path = *path;
  return kFine;
}

// RFC 9112 3.2: the four forms. Only http may be absolute here: https on a plain connection is
// misdirected (RFC 9110 7.4), and we gateway to nothing else.
ParseError read_target(std::string_view host_field, bool has_host, RequestHead& head) {
  if (has_host && !read_authority(host_field, head)) return {400, "invalid host"};
  if (head.target[0] == '/') return read_path(head.target, head);
  if (head.target == "*") {
    if (head.method != Method::options) return {400, "asterisk target without OPTIONS"};
    head.path = "*";
    return kFine;
  }
  if (head.target.size() > 8 && names_equal(head.target.substr(0, 8), "https://")) {
    return {421, "https target on a plain connection"};
  }
  if (head.target.size() < 8 || !names_equal(head.target.substr(0, 7), "http://")) {
    return {400, "invalid target"};
  }
  const std::string_view rest = head.target.substr(7);
  const std::size_t end = std::min(rest.find_first_of("/?"), rest.size());
  head.port.reset();
  if (!read_authority(rest.substr(0, end), head)) return {400, "invalid authority in the target"};
  return read_path(rest.substr(end), head);
}

// What the lines say together.
ParseError finish_head(const HeadFacts& facts, RequestHead& head) {
  std::string_view host, expect, upgrade;
  for (const Field& field : head.fields) {
    if (field.id == FieldId::host) host = field.value;
    if (field.id == FieldId::expect) expect = field.value;
    if (field.id == FieldId::upgrade) upgrade = field.value;
  }
  if (!facts.has_host && facts.version == Version::http11) return {400, "no host"};
  if (const auto error = read_target(host, facts.has_host, head); error.status != 0) {
    return error;
  }
  head.keep_alive = !facts.close && (facts.version == Version::http11 || facts.keep_alive);
  if (facts.is_chunked) {
    head.body = {BodyKind::chunked, 0};
  } else if (facts.has_content_length) {
    head.body = {BodyKind::content_length, facts.content_length};
  }
  if (facts.names_upgrade && facts.version == Version::http11) head.upgrade = upgrade;
  if (!expect.empty()) {
    if (!names_equal(expect, "100-continue")) return {417, "unknown expectation"};
    head.expect_continue = facts.version == Version::http11 && head.body.has_body();
  }
  return kFine;
}

}  // namespace

Parse RequestParser::fail(ParseError error) {
  error_ = error;
  return Parse::error;
}

void RequestParser::reset() {
  at_ = {};
  start_ = empty_lines_ = 0;
  facts_ = {};
  error_ = {};
}

// The last line is not complete: refuse early what cannot become a request.
Parse RequestParser::need_more(std::string_view input) {
  const std::string_view line = input.substr(at_.line);
  if (!facts_.in_fields) {
    if (!line.empty() && line[0] != '\r' && !kToken[line[0]]) return fail({400, "invalid method"});
    if (line.size() > limits_->target_bytes + limits_->method_bytes + 16) {
      return fail({414, "target too long"});
    }
  }
  if (input.size() - start_ > limits_->head_bytes) return fail({431, "head too large"});
  return Parse::need_more;
}

Parse RequestParser::parse(std::string_view input, RequestHead& head) {
  head.clear();
  const Parse parse = error_.status == 0 ? scan(input, head) : Parse::error;
  if (parse != Parse::done) head.clear();
  return parse;
}

Parse RequestParser::scan(std::string_view input, RequestHead& head) {
  bool is_whole = !facts_.in_fields;  // else `head` lacks what earlier calls have scanned
  for (;;) {
    const auto [parse, line] = next_line(input, at_);
    if (parse == Parse::need_more) return need_more(input);
    if (parse == Parse::error) return fail({400, line});
    if (at_.line - start_ > limits_->head_bytes) return fail({431, "head too large"});

    ParseError error;
    if (facts_.in_fields) {
      if (line.empty() && !is_whole) {  // once more, from its start
        at_ = {start_, start_};
        facts_ = {};
        head.clear();
        is_whole = true;
        continue;
      }
      if (line.empty()) {
        error = finish_head(facts_, head);
        return error.status == 0 ? Parse::done : fail(error);
      }
      Field field;
      error = scan_field(line, *limits_, facts_, field);
      if (error.status == 0) head.fields.push_back(field);
    } else if (line.empty()) {  // RFC 9112 2.2
      if (++empty_lines_ > limits_->leading_empty_lines) return fail({400, "too many empty lines"});
      start_ = at_.line;
    } else {
      error = scan_request_line(line, *limits_, facts_, head);
      facts_.in_fields = true;
    }
    if (error.status != 0) return fail(error);
  }
}

}  // namespace mesh::http
