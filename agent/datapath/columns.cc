// Walker's alias method, as Vose builds its table.
#include <algorithm>
#include <cmath>

#include "datapath/datapath.h"

namespace mesh::datapath {
namespace {

struct Part {
  std::optional<SocketAddress> endpoint;
  double height;  // 1: a whole column
};

std::vector<Part> parts_of(const std::vector<Share>& shares) {
  std::map<std::optional<SocketAddress>, double> weights;
  double total = 0;
  for (const Share& share : shares) {
    if (!(share.weight > 0)) continue;
    weights[share.endpoint] += share.weight;
    total += share.weight;
  }
  std::vector<Part> parts;
  for (const auto& [endpoint, weight] : weights)
    parts.push_back({endpoint, weight / total * static_cast<double>(weights.size())});
  return parts;
}

Column column_of(const Part& first, const std::optional<SocketAddress>& second) {
  const auto chance = static_cast<std::uint64_t>(std::llround(std::ldexp(first.height, 32)));
  if (chance == 0) return {second, second};
  return {first.endpoint, second,
          static_cast<std::uint32_t>(std::min<std::uint64_t>(chance, 1ULL << 32U) - 1)};
}

}  // namespace

Columns columns_of(const std::vector<Share>& shares) {
  Columns columns;
  std::vector<Part> small, large;
  for (Part& part : parts_of(shares)) (part.height < 1 ? small : large).push_back(part);
  while (!small.empty() && !large.empty()) {
    const Part low = small.back();
    small.pop_back();
    Part& high = large.back();
    columns.push_back(column_of(low, high.endpoint));
    high.height -= 1 - low.height;
    if (high.height >= 1) continue;
    small.push_back(high);
    large.pop_back();
  }
  // What rounding left of a whole column is one.
  for (const auto& rest : {large, small})
    for (const Part& part : rest) columns.push_back({part.endpoint, part.endpoint});
  return columns;
}

}  // namespace mesh::datapath
