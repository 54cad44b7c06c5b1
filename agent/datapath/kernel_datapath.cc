// Datapath over the kernel: what a State wants of the maps and links, in the order that keeps every
// moment safe (rows of policy before what they judge is found, removals after the kernel's grace
// period), and what did not fit. The maps, sets, links and looks themselves are in files of their
// own beside this one.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <utility>

#include "base/log.h"
#include "bpf/shared.h"
#include "datapath/adoption.h"
#include "datapath/attach.h"
#include "datapath/audit.h"
#include "datapath/byte_order.h"
#include "datapath/canary.h"
#include "datapath/connections.h"
#include "datapath/counters.h"
#include "datapath/datapath.h"
#include "datapath/endings.h"
#include "datapath/fastpath_here.h"
#include "datapath/fastpath_probe.h"
#include "datapath/flows.h"
#include "datapath/map.h"
#include "datapath/object.h"
#include "datapath/policy_maps.h"
#include "datapath/policy_sets.h"
#include "datapath/services.h"
#include "datapath/udp_choices.h"
#include "datapath/udp_flows.h"
#include "datapath/wanted.h"

namespace mesh::datapath {
namespace {

constexpr const char* kMeshLinks = "mesh";
constexpr const char* kTestGroup = "fastpath-test";

Logger& log() {
  static Logger instance = logger("datapath");
  return instance;
}

um_service_range kernel_range(const IpBlock& block) {
  IpAddress::Bytes base = block.base.bytes(), mask{};
  const int bits = block.prefix_length + (block.base.is_v4() ? 96 : 0);
  for (int i = 0; i < bits; ++i)
    mask[static_cast<std::size_t>(i / 8)] |= static_cast<std::uint8_t>(0x80 >> (i % 8));
  for (std::size_t i = 0; i < base.size(); ++i) base[i] &= mask[i];
  return {kernel_address(IpAddress(base)), kernel_address(IpAddress(mask))};
}

struct Maps {
  explicit Maps(const Object& object)
      : policy(object),
        own_addresses(object.map("um_own_addresses"), "um_own_addresses"),
        records(object.map("um_workload_records"), "um_workload_records"),
        services(object),
        refusals(object.map("um_refusals"), "um_refusals") {}

  // generation: the active one.
  Result<> read(std::uint32_t generation) {
    MESH_TRY(policy.read(generation));
    MESH_TRY(own_addresses.read());
    MESH_TRY(records.read());
    MESH_TRY(services.read());
    return refusals.read();
  }
  std::uint64_t writes() const {
    return policy.writes() + own_addresses.writes() + records.writes() + services.writes() +
           refusals.writes();
  }

  PolicyMaps policy;
  Map<um_own_key, std::uint32_t> own_addresses;
  Map<std::uint32_t, um_workload_record> records;
  Services services;
  Map<um_refusal_key, std::uint32_t> refusals;
};

class KernelDatapath final : public Datapath {
 public:
  KernelDatapath(Object object, std::string pin_dir)
      : object_(std::move(object)),
        maps_(object_),
        flows_(object_, sockets_),
        endings_(object_, sockets_, flows_),
        fast_path_(std::move(pin_dir), sockets_) {}

  Result<> read() {
    // What our predecessor left half done, no program remembers afterwards.
    MESH_TRY(wait_for_programs());
    const std::uint32_t zero = 0;
    um_config config{};
    if (::bpf_map_lookup_elem(object_.map("um_config"), &zero, &config) != 0)
      return errno_error(errno, "read map um_config");
    config_flags_ = config.flags;
    has_blocks_ = (config.flags & UM_CONFIG_HAS_BLOCKS) != 0;
    has_addresses_ = is_complete_ = (config.flags & UM_CONFIG_STATE_INCOMPLETE) == 0;
    MESH_TRY(maps_.read(generation()));
    MESH_TRY(previous_rows_, previous_cookies(object_));
    MESH_TRY(auto sets, object_.link_sets());
    for (const std::string& set : sets)
      if (set != kMeshLinks) link_sets_.insert(set);
    return success();
  }

  Result<> write_service_range(const IpBlock& block) {
    service_range_ = kernel_range(block);
    return put_service_range();
  }

  // Maps that are to be filled first: the programs that are there go on until then.
  Result<> attach_mesh(const std::string& cgroup_path) override {
    mesh_cgroup_ = cgroup_path;
    if (object_.must_change_over()) return success();
    return object_.ensure_links(kMeshLinks, mesh_hooks(), cgroup_path);
  }

  Result<Problems> apply(const State& state) override {
    Problems problems;
    Wanted wanted = wanted_.follow(state, problems);
    const auto withheld = withhold_rows(state, wanted);
    // Known not to fit: refuse before anything is looked up in what is incomplete.
    if (wanted.services.size() > capacity("um_services")) {
      is_complete_ = false;
      MESH_TRY(write_config(wanted_flags(generation())));
    }
    MESH_TRY(detach_unwanted(wanted));
    const std::set<std::uint64_t> ended = cookies_but(wanted);
    udp_.note_change();
    Problems no_room;
    MESH_TRY(change(wanted, no_room));
    MESH_TRY(remove_unwanted(wanted, ended));
    if (!no_room.empty()) {  // there may be by now
      no_room.clear();
      MESH_TRY(forget_what_was());
      MESH_TRY(change(wanted, no_room));
    }
    is_complete_ = refuse_misfit_services(wanted, no_room);
    MESH_TRY(write_config(wanted_flags(generation())));
    attach_wanted(state, problems);
    MESH_TRY(settle_rows(state, withheld, wanted, problems));
    MESH_TRY(forget_what_was());
    MESH_TRY(udp_.forget_choices(object_.map("um_udp_choices"), state));
    for (const auto& [id, error] : no_room) add_problem(id, error, problems);
    if (object_.must_change_over()) {
      MESH_TRY(change_over(problems));
    }
    update_fast_path(state);
    return problems;
  }

  const Misfits& misfits() const override { return misfits_; }
  const std::map<WorkloadId, std::string>& uncovered() const override { return uncovered_; }

  Result<std::vector<Difference>> audit(const EnrolledWorkload& workload) override {
    std::vector<Difference> differences;
    const std::string set = std::to_string(workload.id);
    if (!ensured_.contains(set)) return differences;
    MESH_TRY(restore_rows(workload, differences));
    if (const auto seen = object_.ensure_dirs(); !seen) {
      differences.push_back({seen.error().message, false});
      return differences;
    }
    restore_fast_path(set, differences);
    MESH_TRY(auto found, look_at_links(object_, set, workload));
    for (std::string& program : found.foreign) differences.push_back({std::move(program), false});
    if (found.uncovered) note_uncovered(workload.id, *std::move(found.uncovered));
    if (found.missing.empty()) return differences;
    auto attached = attach(object_, sockets_, set, workload, has_row(workload.netns_cookie));
    MESH_TRY(const auto after, look_at_links(object_, set, workload));
    for (std::string& missing : found.missing) {
      const bool is_there = std::ranges::find(after.missing, missing) == after.missing.end();
      differences.push_back({std::move(missing), is_there});
    }
    if (!attached) return std::move(attached).assume_error();
    return differences;
  }

  Result<std::vector<Difference>> audit_mesh() override {
    std::vector<Difference> differences;
    for (const auto& looked :
         {restore_config(differences), restore_service_range(differences),
          restore_some_rows(differences), fast_path_.restore(kAuditedRows, differences),
          restore_mesh(differences)})
      if (!looked) differences.push_back({looked.error().message, false});
    return differences;
  }

  Result<> send_canary(const EnrolledWorkload& workload, Canary::Clock::time_point now) override {
    if (workload.netns < 0 || !ensured_.contains(std::to_string(workload.id))) return success();
    MESH_TRY(auto canary, Canary::send(workload.netns, workload.cgroup, now));
    canaries_.erase(workload.id);
    canaries_.emplace(workload.id, std::move(canary));
    return success();
  }

  std::map<WorkloadId, Result<>> take_canaries(Canary::Clock::time_point now) override {
    std::map<WorkloadId, Result<>> outcomes;
    for (auto at = canaries_.begin(); at != canaries_.end();) {
      auto outcome = at->second.outcome(now);
      if (!outcome) {
        ++at;
        continue;
      }
      outcomes.emplace(at->first, *std::move(outcome));
      at = canaries_.erase(at);
    }
    return outcomes;
  }

  Result<> end_forbidden(const State& state) override { return endings_.end_forbidden(state); }
  Result<> end_removed(const State& state) override { return endings_.end_removed(state); }

  Result<std::vector<Flow>> take_flows() override { return flows_.take(); }
  Result<std::vector<Flow>> open_flows(const State& state) override { return flows_.open(state); }

  Result<std::vector<UdpFlow>> udp_flows() override {
    return read_udp_flows(object_.map("um_udp_flows"), object_.map("um_udp_choices"));
  }

  Result<Counters> counters() override {
    MESH_TRY(auto out, read_counters(object_.map("um_counters"), object_.map("um_policy_counts")));
    endings_.add_to(out);
    out.totals["map_entries_written"] = maps_.writes();  // or deleted
    return out;
  }

  Result<> forget_policies_but(const std::set<std::uint32_t>& numbers) override {
    const int fd = object_.map("um_policy_counts");
    std::vector<std::uint32_t> gone;
    std::uint32_t policy = 0, next = 0;
    for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &policy) {
      policy = next;
      if (!numbers.contains(policy)) gone.push_back(policy);
    }
    for (const std::uint32_t number : gone)
      if (::bpf_map_delete_elem(fd, &number) != 0 && errno != ENOENT)
        return errno_error(errno, "forget the counters of a policy");
    return success();
  }

  Result<State> adopt() override {
    MESH_TRY(maps_.read(generation()));
    if (object_.has_previous() && maps_.records.entries().empty()) return adopt_previous(object_);
    State state;
    for (const auto& [id, record] : maps_.records.entries())
      state.workloads[id] = adopted(id, record);
    for (const auto& [key, entry] : maps_.policy.workloads()) {  // where the records are lost
      EnrolledWorkload& workload = state.workloads[entry.id];
      workload.id = entry.id;
      workload.netns_cookie = key.netns_cookie;
      workload.has_responder = (entry.flags & UM_WORKLOAD_DNS) != 0;
    }
    for (const auto& [key, order] : maps_.own_addresses.entries()) adopt_address(key, order, state);
    for (const auto& [key, service] : maps_.services.entries())
      (key.protocol == UM_UDP ? state.udp_services : state.services)[user_destination(key)] =
          service;
    const PolicyMaps::Entries decided = maps_.policy.entries();
    for (const auto& [id, set] : decided.sets) state.sets[id] = user_verdicts(*set);
    for (const auto& [key, peer] : decided.peers)
      state.peers[user_address(key.address)] = {peer.peer_class, peer.ingress};
    for (const auto& [block, peer] : decided.blocks) state.blocks[user_block(block)] = peer;
    for (const auto& [key, policy] : maps_.refusals.entries())
      state.refusals[{key.client, key.service}] = policy;
    return state;
  }

  Result<> switch_fast_path(bool on) override { return fast_path_.turn(on, object_.maps()); }

  const std::string& why_fast_path_stopped() const override { return fast_path_.why_stopped(); }

  Result<> start_fast_path_test(Canary::Clock::time_point now) override {
    const std::string group = std::filesystem::path(mesh_cgroup_).parent_path() / kTestGroup;
    fast_path_probe_.reset();
    MESH_TRY(auto probe, FastPathProbe::start(group, now));
    fast_path_probe_.emplace(std::move(probe));
    return success();
  }

  std::optional<Result<>> take_fast_path_test(Canary::Clock::time_point now) override {
    if (!fast_path_probe_) return std::nullopt;
    auto outcome = fast_path_probe_->outcome(now);
    if (outcome) fast_path_probe_.reset();
    return outcome;
  }

  Result<> let_settled_join(const State& state) override {
    return fast_path_.let_settled_join(state);
  }

  Result<UniqueFd> heartbeat_map() override {
    UniqueFd fd(::fcntl(object_.map("um_heartbeats"), F_DUPFD_CLOEXEC, 3));
    if (!fd) return errno_error(errno, "duplicate the heartbeat map");
    return fd;
  }

 private:
  struct Place {
    std::uint64_t cookie;
    std::string cgroup;
    bool has_netns;
    bool strict;
    friend bool operator==(const Place&, const Place&) = default;
  };

  std::size_t capacity(const char* map) const {
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    return ::bpf_obj_get_info_by_fd(object_.map(map), &info, &size) == 0 ? info.max_entries : 0;
  }

  // False where one cannot even be marked so, and an unknown destination must be refused.
  bool refuse_misfit_services(const Wanted& wanted, Problems& no_room) {
    const auto lost = maps_.services.refuse(std::exchange(services_left_out_, {}), wanted.services);
    for (const auto& [key, err] : lost) add_misfit(0, err, "services", no_room);
    return lost.empty();
  }

  // Until every program that runs now has ended: an RCU grace period. membarrier(2) waits for one,
  // but not on CPUs without a tick, and where there is one CPU it does nothing.
  Result<> wait_for_programs() {
    if (::sysconf(_SC_NPROCESSORS_ONLN) > 1 &&
        ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0)
      return success();
    return replace_a_set(object_.map("um_sets"));
  }

  // The workloads have changed over. One that could not keeps the programs and maps of the layout
  // that was, and their pins, for the next apply().
  Result<> change_over(const Problems& problems) {
    if (!mesh_cgroup_.empty()) {
      MESH_TRY(object_.ensure_links(kMeshLinks, mesh_hooks(), mesh_cgroup_));
    }
    if (!problems.empty()) return success();
    previous_rows_.clear();
    return object_.retire_previous();
  }

  Result<> write_config(std::uint32_t flags) {
    return flags == config_flags_ ? success() : store_config(flags);
  }

  Result<> store_config(std::uint32_t flags) {
    const std::uint32_t zero = 0;
    um_config config{flags};
    if (::bpf_map_update_elem(object_.map("um_config"), &zero, &config, BPF_ANY) != 0)
      return errno_error(errno, "write map um_config");
    config_flags_ = flags;
    return success();
  }

  std::uint32_t generation() const { return config_flags_ & UM_CONFIG_GENERATION ? 1U : 0U; }
  std::uint32_t wanted_flags(std::uint32_t generation) const {
    return (generation != 0 ? UM_CONFIG_GENERATION : 0U) |
           (has_blocks_ ? UM_CONFIG_HAS_BLOCKS : 0U) |
           (is_complete_ && has_addresses_ ? 0U : UM_CONFIG_STATE_INCOMPLETE);
  }

  // Each map is said once of each.
  static void add_misfit(WorkloadId id, int err, const char* what, Problems& no_room) {
    add_problem(id,
                errno_error(err, std::string("does not fit into the kernel's map of ") + what +
                                     ", so it is refused"),
                no_room);
  }
  static void add_problem(WorkloadId id, const Error& error, Problems& problems) {
    const auto [known, is_first] = problems.emplace(id, error);
    std::string& said = known->second.message;
    if (!is_first && said.find(error.message) == std::string::npos) said += "; " + error.message;
  }

  // Policy first: the addresses of a service are judged as soon as it is there.
  Result<> change(Wanted& wanted, Problems& no_room) {
    misfits_ = {};
    MESH_TRY(change_policy(wanted, no_room));
    services_left_out_ = maps_.services.put(wanted.services);
    for (const auto& [key, err] : services_left_out_) {
      (key.protocol == UM_UDP ? misfits_.udp_services : misfits_.services)
          .insert(user_destination(key));
      add_misfit(0, err, "services and endpoints", no_room);
    }
    return success();
  }

  // What is written before is of use to nobody who is not in the new state.
  Result<> change_policy(Wanted& wanted, Problems& no_room) {
    std::set<WorkloadId> incomplete;
    for (const auto& [key, err] : maps_.refusals.put(wanted.refusals)) {
      misfits_.refusals.emplace(key.client, key.service);
      add_misfit(key.client, err, "refusals", no_room);
      incomplete.insert(key.client);
    }
    for (const auto& [id, err] : maps_.records.put(wanted.records))
      add_misfit(id, err, "workloads", no_room);
    for (const auto& [key, err] : maps_.own_addresses.put(wanted.own_addresses))
      add_misfit(key.workload, err, "own addresses", no_room);
    constexpr std::uint32_t kIncomplete = UM_WORKLOAD_REFUSALS_INCOMPLETE;
    const auto rows = wanted.policy.workloads;
    for (const auto& [key, row] : rows) {
      um_workload& workload = wanted.policy.workloads[key];
      workload.flags =
          (workload.flags & ~kIncomplete) | (incomplete.contains(workload.id) ? kIncomplete : 0U);
    }
    if (has_addresses_ && maps_.policy.holds(wanted.policy)) return success();
    return change_generation(wanted.policy, no_room);
  }

  Result<> change_generation(const PolicyMaps::Entries& wanted, Problems& no_room) {
    if (is_other_remembered_) {
      MESH_TRY(wait_for_programs());
      is_other_remembered_ = false;
    }
    MESH_TRY(const auto left_out, maps_.policy.prepare(wanted));
    note_left_out(left_out, no_room);
    for (const auto& [key, err] : left_out.workloads)
      add_misfit(wanted.workloads.at(key).id, err, "workloads", no_room);
    has_blocks_ = !wanted.blocks.empty();
    has_addresses_ = !left_out.lost_addresses();
    is_other_remembered_ = true;
    MESH_TRY(write_config(wanted_flags(maps_.policy.other())));
    maps_.policy.set_active(generation());
    return success();
  }

  void note_left_out(const PolicyMaps::LeftOut& left_out, Problems& no_room) {
    for (const auto& [set, err] : left_out.sets) {
      misfits_.sets.insert(set);
      add_misfit(0, err, "policy sets", no_room);
    }
    for (const auto& [key, err] : left_out.peers) {
      misfits_.peers.insert(user_address(key.address));
      add_misfit(0, err, "peers", no_room);
    }
    for (const auto& [key, err] : left_out.blocks) {
      misfits_.blocks.insert(user_block(key));
      add_misfit(0, err, "address blocks", no_room);
    }
  }

  // No program has anything in hand afterwards that is no more wanted.
  Result<> forget_what_was() {
    const bool changed[] = {is_other_remembered_, maps_.refusals.take_changed(),
                            maps_.services.take_changed()};
    if (std::ranges::none_of(changed, std::identity{})) return success();
    MESH_TRY(wait_for_programs());
    is_other_remembered_ = false;
    maps_.services.sweep();
    return maps_.policy.sweep();
  }

  Result<> detach_unwanted(const Wanted& wanted) {
    std::set<std::string> keep;
    for (const auto& [id, record] : wanted.records)
      if (record.cgroup[0] != '\0') keep.insert(std::to_string(id));
    for (auto set = link_sets_.begin(); set != link_sets_.end();) {
      if (keep.contains(*set)) {
        ++set;
        continue;
      }
      MESH_TRY(object_.remove_links(*set));
      ensured_.erase(*set);
      std::erase_if(uncovered_, [&](const auto& one) { return std::to_string(one.first) == *set; });
      set = link_sets_.erase(set);
    }
    return success();
  }

  // Of the workloads that end now.
  std::set<std::uint64_t> cookies_but(const Wanted& wanted) const {
    std::set<std::uint64_t> cookies;
    for (const auto& [key, workload] : maps_.policy.workloads())
      if (!wanted.policy.workloads.contains(key)) cookies.insert(key.netns_cookie);
    return cookies;
  }

  Result<> remove_unwanted(const Wanted& wanted, const std::set<std::uint64_t>& ended) {
    MESH_TRY(maps_.own_addresses.keep_only(wanted.own_addresses));
    MESH_TRY(maps_.records.keep_only(wanted.records));
    MESH_TRY(maps_.services.keep_only(wanted.services));
    MESH_TRY(maps_.refusals.keep_only(wanted.refusals));
    if (ended.empty()) return success();
    // Connections that were on their way to the proxy, and the resolvers that it asked.
    MESH_TRY(remove_of<um_record_key>("um_records", ended));
    return remove_of<um_resolver_key>("um_resolvers", ended);
  }

  // What the programs wrote of namespaces whose workload has ended.
  template <class Key>
  Result<> remove_of(const char* map, const std::set<std::uint64_t>& cookies) {
    const int fd = object_.map(map);
    std::vector<Key> orphans;
    Key key{}, next{};
    for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &key) {
      key = next;
      if (cookies.contains(key.netns_cookie)) orphans.push_back(key);
    }
    for (const Key& orphan : orphans)
      if (::bpf_map_delete_elem(fd, &orphan) != 0 && errno != ENOENT)
        return errno_error(errno, std::string("delete from map ") + map);
    return success();
  }

  // why: empty, it is not.
  void note_uncovered(WorkloadId id, std::string why) {
    if (why.empty())
      uncovered_.erase(id);
    else
      uncovered_[id] = std::move(why);
  }

  using Rows = decltype(PolicyMaps::Entries::workloads);

  // In the maps of the layout that was, too.
  bool has_row(std::uint64_t cookie) const {
    return maps_.policy.workloads().contains({cookie, 0, 0}) || previous_rows_.contains(cookie);
  }

  // The row of a strict workload comes when it has all else: until then its hooks refuse.
  Rows withhold_rows(const State& state, Wanted& wanted) const {
    Rows withheld;
    Rows& rows = wanted.policy.workloads;
    for (auto row = rows.begin(); row != rows.end();) {
      const auto workload = state.workloads.find(row->second.id);
      if (workload == state.workloads.end() || !workload->second.strict ||
          has_row(row->first.netns_cookie)) {
        ++row;
        continue;
      }
      withheld.insert(*row);
      row = rows.erase(row);
    }
    return withheld;
  }

  Result<> settle_rows(const State& state, const Rows& withheld, Wanted& wanted,
                       Problems& problems) {
    Rows& rows = wanted.policy.workloads;
    for (const auto& row : withheld) rows.insert(row);
    erase_if(rows, [&](const auto& row) {
      const auto workload = state.workloads.find(row.second.id);
      return problems.contains(row.second.id) && workload != state.workloads.end() &&
             workload->second.strict;
    });
    return change_policy(wanted, problems);
  }

  void attach_wanted(const State& state, Problems& problems) {
    for (const auto& [id, workload] : state.workloads) {
      const std::string set = std::to_string(id);
      if (workload.cgroup.empty() || id == 0) continue;
      auto ensured = ensured_.find(set);
      // A workload that came back under its id has a new namespace, and a new cgroup at the old
      // path.
      const Place place{workload.netns_cookie, workload.cgroup, workload.netns >= 0,
                        workload.strict};
      if (ensured != ensured_.end() && ensured->second == place) continue;
      link_sets_.insert(set);
      auto attached = attach(object_, sockets_, set, workload, has_row(workload.netns_cookie));
      note_uncovered(id, attached ? attached.value() : std::string());
      if (attached) {
        ensured_[set] = place;
      } else {
        ensured_.erase(set);
        problems.insert_or_assign(id, std::move(attached).assume_error());
      }
    }
  }

  void update_fast_path(const State& state) {
    FastPathNode node;
    node.excluded = state.slow_listeners;
    if (!mesh_cgroup_.empty()) node.cgroups.emplace(kMeshLinks, mesh_cgroup_);
    for (const auto& [id, workload] : state.workloads) {
      const std::string set = std::to_string(id);
      if (!workload.fast_path || (!workload.cgroup.empty() && !ensured_.contains(set))) continue;
      if (!workload.cgroup.empty()) node.cgroups.emplace(set, workload.cgroup);
      // One that two workloads claim is the first one's.
      for (const IpAddress& ip : workload.addresses)
        node.addresses.emplace(ip, workload.netns_cookie);
    }
    fast_path_.want(std::move(node));
  }

  // The mesh's own sockets are the other ends of every workload's: theirs is looked at with each.
  void restore_fast_path(const std::string& set, std::vector<Difference>& differences) {
    for (const auto& [name, what] :
         {std::pair{set, "its hook of the fast path"},
          {std::string(kMeshLinks), "the mesh's hook of the fast path"}}) {
      const auto was_restored = fast_path_.restore_link(name);
      if (!was_restored || was_restored.value())
        differences.push_back({what, was_restored.has_value(), true});
    }
  }

  // Programs decide by the generation that it names: a stranger may have shown them the other one.
  Result<> restore_config(std::vector<Difference>& differences) {
    const std::uint32_t zero = 0;
    um_config config{};
    if (::bpf_map_lookup_elem(object_.map("um_config"), &zero, &config) != 0)
      return errno_error(errno, "read map um_config");
    if (config.flags == config_flags_) return success();
    is_other_remembered_ = true;
    MESH_TRY(store_config(config_flags_));
    differences.push_back({"the policy epoch (um_config)", true});
    return success();
  }

  Result<> put_service_range() {
    const std::uint32_t zero = 0;
    if (::bpf_map_update_elem(object_.map("um_service_ranges"), &zero, &*service_range_, BPF_ANY) !=
        0)
      return errno_error(errno, "write map um_service_ranges");
    return success();
  }

  // Without it the address of a removed service is anybody's.
  Result<> restore_service_range(std::vector<Difference>& differences) {
    if (!service_range_) return success();
    const std::uint32_t zero = 0;
    um_service_range range{};
    if (::bpf_map_lookup_elem(object_.map("um_service_ranges"), &zero, &range) != 0)
      return errno_error(errno, "read map um_service_ranges");
    if (std::memcmp(&range, &*service_range_, sizeof range) == 0) return success();
    MESH_TRY(put_service_range());
    differences.push_back({"the block of services' addresses (um_service_ranges)", true});
    return success();
  }

  Result<> restore_some_rows(std::vector<Difference>& differences) {
    const auto note = [&](std::size_t restored, const char* what) {
      if (restored != 0) differences.push_back({std::to_string(restored) + what, true});
    };
    MESH_TRY(const auto services, maps_.services.restore_some(kAuditedRows));
    note(services, " of the services' rows");
    MESH_TRY(const auto refusals, maps_.refusals.restore_some(kAuditedRows));
    note(refusals, " of the rows in um_refusals");
    MESH_TRY(const auto peers, maps_.policy.restore_some_peers(kAuditedRows));
    note(peers, " of the rows in um_peers");
    MESH_TRY(const auto blocks, maps_.policy.restore_some_blocks(kAuditedRows));
    note(blocks, " of the rows in um_blocks");
    return success();
  }

  // Without them the next meshd would begin anew.
  Result<> restore_pins(std::vector<Difference>& differences) {
    MESH_TRY(const std::size_t pins, object_.restore_pins());
    MESH_TRY(const std::size_t fast, fast_path_.restore_pins());
    if (pins + fast != 0)
      differences.push_back(
          {std::to_string(pins + fast) + " of the pins of maps and programs", true});
    return success();
  }

  // Until all has changed over, the programs at work are not ours.
  Result<> restore_mesh(std::vector<Difference>& differences) {
    MESH_TRY(restore_pins(differences));
    if (mesh_cgroup_.empty() || object_.must_change_over()) return success();
    MESH_TRY(auto found, look_at_mesh_links(object_, kMeshLinks, mesh_cgroup_));
    for (std::string& program : found.foreign) differences.push_back({std::move(program), false});
    if (found.missing.empty()) return success();
    const auto attached = object_.ensure_links(kMeshLinks, mesh_hooks(), mesh_cgroup_);
    MESH_TRY(const auto after, look_at_mesh_links(object_, kMeshLinks, mesh_cgroup_));
    for (std::string& missing : found.missing) {
      const bool is_there = std::ranges::find(after.missing, missing) == after.missing.end();
      differences.push_back({std::move(missing), is_there});
    }
    return attached;
  }

  Result<> restore_rows(const EnrolledWorkload& workload, std::vector<Difference>& differences) {
    const auto note = [&](bool was_restored, const char* what) {
      if (was_restored) differences.push_back({what, true});
    };
    MESH_TRY(const bool row, maps_.policy.restore_workload(workload.netns_cookie));
    note(row, "its row in um_workloads");
    for (const IpAddress& ip : workload.addresses) {
      const um_address address = kernel_address(ip);
      MESH_TRY(const bool own, maps_.own_addresses.restore({workload.id, address}));
      note(own, "its row in um_own_addresses");
      MESH_TRY(const bool peer, maps_.policy.restore_peer(address));
      note(peer, "its row in um_peers");
    }
    for (const SetId id : {workload.ingress, workload.egress}) {
      MESH_TRY(const bool set, maps_.policy.restore_set(id));
      note(set, "its policy set");
    }
    return success();
  }

  Object object_;
  Maps maps_;
  WantedMaps wanted_;
  UdpChoices udp_;
  std::string mesh_cgroup_;  // "": not told yet
  Services::Failures services_left_out_;
  Misfits misfits_;
  SocketWork sockets_;
  Flows flows_;
  Endings endings_;
  FastPathHere fast_path_;
  std::optional<FastPathProbe> fast_path_probe_;
  std::map<WorkloadId, std::string> uncovered_;
  std::map<WorkloadId, Canary> canaries_;  // on their way
  std::set<std::uint64_t> previous_rows_;  // by cookie: enrolled in the layout that was
  std::set<std::string> link_sets_;        // pinned, as far as we know
  std::map<std::string, Place> ensured_;   // by this process
  std::optional<um_service_range> service_range_;
  std::uint32_t config_flags_ = 0;
  bool has_blocks_ = false;    // of the active generation
  bool has_addresses_ = true;  // all of its peers and blocks fitted
  bool is_complete_ = true;    // all services fitted
  // A program may still decide by the generation that is not active.
  bool is_other_remembered_ = false;
};

}  // namespace

Result<std::unique_ptr<Datapath>> open_kernel_datapath(const Options& options) {
  load_diag_modules();
  MESH_TRY(auto object, Object::open(options));
  auto datapath = std::make_unique<KernelDatapath>(std::move(object), options.pin_dir);
  MESH_TRY(datapath->read());
  if (options.service_range) {
    MESH_TRY(datapath->write_service_range(*options.service_range));
  }
  log()->debug("maps read");
  return std::unique_ptr<Datapath>(std::move(datapath));
}

}  // namespace mesh::datapath
