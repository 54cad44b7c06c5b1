#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/map.h"
#include "datapath/object.h"

namespace mesh::datapath {
namespace {

constexpr const char* kMeshLinks = "mesh";

constexpr const char* kCounterNames[] = {
#define MESH_COUNTER_NAME(id, name) name,
    UM_COUNTERS(MESH_COUNTER_NAME)
#undef MESH_COUNTER_NAME
};
static_assert(std::size(kCounterNames) == UM_COUNTER_COUNT);

Logger& log() {
  static Logger instance = logger("datapath");
  return instance;
}

constexpr std::uint16_t network_order(std::uint16_t port) {
  if constexpr (std::endian::native == std::endian::big) return port;
  return static_cast<std::uint16_t>(port << 8 | port >> 8);
}

um_address kernel_address(const IpAddress& ip) {
  um_address out;
  std::memcpy(&out, ip.bytes().data(), sizeof out);
  return out;
}
IpAddress user_address(const um_address& address) {
  IpAddress::Bytes bytes;
  std::memcpy(bytes.data(), &address, sizeof address);
  return IpAddress(bytes);
}
um_service_range kernel_range(const IpBlock& block) {
  IpAddress::Bytes base = block.base.bytes(), mask{};
  const int bits = block.prefix_length + (block.base.is_v4() ? 96 : 0);
  for (int i = 0; i < bits; ++i)
    mask[static_cast<std::size_t>(i / 8)] |= static_cast<std::uint8_t>(0x80 >> (i % 8));
  for (std::size_t i = 0; i < base.size(); ++i) base[i] &= mask[i];
  return {kernel_address(IpAddress(base)), kernel_address(IpAddress(mask))};
}
um_destination kernel_destination(const SocketAddress& address) {
  return {kernel_address(address.ip), network_order(address.port), 0};
}
SocketAddress user_destination(const um_destination& destination) {
  return {user_address(destination.address), network_order(destination.port)};
}

struct Maps {
  explicit Maps(const Object& object)
      : workloads(object.map("um_workloads"), "um_workloads"),
        own_addresses(object.map("um_own_addresses"), "um_own_addresses"),
        records(object.map("um_workload_records"), "um_workload_records"),
        services(object.map("um_services"), "um_services"),
        backends(object.map("um_backends"), "um_backends"),
        groups(object.map("um_groups"), "um_groups"),
        verdicts(object.map("um_verdicts"), "um_verdicts") {}

  Result<> read() {
    MESH_TRY(workloads.read());
    MESH_TRY(own_addresses.read());
    MESH_TRY(records.read());
    MESH_TRY(services.read());
    MESH_TRY(backends.read());
    MESH_TRY(groups.read());
    return verdicts.read();
  }

  Map<std::uint64_t, um_workload> workloads;
  Map<um_own_key, std::uint32_t> own_addresses;
  Map<std::uint32_t, um_workload_record> records;
  Map<um_destination, um_service> services;
  Map<um_backend_key, um_destination> backends;
  Map<um_address, std::uint32_t> groups;
  Map<um_verdict_key, um_verdict> verdicts;
};

// What the maps shall hold.
struct Wanted {
  decltype(Maps::workloads)::Entries workloads;
  decltype(Maps::own_addresses)::Entries own_addresses;
  decltype(Maps::records)::Entries records;
  decltype(Maps::services)::Entries services;
  decltype(Maps::backends)::Entries backends;
  decltype(Maps::groups)::Entries groups;
  decltype(Maps::verdicts)::Entries verdicts;
};

using Problems = std::map<WorkloadId, Error>;  // 0: of no one workload

void add_workload(const EnrolledWorkload& workload, Wanted& wanted, Problems& problems) {
  um_workload_record record{};
  if (workload.id == 0 || workload.netns_cookie == 0 ||
      workload.cgroup.size() >= sizeof record.cgroup) {
    problems.emplace(workload.id, Error{Errc::invalid_argument,
                                        "a workload needs an id, the cookie of its network "
                                        "namespace, and a cgroup path below 1016 bytes"});
    return;
  }
  if (!wanted.workloads.emplace(workload.netns_cookie, um_workload{workload.id, 0}).second) {
    problems.emplace(workload.id,
                     Error{Errc::invalid_argument,
                           "its network namespace is enrolled already, as workload " +
                               std::to_string(wanted.workloads.at(workload.netns_cookie).id) +
                               ": workloads that share one cannot be told apart"});
    return;
  }
  record.netns_cookie = workload.netns_cookie;
  std::memcpy(record.cgroup, workload.cgroup.data(), workload.cgroup.size());
  wanted.records.emplace(workload.id, record);
  std::uint32_t order = 0;
  for (const IpAddress& ip : workload.addresses)
    wanted.own_addresses.emplace(um_own_key{workload.id, kernel_address(ip)}, order++);
}

Wanted wanted_of(const State& state, Problems& problems) {
  Wanted wanted;
  for (const auto& [id, workload] : state.workloads) add_workload(workload, wanted, problems);
  for (const auto& [address, service] : state.services) {
    um_destination key = kernel_destination(address);
    bool proxy = service.kind == ServiceEntry::Kind::kProxy;
    std::uint32_t count = 0;
    for (const SocketAddress& endpoint : service.endpoints) {
      // An IPv4 socket cannot go there, and would be refused when it is picked.
      if (address.ip.is_v4() && !endpoint.ip.is_v4()) continue;
      wanted.backends.emplace(um_backend_key{key, count++}, kernel_destination(endpoint));
    }
    wanted.services.emplace(
        key, um_service{service.id, proxy ? UM_SERVICE_PROXY : UM_SERVICE_BALANCE, count});
  }
  for (const auto& [ip, group] : state.endpoints) wanted.groups.emplace(kernel_address(ip), group);
  for (const auto& [key, entry] : state.verdicts)
    wanted.verdicts.emplace(
        um_verdict_key{key.client, key.group, key.service, network_order(key.port), 0},
        um_verdict{entry.policy, entry.allowed ? 1U : 0U});
  return wanted;
}

class KernelDatapath final : public Datapath {
 public:
  explicit KernelDatapath(Object object) : object_(std::move(object)), maps_(object_) {}

  Result<> read() {
    MESH_TRY(maps_.read());
    MESH_TRY(auto sets, object_.link_sets());
    for (const std::string& set : sets)
      if (set != kMeshLinks) link_sets_.insert(set);
    return success();
  }

  Result<> write_service_range(const IpBlock& block) {
    const std::uint32_t zero = 0;
    const um_service_range range = kernel_range(block);
    if (::bpf_map_update_elem(object_.map("um_service_ranges"), &zero, &range, BPF_ANY) != 0)
      return errno_error(errno, "write map um_service_ranges");
    return success();
  }

  Result<> attach_mesh(const std::string& cgroup_path) override {
    return object_.ensure_links(kMeshLinks, mesh_hooks(), cgroup_path);
  }

  Result<Problems> apply(const State& state) override {
    Problems problems;
    Wanted wanted = wanted_of(state, problems);
    // Known not to fit: refuse before anything is looked up in what is incomplete.
    if (wanted.groups.size() > capacity("um_groups") ||
        wanted.services.size() > capacity("um_services")) {
      MESH_TRY(write_config(UM_CONFIG_STATE_INCOMPLETE));
    }

    Problems misfits;
    bool complete = put(wanted, misfits);
    MESH_TRY(detach_unwanted(wanted));
    MESH_TRY(remove_unwanted(wanted));
    if (!misfits.empty()) {  // there may be room now
      misfits.clear();
      complete = put(wanted, misfits);
    }
    MESH_TRY(write_config(complete ? 0 : UM_CONFIG_STATE_INCOMPLETE));
    problems.merge(misfits);
    attach_wanted(state, problems);
    return problems;
  }

  Result<Counters> counters() override {
    auto cpus = static_cast<std::size_t>(::libbpf_num_possible_cpus());
    Counters out;
    std::vector<std::uint64_t> values(cpus);
    for (std::uint32_t i = 0; i < UM_COUNTER_COUNT; ++i) {
      if (::bpf_map_lookup_elem(object_.map("um_counters"), &i, values.data()) != 0)
        return errno_error(errno, "read counters");
      std::uint64_t& total = out.totals[kCounterNames[i]];
      for (std::uint64_t value : values) total += value;
    }
    int fd = object_.map("um_policy_counts");
    std::vector<um_policy_count> counts(cpus);
    std::uint32_t policy = 0, next = 0;
    for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &policy) {
      policy = next;
      if (::bpf_map_lookup_elem(fd, &policy, counts.data()) != 0) continue;
      for (const um_policy_count& count : counts) {
        if (count.denied != 0) out.denied_by_policy[policy] += count.denied;
        if (count.allowed != 0) out.allowed_by_policy[policy] += count.allowed;
      }
    }
    return out;
  }

  Result<State> adopt() override {
    MESH_TRY(maps_.read());
    State state;
    for (const auto& [id, record] : maps_.records.entries())
      state.workloads[id] = {id, record.netns_cookie, record.cgroup, {}};
    for (const auto& [key, order] : maps_.own_addresses.entries()) {
      auto workload = state.workloads.find(key.workload);
      if (workload == state.workloads.end()) continue;
      std::vector<IpAddress>& addresses = workload->second.addresses;
      addresses.resize(std::max<std::size_t>(addresses.size(), order + 1));
      addresses[order] = user_address(key.address);
    }
    for (const auto& [key, service] : maps_.services.entries()) {
      ServiceEntry& entry = state.services[user_destination(key)];
      entry.id = service.id;
      entry.kind = service.kind == UM_SERVICE_PROXY ? ServiceEntry::Kind::kProxy
                                                    : ServiceEntry::Kind::kBalance;
      entry.endpoints.resize(service.backends);
    }
    for (const auto& [key, backend] : maps_.backends.entries()) {
      auto service = state.services.find(user_destination(key.service));
      if (service != state.services.end() && key.index < service->second.endpoints.size())
        service->second.endpoints[key.index] = user_destination(backend);
    }
    for (const auto& [address, group] : maps_.groups.entries())
      state.endpoints[user_address(address)] = group;
    for (const auto& [key, verdict] : maps_.verdicts.entries())
      state.verdicts[{key.client, key.group, key.service, network_order(key.port)}] = {
          verdict.allowed != 0, verdict.policy};
    return state;
  }

  Result<UniqueFd> heartbeat_map() override {
    UniqueFd fd(::fcntl(object_.map("um_heartbeats"), F_DUPFD_CLOEXEC, 3));
    if (!fd) return errno_error(errno, "duplicate the heartbeat map");
    return fd;
  }

 private:
  using Place = std::pair<std::uint64_t, std::string>;  // netns cookie, cgroup

  std::size_t capacity(const char* map) const {
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    return ::bpf_obj_get_info_by_fd(object_.map(map), &info, &size) == 0 ? info.max_entries : 0;
  }

  Result<> write_config(std::uint32_t flags) {
    if (config_known_ && flags == config_flags_) return success();
    std::uint32_t zero = 0;
    um_config config{flags};
    if (::bpf_map_update_elem(object_.map("um_config"), &zero, &config, BPF_ANY) != 0)
      return errno_error(errno, "write map um_config");
    config_known_ = true;
    config_flags_ = flags;
    return success();
  }

  // A verdict before the group that needs it, a group before the service that reaches it, and the
  // workload last. Returns false where an unknown destination must be refused from now on.
  bool put(Wanted& wanted, Problems& misfits) {
    auto misfit = [&](WorkloadId id, int err, const char* what) {
      misfits.emplace(id, errno_error(err, std::string("does not fit into the kernel's map of ") +
                                               what + ", so it is refused"));
    };
    std::set<WorkloadId> incomplete;
    for (const auto& [key, err] : maps_.verdicts.put(wanted.verdicts)) {
      misfit(key.client, err, "verdicts");
      if (key.service != 0) incomplete.insert(key.client);
    }
    bool complete = true;
    for (const auto& [key, err] : maps_.groups.put(wanted.groups)) {
      misfit(0, err, "destinations");
      complete = false;
    }
    for (const auto& [key, err] : maps_.backends.put(wanted.backends)) {
      misfit(0, err, "endpoints");
    }
    for (const auto& [key, err] : maps_.services.put(wanted.services)) {
      misfit(0, err, "services");
      complete = false;
    }
    for (auto& [cookie, workload] : wanted.workloads)
      workload.flags = incomplete.contains(workload.id) ? UM_WORKLOAD_VERDICTS_INCOMPLETE : 0;
    for (const auto& [id, err] : maps_.records.put(wanted.records)) misfit(id, err, "workloads");
    for (const auto& [key, err] : maps_.own_addresses.put(wanted.own_addresses))
      misfit(key.workload, err, "own addresses");
    for (const auto& [cookie, err] : maps_.workloads.put(wanted.workloads))
      misfit(wanted.workloads.at(cookie).id, err, "workloads");
    return complete;
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
      set = link_sets_.erase(set);
    }
    return success();
  }

  Result<> remove_unwanted(const Wanted& wanted) {
    std::set<std::uint64_t> ended;
    for (const auto& [cookie, workload] : maps_.workloads.entries())
      if (!wanted.workloads.contains(cookie)) ended.insert(cookie);
    MESH_TRY(maps_.workloads.keep_only(wanted.workloads));
    MESH_TRY(maps_.own_addresses.keep_only(wanted.own_addresses));
    MESH_TRY(maps_.records.keep_only(wanted.records));
    MESH_TRY(maps_.services.keep_only(wanted.services));
    MESH_TRY(maps_.backends.keep_only(wanted.backends));
    MESH_TRY(maps_.groups.keep_only(wanted.groups));
    MESH_TRY(maps_.verdicts.keep_only(wanted.verdicts));
    if (ended.empty()) return success();
    return remove_records(ended);
  }

  // Connections that were on their way to the proxy when their workload ended.
  Result<> remove_records(const std::set<std::uint64_t>& cookies) {
    int fd = object_.map("um_records");
    std::vector<um_record_key> orphans;
    um_record_key key{}, next{};
    for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &key) {
      key = next;
      if (cookies.contains(key.netns_cookie)) orphans.push_back(key);
    }
    for (const um_record_key& orphan : orphans)
      if (::bpf_map_delete_elem(fd, &orphan) != 0 && errno != ENOENT)
        return errno_error(errno, "delete from map um_records");
    return success();
  }

  void attach_wanted(const State& state, Problems& problems) {
    for (const auto& [id, workload] : state.workloads) {
      std::string set = std::to_string(id);
      if (workload.cgroup.empty() || id == 0) continue;
      auto ensured = ensured_.find(set);
      // A workload that came back under its id has a new namespace, and a new cgroup at the old
      // path.
      Place place{workload.netns_cookie, workload.cgroup};
      if (ensured != ensured_.end() && ensured->second == place) continue;
      link_sets_.insert(set);
      Result<> linked = object_.ensure_links(set, workload_hooks(), workload.cgroup);
      if (linked)
        ensured_[set] = place;
      else
        problems.insert_or_assign(id, std::move(linked).assume_error());
    }
  }

  Object object_;
  Maps maps_;
  std::set<std::string> link_sets_;       // pinned, as far as we know
  std::map<std::string, Place> ensured_;  // by this process
  bool config_known_ = false;
  std::uint32_t config_flags_ = 0;
};

}  // namespace

Result<std::unique_ptr<Datapath>> open_kernel_datapath(const Options& options) {
  MESH_TRY(auto object, Object::open(options));
  auto datapath = std::make_unique<KernelDatapath>(std::move(object));
  MESH_TRY(datapath->read());
  if (options.service_range) {
    MESH_TRY(datapath->write_service_range(*options.service_range));
  }
  log()->debug("maps read");
  return std::unique_ptr<Datapath>(std::move(datapath));
}

}  // namespace mesh::datapath
