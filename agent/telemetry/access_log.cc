#include "telemetry/access_log.h"

#include <arpa/inet.h>

#include <charconv>

namespace mesh::telemetry {
namespace {

bool is_plain(char c, bool spaces) {
  return (c > 0x20 && c < 0x7f && c != '"' && c != '\\') || (c == ' ' && spaces);
}

void append_escaped(std::string_view text, bool spaces, std::string& out) {
  constexpr char kDigits[] = "0123456789abcdef";
  while (true) {
    std::size_t plain = 0;
    while (plain < text.size() && is_plain(text[plain], spaces)) ++plain;
    out.append(text.substr(0, plain));
    if (plain == text.size()) return;
    const auto byte = static_cast<unsigned char>(text[plain]);
    const char escape[] = {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    out.append(escape, sizeof escape);
    text.remove_prefix(plain + 1);
  }
}

void append_word(std::string_view text, std::string& out) {
  if (text.empty())
    out += '-';
  else
    append_escaped(text, false, out);
}

void append_quoted(std::string_view text, std::string& out) {
  out += " \"";
  if (text.empty())
    out += '-';
  else
    append_escaped(text, true, out);
  out += '"';
}

template <class Int>
void append_integer(Int value, std::string& out) {
  char text[24];
  out.append(text, std::to_chars(text, text + sizeof text, value).ptr);
}

void append_digits(unsigned value, int width, std::string& out) {
  char text[9];
  for (int i = width; i > 0; --i, value /= 10) text[i - 1] = static_cast<char>('0' + value % 10);
  out.append(text, static_cast<std::size_t>(width));
}

// Envoy's default START_TIME: "2026-11-22T15:04:05.123Z".
void append_time(std::chrono::system_clock::time_point time, std::string& out) {
  using namespace std::chrono;
  const auto day = floor<days>(time);
  const year_month_day date(day);
  const hh_mm_ss clock(floor<milliseconds>(time - day));
  append_digits(static_cast<unsigned>(static_cast<int>(date.year())), 4, out);
  out += '-';
  append_digits(static_cast<unsigned>(date.month()), 2, out);
  out += '-';
  append_digits(static_cast<unsigned>(date.day()), 2, out);
  out += 'T';
  append_digits(static_cast<unsigned>(clock.hours().count()), 2, out);
  out += ':';
  append_digits(static_cast<unsigned>(clock.minutes().count()), 2, out);
  out += ':';
  append_digits(static_cast<unsigned>(clock.seconds().count()), 2, out);
  out += '.';
  append_digits(static_cast<unsigned>(clock.subseconds().count()), 3, out);
  out += 'Z';
}

// As SocketAddress::to_string, without its allocations.
void append_address(const SocketAddress* address, std::string& out) {
  if (address == nullptr) {
    out += '-';
    return;
  }
  const auto& bytes = address->ip.bytes();
  if (address->ip.is_v4()) {  // by hand: inet_ntop goes through printf, and this is the common case
    for (std::size_t i = 12; i < 16; ++i) {
      if (i > 12) out += '.';
      append_integer(unsigned{bytes[i]}, out);
    }
  } else {
    char text[INET6_ADDRSTRLEN];
    ::inet_ntop(AF_INET6, bytes.data(), text, sizeof text);
    out.append("[").append(text).append("]");
  }
  out += ':';
  append_integer(address->port, out);
}

}  // namespace

void append_access_log_line(const AccessLogEntry& entry, std::string& out) {
  const auto word = [&out](std::string_view text) {
    out += ' ';
    append_word(text, out);
  };
  out += '[';
  append_time(entry.start, out);
  out += "] \"";
  append_word(entry.method, out);
  word(entry.path);
  word(entry.protocol);
  out += "\" ";
  append_integer(entry.response_code, out);
  out += ' ';
  entry.flags.append_to(out);
  word(entry.response_code_details);
  word(entry.connection_termination_details);
  append_quoted(entry.upstream_transport_failure_reason, out);
  out += ' ';
  append_integer(entry.bytes_received, out);
  out += ' ';
  append_integer(entry.bytes_sent, out);
  out += ' ';
  append_integer(entry.duration.count(), out);
  out += ' ';
  if (entry.upstream_service_time_ms < 0)
    out += '-';
  else
    append_integer(entry.upstream_service_time_ms, out);
  append_quoted(entry.x_forwarded_for, out);
  append_quoted(entry.user_agent, out);
  append_quoted(entry.request_id, out);
  append_quoted(entry.authority, out);
  out += " \"";
  append_address(entry.upstream_host, out);
  out += '"';
  word(entry.upstream_cluster);
  for (const auto* address : {entry.upstream_local_address, entry.downstream_local_address,
                              entry.downstream_remote_address}) {
    out += ' ';
    append_address(address, out);
  }
  word(entry.requested_server_name);
  out += ' ';
  if (entry.match_name.empty()) {
    append_word(entry.route_name, out);
  } else {
    append_escaped(entry.route_name, false, out);
    out += '.';
    append_escaped(entry.match_name, false, out);
  }
  out += '\n';
}

}  // namespace mesh::telemetry
