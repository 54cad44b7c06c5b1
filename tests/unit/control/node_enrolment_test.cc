// Node: how a workload comes, is looked after and ends.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(NodeTest, TheLastConnectionsOfAWorkloadAreToldBeforeItsEnd) {
  connect();
  const std::uint32_t id = enrol("a", "10.77.0.1");
  acknowledge();
  node_->report_flows(1'000'000);
  datapath::Flow flow;
  flow.kind = datapath::Flow::Kind::kClosed;
  flow.cookie = 1;
  flow.workload = id;
  flow.is_established = true;
  datapath_.flows = {flow};
  proxy_.payloads.clear();
  machine_.cgroups["/cg/a"] = false;
  node_->on_cgroups_changed(now_);
  ASSERT_EQ(proxy_.payloads.size(), 2U);
  const json::object flows = json::parse(proxy_.payloads[0]).as_object();
  EXPECT_EQ(flows.at("type").as_string(), feed::kFlows);
  EXPECT_EQ(flows.at("edges").as_array().at(0).at("workload"), id);
  EXPECT_EQ(json::parse(proxy_.payloads[1]).at("type").as_string(), feed::kUpdate);
  EXPECT_TRUE(enrolled_names().empty());
}

TEST_F(NodeTest, AWorkloadWithoutSocketsForDnsIsEnrolledAndSaysSo) {
  connect();
  from_proxy({{"type", "ready"}, {"version", "1"}, {"dns", true}});
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"), feed::HoldStatus::kOk, EADDRINUSE);
  acknowledge();
  EXPECT_EQ(state_of("a"),
            "enrolled: no names of the mesh: its sockets for DNS (port 15053) could not be made: "
            "Address already in use");
}

TEST_F(NodeTest, EnrolsInOrderMeshholdKernelProxy) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  EXPECT_EQ(outcome(workload("a", "10.77.0.1")), "created");
  const std::uint32_t id = id_of("a");
  EXPECT_EQ(held(feed::HoldType::kEnrol).back().workload, id);
  EXPECT_FALSE(datapath_.state.workloads.contains(id));
  EXPECT_EQ(state_of("a"), "pending: waiting for meshhold");
  acknowledge();
  answer_enrol(id);
  EXPECT_EQ(datapath_.state.workloads.at(id).netns_cookie, 1000 + id);
  EXPECT_THAT(enrolled_names(), testing::Contains("a"));
  EXPECT_EQ(state_of("a"), "pending: waiting for meshproxy to acknowledge it");
  acknowledge();
  EXPECT_EQ(state_of("a"), "enrolled");
}

TEST_F(NodeTest, EndsInOrderKernelMeshholdProxy) {
  connect();
  const std::uint32_t id = enrol("a", "10.77.0.1");
  acknowledge();
  remove("WorkloadEntry", "a");
  EXPECT_FALSE(datapath_.state.workloads.contains(id));
  EXPECT_EQ(held(feed::HoldType::kEnd).back().workload, id);
  EXPECT_THAT(enrolled_names(), testing::Not(testing::Contains("a")));
  EXPECT_TRUE(machine_.removed.empty()) << "its group is not ours while somebody may be in it";
}

TEST_F(NodeTest, AnEmptyGroupEndsTheWorkloadAndItsEntry) {
  connect();
  const std::uint32_t id = enrol("a", "10.77.0.1");
  acknowledge();
  machine_.cgroups["/cg/a"] = false;
  node_->on_cgroups_changed(now_);
  EXPECT_EQ(state_of("a"), "absent");
  EXPECT_FALSE(datapath_.state.workloads.contains(id));
  EXPECT_THAT(machine_.removed, ElementsAre("/cg/a"));
  EXPECT_FALSE(files_.texts.contains("/s/objects/WorkloadEntry/default.a.yaml"));
}

TEST_F(NodeTest, AnEmptyGroupThatNobodyEnrolledIsRemovedAfterAWhile) {
  connect();
  machine_.cgroups = {{"/cg/orphan", false}, {"/cg/starting", true}};
  for (int i = 0; i < 5; ++i) node_->tick(now_, 0);
  EXPECT_TRUE(machine_.removed.empty()) << "somebody may be about to use it";
  node_->tick(now_, 0);
  EXPECT_THAT(machine_.removed, ElementsAre("/cg/orphan"));
}

TEST_F(NodeTest, TheNextWorkloadOfTheSameNameHasAnotherId) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t first = id_of("a");
  remove("WorkloadEntry", "a");
  outcome(workload("a", "10.77.0.1"));
  EXPECT_GT(id_of("a"), first);
}

TEST_F(NodeTest, ARefusalOfMeshholdOrTheKernelIsTold) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"), feed::HoldStatus::kLoopbackDown);
  EXPECT_THAT(state_of("a"), testing::StartsWith("failed: the loopback device is down"));
  outcome(workload("b", "10.77.0.2"));
  datapath_.refuse.emplace(id_of("b"), Error{Errc::permission, "another program is exclusive"});
  answer_enrol(id_of("b"));
  EXPECT_EQ(state_of("b"), "failed: another program is exclusive");
  EXPECT_EQ(node_->status(now_).state, "degraded");
}

TEST_F(NodeTest, WhatRunsStaysInTheKernelWhenMeshholdCannotHoldItAgain) {
  connect();
  const std::uint32_t id = enrol("a", "10.77.0.1");
  acknowledge();
  const datapath::EnrolledWorkload before = datapath_.state.workloads.at(id);
  for (const bool restarts : {false, true}) {
    if (restarts) restart();
    connect_hold();
    answer_enrol(id, feed::HoldStatus::kPortTaken);
    EXPECT_THAT(state_of("a"), testing::StartsWith("failed: another process listens"));
    outcome(service("reviews"));
    for (const auto& state : datapath_.history)
      if (state.workloads.contains(id)) EXPECT_EQ(state.workloads.at(id), before);
    ASSERT_TRUE(datapath_.state.workloads.contains(id)) << "restarts: " << restarts;
  }
  answer_enrol(id);
  connect_proxy();
  acknowledge();
  EXPECT_EQ(state_of("a"), "enrolled");
  answer_enrol(id, feed::HoldStatus::kPortTaken);
  machine_.cgroups["/cg/a"] = false;
  node_->on_cgroups_changed(now_);
  EXPECT_FALSE(datapath_.state.workloads.contains(id)) << "its processes have ended";
}

TEST_F(NodeTest, AGroupThatIsNoWorkloadsOwnIsRefused) {
  connect();
  machine_.cgroups = {{"/cg/mesh", true}};
  outcome(workload("mesh", "10.77.0.1"));
  for (int i = 0; i < 12; ++i) node_->tick(now_, 0);
  EXPECT_EQ(state_of("mesh"), "failed: /cg/mesh: is the mesh's own");
  for (const feed::HoldMessage& message : held(feed::HoldType::kEnrol))
    EXPECT_EQ(message.workload, feed::kGatewayWorkload);
  EXPECT_FALSE(datapath_.state.workloads.contains(id_of("mesh")));
}

TEST_F(NodeTest, AGroupOfAnotherWorkloadIsSeenByWhateverPath) {
  connect();
  machine_.cgroups = {{"/own/z", true},
                      {"/elsewhere/b", true},
                      {"/elsewhere/below", true},
                      {"/elsewhere/above", true}};
  machine_.cgroup_ids = {{"/own/z", {7, 3, 1}},
                         {"/elsewhere/b", {7, 3}},
                         {"/elsewhere/below", {9, 7}},
                         {"/elsewhere/above", {3}}};
  outcome(workload("z", "10.77.0.1", "/own/"));
  answer_enrol(id_of("z"));
  for (const auto& [name, what] :
       {std::pair{"b", "is "}, {"below", "is above or below "}, {"above", "is above or below "}}) {
    outcome(workload(name, "10.77.0.2", "/elsewhere/"));
    EXPECT_EQ(state_of(name), "failed: /elsewhere/" + std::string(name) + ": " + what +
                                  "/own/z, the control group of default/z; give each workload a "
                                  "group of its own, beside the other's");
    remove("WorkloadEntry", name);
  }
  // The one that the kernel has keeps it, also where another is first in the order of names.
  machine_.cgroup_ids["/elsewhere/b"] = {};  // as yet it is not there
  outcome(workload("b", "10.77.0.2", "/elsewhere/"));
  machine_.cgroup_ids["/elsewhere/b"] = {7, 3};
  restart();
  connect();
  EXPECT_THAT(state_of("b"), testing::StartsWith("failed: /elsewhere/b: is /own/z"));
  EXPECT_EQ(state_of("z"), "pending: waiting for meshhold");
  machine_.cgroups["/own/z"] = false;
  node_->on_cgroups_changed(now_);
  EXPECT_THAT(state_of("z"), testing::StartsWith("failed: ")) << "it ended, and its entry stays";
  hold_.payloads.clear();
  for (int i = 0; i < 12; ++i) node_->tick(now_, 0);
  ASSERT_FALSE(held(feed::HoldType::kEnrol).empty()) << "nobody else has it any more";
  EXPECT_EQ(held(feed::HoldType::kEnrol).back().workload, id_of("b"));
}

TEST_F(NodeTest, ANamespaceThatCannotBeOpenedIsToldWithItsPathAndWhy) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  json::object entry = workload("a", "10.77.0.1");
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/netns"] = "/gone";
  outcome(entry);
  answer_enrol(id_of("a"), feed::HoldStatus::kNotHeld);
  const std::string failed =
      "failed: open /gone: no such file; start the workload, or mend or delete its WorkloadEntry";
  EXPECT_EQ(state_of("a"), failed);
  for (int i = 0; i < 12; ++i) node_->tick(now_, 0);
  EXPECT_EQ(state_of("a"), failed) << "the same at each try";
}

TEST_F(NodeTest, ARefusalOfMeshholdNamesWhatItIsAbout) {
  connect();
  enrol("a", "10.77.0.1");
  machine_.cgroups["/cg/b"] = true;
  outcome(workload("b", "10.77.0.2"));
  say_enrolled(id_of("b"), feed::HoldStatus::kShared, static_cast<int>(id_of("a")));
  EXPECT_THAT(state_of("b"), testing::AllOf(testing::StartsWith("failed: give each workload"),
                                            testing::EndsWith(": default/a")));
  say_enrolled(id_of("b"), feed::HoldStatus::kNotANamespace);
  EXPECT_THAT(state_of("b"), testing::EndsWith("names no network namespace: /proc/1/ns/net"));
}

TEST_F(NodeTest, AnAddressThatTheNamespaceDoesNotHaveIsSaidAndRefusesNothing) {
  connect();
  machine_.inside = {IpAddress::v4(127, 0, 0, 1), IpAddress::v4(10, 77, 0, 1)};
  json::object entry = workload("a", "10.77.0.1");
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/addresses"] =
      "10.77.0.1,fd77::1";
  machine_.cgroups["/cg/a"] = true;
  outcome(entry);
  answer_enrol(id_of("a"));
  acknowledge();
  std::vector<std::string> states;
  const auto id = node_->add_change_sink([&] { states.push_back(state_of("a")); });
  node_->audit(now_ += Audit::kRound);
  EXPECT_EQ(state_of("a"),
            "enrolled: its network namespace has no address fd77::1, so nobody reaches it there; "
            "add it to an interface, or mend the WorkloadEntry");
  EXPECT_THAT(states, testing::Contains(state_of("a")));
  node_->audit(now_ += Audit::kRound);
  EXPECT_EQ(node_->workload({"default", "a"})->captured, "yes");
  machine_.inside->push_back(IpAddress::parse("fd77::1").value());
  node_->audit(now_ += Audit::kRound);
  EXPECT_EQ(state_of("a"), "enrolled");
  machine_.inside.reset();
  node_->audit(now_ += Audit::kRound);
  EXPECT_EQ(state_of("a"), "enrolled") << "it is not known";
  node_->remove_change_sink(id);
}

TEST_F(NodeTest, WhatFailsStaysFailedWhileItIsTriedEverMoreSeldom) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id, feed::HoldStatus::kLoopbackDown);
  const std::string failed = state_of("a");
  const std::uint64_t version = node_->version();
  std::vector<int> gaps = {0};
  for (int ticks = 0; ticks < 150; ++ticks) {
    hold_.payloads.clear();
    node_->tick(now_, 0);
    ++gaps.back();
    EXPECT_EQ(state_of("a"), failed) << "never pending in between";
    if (held(feed::HoldType::kEnrol).empty()) continue;
    gaps.push_back(0);
    answer_enrol(id, feed::HoldStatus::kLoopbackDown);
  }
  EXPECT_EQ(node_->version(), version) << "nothing changed, so nothing is published";
  gaps.pop_back();
  EXPECT_THAT(gaps, ElementsAre(3, 6, 12, 24, 24, 24, 24, 24));
}

TEST_F(NodeTest, ASandboxThatEndedWhileItWasDisabledLeavesNothing) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  json::object entry = workload("a", "10.77.0.1");
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/enrolment"] = "disabled";
  outcome(entry);
  for (int i = 0; i < 10; ++i) node_->tick(now_, 0);
  EXPECT_EQ(state_of("a"), "disabled") << "its processes run";
  machine_.cgroups["/cg/a"] = false;
  for (int i = 0; i < 6; ++i) node_->tick(now_, 0);
  EXPECT_EQ(state_of("a"), "absent");
  EXPECT_THAT(machine_.removed, ElementsAre("/cg/a"));
  EXPECT_FALSE(files_.texts.contains("/s/objects/WorkloadEntry/default.a.yaml"));
}

TEST_F(NodeTest, AnAuditLooksAtEveryWorkloadOnceARoundAndSaysWhatItFinds) {
  connect();
  enrol("a", "10.77.0.1");
  enrol("b", "10.77.0.2");
  answer_enrol(1);
  acknowledge();
  const std::uint32_t a = id_of("a");
  const auto captured = [&](const char* name) {
    return node_->workload({"default", name})->captured;
  };
  EXPECT_EQ(captured("a"), "");
  for (int step = 0; step < Audit::kSteps; ++step)
    node_->audit(now_ += Audit::Clock::duration(Audit::kRound) / Audit::kSteps);
  EXPECT_THAT(datapath_.audited, testing::UnorderedElementsAre(a, id_of("b")))
      << "each once, and not the gateway";
  EXPECT_EQ(captured("a"), "yes");
  EXPECT_EQ(state_of("a"), "enrolled");

  datapath_.differences[a] = {{"its hook connect4", true}, {"program 9 (x) at its hook", false}};
  datapath_.lost_canaries.emplace(a, Error{Errc::refused, "not captured"});
  for (int step = 0; step < Audit::kSteps; ++step)
    node_->audit(now_ += Audit::Clock::duration(Audit::kRound) / Audit::kSteps);
  EXPECT_EQ(captured("a"), "no");
  EXPECT_EQ(captured("b"), "yes");
  EXPECT_EQ(state_of("a"),
            "enrolled: not captured; not as it should be: program 9 (x) at its hook");
  EXPECT_EQ(node_->status(now_).state, "degraded");
  node_->tick(now_, 0);
  const json::object counters = messages(feed::kKernelCounters).back().at("audit").as_object();
  EXPECT_EQ(counters.at("differences").to_number<int>(), 2);
  EXPECT_EQ(counters.at("repairs").to_number<int>(), 1);
  EXPECT_EQ(counters.at("canaries_lost").to_number<int>(), 1);

  datapath_.differences = {{a, {{"its hook of the fast path", false, true}}}};
  datapath_.lost_canaries.clear();
  for (int step = 0; step < Audit::kSteps; ++step)
    node_->audit(now_ += Audit::Clock::duration(Audit::kRound) / Audit::kSteps);
  EXPECT_EQ(captured("a"), "yes") << "nothing is unpoliced";
  EXPECT_EQ(state_of("a"), "enrolled");
  node_->tick(now_, 0);
  EXPECT_EQ(messages(feed::kKernelCounters).back().at("audit").at("differences").to_number<int>(),
            3);
}

TEST_F(NodeTest, ConnectionsThatLastMayJoinTheFastPathAtEachLook) {
  for (int looks = 1; looks <= 2; ++looks) {
    node_->watch_fast_path(now_);
    EXPECT_EQ(datapath_.looks_for_settled, looks);
  }
}

// As `ss -K` closes it: its owners still have it, but it refuses.
TEST_F(NodeTest, AListenerThatWasClosedListensAgainWhileTheProxyIsThere) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto listens = [&] {
    int on = 0;
    socklen_t size = sizeof on;
    ::getsockopt(listener.get(), SOL_SOCKET, SO_ACCEPTCONN, &on, &size);
    return on != 0;
  };
  feed::HoldMessage held;
  held.type = feed::HoldType::kEnrolled;
  held.workload = id_of("a");
  held.netns_cookie = 1000;
  held.families = feed::kHasFamily4;
  feed::Fds fds;
  fds.emplace_back(::fcntl(listener.get(), F_DUPFD_CLOEXEC, 3));
  ASSERT_TRUE(node_->hold_events().on_frame(feed::as_bytes(held), std::move(fds)));
  node_->hold_events().on_drained();
  acknowledge();
  proxy_.connected = false;
  node_->audit(now_);
  EXPECT_FALSE(listens()) << "meshhold refuses in its place";
  proxy_.connected = true;
  node_->audit(now_ += Audit::kRound);
  EXPECT_TRUE(listens());
  node_->audit(now_ += Audit::kRound);
  EXPECT_EQ(node_->workload({"default", "a"})->captured, "yes");
}

// As `ss -K` does, disconnecting takes it off its device: neighbours could ask it, too.
TEST_F(NodeTest, AUdpSocketForDnsIsBoundToLoAgain) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  UniqueFd responder(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto device = [&] {
    char name[16] = {};
    socklen_t size = sizeof name;
    ::getsockopt(responder.get(), SOL_SOCKET, SO_BINDTODEVICE, name, &size);
    return std::string(name);
  };
  ASSERT_EQ(::setsockopt(responder.get(), SOL_SOCKET, SO_BINDTODEVICE, "lo", sizeof "lo"), 0);
  feed::HoldMessage held;
  held.type = feed::HoldType::kEnrolled;
  held.workload = id_of("a");
  held.netns_cookie = 1000;
  held.families = feed::kHasFamily4 | feed::kHasDns;
  feed::Fds fds;
  fds.emplace_back(::fcntl(responder.get(), F_DUPFD_CLOEXEC, 3));
  ASSERT_TRUE(node_->hold_events().on_frame(feed::as_bytes(held), std::move(fds)));
  node_->hold_events().on_drained();
  acknowledge();
  const auto repairs = [&] {
    node_->audit(now_ += Audit::kRound);
    node_->tick(now_, 0);
    const json::object counters = messages(feed::kKernelCounters).back().at("audit").as_object();
    return counters.at("repairs").to_number<int>();
  };
  EXPECT_EQ(repairs(), 0);
  const sockaddr nobody{.sa_family = AF_UNSPEC, .sa_data = {}};
  ASSERT_EQ(::connect(responder.get(), &nobody, sizeof nobody), 0);
  ASSERT_EQ(device(), "");
  EXPECT_EQ(repairs(), 1);
  EXPECT_EQ(device(), "lo");
  EXPECT_EQ(repairs(), 1) << "there is nothing left to do";
  EXPECT_EQ(node_->workload({"default", "a"})->captured, "yes");
}

TEST_F(NodeTest, WhoWaitsIsToldOfEveryStepOfAnEnrolment) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  std::vector<std::string> states;
  const auto look = [&] {
    const auto status = node_->workload({"default", "a"});
    const std::string state = status ? status->state + " " + status->reason : "absent";
    if (states.empty() || states.back() != state) states.push_back(state);
  };
  const auto id = node_->add_change_sink(look);
  outcome(workload("a", "10.77.0.1"));
  acknowledge();
  answer_enrol(id_of("a"), feed::HoldStatus::kLoopbackDown);
  answer_enrol(id_of("a"));
  acknowledge();
  EXPECT_THAT(states, ElementsAre("pending waiting for meshhold", HasSubstr("failed the loopback"),
                                  "pending waiting for meshproxy to acknowledge it", "enrolled "));
  node_->remove_change_sink(id);
  remove("WorkloadEntry", "a");
  EXPECT_EQ(states.size(), 4U);
}

// --- a state directory that is missing

TEST_F(NodeTest, WithoutItsStateDirectoryWhatIsEnrolledStaysAsItIs) {
  connect();
  const std::uint32_t id = enrol("client", "10.77.0.1");
  outcome(service("reviews"));
  outcome(deny("client"));
  acknowledge();
  const datapath::State before = datapath_.state;
  const int applies = datapath_.applies;
  ASSERT_TRUE(before.workloads.contains(id));
  files_.move_away("/s");
  const auto started = start_anew();
  ASSERT_FALSE(started) << "the kernel's workloads would have no hooks any more";
  EXPECT_EQ(started.error().code, Errc::refused);
  for (const char* words : {"state directory /s ", "Mount it", "meshctl disable --all"})
    EXPECT_THAT(started.error().message, HasSubstr(words));
  EXPECT_EQ(datapath_.applies, applies);
  EXPECT_THAT(files_.texts, testing::IsEmpty()) << "a first start would have written there";
  EXPECT_FALSE(files_.list("/s")) << "what is mounted later lies over nothing";
  files_.put_back();
  restart();
  EXPECT_EQ(datapath_.state.workloads, before.workloads);
  EXPECT_EQ(datapath_.state.sets, before.sets);
  EXPECT_EQ(id_of("client"), id);
}

TEST_F(NodeTest, WithoutItsStateDirectoryServicesOrPoliciesAloneStayAsTheyAre) {
  const datapath::State nothing = datapath_.state;
  const auto is_refused_with = [&](auto add) {
    datapath_.state = nothing;
    add(datapath_.state);
    files_.move_away("/s");
    return !start_anew();
  };
  EXPECT_TRUE(is_refused_with([](datapath::State& state) { state.services[kVip].id = 7; }));
  EXPECT_TRUE(is_refused_with([](datapath::State& state) { state.udp_services[kVip].id = 7; }));
  EXPECT_TRUE(is_refused_with([](datapath::State& state) { state.sets[7]; }));
  EXPECT_FALSE(is_refused_with([](datapath::State&) {}));
}

TEST_F(NodeTest, AStateDirectoryMayBeNewWhereTheKernelHasNoWorkloads) {
  connect();
  answer_enrol(feed::kGatewayWorkload);
  acknowledge();
  ASSERT_TRUE(datapath_.state.workloads.contains(feed::kGatewayWorkload));
  files_.move_away("/s");
  restart();  // the gateway alone is of no configuration
  enrol("client", "10.77.0.1");
  acknowledge();
  files_.move_away("/s");
  datapath_.state = {};  // `meshctl disable --all`, `down`
  restart();
  EXPECT_EQ(state_of("client"), "absent");
}

TEST_F(NodeTest, AStateDirectoryWithoutObjectsEndsWhatIsEnrolled) {
  connect();
  const std::uint32_t id = enrol("client", "10.77.0.1");
  acknowledge();
  // As a meshd leaves it that was killed when the last object was gone, and the kernel not told.
  std::erase_if(files_.texts, [](const auto& file) { return file.first != "/s/ids.json"; });
  restart();
  connect();
  EXPECT_FALSE(datapath_.state.workloads.contains(id));
}

}  // namespace
}  // namespace mesh::control
