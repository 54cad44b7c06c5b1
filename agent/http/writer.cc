#include <algorithm>
#include <charconv>

#include "http/chars.h"
#include "http/http1.h"

namespace mesh::http {
namespace {

constexpr std::size_t kFixedRoom = 256;  // versions, framing, connection, line ends

// Text behind `out` in one piece: the room is made once, so that each append is a copy.
class Appender {
 public:
  Appender(std::string& out, std::size_t room) : out_(out), used_(out.size()) {
    out_.resize(used_ + room);
  }
  ~Appender() { out_.resize(used_); }
  Appender(const Appender&) = delete;
  Appender& operator=(const Appender&) = delete;

  void text(std::string_view text) { used_ += text.copy(out_.data() + used_, text.size()); }
  void field(std::string_view name, std::string_view value) {
    char* p = out_.data() + used_;
    p += name.copy(p, name.size());
    *p++ = ':';
    *p++ = ' ';
    p += value.copy(p, value.size());
    *p++ = '\r';
    *p++ = '\n';
    used_ = static_cast<std::size_t>(p - out_.data());
  }
  // Text that was not parsed from a head: whatever it holds, it cannot end a line.
  void safe_text(std::string_view text) {
    if (!has_control(text)) return this->text(text);
    for (const char c : text) out_[used_++] = is_control(c) ? ' ' : c;
  }
  void encoded_path(std::string_view path) {
    static constexpr char kHex[] = "0123456789ABCDEF";
    for (const char c : path) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte > 0x20 && byte < 0x7f && c != '#') {
        out_[used_++] = c;
      } else {
        out_[used_++] = '%';
        out_[used_++] = kHex[byte >> 4];
        out_[used_++] = kHex[byte & 15];
      }
    }
  }
  void safe_field(const FieldValue& field) {
    if (has_control(field.name)) return;
    if (!has_control(field.value)) return this->field(field.name, field.value);
    text(field.name);
    text(": ");
    safe_text(field.value);
    text("\r\n");
  }
  void number(std::uint64_t value) {
    char* begin = out_.data() + used_;
    used_ += static_cast<std::size_t>(std::to_chars(begin, begin + 20, value).ptr - begin);
  }

 private:
  std::string& out_;
  std::size_t used_;
};

std::size_t room_for(const Fields& fields) {
  std::size_t room = 0;
  for (const Field& field : fields) room += field.name.size() + field.value.size() + 4;
  return room;
}

std::size_t room_for(std::span<const FieldValue> fields) {
  std::size_t room = 0;
  for (const FieldValue& field : fields) room += field.name.size() + field.value.size() + 4;
  return room;
}

// What Connection may not name away; prefixes end with '-'.
bool is_protected(std::string_view name) {
  static constexpr std::string_view kNames[] = {"authorization", "b3",          "cookie",
                                                "forwarded",     "traceparent", "tracestate",
                                                "via",           "x-request-id"};
  static constexpr std::string_view kPrefixes[] = {"x-b3-", "x-envoy-", "x-forwarded-"};
  return std::ranges::any_of(kNames, [&](auto known) { return names_equal(name, known); }) ||
         std::ranges::any_of(kPrefixes, [&](auto prefix) {
           return names_equal(name.substr(0, prefix.size()), prefix);
         });
}

// Connection options that name a field: not close and keep-alive, which nearly all are.
bool names_fields(const Fields& fields) {
  return std::ranges::any_of(fields, [](const Field& field) {
    return field.id == FieldId::connection && !names_equal(field.value, "keep-alive") &&
           !names_equal(field.value, "close");
  });
}

bool is_named_by_connection(const Fields& fields, std::string_view name) {
  const auto differs = [&](std::string_view option) { return !names_equal(option, name); };
  return std::ranges::any_of(fields, [&](const Field& field) {
    return field.id == FieldId::connection && !each_element(field.value, differs);
  });
}

bool is_edited(const FieldEdits& edits, std::string_view name) {
  for (const std::string_view removed : edits.remove) {
    if (names_equal(removed, name)) return true;
  }
  for (const FieldValue& field : edits.set) {
    if (names_equal(field.name, name)) return true;
  }
  return false;
}

// The end-to-end fields with their edits; what has an id is the caller's.
void append_end_to_end(const Fields& fields, const FieldEdits& edits, Appender& out) {
  const bool named = names_fields(fields);
  for (const Field& field : fields) {
    if (field.id != FieldId::other && field.id != FieldId::trailer) continue;
    if (is_edited(edits, field.name)) continue;
    if (named && is_named_by_connection(fields, field.name) && !is_protected(field.name)) continue;
    out.field(field.name, field.value);
  }
  for (const auto& list : {edits.set, edits.add}) {
    for (const FieldValue& field : list) {
      if (identify(field.name) == FieldId::other) out.safe_field(field);
    }
  }
}

void append_framing(const Framing& body, Appender& out) {
  if (body.kind == BodyKind::chunked) out.text("transfer-encoding: chunked\r\n");
  if (body.kind == BodyKind::content_length) {
    out.text("content-length: ");
    out.number(body.length);
    out.text("\r\n");
  }
}

bool accepts_trailers(const Fields& fields) {
  return std::ranges::any_of(fields, [](const Field& field) {
    return field.id == FieldId::te && !each_element(field.value, [](std::string_view coding) {
             return !names_equal(coding, "trailers");
           });
  });
}

void append_request_connection(const RequestHead& head, const RequestRewrite& rewrite,
                               Appender& out) {
  const bool upgrade = rewrite.keep_upgrade && !head.upgrade.empty();
  const bool te = accepts_trailers(head.fields);
  if (te) out.text("te: trailers\r\n");
  if (upgrade) out.field("upgrade", head.upgrade);
  if (!te && !upgrade && !rewrite.close) return;
  out.text("connection: ");
  std::string_view separator;
  const auto option = [&](bool wanted, std::string_view name) {
    if (!wanted) return;
    out.text(separator);
    out.text(name);
    separator = ", ";
  };
  option(rewrite.close, "close");
  option(upgrade, "upgrade");
  option(te, "te");
  out.text("\r\n");
}

void append_status_line(int status, std::string_view reason, Appender& out) {
  out.text("HTTP/1.1 ");
  out.number(static_cast<std::uint64_t>(status));
  out.text(" ");
  out.text(reason);
  out.text("\r\n");
}

// Whether a response of this status to this request can have a body (RFC 9112 6.3, rule 1).
bool may_have_body(int status, Method request) {
  return request != Method::head && status >= 200 && status != 204 && status != 304;
}

void append_response_connection(Version client, bool keep_alive, Appender& out) {
  if (!keep_alive) {
    out.text("connection: close\r\n");
  } else if (client == Version::http10) {
    out.text("connection: keep-alive\r\n");
  }
}

}  // namespace

void write_request_head(const RequestHead& head, const RequestRewrite& rewrite, std::string& out) {
  const std::string_view path = rewrite.path.empty() ? head.path : rewrite.path;
  const std::string_view authority = rewrite.authority.empty() ? head.authority : rewrite.authority;
  const FieldEdits& edits = rewrite.fields;
  Appender text(out, kFixedRoom + head.method_text.size() + 3 * path.size() + head.query.size() +
                         authority.size() + head.upgrade.size() + room_for(head.fields) +
                         room_for(edits.set) + room_for(edits.add));
  text.text(head.method_text);
  text.text(" ");
  if (rewrite.path.empty()) {
    text.text(path);
  } else {
    text.encoded_path(path);  // it was not scanned
  }
  if (head.has_query) {
    text.text("?");
    text.text(head.query);
  }
  text.text(" HTTP/1.1\r\nhost: ");
  text.safe_text(authority);
  text.text("\r\n");
  append_end_to_end(head.fields, edits, text);
  if (head.expect_continue) text.text("expect: 100-continue\r\n");
  append_framing(head.body, text);
  append_request_connection(head, rewrite, text);
  text.text("\r\n");
}

ResponseSent write_response_head(const ResponseHead& head, const ResponseRewrite& rewrite,
                                 std::string& out) {
  Appender text(out, kFixedRoom + head.reason.size() + head.upgrade.size() + room_for(head.fields) +
                         room_for(rewrite.fields.set) + room_for(rewrite.fields.add));
  append_status_line(head.status, head.reason, text);
  append_end_to_end(head.fields, rewrite.fields, text);
  ResponseSent sent{BodyKind::none, rewrite.keep_alive};
  if (head.status == 101 && rewrite.keep_upgrade) {
    if (!head.upgrade.empty()) text.field("upgrade", head.upgrade);
    text.text("connection: upgrade\r\n\r\n");
    return sent;
  }
  if (head.is_interim()) {
    text.text("\r\n");
    return sent;
  }
  if (may_have_body(head.status, rewrite.request)) {
    Framing body = head.body;
    if (body.kind == BodyKind::until_close || body.kind == BodyKind::chunked) {
      body.kind = rewrite.client == Version::http11 ? BodyKind::chunked : BodyKind::until_close;
    }
    if (body.kind == BodyKind::until_close) sent.keep_alive = false;
    append_framing(body, text);
    sent.body = body.kind;
  } else if (rewrite.request == Method::head || head.status == 304) {
    // It tells of the body that GET would have had.
    for (const Field& field : head.fields) {
      if (field.id == FieldId::content_length && head.status != 204) {
        text.field("content-length", field.value);
      }
    }
  }
  append_response_connection(rewrite.client, sent.keep_alive, text);
  text.text("\r\n");
  return sent;
}

void write_local_response(const LocalResponse& response, std::string& out) {
  const std::string_view body =
      response.status >= 200 && response.status != 204 && response.status != 304 ? response.body
                                                                                 : "";
  const bool typed = std::ranges::any_of(response.fields, [](const FieldValue& field) {
    return names_equal(field.name, "content-type");
  });
  Appender text(out, kFixedRoom + response.date.size() + room_for(response.fields) + body.size());
  append_status_line(response.status, reason_phrase(response.status), text);
  if (response.status >= 200 && response.status != 204 && response.status != 304) {
    append_framing({BodyKind::content_length, body.size()}, text);
  }
  if (!body.empty() && !typed) text.text("content-type: text/plain\r\n");
  for (const FieldValue& field : response.fields) {
    if (identify(field.name) == FieldId::other) text.safe_field(field);
  }
  if (!response.date.empty()) text.safe_field({"date", response.date});
  text.text("server: undermesh\r\n");
  append_response_connection(response.client, response.keep_alive, text);
  text.text("\r\n");
  if (response.request != Method::head) text.text(body);
}

}  // namespace mesh::http
