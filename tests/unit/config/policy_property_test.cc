// The verdicts against a reference that reads the objects' trees itself.
#include "tests/support/policy_cases.h"

#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

using policy_cases::Case;
using policy_cases::CaseFlow;
using policy_cases::CaseWorkload;
using policy_cases::Generator;
using policy_cases::Reference;

constexpr unsigned kWorlds = 2'000;
constexpr int kFlows = 10;

Peer peer_of(const Snapshot& snapshot, const CaseWorkload* workload, const std::string& address) {
  const Workload* known =
      workload ? snapshot.workloads.at({workload->ns, workload->name}).get() : nullptr;
  return {known, IpAddress::parse(address).value()};
}

std::string described(const Case& world, const CaseFlow& flow) {
  std::string text = (flow.client ? flow.client->ns + "/" + flow.client->name : "stranger") + " " +
                     flow.from + " to " +
                     (flow.server ? flow.server->ns + "/" + flow.server->name : "stranger") + " " +
                     flow.to + ":" + std::to_string(flow.port) + (flow.udp ? "/UDP" : "");
  for (const ObjectPtr& object : world.objects())
    text += "\n" + boost::json::serialize(object->tree);
  return text;
}

TEST(Policies, AgreeWithTheReferenceOnGeneratedSetsAndFlows) {
  int denied = 0, audited = 0, named = 0;
  for (unsigned seed = 0; seed < kWorlds; ++seed) {
    Generator generator(seed);
    const Case world = generator.world();
    const Compiled compiled = compile(world.objects(), 1, world.options());
    ASSERT_THAT(compiled.refused, testing::IsEmpty())
        << compiled.problems.front().to_string() << "\n"
        << described(world, {});
    const Snapshot& snapshot = *compiled.snapshot;
    for (int i = 0; i < kFlows; ++i) {
      const CaseFlow flow = generator.flow(world);
      const Reference reference(world, flow);
      const Verdict verdict = authorize(snapshot, peer_of(snapshot, flow.client, flow.from),
                                        peer_of(snapshot, flow.server, flow.to),
                                        flow.udp ? Transport::kUdp : Transport::kTcp,
                                        static_cast<std::uint16_t>(flow.port));
      ASSERT_EQ(verdict.allowed, reference.allowed())
          << "seed " << seed << ", by " << verdict.policy << ": " << described(world, flow);
      ASSERT_EQ(verdict.audit.has_value(), reference.audited())
          << "seed " << seed << ": " << described(world, flow);
      ASSERT_TRUE(verdict.allowed || !verdict.policy.empty()) << "seed " << seed;
      denied += verdict.allowed ? 0 : 1;
      audited += verdict.audit ? 1 : 0;
      named += verdict.policy.empty() ? 0 : 1;
    }
  }
  // The generator must not have run dry.
  EXPECT_GT(denied, 5'000);
  EXPECT_LT(denied, 15'000);
  EXPECT_GT(audited, 200);
  EXPECT_GT(named - denied, 1'000) << "allowed by a rule";
}

}  // namespace
}  // namespace mesh::config
