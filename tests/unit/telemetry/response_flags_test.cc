#include "telemetry/response_flags.h"

#include <gmock/gmock.h>

#include <set>

namespace mesh::telemetry {
namespace {

TEST(ResponseFlags, AreADashWhenThereIsNone) { EXPECT_EQ(ResponseFlags{}.to_string(), "-"); }

TEST(ResponseFlags, ArePrintedInEnvoysOrderWhateverTheOrderOfSetting) {
  ResponseFlags flags = ResponseFlag::kFaultInjected;
  flags.set(ResponseFlag::kDelayInjected);
  flags.set(ResponseFlag::kNoHealthyUpstream);
  EXPECT_EQ(flags.to_string(), "UH,DI,FI");
  EXPECT_TRUE(flags.has(ResponseFlag::kDelayInjected));
  EXPECT_FALSE(flags.has(ResponseFlag::kNoRoute));
}

TEST(ResponseFlags, HaveEachItsEnvoyName) {
  const std::pair<ResponseFlag, std::string_view> cases[] = {
      {ResponseFlag::kNoHealthyUpstream, "UH"},
      {ResponseFlag::kUpstreamRequestTimeout, "UT"},
      {ResponseFlag::kLocalReset, "LR"},
      {ResponseFlag::kUpstreamRemoteReset, "UR"},
      {ResponseFlag::kUpstreamConnectionFailure, "UF"},
      {ResponseFlag::kUpstreamConnectionTermination, "UC"},
      {ResponseFlag::kUpstreamOverflow, "UO"},
      {ResponseFlag::kNoRoute, "NR"},
      {ResponseFlag::kDelayInjected, "DI"},
      {ResponseFlag::kFaultInjected, "FI"},
      {ResponseFlag::kUnauthorized, "UAEX"},
      {ResponseFlag::kDownstreamConnectionTermination, "DC"},
      {ResponseFlag::kUpstreamRetryLimitExceeded, "URX"},
      {ResponseFlag::kStreamIdleTimeout, "SI"},
      {ResponseFlag::kDownstreamProtocolError, "DPE"},
      {ResponseFlag::kUpstreamProtocolError, "UPE"},
      {ResponseFlag::kNoClusterFound, "NC"},
      {ResponseFlag::kDurationTimeout, "DT"},
      {ResponseFlag::kOverload, "OM"},
  };
  std::set<std::string_view> names;
  for (const auto& [flag, name] : cases) {
    EXPECT_EQ(short_name(flag), name);
    EXPECT_EQ(ResponseFlags(flag).to_string(), name);
    names.insert(name);
  }
  EXPECT_EQ(names.size(), kResponseFlagCount);
}

}  // namespace
}  // namespace mesh::telemetry
