// Another version takes over: other programs, and maps of other shapes.
#include <gmock/gmock.h>
#include <poll.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "datapath/byte_order.h"
#include "tests/support/datapath_fixture.h"
#include "tests/support/eventually.h"

namespace mesh::test {
namespace {

namespace fs = std::filesystem;

constexpr const char* kService = "10.78.0.1:9080";
constexpr const char* kBalanced = "10.78.0.2:70";

// Clients of the application that connect without end: to what is allowed, and to what is not.
struct Dialled {
  std::atomic<std::uint64_t> allowed{0}, refused{0}, wrongly_allowed{0}, wrongly_refused{0};
};

class UpgradeTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (IsSkipped()) return;
    shared_ = static_cast<Dialled*>(::mmap(nullptr, sizeof(Dialled), PROT_READ | PROT_WRITE,
                                           MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(shared_, MAP_FAILED);
    accept_on_both_servers();
    denied_ = server_->listen("10.9.0.2:8082");
    has_set("10.9.0.2", 3);
    has_set("10.9.0.3", 3);
    verdict(3, 0, false, 21);
    verdict(3, 8080, true, 22);
    state_.services[at(kBalanced)] = balanced(2, {"10.9.0.2:8080", "10.9.0.3:8080"});
    proxy_serves(kService);
  }
  void TearDown() override {
    if (shared_ != nullptr) ::munmap(shared_, sizeof(Dialled));
    DatapathTest::TearDown();
  }

  std::string maps_dir(std::uint32_t layout) const {
    return options_.pin_dir + "/maps_" + std::to_string(layout);
  }
  // What is pinned becomes that of another version: its programs and maps are as they were, under
  // another number.
  void becomes_another_layout(std::uint32_t layout) {
    datapath_.reset();
    fs::rename(maps_dir(UM_LAYOUT), maps_dir(layout));
    write_meta(layout);
  }
  // All maps were in one directory, and a service said itself who it is.
  void becomes_layout_2() {
    datapath_.reset();
    const std::string dir = options_.pin_dir + "/maps";
    for (const auto& pin : fs::directory_iterator(maps_dir(UM_LAYOUT)))
      fs::rename(pin.path(), dir + "/" + pin.path().filename().string());
    ASSERT_EQ(::rmdir(maps_dir(UM_LAYOUT).c_str()), 0);
    services_of_layout_2(dir);
    write_meta(2);
  }
  void services_of_layout_2(const std::string& dir) {
    struct Service {
      std::uint32_t id, kind, backends;
    };
    UniqueFd services(::bpf_map_create(BPF_MAP_TYPE_HASH, "um_services", sizeof(um_destination),
                                       sizeof(Service), 64, nullptr));
    for (const auto& [address, entry] : state_.services) {
      const um_destination key = datapath::kernel_destination(address);
      const Service value{entry.id, entry.kind == ServiceEntry::Kind::kProxy ? 1U : 2U, 0};
      ASSERT_EQ(::bpf_map_update_elem(services.get(), &key, &value, BPF_ANY), 0);
    }
    for (const char* map : {"/um_services", "/um_slots"})
      ASSERT_EQ(::unlink((dir + map).c_str()), 0);
    ASSERT_EQ(::bpf_obj_pin(services.get(), (dir + "/um_services").c_str()), 0);
  }
  void take_over() {
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    apply_all();
  }

  void dial_without_end() {
    datapath_.reset();  // the lock that this child inherited
    for (;;) {
      const int good = try_connect(shared_->allowed % 2 == 0 ? "10.9.0.2:8080" : kBalanced);
      ++(good == 0 ? shared_->allowed : shared_->wrongly_refused);
      const int bad = try_connect("10.9.0.2:8082");
      ++(bad == kRefused ? shared_->refused : shared_->wrongly_allowed);
    }
  }
  // Nobody accepts on them but this.
  void accept_without_end(const std::atomic<bool>& done) {
    pollfd waiting[2] = {{first_.get(), POLLIN, 0}, {second_.get(), POLLIN, 0}};
    while (!done) {
      if (::poll(waiting, 2, 20) <= 0) continue;
      for (const pollfd& ready : waiting)
        if (ready.revents != 0) accept_within(ready.fd, 0);
    }
  }
  // While clients dial: `work`, and some more of their connects after it.
  template <class Work>
  void under_load(Work work) {
    std::atomic<bool> done{false};
    std::thread acceptor([&] { accept_without_end(done); });
    {
      Child client(&*app_group_, &*app_, [&] { dial_without_end(); });
      const auto wait_for_more = [&] {
        const auto judged = [&] { return shared_->refused + shared_->wrongly_allowed; };
        const std::uint64_t enough = judged() + 50;
        EXPECT_TRUE(eventually([&] { return judged() >= enough; }));
      };
      wait_for_more();
      work(wait_for_more);
      wait_for_more();
    }
    done = true;
    acceptor.join();
    EXPECT_EQ(shared_->wrongly_allowed, 0);
    EXPECT_EQ(shared_->wrongly_refused, 0);
  }

  Dialled* shared_ = nullptr;
  UniqueFd denied_;
};

// The agent of another layout, a process of its own: its programs judge by maps of other shapes.
class OtherAgent {
 public:
  OtherAgent(const std::string& pin_dir, const Cgroup& mesh, const NetNs& ns, const Cgroup& app) {
    int out[2];
    if (::pipe2(out, O_CLOEXEC) != 0) fixture_failed("pipe");
    const UniqueFd told(out[0]), its_out(out[1]);
    const std::string cookie = std::to_string(ns.cookie()), netns = ns.path();  // by our fd
    process_.emplace(nullptr, nullptr, [&] {
      ::dup2(out[1], STDOUT_FILENO);
      ::execl(MESH_OTHER_LAYOUT_AGENT, MESH_OTHER_LAYOUT_AGENT, pin_dir.c_str(),
              mesh.path().c_str(), cookie.c_str(), netns.c_str(), app.path().c_str(), nullptr);
    });
    char said[64] = {};
    pollfd ready{told.get(), POLLIN, 0};
    is_ready_ = ::poll(&ready, 1, 60'000) == 1 && ::read(told.get(), said, sizeof said) == 6;
  }
  bool is_ready() const { return is_ready_; }
  void kill() { process_->kill(); }

 private:
  bool is_ready_ = false;
  std::optional<Child> process_;
};

TEST_F(UpgradeTest, ProgramsOverMapsOfOtherShapesAreReplacedAndTheirConnectionsLiveOn) {
  stop_heart();
  datapath_.reset();
  must(datapath::disable_all(options_.pin_dir));
  OtherAgent other(options_.pin_dir, *mesh_group_, *app_, *app_group_);
  ASSERT_TRUE(other.is_ready());
  ASSERT_TRUE(fs::exists(maps_dir(UM_LAYOUT - 1)));
  EXPECT_FALSE(fs::exists(maps_dir(UM_LAYOUT)));
  ASSERT_EQ(connect_from_app("10.9.0.2:8082"), kRefused);
  app_group_->enter();
  UniqueFd open_one = app_->run([] { return UniqueFd(dial(kBalanced, AF_INET)); });
  mesh_group_->enter();
  UniqueFd served = accept_within(first_.get(), 1000);
  if (!served) served = accept_within(second_.get());
  ASSERT_TRUE(served);
  const auto lives = [&] {
    char byte = 0;
    return ::send(open_one.get(), "x", 1, MSG_NOSIGNAL) == 1 &&
           ::read(served.get(), &byte, 1) == 1 && peer_of(open_one.get()).address == at(kBalanced);
  };
  under_load([&](auto wait_for_more) {
    other.kill();
    wait_for_more();
    open();
    const State was = must(datapath_->adopt());
    EXPECT_EQ(was.workloads.at(kApp).addresses, state_.workloads.at(kApp).addresses);
    EXPECT_TRUE(was.services.contains(at(kService)));
    must(datapath_->attach_mesh(mesh_group_->path()));
    wait_for_more();
    EXPECT_TRUE(fs::exists(maps_dir(UM_LAYOUT - 1))) << "they decide until the change-over";
    apply_all();
  });
  EXPECT_FALSE(fs::exists(maps_dir(UM_LAYOUT - 1)));
  EXPECT_GT(count("connects_denied_policy"), 0) << "by the new programs, in the new maps";
  EXPECT_TRUE(lives());
  // The client's last ones are closed in their own time.
  EXPECT_TRUE(eventually([&] { return entries_of("um_connections") == 1; }))
      << "what the other's programs wrote down";
  verdict(3, 8080, false, 23);
  apply_all();
  must(datapath_->end_forbidden(state_));
  EXPECT_FALSE(lives());
  // And what its last ones left half closed, as nobody accepts any more.
  EXPECT_GE(count("connections_ended_by_policy"), 1);
}

TEST_F(UpgradeTest, AnotherLayoutTakesOverWithoutAGap) {
  under_load([&](auto wait_for_more) {
    const auto program = link_info("7/connect4").prog_id;
    becomes_another_layout(77);
    open();
    EXPECT_EQ(must(datapath_->adopt()).workloads.at(kApp).netns_cookie, app_->cookie());
    EXPECT_EQ(must(datapath_->adopt()).workloads.at(kApp).addresses,
              state_.workloads.at(kApp).addresses);
    must(datapath_->attach_mesh(mesh_group_->path()));
    EXPECT_EQ(link_info("7/connect4").prog_id, program) << "before its maps are filled";
    EXPECT_EQ(connect_from_mesh("10.9.0.2:8082"), kDenied);
    EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), 0);
    wait_for_more();
    apply_all();
    EXPECT_NE(link_info("7/connect4").prog_id, program);
  });
  EXPECT_FALSE(fs::exists(maps_dir(77)));
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8082"), kDenied);
  // And of one layout from now on.
  datapath_.reset();
  open();
  EXPECT_EQ(must(datapath_->adopt()).peers, state_.peers);
}

TEST_F(UpgradeTest, OfAnotherLayoutTheProxiedServicesAreKnown) {
  becomes_another_layout(77);
  open();
  const State adopted = must(datapath_->adopt());
  ASSERT_EQ(adopted.services.size(), 1);  // what is balanced follows from the configuration
  EXPECT_EQ(adopted.services.at(at(kService)), state_.services.at(at(kService)));
}

TEST_F(UpgradeTest, OfLayout2TheProxiedServicesAreKnown) {
  becomes_layout_2();
  open();
  const State adopted = must(datapath_->adopt());
  ASSERT_EQ(adopted.services.size(), 1);
  EXPECT_EQ(adopted.services.at(at(kService)), state_.services.at(at(kService)));
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  EXPECT_EQ(connect_from_app(kBalanced), 0);
}

TEST_F(UpgradeTest, ConnectionsOutliveAnotherLayout) {
  int ends[2][2];
  ASSERT_EQ(::pipe(ends[0]), 0);
  ASSERT_EQ(::pipe(ends[1]), 0);
  UniqueFd answer(ends[0][0]), say(ends[0][1]), go(ends[1][0]), tell(ends[1][1]);
  Child client(&*app_group_, &*app_, [&] {
    datapath_.reset();  // the lock that this child inherited
    const UniqueFd waiting(dial(kService)), open(dial(kService)), balanced(dial(kBalanced));
    char byte = 0;
    if (::write(say.get(), "x", 1) != 1 || ::read(go.get(), &byte, 1) != 1) std::abort();
    const Peer peers[] = {peer_of(open.get()), peer_of(balanced.get())};
    if (::write(say.get(), peers, sizeof peers) != sizeof peers) std::abort();
    ::pause();
  });
  char ready = 0;
  ASSERT_EQ(::read(answer.get(), &ready, 1), 1);
  UniqueFd accepted = accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);

  const UniqueFd heartbeat = must(datapath_->heartbeat_map());
  becomes_another_layout(UM_LAYOUT - 1 > 2 ? UM_LAYOUT - 1 : 78);
  take_over();

  EXPECT_EQ(original_destination(accepted.get(), SOL_IP).address, at(kService));
  EXPECT_EQ(next_destination(proxy4_, SOL_IP).address, at(kService)) << "from the backlog";
  ASSERT_EQ(::write(tell.get(), "x", 1), 1);
  Peer peers[2];
  ASSERT_EQ(::read(answer.get(), peers, sizeof peers), sizeof peers);
  EXPECT_EQ(peers[0].address, at(kService));
  EXPECT_EQ(peers[1].address, at(kBalanced));
  // The proxy goes on stamping the map that it has.
  const std::uint32_t zero = 0;
  const std::uint64_t stamp = now_ns();
  ASSERT_EQ(::bpf_map_update_elem(heartbeat.get(), &zero, &stamp, BPF_ANY), 0);
  EXPECT_EQ(peer_from_app(kService, AF_INET).address, at(kService));
}

TEST_F(UpgradeTest, WhatStoppedHalfWayIsTakenUpAgain) {
  becomes_another_layout(77);
  open();  // and dies before the first apply()
  datapath_.reset();
  EXPECT_EQ(connect_from_app("10.9.0.2:8082"), kRefused);
  open();
  EXPECT_TRUE(must(datapath_->adopt()).workloads.contains(kApp));
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  EXPECT_FALSE(fs::exists(maps_dir(77)));
  EXPECT_EQ(connect_from_app("10.9.0.2:8082"), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(UpgradeTest, TheVersionThatWasMayComeBackHalfWay) {
  becomes_another_layout(77);
  open();
  datapath_.reset();
  // As that version would see it: this one's maps are those of another layout.
  fs::rename(maps_dir(UM_LAYOUT), maps_dir(99));
  fs::rename(maps_dir(77), maps_dir(UM_LAYOUT));
  write_meta(UM_LAYOUT);
  take_over();
  EXPECT_FALSE(fs::exists(maps_dir(99)));
  EXPECT_EQ(connect_from_app("10.9.0.2:8082"), kRefused);
}

// One that cannot change over keeps what it has.
TEST_F(UpgradeTest, TheOldMapsStayWhileAWorkloadNeedsThem) {
  Cgroup gone = Cgroup::create("gone");
  NetNs other = NetNs::create();
  state_.workloads[8] = workload(8, other, gone.path());
  apply_all();
  becomes_another_layout(77);
  ASSERT_EQ(::rmdir(gone.path().c_str()), 0);
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  EXPECT_TRUE(apply().contains(8));
  EXPECT_TRUE(fs::exists(maps_dir(77)));
  state_.workloads.erase(8);
  apply_all();
  EXPECT_FALSE(fs::exists(maps_dir(77)));
}

TEST_F(UpgradeTest, FiftySwapsOfProgramsLoseNothing) {
  under_load([&](auto wait_for_more) {
    std::uint32_t program = link_info("7/connect4").prog_id;
    for (int swap = 0; swap < times(50); ++swap) {
      datapath_.reset();
      write_meta(UM_LAYOUT);
      take_over();
      EXPECT_NE(std::exchange(program, link_info("7/connect4").prog_id), program);
      if (swap % 10 == 0) wait_for_more();
    }
  });
  EXPECT_GT(shared_->allowed, 100);
}

// --- pins that somebody damaged while meshd was away

class DamageTest : public UpgradeTest {
 protected:
  std::vector<std::string> all_pins() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(options_.pin_dir))
      if (!entry.is_directory()) found.push_back(entry.path().string());
    std::ranges::sort(found);
    return found;
  }
  // In an emulated machine each takes seconds: a few will do.
  std::vector<std::string> pins_to_damage() const {
    std::vector<std::string> pins = all_pins();
    if (std::getenv("MESH_TEST_SMALL") == nullptr) return pins;
    std::size_t at = 0;
    std::erase_if(pins, [&](const std::string&) { return at++ % 8 != 0; });
    return pins;
  }
  // A link goes with its pin, but only later.
  static void remove(const std::string& pin) {
    UniqueFd object(::bpf_obj_get(pin.c_str()));
    if (pin.find("/links/") != std::string::npos) ::bpf_link_detach(object.get());
    ASSERT_EQ(::unlink(pin.c_str()), 0) << pin;
  }
  void expect_healed(const std::string& pin) {
    take_over();
    proxy_lives();
    EXPECT_EQ(connect_from_app("10.9.0.2:8082"), kRefused) << pin;
    EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0) << pin;
    EXPECT_EQ(connect_from_mesh("10.9.0.2:8082"), kDenied) << pin;
    EXPECT_EQ(peer_from_app(kService, AF_INET).address, at(kService)) << pin;
    EXPECT_EQ(next_destination(proxy4_, SOL_IP).address, at(kService)) << pin;
    EXPECT_EQ(accept_within(first_.get(), 0).get() >= 0, true) << pin;
    datapath_.reset();
    open();  // and all of it is there for the next one
    EXPECT_EQ(must(datapath_->adopt()).peers, state_.peers) << pin;
    EXPECT_EQ(must(datapath_->adopt()).services, state_.services) << pin;
  }
};

TEST_F(DamageTest, AnyPinThatIsMissingIsMadeAgain) {
  const std::vector<std::string> pins = all_pins();
  ASSERT_GE(pins.size(), 40);
  for (const std::string& pin : pins_to_damage()) {
    datapath_.reset();
    remove(pin);
    open();
    EXPECT_EQ(must(datapath_->adopt()).workloads[kApp].netns_cookie, app_->cookie()) << pin;
    datapath_.reset();
    expect_healed(pin);
  }
  EXPECT_EQ(all_pins(), pins);
}

TEST_F(DamageTest, AnyPinThatIsOfSomethingElseIsMadeAgain) {
  UniqueFd other(::bpf_map_create(BPF_MAP_TYPE_HASH, "other", 3, 5, 1, nullptr));
  const std::vector<std::string> pins = all_pins();
  for (const std::string& pin : pins_to_damage()) {
    if (pin.ends_with("/meta")) continue;  // refused by name, see below
    datapath_.reset();
    remove(pin);
    ASSERT_EQ(::bpf_obj_pin(other.get(), pin.c_str()), 0) << pin;
    expect_healed(pin);
  }
  EXPECT_EQ(all_pins(), pins);
}

TEST_F(DamageTest, ADirectoryInThePlaceOfAPinGoes) {
  for (const char* pin : {"/links/7/connect4", "/links/7/sk_lookup", "/programs/um_connect4"}) {
    datapath_.reset();
    remove(options_.pin_dir + pin);
    ASSERT_EQ(::mkdir((options_.pin_dir + pin).c_str(), 0700), 0) << pin;
    expect_healed(pin);
  }
  datapath_.reset();
  UniqueFd stray(::bpf_map_create(BPF_MAP_TYPE_HASH, "stray", 3, 5, 1, nullptr));
  ASSERT_EQ(::bpf_obj_pin(stray.get(), (options_.pin_dir + "/links/stray").c_str()), 0);
  expect_healed("stray");
  for (const std::string& dir :
       {std::string("/maps/"), "/maps_" + std::to_string(UM_LAYOUT) + "/"}) {
    datapath_.reset();
    ASSERT_EQ(::mkdir((options_.pin_dir + dir + "directory").c_str(), 0700), 0);
    ASSERT_EQ(::bpf_obj_pin(stray.get(), (options_.pin_dir + dir + "stray").c_str()), 0);
    expect_healed(dir);
    EXPECT_FALSE(fs::exists(options_.pin_dir + dir + "directory"));
  }
}

TEST_F(DamageTest, WhileItIsMadeAgainTheProgramsGoOn) {
  under_load([&](auto wait_for_more) {
    for (const char* lost : {"um_peers", "um_sets", "um_workloads", "um_services"}) {
      datapath_.reset();
      ASSERT_EQ(::unlink(map_pin(lost).c_str()), 0);
      open();  // and dies before the first apply()
      datapath_.reset();
      open();
      must(datapath_->attach_mesh(mesh_group_->path()));
      EXPECT_EQ(connect_from_mesh("10.9.0.2:8082"), kDenied) << lost;
      wait_for_more();
      apply_all();
    }
  });
}

}  // namespace
}  // namespace mesh::test
