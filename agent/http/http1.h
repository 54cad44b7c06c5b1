// HTTP/1.1 as sans-I/O codecs, both directions: heads and bodies in, heads and chunk framing out.
//
// Input is untrusted. A strict scan refuses what peers are known to read differently (RFC 9112
// 11.2), and cuts the rest into fields as Boost.Beast's parser would: the fuzz targets compare them
// (docs/decisions/0020). tests/unit/http/strict_scan_test.cc lists every case. Nothing here reads,
// writes, waits or allocates in steady state; the caller moves the bytes. Calling pattern: keep
// unread bytes in one contiguous buffer; call parse()/next() with all of them; drop what it says is
// consumed; on need_more read more behind them and call again. The bytes may have moved between two
// calls. Work is linear in the input however it is cut.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "http/message.h"

namespace mesh::http {

enum class Parse : std::uint8_t { need_more, done, error };

// What the scan of a head's lines has gathered about framing and the connection.
struct HeadFacts {
  std::uint64_t content_length = 0;
  std::uint16_t fields = 0;
  std::uint16_t connection_options = 0;
  bool has_host = false;
  bool has_content_length = false;
  bool is_chunked = false;
  bool close = false;
  bool keep_alive = false;
  bool names_upgrade = false;
  bool in_fields = false;  // the start line was read
  Version version = Version::http11;
};

// How far the lines of a head have been read.
struct HeadCursor {
  std::size_t line = 0;      // where the first line that is not scanned begins
  std::size_t searched = 0;  // no line feed in [line, searched)
};

// One request head after the other. Small: it may live as long as its connection; the head need
// not.
class RequestParser {
 public:
  explicit RequestParser(const Limits& limits = kDefaultLimits) : limits_(&limits) {}

  // `input` begins where the last head's consumed() bytes and its body ended. done: `head` is
  // filled with views into `input`; else it is empty. error: see error(); what is left of the input
  // means nothing.
  // After done or error, reset() before the next head.
  Parse parse(std::string_view input, RequestHead& head);
  // The bytes of the head just parsed, empty lines before it included.
  [[nodiscard]] std::size_t consumed() const { return at_.line; }
  // No byte of a head was seen yet (empty lines are none): the connection is idle.
  [[nodiscard]] bool is_idle() const { return at_.searched == start_; }
  [[nodiscard]] const ParseError& error() const { return error_; }
  void reset();

 private:
  Parse scan(std::string_view input, RequestHead& head);
  Parse fail(ParseError error);
  Parse need_more(std::string_view input);

  const Limits* limits_;
  HeadCursor at_;
  std::size_t start_ = 0;  // where the head begins: after empty lines
  std::size_t empty_lines_ = 0;
  HeadFacts facts_;
  ParseError error_;
};

// One response head after the other. Errors carry status 502.
class ResponseParser {
 public:
  explicit ResponseParser(const Limits& limits = kDefaultLimits) : limits_(&limits) {}

  // `request` is the method that this response answers: it decides whether there is a body.
  // Interim heads (ResponseHead::is_interim) come before the final one: reset() and parse again.
  Parse parse(std::string_view input, Method request, ResponseHead& head);
  [[nodiscard]] std::size_t consumed() const { return at_.line; }
  // False as soon as one byte of a response was seen: from then on a request must not be sent
  // again.
  [[nodiscard]] bool is_idle() const { return at_.searched == 0; }
  [[nodiscard]] const ParseError& error() const { return error_; }
  void reset();

 private:
  Parse scan(std::string_view input, Method request, ResponseHead& head);
  Parse fail(std::string_view detail);
  Parse need_more(std::string_view input);

  const Limits* limits_;
  HeadCursor at_;
  HeadFacts facts_;
  ParseError error_;
};

// A body in, as spans of the input. Chunk framing is checked and dropped: the relay frames anew.
class BodyDecoder {
 public:
  enum class Event : std::uint8_t { need_more, data, end, error };
  struct Step {
    Event event;
    std::size_t consumed;   // drop so many bytes from the front, data included
    std::string_view data;  // of Event::data, a view into the input, never empty
  };

  BodyDecoder() = default;  // no body: the first step is `end`
  explicit BodyDecoder(const Framing& framing, const Limits& limits = kDefaultLimits);

  // need_more may consume too (chunk headers); bytes left over must be shown again, with more
  // behind (only trailers ask for that, so at most Limits::trailer_bytes stay). After `end` bytes
  // that follow belong to the next message. Empty input yields need_more or end.
  Step next(std::string_view input);
  // The peer ended its stream: `end` if the body may end here, else error (cut short).
  Event eof();

  [[nodiscard]] bool is_done() const { return state_ == State::done; }
  // The trailer section as received, checked; "" without one. A view into the input of the step
  // that said `end`. Hand it to append_last_chunk.
  [[nodiscard]] std::string_view trailers() const { return trailers_; }
  [[nodiscard]] const ParseError& error() const { return error_; }

 private:
  enum class State : std::uint8_t {
    done,
    fixed,
    until_close,
    size_first,
    size,
    extension,
    size_lf,
    chunk,
    chunk_cr,
    chunk_lf,
    trailers,
    failed
  };
  Step fail(int status, std::string_view detail);
  Step next_chunked(std::string_view input);
  Step next_trailers(std::string_view input, std::size_t consumed);

  State state_ = State::done;
  std::uint32_t line_bytes_ = 0;  // of the chunk-size line
  std::uint64_t left_ = 0;        // of the body, or of the chunk
  std::size_t trailer_line_ = 0;  // where the first unchecked trailer line begins
  std::size_t trailer_searched_ = 0;
  std::uint32_t trailer_fields_ = 0;
  const Limits* limits_ = &kDefaultLimits;
  std::string_view trailers_;
  ParseError error_;
};

// Chunks out: header, the data itself (any number of spans of that many bytes in all), "\r\n".
struct ChunkHeader {
  char bytes[20];
  std::uint8_t size;
  [[nodiscard]] std::string_view view() const { return {bytes, size}; }
};
ChunkHeader chunk_header(std::uint64_t data_bytes);  // "1f40\r\n"; data_bytes > 0
inline constexpr std::string_view kChunkEnd = "\r\n";
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";  // without trailers
// "0\r\n", the permitted trailers of the section, "\r\n". Not permitted: framing, routing,
// authentication, content description (RFC 9110 6.5.1), and what the mesh says in heads
// (x-forwarded-*, x-envoy-*, x-request-id, trace context).
void append_last_chunk(std::string_view trailer_section, std::string& out);

// A field to write. Names and values were checked with is_valid_field_*; the writers turn a control
// character that slipped through into a space, so what they write cannot end a line.
struct FieldValue {
  std::string_view name;
  std::string_view value;
};

// Changes on the way through, applied in this order after hop-by-hop fields went: remove, set (the
// only field of its name afterwards), add. They cannot touch Host, framing and connection fields
// (FieldId but other): those are the writer's.
struct FieldEdits {
  std::span<const FieldValue> set;
  std::span<const FieldValue> add;
  std::span<const std::string_view> remove;
};

// Hop-by-hop fields that never pass: Connection and what it names, Keep-Alive, Proxy-Connection,
// HTTP2-Settings, Upgrade (unless kept), TE but `trailers`. Connection cannot name away what the
// mesh and its peers rely on: Host, framing, Authorization, Cookie, X-Request-Id, Forwarded, Via
// and all X-Forwarded-*, X-Envoy-*, X-B3-*, B3, Traceparent, Tracestate.
struct RequestRewrite {
  FieldEdits fields;
  std::string_view authority;  // instead of head.authority unless empty; one of them is not empty
  std::string_view path;       // instead of head.path unless empty (a route's rewrite)
  bool keep_upgrade = false;   // pass Upgrade on
  bool close = false;          // "connection: close"
};

// Appends the head as HTTP/1.1, framing re-made from head.body.
void write_request_head(const RequestHead& head, const RequestRewrite& rewrite, std::string& out);

struct ResponseRewrite {
  FieldEdits fields;
  Version client = Version::http11;  // of the request
  Method request = Method::get;
  bool keep_alive = true;     // what the proxy would like for the downstream connection
  bool keep_upgrade = false;  // 101 passes
};

// How the body must follow, and whether the downstream connection lives on after it.
struct ResponseSent {
  BodyKind body;  // none, content_length, chunked (frame it so) or until_close (close after it)
  bool keep_alive;
};

// Appends the head as HTTP/1.1. A body of unknown length becomes chunked for HTTP/1.1 clients and
// until_close for HTTP/1.0. Interim heads are written bare; do not send them to HTTP/1.0.
ResponseSent write_response_head(const ResponseHead& head, const ResponseRewrite& rewrite,
                                 std::string& out);

// A whole response made here: status line, content-length, "server: undermesh", `fields`, body.
// content-type is text/plain when there is a body and `fields` names none. HEAD gets no body.
struct LocalResponse {
  int status = 500;
  std::string_view body;
  std::span<const FieldValue> fields;
  std::string_view date;  // IMF-fixdate, made by the caller; none when empty
  Version client = Version::http11;
  Method request = Method::get;
  bool keep_alive = true;
};
void write_local_response(const LocalResponse& response, std::string& out);

}  // namespace mesh::http
