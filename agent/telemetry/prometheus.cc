#include "telemetry/prometheus.h"

#include <charconv>
#include <cmath>

namespace mesh::telemetry {
namespace {

void append_escaped(std::string_view text, bool quote, std::string& out) {
  for (char c : text) {
    switch (c) {
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '"':
        if (quote) out += '\\';
        out += '"';
        break;
      default:
        out += c;
    }
  }
}

}  // namespace

void append_number(double value, std::string& out) {
  char text[32];
  const bool whole = std::abs(value) < 1e15 && value == std::trunc(value);
  const auto end = whole ? std::to_chars(text, text + sizeof text, static_cast<std::int64_t>(value))
                         : std::to_chars(text, text + sizeof text, value);
  if (std::isnan(value))
    out += "NaN";
  else if (std::isinf(value))
    out += value > 0 ? "+Inf" : "-Inf";
  else
    out.append(text, end.ptr);
}

void append_labels(std::span<const Label> labels, std::string& out) {
  bool first = true;
  for (const auto& [name, value] : labels) {
    if (!first) out += ',';
    first = false;
    out.append(name).append("=\"");
    append_escaped(value, true, out);
    out += '"';
  }
}

void PrometheusWriter::family(std::string_view name, std::string_view help, Type type) {
  family_ = name;
  out_.append("# HELP ").append(name).append(" ");
  append_escaped(help, false, out_);
  out_.append("\n# TYPE ").append(name).append(" ");
  switch (type) {
    case Type::kCounter:
      out_ += "counter\n";
      break;
    case Type::kGauge:
      out_ += "gauge\n";
      break;
    case Type::kHistogram:
      out_ += "histogram\n";
      break;
  }
}

void PrometheusWriter::sample(std::span<const Label> labels, double value) {
  std::string text;
  append_labels(labels, text);
  sample_text("", text, value);
}

void PrometheusWriter::sample_text(std::string_view suffix, std::string_view labels, double value) {
  out_.append(family_).append(suffix);
  if (!labels.empty()) out_.append("{").append(labels).append("}");
  out_ += ' ';
  append_number(value, out_);
  out_ += '\n';
}

}  // namespace mesh::telemetry
