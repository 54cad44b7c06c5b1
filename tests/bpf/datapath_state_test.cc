// What outlives whom: owners, builds, workloads, full maps; and what `check` says of a machine.
#include <gmock/gmock.h>

#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

TEST_F(DatapathTest, ASecondOwnerIsRefused) {
  auto second = datapath::open_kernel_datapath(options_);
  ASSERT_TRUE(second.has_error());
  EXPECT_EQ(second.error().code, Errc::unavailable);
}

TEST_F(DatapathTest, GoesOnWithoutItsOwnerAndIsAdopted) {
  datapath_.reset();
  proxied("10.78.0.1:9080", 1);
  accept_on_both_servers();
  state_.services[at("[fd78::2]:70")] = balanced(2, {"[fd09::2]:8080", "[fd09::2]:8081"});
  state_.services[at("10.78.0.9:70")] = balanced(9, {"10.9.0.2:8080", "10.9.0.3:8080"});
  state_.services[at("10.78.0.9:70")].affinity = std::chrono::seconds(10800);
  state_.services[at("10.78.0.9:70")].resets_on_removal = true;
  state_.services[at("10.78.0.10:70")] = balanced(10, {});
  state_.services[at("10.78.0.11:70")] = balanced(11, {});
  state_.services[at("10.78.0.11:70")].of_clients = {
      {kApp, datapath::columns_of({{at("10.9.0.2:8080"), 1}, {std::nullopt, 2}})}, {kApp + 1, {}}};
  has_set("10.9.0.2", 3);
  verdict(3, 8080, false, 21);
  state_.refusals[{kApp, 5}] = 22;
  state_.blocks[IpBlock::parse("192.0.2.0/24").value()] = 9;
  state_.blocks[IpBlock::parse("fd00::/8").value()] = 10;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]), writer(ends[1]);
  Child owner(nullptr, nullptr, [&] {
    auto own = must(datapath::open_kernel_datapath(options_));
    if (!must(own->apply(state_)).empty()) std::abort();
    if (::write(writer.get(), "x", 1) != 1) std::abort();
    ::pause();
  });
  char ready = 0;
  ASSERT_EQ(::read(reader.get(), &ready, 1), 1);
  owner.kill();

  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
  std::size_t links = pins();
  open();
  EXPECT_EQ(must(datapath_->adopt()).workloads.at(kApp).addresses,
            state_.workloads.at(kApp).addresses);
  EXPECT_EQ(must(datapath_->adopt()).services, state_.services);
  EXPECT_EQ(must(datapath_->adopt()).peers, state_.peers);
  EXPECT_EQ(must(datapath_->adopt()).sets, state_.sets);
  EXPECT_EQ(must(datapath_->adopt()).blocks, state_.blocks);
  EXPECT_EQ(must(datapath_->adopt()).refusals, state_.refusals);
  apply_all();
  EXPECT_EQ(pins(), links);
  EXPECT_EQ(count("connects_denied_policy"), 1);
  proxy_lives();
  EXPECT_EQ(peer_from_app("10.78.0.1:9080", AF_INET).address, at("10.78.0.1:9080"));
  EXPECT_EQ(next_destination(proxy4_, SOL_IP).address, at("10.78.0.1:9080"));
}

TEST_F(DatapathTest, ReplacesTheProgramsOfAnotherBuildInPlace) {
  accept_on_both_servers();
  has_set("10.9.0.2", 3);
  apply_all();
  datapath_.reset();
  bpf_link_info before = link_info("7/connect4");
  write_meta(UM_LAYOUT);
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  bpf_link_info after = link_info("7/connect4");
  EXPECT_EQ(after.id, before.id);
  EXPECT_NE(after.prog_id, before.prog_id);
  EXPECT_EQ(after.cgroup.cgroup_id, before.cgroup.cgroup_id);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
}

TEST_F(DatapathTest, RefusesPinsThatDoNotSayOfWhichLayoutAndNamesTheRemedy) {
  datapath_.reset();
  write_meta(0);
  auto opened = datapath::open_kernel_datapath(options_);
  ASSERT_TRUE(opened.has_error());
  EXPECT_THAT(opened.error().message, testing::HasSubstr("meshctl disable --all"));
}

TEST_F(DatapathTest, ALoadErrorCarriesWhatLibbpfAndTheKernelSaid) {
  datapath::Options options = options_;
  options.pin_dir += "-other";
  options.max_workloads = 0xffffffff / 2;  // its records alone are 2 TB
  auto opened = datapath::open_kernel_datapath(options);
  must(datapath::disable_all(options.pin_dir));
  ASSERT_TRUE(opened.has_error());
  EXPECT_THAT(opened.error().message, testing::HasSubstr("um_"));
  EXPECT_LT(opened.error().message.size(), 4000);
}

TEST_F(DatapathTest, AWorkloadThatComesBackUnderItsIdIsCaughtAgain) {
  apply_all();
  NetNs second = NetNs::create();
  std::string path = app_group_->path();
  ASSERT_EQ(::rmdir(path.c_str()), 0);  // and made again at the same place
  ASSERT_EQ(::mkdir(path.c_str(), 0755), 0);
  state_.workloads[kApp].netns_cookie = second.cookie();
  state_.workloads[kApp].netns = second.fd();
  verdict(3, 0, false, 1);
  has_set("10.9.0.2", 3);
  apply_all();
  EXPECT_EQ(in_child(&*app_group_, &second, [] { return try_connect("10.9.0.2:80"); }), kRefused);
  EXPECT_EQ(count("connects_denied_policy"), 1);
}

TEST_F(DatapathTest, AWorkloadThatEndsLeavesNothing) {
  std::size_t before = pins();
  proxied("10.78.0.1:9080", 1);
  state_.refusals[{kApp, 1}] = 22;
  accept_on_both_servers();
  apply_all();
  EXPECT_EQ(pins(), before + pins_of_a_workload());
  EXPECT_EQ(entries_of("um_workloads"), 1);
  state_ = {};
  apply_all();
  EXPECT_EQ(pins(), before);
  for (const char* map : {"um_workloads", "um_own_addresses", "um_workload_records", "um_services",
                          "um_client_services", "um_backends", "um_members", "um_sets", "um_peers",
                          "um_blocks", "um_refusals", "um_records"})
    EXPECT_EQ(entries_of(map), 0) << map;
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);  // no program is left to refuse it
}

TEST_F(DatapathTest, AWorkloadThatEndedWhileNobodyLookedLeavesNothing) {
  std::size_t before = pins();
  apply_all();
  datapath_.reset();
  open();
  state_ = {};
  apply_all();
  EXPECT_EQ(pins(), before);
  EXPECT_EQ(entries_of("um_workloads"), 0);
}

TEST_F(DatapathTest, AWorkloadThatEndsTakesItsRecordsAlong) {
  proxy_serves("10.78.0.1:9080");
  proxy4_.reset();
  UniqueFd small = app_->listen(kProxy4, "lo", 0);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]), writer(ends[1]);
  // The backlog takes one; the rest stay unanswered, their records with them.
  Child clients(&*app_group_, &*app_, [&] {
    auto raw = raw_address(at("10.78.0.1:9080"), AF_INET);
    for (int i = 0; i < 6; ++i) {
      int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
      (void)::connect(fd, raw.get(), raw.size);
    }
    if (::write(writer.get(), "x", 1) != 1) std::abort();
    ::pause();
  });
  char dialled = 0;
  ASSERT_EQ(::read(reader.get(), &dialled, 1), 1);
  EXPECT_EQ(count("records_written"), 6);
  state_ = {};
  apply_all();
  EXPECT_EQ(entries_of("um_records"), 0);
}

TEST_F(DatapathTest, AWorkloadWhoseCgroupIsGoneIsReportedAlone) {
  state_.workloads[8] = workload(8, *server_, app_group_->path() + "-gone");
  auto problems = apply();
  ASSERT_EQ(problems.size(), 1);
  EXPECT_EQ(problems.begin()->first, 8);
  EXPECT_EQ(problems.begin()->second.code, Errc::not_found);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);  // by the server: nobody listens
  EXPECT_EQ(count("connects_direct"), 1);
}

TEST_F(DatapathTest, TwoWorkloadsCannotShareANamespace) {
  state_.workloads[8] = workload(8, *app_, app_group_->path());
  auto problems = apply();
  ASSERT_EQ(problems.size(), 1);
  EXPECT_EQ(problems.begin()->first, 8);
}

TEST_F(DatapathTest, DisableAllDetachesEverything) {
  accept_on_both_servers();
  has_set("10.9.0.2", 3);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  UniqueFd held(::bpf_obj_get((options_.pin_dir + "/links/7/connect4").c_str()));  // by whomever
  EXPECT_FALSE(must(datapath::disable_all(options_.pin_dir)).empty());
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), 0);
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir));
  EXPECT_TRUE(must(datapath::disable_all(options_.pin_dir)).empty());
}

TEST_F(DatapathTest, DisableAllTouchesNothingButABpffs) {
  EXPECT_TRUE(datapath::disable_all("/tmp").has_error());
}

TEST_F(DatapathTest, AFullMapOfSetsDenies) {
  accept_on_both_servers();
  has_set("10.9.0.2", 200);
  has_set("10.9.0.3", 300);
  for (datapath::SetId set = 100; set < 201; ++set) verdict(set, 0, true, 1);
  EXPECT_TRUE(apply().contains(0));
  EXPECT_TRUE(datapath_->misfits().sets.contains(200)) << "by name";
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(count("connects_denied_no_verdict"), 1);
  // Room again: everything that is wanted gets in, in one call.
  state_.sets.clear();
  for (datapath::SetId set = 200; set < 250; ++set) verdict(set, 0, true, 1);
  apply_all();
  EXPECT_EQ(datapath_->misfits(), datapath::Misfits{});
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(DatapathTest, ARefusalOfAServiceThatDoesNotFitRefuses) {
  proxied("10.78.0.1:9080", 900);
  for (datapath::ServiceId service = 800; service < 901; ++service)
    state_.refusals[{kApp, service}] = 1;
  EXPECT_TRUE(apply().contains(kApp));
  EXPECT_TRUE(datapath_->misfits().refusals.contains({kApp, 900}));
  proxy_lives();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  state_.refusals.clear();
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), 0);
}

TEST_F(DatapathTest, AFullMapOfDestinationsRefusesWhatItDoesNotHold) {
  accept_on_both_servers();
  for (int i = 0; i < 80; ++i)
    state_.peers[IpAddress::v4(10, 200, 0, static_cast<std::uint8_t>(i))] = {1, 3};
  has_set("10.250.0.1", 3);
  EXPECT_TRUE(apply().contains(0));
  EXPECT_TRUE(datapath_->misfits().peers.contains(ip("10.250.0.1")));
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), kDenied);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(count("mesh_connects_denied_map_full"), 1);
  state_.peers.clear();
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(DatapathTest, AWorkloadThatDoesNotFitIsRefusedEverything) {
  // Before the application's in the order of writing (by bytes).
  for (datapath::WorkloadId id = 100; id < 164; ++id) {
    state_.workloads[id] = workload(id, *app_, "");
    state_.workloads[id].netns_cookie = std::uint64_t{id} << 16;
  }
  state_.workloads.erase(kApp);
  state_.workloads[500] = workload(500, *app_, app_group_->path());
  EXPECT_TRUE(apply().contains(500));
  UniqueFd listening = server_->listen("10.9.0.2:8080");
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
}

TEST_F(DatapathTest, WithoutRoomForARecordTheProxyGetsNoDestination) {
  proxy_serves("10.78.0.1:9080");
  UniqueFd records = map("um_records");
  um_destination nowhere{};
  um_record_key key{};
  while (::bpf_map_update_elem(records.get(), &key, &nowhere, BPF_ANY) == 0) ++key.netns_cookie;
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), 0);
  UniqueFd accepted = accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  EXPECT_NE(original_destination(accepted.get(), SOL_IP).err, 0);
  EXPECT_EQ(count("records_full"), 1);
  EXPECT_EQ(count("accepted_without_destination"), 1);
}

TEST(Machine, FindsCgroup2ByItsType) {
  auto found = datapath::find_cgroup2();
  ASSERT_TRUE(found);
  EXPECT_EQ(found.value(), cgroup2_mount());
}

TEST_F(DatapathTest, CheckSaysOkOfThisMachine) {
  for (const auto& finding : datapath::check_machine(app_group_->path()))
    EXPECT_NE(finding.level, datapath::Finding::Level::kError)
        << finding.subject << ": " << finding.message << ": " << finding.remedy;
}

// What neighbours attach above ours: `flags` at a parent of the cgroup that is checked.
class CheckTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!is_root() || cgroup2_mount().empty()) GTEST_SKIP() << "needs root and cgroup2";
    parent_.emplace(Cgroup::create("parent"));
    const bpf_insn pass[] = {{BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 1},
                             {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}};
    LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_CGROUP_INET4_CONNECT);
    program_.reset(
        ::bpf_prog_load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "neighbour", "GPL", pass, 2, &options));
    ASSERT_TRUE(program_);
  }
  // False where this kernel does not know the flags.
  bool attach(std::uint32_t flags) {
    group_.reset(::open(parent_->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return ::bpf_prog_attach(program_.get(), group_.get(), BPF_CGROUP_INET4_CONNECT, flags) == 0;
  }
  datapath::Finding worst() {
    datapath::Finding out;
    for (const auto& finding : datapath::check_machine(parent_->path() + "/undermesh/mesh"))
      if (finding.subject == "programs" && finding.level > out.level) out = finding;
    return out;
  }
  std::optional<Cgroup> parent_;
  UniqueFd program_, group_;
};

using Level = datapath::Finding::Level;

TEST_F(CheckTest, IsContentWithANeighbourThatAllowsOthers) {
  ASSERT_TRUE(attach(BPF_F_ALLOW_MULTI));
  EXPECT_EQ(worst().level, Level::kOk);
}

TEST_F(CheckTest, NamesAnExclusiveProgram) {
  ASSERT_TRUE(attach(0));
  datapath::Finding finding = worst();
  EXPECT_EQ(finding.level, Level::kError);
  EXPECT_NE(finding.remedy, "");
  bool named = false;
  for (const auto& f : datapath::check_machine(parent_->path()))
    named |= f.message.find("neighbour") != std::string::npos && f.level == Level::kError;
  EXPECT_TRUE(named);
}

TEST_F(CheckTest, WarnsOfAProgramThatOursWouldReplace) {
  ASSERT_TRUE(attach(BPF_F_ALLOW_OVERRIDE));
  EXPECT_EQ(worst().level, Level::kWarning);
}

TEST_F(CheckTest, WarnsOfAProgramThatRunsBeforeOurs) {
  if (!attach(BPF_F_ALLOW_MULTI | (1U << 6))) GTEST_SKIP() << "the kernel has no BPF_F_PREORDER";
  datapath::Finding finding = worst();
  EXPECT_EQ(finding.level, Level::kWarning);
  EXPECT_THAT(finding.message, testing::HasSubstr("neighbour"));
}

}  // namespace
}  // namespace mesh::test
