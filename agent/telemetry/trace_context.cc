#include "telemetry/trace_context.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace mesh::telemetry {
namespace {

constexpr std::size_t kMaxRequestId = 256;
constexpr char kDigits[] = "0123456789abcdef";

bool is_lower_hex(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// B3 says lower case; other proxies take upper case too and mean the same id.
bool is_hex(std::string_view text) {
  return std::ranges::all_of(text, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  });
}

bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

bool is_b3_id(std::string_view text) { return is_hex(text) && !is_zero(text); }

void copy_lower(std::string_view from, char* to) {
  std::ranges::transform(
      from, to, [](char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c | 0x20) : c; });
}

void write_hex(std::uint64_t value, std::size_t digits, char* to) {
  for (std::size_t i = digits; i > 0; --i, value >>= 4) to[i - 1] = kDigits[value & 15];
}

std::uint64_t non_zero(Random& random) {
  const std::uint64_t value = random.next();
  return value != 0 ? value : 1;
}

// Of any of the B3 fields: 1, 0, d (debug: sampled), and the older true and false.
std::optional<bool> b3_decision(std::string_view text) {
  if (text == "1" || text == "d" || text == "true") return true;
  if (text == "0" || text == "false") return false;
  return std::nullopt;
}

// "{trace}-{span}[-{decision}[-{parent}]]", or the decision alone.
struct B3Single {
  std::string_view trace_id, span_id;  // empty: none
  std::optional<bool> sampled;
};

std::optional<B3Single> parse_b3_single(std::string_view text) {
  B3Single b3;
  if (text.size() == 1) {
    b3.sampled = b3_decision(text);
    return b3.sampled ? std::optional(b3) : std::nullopt;
  }
  std::array<std::string_view, 4> parts{};
  std::size_t count = 0;
  for (std::size_t begin = 0; begin <= text.size();) {
    if (count == parts.size()) return std::nullopt;
    const std::size_t end = std::min(text.find('-', begin), text.size());
    parts[count++] = text.substr(begin, end - begin);
    begin = end + 1;
  }
  if (count < 2 || (parts[0].size() != 16 && parts[0].size() != 32) || parts[1].size() != 16 ||
      !is_b3_id(parts[0]) || !is_b3_id(parts[1]))
    return std::nullopt;
  b3.trace_id = parts[0];
  b3.span_id = parts[1];
  if (count >= 3) {
    if (parts[2].size() != 1 || !(b3.sampled = b3_decision(parts[2]))) return std::nullopt;
  }
  if (count == 4 && (parts[3].size() != 16 || !is_hex(parts[3]))) return std::nullopt;
  return b3;
}

bool is_request_id(std::string_view text) {
  return !text.empty() && text.size() <= kMaxRequestId &&
         std::ranges::all_of(text, [](char c) { return c > 0x20 && c < 0x7f; });
}

void write_uuid4(Random& random, char* to) {
  const std::uint64_t high = (random.next() & ~std::uint64_t{0xf000}) | 0x4000;
  const std::uint64_t low = (random.next() & ~(std::uint64_t{3} << 62)) | (std::uint64_t{1} << 63);
  write_hex(high >> 32, 8, to);
  write_hex(high >> 16, 4, to + 9);
  write_hex(high, 4, to + 14);
  write_hex(low >> 48, 4, to + 19);
  write_hex(low, 12, to + 24);
  for (int dash : {8, 13, 18, 23}) to[dash] = '-';
}

}  // namespace

TraceContext::TraceContext(const TraceFields& received, Random& random, bool sample_new) {
  if (is_request_id(received.x_request_id)) {
    request_id_ = received.x_request_id;
  } else {
    write_uuid4(random, made_request_id_.data());
    request_id_ = {made_request_id_.data(), made_request_id_.size()};
    set_[set_count_++] = {"x-request-id", request_id_};
  }

  const auto single = parse_b3_single(received.b3);
  std::optional<bool> decision;
  if (single) decision = single->sampled;
  if (!decision && received.b3_flags == "1") decision = true;
  if (!decision) decision = b3_decision(received.b3_sampled);
  if (continue_w3c(received.traceparent)) {
    keep_tracestate_ = true;
  } else {
    sampled_ = decision.value_or(sample_new);
    if (!(single && continue_b3(single->trace_id, single->span_id)) &&
        !continue_b3(received.b3_trace_id, received.b3_span_id))
      start(random);
  }
  // A client that speaks 64-bit B3 hears its own id again, whichever field it was taken from.
  for (std::string_view id : {single ? single->trace_id : std::string_view{}, received.b3_trace_id})
    if (id.size() == 16 && is_b3_id(id) && is_zero(trace_id().substr(0, 16))) {
      std::array<char, 16> lower;
      copy_lower(id, lower.data());
      short_b3_ = short_b3_ || trace_id().substr(16) == std::string_view(lower.data(), 16);
    }
  do {
    write_hex(non_zero(random), 16, span_id_.data());
  } while (has_parent_ && span_id_ == parent_);
  write_fields(received);
}

// "00-{32 digits}-{16 digits}-{2 digits}"; later versions may have more behind.
bool TraceContext::continue_w3c(std::string_view text) {
  if (text.size() < 55 || text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
  const std::string_view version = text.substr(0, 2), trace = text.substr(3, 32),
                         parent = text.substr(36, 16), flags = text.substr(53, 2);
  if (!is_lower_hex(version) || version == "ff") return false;
  if (text.size() > 55 && (version == "00" || text[55] != '-')) return false;
  if (!is_lower_hex(trace) || is_zero(trace) || !is_lower_hex(parent) || is_zero(parent) ||
      !is_lower_hex(flags))
    return false;
  std::ranges::copy(trace, trace_id_.begin());
  std::ranges::copy(parent, parent_.begin());
  has_parent_ = true;
  sampled_ = (std::string_view(kDigits).find(flags[1]) & 1) != 0;
  return true;
}

bool TraceContext::continue_b3(std::string_view trace_id, std::string_view span_id) {
  if ((trace_id.size() != 16 && trace_id.size() != 32) || span_id.size() != 16 ||
      !is_b3_id(trace_id) || !is_b3_id(span_id))
    return false;
  trace_id_.fill('0');
  copy_lower(trace_id, trace_id_.data() + (32 - trace_id.size()));
  copy_lower(span_id, parent_.data());
  has_parent_ = true;
  return true;
}

void TraceContext::start(Random& random) {
  write_hex(non_zero(random), 16, trace_id_.data());
  write_hex(non_zero(random), 16, trace_id_.data() + 16);
}

void TraceContext::write_fields(const TraceFields& received) {
  const auto set = [this](std::string_view name, std::string_view value) {
    set_[set_count_++] = {name, value};
  };
  char* out = traceparent_.data();
  const auto put = [&out](std::string_view text) { out = std::ranges::copy(text, out).out; };
  put("00-");
  put(trace_id());
  put("-");
  put(span_id());
  put(sampled_ ? "-01" : "-00");
  set("traceparent", {traceparent_.data(), traceparent_.size()});

  const std::string_view b3_trace = short_b3_ ? trace_id().substr(16) : trace_id();
  const std::string_view sampled = sampled_ ? "1" : "0";
  set("x-b3-traceid", b3_trace);
  set("x-b3-spanid", span_id());
  set("x-b3-sampled", sampled);
  if (has_parent_) set("x-b3-parentspanid", parent_span_id());
  if (!received.b3.empty()) {
    out = b3_.data();
    put(b3_trace);
    put("-");
    put(span_id());
    put("-");
    put(sampled);
    if (has_parent_) {
      put("-");
      put(parent_span_id());
    }
    set("b3", {b3_.data(), static_cast<std::size_t>(out - b3_.data())});
  }

  const auto remove = [this](std::string_view name) { remove_[remove_count_++] = name; };
  if (!keep_tracestate_) remove("tracestate");
  if (!received.b3_parent_span_id.empty() && !has_parent_) remove("x-b3-parentspanid");
  if (!received.b3_flags.empty() && !(received.b3_flags == "1" && sampled_)) remove("x-b3-flags");
}

}  // namespace mesh::telemetry
