// Weights as columns: exact, deterministic, at most one column an endpoint.
#include <gtest/gtest.h>

#include <map>

#include "base/random.h"
#include "datapath/datapath.h"

namespace mesh::datapath {
namespace {

SocketAddress endpoint(std::uint32_t i) {
  return {IpAddress::v4(10, 0, static_cast<std::uint8_t>(i >> 8U), static_cast<std::uint8_t>(i)),
          80};
}

std::map<std::optional<SocketAddress>, double> chances(const Columns& columns) {
  std::map<std::optional<SocketAddress>, double> sums;
  for (const Column& column : columns) {
    const double first = (column.threshold + 1.0) / 4294967296.0;
    sums[column.first] += first / static_cast<double>(columns.size());
    sums[column.second] += (1 - first) / static_cast<double>(columns.size());
  }
  return sums;
}

TEST(Columns, HaveTheChancesOfTheShares) {
  Random random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<Share> shares;
    std::map<std::optional<SocketAddress>, double> weights;
    double total = 0;
    const std::uint32_t count = 1 + random.below(round % 10 == 0 ? 300 : 6);
    for (std::uint32_t i = 0; i < count; ++i) {
      Share share{endpoint(random.below(count)), static_cast<double>(random.below(1000))};
      if (random.below(5) == 0) share.endpoint.reset();
      if (random.below(4) == 0) share.weight *= 1e-6;
      shares.push_back(share);
      if (share.weight == 0) continue;
      weights[share.endpoint] += share.weight;
      total += share.weight;
    }
    const Columns columns = columns_of(shares);
    EXPECT_LE(columns.size(), weights.size());
    EXPECT_EQ(columns, columns_of(shares));
    const auto is = chances(columns);
    for (const auto& [address, chance] : is)
      if (chance > 1e-12) EXPECT_TRUE(weights.contains(address));
    for (const auto& [address, weight] : weights) {
      const auto found = is.find(address);
      EXPECT_NEAR(found == is.end() ? 0 : found->second, weight / total, 1e-9);
    }
  }
}

TEST(Columns, OfNothingAreNone) {
  EXPECT_TRUE(columns_of({}).empty());
  EXPECT_TRUE(columns_of({{endpoint(1), 0}}).empty());
}

}  // namespace
}  // namespace mesh::datapath
