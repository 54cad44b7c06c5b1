// What must hold for any bytes given to the HTTP/1 codecs. Used by the fuzz targets and by the unit
// test that runs their corpora.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "http/http1.h"
#include "tests/fuzz/beast_reader.h"

namespace mesh::http {

struct Verdict {
  bool accepted = true;  // every message of the input was, as far as it goes
  int messages = 0;
  std::string broken;  // the invariant that does not hold; "" if all do
};

inline void require(bool holds, std::string_view what, Verdict& verdict) {
  if (!holds && verdict.broken.empty()) verdict.broken = what;
}

struct BodyRead {
  BodyDecoder::Event last = BodyDecoder::Event::need_more;
  std::size_t consumed = 0;
  std::string data, trailers;
  ParseError error;
};

inline BodyRead read_body(std::string_view input, const Framing& framing, std::size_t piece) {
  BodyDecoder decoder(framing);
  BodyRead read;
  std::size_t shown = 0;
  for (;;) {
    const auto step = decoder.next(input.substr(read.consumed, shown - read.consumed));
    read.consumed += step.consumed;
    read.data += step.data;
    read.last = step.event;
    if (step.event == BodyDecoder::Event::end) read.trailers = decoder.trailers();
    if (step.event == BodyDecoder::Event::error) read.error = decoder.error();
    if (step.event == BodyDecoder::Event::need_more) {
      if (shown == input.size()) return read;
      shown = std::min(shown + piece, input.size());
    } else if (step.event != BodyDecoder::Event::data) {
      return read;
    }
  }
}

// The body after a head: the same however it is cut; framed anew it reads as the same data.
inline BodyRead check_body(std::string_view input, const Framing& framing, Verdict& verdict) {
  using Event = BodyDecoder::Event;
  BodyRead whole = read_body(input, framing, std::max<std::size_t>(input.size(), 1));
  const BodyRead bytes = read_body(input, framing, 1);
  require(whole.last == bytes.last, "a body read byte by byte ends otherwise", verdict);
  require(whole.data == bytes.data || whole.last == Event::error,
          "a body read byte by byte differs", verdict);
  require(whole.trailers == bytes.trailers, "trailers read byte by byte differ", verdict);
  if (whole.last != Event::error) {
    require(whole.consumed <= input.size(), "consumed more than there is", verdict);
    require(whole.consumed == bytes.consumed, "a body read byte by byte consumes otherwise",
            verdict);
  } else {
    require(!whole.error.detail.empty(), "an error without a reason", verdict);
    verdict.accepted = false;
  }
  if (framing.kind == BodyKind::chunked && whole.last == Event::end) {
    std::string framed;
    if (!whole.data.empty()) {
      framed += chunk_header(whole.data.size()).view();
      framed += whole.data;
      framed += kChunkEnd;
    }
    append_last_chunk(whole.trailers, framed);
    const BodyRead again = read_body(framed, framing, framed.size());
    require(again.last == Event::end && again.consumed == framed.size() && again.data == whole.data,
            "a body framed anew reads otherwise", verdict);
  }
  return whole;
}

inline std::size_t count_framings(const Fields& fields) {
  return static_cast<std::size_t>(std::ranges::count_if(fields, [](const Field& field) {
    return field.id == FieldId::content_length || field.id == FieldId::transfer_encoding;
  }));
}

// What is left of `before` is in `after`, in order, and nothing else.
inline bool is_subsequence(const Fields& after, const Fields& before) {
  const Field* next = before.begin();
  for (const Field& field : after) {
    if (field.id != FieldId::other) continue;
    while (next != before.end() && (next->name != field.name || next->value != field.value)) ++next;
    if (next == before.end()) return false;
    ++next;
  }
  return true;
}

// Also where they lie.
inline bool are_equal(const Fields& a, const Fields& b) {
  return std::ranges::equal(a, b, [](const Field& x, const Field& y) {
    return x.name.data() == y.name.data() && x.name == y.name && x.value.data() == y.value.data() &&
           x.value == y.value && x.id == y.id;
  });
}

inline Limits wider() {
  Limits limits;
  limits.head_bytes += 1024;
  limits.fields += 8;
  return limits;
}

inline void check_rewritten_request(const RequestHead& head, Verdict& verdict) {
  const RequestRewrite rewrite{.authority = head.authority.empty() ? "unknown" : ""};
  std::string out;
  write_request_head(head, rewrite, out);
  const Limits limits = wider();
  RequestParser parser(limits);
  RequestHead again;
  if (parser.parse(out, again) != Parse::done || parser.consumed() != out.size()) {
    return require(false, "a written request does not parse", verdict);
  }
  require(again.method == head.method && again.method_text == head.method_text, "method", verdict);
  require(again.path == head.path, "path", verdict);
  require(again.has_query == head.has_query && again.query == head.query, "query", verdict);
  require(head.authority.empty() || again.authority == head.authority, "authority", verdict);
  require(head.authority.empty() || (again.host == head.host && again.port == head.port), "host",
          verdict);
  require(again.body == head.body, "framing", verdict);
  require(again.keep_alive, "keep-alive", verdict);
  require(count_framings(again.fields) <= 1, "two framings", verdict);
  require(is_subsequence(again.fields, head.fields), "fields", verdict);
  std::string twice;
  write_request_head(again, {}, twice);
  require(twice == out, "writing is not idempotent", verdict);
}

// Every request of the input, one behind the other, as a connection would carry them.
inline Verdict check_requests(std::string_view input) {
  Verdict verdict;
  while (!input.empty() && verdict.broken.empty() && verdict.messages < 64) {
    RequestParser parser, bytewise;
    RequestHead head, bytewise_head;
    const Parse parse = parser.parse(input, head);
    Parse slow = Parse::need_more;
    for (std::size_t n = 1; n <= input.size() && slow == Parse::need_more; ++n) {
      slow = bytewise.parse(input.substr(0, n), bytewise_head);
    }
    require(parse == slow, "a head read byte by byte ends otherwise", verdict);
    if (parse == Parse::error) {
      const ParseError& error = parser.error();
      require(error.status >= 400 && error.status < 600 && !error.detail.empty(), "error", verdict);
    }
    if (parse != Parse::done) {
      verdict.accepted = verdict.accepted && parse != Parse::error;
      return verdict;
    }
    ++verdict.messages;
    require(parser.consumed() == bytewise.consumed(), "byte by byte the end differs", verdict);
    require(bytewise_head.path == head.path, "byte by byte the path differs", verdict);
    require(are_equal(bytewise_head.fields, head.fields), "byte by byte fields differ", verdict);
    require(is_as_beast_reads(input.substr(0, parser.consumed()), head), "Beast reads it otherwise",
            verdict);
    std::string storage;
    require(head.path == "*" || normalise_path(head.path, storage) == head.path,
            "the path is not normalised", verdict);
    require(head.body.kind != BodyKind::until_close, "a request until close", verdict);
    check_rewritten_request(head, verdict);
    input.remove_prefix(parser.consumed());
    const BodyRead body = check_body(input, head.body, verdict);
    if (body.last != BodyDecoder::Event::end || !head.keep_alive) return verdict;
    input.remove_prefix(body.consumed);
  }
  return verdict;
}

inline void check_rewritten_response(const ResponseHead& head, Method request, Verdict& verdict) {
  for (const Version client : {Version::http11, Version::http10}) {
    ResponseRewrite rewrite;
    rewrite.client = client;
    rewrite.request = request;
    rewrite.keep_upgrade = true;
    std::string out;
    const ResponseSent sent = write_response_head(head, rewrite, out);
    const Limits limits = wider();
    ResponseParser parser(limits);
    ResponseHead again;
    if (parser.parse(out, request, again) != Parse::done || parser.consumed() != out.size()) {
      return require(false, "a written response does not parse", verdict);
    }
    require(again.status == head.status && again.reason == head.reason, "status line", verdict);
    require(again.body.kind == sent.body, "framing as announced", verdict);
    require(again.body.length == head.body.length, "length", verdict);
    require(count_framings(again.fields) <= 1, "two framings", verdict);
    require(is_subsequence(again.fields, head.fields), "fields", verdict);
    require(head.body.has_body() == again.body.has_body(), "body appears or disappears", verdict);
    require(sent.keep_alive || sent.body == BodyKind::until_close, "closes for no reason", verdict);
    require(head.status == 101 || again.keep_alive == sent.keep_alive || head.is_interim(),
            "keep-alive", verdict);
  }
}

// Every response of the input to requests of one method.
inline Verdict check_responses(std::string_view input, Method request) {
  Verdict verdict;
  while (!input.empty() && verdict.broken.empty() && verdict.messages < 64) {
    ResponseParser parser, bytewise;
    ResponseHead head, bytewise_head;
    const Parse parse = parser.parse(input, request, head);
    Parse slow = Parse::need_more;
    for (std::size_t n = 1; n <= input.size() && slow == Parse::need_more; ++n) {
      slow = bytewise.parse(input.substr(0, n), request, bytewise_head);
    }
    require(parse == slow, "a head read byte by byte ends otherwise", verdict);
    if (parse == Parse::error) require(parser.error().status == 502, "error", verdict);
    if (parse != Parse::done) {
      verdict.accepted = verdict.accepted && parse != Parse::error;
      return verdict;
    }
    ++verdict.messages;
    require(parser.consumed() == bytewise.consumed(), "byte by byte the end differs", verdict);
    require(are_equal(bytewise_head.fields, head.fields), "byte by byte fields differ", verdict);
    require(is_as_beast_reads(input.substr(0, parser.consumed()), head), "Beast reads it otherwise",
            verdict);
    check_rewritten_response(head, request, verdict);
    input.remove_prefix(parser.consumed());
    const BodyRead body = check_body(input, head.body, verdict);
    if (body.last != BodyDecoder::Event::end || head.status == 101) return verdict;
    input.remove_prefix(body.consumed);
  }
  return verdict;
}

}  // namespace mesh::http
