#include "http/message.h"

#include <algorithm>
#include <cstring>

#include "http/chars.h"

namespace mesh::http {

std::string_view to_string(Version version) {
  return version == Version::http10 ? "HTTP/1.0" : "HTTP/1.1";
}

bool is_idempotent(Method method) {
  switch (method) {
    case Method::get:
    case Method::head:
    case Method::put:
    case Method::delete_:
    case Method::options:
    case Method::trace:
      return true;
    case Method::post:
    case Method::connect:
    case Method::patch:
    case Method::other:
      return false;
  }
  return false;
}

bool names_equal(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && to_lower(a[i]) != to_lower(b[i])) return false;
  }
  return true;
}

bool is_valid_field_name(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](char c) { return kToken[c]; });
}

bool is_valid_field_value(std::string_view value) { return !has_control(value); }

const Field* Fields::find(std::string_view name) const {
  for (const Field& field : *this) {
    if (names_equal(field.name, name)) return &field;
  }
  return nullptr;
}

void Fields::spill(const Field& field) {
  if (size_ == kInline) spilled_.assign(begin(), end());
  spilled_.push_back(field);
  ++size_;
}

void RequestHead::clear() {
  method = Method::get;
  version = Version::http11;
  keep_alive = true;
  has_query = expect_continue = false;
  port.reset();
  body = {};
  method_text = target = path = query = authority = host = upgrade = {};
  fields.clear();
}

void ResponseHead::clear() {
  status = 0;
  version = Version::http11;
  keep_alive = false;
  body = {};
  reason = upgrade = {};
  fields.clear();
}

FieldId identify(std::string_view name) {
  // By length and first letter there is at most one candidate.
  const auto is = [&](std::string_view known, FieldId id) {
    return to_lower(name[0]) == known[0] && names_equal(name, known) ? id : FieldId::other;
  };
  switch (name.size()) {
    case 2:
      return is("te", FieldId::te);
    case 4:
      return is("host", FieldId::host);
    case 6:
      return is("expect", FieldId::expect);
    case 7:
      return name[0] == 'u' || name[0] == 'U' ? is("upgrade", FieldId::upgrade)
                                              : is("trailer", FieldId::trailer);
    case 10:
      return name[0] == 'k' || name[0] == 'K' ? is("keep-alive", FieldId::keep_alive)
                                              : is("connection", FieldId::connection);
    case 14:
      return name[0] == 'h' || name[0] == 'H' ? is("http2-settings", FieldId::http2_settings)
                                              : is("content-length", FieldId::content_length);
    case 16:
      return is("proxy-connection", FieldId::proxy_connection);
    case 17:
      return is("transfer-encoding", FieldId::transfer_encoding);
    default:
      return FieldId::other;
  }
}

const char* scan_field_line(std::string_view line, Field& field) {
  const char* const begin = line.data();
  const char* const end = begin + line.size();
  const char* colon = begin;
  while (colon != end && kToken[*colon]) ++colon;
  if (colon == end) return "field line without a colon";
  if (*colon != ':') {
    if (*colon != ' ' && *colon != '\t') return "invalid character in a field name";
    return colon == begin ? "folded field line" : "white space before the colon";
  }
  if (colon == begin) return "empty field name";
  if (has_control({colon + 1, end})) return "control character in a field value";
  const std::string_view name(begin, colon);
  field = {name, trim({colon + 1, end}), identify(name)};
  return nullptr;
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 101:
      return "Switching Protocols";
    case 102:
      return "Processing";
    case 103:
      return "Early Hints";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 203:
      return "Non-Authoritative Information";
    case 204:
      return "No Content";
    case 205:
      return "Reset Content";
    case 206:
      return "Partial Content";
    case 207:
      return "Multi-Status";
    case 300:
      return "Multiple Choices";
    case 301:
      return "Moved Permanently";
    case 302:
      return "Found";
    case 303:
      return "See Other";
    case 304:
      return "Not Modified";
    case 305:
      return "Use Proxy";
    case 307:
      return "Temporary Redirect";
    case 308:
      return "Permanent Redirect";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 402:
      return "Payment Required";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 406:
      return "Not Acceptable";
    case 407:
      return "Proxy Authentication Required";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 410:
      return "Gone";
    case 411:
      return "Length Required";
    case 412:
      return "Precondition Failed";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 416:
      return "Range Not Satisfiable";
    case 417:
      return "Expectation Failed";
    case 421:
      return "Misdirected Request";
    case 422:
      return "Unprocessable Content";
    case 426:
      return "Upgrade Required";
    case 428:
      return "Precondition Required";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 451:
      return "Unavailable For Legal Reasons";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 502:
      return "Bad Gateway";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 505:
      return "HTTP Version Not Supported";
    case 507:
      return "Insufficient Storage";
    case 511:
      return "Network Authentication Required";
    default:
      return "Unknown";
  }
}

}  // namespace mesh::http
