#include <algorithm>
#include <charconv>

#include "http/chars.h"
#include "http/http1.h"

namespace mesh::http {
namespace {

// RFC 9110 6.5.1: fields that would change framing, routing, authentication or the content's
// meaning after the fact, and those that other recipients take from the head.
bool is_permitted_trailer(std::string_view name) {
  static constexpr std::string_view kForbidden[] = {"age",
                                                    "authorization",
                                                    "cache-control",
                                                    "content-encoding",
                                                    "content-language",
                                                    "content-range",
                                                    "content-type",
                                                    "b3",
                                                    "cookie",
                                                    "date",
                                                    "expires",
                                                    "forwarded",
                                                    "location",
                                                    "max-forwards",
                                                    "pragma",
                                                    "proxy-authenticate",
                                                    "proxy-authorization",
                                                    "range",
                                                    "retry-after",
                                                    "set-cookie",
                                                    "traceparent",
                                                    "tracestate",
                                                    "vary",
                                                    "via",
                                                    "warning",
                                                    "www-authenticate",
                                                    "x-request-id"};
  if (identify(name) != FieldId::other) return false;
  if (name.size() > 2 && to_lower(name[0]) == 'i' && names_equal(name.substr(0, 3), "if-")) {
    return false;
  }
  // What the mesh says itself, and takes from nobody.
  for (const std::string_view own : {"x-forwarded-", "x-envoy-", "x-b3-"}) {
    if (name.size() > own.size() && names_equal(name.substr(0, own.size()), own)) return false;
  }
  return std::ranges::none_of(kForbidden, [&](auto bad) { return names_equal(name, bad); });
}

template <class F>
void each_permitted_trailer(std::string_view section, F&& f) {
  while (!section.empty()) {
    const std::size_t end = section.find("\r\n");
    Field line;
    const char* error = scan_field_line(section.substr(0, end), line);
    if (error == nullptr && is_permitted_trailer(line.name)) f(line.name, line.value);
    section.remove_prefix(end == std::string_view::npos ? section.size() : end + 2);
  }
}

}  // namespace

BodyDecoder::BodyDecoder(const Framing& framing, const Limits& limits) : limits_(&limits) {
  switch (framing.kind) {
    case BodyKind::none:
      break;
    case BodyKind::content_length:
      left_ = framing.length;
      state_ = left_ > 0 ? State::fixed : State::done;
      break;
    case BodyKind::chunked:
      state_ = State::size_first;
      break;
    case BodyKind::until_close:
      state_ = State::until_close;
      break;
  }
}

BodyDecoder::Step BodyDecoder::fail(int status, std::string_view detail) {
  state_ = State::failed;
  error_ = {status, detail};
  return {Event::error, 0, {}};
}

BodyDecoder::Step BodyDecoder::next(std::string_view input) {
  switch (state_) {
    case State::done:
      return {Event::end, 0, {}};
    case State::failed:
      return {Event::error, 0, {}};
    case State::until_close:
      if (input.empty()) return {Event::need_more, 0, {}};
      return {Event::data, input.size(), input};
    case State::fixed: {
      if (input.empty()) return {Event::need_more, 0, {}};
      const std::string_view data = input.substr(0, left_);
      left_ -= data.size();
      if (left_ == 0) state_ = State::done;
      return {Event::data, data.size(), data};
    }
    case State::trailers:
      return next_trailers(input, 0);
    default:
      return next_chunked(input);
  }
}

BodyDecoder::Event BodyDecoder::eof() {
  if (state_ == State::until_close) state_ = State::done;
  if (state_ == State::done) return Event::end;
  if (state_ != State::failed) fail(400, "body cut short");
  return Event::error;
}

// RFC 9112 7.1: chunk-size [;extensions] CRLF data CRLF ... 0 CRLF trailers CRLF. White space about
// the size is refused, and so is a bare CR or LF anywhere: others end the line elsewhere.
BodyDecoder::Step BodyDecoder::next_chunked(std::string_view input) {
  for (std::size_t i = 0; i < input.size(); ++i) {
    const char c = input[i];
    switch (state_) {
      case State::size_first:
        left_ = 0;
        line_bytes_ = 0;
        if (hex_digit(c) < 0) return fail(400, "invalid chunk size");
        state_ = State::size;
        [[fallthrough]];
      case State::size:
        if (const int digit = hex_digit(c); digit >= 0) {
          if (left_ >> 58 != 0) return fail(400, "chunk size overflows");
          left_ = left_ << 4 | static_cast<std::uint64_t>(digit);
        } else if (c == '\r') {
          state_ = State::size_lf;
        } else if (c == ';') {
          state_ = State::extension;
        } else {
          return fail(400, "invalid chunk size");
        }
        if (++line_bytes_ > limits_->chunk_line_bytes) return fail(400, "chunk line too long");
        break;
      case State::extension:
        if (c == '\r') {
          state_ = State::size_lf;
        } else if (is_control(c)) {
          return fail(400, "control character in a chunk extension");
        }
        if (++line_bytes_ > limits_->chunk_line_bytes) return fail(400, "chunk line too long");
        break;
      case State::size_lf:
        if (c != '\n') return fail(400, "bare carriage return after a chunk size");
        if (left_ == 0) {
          state_ = State::trailers;
          return next_trailers(input.substr(i + 1), i + 1);
        }
        state_ = State::chunk;
        break;
      case State::chunk: {
        const std::string_view data = input.substr(i, left_);
        left_ -= data.size();
        if (left_ == 0) state_ = State::chunk_cr;
        return {Event::data, i + data.size(), data};
      }
      case State::chunk_cr:
        if (c != '\r') return fail(400, "chunk longer than its size");
        state_ = State::chunk_lf;
        break;
      case State::chunk_lf:
        if (c != '\n') return fail(400, "bare carriage return after a chunk");
        state_ = State::size_first;
        break;
      default:
        return fail(500, "not a chunked body");
    }
  }
  return {Event::need_more, input.size(), {}};
}

// `section` begins at the first trailer; nothing of it is consumed before its end is seen.
BodyDecoder::Step BodyDecoder::next_trailers(std::string_view section, std::size_t consumed) {
  for (;;) {
    const std::size_t end = section.find('\n', trailer_searched_);
    if (std::min(end, section.size()) > limits_->trailer_bytes) {
      return fail(431, "trailers too large");
    }
    if (end == std::string_view::npos) {
      trailer_searched_ = section.size();
      return {Event::need_more, consumed, {}};
    }
    if (end == trailer_line_ || section[end - 1] != '\r') return fail(400, "bare line feed");
    const std::string_view line = section.substr(trailer_line_, end - 1 - trailer_line_);
    if (line.empty()) {
      trailers_ = section.substr(0, trailer_line_);
      state_ = State::done;
      return {Event::end, consumed + end + 1, {}};
    }
    if (++trailer_fields_ > limits_->trailer_fields) return fail(431, "too many trailer fields");
    Field field;
    if (const char* error = scan_field_line(line, field)) return fail(400, error);
    trailer_line_ = trailer_searched_ = end + 1;
  }
}

ChunkHeader chunk_header(std::uint64_t data_bytes) {
  ChunkHeader header;
  char* end = std::to_chars(header.bytes, header.bytes + 16, data_bytes, 16).ptr;
  *end++ = '\r';
  *end++ = '\n';
  header.size = static_cast<std::uint8_t>(end - header.bytes);
  return header;
}

void append_last_chunk(std::string_view trailer_section, std::string& out) {
  out += "0\r\n";
  each_permitted_trailer(trailer_section, [&](std::string_view name, std::string_view value) {
    out += name;
    out += ": ";
    out += value;
    out += "\r\n";
  });
  out += "\r\n";
}

}  // namespace mesh::http
