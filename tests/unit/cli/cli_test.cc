#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>

#include "addresses.h"
#include "base/unique_fd.h"
#include "client.h"
#include "environment.h"
#include "kinds.h"
#include "output.h"
#include "process.h"
#include "restart_policy.h"
#include "sandbox.h"
#include "supervisor.h"
#include "up_options.h"

namespace mesh::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Table, AlignsColumnsAndShowsEmptyCells) {
  Table table({"NAME", "HOSTS", "AGE"});
  table.row({"reviews", "reviews", "5s"});
  table.row({"a", "", "12m"});
  EXPECT_EQ(table.to_string(),
            "NAME      HOSTS     AGE\n"
            "reviews   reviews   5s\n"
            "a         -         12m\n");
}

TEST(Table, CountsCodePointsNotBytes) {
  Table table({"A", "B"});
  table.row({"\xc3\xa9\xc3\xa9", "x"});
  EXPECT_EQ(table.to_string(), "A    B\n\xc3\xa9\xc3\xa9   x\n");
}

TEST(Json, IsIndentedByTwo) {
  EXPECT_EQ(pretty_json({{"a", {{"b", {1, 2}}}}, {"e", boost::json::array{}}, {"q", "x\"y"}}),
            "{\n  \"a\": {\n    \"b\": [\n      1,\n      2\n    ]\n  },\n  \"e\": [],\n  \"q\": "
            "\"x\\\"y\"\n}\n");
}

TEST(Age, ReadsAsKubectlWritesIt) {
  for (auto [span, text] : {std::pair{5, "5s"},
                            {119, "119s"},
                            {120, "2m"},
                            {125, "2m5s"},
                            {660, "11m"},
                            {3600, "1h"},
                            {5400, "1h30m"},
                            {36000, "10h"},
                            {86400 * 3, "3d"},
                            {-4, "0s"}})
    EXPECT_EQ(age(seconds(span)), text);
}

TEST(Time, IsReadFromCreationTimestamps) {
  EXPECT_EQ(parse_time("1970-01-02T00:00:01Z"), 86401);
  EXPECT_EQ(parse_time("1970-01-02T00:00:01.999Z"), 86401);
  EXPECT_EQ(parse_time("yesterday"), 0);
  EXPECT_EQ(parse_time(""), 0);
}

TEST(Addresses, AreTheSameNumberInBothFamilies) {
  EXPECT_EQ(address_v4(kBridgeNumber).to_string(), "10.77.0.1");
  EXPECT_EQ(address_v6(kBridgeNumber).to_string(), "fd77::1");
  EXPECT_EQ(address_v4(0x1234).to_string(), "10.77.18.52");
  EXPECT_EQ(address_v6(0x1234).to_string(), "fd77::1234");
  EXPECT_EQ(number_of(address_v4(0x1234)), 0x1234);
  EXPECT_EQ(number_of(IpAddress::v4(10, 78, 0, 1)), std::nullopt);
  EXPECT_EQ(link_name(0xabcd), "umabcd");
}

TEST(Addresses, AreGivenInTurnPastTheEndAndAroundWhatIsUsed) {
  EXPECT_EQ(next_address(kBridgeNumber, {}), 2);
  EXPECT_EQ(next_address(4, {5, 6}), 7);
  EXPECT_EQ(next_address(0x00fe, {}), 0x0101);  // .255 and .0 confuse people and old software
  EXPECT_EQ(next_address(0xfffe, {}), 2);       // around, and never the bridge's
  std::set<AddressNumber> all;
  for (unsigned n = 0; n < 65536; ++n) all.insert(static_cast<AddressNumber>(n));
  EXPECT_EQ(next_address(77, all), std::nullopt);
  all.erase(77);
  EXPECT_EQ(next_address(77, all), 77);
}

TEST(RestartPolicy, FirstAtOnceThenDoublingToTenSeconds) {
  RestartPolicy policy;
  std::vector<std::int64_t> waits;
  for (int i = 0; i < 10; ++i) waits.push_back(policy.ended_after(milliseconds(5)).count());
  EXPECT_THAT(waits, ElementsAre(0, 100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000));
}

TEST(RestartPolicy, ARunOfThirtySecondsStartsOver) {
  RestartPolicy policy;
  for (int i = 0; i < 5; ++i) policy.ended_after(milliseconds(5));
  EXPECT_EQ(policy.ended_after(seconds(30)).count(), 0);
  EXPECT_EQ(policy.ended_after(seconds(29)).count(), 100);
}

TEST(Supervisor, GivesEachProgramTheFlagsThatItKnows) {
  Environment environment{"/r", "/s", "undermesh", ""};
  ProgramOptions options{"/b", "/cg/undermesh", "/log", "10.78.0.0/16", "debug", 3, 77};
  EXPECT_THAT(
      command_of("meshhold", environment, options),
      ElementsAre("/b/meshhold", "--run-dir", "/r", "--log-level", "debug", "--proxy-uid", "77"));
  EXPECT_THAT(command_of("meshproxy", environment, options),
              ElementsAre("/b/meshproxy", "--run-dir", "/r", "--log-level", "debug", "--uid", "77",
                          "--workers", "3"));
  EXPECT_THAT(command_of("meshd", environment, options),
              ElementsAre("/b/meshd", "--run-dir", "/r", "--log-level", "debug", "--state-dir",
                          "/s", "--cgroup", "/cg/undermesh", "--proxy-uid", "77", "--access-log",
                          "/log", "--service-cidr", "10.78.0.0/16"));
}

TEST(Kinds, AreFoundByEveryNameThatPeopleUse) {
  for (const char* name :
       {"vs", "VirtualService", "virtualservices", "virtualservice.networking.istio.io", "VS"}) {
    ASSERT_NE(find_kind(name), nullptr) << name;
    EXPECT_EQ(find_kind(name)->kind, "VirtualService");
  }
  EXPECT_EQ(find_kind("pod"), nullptr);
  EXPECT_THAT(need_kind("pod").error().message, HasSubstr("AuthorizationPolicy (ap)"));
}

TEST(Kinds, SeveralAreNamedWithCommas) {
  EXPECT_THAT(need_kinds("svc,vs").value(), ElementsAre("Service", "VirtualService"));
  EXPECT_THAT(need_kinds("all").value(), ElementsAre(""));
  for (const char* names : {"svc,pod", "svc,", ",", "all,svc", ""})
    EXPECT_FALSE(need_kinds(names)) << names;
}

TEST(Sandbox, NamesAreDnsLabels) {
  for (const std::string& good : {std::string("a"), std::string("a-1"), std::string(63, 'a')})
    EXPECT_TRUE(check_name(good)) << good;
  for (const std::string& bad :
       {std::string(), std::string(64, 'a'), std::string("Upper"), std::string("a_b"),
        std::string("a.b"), std::string("-a"), std::string("a-"), std::string("../a")})
    EXPECT_FALSE(check_name(bad)) << bad;
}

TEST(ServiceCidr, IsAWholeBlockOfIpv4) {
  EXPECT_EQ(parse_service_cidr("10.78.0.0/16").value().to_string(), "10.78.0.0/16");
  EXPECT_EQ(parse_service_cidr("10.78.0.16/28").value().prefix_length, 28);
  for (const char* bad : {"", "x", "10.78.0.0", "10.78.0.0/29", "10.78.0.0/33", "fd78::/64"})
    EXPECT_FALSE(parse_service_cidr(bad)) << bad;
  EXPECT_THAT(parse_service_cidr("10.78.3.1/16").error().message, HasSubstr("10.78.0.0/16"));
}

TEST(Kinds, AreShownAsKubectlDoes) {
  EXPECT_EQ(display_name("VirtualService", "networking.istio.io/v1", "reviews"),
            "virtualservice.networking.istio.io/reviews");
  EXPECT_EQ(display_name("VirtualService", "", "reviews"),
            "virtualservice.networking.istio.io/reviews");
  EXPECT_EQ(display_name("Service", "v1", "reviews"), "service/reviews");
}

TEST(Kinds, CellsSurviveTreesOfAnyShape) {
  for (const Kind& kind : kinds())
    for (const boost::json::object& tree :
         {boost::json::object{}, boost::json::object{{"spec", 3}},
          boost::json::object{
              {"spec", {{"ports", "x"}, {"servers", {1, nullptr}}, {"hosts", {{}, 2}}}}}})
      EXPECT_EQ(kind.cells(tree).size(), kind.columns.size()) << kind.kind;
}

// It is connected to, as a process is that was stopped.
TEST(Client, SaysOfAMeshdThatHangsThatItDoesNotRun) {
  std::string directory = testing::TempDir() + "client-XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  const std::string path = directory + "/" + std::string(api::kSocketName);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT(path.size(), sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  const UniqueFd silent(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(silent.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(silent.get(), 1), 0);
  const auto answer = Client(directory).get<api::Status>("/v1/status", milliseconds(1));
  ASSERT_FALSE(answer);
  EXPECT_THAT(answer.error().message, HasSubstr("did not answer /v1/status in time"));
  EXPECT_EQ(exit_code(answer.error()), kNotRunning);
  std::filesystem::remove_all(directory);
}

TEST(ExitStatus, IsTheShells) {
  EXPECT_EQ(exit_for_errno(ENOENT), 127);
  EXPECT_EQ(exit_for_errno(EACCES), 126);
  EXPECT_EQ(exit_for_status(9), 137);  // killed by signal 9
  EXPECT_EQ(exit_for_status(37 << 8), 37);
  EXPECT_EQ(exit_code({Errc::unavailable, ""}), 3);
  EXPECT_EQ(exit_code({Errc::not_found, ""}), 4);
  EXPECT_EQ(exit_code({Errc::permission, ""}), 6);
  EXPECT_EQ(exit_code({Errc::refused, ""}), 1);
}

}  // namespace
}  // namespace mesh::cli
