#include "http/chars.h"
#include "http/head_scan.h"
#include "http/http1.h"

namespace mesh::http {
namespace {

// HTTP-version SP 3DIGIT SP [reason] (RFC 9112 4); nullptr: fine.
const char* scan_status_line(std::string_view line, HeadFacts& facts, ResponseHead& head) {
  if (line.starts_with("HTTP/1.1 ")) {
    facts.version = Version::http11;
  } else if (line.starts_with("HTTP/1.0 ")) {
    facts.version = Version::http10;
  } else {
    return "invalid HTTP version in the status line";
  }
  if (line.size() < 13 || line[12] != ' ' || line[9] < '1' || line[9] > '9' ||
      !is_digit(line[10]) || !is_digit(line[11])) {
    return "invalid status line";
  }
  head.version = facts.version;
  head.status = (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
  head.reason = line.substr(13);
  return has_control(head.reason) ? "control character in the reason" : nullptr;
}

// RFC 9112 6.3, rules 1, 2 and 4 to 8 (3 was an error).
Framing framing_of(const HeadFacts& facts, Method request, int status) {
  const bool bodiless = request == Method::head || status < 200 || status == 204 || status == 304 ||
                        (request == Method::connect && status < 300);
  if (bodiless) return {};
  if (facts.is_chunked) return {BodyKind::chunked, 0};
  if (facts.has_content_length) return {BodyKind::content_length, facts.content_length};
  return {BodyKind::until_close, 0};
}

}  // namespace

Parse ResponseParser::fail(std::string_view detail) {
  error_ = {502, detail};
  return Parse::error;
}

void ResponseParser::reset() {
  at_ = {};
  facts_ = {};
  error_ = {};
}

Parse ResponseParser::need_more(std::string_view input) {
  constexpr std::string_view kStart = "HTTP/1.";
  const auto prefix = input.substr(0, kStart.size());
  if (prefix != kStart.substr(0, prefix.size())) return fail("not an HTTP/1 response");
  if (input.size() > limits_->head_bytes) return fail("head too large");
  return Parse::need_more;
}

Parse ResponseParser::parse(std::string_view input, Method request, ResponseHead& head) {
  head.clear();
  const Parse parse = error_.status == 0 ? scan(input, request, head) : Parse::error;
  if (parse != Parse::done) head.clear();
  return parse;
}

Parse ResponseParser::scan(std::string_view input, Method request, ResponseHead& head) {
  bool is_whole = !facts_.in_fields;  // else `head` lacks what earlier calls have scanned
  for (;;) {
    const auto [parse, line] = next_line(input, at_);
    if (parse == Parse::need_more) return need_more(input);
    if (parse == Parse::error) return fail(line);
    if (at_.line > limits_->head_bytes) return fail("head too large");

    if (!facts_.in_fields) {
      if (const char* error = scan_status_line(line, facts_, head)) return fail(error);
      facts_.in_fields = true;
    } else if (!line.empty()) {
      Field field;
      if (const auto error = scan_field(line, *limits_, facts_, field); error.status != 0) {
        return fail(error.detail);
      }
      head.fields.push_back(field);
    } else if (is_whole) {
      break;
    } else {  // once more, from its start
      at_ = {};
      facts_ = {};
      head.clear();
      is_whole = true;
    }
  }
  head.body = framing_of(facts_, request, head.status);
  head.keep_alive = !facts_.close && (facts_.version == Version::http11 || facts_.keep_alive) &&
                    head.body.kind != BodyKind::until_close && head.status != 101;
  if (facts_.names_upgrade && head.status == 101) {
    for (const Field& field : head.fields) {
      if (field.id == FieldId::upgrade) head.upgrade = field.value;
    }
  }
  return Parse::done;
}

}  // namespace mesh::http
