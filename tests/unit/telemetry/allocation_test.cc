// Counting, tracing and logging a request allocates nothing in steady state.
#include "tests/support/allocations.h"

#include <gtest/gtest.h>

#include "telemetry/access_log.h"
#include "telemetry/metrics.h"
#include "telemetry/trace_context.h"

namespace mesh::telemetry {
namespace {

TEST(Allocations, OfARequestAreNone) {
  Metrics metrics;
  auto& worker = metrics.add_worker();
  auto* edge = worker.edge({.destination_service = "reviews.default.svc.cluster.local"});
  const SocketAddress v4{IpAddress::v4(10, 77, 0, 5), 9080};
  const SocketAddress v6 = SocketAddress::parse("[fd77::5]:9080").value();
  Random random(1);
  std::string line;
  EXPECT_EQ(
      test::count_allocations([&] {
        worker.record(edge, 503, ResponseFlag::kUpstreamOverflow, std::chrono::milliseconds(3));
        const TraceContext trace(
            {.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", .b3 = "1"},
            random, true);
        line.clear();
        append_access_log_line({.method = "GET",
                                .path = "/a\n",
                                .response_code = 503,
                                .flags = ResponseFlag::kUpstreamOverflow,
                                .request_id = trace.request_id(),
                                .upstream_host = &v4,
                                .downstream_remote_address = &v6},
                               line);
      }),
      0u);
}

}  // namespace
}  // namespace mesh::telemetry
