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
    std::uint32_t set, peer_class;
    std::uint16_t port;  // 0: any
    std::uint32_t policy;
    bool allowed;
    std::uint8_t protocol = UM_TCP;
    std::uint32_t port_bits = 16;
  };
  struct Refusal {
    std::uint32_t client, service, policy;
  };
  struct Column {
    Column(const char* both) : first(both), second(both) {}  // "": nobody
    Column(const char* one, const char* other, std::uint32_t up_to)
        : first(one), second(other), threshold(up_to) {}
    std::string first, second;
    std::uint32_t threshold = 0xffffffff;
  };
  struct Service {
    std::uint32_t id;
    um_service_kind kind;
    std::vector<Column> backends;
    std::uint32_t missing = 0;  // counted, but not in the map of backends
    std::uint32_t affinity_seconds = 0;
    std::map<std::uint32_t, std::vector<Column>> of_clients = {};
  };
  std::map<std::uint64_t, um_workload> workloads;
  std::vector<std::pair<std::uint32_t, std::string>> own;
  std::map<std::string, Service> services;
  bool has_service_range = false;  // 10.78.0.0/16
  std::map<std::string, um_peer> peers;
  std::map<std::string, std::uint32_t> blocks;  // "10.0.0.0/8" -> class
  std::vector<Verdict> verdicts;
  std::vector<Refusal> refusals;
  struct Flow {
    std::string from, to;
    std::uint64_t client;  // netns cookie
  };
  std::vector<Flow> flows;
  struct Affinity {
    std::uint32_t client, service;
    std::string backend;
    std::int64_t age_ns;
    bool v4 = true;
  };
  std::vector<Affinity> affinities;
  std::uint32_t config = 0;            // which generation all of this is, too
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
  out.protocol = UM_TCP;
  return out;
}
inline um_destination kernel_backend(const std::string& text) {
  return text.empty() ? um_destination{} : kernel_destination(text);
}
inline um_block_key kernel_block(const std::string& text) {
  const IpBlock block = IpBlock::parse(text).value();
  um_block_key out{};
  out.bits = static_cast<std::uint32_t>(UM_BLOCK_BITS + block.prefix_length +
                                        (block.base.is_v4() ? 96 : 0));
  std::memcpy(&out.address, block.base.bytes().data(), sizeof out.address);
  return out;
}
inline um_verdict_key kernel_verdict_key(const World::Verdict& v) {
  um_verdict_key key{};
  key.bits = v.protocol == 0 ? UM_ANY_PROTOCOL
             : v.port == 0   ? UM_ANY_PORT
                             : UM_ANY_PORT + v.port_bits;
  key.peer_class = __builtin_bswap32(v.peer_class);
  key.protocol = v.protocol;
  key.port = be16(v.port);
  return key;
}
// As the kernel's tries do: the entry with the most bits that agrees in all of them.
template <class Entries, class Key>
auto* longest_prefix(const Entries& entries, const Key& wanted) {
  const typename Entries::mapped_type* best = nullptr;
  std::uint32_t best_bits = 0;
  const auto bit = [](const void* key, std::uint32_t i) {
    return (static_cast<const std::uint8_t*>(key)[sizeof(std::uint32_t) + i / 8] >> (7 - i % 8)) &
           1;
  };
  for (const auto& [key, value] : entries) {
    bool agrees = key.bits <= wanted.bits;
    for (std::uint32_t i = 0; agrees && i < key.bits; ++i) agrees = bit(&key, i) == bit(&wanted, i);
    if (!agrees || (best != nullptr && key.bits < best_bits)) continue;
    best = &value;
    best_bits = key.bits;
  }
  return best;
}

struct Bytewise {
  template <class T>
  bool operator()(const T& a, const T& b) const {
    return std::memcmp(&a, &b, sizeof a) < 0;
  }
};

// The World in the shapes of the kernel, all in the generation that its config says.
struct Lookups {
  Lookups() = default;
  explicit Lookups(const World& world) : config(world.config) {
    const std::uint32_t generation = config & UM_CONFIG_GENERATION ? 1 : 0;
    for (const auto& [cookie, workload] : world.workloads)
      workloads[{cookie, generation, 0}] = workload;
    for (const auto& [id, address] : world.own) own.insert({id, kernel_address(address)});
    for (const auto& [address, service] : world.services) {
      um_destination key = kernel_destination(address);
      services[key] = add_slot(choose(service, service.backends));
      for (const auto& [client, columns] : service.of_clients)
        client_services[{client, key}] = add_slot(
            choose({service.id, UM_SERVICE_BALANCE, {}, 0, service.affinity_seconds}, columns));
    }
    if (world.has_service_range)
      service_range = {kernel_address("10.78.0.0"),
                       kernel_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0")};
    for (const auto& [address, peer] : world.peers)
      peers[{generation, kernel_address(address)}] = peer;
    for (const auto& [text, peer_class] : world.blocks) {
      um_block_key block = kernel_block(text);
      block.generation = generation;
      blocks[block] = peer_class;
    }
    for (const auto& v : world.verdicts)
      sets[{v.set, generation}][kernel_verdict_key(v)] = {v.policy, v.allowed ? 1U : 0U, 0};
    for (const auto& r : world.refusals) refusals[{r.client, r.service}] = r.policy;
    for (const auto& f : world.flows)
      clients[{kernel_destination(f.from), kernel_destination(f.to)}] = f.client;
    if (!blocks.empty()) config |= UM_CONFIG_HAS_BLOCKS;
    random = world.random;
    now = 200'000'000'000'000U;
    heartbeat =
        world.heartbeat_age_ns == -1 ? 0 : now - static_cast<std::uint64_t>(world.heartbeat_age_ns);
    for (const auto& a : world.affinities)
      affinities[{a.client, a.service, static_cast<std::uint8_t>(a.v4 ? 1 : 0), UM_TCP, 0}] = {
          now - static_cast<std::uint64_t>(a.age_ns), kernel_destination(a.backend), 0};
  }
  std::uint32_t add_slot(const um_service& word) {
    slots[next_slot] = word;
    return next_slot++;
  }
  um_service choose(const World::Service& service, const std::vector<World::Column>& columns) {
    um_service word{service.id, static_cast<std::uint8_t>(service.kind), 0, 0};
    if (service.kind != UM_SERVICE_BALANCE) return word;
    word.number = next_choice++;
    for (const World::Column& column : columns) {
      const um_backend backend{kernel_backend(column.first),
                               kernel_backend(column.second),
                               column.threshold,
                               service.id,
                               service.affinity_seconds,
                               0};
      backends[{word.number, word.columns++}] = backend;
      if (service.affinity_seconds != 0)
        members[{word.number, backend.first}] = members[{word.number, backend.second}] = 1;
    }
    word.columns = static_cast<std::uint16_t>(word.columns + service.missing);
    return word;
  }
  std::map<um_workload_key, um_workload, Bytewise> workloads;
  std::set<um_own_key, Bytewise> own;
  std::map<um_destination, std::uint32_t, Bytewise> services;
  std::map<um_client_service, std::uint32_t, Bytewise> client_services;
  std::map<std::uint32_t, um_service> slots;
  std::map<um_backend_key, um_backend, Bytewise> backends;
  std::map<um_member, std::uint32_t, Bytewise> members;
  std::map<um_affinity_key, um_affinity, Bytewise> affinities;
  std::uint32_t next_slot = 3, next_choice = 50;
  um_service_range service_range{};
  std::map<um_peer_key, um_peer, Bytewise> peers;
  std::map<um_block_key, std::uint32_t, Bytewise> blocks;
  std::map<um_set_key, std::map<um_verdict_key, um_verdict, Bytewise>, Bytewise> sets;
  std::map<um_refusal_key, std::uint32_t, Bytewise> refusals;
  std::map<um_flow_key, __u64, Bytewise> clients;
  std::uint32_t config = 0, random = 0;
  std::uint64_t heartbeat = 0, now = 0;
  int made = 0, of_config = 0;  // how many lookups a decision took
};
inline Lookups lookups;

template <class Map, class Key>
auto* find(const Map& map, const Key& key) {
  ++lookups.made;
  auto found = map.find(key);
  return found == map.end() ? nullptr : &found->second;
}
template <class Map, class Key>
auto* find_prefix(const Map& map, const Key& key) {
  ++lookups.made;
  return longest_prefix(map, key);
}

}  // namespace mesh::test

inline const um_workload* um_find_workload(__u64 cookie, __u32 generation) {
  return mesh::test::find(mesh::test::lookups.workloads, um_workload_key{cookie, generation, 0});
}
inline int um_is_own_address(__u32 workload, const um_address* address) {
  ++mesh::test::lookups.made;
  return mesh::test::lookups.own.contains({workload, *address});
}
inline int um_read_slot(const std::uint32_t* slot, um_service* out) {
  if (slot == nullptr) return 0;
  *out = mesh::test::lookups.slots.at(*slot);
  return 1;
}
inline int um_find_service(const um_destination* to, um_service* out) {
  return um_read_slot(mesh::test::find(mesh::test::lookups.services, *to), out);
}
inline int um_find_client_service(const um_client_service* key, um_service* out) {
  return um_read_slot(mesh::test::find(mesh::test::lookups.client_services, *key), out);
}
inline const um_service_range* um_find_service_range() {
  ++mesh::test::lookups.made;
  return &mesh::test::lookups.service_range;
}
inline const um_backend* um_find_backend(__u32 choice, __u32 index) {
  return mesh::test::find(mesh::test::lookups.backends, um_backend_key{choice, index});
}
inline int um_is_member(__u32 choice, const um_destination* backend) {
  return mesh::test::lookups.members.contains(um_member{choice, *backend});
}
inline const um_affinity* um_find_affinity(const um_affinity_key* key) {
  return mesh::test::find(mesh::test::lookups.affinities, *key);
}
inline const um_peer* um_find_peer(const um_address* address, __u32 generation) {
  return mesh::test::find(mesh::test::lookups.peers, um_peer_key{generation, *address});
}
inline __u32 um_find_block(const um_address* address, __u32 generation) {
  const auto* found = mesh::test::find_prefix(
      mesh::test::lookups.blocks, um_block_key{UM_BLOCK_BITS + 128, generation, *address});
  return found == nullptr ? 0 : *found;
}
inline const um_verdict* um_find_verdict(__u32 set, const um_verdict_key* key, __u32 generation) {
  const auto* verdicts = mesh::test::find(mesh::test::lookups.sets, um_set_key{set, generation});
  return verdicts == nullptr ? nullptr : mesh::test::find_prefix(*verdicts, *key);
}
inline const __u32* um_find_refusal(__u32 client, __u32 service) {
  return mesh::test::find(mesh::test::lookups.refusals, um_refusal_key{client, service});
}
inline const __u64* um_find_client(const um_destination* from, const um_destination* to) {
  return mesh::test::find(mesh::test::lookups.clients, um_flow_key{*from, *to});
}
inline __u32 um_config_flags() {
  ++mesh::test::lookups.of_config;
  return mesh::test::lookups.config;
}
inline __u64 um_heartbeat() { return mesh::test::lookups.heartbeat; }
inline __u64 um_now() { return mesh::test::lookups.now; }
inline __u32 um_random() { return mesh::test::lookups.random; }

#include "bpf/decide.h"

namespace mesh::test {

enum class Asked : std::uint8_t { kWorkload, kMesh, kArrival };

struct DecideCase {
  std::string name;
  std::string to;
  um_action action;
  std::uint32_t counter;
  Asked asked = Asked::kWorkload;
  std::string from = "";  // of an arrival
  bool v4_only = false;
  std::uint64_t cookie = 4100;
  World world = {};
  std::uint32_t policy = 0;  // expected of the last ruling; 0: no policy ruled
  std::string backend = "";  // expected, for UM_BALANCE
};

// Workload 7 is of class 70 when it dials IPv4, of 76 when it dials IPv6.
inline World enrolled() {
  World world;
  world.workloads[4100] = {7, 0, 70, 76, 0, 0};
  world.own = {{7, "10.0.0.7"}, {7, "fd00::7"}, {8, "10.0.0.8"}};
  return world;
}
// What is at 10.0.0.9 and fd00::9 has set 3, the workload's own address too.
inline World policed(std::vector<World::Verdict> verdicts) {
  World world = enrolled();
  world.peers = {
      {"10.0.0.9", {90, 3}}, {"fd00::9", {96, 3}}, {"10.0.0.10", {100, 0}}, {"10.0.0.7", {70, 3}}};
  world.verdicts = std::move(verdicts);
  return world;
}
inline World with_service(const World::Service& service, std::int64_t age,
                          std::vector<World::Verdict> verdicts = {}, std::uint32_t flags = 0) {
  World world = enrolled();
  world.workloads[4100].flags = flags;
  world.services["10.78.0.1:80"] = service;
  world.services["[fd78::1]:80"] = service;
  world.peers = {{"10.0.0.9", {90, 3}}};
  world.verdicts = std::move(verdicts);
  world.heartbeat_age_ns = age;
  return world;
}
// A proxied service, and where the client goes while the proxy is away.
inline World bypassing(std::int64_t age, std::uint32_t client, const std::string& endpoint,
                       std::vector<World::Verdict> verdicts = {}) {
  World::Service service{1, UM_SERVICE_PROXY, {}};
  service.of_clients[client].emplace_back(endpoint.c_str());
  return with_service(service, age, std::move(verdicts), UM_WORKLOAD_BYPASS);
}
inline World refusing(std::int64_t age, std::uint32_t policy) {
  World world = with_service({1, UM_SERVICE_PROXY, {}}, age);
  world.refusals = {{7, 1, policy}};
  return world;
}
// The workload's own egress set is 4, its ingress set 5.
inline World with_own_sets(std::vector<World::Verdict> verdicts,
                           std::map<std::string, std::uint32_t> blocks = {}) {
  World world = policed(std::move(verdicts));
  world.workloads[4100].egress = 4;
  world.workloads[4100].ingress = 5;
  world.blocks = std::move(blocks);
  return world;
}

inline std::vector<DecideCase> decide_cases() {
  const World::Service proxy{1, UM_SERVICE_PROXY, {}};
  const World::Service nobody{2, UM_SERVICE_BALANCE, {}};
  const World::Service one{2, UM_SERVICE_BALANCE, {"10.0.0.9:8080"}};
  const World::Service lacking{2, UM_SERVICE_BALANCE, {}, 1};
  const World::Service ipv6{2, UM_SERVICE_BALANCE, {"[fd00::9]:8080"}};
  constexpr std::int64_t kSecond = 1'000'000'000;
  World second_backend = with_service({2, UM_SERVICE_BALANCE, {"10.0.0.9:1", "10.0.0.11:1"}}, -1,
                                      {{3, 70, 0, 5, false}});
  second_backend.random = 0x80000000;
  const auto in_one_column = [&](const char* first, const char* second, std::uint32_t threshold,
                                 std::uint32_t random) {
    World world = with_service({2, UM_SERVICE_BALANCE, {{first, second, threshold}}}, -1);
    world.random = random;
    return world;
  };
  const std::vector<World::Column> a_and_b = {"10.0.0.11:1", "10.0.0.12:1"};
  const auto sticky = [&](const char* backend, std::int64_t age, std::uint32_t client = 7,
                          std::uint32_t of = 2, bool v4 = true) {
    World world = with_service({2, UM_SERVICE_BALANCE, a_and_b, 0, 4}, -1);
    world.affinities = {{client, of, backend, age, v4}};
    return world;
  };
  const auto by_client = [&](std::uint32_t client, std::vector<World::Column> columns) {
    return with_service({2, UM_SERVICE_BY_CLIENT, {}, 0, 0, {{client, std::move(columns)}}}, -1);
  };
  World ranged = with_service(proxy, 0, {{3, 70, 0, 21, true}});
  ranged.has_service_range = true;
  ranged.peers["10.78.9.9"] = {99, 3};
  ranged.own.emplace_back(7, "10.78.0.7");
  World itself =
      with_service({2, UM_SERVICE_BALANCE, {"10.0.0.7:8080"}}, -1, {{3, 70, 0, 5, false}});
  itself.peers["10.0.0.7"] = {70, 3};
  World full = enrolled();
  full.config = UM_CONFIG_STATE_INCOMPLETE;
  const World::Verdict allow{3, 70, 0, 21, true}, deny{3, 70, 0, 22, false};
  const World::Verdict allow_80{3, 70, 80, 23, true}, deny_80{3, 70, 80, 24, false};
  const World::Verdict other{3, 80, 0, 25, true};
  const World::Verdict deny_all{3, 0, 0, 28, false}, allow6{3, 76, 0, 29, true};
  const World::Verdict deny_64_to_127{3, 70, 64, 30, false, UM_TCP, 10};
  const World::Verdict udp{3, 70, 0, 31, true, UM_UDP}, any_protocol{3, 70, 0, 32, true, 0};
  const World::Verdict out_to_90{4, 90, 0, 41, true}, not_out{4, 0, 0, 42, false};
  const World::Verdict out_to_block{4, 200, 443, 43, true};
  const World::Verdict in_from_90{5, 90, 8080, 51, true}, not_in{5, 0, 0, 52, false};
  const World::Verdict in_from_block{5, 200, 0, 53, true}, nor_in_from_inner{5, 201, 0, 54, false};
  const std::map<std::string, std::uint32_t> blocks = {{"192.0.2.0/24", 200},
                                                       {"192.0.2.128/25", 201}};
  const auto own_sets = [&](std::vector<World::Verdict> more) {
    more.insert(more.end(), {allow, out_to_90, not_out, out_to_block});
    more.insert(more.end(), {in_from_90, not_in, in_from_block, nor_in_from_inner});
    return with_own_sets(more, blocks);
  };
  const World sets = own_sets({});
  World full_at_server = sets;
  full_at_server.config = UM_CONFIG_STATE_INCOMPLETE;
  World recorded = sets;
  recorded.workloads[4190] = {9, UM_WORKLOAD_RECORDED, 90, 96, 0, 0};
  recorded.flows = {{"10.0.0.1:40000", "10.0.0.7:8080", 4190},
                    {"10.0.0.1:40002", "10.0.0.7:8080", 4191}};

  return {
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
       .world = policed({deny})},
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
       .world = policed({})},
      {.name = "PeerWithoutPolicy",
       .to = "10.0.0.10:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({})},
      {.name = "UnknownDestinationWithFullMaps",
       .to = "192.0.2.1:443",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = full},
      {.name = "SetWithoutVerdict",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = policed({})},
      {.name = "VerdictOfAnotherClass",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = policed({other})},
      {.name = "AnyPortAllowed",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({allow}),
       .policy = 21},
      {.name = "AnyPortDenied",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = policed({deny}),
       .policy = 22},
      {.name = "OnePortAllowedAmongDenied",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({deny, allow_80}),
       .policy = 23},
      {.name = "OnePortDeniedAmongAllowed",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = policed({allow, deny_80}),
       .policy = 24},
      {.name = "AnotherPortThanTheDeniedOne",
       .to = "10.0.0.9:81",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({allow, deny_80}),
       .policy = 21},
      {.name = "AnotherPortWithoutVerdict",
       .to = "10.0.0.9:81",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = policed({allow_80})},

      {.name = "TheClassOfAllOthers",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = policed({deny_all, other}),
       .policy = 28},
      {.name = "ItsOwnClassBeforeThatOfAllOthers",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({deny_all, allow}),
       .policy = 21},
      {.name = "ItsClassOfTheOtherFamily",
       .to = "[fd00::9]:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({deny, deny_all, allow6}),
       .policy = 29},
      {.name = "ARangeOfPorts",
       .to = "10.0.0.9:127",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = policed({allow, deny_64_to_127}),
       .policy = 30},
      {.name = "BeyondARangeOfPorts",
       .to = "10.0.0.9:128",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({allow, deny_64_to_127}),
       .policy = 21},
      {.name = "OnePortWithinARange",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({allow_80, deny_64_to_127}),
       .policy = 23},
      {.name = "AVerdictForUdpAlone",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_NO_VERDICT,
       .world = policed({udp})},
      {.name = "AVerdictForAllProtocols",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = policed({udp, any_protocol}),
       .policy = 32},
      {.name = "LinkLocal6",
       .to = "[fe80::9]:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_LINK_LOCAL,
       .world = enrolled()},
      {.name = "LinkLocal4",
       .to = "169.254.169.254:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = enrolled()},
      {.name = "OutAndIn",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = sets,
       .policy = 21},
      {.name = "OutButNotIn",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = own_sets({deny_80}),
       .policy = 24},
      {.name = "NotOut",
       .to = "10.0.0.10:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = sets,
       .policy = 42},
      {.name = "OutToABlock",
       .to = "192.0.2.1:443",
       .action = UM_PASS,
       .counter = UM_CONNECTS_DIRECT,
       .world = sets,
       .policy = 43},
      {.name = "NotOutToAnotherPortOfTheBlock",
       .to = "192.0.2.1:444",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = sets,
       .policy = 42},
      {.name = "NotOutToTheBlockWithin",
       .to = "192.0.2.129:443",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = sets,
       .policy = 42},
      {.name = "MeshNotOut",
       .to = "10.0.0.10:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_POLICY,
       .asked = Asked::kMesh,
       .world = sets,
       .policy = 42},
      {.name = "ItselfThroughAService",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = itself,
       .backend = "10.0.0.7:8080"},

      {.name = "ArrivalInAnUnknownNamespace",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_UNKNOWN_WORKLOAD,
       .asked = Asked::kArrival,
       .from = "10.0.0.9:40000",
       .cookie = 1,
       .world = sets},
      {.name = "ArrivalWithoutPolicy",
       .to = "10.0.0.7:8080",
       .action = UM_PASS,
       .counter = UM_NO_COUNTER,
       .asked = Asked::kArrival,
       .from = "10.0.0.9:40000",
       .world = policed({})},
      {.name = "ArrivalAllowed",
       .to = "10.0.0.7:8080",
       .action = UM_PASS,
       .counter = UM_ARRIVALS_ALLOWED,
       .asked = Asked::kArrival,
       .from = "10.0.0.9:40000",
       .world = sets,
       .policy = 51},
      {.name = "ArrivalAtAnotherPort",
       .to = "10.0.0.7:8081",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_POLICY,
       .asked = Asked::kArrival,
       .from = "10.0.0.9:40000",
       .world = sets,
       .policy = 52},
      {.name = "ArrivalWithoutVerdict",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_NO_VERDICT,
       .asked = Asked::kArrival,
       .from = "10.0.0.9:40000",
       .world = with_own_sets({})},
      {.name = "ArrivalOfAnotherPeer",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_POLICY,
       .asked = Asked::kArrival,
       .from = "10.0.0.10:40000",
       .world = sets,
       .policy = 52},
      {.name = "ArrivalOfAStranger",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_POLICY,
       .asked = Asked::kArrival,
       .from = "198.51.100.1:40000",
       .world = sets,
       .policy = 52},
      {.name = "ArrivalOfAStrangerWithFullMaps",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_MAP_FULL,
       .asked = Asked::kArrival,
       .from = "192.0.2.1:40000",
       .world = full_at_server},
      {.name = "ArrivalOfAKnownPeerWithFullMaps",
       .to = "10.0.0.7:8080",
       .action = UM_PASS,
       .counter = UM_ARRIVALS_ALLOWED,
       .asked = Asked::kArrival,
       .from = "10.0.0.9:40000",
       .world = full_at_server,
       .policy = 51},
      {.name = "ArrivalOfABlock",
       .to = "10.0.0.7:8080",
       .action = UM_PASS,
       .counter = UM_ARRIVALS_ALLOWED,
       .asked = Asked::kArrival,
       .from = "192.0.2.1:40000",
       .world = sets,
       .policy = 53},
      {.name = "ArrivalOfABlockWithinABlock",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_POLICY,
       .asked = Asked::kArrival,
       .from = "192.0.2.200:40000",
       .world = sets,
       .policy = 54},
      {.name = "ArrivalThatIsRecorded",
       .to = "10.0.0.7:8080",
       .action = UM_PASS,
       .counter = UM_ARRIVALS_ALLOWED,
       .asked = Asked::kArrival,
       .from = "10.0.0.1:40000",
       .world = recorded,
       .policy = 51},
      {.name = "ArrivalFromTheSameAddressThatIsNot",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_POLICY,
       .asked = Asked::kArrival,
       .from = "10.0.0.1:40001",
       .world = recorded,
       .policy = 52},
      {.name = "ArrivalOfAClientThatHasJustEnded",
       .to = "10.0.0.7:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_DENIED_UNKNOWN_WORKLOAD,
       .asked = Asked::kArrival,
       .from = "10.0.0.1:40002",
       .world = recorded},
      {.name = "ArrivalFromItself",
       .to = "10.0.0.7:8080",
       .action = UM_PASS,
       .counter = UM_NO_COUNTER,
       .asked = Asked::kArrival,
       .from = "10.0.0.7:40000",
       .world = sets},
      {.name = "ArrivalFromLoopback",
       .to = "127.0.0.1:8080",
       .action = UM_PASS,
       .counter = UM_NO_COUNTER,
       .asked = Asked::kArrival,
       .from = "127.0.0.1:40000",
       .world = sets},
      {.name = "ArrivalFromLinkLocal6",
       .to = "[fd00::7]:8080",
       .action = UM_REFUSE,
       .counter = UM_ARRIVALS_REFUSED_LINK_LOCAL,
       .asked = Asked::kArrival,
       .from = "[fe80::9]:40000",
       .world = sets},

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
      {.name = "ProxiedAndRefused",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = refusing(0, 26),
       .policy = 26},
      {.name = "RefusedThoughTheProxyIsAway",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = refusing(-1, 26),
       .policy = 26},
      {.name = "RefusalsThatDidNotFit",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = with_service(proxy, 0, {}, UM_WORKLOAD_REFUSALS_INCOMPLETE)},
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
      {.name = "BypassesNoProxyThatIsThere",
       .to = "10.78.0.1:80",
       .action = UM_REDIRECT,
       .counter = UM_CONNECTS_REDIRECTED,
       .world = bypassing(kSecond, 7, "10.0.0.11:1")},
      {.name = "BypassesAProxyThatIsAway",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BYPASSED,
       .world = bypassing(3 * kSecond, 7, "10.0.0.11:1"),
       .backend = "10.0.0.11:1"},
      {.name = "BypassesAProxyToWhereItMayGoAlone",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_POLICY,
       .world = bypassing(3 * kSecond, 7, "10.0.0.9:80", {deny}),
       .policy = 22},
      {.name = "BypassesAProxyByItsOwnEndpointsAlone",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = bypassing(3 * kSecond, 8, "10.0.0.11:1")},
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
       .asked = Asked::kMesh,
       .world = ranged},
      {.name = "TheProxyAtAnOwnAddressInTheRange",
       .to = "10.78.0.7:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .asked = Asked::kMesh,
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
      {.name = "AColumnThatIsNotThere",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .world = with_service(lacking, 0, {allow})},
      {.name = "UpToTheThreshold",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = in_one_column("10.0.0.11:1", "10.0.0.12:1", 0x7fffffff, 0x7fffffff),
       .backend = "10.0.0.11:1"},
      {.name = "AboveTheThreshold",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = in_one_column("10.0.0.11:1", "10.0.0.12:1", 0x7fffffff, 0x80000000),
       .backend = "10.0.0.12:1"},
      {.name = "AShareOfNobody",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_DESTINATION,
       .world = in_one_column("10.0.0.11:1", "", 5, 6)},
      {.name = "AServiceThatDidNotFit",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = with_service({2, UM_SERVICE_REFUSED, {}}, 0)},
      {.name = "ItsOwnStateOfAService",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = by_client(7, {"10.0.0.11:1"}),
       .backend = "10.0.0.11:1"},
      {.name = "OnlyAnothersStateOfAService",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_DENIED_MAP_FULL,
       .world = by_client(8, {"10.0.0.11:1"})},
      {.name = "ItsOwnStateOfAServiceIsNobody",
       .to = "10.78.0.1:80",
       .action = UM_REFUSE,
       .counter = UM_CONNECTS_REFUSED_NO_ENDPOINT,
       .world = by_client(7, {})},
      {.name = "StaysWithItsBackend",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.12:1", kSecond / 2),
       .backend = "10.0.0.12:1"},
      {.name = "LeavesItsBackendWhenTheTimeIsOver",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.12:1", 4 * kSecond + 1),
       .backend = "10.0.0.11:1"},
      {.name = "StaysWithABackendUsedSinceTheClockWasRead",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.12:1", -1),
       .backend = "10.0.0.12:1"},
      {.name = "LeavesABackendThatIsNoMore",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.13:1", 0),
       .backend = "10.0.0.11:1"},
      {.name = "TheBackendOfAnotherClient",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.12:1", 0, 8),
       .backend = "10.0.0.11:1"},
      {.name = "TheBackendOfAnotherService",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.12:1", 0, 7, 3),
       .backend = "10.0.0.11:1"},
      {.name = "TheBackendOfTheOtherFamily",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = sticky("10.0.0.12:1", 0, 7, 2, false),
       .backend = "10.0.0.11:1"},
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

      {.name = "MeshInAnUnknownNamespace",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_UNKNOWN_WORKLOAD,
       .asked = Asked::kMesh,
       .cookie = 1,
       .world = enrolled()},
      {.name = "MeshToAService",
       .to = "10.78.0.1:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .asked = Asked::kMesh,
       .world = with_service(proxy, 0)},
      {.name = "MeshToTheWorkloadsOwnAddressWithAPolicy",
       .to = "10.0.0.7:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .asked = Asked::kMesh,
       .world = policed({deny})},
      {.name = "MeshAllowed",
       .to = "10.0.0.9:80",
       .action = UM_PASS,
       .counter = UM_MESH_CONNECTS_ALLOWED,
       .asked = Asked::kMesh,
       .world = policed({allow}),
       .policy = 21},
      {.name = "MeshDenied",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_POLICY,
       .asked = Asked::kMesh,
       .world = policed({deny}),
       .policy = 22},
      {.name = "MeshWithoutVerdict",
       .to = "10.0.0.9:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_NO_VERDICT,
       .asked = Asked::kMesh,
       .world = policed({})},
      {.name = "MeshWithFullMaps",
       .to = "192.0.2.1:80",
       .action = UM_REFUSE,
       .counter = UM_MESH_CONNECTS_DENIED_MAP_FULL,
       .asked = Asked::kMesh,
       .world = full},
      {.name = "TheSecondBackend",
       .to = "10.78.0.1:80",
       .action = UM_BALANCE,
       .counter = UM_CONNECTS_BALANCED,
       .world = second_backend,
       .backend = "10.0.0.11:1"},
  };
}

// The table in either generation.
inline std::vector<DecideCase> all_decide_cases() {
  std::vector<DecideCase> cases = decide_cases();
  for (DecideCase other : decide_cases()) {
    other.name += "InTheOtherGeneration";
    other.world.config |= UM_CONFIG_GENERATION;
    cases.push_back(std::move(other));
  }
  return cases;
}

}  // namespace mesh::test
