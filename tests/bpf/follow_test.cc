// What is written of one state after the other, with maps that are often full, writers that are
// often killed and strangers who take rows, against what the kernel holds then.
#include <bpf/bpf.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/random.h"
#include "datapath/byte_order.h"
#include "datapath/map.h"
#include "datapath/policy_maps.h"
#include "datapath/services.h"
#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

using datapath::Columns;
using datapath::PolicyMaps;
using datapath::PolicySets;
using datapath::Services;

class FollowTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  }
  static datapath::Object small_maps(const char* name) {
    datapath::Options options;
    options.pin_dir = bpffs() + "/" + name;
    options.max_services = 12;
    options.max_endpoints = 24;
    options.max_sets = 6;
    options.max_workloads = 6;
    return must(datapath::Object::open(options));
  }
};

// As the kernel has it, whatever a mirror says.
template <class Key, class Value>
std::map<Key, Value, datapath::ByteOrder> held_by(int fd) {
  std::map<Key, Value, datapath::ByteOrder> held;
  Key key{}, next{};
  Value value{};
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &key) {
    key = next;
    if (::bpf_map_lookup_elem(fd, &key, &value) == 0) held[key] = value;
  }
  return held;
}

// How many values are compared to find where two maps differ.
template <class Entries>
std::size_t looks(const Entries& now, const Entries& wanted) {
  std::size_t looks = 0;
  const auto same = [&](const auto&, const auto&) {
    ++looks;
    return true;
  };
  each_difference(now, wanted, same, [](const auto*, const auto*) { return true; });
  return looks;
}
constexpr std::uint32_t kMany = 640;      // entries, of many blocks (base/shared_map.h)
constexpr std::size_t kSomeOfMany = 128;  // two blocks

class SeededWorld {
 public:
  explicit SeededWorld(std::uint64_t seed) : random_(seed) {}
  std::uint32_t pick(std::uint32_t n) { return random_.below(n); }
  // Nothing of none.
  template <class Entries>
  auto key_of(const Entries& entries) {
    using Key = std::remove_const_t<decltype(entries.begin()->first)>;
    if (entries.empty()) return std::optional<Key>();
    return std::optional(
        std::next(entries.begin(), pick(static_cast<std::uint32_t>(entries.size())))->first);
  }
  // As a stranger does it; whether there was a row.
  template <class Key, class Value>
  bool take_row(int fd) {
    const auto key = key_of(held_by<Key, Value>(fd));
    return key && ::bpf_map_delete_elem(fd, &*key) == 0;
  }

 private:
  Random random_;
};

// --- one map

using Plain = datapath::Map<std::uint32_t, std::uint32_t>;

// So small a share at a time that it takes many to see all.
std::size_t restore_all(Plain& map) {
  std::size_t restored = 0;
  for (std::size_t seen = 0; seen < map.entries().size(); seen += 7)
    restored += must(map.restore_some(7));
  return restored;
}

TEST_F(FollowTest, AMapHoldsWhatIsWantedAndNothingOfWhatDidNotFit) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_NO_PREALLOC);
  const UniqueFd fd(::bpf_map_create(BPF_MAP_TYPE_HASH, "follow", 4, 4, 90, &options));
  ASSERT_TRUE(fd);
  SeededWorld world(1);
  Plain::Entries wanted;
  std::optional<Plain> map(std::in_place, fd.get(), "follow");
  std::size_t misfits = 0;
  for (int step = 0; step < 5000; ++step) {
    SCOPED_TRACE(step);
    // 150 keys and room for 90: some blocks of the map are as they were, some are not.
    for (std::uint32_t changes = world.pick(4); changes != 0; --changes) {
      const std::uint32_t key = world.pick(150);
      if (world.pick(3) == 0)
        wanted.erase(key);
      else
        wanted.insert_or_assign(key, world.pick(3));
    }
    if (world.pick(50) == 0) erase_if(wanted, [&](const auto&) { return world.pick(2) == 0; });
    if (world.pick(20) == 0) {  // it is another's now
      map.emplace(fd.get(), "follow");
      ASSERT_TRUE(map->read());
    }
    if (world.pick(20) == 0) {
      const bool is_lost = world.take_row<std::uint32_t, std::uint32_t>(fd.get());
      const std::uint32_t mine = 0, others = 7;
      const bool is_other = map->entries().contains(mine) &&
                            ::bpf_map_update_elem(fd.get(), &mine, &others, BPF_EXIST) == 0;
      ASSERT_EQ(restore_all(*map), (is_lost ? 1U : 0U) + (is_other ? 1U : 0U));
    }
    // As policy is written, and as all else is.
    const bool makes_room = world.pick(2) == 0;
    if (makes_room) {
      ASSERT_TRUE(map->keep_only(wanted));
    }
    const auto failed = map->put(wanted);
    const bool is_cut_short = world.pick(10) == 0;
    if (!makes_room && !is_cut_short) {
      ASSERT_TRUE(map->keep_only(wanted));
    }
    const auto held = (held_by<std::uint32_t, std::uint32_t>(fd.get()));
    for (const auto& [key, value] : wanted)
      if (failed.contains(key))
        ASSERT_FALSE(held.contains(key));
      else
        ASSERT_EQ(held.at(key), value);
    if (!is_cut_short) {
      ASSERT_EQ(held.size() + failed.size(), wanted.size());
    }
    ASSERT_EQ(held.size(), map->entries().size());
    for (const auto& [key, value] : map->entries()) ASSERT_EQ(held.at(key), value);
    misfits += failed.size();
  }
  EXPECT_GT(misfits, 500U);
}

TEST_F(FollowTest, AMapIsComparedOnlyWhereSomethingChanged) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_NO_PREALLOC);
  const UniqueFd fd(::bpf_map_create(BPF_MAP_TYPE_HASH, "follow", 4, 4, kMany, &options));
  ASSERT_TRUE(fd);
  Plain map(fd.get(), "follow");
  Plain::Entries wanted;
  for (std::uint32_t i = 0; i < kMany; ++i) wanted.emplace(i, i);
  EXPECT_TRUE(map.put(wanted).empty());
  for (const std::uint32_t key : {0U, kMany / 2, kMany - 1}) {
    wanted.insert_or_assign(key, kMany);
    EXPECT_LE(looks(map.entries(), wanted), kSomeOfMany);
    EXPECT_TRUE(map.put(wanted).empty());
  }
  const std::uint64_t before = map.writes();
  wanted.erase(kMany / 4);
  EXPECT_TRUE(map.put(wanted).empty());
  must(map.keep_only(wanted));
  EXPECT_EQ(map.writes(), before + 1);
  EXPECT_LE(looks(map.entries(), wanted), kSomeOfMany);
}

// --- services

class ServicesOfAWorld : public SeededWorld {
 public:
  using SeededWorld::SeededWorld;
  Services::Entries wanted;

  void change() {
    const um_destination at = datapath::kernel_destination(
        {IpAddress::v4(10, 96, 0, static_cast<std::uint8_t>(pick(20))), 80},
        pick(4) == 0 ? UM_UDP : UM_TCP);
    if (pick(4) == 0)
      wanted.erase(at);
    else
      wanted.insert_or_assign(at, entry());
  }

 private:
  Columns columns() {
    Columns columns(1 + pick(3));
    for (datapath::Column& column : columns)
      column.first = column.second =
          SocketAddress{IpAddress::v4(10, 128, 0, static_cast<std::uint8_t>(pick(4))), 8080};
    return columns;
  }
  ServiceEntry entry() {
    ServiceEntry entry{1 + pick(3), ServiceEntry::Kind::kBalance, {}};
    const bool is_proxied = pick(3) == 0;
    if (is_proxied) entry.kind = ServiceEntry::Kind::kProxy;
    if (pick(2) == 0) {
      entry.of_clients.emplace();
      for (std::uint32_t client = 1; client <= 4; ++client)
        if (pick(2) == 0) entry.of_clients->emplace(client, columns());
      // What has no column knows no affinity, and who has no row no service.
      if (is_proxied && entry.of_clients->empty()) entry.of_clients.reset();
    } else if (!is_proxied && pick(6) != 0) {
      entry.columns = columns();
    }
    const bool has_columns =
        !entry.columns.empty() || (entry.of_clients && !entry.of_clients->empty());
    if (has_columns && pick(4) == 0) entry.affinity = std::chrono::seconds(60);
    if (entry.of_clients && entry.kind == ServiceEntry::Kind::kBalance) entry.id = 1;
    return entry;
  }
};

// As a stranger would find it: `reader` is of the same maps, and has read them just now.
void expect_held(const Services& reader, const Services::Entries& wanted,
                 const Services::Failures& failed) {
  for (const auto& [key, entry] : wanted) {
    const auto held = reader.entries().find(key);
    if (failed.contains(key))
      ASSERT_TRUE(held == reader.entries().end()) << "it is refused, or not there";
    else
      ASSERT_TRUE(held != reader.entries().end() && held->second == entry);
  }
  ASSERT_EQ(reader.entries().size() + failed.size(), wanted.size());
}

// Rows that no reader makes anything of are rows too. `lost`: what could not even be refused.
void expect_rows(const datapath::Object& object, const Services::Entries& wanted,
                 const Services::Failures& failed, const Services::Failures& lost) {
  const auto services = held_by<um_destination, std::uint32_t>(object.map("um_services"));
  ASSERT_EQ(services.size() + lost.size(), wanted.size());
  for (const auto& [key, slot] : services) ASSERT_TRUE(wanted.contains(key));
  const auto clients = held_by<um_client_service, std::uint32_t>(object.map("um_client_services"));
  std::size_t whole = 0;
  for (const auto& [key, entry] : wanted)
    if (entry.of_clients && !failed.contains(key)) whole += entry.of_clients->size();
  for (const auto& [key, slot] : clients) {
    const auto service = wanted.find(key.service);
    ASSERT_TRUE(service != wanted.end() && service->second.of_clients &&
                service->second.of_clients->contains(key.client))
        << "it is nobody's";
    if (!failed.contains(key.service)) --whole;
  }
  ASSERT_EQ(whole, 0U);
}

// Any row of any map, or what a service's slot says; whether something is another now.
bool rob(const datapath::Object& object, ServicesOfAWorld& world) {
  switch (world.pick(5)) {
    case 0:
      return world.take_row<um_destination, std::uint32_t>(object.map("um_services"));
    case 1:
      return world.take_row<um_client_service, std::uint32_t>(object.map("um_client_services"));
    case 2:
      return world.take_row<um_backend_key, um_backend>(object.map("um_backends"));
    case 3:
      return world.take_row<um_member, std::uint32_t>(object.map("um_members"));
    default: {
      const auto services = held_by<um_destination, std::uint32_t>(object.map("um_services"));
      const auto key = world.key_of(services);
      const um_service other{99, UM_SERVICE_PROXY, 0, 0};
      return key && ::bpf_map_update_elem(object.map("um_slots"), &services.at(*key), &other,
                                          BPF_EXIST) == 0;
    }
  }
}

Result<std::size_t> restore_all(Services& services) {
  std::size_t restored = 0;
  for (std::size_t i = 0; i < services.entries().size(); ++i) {
    MESH_TRY(const std::size_t one, services.restore_some(1));
    restored += one;
  }
  return restored;
}

TEST_F(FollowTest, ServicesAreWhatIsWantedHoweverOftenThereIsNoRoom) {
  const auto object = small_maps("services");
  std::size_t misfits = 0, whole = 0, robbed = 0;
  ServicesOfAWorld world(1);
  std::optional<Services> services;
  bool is_next = true, was_whole = true;  // another one writes; all there was had room
  for (int step = 0; step < times(3000); ++step) {
    SCOPED_TRACE(step);
    const auto before = world.wanted;
    for (std::uint32_t i = world.pick(3); i != 0; --i) world.change();
    if (world.pick(40) == 0)
      erase_if(world.wanted, [&](const auto&) { return world.pick(2) == 0; });
    if (is_next || world.pick(25) == 0) {
      services.emplace(object);
      must(services->read());
    }
    // Of what did not fit nothing is restored.
    bool is_robbed = was_whole && world.pick(4) == 0 && rob(object, world);
    if (is_robbed && world.pick(2) == 0) {
      is_robbed = false;
      ASSERT_GE(must(restore_all(*services)), 1U);
    }
    if (world.pick(10) == 0) {  // cut short, and then something else is wanted
      services->put(world.wanted);
      if (world.pick(2) == 0) world.wanted = before;
    }
    auto failed = services->put(world.wanted);
    must(services->keep_only(world.wanted));
    services->sweep();
    if (!failed.empty()) failed = services->put(world.wanted);
    const auto lost = services->refuse(failed, world.wanted);
    services->sweep();
    // What is new may have the room of what was taken: the next one finds that.
    is_next = is_robbed && (!failed.empty() || !restore_all(*services));
    was_whole = failed.empty() && !is_next;
    robbed += is_robbed && !is_next ? 1 : 0;
    if (is_next) continue;
    Services reader(object);
    const std::uint64_t written = reader.writes();
    must(reader.read());
    ASSERT_NO_FATAL_FAILURE(expect_held(reader, world.wanted, failed));
    ASSERT_NO_FATAL_FAILURE(expect_rows(object, world.wanted, failed, lost));
    ASSERT_EQ(reader.writes(), written) << "something was left that is nobody's";
    misfits += failed.size();
    whole += was_whole ? 1 : 0;
  }
  EXPECT_GT(misfits, static_cast<std::size_t>(times(300)));
  EXPECT_GT(whole, static_cast<std::size_t>(times(300)));
  EXPECT_GT(robbed, static_cast<std::size_t>(times(50)));
}

TEST_F(FollowTest, ServicesAreComparedOnlyWhereSomethingChanged) {
  datapath::Options options;
  options.pin_dir = bpffs() + "/many_services";
  options.max_services = options.max_endpoints = kMany;
  const auto object = must(datapath::Object::open(options));
  Services services(object);
  must(services.read());
  Services::Entries wanted;
  const auto key = [](std::uint32_t i) {
    return datapath::kernel_destination(
        {IpAddress::v4(10, 96, static_cast<std::uint8_t>(i >> 8U), static_cast<std::uint8_t>(i)),
         80});
  };
  for (std::uint32_t i = 0; i < kMany; ++i)
    wanted.emplace(key(i), ServiceEntry{1, ServiceEntry::Kind::kProxy, {}});
  EXPECT_TRUE(services.put(wanted).empty());
  for (const std::uint32_t i : {0U, kMany / 2, kMany - 1}) {
    wanted.insert_or_assign(key(i), ServiceEntry{2, ServiceEntry::Kind::kProxy, {}});
    EXPECT_LE(looks(services.entries(), wanted), kSomeOfMany);
    EXPECT_TRUE(services.put(wanted).empty());
    must(services.keep_only(wanted));
    services.sweep();
  }
}

// --- policy

class PolicyOfAWorld : public SeededWorld {
 public:
  using SeededWorld::SeededWorld;
  PolicyMaps::Entries wanted;

  void change() {
    const std::uint32_t n = pick(12);
    const auto small = static_cast<std::uint8_t>(n);
    switch (pick(4)) {
      case 0: {
        datapath::PolicySet set;
        for (std::uint32_t i = pick(3); i != 0; --i)
          set[{pick(3), datapath::Transport::kTcp, 0, 65535}] = {pick(2) == 0, pick(2)};
        auto verdicts = std::make_shared<const PolicySets::Verdicts>(kernel_verdicts(set));
        set_or_erase(wanted.sets, 1 + n, std::move(verdicts));
        return;
      }
      case 1: {
        const auto part = static_cast<std::uint8_t>(pick(6));
        const um_address at = datapath::kernel_address(IpAddress::v4(10, 0, part, small));
        set_or_erase(wanted.peers, um_peer_key{0, at}, um_peer{pick(3), pick(3)});
        return;
      }
      case 2: {
        const IpBlock block{IpAddress::v4(10, small, 0, 0), 16};
        set_or_erase(wanted.blocks, datapath::kernel_block(block), pick(3));
        return;
      }
      default:
        set_or_erase(wanted.workloads, um_workload_key{100 + n, 0, 0},
                     um_workload{n + 1, 0, pick(3), 0, 0, 0});
    }
  }

 private:
  template <class Map, class Key, class Value>
  void set_or_erase(Map& map, const Key& key, Value value) {
    if (pick(3) == 0)
      map.erase(key);
    else
      map.insert_or_assign(key, std::move(value));
  }
};

// Of each map a row that programs decide by.
void rob_and_restore(const datapath::Object& object, PolicyMaps& maps, PolicyOfAWorld& world) {
  const PolicyMaps::Entries held = maps.entries();
  const auto take = [&](const char* map, auto key) {
    if (key) key->generation = maps.active();
    return key && ::bpf_map_delete_elem(object.map(map), &*key) == 0 ? 1U : 0U;
  };
  const auto workload = world.key_of(held.workloads);
  if (take("um_workloads", workload) != 0) {
    ASSERT_TRUE(must(maps.restore_workload(workload->netns_cookie)));
  }
  const auto set = world.key_of(held.sets);
  if (set && take("um_sets", std::optional(um_set_key{*set, 0})) != 0) {
    ASSERT_TRUE(must(maps.restore_set(*set)));
    ASSERT_EQ(maps.entries().sets.size(), held.sets.size());
  }
  const auto peers = take("um_peers", world.key_of(held.peers));
  ASSERT_EQ(must(maps.restore_some_peers(held.peers.size())), peers);
  const auto blocks = take("um_blocks", world.key_of(held.blocks));
  ASSERT_EQ(must(maps.restore_some_blocks(held.blocks.size())), blocks);
}

// A writer that is killed leaves any half; the next one reads what is there.
TEST_F(FollowTest, PolicyIsWhatIsWantedHoweverOftenThereIsNoRoom) {
  const auto object = small_maps("policy");
  PolicyOfAWorld world(1);
  std::optional<PolicyMaps> maps(std::in_place, object);
  std::uint32_t active = 0;
  must(maps->read(active));
  std::size_t misfits = 0, held = 0;
  for (int step = 0; step < times(1500); ++step) {
    SCOPED_TRACE(step);
    for (std::uint32_t i = world.pick(4); i != 0; --i) world.change();
    if (world.pick(20) == 0) {
      maps.emplace(object);
      must(maps->read(active));
    }
    if (world.pick(10) == 0) {
      must(maps->prepare(world.wanted));  // and no more
      world.change();
    }
    const auto left_out = must(maps->prepare(world.wanted));
    maps->set_active(active = maps->other());
    if (world.pick(4) != 0) must(maps->sweep());
    if (world.pick(8) == 0) {
      ASSERT_NO_FATAL_FAILURE(rob_and_restore(object, *maps, world));
    }
    PolicyMaps reader(object);
    must(reader.read(active));
    const auto found = reader.entries();
    ASSERT_EQ(found.sets.size() + left_out.sets.size(), world.wanted.sets.size());
    for (const auto& [id, set] : world.wanted.sets) {
      const auto known = found.sets.find(id);
      ASSERT_EQ(known == found.sets.end(), left_out.sets.contains(id));
      ASSERT_TRUE(known == found.sets.end() || is_same_set(known->second, set));
    }
    if (left_out.peers.empty()) {
      ASSERT_TRUE(is_same(found.peers, world.wanted.peers));
    }
    ASSERT_TRUE(is_same(found.blocks, world.wanted.blocks));
    for (const auto& [key, row] : world.wanted.workloads) {
      const auto known = found.workloads.find(key);
      ASSERT_EQ(known == found.workloads.end(), left_out.workloads.contains(key));
      ASSERT_TRUE(known == found.workloads.end() || datapath::SameBytes()(known->second, row));
    }
    const bool is_whole = left_out.sets.empty() && left_out.peers.empty() &&
                          left_out.workloads.empty() && left_out.blocks.empty();
    ASSERT_EQ(maps->holds(world.wanted), is_whole);
    ASSERT_EQ(reader.holds(world.wanted), is_whole);
    misfits += is_whole ? 0 : 1;
    held += is_whole ? 1 : 0;
  }
  EXPECT_GT(misfits, static_cast<std::size_t>(times(100)));
  EXPECT_GT(held, static_cast<std::size_t>(times(30)));
}

TEST_F(FollowTest, SetsAreComparedOnlyWhereSomethingChanged) {
  constexpr datapath::SetId kSets = 256;
  datapath::Options options;
  options.pin_dir = bpffs() + "/many_sets";
  options.max_sets = kSets;
  const auto object = must(datapath::Object::open(options));
  PolicySets sets(object.map("um_sets"), 0, kSets), other(object.map("um_sets"), 1, kSets);
  const auto set_of = [](std::uint32_t policy) {
    const datapath::PolicySet set = {{{0, datapath::Transport::kAny, 0, 65535}, {true, policy}}};
    return std::make_shared<const PolicySets::Verdicts>(kernel_verdicts(set));
  };
  PolicySets::Entries wanted;
  for (datapath::SetId id = 1; id <= kSets; ++id) wanted.emplace(id, set_of(1));
  EXPECT_TRUE(sets.put(wanted, other).empty());
  for (const datapath::SetId id : {1U, kSets / 2, kSets}) {
    wanted.insert_or_assign(id, set_of(2));
    EXPECT_LE(looks(sets.entries(), wanted), kSomeOfMany);
    EXPECT_TRUE(sets.put(wanted, other).empty());
  }
}

}  // namespace
}  // namespace mesh::test
