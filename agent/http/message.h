// HTTP messages as the mesh sees them, whatever the version on the wire: heads, fields, framing,
// limits.
//
// Heads are views: every string_view points into the caller's buffer (or into the head itself,
// where normalisation changed the text), so a head is valid while that buffer is neither moved nor
// reused. Heads are made once and filled again and again; filling them allocates nothing in steady
// state. Values and plain data; no locks, no clocks; may be used from one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mesh::http {

enum class Method : std::uint8_t {
  get,
  head,
  post,
  put,
  delete_,
  connect,
  options,
  trace,
  patch,
  other
};
enum class Version : std::uint8_t { http10, http11 };

std::string_view to_string(Version version);  // "HTTP/1.1", as the access log prints it
// RFC 9110 9.2.2: a request of this method may be sent again. `other` may not.
bool is_idempotent(Method method);

// Where a body ends. A content_length of 0 is a declared empty body; `none` declares nothing.
enum class BodyKind : std::uint8_t { none, content_length, chunked, until_close };

struct Framing {
  BodyKind kind = BodyKind::none;
  std::uint64_t length = 0;  // of content_length
  [[nodiscard]] bool has_body() const {
    return kind == BodyKind::chunked || kind == BodyKind::until_close || length > 0;
  }
  friend bool operator==(const Framing&, const Framing&) = default;
};

// Fields that decide about framing and the connection are recognised once, when parsed.
enum class FieldId : std::uint8_t {
  other,
  host,
  connection,
  content_length,
  transfer_encoding,
  te,
  trailer,
  upgrade,
  keep_alive,
  proxy_connection,
  http2_settings,
  expect,
};

struct Field {
  std::string_view name;   // spelt as received; compare with names_equal
  std::string_view value;  // without surrounding white space
  FieldId id;
};

// ASCII case-insensitive, as field names, and many values, are compared.
bool names_equal(std::string_view a, std::string_view b);

// What may be written: a token, and a value without control characters but tab. Configuration and
// everything else that makes fields checks with these before it hands them to a writer.
bool is_valid_field_name(std::string_view name);
bool is_valid_field_value(std::string_view value);

// The fields of a head in the order received. Up to kInline of them live in place.
class Fields {
 public:
  static constexpr std::size_t kInline = 32;

  Fields() = default;
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  [[nodiscard]] const Field* begin() const { return data(); }
  [[nodiscard]] const Field* end() const { return data() + size_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  const Field& operator[](std::size_t i) const { return data()[i]; }

  // The first field of this name; nullptr without one.
  [[nodiscard]] const Field* find(std::string_view name) const;
  [[nodiscard]] std::string_view get(std::string_view name) const {  // "" without one
    const Field* field = find(name);
    return field != nullptr ? field->value : std::string_view{};
  }

  void clear() { size_ = 0; }
  void push_back(const Field& field) {
    if (size_ >= kInline) return spill(field);
    std::memcpy(inline_ + size_ * sizeof(Field), &field, sizeof(Field));
    ++size_;
  }

 private:
  void spill(const Field& field);
  [[nodiscard]] const Field* data() const {
    return size_ <= kInline ? reinterpret_cast<const Field*>(inline_) : spilled_.data();
  }

  std::size_t size_ = 0;
  std::vector<Field> spilled_;  // all of them, once there are more than kInline; keeps its capacity
  alignas(Field) std::byte inline_[kInline * sizeof(Field)];
};

struct RequestHead {
  Method method = Method::get;
  Version version = Version::http11;
  bool keep_alive = true;             // what the client asks for, by version and Connection
  bool has_query = false;             // "/a?" has an empty query, "/a" has none
  bool expect_continue = false;       // HTTP/1.1, a body follows, and the client waits for 100
  std::optional<std::uint16_t> port;  // of the authority
  Framing body;                       // none, content_length or chunked

  std::string_view method_text;
  std::string_view target;     // the request target as received; for logs only
  std::string_view path;       // normalised, begins with '/' ("*" for OPTIONS *): the one path that
                               // routing, authorisation and forwarding see
  std::string_view query;      // without '?', as received
  std::string_view authority;  // Host, or that of an absolute-form target; empty only in HTTP/1.0
  std::string_view host;       // lower-case authority without port; brackets of IPv6 stay
  std::string_view upgrade;    // the protocols of Upgrade when Connection names it, else empty
  Fields fields;               // every field, Host included

  RequestHead() = default;
  RequestHead(const RequestHead&) = delete;  // the views may point into the head itself
  RequestHead& operator=(const RequestHead&) = delete;
  void clear();

  std::string path_storage;  // what `path` and `host` point to where they differ from the wire
  std::string host_storage;
};

struct ResponseHead {
  int status = 0;
  Version version = Version::http11;
  bool keep_alive = false;  // the upstream connection may carry another request after the body
  Framing body;             // by RFC 9112 6.3, the request's method considered

  std::string_view reason;
  std::string_view upgrade;  // with status 101
  Fields fields;

  ResponseHead() = default;
  ResponseHead(const ResponseHead&) = delete;
  ResponseHead& operator=(const ResponseHead&) = delete;
  void clear();
  // 1xx but 101: pass it on (or drop it) and parse the next head, which is still to come.
  [[nodiscard]] bool is_interim() const { return status >= 100 && status < 200 && status != 101; }
};

// What a peer may make us hold, and the status of a request that asks for more.
struct Limits {
  std::size_t head_bytes = 61'440;      // start line and fields: 60 KiB as Envoy. 431
  std::size_t fields = 100;             // as Envoy. 431
  std::size_t target_bytes = 8'192;     // RFC 9112 3 asks for at least 8,000. 414
  std::size_t method_bytes = 32;        // 501
  std::size_t leading_empty_lines = 4;  // before a request line. 400
  std::size_t connection_options = 32;  // named by Connection. 400
  std::size_t chunk_line_bytes = 256;   // size and extensions, which are read and dropped. 400
  std::size_t trailer_bytes = 8'192;    // the whole trailer section. 431
  std::size_t trailer_fields = 32;      // 431
};
inline constexpr Limits kDefaultLimits{};

// Why input was refused. The connection cannot be used further: answer (a request), close.
struct ParseError {
  int status = 0;           // requests: 400, 414, 417, 421, 431, 501, 505. Responses: 502
  std::string_view detail;  // static text for logs: "bare line feed"
};

// The path by Istio's BASE normalisation: escapes of unreserved characters decoded, '\' made '/',
// dot segments removed. The result views `path` where nothing changes, else `storage`. Fails on a
// path that does not begin with '/', on a '%' without two hexadecimal digits, and on %00.
// Idempotent.
std::optional<std::string_view> normalise_path(std::string_view path, std::string& storage);

// "Not Found" for 404; "Unknown" for codes that RFC 9110 does not name.
std::string_view reason_phrase(int status);

}  // namespace mesh::http
