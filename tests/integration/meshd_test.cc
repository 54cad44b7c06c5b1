// meshd: what it publishes, whom it enrols, and what the kernel does then.
#include <gmock/gmock.h>

#include "tests/support/meshd_fixture.h"

namespace mesh::test {
namespace {

TEST_F(Meshd, PublishesObjects) {
  EXPECT_EQ(outcome_of(service("reviews")), "created");
  EXPECT_TRUE(proxy_->objects.contains("Service default/reviews"));
  EXPECT_EQ(outcome_of(service("reviews")), "unchanged");
  EXPECT_EQ(outcome_of(service("reviews", 9081)), "configured");
  EXPECT_EQ(status().state, "ready") << testing::PrintToString(status().reasons);
  EXPECT_TRUE(proxy_->has_heartbeat);
  EXPECT_TRUE(proxy_->options.at("access_log").as_bool());
  remove("Service", "reviews");
  EXPECT_FALSE(proxy_->objects.contains("Service default/reviews"));
}

TEST_F(Meshd, EnrolsAWorkloadRedirectsItAndEnforcesPolicy) {
  const Sandbox client(root_, "client", "10.9.0.1");
  const Sandbox server(root_, "server", "10.9.0.2");
  EXPECT_EQ(outcome_of(client.entry()), "created");
  EXPECT_EQ(outcome_of(server.entry()), "created");
  ASSERT_TRUE(becomes("client", "enrolled")) << reason_of("client");
  EXPECT_EQ(proxy_->enrolled.size(), 3U) << "client, server, gateway";
  EXPECT_GE(proxy_->listeners.size(), 2U);
  EXPECT_EQ(outcome_of(service("server")), "created");
  EXPECT_EQ(client.connect("10.78.0.1:9080"), ECONNREFUSED) << "no proxy stamps the heartbeat";
  EXPECT_GE(status().kernel["connects_refused_proxy_away"], 1U);

  EXPECT_EQ(outcome_of(allow_nobody("deny", "server")), "created");
  EXPECT_EQ(client.connect("10.78.0.1:9080"), ECONNREFUSED);
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  ASSERT_TRUE(proxy_->serve_until([&] {
    const auto policies = status().policies;
    return policies.size() == 1 && policies[0].policy == "AuthorizationPolicy default/deny" &&
           policies[0].denied >= 2;
  }));
  remove("AuthorizationPolicy", "deny");
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ENETUNREACH) << "no policy: only no route";
}

TEST_F(Meshd, TheAddressOfARemovedServiceRefusesAtOnce) {
  const Sandbox client(root_, "client", "10.9.0.1");
  apply({client.entry(), service("reviews"), service("db", 5432, "tcp")});
  ASSERT_TRUE(becomes("client", "enrolled"));
  EXPECT_EQ(client.connect("10.78.0.1:9999"), ECONNREFUSED) << "a port that it does not have";
  remove("Service", "reviews");
  remove("Service", "db");
  for (const char* address : {"10.78.0.1:9080", "10.78.0.2:5432", "10.78.200.1:80"})
    EXPECT_EQ(client.connect(address), ECONNREFUSED) << address;
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ENETUNREACH) << "only no route";
  stop(meshd_);
  EXPECT_EQ(client.connect("10.78.0.1:9080"), ECONNREFUSED) << "also with meshd away";
}

TEST_F(Meshd, ASandboxThatDiesIsRemovedWithItsEntryAndItsGroup) {
  Sandbox client(root_, "client", "10.9.0.1");
  EXPECT_EQ(outcome_of(client.entry()), "created");
  ASSERT_TRUE(becomes("client", "enrolled"));
  const std::uint32_t id = status().workloads.at(0).id;
  client.process->kill();
  ASSERT_TRUE(becomes("client", "absent"));
  EXPECT_TRUE(proxy_->serve_until([&] { return proxy_->revoked.contains(id); }));
  EXPECT_TRUE(proxy_->serve_until([&] { return !fs::exists(client.cgroup); }));
  EXPECT_TRUE(proxy_->serve_until([&] { return proxy_->enrolled.size() == 1; }));
}

TEST_F(Meshd, RefusesAWorkloadInTheHostsNamespaceByName) {
  const Sandbox client(root_, "client", "10.9.0.1");
  json::object entry = client.entry();
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/netns"] =
      "/proc/self/ns/net";
  EXPECT_EQ(outcome_of(entry), "created");
  ASSERT_TRUE(becomes("client", "failed"));
  EXPECT_THAT(reason_of("client"), testing::HasSubstr("the host's own"));
}

TEST_F(Meshd, EnrolsAndEndsManyWorkloadsAndLeavesNothing) {
  const auto files = [](pid_t pid) {
    return static_cast<int>(std::distance(
        fs::directory_iterator("/proc/" + std::to_string(pid) + "/fd"), fs::directory_iterator()));
  };
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "ready"; }));
  const auto pins = [this] {
    return std::distance(fs::recursive_directory_iterator(dir_ + "/bpf"),
                         fs::recursive_directory_iterator());
  };
  const auto pins_before = pins();
  const char* cycles = ::getenv("MESHD_TEST_CYCLES");
  int meshd_files = 0, hold_files = 0;
  for (int i = 0; i < (cycles ? std::atoi(cycles) : 30); ++i) {
    Sandbox one(root_, "w" + std::to_string(i), "10.9.1." + std::to_string(i % 250));
    apply({one.entry()});
    ASSERT_TRUE(becomes(one.name, "enrolled")) << reason_of(one.name);
    if (i % 3 == 0)
      one.process->kill();
    else
      remove("WorkloadEntry", one.name);
    ASSERT_TRUE(becomes(one.name, "absent"));
    if (i == 0) {
      meshd_files = files(meshd_);
      hold_files = files(hold_);
    }
  }
  // The first count may have been taken before its workload was let go everywhere.
  EXPECT_TRUE(proxy_->serve_until([&] { return files(meshd_) <= meshd_files; }));
  EXPECT_TRUE(proxy_->serve_until([&] { return files(hold_) <= hold_files; }));
  EXPECT_TRUE(fs::is_empty(dir_ + "/state/objects/WorkloadEntry"));
  EXPECT_TRUE(fs::is_empty(dir_ + "/state/accepted/WorkloadEntry"));
  EXPECT_EQ(pins(), pins_before);
}

TEST_F(Meshd, AWorkloadHasAGroupOfItsOwn) {
  const NetNs ns = NetNs::create();
  int number = 0;
  for (const std::string& group :
       {cgroup2_mount(), root_, root_ + "/mesh", root_ + "/workloads", std::string("/tmp")}) {
    const std::string name = "w" + std::to_string(number++);
    ask("POST", "/v1/apply",
        json::serialize(api::to_json(api::ApplyRequest{
            {{object("WorkloadEntry", "networking.istio.io/v1", name,
                     {{"address", "10.1.0." + std::to_string(number)}},
                     {{"undermesh.io/netns", ns.path()}, {"undermesh.io/cgroup", group}}),
              "test.yaml",
              {}}}})));
    EXPECT_EQ(state_of(name), "failed") << group;
    EXPECT_THAT(reason_of(name), testing::HasSubstr("control group")) << group;
    remove("WorkloadEntry", name);
  }
}

}  // namespace
}  // namespace mesh::test
