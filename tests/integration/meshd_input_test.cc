// meshd: what people give it, in files, requests and arguments: what it refuses, and how little of
// it they hold.
#include <gmock/gmock.h>

#include "tests/support/meshd_fixture.h"

namespace mesh::test {
namespace {

TEST_F(Meshd, AFileThatPeopleDropIsReadAndOneThatIsBrokenLeavesTheLastVersion) {
  const std::string path = dir_ + "/state/objects/mine.yaml";
  const std::string good =
      "apiVersion: v1\nkind: Service\nmetadata: {name: details}\nspec:\n  selector: {app: "
      "details}\n"
      "  ports: [{name: http, port: 9080}]\n---\n"
      "apiVersion: v1\nkind: Service\nmetadata: {name: ratings}\nspec:\n  selector: {app: "
      "ratings}\n"
      "  ports: [{name: http, port: 9080}]\n";
  std::ofstream(path) << good;
  ASSERT_TRUE(proxy_->serve_until([&] {
    return proxy_->objects.contains("Service default/details") &&
           proxy_->objects.contains("Service default/ratings");
  }));
  std::ofstream(path) << "kind: [";
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "degraded"; }));
  EXPECT_THAT(status().reasons.at(0), testing::HasSubstr("mine.yaml"));
  EXPECT_TRUE(proxy_->objects.contains("Service default/details"));
  stop(meshd_);
  start_meshd();
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "degraded"; }));
  EXPECT_TRUE(proxy_->objects.contains("Service default/details")) << "also after a restart";
  EXPECT_THAT(outcome_of(service("details", 9081)), testing::HasSubstr("is defined in"));
  std::ofstream(path) << good;
  ASSERT_TRUE(proxy_->serve_until([&] { return status().state == "ready"; }));
}

TEST_F(Meshd, ARefusedPolicyDeniesAndApplySaysSo) {
  const Sandbox client(root_, "client", "10.9.0.1");
  const Sandbox server(root_, "server", "10.9.0.2");
  apply({client.entry(), server.entry()});
  ASSERT_TRUE(becomes("client", "enrolled"));
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ENETUNREACH);
  json::object policy = allow_nobody("broken", "server");
  policy["spec"].as_object()["action"] = "CUSTOM";
  EXPECT_THAT(outcome_of(policy), testing::StartsWith("refused; "));
  EXPECT_EQ(client.connect("10.9.0.2:9080"), ECONNREFUSED);
  EXPECT_EQ(status().state, "degraded");
}

TEST_F(Meshd, RefusesWhatIsNotSupportedAndStoresNothingOfIt) {
  const std::string outcome = outcome_of(object(
      "VirtualService", "networking.istio.io/v1", "reviews",
      {{"hosts", {"reviews"}},
       {"http", json::array{{{"rewrite", {{"uri", "/"}}},
                             {"route", json::array{{{"destination", {{"host", "reviews"}}}}}}}}}}));
  EXPECT_THAT(outcome, testing::StartsWith("refused; test.yaml"));
  EXPECT_THAT(outcome, testing::HasSubstr("spec.http[0].rewrite"));
  EXPECT_FALSE(fs::exists(dir_ + "/state/objects/VirtualService/default.reviews.yaml"));
  EXPECT_EQ(status().state, "ready");
}

TEST_F(Meshd, AnswersBadRequestsWithTheirReason) {
  EXPECT_EQ(ask("GET", "/v1/nothing").status, 404);
  EXPECT_EQ(ask("POST", "/v1/apply", "{").status, 400);
  EXPECT_EQ(ask("POST", "/v1/apply", R"({"objects":3})").status, 400);
  EXPECT_EQ(ask("PUT", "/v1/apply").status, 400);
  EXPECT_EQ(ask("GET", "/v1/dump/everything").status, 404);
  for (const char* what : {"routes", "policies"})
    EXPECT_EQ(ask("GET", std::string("/v1/dump/") + what).status, 200) << what;
}

TEST_F(Meshd, ReadersLeaveRoomForRootAndSendLittle) {
  fs::permissions(dir_, fs::perms{0755});
  fs::permissions(dir_ + "/meshd.sock", fs::perms{0666});
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  pid_t reader = ::fork();
  if (reader == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    bool is_reader = ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
    std::vector<UniqueFd> taps;
    for (int i = 0; i < 100 && is_reader; ++i) {
      taps.push_back(dial());
      is_reader = static_cast<bool>(taps.back());
      const std::string_view tap = "GET /v1/tap HTTP/1.1\r\nHost: meshd\r\n\r\n";
      (void)!::send(taps.back().get(), tap.data(), tap.size(), MSG_NOSIGNAL);
    }
    (void)!::write(ready[1], is_reader ? "y" : "n", 1);
    while (true) ::pause();
  }
  char is_reader = 0;
  ASSERT_EQ(::read(ready[0], &is_reader, 1), 1);
  EXPECT_EQ(is_reader, 'y');
  for (int i = 0; i < 20; ++i) EXPECT_EQ(ask("GET", "/v1/version").status, 200) << i;
  stop(reader);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(Meshd, ATapThatDoesNotReadHoldsLittle) {
  const UniqueFd tap = dial();
  ASSERT_TRUE(tap);
  const std::string_view request = "GET /v1/tap HTTP/1.1\r\nHost: meshd\r\n\r\n";
  ASSERT_EQ(::send(tap.get(), request.data(), request.size(), 0), std::ssize(request));
  ASSERT_TRUE(proxy_->serve_until([&] { return proxy_->is_tapped; }));
  for (int i = 0; i < 2000; ++i) {
    proxy_->send({{"type", "tap_event"}, {"path", std::string(4000, 'x')}, {"status", 200}});
    if (i % 100 == 0) EXPECT_EQ(ask("GET", "/v1/version").status, 200) << "all before is read";
  }
  EXPECT_EQ(ask("GET", "/v1/version").status, 200);
  std::size_t bytes = 0;
  char chunk[65536];
  pollfd readable{tap.get(), POLLIN, 0};
  for (ssize_t got = 1; got > 0 && ::poll(&readable, 1, bytes == 0 ? 10'000 : 500) == 1;
       bytes += static_cast<std::size_t>(got))
    got = ::recv(tap.get(), chunk, sizeof chunk, 0);
  EXPECT_GT(bytes, 100'000U);
  EXPECT_LT(bytes, 3'000'000U) << "of 8 MB";
}

TEST_F(Meshd, ABlockOfServiceAddressesBeginsAtItsFirst) {
  for (const char* block : {"10.78.3.0/16", "10.78.0.0/33"}) {
    const pid_t pid = spawn({MESH_BIN_DIR "/meshd", "--service-cidr", block, "--run-dir",
                             "/nowhere", "--pin-dir", "/nowhere", "--log-level", "off"});
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 2) << block;
  }
}

}  // namespace
}  // namespace mesh::test
