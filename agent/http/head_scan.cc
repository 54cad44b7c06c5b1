#include "http/head_scan.h"

#include "http/chars.h"

namespace mesh::http {
namespace {

constexpr ParseError kFine{};

// One Content-Length, digits only. RFC 9110 8.6 lets us refuse a list of equal numbers, and we do.
ParseError note_content_length(std::string_view value, HeadFacts& facts) {
  if (facts.has_content_length) return {400, "more than one content-length"};
  if (facts.is_chunked) return {400, "both transfer-encoding and content-length"};
  if (value.empty() || value.size() > 18) return {400, "invalid content-length"};  // < 10^18
  std::uint64_t length = 0;
  for (const char c : value) {
    if (!is_digit(c)) return {400, "invalid content-length"};
    length = length * 10 + static_cast<std::uint64_t>(c - '0');
  }
  facts.has_content_length = true;
  facts.content_length = length;
  return kFine;
}

// RFC 9112 6.1, 6.3: `chunked` exactly once, and nothing else, is understood.
ParseError note_transfer_encoding(std::string_view value, HeadFacts& facts) {
  if (facts.version == Version::http10) return {400, "transfer-encoding in HTTP/1.0"};
  if (facts.has_content_length) return {400, "both transfer-encoding and content-length"};
  ParseError error;
  each_element(value, [&](std::string_view coding) {
    if (coding.empty()) {
      error = {400, "empty transfer coding"};
    } else if (!names_equal(coding, "chunked")) {
      error = {501, "unknown transfer coding"};
    } else if (facts.is_chunked) {
      error = {400, "chunked applied twice"};
    }
    facts.is_chunked = true;
    return error.status == 0;
  });
  return error;
}

ParseError note_connection(std::string_view value, const Limits& limits, HeadFacts& facts) {
  ParseError error;
  each_element(value, [&](std::string_view option) {
    if (option.empty()) return true;
    if (++facts.connection_options > limits.connection_options) {
      error = {400, "too many connection options"};
    } else if (!is_valid_field_name(option)) {
      error = {400, "invalid connection option"};
    } else if (names_equal(option, "close")) {
      facts.close = true;
    } else if (names_equal(option, "keep-alive")) {
      facts.keep_alive = true;
    } else if (names_equal(option, "upgrade")) {
      facts.names_upgrade = true;
    }
    return error.status == 0;
  });
  return error;
}

}  // namespace

HeadLine incomplete_line(std::string_view input, HeadCursor& at) {
  const std::size_t from = at.searched > at.line ? at.searched - 1 : at.line;
  if (from < input.size() && input.find('\r', from) < input.size() - 1) {
    return {Parse::error, "bare carriage return"};
  }
  at.searched = input.size();
  return {Parse::need_more, {}};
}

ParseError scan_field(std::string_view line, const Limits& limits, HeadFacts& facts, Field& field) {
  if (++facts.fields > limits.fields) return {431, "too many fields"};
  if (const char* error = scan_field_line(line, field)) return {400, error};
  switch (field.id) {
    case FieldId::host:
      if (facts.has_host) return {400, "more than one host"};
      facts.has_host = true;
      return kFine;
    case FieldId::content_length:
      return note_content_length(field.value, facts);
    case FieldId::transfer_encoding:
      return note_transfer_encoding(field.value, facts);
    case FieldId::connection:
      return note_connection(field.value, limits, facts);
    default:
      return kFine;
  }
}

}  // namespace mesh::http
