// The fast path where something is wrong: its links are taken away; the kernel has no memory for
// all of a message at its receiver.
#include <gmock/gmock.h>
#include <netinet/tcp.h>
#include <sys/mount.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/eventually.h"
#include "tests/support/fastpath_fixture.h"

namespace mesh::test {
namespace {

using datapath::Difference;
using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;

// A link that is detached, and one that is gone with its pin: each is found once.
TEST_F(FastPathTest, AnAuditPutsItsLinksBack) {
  real();
  const auto audit = [&] { return must(datapath_->audit(state_.workloads[kServer])); };
  const std::string set = std::to_string(kServer);
  EXPECT_THAT(audit(), IsEmpty());
  for (const auto& [name, what] : {std::pair{set, "its hook of the fast path"},
                                   {std::string("mesh"), "the mesh's hook of the fast path"}}) {
    const std::string pin = datapath::fast_path_link(options_.pin_dir, name);
    const UniqueFd link(::bpf_obj_get(pin.c_str()));
    ASSERT_EQ(::bpf_link_detach(link.get()), 0) << pin << ": " << std::strerror(errno);
    EXPECT_THAT(audit(), ElementsAre(Difference{what, true, true}));
    EXPECT_THAT(audit(), IsEmpty());
    ASSERT_EQ(::unlink(pin.c_str()), 0) << pin;
    EXPECT_THAT(audit(), ElementsAre(Difference{what, true, true}));
    EXPECT_THAT(audit(), IsEmpty());
  }
  joined();
}

TEST_F(FastPathTest, AnAuditPutsItsSwitchAndItsRowsBack) {
  state_.slow_listeners = {at("10.9.0.2:9999")};
  apply_all();
  real();
  const auto audit = [&] { return must(datapath_->audit_mesh()); };
  const auto map_of = [&](const char* name) {
    const std::string maps = options_.pin_dir + "/fastpath/maps_" + std::to_string(UM_LAYOUT);
    return UniqueFd(::bpf_obj_get((maps + "/" + name).c_str()));
  };
  EXPECT_THAT(audit(), IsEmpty());
  const std::uint32_t zero = 0;
  um_fast_config ours{};
  const UniqueFd config = map_of("um_fast_config");
  ASSERT_EQ(::bpf_map_lookup_elem(config.get(), &zero, &ours), 0);
  for (const um_fast_config& other :
       {um_fast_config{0, ours.min_trips}, um_fast_config{UM_FAST_ON, ours.min_trips},
        um_fast_config{ours.flags, 1}}) {
    ASSERT_EQ(::bpf_map_update_elem(config.get(), &zero, &other, BPF_ANY), 0);
    EXPECT_THAT(audit(), ElementsAre(Difference{"the switch of the fast path (um_fast_config)",
                                                true, true}));
    EXPECT_THAT(audit(), IsEmpty());
  }
  const auto loses_a_row = [&](const char* name, auto key, auto value) {
    const UniqueFd rows = map_of(name);
    const void* first = nullptr;
    ASSERT_EQ(::bpf_map_get_next_key(rows.get(), first, &key), 0) << name;
    ASSERT_EQ(::bpf_map_lookup_elem(rows.get(), &key, &value), 0);
    const auto wanted = value;
    ++value;
    ASSERT_EQ(::bpf_map_update_elem(rows.get(), &key, &value, BPF_ANY), 0);
    EXPECT_THAT(audit(), ElementsAre(Difference{"1 of the fast path's rows", true, true})) << name;
    ASSERT_EQ(::bpf_map_delete_elem(rows.get(), &key), 0);
    EXPECT_THAT(audit(), ElementsAre(Difference{"1 of the fast path's rows", true, true})) << name;
    ASSERT_EQ(::bpf_map_lookup_elem(rows.get(), &key, &value), 0) << name;
    EXPECT_EQ(value, wanted) << name;
    EXPECT_THAT(audit(), IsEmpty()) << name;
  };
  loses_a_row("um_fast_excluded", um_destination{}, std::uint32_t{});
  loses_a_row("um_fast_addresses", um_address{}, std::uint64_t{});
  joined();
}

// The next meshd finds what has joined, and can end it.
TEST_F(FastPathTest, AnAuditPinsItsMapsAgainWithTheirDirectories) {
  real();
  const Pair pair = joined();
  const auto differences = [&] {
    std::size_t count = 0;
    for (const auto& found :
         {must(datapath_->audit(state_.workloads[kServer])),
          must(datapath_->audit(state_.workloads[kApp])), must(datapath_->audit_mesh())})
      for (const Difference& difference : found) {
        EXPECT_TRUE(difference.is_repaired || !difference.is_harmless) << difference.what;
        ++count;
      }
    return count;
  };
  for (const std::string& lost :
       {options_.pin_dir, options_.pin_dir + "/fastpath", options_.pin_dir + "/fastpath/links",
        maps_of_fast_path(), maps_of_fast_path() + "/um_fast_config"}) {
    std::filesystem::remove_all(lost);
    EXPECT_GT(differences(), 0) << lost;
    EXPECT_TRUE(eventually([&] { return differences() == 0; }))
        << lost << ": a link goes with its pin, but only later";
  }
  datapath_.reset();
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  must(datapath_->switch_fast_path(false));
  ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 1'000));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
}

TEST_F(FastPathTest, AnAuditMissesNothingOfItWhereItIsOff) {
  const auto audit = [&] {
    EXPECT_THAT(must(datapath_->audit(state_.workloads[kServer])), IsEmpty());
    EXPECT_THAT(must(datapath_->audit_mesh()), IsEmpty());
  };
  audit();
  real();
  must(datapath_->switch_fast_path(false));
  audit();
}

// A pin that can be neither removed nor replaced.
class Stuck {
 public:
  explicit Stuck(std::string pin) : pin_(std::move(pin)) {
    EXPECT_EQ(::mount("/dev/null", pin_.c_str(), nullptr, MS_BIND, nullptr), 0)
        << std::strerror(errno);
  }
  ~Stuck() { ::umount2(pin_.c_str(), MNT_DETACH); }
  Stuck(const Stuck&) = delete;
  Stuck& operator=(const Stuck&) = delete;

 private:
  std::string pin_;
};

TEST_F(FastPathTest, OffHoldsWhereALinkCannotBeRemoved) {
  real();
  const Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000));
  ASSERT_EQ(storage_of(pair.client.get()).sent_bytes, 1'000U);
  {
    const Stuck link(datapath::fast_path_link(options_.pin_dir, std::to_string(kApp)));
    EXPECT_FALSE(datapath_->switch_fast_path(false));
    ASSERT_TRUE(send_all(pair.client.get(), 1'000, 1'000));
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_TRUE(receives(pair.server.get(), 0, 2'000));
    EXPECT_FALSE(std::filesystem::exists(datapath::fast_path_link(options_.pin_dir, "mesh")))
        << "the others are gone";
  }
  must(datapath_->switch_fast_path(false));  // as meshd does again
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir + "/fastpath"));
}

TEST_F(FastPathTest, ALinkThatCannotBeHadKeepsOutNobodyElse) {
  real();
  const std::string mesh = datapath::fast_path_link(options_.pin_dir, "mesh");
  ASSERT_EQ(::unlink(mesh.c_str()), 0);
  const Stuck link(datapath::fast_path_link(options_.pin_dir, std::to_string(kApp)));
  ASSERT_TRUE(datapath_->switch_fast_path(true));
  EXPECT_TRUE(std::filesystem::exists(mesh));
  EXPECT_THAT(must(datapath_->audit(state_.workloads[kApp])),
              Contains(Difference{"its hook of the fast path", false, true}));
}

constexpr const char* kMemory = "/sys/fs/cgroup/memory";  // where cgroup v1's controller is

// What is accepted in it has so many bytes for TCP's memory: only cgroup v1 can limit that alone.
class MemoryGroup {
 public:
  MemoryGroup() : home_(kMemory + own_path()), dir_(home_ + "/test-" + std::to_string(::getpid())) {
    std::filesystem::create_directory(dir_);
  }
  ~MemoryGroup() {
    leave();
    ::rmdir(dir_.c_str());
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;

  void limit(const std::string& bytes) const {
    write(dir_ + "/memory.kmem.tcp.limit_in_bytes", bytes);
  }
  void limit_all(const std::string& bytes) const { write(dir_ + "/memory.limit_in_bytes", bytes); }
  void enter() const { write(dir_ + "/cgroup.procs", std::to_string(::getpid())); }
  void leave() const { write(home_ + "/cgroup.procs", std::to_string(::getpid())); }

 private:
  static std::string own_path() {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);)
      if (const auto at = line.find(":memory:"); at != std::string::npos)
        return line.substr(at + 8) == "/" ? "" : line.substr(at + 8);
    return "";
  }
  static void write(const std::string& path, const std::string& text) {
    std::ofstream file(path);
    EXPECT_TRUE(file << text << std::flush) << path;
  }

  std::string home_, dir_;
};

std::uint64_t received_by_tcp(int fd) {
  std::array<std::uint64_t, 32> info{};  // tcp_info, which <netinet/tcp.h> knows the beginning of
  constexpr std::size_t kBytesReceived = 16;
  socklen_t size = sizeof info;
  EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, info.data(), &size), 0);
  return info.at(kBytesReceived);
}

// Its sender would be told ENOMEM.
TEST_F(FastPathTest, AReceiverAtTheLimitOfItsControlGroupGetsItByTcp) {
  if (!std::filesystem::exists(std::string(kMemory) + "/memory.limit_in_bytes"))
    GTEST_SKIP() << "only the memory controller of cgroup v1 limits TCP's memory";
  real();
  const MemoryGroup group;
  group.limit("1073741824");  // far away: without one, sockets belong to no group
  group.enter();
  const Pair pair = connected();
  group.leave();
  ASSERT_TRUE(settle(pair));
  ASSERT_TRUE(send_all(pair.client.get(), 0, 65'536));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 65'536U);
  group.limit_all("524288");
  ASSERT_TRUE(send_all(pair.client.get(), 65'536, 65'536));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_TRUE(receives(pair.server.get(), 0, 131'072));
}

TEST_F(FastPathTest, WhatTheReceiverHasNoMemoryForGoesByTcp) {
  if (!std::filesystem::exists(std::string(kMemory) + "/memory.kmem.tcp.limit_in_bytes"))
    GTEST_SKIP() << "only the memory controller of cgroup v1 limits TCP's memory";
  real();
  constexpr std::size_t kPiece = 65'536;  // in parts that the kernel chooses
  const MemoryGroup group;
  bool was_split = false;
  for (int kib = 64; kib <= 512 && !was_split; kib += 16) {
    const std::string to = "10.9.0.2:" + std::to_string(9'000 + kib);
    const UniqueFd listener = server_->listen(to);
    group.limit(std::to_string(kib * 1024));
    group.enter();
    const Pair pair = connected(to, listener.get());
    group.leave();
    ASSERT_TRUE(settle(pair));
    const std::uint64_t before = received_by_tcp(pair.server.get());
    std::size_t taken = 0;
    for (ssize_t sent = kPiece;
         sent == kPiece && storage_of(pair.client.get()).state != UM_FAST_TCP;
         taken += sent > 0 ? static_cast<std::size_t>(sent) : 0)
      sent = ::send(pair.client.get(), pattern_at(taken), kPiece, MSG_DONTWAIT | MSG_NOSIGNAL);
    const um_fast_socket record = storage_of(pair.client.get());
    group.limit("-1");
    ASSERT_TRUE(receives(pair.server.get(), 0, taken)) << kib;
    was_split = record.state == UM_FAST_TCP && record.sent_bytes % kPiece != 0;
    if (!was_split) continue;
    const std::uint64_t by_tcp = received_by_tcp(pair.server.get()) - before;
    EXPECT_EQ(record.sent_bytes + by_tcp, taken) << kib;
    EXPECT_GT(by_tcp, 0U) << kib;
    EXPECT_EQ(storage_of(pair.server.get()).received_bytes, record.sent_bytes);
    ASSERT_TRUE(send_all(pair.client.get(), taken, kPiece));
    EXPECT_TRUE(receives(pair.server.get(), taken, kPiece));
    EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, record.sent_bytes);
  }
  EXPECT_TRUE(was_split) << "no message was moved in part";
}

}  // namespace
}  // namespace mesh::test
