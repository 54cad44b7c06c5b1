// bpf/decide.h on the host: a World says what the maps hold, Lookups has it in the kernel's shapes,
// and the functions that decide.h asks for look it up in memory.
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
