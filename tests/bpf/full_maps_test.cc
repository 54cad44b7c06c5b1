// What happens where a map is full: a refusal that is counted, or nothing that anybody could use,
// counted too. The maps that are written from outside are in datapath_state_test.cc and
// services_test.cc as well, those of UDP, DNS and the fast path in the tests of these.
#include <gmock/gmock.h>
#include <poll.h>
#include <unistd.h>

#include "config/object.h"
#include "control/misfits.h"
#include "tests/support/accepts_once.h"
#include "tests/support/datagrams.h"
#include "tests/support/datapath_fixture.h"
#include "tests/support/eventually.h"
#include "tests/support/memory_files.h"

namespace mesh::test {
namespace {

constexpr datapath::WorkloadId kServer = 8, kGateway = 1;
constexpr const char* kFirst = "10.9.0.2:8080";
constexpr const char* kSecond = "10.9.0.3:8080";
constexpr const char* kService = "10.78.0.1:70";

class FullMapsTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    accept_on_both_servers();
  }
  void server_is_judged_by(datapath::SetId set) {
    state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
    state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("10.9.0.3")};
    state_.workloads[kServer].class4 = 80;
    state_.workloads[kServer].ingress = set;
    has_set("10.9.0.2", set);
  }
  // In the application's namespace, which plays the host's.
  void app_is_the_gateway() {
    state_.workloads.erase(kApp);
    state_.workloads[kGateway] = workload(kGateway, *app_, "");
  }
  // What strangers and the gateway (or the application) may do at the server.
  void may(bool strangers, bool app) {
    state_.sets.clear();
    verdict(5, 0, strangers, 51, 0);
    verdict(5, 0, app, 52);
    apply_all();
  }
  void fill(const char* name) const { DatapathTest::fill(map(name).get()); }
  static UniqueFd connected(const NetNs& ns, const std::string& to) {
    UniqueFd fd = ns.run([&] { return tcp_socket_for(to); });
    EXPECT_EQ(connect_socket(fd.get(), to), 0) << to;
    return fd;
  }
  static bool has_ended(const UniqueFd& fd, int patience_ms) {
    pollfd end{fd.get(), POLLIN, 0};
    char byte;
    return ::poll(&end, 1, patience_ms) == 1 && ::recv(fd.get(), &byte, 1, MSG_DONTWAIT) < 0;
  }
};

// --- um_clients: by which servers know the gateway from others of its host

TEST_F(FullMapsTest, TheGatewayGainsNothingAsAStranger) {
  server_is_judged_by(5);
  app_is_the_gateway();
  may(true, false);
  fill("um_clients");
  EXPECT_EQ(connect_from_mesh(kFirst), kDenied) << "by its own end";
  EXPECT_EQ(count("mesh_connects_denied_policy"), 1);
  EXPECT_EQ(count("flows_full"), 0);
  may(false, true);
  EXPECT_EQ(connect_from_mesh(kFirst), kRefused) << "by the server's";
  EXPECT_EQ(count("flows_full"), 1);
  EXPECT_EQ(count("arrivals_denied_policy"), 1);
}

TEST_F(FullMapsTest, AConnectionOfTheGatewayThatNobodyKnowsIsEnded) {
  server_is_judged_by(5);
  app_is_the_gateway();
  may(true, true);
  fill("um_clients");
  const UniqueFd forbidden = connected(*app_, kFirst), fine = connected(*app_, kSecond);
  EXPECT_EQ(count("flows_full"), 2);
  // What came to the gateway, and what others of its host do.
  UniqueFd listener = app_->listen("10.9.0.1:7000");
  elsewhere_->enter();
  const UniqueFd arrived = connected(*server_, "10.9.0.1:7000");
  const UniqueFd of_the_host = connected(*app_, kFirst);
  mesh_group_->enter();
  const UniqueFd accepted = accept_within(listener.get());
  ASSERT_TRUE(accepted);
  listener.reset();                           // what it accepted is so all the same
  state_.workloads.at(kGateway).ingress = 6;  // which says nothing of who comes to it
  may(true, false);
  must(datapath_->end_forbidden(state_));
  EXPECT_TRUE(has_ended(forbidden, 30'000));
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
  for (const UniqueFd* fd : {&fine, &arrived, &accepted, &of_the_host})
    EXPECT_FALSE(has_ended(*fd, 0));
}

// --- um_connections: which end of a connection this is

TEST_F(FullMapsTest, AServerThatNobodyWroteDownIsOneAlsoWhereItListensNoMore) {
  server_is_judged_by(5);
  state_.workloads.erase(kApp);
  may(true, true);
  fill("um_connections");
  const AcceptsOnce server(*server_group_, *server_, "10.9.0.2:40010");
  // The proxy's own, in the server's namespace: nobody ever writes them down.
  const UniqueFd listener = app_->listen("10.9.0.1:7000");
  const UniqueFd of_the_proxy = connected(*server_, "10.9.0.1:7000");
  elsewhere_->enter();
  const UniqueFd client = connected(*app_, "10.9.0.2:40010");
  mesh_group_->enter();
  ASSERT_TRUE(server.listens_no_more());
  EXPECT_EQ(count("connections_unrecorded"), 1);
  must(datapath_->end_forbidden(state_));
  EXPECT_EQ(count("connections_ended_by_policy"), 0);
  may(false, false);
  must(datapath_->end_forbidden(state_));
  EXPECT_TRUE(has_ended(client, 30'000));
  EXPECT_EQ(count("connections_ended_by_policy"), 1);
  EXPECT_FALSE(has_ended(of_the_proxy, 0));
}

// --- um_events: what is told of connections

// So far behind that there is no room for anything, until it is let go.
class LazyReader {
 public:
  explicit LazyReader(int ring) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    void* own = ::mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
    void* writers = ::mmap(nullptr, page, PROT_READ, MAP_SHARED, ring, static_cast<::off_t>(page));
    if (own == MAP_FAILED || writers == MAP_FAILED ||
        ::bpf_obj_get_info_by_fd(ring, &info, &size) != 0)
      fixture_failed("map the ring");
    place_ = static_cast<volatile std::uint64_t*>(own);
    was_ = *place_;
    *place_ = *static_cast<volatile std::uint64_t*>(writers) - info.max_entries;
    ::munmap(writers, page);
  }
  ~LazyReader() {
    *place_ = was_;
    ::munmap(const_cast<std::uint64_t*>(place_), static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)));
  }

 private:
  volatile std::uint64_t* place_;
  std::uint64_t was_ = 0;
};

TEST_F(FullMapsTest, WithoutRoomForAnEventAllIsDecidedAsEver) {
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 21);
  apply_all();
  const UniqueFd ring = map("um_events");
  {
    const LazyReader reader(ring.get());
    EXPECT_EQ(connect_from_app(kFirst), kRefused);
    EXPECT_EQ(count("connects_denied_policy"), 1);
    EXPECT_EQ(count("connection_events_lost"), 1);
    EXPECT_EQ(connect_from_app(kSecond), 0);
    accept_within(second_.get()).reset();
    EXPECT_TRUE(eventually([&] { return count("connection_events_lost") == 2; }));
  }
  EXPECT_EQ(connect_from_app(kFirst), kRefused);
  const auto flows = must(datapath_->take_flows());
  ASSERT_EQ(flows.size(), 1);
  EXPECT_EQ(flows[0].kind, datapath::Flow::Kind::kDenied);
  EXPECT_EQ(entries_of("um_connections"), 0) << "closed, whoever was told";
}

// --- um_policy_counts

TEST_F(FullMapsTest, WithoutRoomToCountForAPolicyItIsAppliedAsEver) {
  has_set("10.9.0.2", 3);
  verdict(3, 0, false, 21);
  apply_all();
  fill("um_policy_counts");
  EXPECT_EQ(connect_from_app(kFirst), kRefused);
  EXPECT_EQ(count("connects_denied_policy"), 1);
  EXPECT_EQ(count("policy_counts_lost"), 1);
  for (auto& [what, decided] : state_.sets[3]) decided = {true, 22, 23};
  apply_all();
  EXPECT_EQ(connect_from_app(kFirst), 0);
  EXPECT_EQ(count("policy_counts_lost"), 3) << "for what allows, and for what audits";
}

// --- um_client_services, um_members, um_blocks

TEST_F(FullMapsTest, AServiceWhoseClientsDoNotFitIsRefused) {
  state_.services[at("10.78.0.2:70")] = balanced(2, {kSecond});
  ServiceEntry& service = state_.services[at(kService)] = balanced(1, {});
  service.of_clients.emplace();
  for (datapath::WorkloadId client = 1000; client < 1256; ++client) (*service.of_clients)[client];
  (*service.of_clients)[kApp] = datapath::columns_of({{at(kFirst), 1}});
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(connect_from_app(kService), kRefused);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), 0);
  state_.services[at(kService)].of_clients->erase(1000);
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
}

TEST_F(FullMapsTest, AServiceWhoseMembersDoNotFitIsRefused) {
  state_.services[at("10.78.0.2:70")] = balanced(2, {kSecond});
  const auto sticky = [](int endpoints) {
    std::vector<std::string> to;
    for (int i = 0; i < endpoints; ++i) to.push_back("10.9.0.2:" + std::to_string(8080 + i));
    ServiceEntry service = balanced(1, to);
    service.affinity = std::chrono::seconds(60);
    return service;
  };
  state_.services[at(kService)] = sticky(65);  // the map has 64
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(connect_from_app(kService), kRefused);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), 0);
  EXPECT_EQ(entries_of("um_members"), 0) << "nothing half written";
  state_.services[at(kService)] = sticky(1);
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
}

TEST_F(FullMapsTest, WhereBlocksDoNotFitStrangersAreRefusedBothWays) {
  server_is_judged_by(5);
  verdict(5, 0, true, 51, 0);
  verdict(5, 0, true, 52);
  const std::uint32_t half = 16384;
  for (std::uint32_t i = 0; i <= half; ++i)
    state_.blocks[{
        IpAddress::v4(172, 16, static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i)),
        32}] = 9;
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(datapath_->misfits().blocks.size(), 1);
  EXPECT_EQ(connect_from_app(kSecond), kRefused) << "a stranger's address";
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(in_child(&*elsewhere_, &*app_, [] { return try_connect(kFirst); }), kRefused);
  EXPECT_EQ(count("arrivals_denied_map_full"), 1);
  state_.peers[ip("10.9.0.1")] = {kAppClass, 0};
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(connect_from_app(kFirst), 0) << "who is known by an address of its own";
  state_.blocks.clear();
  apply_all();
  EXPECT_EQ(connect_from_app(kSecond), 0);
}

TEST_F(FullMapsTest, EveryMapThatIsFullIsSaid) {
  for (datapath::SetId set = 100; set < 201; ++set) verdict(set, 0, true, 1);
  for (int i = 0; i < 80; ++i) has_set("10.200.0." + std::to_string(i), 100);
  for (std::uint16_t port = 1; port < 200; ++port)
    state_.udp_services[{ip("10.78.0.1"), port}] = balanced(port, {kFirst});
  const auto problems = apply();
  ASSERT_TRUE(problems.contains(0));
  for (const char* map : {"policy sets", "peers", "services and endpoints"})
    EXPECT_THAT(problems.at(0).message, testing::HasSubstr(map));
  const datapath::Misfits& misfits = datapath_->misfits();
  EXPECT_FALSE(misfits.sets.empty() || misfits.peers.empty() || misfits.udp_services.empty());
  EXPECT_TRUE(misfits.services.empty());
}

// --- by what names meshd says so

// A configuration as meshd compiles it: the server, and policies.
struct Configured {
  config::Compiled compiled;
  test::MemoryFiles files;
  control::Numbers numbers{files, "/ids.json", IpBlock::parse("10.78.0.0/16").value()};
  State state;

  Configured(const std::string& policies, const State& workloads)
      : compiled(config::compile(objects(policies), 1, {})) {
    std::vector<control::Client> clients;
    for (const auto& [id, kernel] : workloads.workloads)
      clients.push_back({kernel, compiled.snapshot->workload_by_address.at(kernel.addresses[0])});
    state = control::kernel_state({*compiled.snapshot, nullptr, {}, clients}, numbers);
  }
  static std::vector<config::ObjectPtr> objects(const std::string& policies) {
    std::vector<config::ObjectPtr> all;
    for (auto& object : must(config::parse_objects(R"(
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server}
spec: {address: 10.9.0.2, labels: {app: server}}
)" + policies,
                                                   "test.yaml")))
      all.push_back(std::make_shared<config::Object>(std::move(object)));
    return all;
  }
  control::NamedMisfits names(const datapath::Misfits& misfits) const {
    return control::name_misfits(misfits, state, *compiled.snapshot,
                                 control::policy_rules(numbers));
  }
};

std::string allow_from(const std::string& name, const std::string& blocks) {
  return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " +
         name +
         "}\nspec:\n  selector: {matchLabels: {app: server}}\n  rules: [{from: [{source: "
         "{ipBlocks: [" +
         blocks + "]}}]}]\n";
}

TEST_F(FullMapsTest, APolicyWhoseBlocksDoNotFitIsNamedAndDeniesWhatItSelects) {
  server_is_judged_by(0);
  std::string many;
  for (int i = 0; i < 16384; ++i)  // with the block of the other policy one too many
    many += "172.16." + std::to_string(i >> 8) + "." + std::to_string(i & 255) + ", ";
  const auto stranger_connects = [&] {
    return in_child(&*elsewhere_, &*app_, [] { return try_connect(kFirst); });
  };
  const auto applied = [&](const Configured& configured) {
    state_ = configured.state;
    return apply();
  };
  state_.workloads.erase(kApp);  // a stranger: by 10.9.0.0/24
  const State workloads = state_;
  const Configured wide(
      allow_from("wide", many + "172.16.255.0/24") + allow_from("narrow", "10.9.0.0/24"),
      workloads);
  EXPECT_TRUE(applied(wide).contains(0));
  const auto named = wide.names(datapath_->misfits());
  ASSERT_EQ(named.policies.size(), 1);
  EXPECT_EQ(named.policies.begin()->first, "AuthorizationPolicy default/wide");
  EXPECT_EQ(stranger_connects(), kRefused);
  EXPECT_EQ(count("arrivals_denied_map_full"), 1);
  const Configured narrow(allow_from("narrow", "10.9.0.0/24"), workloads);
  EXPECT_TRUE(applied(narrow).empty());
  EXPECT_EQ(narrow.names(datapath_->misfits()), control::NamedMisfits{});
  EXPECT_EQ(stranger_connects(), 0);
}

// --- um_own_addresses

TEST_F(FullMapsTest, AnAddressThatIsNotKnownAsItsOwnIsJudged) {
  const UniqueFd own = app_->listen("10.9.0.1:7000");
  state_.workloads[kApp].egress = 6;
  verdict(6, 0, false, 61, 0);
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.1:7000"), 0);
  for (int i = 0; i < 256; ++i)  // all that the map holds, and before its own in order
    state_.workloads[kApp].addresses.push_back(
        IpAddress::v4(10, 1, 0, static_cast<std::uint8_t>(i)));
  datapath_.reset();
  must(datapath::disable_all(options_.pin_dir));
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  EXPECT_TRUE(apply().contains(kApp));
  EXPECT_EQ(connect_from_app("10.9.0.1:7000"), kRefused);
  EXPECT_EQ(count("connects_denied_policy"), 1);
}

}  // namespace
}  // namespace mesh::test
