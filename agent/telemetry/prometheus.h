// PrometheusWriter: the Prometheus text format 0.0.4 into a string.
//
// The caller writes each family once, with all its samples behind it. Names are trusted; label
// values are escaped. Numbers are exact integers where they are integers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace mesh::telemetry {

inline constexpr std::string_view kPrometheusContentType =
    "text/plain; version=0.0.4; charset=utf-8";

using Label = std::pair<std::string_view, std::string_view>;

// `a="1",b="x\"y"`: the inside of the braces, escaped.
void append_labels(std::span<const Label> labels, std::string& out);

// "42", "0.5", "+Inf".
void append_number(double value, std::string& out);

class PrometheusWriter {
 public:
  enum class Type : std::uint8_t { kCounter, kGauge, kHistogram };

  explicit PrometheusWriter(std::string& out) : out_(out) {}
  void family(std::string_view name, std::string_view help, Type type);
  void sample(std::initializer_list<Label> labels, double value) {
    sample(std::span(labels.begin(), labels.size()), value);
  }
  void sample(std::span<const Label> labels, double value);
  // `labels` as append_labels made them; `suffix` is "" or "_sum" and the like.
  void sample_text(std::string_view suffix, std::string_view labels, double value);

 private:
  std::string& out_;
  std::string family_;
};

}  // namespace mesh::telemetry
