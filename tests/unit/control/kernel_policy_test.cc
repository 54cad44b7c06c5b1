// What the kernel is told, decided as the kernel decides, against the reference that reads the
// policies' own texts.
#include "control/kernel_policy.h"

#include <gmock/gmock.h>

#include "control/kernel_state.h"
#include "tests/support/memory_files.h"
#include "tests/support/policy_cases.h"

namespace mesh::control {
namespace {

using datapath::ClassId;
using datapath::State;
using policy_cases::Case;
using policy_cases::CaseFlow;
using policy_cases::CaseWorkload;
using policy_cases::Generator;
using policy_cases::Reference;

constexpr unsigned kWorlds = 1'500;
constexpr int kFlows = 10;

// By the prefix of the mapped form, as a trie finds it: blocks of IPv6 may have IPv4 in them.
bool is_within(const IpAddress& address, const IpBlock& block, int bits) {
  for (int bit = 0; bit < bits; ++bit) {
    const auto byte = static_cast<std::size_t>(bit / 8);
    if ((address.bytes()[byte] ^ block.base.bytes()[byte]) & (0x80 >> (bit % 8))) return false;
  }
  return true;
}

ClassId class_at(const State& state, const IpAddress& address) {
  if (const auto peer = state.peers.find(address); peer != state.peers.end())
    return peer->second.peer;
  ClassId found = 0;
  int longest = -1;
  for (const auto& [block, peer] : state.blocks) {
    const int bits = block.prefix_length + (block.base.is_v4() ? 96 : 0);
    if (bits <= longest || !is_within(address, block, bits)) continue;
    longest = bits;
    found = peer;
  }
  return found;
}

class Kernel {
 public:
  explicit Kernel(const config::Snapshot& snapshot) {
    std::vector<Client> clients;
    std::uint32_t id = 10;
    for (const auto& [name, workload] : snapshot.workloads) {
      datapath::EnrolledWorkload kernel;
      kernel.id = ids_[name] = id++;
      kernel.addresses = workload->addresses;
      clients.push_back({kernel, workload});
    }
    state_ = kernel_state({snapshot, nullptr, {}, clients}, numbers_);
  }

  bool allows(const CaseFlow& flow) const {
    if (flow.client && flow.client == flow.server) return true;
    const IpAddress from = IpAddress::parse(flow.from).value();
    const IpAddress to = IpAddress::parse(flow.to).value();
    const auto transport = flow.udp ? datapath::Transport::kUdp : datapath::Transport::kTcp;
    const auto port = static_cast<std::uint16_t>(flow.port);
    const auto is_allowed = [&](datapath::SetId set, ClassId peer) {
      if (set == 0) return true;
      const auto* verdict = datapath::find_verdict(state_.sets.at(set), peer, transport, port);
      return verdict && verdict->allowed;
    };
    if (flow.client) {
      const auto& client = workload(*flow.client);
      if (!is_allowed(client.egress, class_at(state_, to))) return false;
      const auto server = state_.peers.find(to);
      if (server != state_.peers.end() &&
          !is_allowed(server->second.ingress, to.is_v4() ? client.class4 : client.class6))
        return false;
    }
    return !flow.server || is_allowed(workload(*flow.server).ingress, class_at(state_, from));
  }

 private:
  const datapath::EnrolledWorkload& workload(const CaseWorkload& wanted) const {
    return state_.workloads.at(ids_.at({wanted.ns, wanted.name}));
  }

  test::MemoryFiles files_;
  Numbers numbers_{files_, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  std::map<config::ObjectName, std::uint32_t> ids_;
  State state_;
};

TEST(KernelPolicy, AgreesWithTheReferenceOnGeneratedSetsAndFlows) {
  int denied = 0;
  for (unsigned seed = 0; seed < kWorlds; ++seed) {
    Generator generator(seed);
    const Case world = generator.world();
    const config::Compiled compiled = config::compile(world.objects(), 1, world.options());
    ASSERT_THAT(compiled.refused, testing::IsEmpty());
    const Kernel kernel(*compiled.snapshot);
    for (int i = 0; i < kFlows; ++i) {
      const CaseFlow flow = generator.flow(world);
      const bool is_allowed = Reference(world, flow).allowed();
      std::string objects;
      for (const config::ObjectPtr& object : world.objects())
        objects += "\n" + boost::json::serialize(object->tree);
      ASSERT_EQ(kernel.allows(flow), is_allowed)
          << "seed " << seed << ": " << flow.from << " to " << flow.to << ":" << flow.port
          << (flow.udp ? "/UDP" : "") << objects;
      denied += is_allowed ? 0 : 1;
    }
  }
  // The generator must not have run dry.
  EXPECT_GT(denied, 3'000);
  EXPECT_LT(denied, 12'000);
}

// Which of its addresses a client will use is not known as it connects.
TEST(KernelPolicy, AClientOfSeveralAddressesMayGoWhereAllOfThemMay) {
  Case world;
  for (const auto& [name, addresses] : std::map<std::string, std::vector<std::string>>{
           {"one", {"10.77.0.1"}}, {"two", {"10.77.0.2", "10.88.0.2"}}, {"db", {"10.77.0.3"}}}) {
    CaseWorkload workload;
    workload.ns = "books";
    workload.name = name;
    workload.account = "default";
    workload.labels["app"] = name;
    workload.addresses = addresses;
    world.workloads.push_back(std::move(workload));
  }
  world.policies.push_back(
      boost::json::parse(R"({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": "books"},
        "spec": {"selector": {"matchLabels": {"app": "db"}}, "action": "DENY",
                 "rules": [{"from": [{"source": {"ipBlocks": ["10.88.0.0/16"]}}]}]}})")
          .as_object());
  const config::Compiled compiled = config::compile(world.objects(), 1, world.options());
  ASSERT_THAT(compiled.refused, testing::IsEmpty());
  const Kernel kernel(*compiled.snapshot);
  const CaseWorkload* db = &world.workloads[0];
  EXPECT_TRUE(kernel.allows({&world.workloads[1], db, "10.77.0.1", "10.77.0.3", false, 80}));
  EXPECT_FALSE(kernel.allows({&world.workloads[2], db, "10.77.0.2", "10.77.0.3", false, 80}));
}

}  // namespace
}  // namespace mesh::control
