// meshd: when it, meshhold or meshproxy is another one, or none.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <atomic>
#include <optional>

#include "tests/support/meshd_fixture.h"

namespace mesh::test {
namespace {

// Died after it enrolled a client and a server whom a policy lets nobody reach.
class DeadMeshd : public Meshd {
 protected:
  void SetUp() override {
    Meshd::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    client_.emplace(root_, "client", "10.9.0.1");
    server_.emplace(root_, "server", "10.9.0.2");
    apply({client_->entry(), server_->entry(), service("server"), allow_nobody("deny", "server")});
    ASSERT_TRUE(becomes("client", "enrolled"));
    EXPECT_EQ(client_->connect("10.9.0.2:9080"), ECONNREFUSED);
    enrolled_ = proxy_->enrolled;
    stop(meshd_);
  }
  void TearDown() override {
    client_.reset();
    server_.reset();
    Meshd::TearDown();
  }
  void expect_that_the_next_one_adopts() {
    start_meshd();
    ASSERT_TRUE(becomes("client", "enrolled"));
    EXPECT_EQ(proxy_->enrolled, enrolled_) << "the ids stay";
    EXPECT_EQ(proxy_->revoked.size(), 0U);
  }

  std::optional<Sandbox> client_, server_;
  std::map<std::uint64_t, std::string> enrolled_;
};

TEST_F(DeadMeshd, ARestartAdoptsAndPolicyNeverLapses) {
  EXPECT_EQ(client_->connect("10.9.0.2:9080"), ECONNREFUSED) << "while meshd is dead";
  // A client that tries all the time, from before the restart until after it.
  struct Probes {
    std::atomic<int> refused{0}, other{0};
  };
  void* shared =
      ::mmap(nullptr, sizeof(Probes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  Probes& probes = *new (shared) Probes;
  const Child prober(nullptr, &client_->ns, [&] {
    Cgroup::move_to(client_->cgroup, ::getpid());
    while (true) {
      const bool refused = try_connect("10.9.0.2:9080", 0, 2000) == ECONNREFUSED;
      ++(refused ? probes.refused : probes.other);
    }
  });
  const auto more_probes = [&] {
    const int before = probes.refused;
    return eventually([&] { return probes.refused >= before + 20 || probes.other > 0; });
  };
  EXPECT_TRUE(more_probes());
  expect_that_the_next_one_adopts();
  EXPECT_TRUE(more_probes());
  EXPECT_EQ(probes.other, 0) << "connects that were not refused";
}

TEST_F(DeadMeshd, WithoutItsStateDirectoryItDoesNotStartAndPolicyHolds) {
  fs::rename(dir_ + "/state", dir_ + "/unmounted");
  for (const bool is_mount_point_there : {false, true}) {
    if (is_mount_point_there) fs::create_directory(dir_ + "/state");
    const auto [status, said] = run_meshd();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    EXPECT_THAT(said, testing::HasSubstr("the state directory " + dir_ + "/state"));
    EXPECT_FALSE(fs::exists(dir_ + "/state/accepted"));
    EXPECT_EQ(client_->connect("10.9.0.2:9080"), ECONNREFUSED);
  }
  fs::remove(dir_ + "/state");
  fs::rename(dir_ + "/unmounted", dir_ + "/state");
  expect_that_the_next_one_adopts();
  EXPECT_EQ(client_->connect("10.9.0.2:9080"), ECONNREFUSED);
  EXPECT_EQ(status().state, "ready") << testing::PrintToString(status().reasons);
}

TEST_F(Meshd, AKilledMeshholdGetsEverythingBack) {
  const Sandbox client(root_, "client", "10.9.0.1");
  apply({client.entry()});
  ASSERT_TRUE(becomes("client", "enrolled"));
  const int syncs = proxy_->syncs;
  stop(hold_);
  start_hold();
  ASSERT_TRUE(proxy_->serve_until([&] { return proxy_->syncs > syncs; }));
  ASSERT_TRUE(becomes("client", "enrolled"));
  EXPECT_EQ(proxy_->revoked.size(), 0U);
}

TEST_F(Meshd, AProxyThatComesBackGetsEverythingAnew) {
  apply({service("reviews")});
  const int resets = proxy_->resets;
  proxy_->drop();
  ASSERT_TRUE(proxy_->serve_until([&] { return proxy_->resets > resets; }));
  EXPECT_TRUE(proxy_->objects.contains("Service default/reviews"));
}

}  // namespace
}  // namespace mesh::test
