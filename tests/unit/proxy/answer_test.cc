#include "proxy/answer.h"

#include <gtest/gtest.h>

#include <string>

namespace mesh::proxy {
namespace {

TEST(Answer, EveryReasonHasItsStatusAndFlag) {
  struct Case {
    Refusal refusal;
    int status;
    const char* flags;
    const char* body;
  };
  const Case cases[] = {
      {{.reason = Reason::kBadRequest, .status = 431, .detail = "too large"},
       431,
       "DPE",
       "too large"},
      {{.reason = Reason::kHeadTimeout}, 408, "SI", "request header timeout"},
      {{.reason = Reason::kNoRoute}, 404, "NR", ""},
      {{.reason = Reason::kNoCluster}, 503, "NC", ""},
      {{.reason = Reason::kNoHealthyUpstream}, 503, "UH", "no healthy upstream"},
      {{.reason = Reason::kOverflow},
       503,
       "UO",
       "upstream connect error or disconnect/reset before headers. reset reason: overflow"},
      {{.reason = Reason::kOverload},
       503,
       "OM",
       "too many requests of this workload are in flight"},
      {{.reason = Reason::kConnectFailed, .cause = Error{Errc::refused, "connect: refused"}},
       503,
       "UF",
       "upstream connect error or disconnect/reset before headers. reset reason: remote connection "
       "failure, transport failure reason: connect: refused"},
      {{.reason = Reason::kConnectFailed, .cause = Error{Errc::timed_out, "timed out"}},
       503,
       "UF",
       "upstream connect error or disconnect/reset before headers. reset reason: connection "
       "timeout"},
      {{.reason = Reason::kUpstreamClosed},
       503,
       "UC",
       "upstream connect error or disconnect/reset before headers. reset reason: connection "
       "termination"},
      {{.reason = Reason::kUpstreamProtocol},
       502,
       "UPE",
       "upstream connect error or disconnect/reset before headers. reset reason: protocol error"},
      {{.reason = Reason::kTimeout}, 504, "UT", "upstream request timeout"},
      {{.reason = Reason::kStreamIdle, .status = 504}, 504, "SI", "stream timeout"},
      {{.reason = Reason::kFault, .status = 555}, 555, "FI", "fault filter abort"},
      {{.reason = Reason::kClientGone}, 0, "DC", ""},
      {{.reason = Reason::kEnded}, 0, "LR", ""},
  };
  for (const Case& c : cases) {
    const Answer answer = to_answer(c.refusal);
    EXPECT_EQ(answer.status, c.status) << c.body;
    EXPECT_EQ(answer.flags.to_string(), c.flags) << c.body;
    EXPECT_EQ(answer.body, c.body);
    EXPECT_FALSE(answer.details.empty()) << c.flags;
    EXPECT_EQ(answer.overloaded,
              answer.flags.to_string() == "UO" || answer.flags.to_string() == "OM");
  }
}

}  // namespace
}  // namespace mesh::proxy
