// What is written of one state after the other, with maps that are often full and writers that are
// often killed, against what the kernel holds then.
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

// --- one map

using Plain = datapath::Map<std::uint32_t, std::uint32_t>;

std::map<std::uint32_t, std::uint32_t> held_by(int fd) {
  std::map<std::uint32_t, std::uint32_t> held;
  std::uint32_t key = 0, next = 0, value = 0;
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, &next) == 0; at = &key) {
    key = next;
    if (::bpf_map_lookup_elem(fd, &key, &value) == 0) held[key] = value;
  }
  return held;
}

TEST_F(FollowTest, AMapHoldsWhatIsWantedAndNothingOfWhatDidNotFit) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_NO_PREALLOC);
  const UniqueFd fd(::bpf_map_create(BPF_MAP_TYPE_HASH, "follow", 4, 4, 90, &options));
  ASSERT_TRUE(fd);
  Random random(1);
  Plain::Entries wanted;
  std::optional<Plain> map(std::in_place, fd.get(), "follow");
  std::size_t misfits = 0;
  for (int step = 0; step < 5000; ++step) {
    SCOPED_TRACE(step);
    // 150 keys and room for 90: some blocks of the map are as they were, some are not.
    for (std::uint32_t changes = random.below(4); changes != 0; --changes) {
      const std::uint32_t key = random.below(150);
      if (random.below(3) == 0)
        wanted.erase(key);
      else
        wanted.insert_or_assign(key, random.below(3));
    }
    if (random.below(50) == 0) erase_if(wanted, [&](const auto&) { return random.below(2) == 0; });
    if (random.below(20) == 0) {  // it is another's now
      map.emplace(fd.get(), "follow");
      ASSERT_TRUE(map->read());
    }
    // As policy is written, and as all else is.
    const bool makes_room = random.below(2) == 0;
    if (makes_room) {
      ASSERT_TRUE(map->keep_only(wanted));
    }
    const auto failed = map->put(wanted);
    const bool is_cut_short = random.below(10) == 0;
    if (!makes_room && !is_cut_short) {
      ASSERT_TRUE(map->keep_only(wanted));
    }
    const auto held = held_by(fd.get());
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

// --- services

class ServicesOfAWorld {
 public:
  explicit ServicesOfAWorld(std::uint64_t seed) : random_(seed) {}
  Services::Entries wanted;

  std::uint32_t pick(std::uint32_t n) { return random_.below(n); }
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
  Random random_;
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

TEST_F(FollowTest, ServicesAreWhatIsWantedHoweverOftenThereIsNoRoom) {
  const auto object = small_maps("services");
  std::size_t misfits = 0, whole = 0;
  ServicesOfAWorld world(1);
  std::optional<Services> services(std::in_place, object);
  must(services->read());
  for (int step = 0; step < 3000; ++step) {
    SCOPED_TRACE(step);
    const auto before = world.wanted;
    for (std::uint32_t i = world.pick(3); i != 0; --i) world.change();
    if (world.pick(40) == 0)
      erase_if(world.wanted, [&](const auto&) { return world.pick(2) == 0; });
    if (world.pick(25) == 0) {
      services.emplace(object);
      must(services->read());
    }
    if (world.pick(10) == 0) {  // cut short, and then something else is wanted
      services->put(world.wanted);
      if (world.pick(2) == 0) world.wanted = before;
    }
    auto failed = services->put(world.wanted);
    must(services->keep_only(world.wanted));
    services->sweep();
    if (!failed.empty()) failed = services->put(world.wanted);
    services->refuse(failed, world.wanted);
    services->sweep();
    Services reader(object);
    const std::uint64_t written = reader.writes();
    must(reader.read());
    ASSERT_NO_FATAL_FAILURE(expect_held(reader, world.wanted, failed));
    ASSERT_EQ(reader.writes(), written) << "something was left that is nobody's";
    misfits += failed.size();
    whole += failed.empty() ? 1 : 0;
  }
  EXPECT_GT(misfits, 300U);
  EXPECT_GT(whole, 300U);
}

// --- policy

class PolicyOfAWorld {
 public:
  explicit PolicyOfAWorld(std::uint64_t seed) : random_(seed) {}
  PolicyMaps::Entries wanted;

  std::uint32_t pick(std::uint32_t n) { return random_.below(n); }
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
  Random random_;
};

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

}  // namespace
}  // namespace mesh::test
