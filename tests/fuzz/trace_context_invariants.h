// What must hold of every TraceContext, whatever the client sent. Input: lines "name: value".
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <string_view>

#include "telemetry/trace_context.h"

namespace mesh::telemetry {

inline TraceFields trace_fields(std::string_view input) {
  TraceFields fields;
  const std::map<std::string_view, std::string_view TraceFields::*> names = {
      {"x-request-id", &TraceFields::x_request_id},
      {"traceparent", &TraceFields::traceparent},
      {"b3", &TraceFields::b3},
      {"x-b3-traceid", &TraceFields::b3_trace_id},
      {"x-b3-spanid", &TraceFields::b3_span_id},
      {"x-b3-parentspanid", &TraceFields::b3_parent_span_id},
      {"x-b3-sampled", &TraceFields::b3_sampled},
      {"x-b3-flags", &TraceFields::b3_flags}};
  while (!input.empty()) {
    const std::string_view line = input.substr(0, input.find('\n'));
    input.remove_prefix(std::min(input.size(), line.size() + 1));
    const std::size_t colon = line.find(": ");
    if (colon == std::string_view::npos) continue;
    if (const auto found = names.find(line.substr(0, colon)); found != names.end())
      fields.*found->second = line.substr(colon + 2);
  }
  return fields;
}

// What goes upstream, by name: the fields received, and a tracestate, as the context changes them.
inline std::map<std::string, std::string> sent_upstream(const TraceFields& received,
                                                        const TraceContext& context) {
  std::map<std::string, std::string> sent = {
      {"x-request-id", std::string(received.x_request_id)},
      {"traceparent", std::string(received.traceparent)},
      {"tracestate", "vendor=1"},
      {"b3", std::string(received.b3)},
      {"x-b3-traceid", std::string(received.b3_trace_id)},
      {"x-b3-spanid", std::string(received.b3_span_id)},
      {"x-b3-parentspanid", std::string(received.b3_parent_span_id)},
      {"x-b3-sampled", std::string(received.b3_sampled)},
      {"x-b3-flags", std::string(received.b3_flags)}};
  for (std::string_view name : context.remove()) sent.erase(std::string(name));
  for (const auto& field : context.set()) sent[std::string(field.name)] = std::string(field.value);
  std::erase_if(sent, [](const auto& field) { return field.second.empty(); });
  return sent;
}

// Empty, or what is broken.
inline std::string check_trace_context(const TraceFields& received, const TraceContext& context) {
  const auto is_id = [](std::string_view text) {
    return std::ranges::all_of(
               text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }) &&
           text.find_first_not_of('0') != std::string_view::npos;
  };
  const std::string trace(context.trace_id()), span(context.span_id()),
      parent(context.parent_span_id());
  if (trace.size() != 32 || !is_id(trace)) return "trace id";
  if (span.size() != 16 || !is_id(span)) return "span id";
  if (!parent.empty() && (parent.size() != 16 || !is_id(parent) || parent == span))
    return "parent span id";

  auto sent = sent_upstream(received, context);
  const std::string sampled = context.is_sampled() ? "1" : "0";
  const std::string short_id = trace.substr(16);
  if (sent["traceparent"] != "00-" + trace + "-" + span + "-0" + sampled) return "traceparent";
  const std::string b3_trace = sent["x-b3-traceid"];
  const bool may_be_short = trace.starts_with(std::string(16, '0'));
  if (b3_trace != trace && !(may_be_short && b3_trace == short_id)) return "x-b3-traceid";
  if (sent["x-b3-spanid"] != span) return "x-b3-spanid";
  if (sent["x-b3-sampled"] != sampled) return "x-b3-sampled";
  if (sent["x-b3-parentspanid"] != parent) return "x-b3-parentspanid";
  if (sent.contains("x-b3-flags") && (sent["x-b3-flags"] != "1" || sampled != "1"))
    return "x-b3-flags";
  const std::string single =
      b3_trace + "-" + span + "-" + sampled + (parent.empty() ? "" : "-" + parent);
  if (sent.contains("b3") != !received.b3.empty() || (sent.contains("b3") && sent["b3"] != single))
    return "b3";
  if (sent.contains("tracestate") && received.traceparent.find(trace) == std::string_view::npos)
    return "tracestate";
  const std::string& id = sent["x-request-id"];
  if (id.empty() || !std::ranges::all_of(id, [](char c) { return c > 0x20 && c < 0x7f; }))
    return "x-request-id";
  return "";
}

}  // namespace mesh::telemetry
