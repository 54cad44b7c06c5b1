// Generated policy sets and connections: what the programs decide in the kernel, over maps that
// apply() filled, what `authz check` says, and what a reference says that reads the policies' own
// texts, must be one. MESH_TEST_SEED: where to begin (a failure names its seed).
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>

#include "config/yaml.h"
#include "control/authz.h"
#include "tests/support/datapath_fixture.h"
#include "tests/support/decide_world.h"
#include "tests/support/memory_files.h"
#include "tests/support/policy_cases.h"
// clang-format off: each uses the structs of the one before
#include "tests/bpf/decide_shim.h"
#include "decide_shim.skel.h"
// clang-format on

namespace mesh::test {
namespace {

using policy_cases::Case;
using policy_cases::CaseFlow;
using policy_cases::CaseWorkload;
using policy_cases::Generator;
using policy_cases::Reference;

constexpr int kFlows = 2;       // of each policy set
constexpr unsigned kLanes = 8;  // at once: apply() mostly waits for the kernel
unsigned worlds() { return std::getenv("MESH_TEST_SMALL") == nullptr ? 10'000 : 80; }
unsigned first_seed() {
  const char* text = std::getenv("MESH_TEST_SEED");
  return text == nullptr ? 1 : static_cast<unsigned>(std::strtoul(text, nullptr, 10));
}

// The decision program, over the pinned maps of a datapath.
class Shim {
 public:
  explicit Shim(const std::string& pin_dir) : skeleton_(decide_shim_bpf__open()) {
    std::map<std::string, std::string> pins;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(pin_dir))
      pins.emplace(entry.path().filename(), entry.path());
    bpf_map* map = nullptr;
    bpf_object__for_each_map(map, skeleton_->obj) {
      const auto pin = pins.find(::bpf_map__name(map));
      if (pin == pins.end()) continue;
      UniqueFd fd(::bpf_obj_get(pin->second.c_str()));
      if (!fd || ::bpf_map__reuse_fd(map, fd.get()) != 0) fixture_failed(pin->second.c_str());
      ++reused_;
    }
    if (decide_shim_bpf__load(skeleton_) != 0) fixture_failed("decide_shim");
  }
  ~Shim() { decide_shim_bpf__destroy(skeleton_); }
  Shim(const Shim&) = delete;
  Shim& operator=(const Shim&) = delete;

  int reused() const { return reused_; }

  um_decision ask(um_shim_asked asked, std::uint64_t cookie, const CaseFlow& flow) {
    um_shim& shim = skeleton_->bss->shim;
    shim.asked = asked;
    shim.in = {};
    shim.arrival = {};
    shim.in.netns_cookie = shim.arrival.netns_cookie = cookie;
    shim.in.to = shim.arrival.to = destination(flow.to, flow.port, flow.udp);
    shim.arrival.from = destination(flow.from, 40000, flow.udp);
    std::array<std::uint8_t, 64> packet{};
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = packet.data(),
                .data_size_in = packet.size());
    if (::bpf_prog_test_run_opts(::bpf_program__fd(skeleton_->progs.um_decide_shim), &options) != 0)
      fixture_failed("run the decision");
    return shim.out;
  }

 private:
  static um_destination destination(const std::string& address, int port, bool udp) {
    um_destination out{};
    out.address = kernel_address(address);
    out.port = be16(static_cast<std::uint16_t>(port));
    out.protocol = udp ? UM_UDP : UM_TCP;
    return out;
  }

  decide_shim_bpf* skeleton_;
  int reused_ = 0;
};

// A policy set as meshd compiles it, with all workloads on this node.
struct Node {
  config::Compiled compiled;
  std::vector<control::Client> clients;
  test::MemoryFiles files;
  control::Numbers numbers{files, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  State state;
  std::map<std::uint32_t, control::PolicyRule> rules;

  explicit Node(const Case& world)
      : compiled(config::compile(world.objects(), 1, world.options())) {
    std::uint32_t id = 10;
    for (const auto& [name, workload] : compiled.snapshot->workloads) {
      datapath::EnrolledWorkload kernel;  // without hooks: nothing is attached
      kernel.id = id++;
      kernel.netns_cookie = 1000 + kernel.id;
      kernel.addresses = workload->addresses;
      clients.push_back({kernel, workload});
    }
    state = control::kernel_state({*compiled.snapshot, nullptr, {}, clients}, numbers);
    rules = control::policy_rules(numbers);
  }

  std::uint64_t cookie(const CaseWorkload& wanted) const {
    for (const control::Client& client : clients)
      if (client.workload->name == config::ObjectName{wanted.ns, wanted.name})
        return client.kernel.netns_cookie;
    return 0;
  }
  std::string name_of(std::uint32_t number) const {
    const auto rule = rules.find(number);
    return rule == rules.end() ? "" : config::rule_name(rule->second.policy, rule->second.rule);
  }
};

// The same flow in a copy of its world.
CaseFlow moved(const CaseFlow& flow, const Case& from, const Case& to) {
  CaseFlow out = flow;
  if (flow.client)
    out.client = &to.workloads[static_cast<std::size_t>(flow.client - from.workloads.data())];
  if (flow.server)
    out.server = &to.workloads[static_cast<std::size_t>(flow.server - from.workloads.data())];
  return out;
}

// What one thread needs: maps of its own.
class Lane {
 public:
  explicit Lane(const std::string& pin_dir) {
    options_.pin_dir = pin_dir;
    options_.max_services = options_.max_endpoints = options_.max_refusals = 64;
    options_.max_sets = options_.max_workloads = 64;
    datapath_ = must(datapath::open_kernel_datapath(options_));
    shim_ = std::make_unique<Shim>(options_.pin_dir);
  }
  ~Lane() {
    shim_.reset();
    datapath_.reset();
    must(datapath::disable_all(options_.pin_dir));
  }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  int flows = 0, denied = 0, audited = 0;
  int reused() const { return shim_->reused(); }

  // What is wrong with the world of this seed; empty: nothing.
  std::string try_world(unsigned seed) {
    Generator generator(seed);
    const Case world = generator.world();
    const Node node(world);
    if (!node.compiled.refused.empty()) return "refused: " + described(world, {});
    apply(node);
    for (int i = 0; i < kFlows; ++i, ++flows) {
      const CaseFlow flow = generator.flow(world);
      const Reference reference(world, flow);
      denied += reference.allowed() ? 0 : 1;
      audited += reference.audited() ? 1 : 0;
      const std::string text = difference(node, world, flow);
      if (text.empty()) continue;
      const Case small = minimal(world, flow);
      return text + described(small, moved(flow, world, small));
    }
    return {};
  }

 private:
  void apply(const Node& node) {
    if (!must(datapath_->apply(node.state)).empty()) fixture_failed("apply");
  }

  // In what the three differ; empty: in nothing.
  std::string difference(const Node& node, const Case& world, const CaseFlow& flow) {
    const Reference reference(world, flow);
    const std::string from = flow.client ? flow.client->ns + "/" + flow.client->name : flow.from;
    const std::string to =
        SocketAddress{ip(flow.to), static_cast<std::uint16_t>(flow.port)}.to_string();
    const auto said =
        must(control::check_authz({{*node.compiled.snapshot, node.state, node.clients},
                                   node.rules,
                                   {},
                                   node.compiled.problems},
                                  {from, to, "default", flow.udp}));
    std::vector<std::string> by, audits;
    const bool allowed = kernel_allows(node, flow, by, audits);
    std::string text;
    if (std::ranges::find(by, kProxyDiffers) != by.end()) text += kProxyDiffers;
    if (allowed != reference.allowed() || (said.verdict == "ALLOW") != reference.allowed())
      text += std::string("allowed: reference ") + (reference.allowed() ? "yes" : "no") +
              ", authz check " + said.verdict + ", kernel " + (allowed ? "yes" : "no") + "\n";
    if (audits.empty() == reference.audited())
      text += std::string("audited: reference ") + (reference.audited() ? "yes" : "no") +
              ", kernel: by " + testing::PrintToString(audits) + "\n";
    // The rules that the kernel counts are those that are named.
    std::vector<std::string> named, named_audits;
    for (const auto& end : said.paths.front().ends) {
      if (!end.policy.empty()) note(named, end.policy);
      if (!end.audit.empty()) note(named_audits, end.audit);
      if (end.verdict == "DENY") break;  // what is refused at one end never gets to the other
    }
    if (by != named)
      text += "kernel: by " + testing::PrintToString(by) + "; authz check: by " +
              testing::PrintToString(named) + "\n";
    if (audits != named_audits)
      text += "kernel: audited by " + testing::PrintToString(audits) + "; authz check: by " +
              testing::PrintToString(named_audits) + "\n";
    return text;
  }

  static constexpr const char* kProxyDiffers = "the proxy's connect is judged otherwise\n";
  static void note(std::vector<std::string>& names, const std::string& name) {
    if (names.empty() || names.back() != name) names.push_back(name);
  }
  // by, audits: what ruled, in turn. The policies of the server are asked at both ends, and one
  // policy may rule at both.
  bool kernel_allows(const Node& node, const CaseFlow& flow, std::vector<std::string>& by,
                     std::vector<std::string>& audits) {
    const auto see = [&](const um_decision& decision) {
      for (std::uint32_t i = 0; i < decision.rulings; ++i) {
        const um_verdict& ruling = decision.ruling[i];
        if (ruling.policy != 0) note(by, node.name_of(ruling.policy));
        if (ruling.audit != 0) note(audits, node.name_of(ruling.audit));
      }
      return decision.action == UM_PASS;
    };
    if (flow.client) {
      const std::uint64_t cookie = node.cookie(*flow.client);
      const bool connects = see(shim_->ask(UM_SHIM_WORKLOAD, cookie, flow));
      // The proxy may do neither more nor less on the client's behalf.
      if (!flow.udp) {
        const um_decision mesh = shim_->ask(UM_SHIM_MESH, cookie, flow);
        if ((mesh.action == UM_PASS) != connects) by.push_back(kProxyDiffers);
      }
      if (!connects) return false;
    }
    return !flow.server || see(shim_->ask(UM_SHIM_ARRIVAL, node.cookie(*flow.server), flow));
  }

  // Without what is not needed to see the difference.
  Case minimal(const Case& whole, const CaseFlow& flow) {
    Case world = whole;
    const auto differs = [&](const Case& candidate) {
      const Node node(candidate);
      apply(node);
      return !difference(node, candidate, moved(flow, whole, candidate)).empty();
    };
    for (std::size_t i = world.policies.size(); i-- > 0;) {
      Case without = world;
      without.policies.erase(without.policies.begin() + static_cast<std::ptrdiff_t>(i));
      if (differs(without)) world.policies = without.policies;
    }
    for (std::size_t i = 0; i < world.policies.size(); ++i)
      for (const char* list : {"rules", "ingress", "egress"})
        for (std::size_t k = 0;;) {
          const json_array* rules = rules_of(world.policies[i], list);
          if (!rules || k >= rules->size()) break;
          Case without = world;
          auto& shorter = without.policies[i]["spec"].as_object()[list].as_array();
          shorter.erase(shorter.begin() + static_cast<std::ptrdiff_t>(k));
          if (differs(without))
            world.policies = without.policies;
          else
            ++k;
        }
    return world;
  }
  using json_array = boost::json::array;
  static const json_array* rules_of(const boost::json::object& policy, const char* list) {
    const auto* value = policy.at("spec").as_object().if_contains(list);
    return value ? value->if_array() : nullptr;
  }

  static std::string described(const Case& world, const CaseFlow& flow) {
    std::string text = (flow.client ? flow.client->ns + "/" + flow.client->name : "a stranger") +
                       " at " + flow.from + " to " +
                       (flow.server ? flow.server->ns + "/" + flow.server->name : "a stranger") +
                       " at " + flow.to + " port " + std::to_string(flow.port) +
                       (flow.udp ? " by UDP" : " by TCP") + "\n";
    for (const config::ObjectPtr& object : world.objects())
      text += "---\n" + config::to_yaml(object->tree);
    return text;
  }

  datapath::Options options_;
  std::unique_ptr<Datapath> datapath_;
  std::unique_ptr<Shim> shim_;
};

TEST(PolicyProperty, KernelAuthzCheckAndReferenceAgreeOnGeneratedPolicies) {
  if (!is_root()) GTEST_SKIP() << "needs root";
  std::vector<std::unique_ptr<Lane>> lanes;
  for (unsigned i = 0; i < kLanes; ++i)
    lanes.push_back(std::make_unique<Lane>(bpffs() + "/lane" + std::to_string(i)));
  ASSERT_GT(lanes.front()->reused(), 15) << "the decision must read the maps that apply() writes";
  const unsigned first = first_seed(), end = first + worlds();
  std::atomic<unsigned> next = first;
  std::mutex mutex;
  std::map<unsigned, std::string> wrong;  // by seed
  std::vector<std::thread> threads;
  for (auto& lane : lanes)
    threads.emplace_back([&, &lane = *lane] {
      for (unsigned seed = next++; seed < end; seed = next++)
        if (std::string text = lane.try_world(seed); !text.empty()) {
          const std::lock_guard lock(mutex);
          wrong.emplace(seed, std::move(text));
          next = end;
        }
    });
  for (std::thread& thread : threads) thread.join();
  for (const auto& [seed, text] : wrong) ADD_FAILURE() << "MESH_TEST_SEED=" << seed << "\n" << text;
  int flows = 0, denied = 0, audited = 0;
  for (const auto& lane : lanes) {
    flows += lane->flows;
    denied += lane->denied;
    audited += lane->audited;
  }
  if (!wrong.empty()) return;
  EXPECT_EQ(flows, static_cast<int>(worlds()) * kFlows);
  // The generator must not have run dry.
  EXPECT_GT(denied, flows / 5);
  EXPECT_LT(denied, flows * 4 / 5);
  EXPECT_GT(audited, flows / 200);
}

}  // namespace
}  // namespace mesh::test
