// What goes wrong with an enrolled workload is found, put right or named, by one audit; and a
// canary tells whether its connects are captured.
#include <gmock/gmock.h>
#include <linux/bpf.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include <filesystem>
#include <functional>

#include "tests/support/eventually.h"
#include "tests/support/packets.h"

namespace mesh::test {
namespace {

namespace fs = std::filesystem;

using datapath::Difference;
using testing::ElementsAre;
using testing::IsEmpty;

class AuditTest : public BridgedTest {
 protected:
  void SetUp() override {
    BridgedTest::SetUp();
    if (IsSkipped()) return;
    app().strict = true;
    app().ingress = 5;
    app().egress = 6;
    state_.peers[ip("10.9.0.1")] = {kAppClass, 5};
    verdict(5, 0, true, 51, 0);
    verdict(6, 0, true, 61, 0);
    apply_all();
  }
  void TearDown() override {
    foreign_.clear();
    BridgedTest::TearDown();
  }
  datapath::EnrolledWorkload& app() { return state_.workloads[kApp]; }
  std::vector<Difference> audit() { return must(datapath_->audit(app())); }
  std::vector<Difference> audit_mesh() { return must(datapath_->audit_mesh()); }
  void repairs_of_the_mesh(const std::string& what) {
    EXPECT_THAT(audit_mesh(), ElementsAre(Difference{what, true})) << what;
    EXPECT_THAT(audit_mesh(), IsEmpty()) << what;
  }
  // It is found and repaired by one audit, and the next finds nothing.
  void repairs(const std::string& what) {
    EXPECT_THAT(audit(), ElementsAre(Difference{what, true})) << what;
    EXPECT_THAT(audit(), IsEmpty()) << what;
  }
  std::string link_path(const std::string& name, const std::string& set = "7") const {
    return options_.pin_dir + "/links/" + set + "/" + name;
  }
  void detach(const std::string& name, const std::string& set = "7") const {
    UniqueFd link(::bpf_obj_get(link_path(name, set).c_str()));
    ASSERT_EQ(::bpf_link_detach(link.get()), 0) << name << ": " << std::strerror(errno);
  }
  std::uint32_t generation() const {
    const std::uint32_t zero = 0;
    um_config config{};
    EXPECT_EQ(::bpf_map_lookup_elem(map("um_config").get(), &zero, &config), 0);
    return (config.flags & UM_CONFIG_GENERATION) != 0 ? 1 : 0;
  }
  // What came of a canary that is sent now.
  Result<> canary() {
    using Clock = std::chrono::steady_clock;
    must(datapath_->send_canary(app(), Clock::now()));
    for (const auto deadline = Clock::now() + std::chrono::seconds(30); Clock::now() < deadline;) {
      // It is not for this test to say how soon it must be back.
      auto outcomes = datapath_->take_canaries(Clock::time_point{});
      if (!outcomes.empty()) return std::move(outcomes.at(kApp));
      ::poll(nullptr, 0, 1);
    }
    return Error{Errc::timed_out, "nothing came of it"};
  }
  // A program that does nothing but return 1, linked there.
  void link_foreign(bpf_prog_type program_type, bpf_attach_type type, int target) {
    const bpf_insn instructions[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 1},
        {.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0}};
    LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = type);
    UniqueFd program(
        ::bpf_prog_load(program_type, "stranger", "Apache-2.0", instructions, 2, &options));
    ASSERT_TRUE(program) << std::strerror(errno);
    foreign_.emplace_back(::bpf_link_create(program.get(), target, type, nullptr));
    ASSERT_TRUE(foreign_.back()) << std::strerror(errno);
  }

  std::vector<UniqueFd> foreign_;
};

TEST_F(AuditTest, AHealthyWorkloadHasNoDifferencesAndItsCanaryComesBack) {
  EXPECT_THAT(audit(), IsEmpty());
  must(canary());
  EXPECT_EQ(count("connects_canary"), 2) << "by IPv4 and IPv6";
}

TEST_F(AuditTest, EveryLinkThatIsDetachedOrUnpinnedIsMadeAgain) {
  for (const auto& entry : std::filesystem::directory_iterator(options_.pin_dir + "/links/7")) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("packet_") && !name.starts_with("filter_")) {
      detach(name);
      repairs("its hook " + name);
      detach(name);  // a link goes with its pin, but only later
      ASSERT_EQ(::unlink(link_path(name).c_str()), 0);
      repairs("its hook " + name);
    }
  }
  must(canary());
}

TEST_F(AuditTest, TheProgramsForItsPacketsAreMadeAgain) {
  const auto device = host_->run([] { return ::if_nametoindex("to-app"); });
  const std::string name = "from_" + std::to_string(device);
  if (::access(link_path("packet_" + name).c_str(), F_OK) == 0)
    detach("packet_" + name);
  else  // a kernel without tcx
    host_->command("tc filter del dev to-app ingress");
  repairs("the program for its packets " + std::string("from_device ") + std::to_string(device));
  host_->command("ip link del to-app");
  plug(*app_, "to-app-again", "10.9.0.1/24");
  const auto again = std::to_string(host_->run([] { return ::if_nametoindex("to-app-again"); }));
  EXPECT_THAT(audit(),
              ElementsAre(Difference{"the program for its packets from_device " + again, true},
                          Difference{"the program for its packets to_device " + again, true}));
  EXPECT_THAT(audit(), IsEmpty());
}

TEST_F(AuditTest, ItsRowsAreWrittenAgain) {
  const um_workload_key cookie{app_->cookie(), generation(), 0};
  const auto ip_words = [](const char* text) {
    um_address out;
    std::memcpy(&out, ip(text).bytes().data(), sizeof out);
    return out;
  };
  UniqueFd rows = map("um_workloads");
  ASSERT_EQ(::bpf_map_delete_elem(rows.get(), &cookie), 0);
  EXPECT_FALSE(canary()) << "without its row";
  repairs("its row in um_workloads");
  um_workload other{};
  other.id = kApp;
  ASSERT_EQ(::bpf_map_update_elem(rows.get(), &cookie, &other, BPF_ANY), 0);
  repairs("its row in um_workloads");
  const um_own_key own{kApp, ip_words("10.9.0.1")};
  ASSERT_EQ(::bpf_map_delete_elem(map("um_own_addresses").get(), &own), 0);
  repairs("its row in um_own_addresses");
  const um_peer_key peer{generation(), own.address};
  ASSERT_EQ(::bpf_map_delete_elem(map("um_peers").get(), &peer), 0);
  repairs("its row in um_peers");
  for (const um_set_key set : {um_set_key{5, generation()}, um_set_key{6, generation()}}) {
    ASSERT_EQ(::bpf_map_delete_elem(map("um_sets").get(), &set), 0);
    repairs("its policy set");
  }
  must(canary());
}

// They are the mesh's, not a workload's: what its proxy may do, and how a server's listener knows
// who asked.
TEST_F(AuditTest, EveryLinkOfTheMeshItselfIsMadeAgain) {
  EXPECT_THAT(audit_mesh(), IsEmpty());
  int links = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options_.pin_dir + "/links/mesh")) {
    const std::string name = entry.path().filename();
    detach(name, "mesh");
    repairs_of_the_mesh("the mesh's hook " + name);
    detach(name, "mesh");
    ASSERT_EQ(::unlink(link_path(name, "mesh").c_str()), 0);
    repairs_of_the_mesh("the mesh's hook " + name);
    ++links;
  }
  EXPECT_EQ(links, 7);
  UniqueFd group(::open(mesh_group_->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  link_foreign(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, group.get());
  const auto differences = audit_mesh();
  ASSERT_EQ(differences.size(), 1);
  EXPECT_THAT(differences[0].what,
              testing::MatchesRegex("program [0-9]+ .stranger. at the mesh's hook connect4"));
  EXPECT_FALSE(differences[0].is_repaired);
}

// ---- pins

class PinsAuditTest : public AuditTest {
 protected:
  std::vector<std::string> pins_below(const std::string& path) const {
    std::vector<std::string> found;
    if (!fs::is_directory(path)) return {path};
    for (const auto& entry : fs::recursive_directory_iterator(path))
      if (!entry.is_directory()) found.push_back(entry.path());
    std::ranges::sort(found);
    return found;
  }
  // Whichever is looked at first.
  std::vector<Difference> audit_all(bool mesh_first) {
    std::vector<Difference> found = mesh_first ? audit_mesh() : audit();
    for (Difference& difference : mesh_first ? audit() : audit_mesh())
      found.push_back(std::move(difference));
    return found;
  }
  // One of the application's to the server, both ends held here: a child would hold meshd's lock.
  void connect_app() {
    listener_ = server_->listen("10.9.0.2:8080");
    app_group_->enter();
    client_ = app_->run([] { return tcp_socket_for("10.9.0.2:8080"); });
    ASSERT_EQ(connect_socket(client_.get(), "10.9.0.2:8080"), 0);
    mesh_group_->enter();
    accepted_ = accept_within(listener_.get());
    ASSERT_TRUE(accepted_);
  }
  void send_100() const {
    const std::vector<char> data(100, 'x');
    std::vector<char> read(data.size());
    ASSERT_EQ(::send(client_.get(), data.data(), data.size(), MSG_NOSIGNAL), 100);
    ASSERT_EQ(::recv(accepted_.get(), read.data(), read.size(), MSG_WAITALL), 100);
  }
  std::vector<datapath::Flow> open_flows() { return must(datapath_->open_flows(state_)); }
  std::uint32_t id_of_map(const char* name) const {
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    EXPECT_EQ(::bpf_obj_get_info_by_fd(map(name).get(), &info, &size), 0) << name;
    return info.id;
  }
  bool is_judged() const {
    std::uint32_t ids[8], count = std::size(ids);
    return ::bpf_prog_query(app_->fd(), BPF_SK_LOOKUP, 0, nullptr, ids, &count) != 0 || count != 0;
  }
  void restart() {
    datapath_.reset();
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    apply_all();
  }

  UniqueFd listener_, client_, accepted_;
};

// Links end with their pins, and are made again. What lives on, in the programs at work and in
// meshd, is pinned again: the next meshd would begin anew else.
TEST_F(PinsAuditTest, WhatWasRemovedIsThereForTheNextMeshdAndConnectionsAreCountedOn) {
  connect_app();
  const auto before = open_flows();
  ASSERT_EQ(before.size(), 1);
  const auto pins = pins_below(options_.pin_dir);
  const std::uint32_t connections = id_of_map("um_connections");
  std::size_t sent = 0;
  for (const char* lost : {"", "/links", "/links/7", "/maps", "/programs", "/programs/um_connect4",
                           "/maps/um_connections", "/meta"}) {
    const std::string path = options_.pin_dir + lost;
    for (const bool mesh_first : {true, false}) {
      const auto gone = pins_below(path);
      const auto links = std::ranges::count_if(
          gone, [](const std::string& pin) { return pin.find("/links/") != std::string::npos; });
      const auto others = std::ssize(gone) - links;
      fs::remove_all(path);
      ASSERT_TRUE(eventually([this] { return fs::exists(link_path("sk_lookup")) || !is_judged(); }))
          << lost << ": a link goes with its pin, but only later";
      const auto found = audit_all(mesh_first);
      EXPECT_EQ(std::ssize(found), links + (others != 0 ? 1 : 0)) << lost;
      for (const Difference& difference : found)
        EXPECT_TRUE(difference.is_repaired) << difference.what;
      const Difference pinned{std::to_string(others) + " of the pins of maps and programs", true};
      EXPECT_EQ(std::ranges::count(found, pinned), others != 0 ? 1 : 0) << lost;
      EXPECT_THAT(audit_all(mesh_first), IsEmpty()) << lost;
      EXPECT_EQ(pins_below(options_.pin_dir), pins) << lost;
    }
    auto second = datapath::open_kernel_datapath(options_);
    ASSERT_FALSE(second) << lost;
    EXPECT_EQ(second.error().code, Errc::unavailable) << second.error().message;
    const std::uint32_t program = link_info("7/connect4").prog_id;
    restart();
    EXPECT_EQ(link_info("7/connect4").prog_id, program) << lost << ": not adopted";
    EXPECT_EQ(id_of_map("um_connections"), connections) << lost;
    EXPECT_THAT(audit_all(true), IsEmpty()) << lost;
    send_100();
    sent += 100;
    const auto now = open_flows();
    ASSERT_EQ(now.size(), 1) << lost;
    EXPECT_EQ(now[0].started, before[0].started) << lost;
    EXPECT_EQ(now[0].sent, sent) << lost;
  }
  must(canary());
  client_.reset();
  accepted_.reset();
  std::vector<datapath::Flow> closed;
  ASSERT_TRUE(eventually([&] { return !(closed = must(datapath_->take_flows())).empty(); }));
  EXPECT_EQ(closed[0].kind, datapath::Flow::Kind::kClosed);
  EXPECT_EQ(closed[0].sent, sent);
}

TEST_F(PinsAuditTest, AWorkloadIsEnrolledAlsoBeforeTheNextAudit) {
  fs::remove_all(options_.pin_dir);
  state_.workloads[9] = workload(9, *server_, server_group_->path());
  apply_all();
  EXPECT_EQ(std::ssize(pins_below(options_.pin_dir)), pins_of_a_workload());
}

TEST_F(PinsAuditTest, APinOfSomethingElseIsReplaced) {
  UniqueFd other(::bpf_map_create(BPF_MAP_TYPE_HASH, "other", 3, 5, 1, nullptr));
  const std::uint32_t connections = id_of_map("um_connections");
  for (const char* pin : {"/maps/um_connections", "/programs/um_connect4", "/meta"}) {
    ASSERT_EQ(::unlink((options_.pin_dir + pin).c_str()), 0);
    ASSERT_EQ(::bpf_obj_pin(other.get(), (options_.pin_dir + pin).c_str()), 0) << pin;
    repairs_of_the_mesh("1 of the pins of maps and programs");
  }
  EXPECT_EQ(id_of_map("um_connections"), connections);
}

// What is attached cannot be seen then: to attach it again would have it run twice.
TEST_F(PinsAuditTest, WhereThePinsAreHiddenNothingIsAttachedAndEachLookSaysSo) {
  const std::string place = bpffs(), moved = place + "/moved";
  const auto says_so = [&](const char* how) {
    for (int look = 0; look < 2; ++look)
      for (const auto& found : {audit(), audit_mesh()}) {
        ASSERT_EQ(found.size(), 1) << how;
        EXPECT_THAT(found[0].what, testing::HasSubstr("is not what meshd made")) << how;
        EXPECT_FALSE(found[0].is_repaired) << how;
      }
    EXPECT_FALSE(fs::exists(options_.pin_dir)) << how;
    const std::uint64_t canaries = count("connects_canary");
    must(canary());
    EXPECT_EQ(count("connects_canary"), canaries + 2) << how << ": by IPv4 and IPv6, once each";
  };
  for (const char* type : {"bpf", "tmpfs"}) {
    ASSERT_EQ(::mount(type, place.c_str(), type, 0, nullptr), 0) << std::strerror(errno);
    says_so(type);
    ASSERT_EQ(::umount2(place.c_str(), 0), 0) << std::strerror(errno);
    EXPECT_THAT(audit_all(true), IsEmpty()) << type;
  }
  ASSERT_EQ(::rename(options_.pin_dir.c_str(), moved.c_str()), 0);
  says_so("moved");
  ASSERT_EQ(::rename(moved.c_str(), options_.pin_dir.c_str()), 0);
  EXPECT_THAT(audit_all(true), IsEmpty());
  ASSERT_EQ(::umount2(place.c_str(), MNT_DETACH), 0) << std::strerror(errno);
  says_so("unmounted");
  must(datapath::ensure_bpffs(place));
  says_so("mounted anew");
  restart();
  EXPECT_TRUE(eventually([this] { return audit_all(true).empty(); }))
      << "what was attached ends with the file system, but only later";
  must(canary());
}

TEST_F(PinsAuditTest, AnotherMeshdInItsPlaceIsNamedUntilItEnds) {
  fs::remove_all(options_.pin_dir);
  auto other = must(datapath::open_kernel_datapath(options_));
  for (const auto& found : {audit(), audit_mesh()}) {
    ASSERT_EQ(found.size(), 1);
    EXPECT_THAT(found[0].what, testing::HasSubstr("belongs to another running process"));
    EXPECT_FALSE(found[0].is_repaired);
  }
  other.reset();
  ASSERT_TRUE(eventually([this] { return !is_judged(); }));
  for (const Difference& difference : audit_all(true))
    EXPECT_TRUE(difference.is_repaired) << difference.what;
  EXPECT_THAT(audit_all(true), IsEmpty());
  must(canary());
}

// By the other state, or by none that is complete, somebody may do what the policy forbids.
TEST_F(AuditTest, ThePolicyEpochIsWrittenAgain) {
  const std::uint32_t zero = 0;
  um_config ours{};
  ASSERT_EQ(::bpf_map_lookup_elem(map("um_config").get(), &zero, &ours), 0);
  for (const std::uint32_t bit :
       {UM_CONFIG_GENERATION, UM_CONFIG_HAS_BLOCKS, UM_CONFIG_STATE_INCOMPLETE}) {
    const um_config strange{ours.flags ^ bit};
    ASSERT_EQ(::bpf_map_update_elem(map("um_config").get(), &zero, &strange, BPF_ANY), 0);
    repairs_of_the_mesh("the policy epoch (um_config)");
    um_config now{};
    ASSERT_EQ(::bpf_map_lookup_elem(map("um_config").get(), &zero, &now), 0);
    EXPECT_EQ(now.flags, ours.flags);
  }
  verdict(5, 0, false, 52, 0);  // the change after it waits for who saw the other state
  apply_all();
  EXPECT_THAT(audit_mesh(), IsEmpty());
}

TEST_F(AuditTest, TheBlockOfServicesAddressesIsWrittenAgain) {
  datapath_.reset();
  options_.service_range = IpBlock::parse("10.78.0.0/16").value();
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  EXPECT_THAT(audit_mesh(), IsEmpty());
  EXPECT_EQ(connect_from_app("10.78.0.1:80"), kRefused) << "of no service";
  const std::uint32_t zero = 0;
  const um_service_range none{};
  ASSERT_EQ(::bpf_map_update_elem(map("um_service_ranges").get(), &zero, &none, BPF_ANY), 0);
  EXPECT_NE(connect_from_app("10.78.0.1:80"), kRefused);
  repairs_of_the_mesh("the block of services' addresses (um_service_ranges)");
  EXPECT_EQ(connect_from_app("10.78.0.1:80"), kRefused);
}

// The keys of a map, as bytes.
std::vector<std::vector<char>> keys_of(int fd, std::size_t size) {
  std::vector<std::vector<char>> keys;
  std::vector<char> key(size), next(size);
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd, at, next.data()) == 0; at = key.data())
    keys.push_back(key = next);
  return keys;
}

TEST_F(AuditTest, TheServicesRowsAreWrittenAgain) {
  const auto endpoint = [](const char* text) { return SocketAddress{ip(text), 8080}; };
  datapath::ServiceEntry balanced{.id = 70, .kind = datapath::ServiceEntry::Kind::kBalance};
  balanced.affinity = std::chrono::seconds(60);
  balanced.columns = datapath::columns_of({{endpoint("10.9.0.1")}, {endpoint("10.9.0.2")}});
  state_.services[{ip("10.78.0.1"), 80}] = balanced;
  state_.services[{ip("10.78.0.2"), 80}] = {.id = 71, .kind = datapath::ServiceEntry::Kind::kProxy};
  datapath::ServiceEntry by_client{.id = 72, .kind = datapath::ServiceEntry::Kind::kBalance};
  by_client.of_clients = {{kApp, datapath::columns_of({{endpoint("10.9.0.2")}})}};
  state_.services[{ip("10.78.0.3"), 80}] = by_client;
  state_.refusals[{kApp, 71}] = 51;
  state_.blocks[{ip("10.50.0.0"), 16}] = kAppClass;
  apply_all();
  EXPECT_THAT(audit_mesh(), IsEmpty());
  const auto each_is_found = [&](const char* name, std::size_t key_size, const std::string& what) {
    const UniqueFd fd = map(name);
    const auto keys = keys_of(fd.get(), key_size);
    EXPECT_FALSE(keys.empty()) << name;
    for (const auto& key : keys) {
      ASSERT_EQ(::bpf_map_delete_elem(fd.get(), key.data()), 0) << name;
      const auto found = audit_mesh();
      ASSERT_EQ(found.size(), 1U) << name;
      EXPECT_EQ(found[0], (Difference{"1 of the " + what, true})) << name;
      EXPECT_EQ(keys_of(fd.get(), key_size).size(), keys.size()) << name;
      EXPECT_THAT(audit_mesh(), IsEmpty()) << name;
    }
  };
  each_is_found("um_services", sizeof(um_destination), "services' rows");
  each_is_found("um_client_services", sizeof(um_client_service), "services' rows");
  each_is_found("um_backends", sizeof(um_backend_key), "services' rows");
  each_is_found("um_members", sizeof(um_member), "services' rows");
  each_is_found("um_refusals", sizeof(um_refusal_key), "rows in um_refusals");
  const um_destination proxied = [&] {
    const auto keys = keys_of(map("um_services").get(), sizeof(um_destination));
    um_destination key{};
    std::memcpy(&key, keys.at(0).data(), sizeof key);
    return key;
  }();
  std::uint32_t slot = 0;
  ASSERT_EQ(::bpf_map_lookup_elem(map("um_services").get(), &proxied, &slot), 0);
  const um_service nothing{};
  ASSERT_EQ(::bpf_map_update_elem(map("um_slots").get(), &slot, &nothing, BPF_ANY), 0);
  repairs_of_the_mesh("1 of the services' rows");
}

TEST_F(AuditTest, ProgramsOfOthersAreNamed) {
  link_foreign(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, app_->fd());
  auto differences = audit();
  ASSERT_EQ(differences.size(), 1);
  EXPECT_THAT(differences[0].what,
              testing::MatchesRegex("program [0-9]+ .stranger. at sk_lookup in its network "
                                    "namespace"));
  EXPECT_FALSE(differences[0].is_repaired);
  foreign_.clear();
  EXPECT_THAT(audit(), IsEmpty());
  UniqueFd group(::open(app_group_->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  link_foreign(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, group.get());
  differences = audit();
  ASSERT_EQ(differences.size(), 1);
  EXPECT_THAT(differences[0].what,
              testing::MatchesRegex("program [0-9]+ .stranger. at its hook connect4"));
}

TEST_F(AuditTest, AControlGroupThatWasMadeAnewIsHookedAgain) {
  ASSERT_EQ(::rmdir(app_group_->path().c_str()), 0);
  ASSERT_EQ(::mkdir(app_group_->path().c_str(), 0755), 0);
  EXPECT_EQ(canary().error().code, Errc::refused);
  const auto differences = audit();
  EXPECT_GE(differences.size(), 5);
  for (const Difference& difference : differences) {
    EXPECT_TRUE(difference.is_repaired) << difference.what;
  }
  EXPECT_THAT(audit(), IsEmpty());
  must(canary());
}

TEST_F(AuditTest, ACanarySaysWhichFamilyIsNotCaptured) {
  detach("connect6");
  auto six = canary();
  ASSERT_FALSE(six);
  EXPECT_EQ(six.error().code, Errc::refused);
  EXPECT_THAT(six.error().message, testing::HasSubstr("by IPv6 was not captured"));
  detach("connect4");
  auto four = canary();
  ASSERT_FALSE(four);
  EXPECT_THAT(four.error().message, testing::HasSubstr("by IPv4 was not captured"));
}

// So it hangs there, as one does that the scheduler starves.
TEST_F(AuditTest, ACanaryThatDoesNotComeBackIsGivenUp) {
  std::ofstream(app_group_->path() + "/cgroup.freeze") << 1 << std::flush;
  const auto sent = std::chrono::steady_clock::now();
  must(datapath_->send_canary(app(), sent));
  EXPECT_THAT(datapath_->take_canaries(sent), IsEmpty());
  auto outcomes = datapath_->take_canaries(sent + std::chrono::seconds(2));
  ASSERT_TRUE(outcomes.contains(kApp));
  EXPECT_EQ(outcomes.at(kApp).error().code, Errc::timed_out);
  EXPECT_THAT(datapath_->take_canaries(sent + std::chrono::seconds(3)), IsEmpty());
  std::ofstream(app_group_->path() + "/cgroup.freeze") << 0 << std::flush;
}

TEST_F(AuditTest, WhoCouldNotBeEnrolledIsNotAudited) {
  app().netns = -1;
  app().netns_cookie = 1;
  apply();
  EXPECT_THAT(audit(), IsEmpty());
  must(datapath_->send_canary(app(), std::chrono::steady_clock::now()));
  EXPECT_EQ(count("connects_canary"), 0);
}

}  // namespace
}  // namespace mesh::test
