// The same-node fast path, on and off, and who joins.
#include <gmock/gmock.h>

#include <atomic>
#include <cerrno>

#include "datapath/pins.h"
#include "tests/support/fastpath_fixture.h"

namespace mesh::test {
namespace {

// ---- on and off ----------------------------------------------------------------------------

TEST_F(FastPathTest, SwitchedOffKeepsWhatIsOutstanding) {
  real();
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  ASSERT_EQ(storage_of(pair.client.get()).sent_bytes, 50'003U);
  must(datapath_->switch_fast_path(false));
  ASSERT_TRUE(send_all(pair.client.get(), 50'003, 50'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 100'003));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 50'003U);
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir + "/fastpath"));
  const Pair later = connected();
  do_not_block(later);
  live(later);
  EXPECT_FALSE(has_joined(later.client.get()));

  must(datapath_->switch_fast_path(true));
  ASSERT_TRUE(send_all(pair.client.get(), 100'003, 1'000));
  EXPECT_TRUE(receives(pair.server.get(), 100'003, 1'000));
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
  joined();
}

TEST_F(FastPathTest, ANaiveOneThatDeletesEntriesLosesData) {
  naive();
  Pair pair = connected();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  const int map = ::bpf_map__fd(naive_->maps.sockets);
  std::array<std::uint32_t, 4> key{};
  while (::bpf_map_get_next_key(map, nullptr, &key) == 0) ::bpf_map_delete_elem(map, &key);
  ::shutdown(pair.client.get(), SHUT_WR);
  EXPECT_FALSE(receives(pair.server.get(), 0, 50'003));
}

TEST_F(FastPathTest, ItsProgramsAreShownWhileItIsOn) {
  const auto shown = [this](const std::string& name) -> std::optional<datapath::ProgramUse> {
    for (auto& program : must(datapath::pinned_programs(options_.pin_dir)))
      if (program.name == name) return std::move(program);
    return std::nullopt;
  };
  EXPECT_FALSE(shown("um_fast_sock_ops"));
  real();
  const auto joins = shown("um_fast_sock_ops"), walks = shown("um_fast_join");
  ASSERT_TRUE(joins && walks && shown("um_fast_msg"));
  EXPECT_THAT(joins->links, testing::IsSupersetOf({"7/fastpath", "8/fastpath"}));
  EXPECT_THAT(shown("um_fast_msg")->links, testing::ElementsAre("um_fast_peers"));
  EXPECT_EQ(shown("um_fast_msg")->instances, 1U);
  EXPECT_GT(walks->verified_instructions, 0U);
  Pair pair = joined();
  const UniqueFd counting = must(datapath::count_runs());
  const std::uint64_t before = shown("um_fast_msg")->runs;
  ASSERT_TRUE(send_all(pair.client.get(), 0, 100));
  EXPECT_GT(shown("um_fast_msg")->runs, before);
  must(datapath_->switch_fast_path(false));
  EXPECT_FALSE(shown("um_fast_msg"));
}

TEST_F(FastPathTest, EmergencyDetachmentKeepsWhatIsOutstanding) {
  real();
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 50'003));
  must(datapath::disable_all(options_.pin_dir));
  ASSERT_TRUE(send_all(pair.client.get(), 50'003, 50'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 100'003));
}

TEST_F(FastPathTest, AnotherMeshdFindsItOnAndSockets) {
  real();
  Pair pair = joined();
  ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000));
  datapath_.reset();
  ASSERT_TRUE(send_all(pair.client.get(), 1'000, 1'000));
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  real();
  ASSERT_TRUE(send_all(pair.client.get(), 2'000, 1'000));
  EXPECT_TRUE(receives(pair.server.get(), 0, 3'000));
  EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 3'000U);
  const Pair later = joined();
  ASSERT_TRUE(send_all(later.client.get(), 0, 1'000));
  EXPECT_TRUE(receives(later.server.get(), 0, 1'000));
  EXPECT_EQ(storage_of(later.client.get()).sent_bytes, 1'000U);
}

// As an upgrade to other shapes leaves them, and takes them away.
TEST_F(FastPathTest, SocketsOfAnotherLayoutGoByTcpOnceItIsOffOrGone) {
  for (const bool is_upgrade : {false, true}) {
    real();
    const Pair pair = joined();
    ASSERT_TRUE(send_all(pair.client.get(), 0, 1'000));
    ASSERT_EQ(storage_of(pair.client.get()).sent_bytes, 1'000U);
    datapath_.reset();
    const std::string fast = options_.pin_dir + "/fastpath/maps_78";
    ASSERT_EQ(::rename(maps_of_fast_path().c_str(), fast.c_str()), 0);
    const std::string layout = options_.pin_dir + "/maps_";
    ASSERT_EQ(::rename((layout + std::to_string(UM_LAYOUT)).c_str(), (layout + "78").c_str()), 0);
    write_meta(78);
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    apply_all();
    must(datapath_->switch_fast_path(is_upgrade));
    ASSERT_TRUE(send_all(pair.client.get(), 1'000, 1'000));
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_TRUE(receives(pair.server.get(), 0, 2'000));
    disconnect(pair.client);
    EXPECT_EQ(connect_socket(pair.client.get(), kListener), EPERM) << "it has joined all the same";
  }
}

// ---- which connections join ----------------------------------------------------------------

TEST_F(FastPathTest, ShortConnectionsStayOut) {
  real();
  const Pair pair = connected();
  do_not_block(pair);
  for (int trip = 0; trip < 7; ++trip) {
    ASSERT_TRUE(exchange(pair));
    must(datapath_->let_settled_join(state_));
  }
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  EXPECT_TRUE(settle(pair));
}

// As meshd does while nobody has told it of the namespace.
TEST_F(FastPathTest, WhoAskedIsNotForgottenWhereNobodyCanLook) {
  real();
  const Pair pair = connected();
  do_not_block(pair);
  for (int trip = 0; trip < kMostTrips; ++trip) ASSERT_TRUE(exchange(pair));
  auto unknown = state_;
  for (auto& [id, workload] : unknown.workloads) workload.netns = -1;
  must(datapath_->let_settled_join(unknown));
  EXPECT_FALSE(has_joined(pair.client.get()));
  const UniqueFd no_namespace(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (auto& [id, workload] : unknown.workloads) workload.netns = no_namespace.get();
  EXPECT_FALSE(datapath_->let_settled_join(unknown));
  must(datapath_->let_settled_join(state_));
  EXPECT_TRUE(has_joined(pair.client.get()));
  EXPECT_TRUE(has_joined(pair.server.get()));
}

// The kernel's reader of a joined socket may say EAGAIN to who blocks.
TEST_F(FastPathTest, WhoBlocksStaysOut) {
  real();
  for (const bool is_server : {false, true}) {
    const Pair pair = connected();
    do_not_block(pair);
    const int blocks = (is_server ? pair.server : pair.client).get();
    ::fcntl(blocks, F_SETFL, 0);
    live(pair);
    EXPECT_EQ(storage_of(blocks).state, UM_FAST_STAYS);
    ::fcntl(blocks, F_SETFL, O_NONBLOCK);
    live(pair);
    EXPECT_EQ(storage_of(blocks).state, UM_FAST_STAYS);
    EXPECT_EQ(storage_of((is_server ? pair.client : pair.server).get()).sent_bytes, 0U);
  }
}

// ---- who does not join ---------------------------------------------------------------------

TEST_F(FastPathTest, ExcludedWorkloadsAndListenersStayByTcp) {
  const auto stays_out = [this] {
    const Pair pair = connected();
    do_not_block(pair);
    live(pair);
    return !has_joined(pair.client.get()) && !has_joined(pair.server.get());
  };
  real();
  state_.slow_listeners = {at(kListener)};
  apply_all();
  EXPECT_TRUE(stays_out());
  state_.slow_listeners.clear();
  state_.workloads[kServer].fast_path = false;
  apply_all();
  EXPECT_TRUE(stays_out());
  state_.workloads[kServer].fast_path = true;
  apply_all();
  joined();
}

// Who joins is judged as a connection asks, not only as it is made.
TEST_F(FastPathTest, AnExclusionHoldsForConnectionsThatHaveNotAskedYet) {
  real();
  const Pair pair = connected(), other = connected();
  for (const Pair* early : {&pair, &other}) {
    do_not_block(*early);
    ASSERT_TRUE(exchange(*early));
  }
  state_.slow_listeners = {at(kListener)};
  apply_all();
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  EXPECT_EQ(storage_of(pair.server.get()).state, kNeverAsked);
  state_.slow_listeners.clear();
  apply_all();
  EXPECT_TRUE(settle(other));
}

// Its hooks go on meanwhile.
TEST_F(FastPathTest, ARestartForgetsNobodyWhoStaysOut) {
  state_.slow_listeners = {at(kListener)};
  apply_all();
  real();
  const UniqueFd map(::bpf_obj_get((maps_of_fast_path() + "/um_fast_config").c_str()));
  ASSERT_TRUE(map);
  std::atomic<bool> is_over = false;
  std::atomic<int> looks = 0, forgotten = 0;
  std::thread watcher([&] {
    const std::uint32_t zero = 0;
    um_fast_config config{};
    for (; !is_over; ++looks)
      if (::bpf_map_lookup_elem(map.get(), &zero, &config) != 0 ||
          config.flags != (UM_FAST_ON | UM_FAST_HAS_EXCLUDED))
        ++forgotten;
  });
  for (const bool is_told_first : {true, false}) {
    datapath_.reset();
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    if (is_told_first) apply_all();
    real();
    apply_all();
    for (int again = 0; again < 300; ++again) real();  // as a start does it
  }
  is_over = true;
  watcher.join();
  EXPECT_GT(looks, 0);
  EXPECT_EQ(forgotten, 0);
  const Pair pair = connected();
  do_not_block(pair);
  live(pair);
  EXPECT_FALSE(has_joined(pair.client.get()));
}

TEST_F(FastPathTest, IsOffWhereWhoStaysOutDoesNotFit) {
  real();
  for (int i = 0; i <= 65'536; ++i)
    state_.slow_listeners.insert(
        {ip(i % 2 == 0 ? "10.9.0.2" : "10.9.0.3"), static_cast<std::uint16_t>(i / 2)});
  apply_all();
  EXPECT_THAT(datapath_->why_fast_path_stopped(), testing::HasSubstr("um_fast_excluded"));
  EXPECT_EQ(config_now().flags & UM_FAST_ON, 0U);
  const Pair pair = connected();
  do_not_block(pair);
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, kNeverAsked);
  must(datapath_->switch_fast_path(false));  // as meshd does then
  state_.slow_listeners.clear();
  apply_all();
  real();
  EXPECT_EQ(datapath_->why_fast_path_stopped(), "");
  joined();
}

TEST_F(FastPathTest, WhoFindsNoRoomGoesOnByTcp) {
  real();
  const Pair full = connected();
  const UniqueFd peers(::bpf_obj_get((maps_of_fast_path() + "/um_fast_peers").c_str()));
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  ASSERT_EQ(::bpf_obj_get_info_by_fd(peers.get(), &info, &size), 0);
  // One socket by as many names as there is room for: the kernel takes it twice where no program
  // is.
  std::uint32_t program = 0, programs = 1, flags = 0;
  ASSERT_EQ(::bpf_prog_query(peers.get(), BPF_SK_MSG_VERDICT, 0, &flags, &program, &programs), 0);
  const UniqueFd verdict(::bpf_prog_get_fd_by_id(program));
  ASSERT_EQ(::bpf_prog_detach2(verdict.get(), peers.get(), BPF_SK_MSG_VERDICT), 0);
  const auto socket = static_cast<std::uint64_t>(full.client.get());
  um_fast_key key{};
  for (std::uint32_t i = 0; i < info.max_entries; ++i) {
    key.netns_cookie = ~std::uint64_t{i};
    ASSERT_EQ(::bpf_map_update_elem(peers.get(), &key, &socket, BPF_ANY), 0) << errno;
  }
  ASSERT_EQ(::bpf_prog_attach(verdict.get(), peers.get(), BPF_SK_MSG_VERDICT, 0), 0);
  const Pair pair = connected();
  do_not_block(pair);
  live(pair);
  EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_STAYS);
  EXPECT_EQ(storage_of(pair.server.get()).state, UM_FAST_STAYS);
  EXPECT_EQ(count("fastpath_joined"), 0);
  EXPECT_EQ(count("fastpath_not_joined"), 2);
  std::thread sender([&] { EXPECT_TRUE(send_all(pair.client.get(), 0, 8U << 20)); });
  EXPECT_TRUE(receives(pair.server.get(), 0, 8U << 20));
  sender.join();
  EXPECT_EQ(count("fastpath_redirected"), 0);
  for (std::uint32_t i = 0; i < info.max_entries; ++i) {  // the kernel takes seconds for so many
    key.netns_cookie = ~std::uint64_t{i};
    ASSERT_EQ(::bpf_map_delete_elem(peers.get(), &key), 0);
  }
  joined();
}

TEST_F(FastPathTest, TheWayToTheProxyOfAnExcludedServiceStaysByTcp) {
  state_.slow_listeners = {at("10.78.0.1:9080")};
  proxied("10.78.0.1:9080", 1);
  proxied("10.78.0.2:9080", 2);
  apply_all();
  proxy_lives();
  real();
  const Pair excluded = connected("10.78.0.1:9080", proxy4_.get());
  do_not_block(excluded);
  live(excluded);
  EXPECT_FALSE(has_joined(excluded.client.get()));
  joined("10.78.0.2:9080", proxy4_.get());
}

TEST_F(FastPathTest, AWorkloadsOwnLoopbackIsLeftAlone) {
  real();
  const UniqueFd own = app_->listen("127.0.0.1:5000");
  const Pair pair = connected("127.0.0.1:5000", own.get());
  do_not_block(pair);
  live(pair);
  EXPECT_FALSE(has_joined(pair.client.get()));
}

TEST_F(FastPathTest, TlsStaysByTcp) {
  real();
  for (const char kind : {char{22}, char{23}}) {  // a handshake; data of one that was before
    const Pair pair = joined();
    const std::array<char, 64> record = {kind, 3, 1, 0, 59};
    ASSERT_EQ(::send(pair.client.get(), record.data(), record.size(), 0), 64);
    std::array<char, 64> got{};
    pollfd waiting{pair.server.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&waiting, 1, 20'000), 1);
    ASSERT_EQ(::recv(pair.server.get(), got.data(), got.size(), 0), 64);
    EXPECT_EQ(got, record);
    EXPECT_EQ(storage_of(pair.client.get()).state, UM_FAST_TCP);
    EXPECT_EQ(storage_of(pair.client.get()).sent_bytes, 0U);
  }
}

}  // namespace
}  // namespace mesh::test
