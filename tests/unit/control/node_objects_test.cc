// Node: what becomes of objects that people apply, delete or write into files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(NodeTest, ARefusedRouteLeavesItsLastAcceptedVersion) {
  connect();
  outcome(service("reviews"));
  EXPECT_EQ(outcome(virtual_service("reviews", route_to("reviews"))), "created");
  acknowledge();
  json::object bad = route_to("reviews");
  bad["rewrite"] = {{"uri", "/"}};
  EXPECT_THAT(outcome(virtual_service("reviews", bad)), testing::StartsWith("refused; f.yaml"));
  EXPECT_EQ(node_->status(now_).reasons.size(), 0U) << "nothing of it was stored";

  // The same by hand, in the file.
  const std::string path = "/s/objects/VirtualService/default.reviews.yaml";
  std::string text = files_.texts.at(path);
  text.replace(text.find("  http:"), 7, "  exportTo: [nowhere]\n  http:");
  files_.set(path, text);
  node_->on_store_changed(now_);
  const auto list = node_->objects("VirtualService", "default", "reviews").objects;
  ASSERT_EQ(list.size(), 1U);
  EXPECT_EQ(list[0].state, "previous");
  EXPECT_EQ(node_->status(now_).state, "degraded");
  EXPECT_EQ(node_->snapshot()->virtual_services.size(), 1U);
}

TEST_F(NodeTest, AnObjectThatCannotBeStoredIsRefusedAndChangesNothing) {
  connect();
  for (int step = 1; step <= 5; ++step) {
    files_.fail_at = step;
    EXPECT_THAT(outcome(service("reviews")), HasSubstr("cannot be stored")) << step;
    files_.fail_at = 0;
    if (step == 5) continue;  // the last step is the fsync of the directory: it is there by then
    EXPECT_TRUE(node_->objects("Service", "", "").objects.empty()) << step;
  }
}

TEST_F(NodeTest, DryRunAndValidateChangeNothing) {
  connect();
  api::ApplyRequest request;
  request.objects.push_back({service("reviews"), "f.yaml", {}});
  EXPECT_EQ(node_->validate(request).results.at(0).outcome, "valid");
  request.dry_run = true;
  EXPECT_EQ(node_->apply(request, now_).results.at(0).outcome, "created");
  EXPECT_TRUE(node_->objects("", "", "").objects.empty());
  for (const auto& [path, text] : files_.texts) EXPECT_EQ(path, "/s/ids.json");
}

TEST_F(NodeTest, DeletingTellsWhereTheObjectIsStill) {
  outcome(service("reviews"));
  add_file("mine.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\n");
  const auto reply = node_->remove({{{"Service", "default", "reviews"}}}, now_);
  EXPECT_EQ(reply.results.at(0).outcome, "deleted");
  EXPECT_THAT(reply.results.at(0).problems,
              testing::ElementsAre("Service default/reviews: is still defined in "
                                   "/s/objects/mine.yaml"));
}

TEST_F(NodeTest, ADamagedFileOfTheStoreIsToldAndNothingElse) {
  outcome(service("reviews"));
  outcome(service("ratings"));
  files_.set("/s/accepted/Service/default.ratings.json", "{");
  files_.set("/s/parsed/AuthorizationPolicy/default.p.json", "[1]");
  restart();
  EXPECT_EQ(node_->snapshot()->services.size(), 2U);
  const auto status = node_->status(now_ + std::chrono::minutes(1));
  EXPECT_EQ(status.state, "degraded");
  EXPECT_THAT(status.reasons, testing::Contains(HasSubstr("default.ratings.json")));
  EXPECT_THAT(status.reasons, testing::Contains(HasSubstr("default.p.json")));
  files_.texts.erase("/s/parsed/AuthorizationPolicy/default.p.json");
  outcome(service("details"));
  EXPECT_THAT(node_->status(now_).reasons, testing::Not(testing::Contains(HasSubstr(".json"))))
      << "one was written anew, the other is gone";
}

TEST_F(NodeTest, AReplySaysWhatIsNotInForceYet) {
  const auto warnings = [this] {
    api::ApplyReply reply;
    reply.results = {{{"Service", "default", "reviews"}, "v1", "created", {}},
                     {{"Service", "default", "ratings"}, "v1", "refused", {}}};
    node_->add_what_is_due(reply);
    EXPECT_THAT(reply.results[1].problems, testing::IsEmpty());
    return reply.results[0].problems;
  };
  EXPECT_THAT(warnings(), ElementsAre(HasSubstr("not in force yet: meshproxy is away")));
  connect();
  EXPECT_THAT(warnings(), testing::IsEmpty());
  outcome(service("reviews"));
  EXPECT_THAT(warnings(), ElementsAre(HasSubstr("meshproxy has not acknowledged it")));
  acknowledge();
  EXPECT_THAT(warnings(), testing::IsEmpty());
}

// A disk that is full, for one.
TEST_F(NodeTest, AReplySaysThatNothingNewIsInForceWhileTheKernelCannotHaveIt) {
  connect();
  enrol("a", "10.77.0.1");
  acknowledge();
  const auto reply_to = [this](const json::object& tree) {
    api::ApplyRequest request;
    request.objects.push_back({tree, "f.yaml", {}});
    api::ApplyReply reply = node_->apply(request, now_);
    node_->add_what_is_due(reply);
    return reply;
  };
  files_.full = "/s/ids.json";
  const api::ApplyReply reply = reply_to(deny("a"));
  EXPECT_EQ(reply.results.at(0).outcome, "created");
  EXPECT_THAT(reply.not_in_force, HasSubstr("no space left on device"));
  EXPECT_THAT(node_->policies().notes, ElementsAre(reply.not_in_force));
  files_.full.clear();
  node_->tick(now_, 0);
  EXPECT_THAT(node_->policies().notes, testing::IsEmpty());
  EXPECT_EQ(reply_to(deny("b")).not_in_force, "");
}

TEST_F(NodeTest, AReplySaysThatAPolicyDoesNotFit) {
  connect();
  enrol("a", "10.77.0.1");
  outcome(deny("a"));
  acknowledge();
  const auto& peers = datapath_.state.peers;
  datapath_.left_out.sets = {peers.at(IpAddress::v4(10, 77, 0, 1)).ingress};
  outcome(workload("c", "10.77.0.3"));
  api::ApplyReply reply;
  reply.results = {{{"AuthorizationPolicy", "default", "deny-a"}, "", "unchanged", {}}};
  node_->add_what_is_due(reply);
  EXPECT_THAT(reply.results[0].problems, testing::Contains(HasSubstr("does not fit")));
}

}  // namespace
}  // namespace mesh::control
