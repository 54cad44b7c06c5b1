#include "telemetry/response_flags.h"

#include <array>

namespace mesh::telemetry {
namespace {

constexpr std::array<std::string_view, kResponseFlagCount> kNames = {
    "UH",   "UT", "LR",  "UR", "UF",  "UC",  "UO", "NR", "DI", "FI",
    "UAEX", "DC", "URX", "SI", "DPE", "UPE", "NC", "DT", "OM"};

}  // namespace

std::string_view short_name(ResponseFlag flag) { return kNames[static_cast<std::size_t>(flag)]; }

void ResponseFlags::append_to(std::string& out) const {
  if (empty()) {
    out += '-';
    return;
  }
  bool first = true;
  for (std::size_t i = 0; i < kResponseFlagCount; ++i) {
    if (!has(static_cast<ResponseFlag>(i))) continue;
    if (!first) out += ',';
    out += kNames[i];
    first = false;
  }
}

std::string ResponseFlags::to_string() const {
  std::string out;
  append_to(out);
  return out;
}

}  // namespace mesh::telemetry
