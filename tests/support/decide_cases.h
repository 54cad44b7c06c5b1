// bpf/decide.h on the host, with maps in memory, and the table of cases that the unit test runs
// here and the bpf test runs in the kernel over real maps.
#pragma once

#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/address.h"
#include "bpf/shared.h"

namespace mesh::test {

// What the maps hold and the helpers answer.
struct World {
  struct Verdict {
    std::uint32_t client, group, service;
    std::uint16_t port;
    std::uint32_t policy;
    bool allowed;
  };
  struct Service {
    std::uint32_t id;
    um_service_kind kind;
    std::vector<std::string> backends;
    std::uint32_t missing = 0;  // counted, but not in the map of backends
  };
  std::map<std::uint64_t, um_workload> workloads;
  std::vector<std::pair<std::uint32_t, std::string>> own;
  std::map<std::string, Service> services;
  bool has_service_range = false;  // 10.78.0.0/16
  std::map<std::string, std::uint32_t> groups;
  std::vector<Verdict> verdicts;
  std::uint32_t config = 0;
  std::int64_t heartbeat_age_ns = -1;  // -1: never stamped
  std::uint32_t random = 0;
};

inline um_address kernel_address(const std::string& text) {
  um_address out;
  auto ip = IpAddress::parse(text);
  std::memcpy(&out, ip.value().bytes().data(), sizeof out);
  return out;
}
inline std::uint16_t be16(std::uint16_t port) {
  return static_cast<std::uint16_t>(port << 8 | port >> 8);
}
inline um_destination kernel_destination(const std::string& text) {
  auto address = SocketAddress::parse(text).value();
  um_destination out{};
  std::memcpy(&out.address, address.ip.bytes().data(), sizeof out.address);
  out.port = be16(address.port);
  return out;
}

struct Bytewise {
  template <class T>
  bool operator()(const T& a, const T& b) const {
    return std::memcmp(&a, &b, sizeof a) < 0;
  }
};

// The World in the shapes of the kernel.
struct Lookups {
  Lookups() = default;
  explicit Lookups(const World& world) : workloads(world.workloads), config(world.config) {
    for (const auto& [id, address] : world.own) own.insert({id, kernel_address(address)});
    for (const auto& [address, service] : world.services) {
      um_destination key = kernel_destination(address);
      std::uint32_t count = 0;
      for (const std::string& backend : service.backends)
        backends[{key, count++}] = kernel_destination(backend);
      services[key] = {service.id, static_cast<std::uint32_t>(service.kind),
                       count + service.missing};
    }
    if (world.has_service_range)
      service_range = {kernel_address("10.78.0.0"),
                       kernel_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0")};
    for (const auto& [address, group] : world.groups) groups[kernel_address(address)] = group;
    for (const auto& v : world.verdicts)
      verdicts[{v.client, v.group, v.service, be16(v.port), 0}] = {v.policy, v.allowed ? 1U : 0U};
    random = world.random;
    now = 100'000'000'000U;
    heartbeat =
        world.heartbeat_age_ns == -1 ? 0 : now - static_cast<std::uint64_t>(world.heartbeat_age_ns);
  }
  std::map<std::uint64_t, um_workload> workloads;
  std::set<um_own_key, Bytewise> own;
  std::map<um_destination, um_service, Bytewise> services;
  std::map<um_backend_key, um_destination, Bytewise> backends;
  um_service_range service_range{};
  std::map<um_address, std::uint32_t, Bytewise> groups;
  std::map<um_verdict_key, um_verdict, Bytewise> verdicts;
  std::uint32_t config = 0, random = 0;
  std::uint64_t heartbeat = 0, now = 0;
};
inline Lookups lookups;

template <class Map, class Key>
auto* find(const Map& map, const Key& key) {
  auto found = map.find(key);
  return found == map.end() ? nullptr : &found->second;
}

}  // namespace mesh::test

inline const um_workload* um_find_workload(__u64 cookie) {
  return mesh::test::find(mesh::test::lookups.workloads, cookie);
}
inline int um_is_own_address(__u32 workload, const um_address* address) {
  return mesh::test::lookups.own.contains({workload, *address});
}
inline const um_service* um_find_service(const um_destination* to) {
  return mesh::test::find(mesh::test::lookups.services, *to);
}
inline const um_service_range* um_find_service_range() {
  return &mesh::test::lookups.service_range;
}
inline const um_destination* um_find_backend(const um_destination* service, __u32 index) {
  return mesh::test::find(mesh::test::lookups.backends, um_backend_key{*service, index});
}
inline __u32 um_find_group(const um_address* address) {
  const __u32* group = mesh::test::find(mesh::test::lookups.groups, *address);
  return group == nullptr ? 0 : *group;
}
inline const um_verdict* um_find_verdict(const um_verdict_key* key) {
  return mesh::test::find(mesh::test::lookups.verdicts, *key);
}
inline __u32 um_config_flags() { return mesh::test::lookups.config; }
inline __u64 um_heartbeat() { return mesh::test::lookups.heartbeat; }
inline __u64 um_now() { return mesh::test::lookups.now; }
inline __u32 um_random() { return mesh::test::lookups.random; }

#include "bpf/decide.h"

namespace mesh::test {

struct DecideCase {
  const char* name;
  std::string to;
  um_action action;
  std::uint32_t counter;
  bool mesh = false;
  bool tcp = true;
  bool v4_only = false;
  std::uint64_t cookie = 4100;
  World world = {};
  std::uint32_t policy = 0;  // expected, where one decided; 0: none did
  std::string backend = "";  // expected, for UM_BALANCE
};

inline World enrolled(World world = {}) {
  world.workloads[4100] = {7, world.workloads.contains(1) ? world.workloads.at(1).flags : 0};
  world.workloads.erase(1);
  world.own = {{7, "10.0.0.7"}, {7, "fd00::7"}, {8, "10.0.0.8"}};
  return world;
}
inline World grouped(std::vector<World::Verdict> verdicts) {
  World world = enrolled();
  world.groups = {{"10.0.0.9", 3}, {"10.0.0.10", 0}, {"10.0.0.7", 3}};
  world.verdicts = std::move(verdicts);
  return world;
}
inline World with_service(const World::Service& service, std::int64_t age,
                          std::vector<World::Verdict> verdicts = {}, std::uint32_t flags = 0) {
  World world = enrolled();
  world.workloads[4100].flags = flags;
  world.services["10.78.0.1:80"] = service;
  world.services["[fd78::1]:80"] = service;
  world.groups = {{"10.0.0.9", 3}};
  world.verdicts = std::move(verdicts);
  world.heartbeat_age_ns = age;
  return world;
}

inline std::vector<DecideCase> decide_cases() {
  const World::Service proxy{1, UM_SERVICE_PROXY, {}};
  const World::Service nobody{2, UM_SERVICE_BALANCE, {}};
  const World::Service one{2, UM_SERVICE_BALANCE, {"10.0.0.9:8080"}};
  const World::Service shrinking{2, UM_SERVICE_BALANCE, {"10.0.0.9:8080"}, 1};
  const World::Service ipv6{2, UM_SERVICE_BALANCE, {"[fd00::9]:8080"}};
  constexpr std::int64_t kSecond = 1'000'000'000;
  World second_backend = with_service({2, UM_SERVICE_BALANCE, {"10.0.0.9:1", "10.0.0.11:1"}}, -1,
                                      {{7, 3, 0, 0, 5, false}});
  second_backend.random = 3;
  World ranged = with_service(proxy, 0, {{7, 3, 0, 0, 21, true}});
  ranged.has_service_range = true;
  ranged.groups["10.78.9.9"] = 3;
  ranged.own.emplace_back(7, "10.78.0.7");
  World full = enrolled();
  full.config = UM_CONFIG_STATE_INCOMPLETE;
  const World::Verdict allow{7, 3, 0, 0, 21, true}, deny{7, 3, 0, 0, 22, false};
  const World::Verdict allow_80{7, 3, 0, 80, 23, true}, deny_80{7, 3, 0, 80, 24, false};
  const World::Verdict other{8, 3, 0, 0, 25, true};
  const World::Verdict refused{7, 0, 1, 0, 26, false}, granted{7, 0, 1, 0, 27, true};

  return {
      {.name = "UDP",
       .to = "10.0.0.9:53",
       .action = UM_PASS,
       .counter = UM_NO_COUNTER,
       .tcp = false,
       .cookie = 1},
      {.name = "UnknownNamespace",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD,
       .cookie = 1,
       .world = enrolled()},
      {.name = "UnknownNamespaceToLoopback",
       .to = "127.0.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_UNKNOWN_WORKLOAD,
       .cookie = 1,
       .world = enrolled()},
      {.name = "Loopback",
       .to = "127.9.9.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = enrolled()},
      {.name = "Loopback6",
       .to = "[::1]:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = enrolled()},
      {.name = "Unspecified",
       .to = "0.0.0.0:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = enrolled()},
      {.name = "Unspecified6",
       .to = "[::]:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = enrolled()},
      {.name = "OwnAddressThoughAPolicySelectsIt",
       .to = "10.0.0.7:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = grouped({deny})},
      {.name = "OwnAddress6",
       .to = "[fd00::7]:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = enrolled()},
      {.name = "AnothersOwnAddress",
       .to = "10.0.0.8:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = enrolled()},
      {.name = "UnknownDestination",
       .to = "192.0.2.1:443",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = grouped({})},
      {.name = "GroupZero",
       .to = "10.0.0.10:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = grouped({})},
      {.name = "UnknownDestinationWithFullMaps",
       .to = "192.0.2.1:443",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = full},
      {.name = "GroupWithoutVerdict",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = grouped({})},
      {.name = "VerdictOfAnotherClient",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = grouped({other})},
      {.name = "AnyPortAllowed",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = grouped({allow}),
       .policy = 21},
      {.name = "AnyPortDenied",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = grouped({deny}),
       .policy = 22},
      {.name = "OnePortAllowedAmongDenied",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = grouped({deny, allow_80}),
       .policy = 23},
      {.name = "OnePortDeniedAmongAllowed",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = grouped({allow, deny_80}),
       .policy = 24},
      {.name = "AnotherPortThanTheDeniedOne",
       .to = "10.0.0.9:81",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = grouped({allow, deny_80}),
       .policy = 21},
      {.name = "AnotherPortWithoutVerdict",
       .to = "10.0.0.9:81",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = grouped({allow_80})},

      {.name = "ProxiedService",
       .to = "10.78.0.1:80",
       .action = UM_REDIRECT,
       .counter = UM_CONNECTS_REDIRECTED,
       .world = with_service(proxy, kSecond)},
      {.name = "ProxiedService6",
       .to = "[fd78::1]:80",
       .action = UM_REDIRECT,
       .counter = UM_CONNECTS_REDIRECTED,
       .world = with_service(proxy, 0)},
      {.name = "AnotherPortOfTheServiceAddress",
       .to = "10.78.0.1:81",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = with_service(proxy, kSecond)},
      {.name = "ProxiedAndGranted",
       .to = "10.78.0.1:80",
       .action = UM_REDIRECT,
       .counter = UM_CONNECTS_REDIRECTED,
       .world = with_service(proxy, 0, {granted}),
       .policy = 27},
      {.name = "ProxiedAndRefused",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = with_service(proxy, 0, {refused}),
       .policy = 26},
      {.name = "RefusedThoughTheProxyIsAway",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = with_service(proxy, -1, {refused}),
       .policy = 26},
      {.name = "RefusalsThatDidNotFit",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = with_service(proxy, 0, {}, UM_WORKLOAD_VERDICTS_INCOMPLETE)},
      {.name = "GrantedThoughOthersDidNotFit",
       .to = "10.78.0.1:80",
       .action = UM_REDIRECT,
       .counter = UM_CONNECTS_REDIRECTED,
       .world = with_service(proxy, 0, {granted}, UM_WORKLOAD_VERDICTS_INCOMPLETE),
       .policy = 27},
      {.name = "ProxyNeverSeen",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_PROXY_AWAY,
       .world = with_service(proxy, -1)},
      {.name = "ProxyAwayFor3s",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_PROXY_AWAY,
       .world = with_service(proxy, 3 * kSecond)},
      {.name = "HeartbeatFromTheFuture",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_PROXY_AWAY,
       .world = with_service(proxy, -60 * kSecond)},
      {.name = "ProxyAwayAndADirectDestination",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = with_service(proxy, -1, {allow}),
       .policy = 21},

      {.name = "AServiceAddressThatIsNobodysNow",
       .to = "10.78.0.2:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .world = ranged},
      {.name = "AnotherPortOfAServiceInTheRange",
       .to = "10.78.0.1:81",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .world = ranged},
      {.name = "AServiceInTheRange",
       .to = "10.78.0.1:80",
       .action = UM_REDIRECT,
       .counter = UM_CONNECTS_REDIRECTED,
       .world = ranged},
      {.name = "TheProxyAtAServiceAddress",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_REFUSED_ADDRESS,
       .mesh = true,
       .world = ranged},
      {.name = "TheProxyAtAnOwnAddressInTheRange",
       .to = "10.78.0.7:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .mesh = true,
       .world = ranged},
      {.name = "JustOutsideTheRange",
       .to = "10.79.0.1:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = ranged},
      {.name = "OutsideTheRangeOfTheOtherFamily",
       .to = "[fd78::2]:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = ranged},
      {.name = "AnOwnAddressInTheRange",
       .to = "10.78.0.7:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_LOCAL,
       .world = ranged},
      {.name = "AnEndpointInTheRangeIsNobodysForAnApplication",
       .to = "10.78.9.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .world = ranged},

      {.name = "NoBackend",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .world = with_service(nobody, 0)},
      {.name = "OneBackend",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = with_service(one, -1, {allow}),
       .policy = 21,
       .backend = "10.0.0.9:8080"},
      {.name = "ThePortOfTheBackendCounts",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = with_service(one, -1, {allow, deny_80}),
       .policy = 21,
       .backend = "10.0.0.9:8080"},
      {.name = "BackendRefused",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = with_service(one, 0, {deny}),
       .policy = 22},
      {.name = "BackendWithoutVerdict",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = with_service(one, 0)},
      {.name = "ABackendThatIsJustGoing",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = with_service(shrinking, 0, {allow}),
       .policy = 21,
       .backend = "10.0.0.9:8080"},
      {.name = "AnIpv6BackendForAnIpv4Socket",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .v4_only = true,
       .world = with_service(ipv6, 0)},
      {.name = "AnIpv6BackendForAnIpv6Socket",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = with_service(ipv6, 0),
       .backend = "[fd00::9]:8080"},

      {.name = "MeshUdp",
       .to = "127.0.0.1:53",
       .action = UM_PASS,
       .counter = UM_NO_COUNTER,
       .mesh = true,
       .tcp = false},
      {.name = "MeshInAnUnknownNamespace",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_UNKNOWN_WORKLOAD,
       .mesh = true,
       .cookie = 1,
       .world = enrolled()},
      {.name = "MeshToAService",
       .to = "10.78.0.1:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .mesh = true,
       .world = with_service(proxy, 0)},
      {.name = "MeshToTheWorkloadsOwnAddressWithAPolicy",
       .to = "10.0.0.7:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .mesh = true,
       .world = grouped({deny})},
      {.name = "MeshAllowed",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .mesh = true,
       .world = grouped({allow}),
       .policy = 21},
      {.name = "MeshDenied",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_POLICY,
       .mesh = true,
       .world = grouped({deny}),
       .policy = 22},
      {.name = "MeshWithoutVerdict",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_NO_VERDICT,
       .mesh = true,
       .world = grouped({})},
      {.name = "MeshWithFullMaps",
       .to = "192.0.2.1:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_MAP_FULL,
       .mesh = true,
       .world = full},
      {.name = "TheSecondBackend",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = second_backend,
       .backend = "10.0.0.11:1"},
  };
}

}  // namespace mesh::test
