// Where connections to services go: weights, routes by client, affinity, full maps, and changes
// while clients connect.
#include <gmock/gmock.h>

#include <array>
#include <atomic>
#include <thread>

#include "datapath/byte_order.h"
#include "tests/support/datapath_fixture.h"

namespace mesh::test {
namespace {

using datapath::Columns;
using datapath::columns_of;

constexpr const char* kService = "10.78.0.2:70";
constexpr const char* kOther = "10.78.0.3:70";
constexpr const char* kFirst = "10.9.0.2:8080";
constexpr const char* kSecond = "10.9.0.3:8080";

Columns all_to(const char* endpoint) { return columns_of({{at(endpoint), 1}}); }

struct Tally {
  int connected = 0, refused = 0, other = 0;
};

class ServicesTest : public DatapathTest {
 protected:
  void SetUp() override {
    DatapathTest::SetUp();
    if (!IsSkipped()) accept_on_both_servers();
  }
  // Not accepted by anybody: they wait in the backlogs, of 128 each.
  Tally connect_often(const std::string& to, int often) {
    return in_child(&*app_group_, &*app_, [&] {
      Tally tally;
      for (int i = 0; i < often; ++i) {
        const int error = try_connect(to);
        ++(error == 0 ? tally.connected : error == kRefused ? tally.refused : tally.other);
      }
      return tally;
    });
  }
  static int accepted_by(const UniqueFd& listener) {
    int count = 0;
    while (accept_within(listener.get(), 0)) ++count;
    return count;
  }
  void goes_to(const char* service, Columns columns) {
    state_.services[at(service)] = {2, ServiceEntry::Kind::kBalance, std::move(columns)};
  }
};

TEST_F(ServicesTest, WhoBypassesTheProxyGoesStraightWhileItIsAway) {
  ServiceEntry entry{2, ServiceEntry::Kind::kProxy, {}};
  entry.of_clients.emplace();
  (*entry.of_clients)[kApp] = all_to(kSecond);
  state_.services[at(kService)] = entry;
  apply_all();
  EXPECT_EQ(connect_from_app(kService), kRefused) << "it did not ask for it";
  state_.workloads[kApp].bypasses_proxy = true;
  apply_all();
  EXPECT_EQ(peer_from_app(kService, AF_INET).address, at(kService));
  EXPECT_EQ(accepted_by(second_), 1);
  EXPECT_EQ(count("connects_bypassed"), 1);
  datapath_.reset();
  open();
  EXPECT_EQ(must(datapath_->adopt()).services, state_.services);
  verdict(3, 0, false, 21);
  has_set("10.9.0.3", 3);
  apply_all();
  EXPECT_EQ(connect_from_app(kService), kRefused) << "policy holds";
  proxy_lives();
  EXPECT_EQ(connect_from_app(kService), 0);
  EXPECT_EQ(next_destination(proxy4_, SOL_IP).address, at(kService)) << "it is back";
}

TEST_F(ServicesTest, WeightsAndSharesOfNobodyAreKept) {
  goes_to(kService, columns_of({{at(kFirst), 60}, {at(kSecond), 15}, {std::nullopt, 25}}));
  apply_all();
  int first = 0, second = 0, refused = 0;
  for (int round = 0; round < 8; ++round) {
    const Tally tally = connect_often(kService, 100);
    EXPECT_EQ(tally.other, 0);
    refused += tally.refused;
    first += accepted_by(first_);
    second += accepted_by(second_);
  }
  // Of 800, within seven standard deviations.
  EXPECT_EQ(first + second + refused, 800);
  EXPECT_NEAR(first, 480, 97);
  EXPECT_NEAR(second, 120, 71);
  EXPECT_NEAR(refused, 200, 86);
  EXPECT_EQ(count("connects_refused_no_destination"), static_cast<std::uint64_t>(refused));
}

TEST_F(ServicesTest, EachClientGoesItsOwnWayAndAnUnknownOneNowhere) {
  Cgroup group = Cgroup::create("client");
  NetNs second_client = NetNs::create();
  join_veth(second_client, "10.9.1.1/24", *server_, "10.9.1.2/24", "veth1");
  second_client.command("ip route add default via 10.9.1.2");
  state_.workloads[8] = workload(8, second_client, group.path());
  goes_to(kService, {});
  state_.services[at(kService)].of_clients = {{kApp, all_to(kFirst)}, {8, all_to("10.9.0.3:8080")}};
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
  EXPECT_EQ(in_child(&group, &second_client, [] { return try_connect(kService); }), 0);
  EXPECT_EQ(accepted_by(first_), 1);
  EXPECT_EQ(accepted_by(second_), 1);
  state_.services[at(kService)].of_clients->erase(8);
  apply_all();
  EXPECT_EQ(in_child(&group, &second_client, [] { return try_connect(kService); }), kRefused);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(entries_of("um_client_services"), 1);
  // And back to one way for all.
  goes_to(kService, all_to(kSecond));
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
  EXPECT_EQ(accepted_by(second_), 1);
  EXPECT_EQ(entries_of("um_client_services"), 0);
  EXPECT_EQ(entries_of("um_backends"), 1);
}

TEST_F(ServicesTest, ReachesItselfThroughAService) {
  UniqueFd own = app_->listen("10.9.0.1:8080");
  goes_to(kService, all_to("10.9.0.1:8080"));
  has_set("10.9.0.1", 3);  // and no verdict
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
  EXPECT_EQ(accepted_by(own), 1);
  EXPECT_EQ(count("connects_balanced"), 1);
}

TEST_F(ServicesTest, AnEndpointsOwnAddressIsLeftAlone) {
  goes_to(kService, all_to(kFirst));
  apply_all();
  const Peer peer = peer_from_app(kSecond, AF_INET);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at(kSecond));
  EXPECT_EQ(count("connects_direct"), 1);
  EXPECT_EQ(count("connects_balanced"), 0);
}

TEST_F(ServicesTest, PortsOfOneAddressAreServicesOfTheirOwn) {
  UniqueFd third = server_->listen("10.9.0.2:9090");
  goes_to("10.78.0.2:70", all_to(kFirst));
  goes_to("10.78.0.2:71", all_to("10.9.0.2:9090"));
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.2:71"), 0);
  EXPECT_EQ(accepted_by(third), 1);
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), 0);
  EXPECT_EQ(accepted_by(first_), 1);
}

// --- affinity

class AffinityTest : public ServicesTest {
 protected:
  void SetUp() override {
    ServicesTest::SetUp();
    if (IsSkipped()) return;
    sticky({kFirst, kSecond});
    apply_all();
  }
  void sticky(const std::vector<std::string>& endpoints, int seconds = 3600) {
    state_.services[at(kService)] = balanced(2, endpoints);
    state_.services[at(kService)].affinity = std::chrono::seconds(seconds);
  }
  // How many of these connects went to the first; all went somewhere.
  int to_first(int often) {
    EXPECT_EQ(connect_often(kService, often).connected, often);
    const int first = accepted_by(first_);
    EXPECT_EQ(first + accepted_by(second_), often);
    return first;
  }
  void last_used(std::chrono::seconds ago) {
    UniqueFd affinities = map("um_affinities");
    const um_affinity_key key{kApp, 2, 1, UM_TCP, 0};
    um_affinity last{};
    ASSERT_EQ(::bpf_map_lookup_elem(affinities.get(), &key, &last), 0);
    last.used = now_ns() - static_cast<std::uint64_t>(std::chrono::nanoseconds(ago).count());
    ASSERT_EQ(::bpf_map_update_elem(affinities.get(), &key, &last, BPF_EXIST), 0);
  }
};

TEST_F(AffinityTest, AClientStaysWithItsEndpointAlsoWithoutMeshd) {
  const int first = to_first(1);
  EXPECT_EQ(to_first(40), 40 * first);
  datapath_.reset();
  EXPECT_EQ(to_first(20), 20 * first);
  open();
  apply_all();
  EXPECT_EQ(to_first(20), 20 * first);
}

// Whoever fills the map gains nothing: a client is given an endpoint of the service, and keeps
// that.
TEST_F(AffinityTest, WhoIsForgottenAsTheMapIsFullIsRememberedAgain) {
  to_first(1);
  const UniqueFd affinities = map("um_affinities");
  const um_affinity_key key{kApp, 2, 1, UM_TCP, 0};
  um_affinity last{};
  ASSERT_EQ(::bpf_map_lookup_elem(affinities.get(), &key, &last), 0);
  crowd(affinities.get());
  ASSERT_NE(::bpf_map_lookup_elem(affinities.get(), &key, &last), 0);
  const int first = to_first(1);
  EXPECT_EQ(::bpf_map_lookup_elem(affinities.get(), &key, &last), 0);
  EXPECT_EQ(to_first(40), 40 * first);
}

TEST_F(AffinityTest, EndsWithTheTimeSinceTheLastConnection) {
  const int first = to_first(1);
  last_used(std::chrono::seconds(2));  // a machine may have started a few seconds ago
  EXPECT_EQ(to_first(20), 20 * first);
  sticky({kFirst, kSecond}, 1);
  apply_all();
  // Forty times the same by chance: once in 2^39.
  int moved = 0;
  for (int i = 0; i < 40 && moved == 0; ++i) {
    last_used(std::chrono::seconds(2));
    moved = to_first(1) == first ? 0 : 1;
  }
  EXPECT_EQ(moved, 1);
}

TEST_F(AffinityTest, OutlivesAChangeThatKeepsTheEndpointAndEndsWithIt) {
  const int first = to_first(1);
  const char* kept = first == 1 ? kFirst : kSecond;
  sticky({kFirst, kSecond, "10.9.0.9:1"});
  apply_all();
  EXPECT_EQ(to_first(40), 40 * first);
  sticky({first == 1 ? kSecond : kFirst});
  apply_all();
  EXPECT_EQ(to_first(10), 10 * (1 - first)) << kept << " is gone";
  EXPECT_EQ(entries_of("um_members"), 1);
}

// --- maps that are full

TEST_F(ServicesTest, WhatDoesNotFitRefusesUntilItDoes) {
  const auto many = [&](int count) {
    std::vector<datapath::Share> shares;
    for (int i = 0; i < count; ++i)
      shares.push_back({at("10.9.0.2:" + std::to_string(20000 + i)), 1});
    return columns_of(shares);
  };
  goes_to(kOther, all_to(kFirst));
  goes_to(kService, many(129));  // the map has 128
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(connect_from_app(kService), kRefused);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(connect_from_app(kOther), 0);
  EXPECT_EQ(connect_from_app(kSecond), 0) << "what is no service is not in doubt";
  // What fits only once the other is gone.
  goes_to(kOther, many(100));
  goes_to(kService, all_to(kFirst));
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
  goes_to(kService, many(101));
  state_.services.erase(at(kOther));
  apply_all();
  EXPECT_EQ(entries_of("um_backends"), 101);
  goes_to(kService, all_to(kSecond));
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
}

TEST_F(ServicesTest, AFullMapOfServicesRefusesWhatIsUnknown) {
  state_.peers[ip("10.9.0.2")] = {};
  for (int i = 0; i < 70; ++i)
    goes_to(("10.78.1." + std::to_string(i) + ":70").c_str(), all_to(kFirst));
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(connect_from_app("192.0.2.1:70"), kRefused);
  int served = 0;
  for (int i = 0; i < 70; ++i) {
    const int error = connect_from_app("10.78.1." + std::to_string(i) + ":70");
    EXPECT_TRUE(error == 0 || error == kRefused);
    served += error == 0 ? 1 : 0;
  }
  EXPECT_EQ(served, 64);
  state_.services.clear();
  goes_to(kService, all_to(kFirst));
  apply_all();
  EXPECT_EQ(connect_from_app(kService), 0);
}

TEST_F(ServicesTest, WhatAKilledWriterLeftIsTakenOut) {
  goes_to(kService, all_to(kFirst));
  apply_all();
  datapath_.reset();
  const um_backend_key half{77, 3};
  const um_backend column{};
  const um_member member{77, {}};
  const std::uint32_t one = 1;
  ASSERT_EQ(::bpf_map_update_elem(map("um_backends").get(), &half, &column, BPF_ANY), 0);
  ASSERT_EQ(::bpf_map_update_elem(map("um_members").get(), &member, &one, BPF_ANY), 0);
  open();
  EXPECT_EQ(entries_of("um_backends"), 1);
  EXPECT_EQ(entries_of("um_members"), 0);
  EXPECT_EQ(connect_from_app(kService), 0);
}

// --- changes while clients connect

// Each listener answers with its name; the writer counts its steps: even when it is done.
struct Shared {
  std::atomic<std::uint64_t> step{0}, connects{0}, judged{0};
  std::atomic<std::uint64_t> failed{0}, of_another_service{0}, of_before{0};
};

class LiveChanges : public ServicesTest {
 protected:
  void SetUp() override {
    ServicesTest::SetUp();
    if (IsSkipped()) return;
    listeners_ = {server_->listen("10.9.0.2:9001"), server_->listen("10.9.0.3:9001"),
                  server_->listen("10.9.0.2:9002"), server_->listen("10.9.0.3:9002")};
    shared_ = static_cast<Shared*>(
        ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(shared_, MAP_FAILED);
  }
  // Service 0 has the listeners "00" and "01", service 1 has "10" and "11". At every third step a
  // service has its first alone, then both, then its second alone.
  static Columns columns_at(int service, std::uint64_t step) {
    const std::string port = service == 0 ? ":9001" : ":9002";
    std::vector<datapath::Share> shares;
    const auto phase = (step + static_cast<std::uint64_t>(service)) % 3;
    if (phase != 2) shares.push_back({at("10.9.0.2" + port), 3});
    if (phase != 0) shares.push_back({at("10.9.0.3" + port), 1});
    return columns_of(shares);
  }
  void answer_without_end(const std::atomic<bool>& done) {
    std::array<pollfd, 4> waiting{};
    for (std::size_t i = 0; i < 4; ++i) waiting[i] = {listeners_[i].get(), POLLIN, 0};
    while (!done) {
      if (::poll(waiting.data(), waiting.size(), 20) <= 0) continue;
      for (std::size_t i = 0; i < 4; ++i) {
        if (waiting[i].revents == 0) continue;
        const UniqueFd accepted = accept_within(waiting[i].fd, 0);
        const char name[2] = {static_cast<char>('0' + i / 2), static_cast<char>('0' + i % 2)};
        if (accepted && ::write(accepted.get(), name, 2) != 2) continue;
      }
    }
  }
  void connect_once(int service) {
    const std::uint64_t before = shared_->step;
    const UniqueFd fd(dial(service == 0 ? kService : kOther));
    char name[2] = {};
    if (fd.get() < 0 || ::read(fd.get(), name, 2) != 2) {
      ++shared_->failed;
      return;
    }
    ++shared_->connects;
    if (name[0] != '0' + service) ++shared_->of_another_service;
    // Nothing was written while this connected: it must be of this step.
    if (before % 2 != 0 || shared_->step != before) return;
    ++shared_->judged;
    const auto phase = (before / 2 + static_cast<std::uint64_t>(service)) % 3;
    if ((phase == 0 && name[1] != '0') || (phase == 2 && name[1] != '1')) ++shared_->of_before;
  }

  std::array<UniqueFd, 4> listeners_;
  Shared* shared_ = nullptr;
};

TEST_F(LiveChanges, NoConnectIsRefusedOrGoesElsewhere) {
  const auto write_step = [&](std::uint64_t step) {
    for (int service : {0, 1}) {
      goes_to(service == 0 ? kService : kOther, columns_at(service, step));
      // Every other time each client has a way of its own, which is the same.
      if (step % 2 == 0) continue;
      ServiceEntry& entry = state_.services[at(service == 0 ? kService : kOther)];
      entry.of_clients = {{kApp, std::exchange(entry.columns, {})}};
    }
    apply_all();
  };
  write_step(0);
  std::atomic<bool> done{false};
  std::thread server([&] { answer_without_end(done); });
  {
    const auto dial_without_end = [&] {
      datapath_.reset();  // the lock that this child inherited
      for (int service = 0;; service = 1 - service) connect_once(service);
    };
    Child one(&*app_group_, &*app_, dial_without_end), two(&*app_group_, &*app_, dial_without_end);
    const std::uint64_t steps = static_cast<std::uint64_t>(times(600));
    for (std::uint64_t step = 1; step <= steps; ++step) {
      ++shared_->step;
      write_step(step);
      ++shared_->step;
      // Now and then clients get to connect within one step.
      const std::uint64_t enough = shared_->judged + 5;
      while (step % 10 == 0 && shared_->judged < enough && shared_->failed == 0)
        std::this_thread::yield();
    }
  }
  done = true;
  server.join();
  EXPECT_GT(shared_->connects, 200);
  EXPECT_GE(shared_->judged, static_cast<std::uint64_t>(times(600)) / 10 * 5);
  EXPECT_EQ(shared_->failed, 0);
  EXPECT_EQ(shared_->of_another_service, 0);
  EXPECT_EQ(shared_->of_before, 0);
}

}  // namespace
}  // namespace mesh::test
