// TraceContext: x-request-id, B3 (multi and single) and W3C traceparent of one request: continued
// where the client sent them well-formed, else made.
//
// The proxy is one span: what goes upstream carries a new span id whose parent is the client's. All
// formats say the same trace id and the same sampling decision; where the client's formats
// disagree, traceparent wins over b3, b3 over x-b3-*. An existing decision is honoured (x-b3-flags:
// 1 means sampled); without one the caller's decides. Malformed fields are replaced, never passed
// on. Formats: openzipkin/b3-propagation, w3c trace-context level 1; Envoy's x-request-id. A value
// of about 250 bytes without allocation; views point into it and into the caller's input.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/random.h"

namespace mesh::telemetry {

// The fields as received; empty: absent. Where a field came twice, the first.
struct TraceFields {
  std::string_view x_request_id;  // the edge of the mesh passes none: strangers do not choose ids
  std::string_view traceparent;
  std::string_view b3;
  std::string_view b3_trace_id, b3_span_id, b3_parent_span_id, b3_sampled, b3_flags;
};

class TraceContext {
 public:
  struct Field {
    std::string_view name, value;
  };
  static constexpr std::size_t kMaxFields = 8;

  // `sample_new`: the decision for a trace that comes without one.
  TraceContext(const TraceFields& received, Random& random, bool sample_new);
  TraceContext(const TraceContext&) = delete;  // views point inside
  TraceContext& operator=(const TraceContext&) = delete;

  std::string_view request_id() const { return request_id_; }
  std::string_view trace_id() const { return {trace_id_.data(), trace_id_.size()}; }  // 32 digits
  std::string_view span_id() const { return {span_id_.data(), span_id_.size()}; }     // 16 digits
  std::string_view parent_span_id() const {  // 16 digits; empty: this is the root
    return has_parent_ ? std::string_view(parent_.data(), parent_.size()) : std::string_view{};
  }
  bool is_sampled() const { return sampled_; }

  // The fields to set (replacing what was received): x-request-id when it was made here; always
  // traceparent, x-b3-traceid, x-b3-spanid, x-b3-sampled; x-b3-parentspanid when there is a parent;
  // b3 when it was received.
  std::span<const Field> set() const { return {set_.data(), set_count_}; }
  // The fields to remove: tracestate unless traceparent is continued, a received x-b3-parentspanid
  // of a root, x-b3-flags where it is malformed or says otherwise.
  std::span<const std::string_view> remove() const { return {remove_.data(), remove_count_}; }

 private:
  bool continue_w3c(std::string_view text);
  bool continue_b3(std::string_view trace_id, std::string_view span_id);
  void start(Random& random);
  void write_fields(const TraceFields& received);

  std::array<char, 32> trace_id_;
  std::array<char, 16> span_id_;
  std::array<char, 16> parent_;
  bool has_parent_ = false;
  bool sampled_ = false;
  bool keep_tracestate_ = false;
  bool short_b3_ = false;  // the client's B3 trace id has 64 bits: it stays so in B3
  std::string_view request_id_;
  std::array<char, 36> made_request_id_;
  std::array<char, 55> traceparent_;
  std::array<char, 68> b3_;
  std::array<Field, kMaxFields> set_;
  std::size_t set_count_ = 0;
  std::array<std::string_view, 3> remove_;
  std::size_t remove_count_ = 0;
};

}  // namespace mesh::telemetry
