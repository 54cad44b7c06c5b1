#include "datapath/adoption.h"

#include <bpf/bpf.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

// What a map of another layout holds; its values may be longer or shorter than ours.
template <class Key, class Value, class Use>
Result<> read_previous(const Object& object, const char* name, Use use) {
  const UniqueFd fd = object.previous_map(name);
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  if (!fd || ::bpf_obj_get_info_by_fd(fd.get(), &info, &size) != 0 ||
      info.key_size != sizeof(Key) || info.value_size < sizeof(Value))
    return Error{Errc::invalid_argument,
                 std::string("the layout that was has no map ") + name +
                     " that can be read: detach it with 'meshctl disable --all', then start again"};
  std::vector<std::byte> value(info.value_size);
  Key key{}, next{};
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd.get(), at, &next) == 0; at = &key) {
    key = next;
    if (::bpf_map_lookup_elem(fd.get(), &key, value.data()) != 0) continue;
    Value found;
    std::memcpy(&found, value.data(), sizeof found);
    use(key, found);
  }
  return success();
}

// The proxied ones. Layout 2 had id and kind in um_services itself.
Result<> adopt_previous_services(const Object& object, State& state) {
  const auto adopt = [&state](const um_destination& address, std::uint32_t id, std::uint32_t kind) {
    if (kind == UM_SERVICE_PROXY)
      state.services[user_destination(address)] = {id, ServiceEntry::Kind::kProxy, {}};
  };
  const UniqueFd slots = object.previous_map("um_slots");
  if (!slots) {
    struct Service {
      std::uint32_t id, kind;
    };
    return read_previous<um_destination, Service>(object, "um_services",
                                                  [&](const auto& address, const Service& service) {
                                                    adopt(address, service.id, service.kind);
                                                  });
  }
  return read_previous<um_destination, std::uint32_t>(
      object, "um_services", [&](const auto& address, std::uint32_t slot) {
        um_service service{};
        if (::bpf_map_lookup_elem(slots.get(), &slot, &service) == 0)
          adopt(address, service.number, service.kind);
      });
}

}  // namespace

EnrolledWorkload adopted(WorkloadId id, const um_workload_record& record) {
  EnrolledWorkload workload;
  workload.id = id;
  workload.netns_cookie = record.netns_cookie;
  workload.cgroup = record.cgroup;
  return workload;
}

void adopt_address(const um_own_key& key, std::uint32_t order, State& state) {
  auto workload = state.workloads.find(key.workload);
  if (workload == state.workloads.end()) return;
  std::vector<IpAddress>& addresses = workload->second.addresses;
  addresses.resize(std::max<std::size_t>(addresses.size(), order + 1));
  addresses[order] = user_address(key.address);
}

Result<State> adopt_previous(const Object& object) {
  State state;
  MESH_TRY((read_previous<std::uint32_t, um_workload_record>(
      object, "um_workload_records",
      [&](auto id, const auto& record) { state.workloads[id] = adopted(id, record); })));
  MESH_TRY((read_previous<um_own_key, std::uint32_t>(
      object, "um_own_addresses",
      [&](const auto& key, auto order) { adopt_address(key, order, state); })));
  MESH_TRY(adopt_previous_services(object, state));
  return state;
}

// Keys begin with the cookie in every layout.
Result<std::set<std::uint64_t>> previous_cookies(const Object& object) {
  std::set<std::uint64_t> cookies;
  const UniqueFd previous = object.previous_map("um_workloads");
  if (!previous) return cookies;
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  if (::bpf_obj_get_info_by_fd(previous.get(), &info, &size) != 0)
    return errno_error(errno, "read the workloads of the layout that was");
  if (info.key_size < sizeof(std::uint64_t))
    return Error{Errc::invalid_argument,
                 "the workloads of the layout that was have no keys that can be read: detach it "
                 "with 'meshctl disable --all', then start again"};
  std::vector<std::byte> key(info.key_size), next(info.key_size);
  for (const void* at = nullptr; ::bpf_map_get_next_key(previous.get(), at, next.data()) == 0;
       at = key.data()) {
    key = next;
    std::uint64_t cookie = 0;
    std::memcpy(&cookie, key.data(), sizeof cookie);
    cookies.insert(cookie);
  }
  return cookies;
}

}  // namespace mesh::datapath
