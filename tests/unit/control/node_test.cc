// Node and Publisher with fakes of everything around them: who is told what, and in which order.
#include "control/node.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "control/dumps.h"
#include "feed/messages.h"
#include "tests/support/fake_datapath.h"
#include "tests/support/memory_files.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using testing::ElementsAre;
using testing::HasSubstr;

class FakePeer final : public Peer {
 public:
  bool connected = false;
  std::vector<std::string> payloads;
  bool is_connected() const override { return connected; }
  std::uint64_t pid() const override { return connected ? 42 : 0; }
  void send(std::string_view payload, feed::Fds) override {
    if (connected) payloads.emplace_back(payload);
  }
};

class FakeMachine final : public Machine {
 public:
  std::map<std::string, bool> cgroups;
  std::vector<IpAddress> addresses;
  std::vector<IpAddress> node_addresses() override { return addresses; }
  std::vector<std::string> removed;
  Result<UniqueFd> open_netns(const std::string& path) override {
    UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (path == "/gone") return Error{Errc::not_found, "open /gone: no such file"};
    return fd;
  }
  Result<> check_cgroup(const std::string& cgroup) override {
    if (cgroup == "/cg/mesh") return Error{Errc::refused, "/cg/mesh: is the mesh's own"};
    return success();
  }
  std::optional<bool> is_populated(const std::string& cgroup) override {
    const auto at = cgroups.find(cgroup);
    return at == cgroups.end() ? std::nullopt : std::optional(at->second);
  }
  std::vector<std::string> sandbox_groups() override {
    std::vector<std::string> groups;
    for (const auto& [group, populated] : cgroups) groups.push_back(group);
    return groups;
  }
  Result<> remove_cgroup(const std::string& cgroup) override {
    removed.push_back(cgroup);
    cgroups.erase(cgroup);
    return success();
  }
  void watch_cgroup(const std::string&) override {}
  void unwatch_cgroup(const std::string&) override {}
};

json::object object(const std::string& kind, const std::string& version, const std::string& name,
                    json::object spec, json::object annotations = {}) {
  return {{"apiVersion", version},
          {"kind", kind},
          {"metadata", {{"name", name}, {"namespace", "default"}, {"annotations", annotations}}},
          {"spec", std::move(spec)}};
}
json::object service(const std::string& name, const std::string& port_name = "http") {
  return object("Service", "v1", name,
                {{"selector", {{"app", name}}},
                 {"ports", json::array{{{"name", port_name}, {"port", 9080}}}}});
}
json::object workload(const std::string& name, const std::string& address,
                      const std::string& groups = "/cg/") {
  return object("WorkloadEntry", "networking.istio.io/v1", name,
                {{"address", address}, {"labels", {{"app", name}}}},
                {{"undermesh.io/netns", "/proc/1/ns/net"}, {"undermesh.io/cgroup", groups + name}});
}
json::object deny(const std::string& app) {
  return object("AuthorizationPolicy", "security.istio.io/v1", "deny-" + app,
                {{"selector", {{"matchLabels", {{"app", app}}}}}, {"action", "ALLOW"}});
}
json::object virtual_service(const std::string& host, json::object route) {
  return object("VirtualService", "networking.istio.io/v1", host,
                {{"hosts", {host}}, {"http", json::array{std::move(route)}}});
}
json::object route_to(const std::string& host) {
  return {{"route", json::array{{{"destination", {{"host", host}}}}}}};
}

const SocketAddress kVip = SocketAddress::parse("10.78.0.1:9080").value();

class NodeTest : public testing::Test {
 protected:
  NodeTest() { restart(); }

  void restart() {
    config::Workload gateway;
    gateway.name = {"istio-system", "undermesh-gateway"};
    config::CompileOptions options;
    options.gateway_workload = std::make_shared<const config::Workload>(gateway);
    node_.reset();
    store_ =
        std::make_unique<Store>(files_, "/s", Random(1), [] { return "2026-01-01T00:00:00Z"; });
    numbers_ =
        std::make_unique<Numbers>(files_, "/s/ids.json", IpBlock::parse("10.78.0.0/16").value());
    fast_path_ = std::make_unique<FastPathSwitch>(datapath_, files_, "/s/fastpath");
    node_ = std::make_unique<Node>(
        NodeOptions{"1.2.3", "node", "/cg", access_log_},
        NodeParts{*store_, *numbers_, datapath_, machine_, hold_, proxy_, *fast_path_}, options);
    const auto started = node_->start(now_);
    ASSERT_TRUE(started) << started.error().message;
  }
  void connect_hold() {
    hold_.connected = true;
    node_->hold_events().on_connected();
  }
  void connect_proxy() {
    proxy_.connected = true;
    node_->proxy_events().on_connected();
  }
  void connect() {
    connect_hold();
    connect_proxy();
    acknowledge();
  }
  std::vector<json::object> messages(std::string_view type) const {
    std::vector<json::object> found;
    for (const std::string& payload : proxy_.payloads) {
      json::object message = json::parse(payload).as_object();
      if (message.at("type").as_string() == type) found.push_back(std::move(message));
    }
    return found;
  }
  json::object last_update() const {
    const auto updates = messages(feed::kUpdate);
    return updates.empty() ? json::object() : updates.back();
  }
  std::vector<std::string> enrolled_names() const {
    std::vector<std::string> names;
    const json::object update = last_update();
    for (const json::value& item : update.at("enrolled").as_array())
      names.emplace_back(item.at("name").as_string());
    return names;
  }
  void from_proxy(const json::object& message) {
    ASSERT_TRUE(node_->proxy_events().on_frame(json::serialize(message), {}));
  }
  void acknowledge() {
    // Each acknowledgement may bring the next update.
    for (std::size_t seen = 0; seen != messages(feed::kUpdate).size();) {
      seen = messages(feed::kUpdate).size();
      from_proxy({{"type", "ack"}, {"version", last_update().at("version")}});
    }
  }
  std::vector<feed::HoldMessage> held(feed::HoldType type) const {
    std::vector<feed::HoldMessage> found;
    for (const std::string& payload : hold_.payloads)
      if (auto message = feed::parse_hold_message(payload); message.value().type == type)
        found.push_back(message.value());
    return found;
  }
  void answer_enrol(std::uint32_t id, feed::HoldStatus status = feed::HoldStatus::kOk,
                    int dns_error = 0) {
    say_enrolled(id, status, dns_error);
    node_->hold_events().on_drained();
  }
  void say_enrolled(std::uint32_t id, feed::HoldStatus status = feed::HoldStatus::kOk,
                    int dns_error = 0) {
    feed::HoldMessage message;
    message.type = feed::HoldType::kEnrolled;
    message.workload = id;
    message.netns_cookie = 1000 + id;
    message.status = status;
    message.families = feed::kHasFamily4 | feed::kHasFamily6;
    if (dns_error == 0) message.families |= feed::kHasDns;
    message.detail = static_cast<std::uint32_t>(dns_error);
    ASSERT_TRUE(node_->hold_events().on_frame(feed::as_bytes(message), {}));
  }
  std::string outcome(json::object tree) {
    api::ApplyRequest request;
    request.objects.push_back({std::move(tree), "f.yaml", {}});
    const auto reply = node_->apply(request, now_);
    std::string text = reply.results.at(0).outcome;
    for (const auto& problem : reply.results[0].problems) text += "; " + problem;
    return text;
  }
  void remove(const std::string& kind, const std::string& name) {
    node_->remove({{{kind, "default", name}}}, now_);
  }
  bool is_proxied() const {
    const auto entry = datapath_.state.services.find(kVip);
    return entry != datapath_.state.services.end() &&
           entry->second.kind == datapath::ServiceEntry::Kind::kProxy;
  }
  void add_file(const std::string& name, const std::string& text) {
    files_.set("/s/objects/" + name, text);
    node_->on_store_changed(now_);
  }
  bool may_reach(const std::string& client, const std::string& server) const {
    const auto& workloads = node_->snapshot()->workloads;
    const config::Workload& to = *workloads.at({"default", server});
    return config::authorize(*node_->snapshot(), *workloads.at({"default", client}), to,
                             {to.addresses.front(), 9080})
        .allowed;
  }
  std::uint32_t id_of(const std::string& name) const {
    for (const auto& w : node_->workloads().workloads)
      if (w.name == name) return w.id;
    return 0;
  }
  datapath::VerdictEntry verdict(datapath::WorkloadId client, const IpAddress& server) const {
    const datapath::State& state = datapath_.state;
    const auto* found =
        datapath::find_verdict(state.sets.at(state.peers.at(server).ingress),
                               state.workloads.at(client).class4, datapath::Transport::kTcp, 80);
    return found ? *found : datapath::VerdictEntry{};
  }
  std::string state_of(const std::string& name) const {
    for (const auto& w : node_->workloads().workloads)
      if (w.name == name) return w.state + (w.reason.empty() ? "" : ": " + w.reason);
    return "absent";
  }

  Node::Clock::time_point now_{};
  std::string access_log_;
  test::MemoryFiles files_;
  test::FakeDatapath datapath_;
  FakeMachine machine_;
  FakePeer hold_, proxy_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<Numbers> numbers_;
  std::unique_ptr<FastPathSwitch> fast_path_;
  std::unique_ptr<Node> node_;
};

TEST_F(NodeTest, TheKernelPointsAtTheProxyAfterItsAcknowledgement) {
  connect();
  EXPECT_EQ(outcome(service("reviews")), "created");
  EXPECT_EQ(last_update().at("put").as_array().size(), 1U);
  EXPECT_FALSE(is_proxied());
  acknowledge();
  EXPECT_TRUE(is_proxied());
}

TEST_F(NodeTest, AServiceEntrysHostsHaveAddressesThatTheyKeep) {
  const auto entry = [](json::array hosts) {
    return object("ServiceEntry", "networking.istio.io/v1", "partner",
                  {{"hosts", std::move(hosts)},
                   {"resolution", "STATIC"},
                   {"ports", json::array{{{"name", "sql"}, {"number", 9080}}}},
                   {"endpoints", json::array{{{"address", "198.51.100.1"}}}}});
  };
  const auto address_of = [&](const std::string& host) {
    const auto& addresses = node_->snapshot()->services.at(host)->addresses;
    return addresses.size() == 1 ? addresses[0].to_string() : "none";
  };
  connect();
  EXPECT_EQ(outcome(entry({"a.example", "B.example."})), "created");
  acknowledge();
  const std::string a = address_of("a.example"), b = address_of("b.example");
  EXPECT_NE(a, b);
  for (const std::string& address : {a, b})
    EXPECT_TRUE(datapath_.state.services.contains(SocketAddress::parse(address + ":9080").value()))
        << address;
  restart();
  connect();
  EXPECT_EQ(address_of("a.example"), a);
  EXPECT_EQ(address_of("b.example"), b);
  EXPECT_EQ(outcome(entry({"b.example", "c.example"})), "configured");
  EXPECT_EQ(address_of("b.example"), b);
  EXPECT_NE(address_of("c.example"), a) << "an address that was just freed";
}

TEST_F(NodeTest, TheKernelRedirectsDnsOnceTheProxyAnswersIt) {
  connect();
  from_proxy({{"type", "ready"}, {"version", "1"}, {"dns", true}});
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id);
  acknowledge();
  const auto is_redirected = [&] { return datapath_.state.workloads.at(id).has_responder; };
  EXPECT_EQ(state_of("a"), "pending: waiting for meshproxy to answer its DNS");
  EXPECT_FALSE(is_redirected());
  from_proxy({{"type", "dns"}, {"workloads", {id}}});
  EXPECT_EQ(state_of("a"), "enrolled");
  EXPECT_TRUE(is_redirected());
  // Without the proxy the kernel sees by itself that it is away; a new meshd changes nothing.
  proxy_.connected = false;
  node_->proxy_events().on_lost(Error{});
  outcome(service("reviews"));
  EXPECT_TRUE(is_redirected());
  restart();
  EXPECT_TRUE(is_redirected());
  connect_proxy();
  from_proxy({{"type", "ready"}, {"version", "1"}, {"dns", true}});
  EXPECT_TRUE(is_redirected());
  from_proxy({{"type", "dns"}, {"workloads", json::array()}});
  EXPECT_FALSE(is_redirected());
  node_->watch_proxy(now_);
  from_proxy({{"type", "dns"}, {"workloads", {id}}});
  EXPECT_TRUE(is_redirected());
  node_->watch_proxy(now_);
  from_proxy({{"type", "ready"}, {"version", "0"}});  // an older one, which answers none
  EXPECT_FALSE(is_redirected());
}

TEST_F(NodeTest, ConnectionsOfADeletedServiceAreResetWhereItSaysSo) {
  const auto apply = [&](const std::string& name, const std::string& annotation) {
    json::object tree = service(name, "tcp");
    tree["metadata"].as_object()["annotations"] = {{"undermesh.io/" + annotation, "reset"}};
    outcome(annotation.empty() ? service(name, "tcp") : tree);
    const auto& addresses =
        node_->snapshot()->services.at(name + ".default.svc.cluster.local")->addresses;
    return SocketAddress{addresses.at(0), 9080};
  };
  const std::string reset = "on-endpoint-removal";
  connect();
  machine_.cgroups = {{"/cg/db", true}};
  outcome(workload("db", "10.77.0.1"));
  const SocketAddress at = apply("db", reset);
  apply("cache", "");
  remove("Service", "cache");
  EXPECT_TRUE(datapath_.former_services.empty());
  remove("Service", "db");
  EXPECT_EQ(datapath_.former_services, std::set{at});
  const int looks = datapath_.looks_for_removed;
  node_->tick(now_, 0);
  EXPECT_EQ(datapath_.looks_for_removed, looks + 1) << "what was connecting then";
  EXPECT_EQ(datapath_.former_services, std::set{at});
  node_->tick(now_, 0);
  EXPECT_EQ(datapath_.looks_for_removed, looks + 1);
  outcome(service("other"));
  EXPECT_TRUE(datapath_.former_services.empty()) << "nothing is left of it";
  // One that is there again, and one that goes while meshd is away.
  const SocketAddress again = apply("db", reset);
  remove("Service", "db");
  EXPECT_EQ(datapath_.former_services, std::set{again});
  const SocketAddress third = apply("db", reset);
  EXPECT_FALSE(datapath_.former_services.contains(third));
  for (int i = 0; i < 3; ++i) node_->tick(now_, 0);
  ASSERT_EQ(files_.texts.erase("/s/objects/Service/default.db.yaml"), 1);
  restart();
  EXPECT_EQ(datapath_.former_services, std::set{third});
}

TEST_F(NodeTest, ALookupSaysWhomAWorkloadAsks) {
  const auto told = [&](const std::string& name, const std::string& from) {
    const auto rows = node_->look_up(name, from);
    return rows ? std::string(rows.value().rows.at(0).at("answer").as_string())
                : rows.error().message;
  };
  connect();
  from_proxy({{"type", "ready"}, {"version", "1"}, {"dns", true}});
  machine_.cgroups = {{"/cg/a", true}, {"/pods/b", true}};
  outcome(service("reviews"));
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2", "/pods/"));
  const std::uint32_t a = id_of("a"), b = id_of("b");
  answer_enrol(a);
  answer_enrol(b);
  acknowledge();
  EXPECT_EQ(told("reviews", "a"), "the mesh is not asked: waiting for meshproxy to answer its DNS");
  from_proxy({{"type", "dns"}, {"workloads", {a, b}}});
  for (const char* from : {"", "a", "default/b"}) EXPECT_EQ(told("reviews", from), "10.78.0.1");
  EXPECT_EQ(told("www.example", ""), "forwarded to the resolver that is asked");
  EXPECT_EQ(told("www.example", "b"), "forwarded to the resolver that is asked");
  EXPECT_EQ(told("www.example", "a"),
            "no such name (NXDOMAIN) from a sandbox's resolver, 192.0.0.8; forwarded to any other "
            "that is asked");
  const std::string gateway = "istio-system/undermesh-gateway";
  answer_enrol(id_of("undermesh-gateway"), feed::HoldStatus::kOk, EADDRINUSE);
  acknowledge();
  EXPECT_EQ(told("reviews", gateway),
            "the mesh is not asked: the workload has no sockets for DNS (port 15053)");
  const auto nobody = node_->look_up("reviews", "shop/a");
  ASSERT_FALSE(nobody);
  EXPECT_EQ(nobody.error().code, Errc::not_found);
  EXPECT_EQ(nobody.error().message,
            "no workload shop/a; `meshctl get workloadentry -A` lists those there are");
}

TEST_F(NodeTest, AProxyThatChangesItsMindDoesNotKeepTheKernelBusy) {
  connect();
  from_proxy({{"type", "ready"}, {"version", "1"}, {"dns", true}});
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id);
  acknowledge();
  const int before = datapath_.applies;
  for (int i = 0; i < 100; ++i) {
    from_proxy({{"type", "dns"}, {"workloads", {id}}});
    from_proxy({{"type", "dns"}, {"workloads", json::array()}});
  }
  EXPECT_EQ(datapath_.applies, before + 1);
  EXPECT_EQ(state_of("a"), "enrolled") << "as the kernel has it";
  node_->watch_proxy(now_);
  EXPECT_EQ(datapath_.applies, before + 2);
  EXPECT_EQ(state_of("a"), "pending: waiting for meshproxy to answer its DNS");
  node_->watch_proxy(now_);
  EXPECT_EQ(datapath_.applies, before + 2);
}

TEST_F(NodeTest, TheLastConnectionsOfAWorkloadAreToldBeforeItsEnd) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id);
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

TEST_F(NodeTest, RemovalGoesTheOtherWayRound) {
  connect();
  outcome(service("reviews"));
  acknowledge();
  proxy_.payloads.clear();
  remove("Service", "reviews");
  EXPECT_FALSE(datapath_.state.services.contains(kVip)) << "before the proxy acknowledged";
  EXPECT_EQ(last_update().at("delete").as_array().size(), 1U);
}

TEST_F(NodeTest, APolicyHoldsAtOnceWithTheProxyAway) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  answer_enrol(id_of("b"));
  acknowledge();
  proxy_.connected = false;
  node_->proxy_events().on_lost({Errc::reset, "gone"});
  EXPECT_THAT(outcome(deny("b")), testing::StartsWith("created"));
  EXPECT_FALSE(verdict(id_of("a"), IpAddress::v4(10, 77, 0, 2)).allowed);
}

TEST_F(NodeTest, TheMachinesNewAddressesAreNoticed) {
  connect();
  machine_.addresses = {IpAddress::v4(192, 0, 2, 1)};
  node_->tick(now_, 0);
  EXPECT_EQ(node_->snapshot()->node_addresses, machine_.addresses);
}

TEST_F(NodeTest, OnlyOneUpdateIsInFlightAndTheNextHasWhatCameMeanwhile) {
  connect();
  proxy_.payloads.clear();
  outcome(service("reviews"));
  outcome(service("ratings"));
  outcome(service("details"));
  EXPECT_EQ(messages(feed::kUpdate).size(), 1U);
  from_proxy({{"type", "ack"}, {"version", last_update().at("version")}});
  EXPECT_EQ(messages(feed::kUpdate).size(), 2U);
  EXPECT_EQ(last_update().at("put").as_array().size(), 2U);
}

TEST_F(NodeTest, ARefusalOfTheProxyStopsThePublicationAndIsAnError) {
  connect();
  proxy_.payloads.clear();
  outcome(service("reviews"));
  from_proxy({{"type", "nack"},
              {"version", last_update().at("version")},
              {"problems", json::array{{{"kind", "Service"},
                                        {"namespace", "default"},
                                        {"name", "reviews"},
                                        {"message", "no"}}}}});
  EXPECT_FALSE(is_proxied());
  const auto status = node_->status(now_);
  EXPECT_EQ(status.state, "degraded");
  EXPECT_THAT(status.reasons, testing::Contains(HasSubstr("refused by meshproxy: no")));
  outcome(service("ratings"));
  EXPECT_TRUE(last_update().at("reset").as_bool()) << "the next one starts from nothing";
  EXPECT_EQ(last_update().at("put").as_array().size(), 2U);
}

TEST_F(NodeTest, AnOldAcknowledgementMeansNothing) {
  connect();
  outcome(service("reviews"));
  from_proxy({{"type", "ack"}, {"version", 0}});
  EXPECT_FALSE(is_proxied());
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
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id);
  acknowledge();
  remove("WorkloadEntry", "a");
  EXPECT_FALSE(datapath_.state.workloads.contains(id));
  EXPECT_EQ(held(feed::HoldType::kEnd).back().workload, id);
  EXPECT_THAT(enrolled_names(), testing::Not(testing::Contains("a")));
  EXPECT_TRUE(machine_.removed.empty()) << "its group is not ours while somebody may be in it";
}

TEST_F(NodeTest, AnEmptyGroupEndsTheWorkloadAndItsEntry) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id);
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
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  const std::uint32_t id = id_of("a");
  answer_enrol(id);
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
  entry["metadata"].as_object()["annotations"].as_object().erase("undermesh.io/netns");
  outcome(entry);
  for (int i = 0; i < 10; ++i) node_->tick(now_, 0);
  EXPECT_EQ(state_of("a"), "remote") << "its processes run";
  machine_.cgroups["/cg/a"] = false;
  for (int i = 0; i < 6; ++i) node_->tick(now_, 0);
  EXPECT_EQ(state_of("a"), "absent");
  EXPECT_THAT(machine_.removed, ElementsAre("/cg/a"));
  EXPECT_FALSE(files_.texts.contains("/s/objects/WorkloadEntry/default.a.yaml"));
}

TEST_F(NodeTest, TheProxyIsToldWhatChangedAlone) {
  connect();
  outcome(service("one", "http"));
  outcome(service("two", "http"));
  acknowledge();
  const auto told = [this] {
    acknowledge();
    const json::object update = messages(feed::kUpdate).back();
    std::string text;
    for (const json::value& object : update.at("put").as_array())
      text += "+" + std::string(object.at("metadata").at("name").as_string());
    for (const json::value& key : update.at("delete").as_array())
      text += "-" + std::string(key.at("name").as_string());
    return text;
  };
  outcome(service("one", "tcp"));
  EXPECT_EQ(told(), "+one");
  remove("Service", "two");
  EXPECT_EQ(told(), "-two");
  outcome(service("three", "http"));
  EXPECT_EQ(told(), "+three");
}

TEST_F(NodeTest, ManyThatAreEnrolledAtOnceAreToldAtOnce) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  const int applies = datapath_.applies;
  const auto version = node_->version();
  say_enrolled(id_of("a"));
  say_enrolled(id_of("b"));
  EXPECT_EQ(datapath_.applies, applies);
  node_->hold_events().on_drained();
  EXPECT_EQ(datapath_.applies, applies + 1);
  EXPECT_EQ(node_->version(), version + 1);
  EXPECT_TRUE(datapath_.state.workloads.contains(id_of("a")));
  EXPECT_TRUE(datapath_.state.workloads.contains(id_of("b")));
  node_->hold_events().on_drained();
  EXPECT_EQ(datapath_.applies, applies + 1) << "nothing is due";
}

TEST_F(NodeTest, TheKernelIsToldWhoIsStrict) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  json::object entry = workload("a", "10.77.0.1");
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/mode"] = "strict";
  outcome(entry);
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  answer_enrol(id_of("b"));
  EXPECT_TRUE(datapath_.state.workloads.at(id_of("a")).strict);
  EXPECT_FALSE(datapath_.state.workloads.at(id_of("b")).strict);
}

TEST_F(NodeTest, AStrictWorkloadWhosePacketsAreNotPolicedIsNamed) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"));
  answer_enrol(1);
  acknowledge();
  ASSERT_EQ(state_of("a"), "enrolled");
  const std::string why = "strict, but its packets are not policed: no veth";
  datapath_.not_covered[id_of("a")] = why;
  EXPECT_EQ(state_of("a"), "enrolled: " + why);
  const api::Status status = node_->status(now_);
  EXPECT_EQ(status.state, "degraded");
  EXPECT_THAT(status.reasons, testing::Contains("workload default/a: " + why));
}

TEST_F(NodeTest, AnAuditLooksAtEveryWorkloadOnceARoundAndSaysWhatItFinds) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  for (const char* name : {"a", "b"}) answer_enrol(id_of(name));
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
  fds.emplace_back(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));  // for DNS: does not listen
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

TEST_F(NodeTest, ARestartKeepsTheKernelsStateUntilThePeersAreHeard) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  outcome(service("reviews"));
  outcome(deny("b"));
  answer_enrol(id_of("a"));
  answer_enrol(id_of("b"));
  answer_enrol(1);
  acknowledge();
  const datapath::State before = datapath_.state;
  ASSERT_EQ(before.workloads.size(), 3U);
  hold_.connected = proxy_.connected = false;
  datapath_.history.clear();
  restart();
  ASSERT_FALSE(datapath_.history.empty());
  for (const auto& state : datapath_.history) {
    EXPECT_EQ(state.workloads, before.workloads);
    EXPECT_EQ(state.services, before.services);
    EXPECT_EQ(state.sets, before.sets);
    EXPECT_EQ(state.peers, before.peers);
    EXPECT_EQ(state.refusals, before.refusals);
  }
  EXPECT_THAT(state_of("a"), testing::StartsWith("pending"));
}

TEST_F(NodeTest, TheAccessLogIsAFileAndNothingElse) {
  std::string directory = testing::TempDir() + "log-XXXXXX";
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  std::filesystem::create_symlink(directory + "/file", directory + "/link");
  ASSERT_EQ(::mkfifo((directory + "/fifo").c_str(), 0600), 0);
  const UniqueFd reader(::open((directory + "/fifo").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  for (const char* name : {"/link", "/fifo", "", "/file"}) {
    access_log_ = directory + name;
    proxy_.payloads.clear();
    restart();
    connect();
    const bool is_file = access_log_.ends_with("/file");
    EXPECT_EQ(messages(feed::kOptions).back().at("access_log").as_bool(), is_file) << name;
    EXPECT_THAT(node_->status(now_).reasons,
                testing::Conditional(
                    is_file, testing::IsEmpty(),
                    testing::Contains(HasSubstr("access log cannot be opened: " + access_log_))));
  }
  EXPECT_FALSE(std::filesystem::is_symlink(directory + "/file"));
  std::filesystem::remove_all(directory);
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

TEST_F(NodeTest, MeshholdIsOnlyToldToDropTheRestOnceTheProxyAcknowledged) {
  connect_hold();
  EXPECT_TRUE(held(feed::HoldType::kSync).empty());
  connect_proxy();
  acknowledge();
  EXPECT_EQ(held(feed::HoldType::kSync).size(), 1U);
}

TEST_F(NodeTest, AGatewayListensOnceTheProxyHasItAndStopsBeforeItLosesIt) {
  connect();
  const auto gateway =
      object("Gateway", "networking.istio.io/v1", "front",
             {{"selector", {{"istio", "ingressgateway"}}},
              {"servers",
               json::array{{{"port", {{"number", 8080}, {"name", "http"}, {"protocol", "HTTP"}}},
                            {"bind", "127.0.0.1"},
                            {"hosts", {"*"}}}}}});
  EXPECT_EQ(outcome(gateway), "created");
  EXPECT_EQ(held(feed::HoldType::kHostListener).size(), 1U) << "metrics";
  acknowledge();
  EXPECT_EQ(held(feed::HoldType::kHostListener).back().port, 8080);
  remove("Gateway", "front");
  EXPECT_EQ(held(feed::HoldType::kEndHostListener).size(), 1U) << "before the acknowledgement";
}

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

const std::string kBroken = "kind: [";
std::string policy_text(const std::string& app, const std::string& spec) {
  return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"
         "spec: {selector: {matchLabels: {app: " +
         app + "}}, " + spec + "}\n";
}

TEST_F(NodeTest, WhatARefusedPolicyDeniesStaysDeniedWhenItsFileBreaks) {
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  add_file("p.yaml", policy_text("b", "rules: [{}]"));
  EXPECT_TRUE(may_reach("a", "b"));
  add_file("p.yaml", policy_text("b", "action: CUSTOM, rules: [{}]"));
  EXPECT_FALSE(may_reach("a", "b"));
  add_file("p.yaml", kBroken);
  EXPECT_FALSE(may_reach("a", "b")) << "not the version that was accepted before";
  restart();
  EXPECT_FALSE(may_reach("a", "b"));
  EXPECT_EQ(node_->status(now_ + std::chrono::minutes(1)).state, "degraded");
  add_file("p.yaml", policy_text("b", "rules: [{}]"));
  EXPECT_TRUE(may_reach("a", "b"));
}

TEST_F(NodeTest, APolicyThatWasNeverAcceptedDeniesOnWhenItsFileBreaks) {
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  add_file("p.yaml", policy_text("b", "action: CUSTOM"));
  add_file("p.yaml", kBroken);
  EXPECT_FALSE(may_reach("a", "b"));
  restart();
  EXPECT_FALSE(may_reach("a", "b"));
  add_file("p.yaml", "");
  EXPECT_TRUE(may_reach("a", "b"));
  add_file("p.yaml", kBroken);
  restart();
  EXPECT_TRUE(may_reach("a", "b")) << "it was deleted";
}

TEST_F(NodeTest, APolicyInTwoFilesDeniesWhatBothSelect) {
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  outcome(workload("c", "10.77.0.3"));
  add_file("1.yaml", policy_text("b", ""));
  add_file("2.yaml", policy_text("c", "rules: [{}]"));
  EXPECT_FALSE(may_reach("a", "b"));
  EXPECT_FALSE(may_reach("a", "c"));
  EXPECT_THAT(node_->status(now_).reasons,
              testing::Contains(testing::AllOf(HasSubstr("1.yaml"), HasSubstr("2.yaml"))));
  add_file("1.yaml", kBroken);
  EXPECT_FALSE(may_reach("a", "b")) << "also when one of them can no longer be read";
  restart();
  EXPECT_FALSE(may_reach("a", "b"));
  EXPECT_FALSE(may_reach("a", "c"));
  add_file("1.yaml", "");
  EXPECT_TRUE(may_reach("a", "b"));
  EXPECT_TRUE(may_reach("a", "c"));
}

TEST_F(NodeTest, APolicyInTwoFilesIsNamedWithBoth) {
  const std::string both = "/s/objects/1.yaml and /s/objects/2.yaml";
  add_file("1.yaml", policy_text("b", ""));
  add_file("2.yaml", policy_text("b", ""));
  const auto reasons = node_->status(now_).reasons;
  EXPECT_THAT(reasons,
              testing::Contains(testing::MatchesRegex(
                  "/s/objects/2.yaml:[0-9]: AuthorizationPolicy default/p: metadata.name: is also "
                  "in /s/objects/1.yaml; an object has one owner: remove it from all but one")));
  const json::object tree = config::parse_objects(policy_text("c", ""), "").value().at(0).tree;
  EXPECT_EQ(outcome(tree), "refused; AuthorizationPolicy default/p: is defined in " + both +
                               "; an object has one owner: remove it from all but one");
  const auto reply = node_->remove({{{"AuthorizationPolicy", "default", "p"}}}, now_);
  EXPECT_THAT(reply.results.at(0).problems,
              testing::ElementsAre("AuthorizationPolicy default/p: is defined in " + both +
                                   "; remove it there"));
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

TEST_F(NodeTest, TheDumpOfRoutesHasTheDefaultRoutesOfHttpServices) {
  outcome(service("reviews"));
  outcome(service("ratings"));
  outcome(service("db", "tcp"));
  outcome(virtual_service("reviews", route_to("reviews")));
  const auto rows = dump_routes(*node_->snapshot()).rows;
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].at("virtual_service").as_string(), "default/reviews");
  EXPECT_EQ(rows[1].at("hosts").as_string(), "ratings.default.svc.cluster.local");
  EXPECT_EQ(rows[1].at("rule").as_string(), "default");
  EXPECT_EQ(rows[1].at("destinations").as_string(), "ratings.default.svc.cluster.local:9080");
}

TEST_F(NodeTest, MeshholdIsToldWhenTheProxyHangsAndWhenItWorksAgain) {
  using std::chrono::milliseconds;
  now_ = Node::Clock::now();
  connect();
  const auto told = [this](milliseconds later, int looks = 1) {
    hold_.payloads.clear();
    std::string text;
    now_ += later;
    for (int i = 0; i < looks; ++i) node_->watch_proxy(now_);
    for (const feed::HoldMessage& message : held(feed::HoldType::kProxyState))
      text += message.status == feed::HoldStatus::kOk ? "works " : "hangs ";
    return text;
  };
  EXPECT_EQ(told(milliseconds(500), 2), "") << "it just came";
  datapath_.stamp_heartbeat(now_);
  EXPECT_EQ(told(milliseconds(500)), "works ");
  EXPECT_EQ(told(milliseconds(500)), "") << "once";
  EXPECT_EQ(told(milliseconds(2000)), "") << "one look may be our own fault";
  EXPECT_EQ(told(milliseconds(500)), "hangs ");
  EXPECT_THAT(node_->status(now_).reasons, testing::Contains(HasSubstr("meshproxy hangs")));
  hold_.connected = false;
  connect_hold();
  EXPECT_EQ(told(milliseconds(500)), "hangs ") << "the next meshhold is told too";
  datapath_.stamp_heartbeat(now_ + milliseconds(500));
  EXPECT_EQ(told(milliseconds(500)), "works ");
  proxy_.connected = false;
  node_->proxy_events().on_lost({Errc::reset, "gone"});
  EXPECT_EQ(told(milliseconds(5000), 2), "") << "meshhold sees for itself that it is gone";
}

TEST_F(NodeTest, TheTapIsOnOnlyWhileSomebodyListens) {
  connect();
  std::vector<std::string> seen;
  const auto id = node_->add_tap([&](const api::TapEvent& event) { seen.push_back(event.path); });
  EXPECT_TRUE(messages(feed::kTap).back().at("on").as_bool());
  from_proxy({{"type", "tap_event"}, {"path", "/x"}});
  EXPECT_THAT(seen, ElementsAre("/x"));
  node_->remove_tap(id);
  EXPECT_FALSE(messages(feed::kTap).back().at("on").as_bool());
}

TEST_F(NodeTest, WhatTheProxySaysIsCutAndPrintable) {
  connect();
  const std::string evil = "\x1b[2J\n\xc2\x9b" + std::string(100'000, 'x');
  const std::string tame = "\\x1b[2J\\x0a\\x9bxxx";
  const auto is_tame = [&](const std::string& text) {
    return text.find(tame) != std::string::npos && text.size() < 5'000;
  };
  std::vector<std::string> seen;
  node_->add_tap([&](const api::TapEvent& event) { seen.push_back(event.path); });
  from_proxy({{"type", "tap_event"}, {"path", evil}});
  EXPECT_THAT(seen, ElementsAre(testing::Truly(is_tame)));
  const std::uint64_t question = node_->ask_proxy("clusters");
  from_proxy({{"type", "dump_reply"},
              {"id", question},
              {"body", {{"rows", json::array{{{"cluster", evil}, {evil, 1}}}}}}});
  const json::value answer = node_->take_answer(question).value();
  EXPECT_PRED1(is_tame, answer.at("rows").at(0).at("cluster").as_string().c_str());
  EXPECT_PRED1(is_tame, std::string(answer.at("rows").at(0).as_object().begin()[1].key()));
  outcome(service("reviews"));
  json::array problems;
  for (int i = 0; i < 1'000; ++i) problems.push_back({{"message", evil}});
  from_proxy({{"type", "ready"}, {"version", evil}});
  from_proxy({{"type", "nack"},
              {"version", last_update().at("version")},
              {"problems", std::move(problems)}});
  const auto status = node_->status(now_);
  EXPECT_PRED1(is_tame, status.programs.at("meshproxy").version);
  EXPECT_EQ(status.reasons.size(), 100U);
  for (const std::string& reason : status.reasons) EXPECT_PRED1(is_tame, reason);
}

TEST_F(NodeTest, CountersGoToTheProxyWithTheirPolicies) {
  connect();
  machine_.cgroups = {{"/cg/a", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(deny("a"));
  answer_enrol(1);
  const auto number = verdict(1, IpAddress::v4(10, 77, 0, 1)).policy;
  datapath_.counts.denied_by_policy[number] = 3;
  node_->tick(now_, 1234);
  const auto counters = messages(feed::kKernelCounters).back();
  EXPECT_EQ(counters.at("denied_by_policy").at(0).at("policy").as_string(),
            "AuthorizationPolicy default/deny-a");
  EXPECT_EQ(counters.at("denied_by_policy").at(0).at("count").to_number<int>(), 3);
}

TEST_F(NodeTest, AuditPoliciesAreCountedInStatusForTheProxyAndInTheListOfPolicies) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/far", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("far", "10.77.0.9"));
  const auto policy = [this](const std::string& name, json::object rule) {
    outcome(json::object{{"apiVersion", "security.istio.io/v1"},
                         {"kind", "AuthorizationPolicy"},
                         {"metadata", {{"name", name}}},
                         {"spec", {{"action", "AUDIT"}, {"rules", json::array{std::move(rule)}}}}});
  };
  policy("watch", {});
  policy("broken",
         {{"from", json::array{json::object{{"source", {{"trustDomains", json::array{"x"}}}}}}}});
  answer_enrol(id_of("a"));
  const auto number = verdict(id_of("a"), IpAddress::v4(10, 77, 0, 1)).audit;
  ASSERT_NE(number, 0U);
  datapath_.counts.audited_by_policy[number] = 4;
  node_->tick(now_, 1234);
  const auto counters = messages(feed::kKernelCounters).back();
  EXPECT_EQ(counters.at("audited_by_policy").at(0).at("policy").as_string(),
            "AuthorizationPolicy default/watch");
  EXPECT_EQ(counters.at("audited_by_policy").at(0).at("count").to_number<int>(), 4);
  const auto status = node_->status(now_);
  ASSERT_EQ(status.policies.size(), 1U);
  EXPECT_EQ(status.policies[0].audited, 4U);
  const api::Dump list = node_->policies();
  ASSERT_EQ(list.rows.size(), 2U);
  for (const auto& row : list.rows) {
    const bool is_broken = row.at("name").as_string() == "broken";
    EXPECT_EQ(row.at("state").as_string(), is_broken ? "refused: audits nothing" : "accepted");
    EXPECT_EQ(row.at("audited").to_number<int>(), is_broken ? 0 : 4);
    EXPECT_EQ(row.at("reason").as_string().empty(), !is_broken);
    EXPECT_EQ(row.at("selects_here").to_number<int>(), 1) << "of two, one is not enrolled";
    EXPECT_EQ(row.at("selects").as_string(), "default/a,default/far");
  }
}

TEST_F(NodeTest, APolicyThatIsDeletedTakesItsCountersAlong) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  outcome(deny("b"));
  const auto number_of = [this] {
    const auto& names = numbers_->names(Space::kPolicy);
    return names.size() == 1 ? names.begin()->second : 0;
  };
  const std::uint32_t first = number_of();
  datapath_.counts.denied_by_policy[first] = 3;
  ASSERT_EQ(node_->policy_counts().size(), 1U);
  machine_.cgroups["/cg/a"] = false;
  node_->on_cgroups_changed(now_);
  EXPECT_EQ(node_->policy_counts().size(), 1U) << "it is still there, with nobody to decide about";
  restart();
  EXPECT_EQ(node_->policy_counts().size(), 1U);
  remove("AuthorizationPolicy", "deny-b");
  EXPECT_THAT(node_->policy_counts(), testing::IsEmpty());
  EXPECT_THAT(datapath_.counts.denied_by_policy, testing::IsEmpty());
  machine_.cgroups["/cg/a"] = true;
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"));
  outcome(deny("b"));
  EXPECT_GT(number_of(), first) << "no number is given twice";
  EXPECT_THAT(node_->policy_counts(), testing::IsEmpty()) << "it begins at 0";
}

TEST_F(NodeTest, WhatIsDeniedByTheModeIsCountedAsLongAsItIsDenied) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  json::object entry = workload("a", "10.77.0.1");
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/mode"] = "strict";
  outcome(entry);
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  const auto& names = numbers_->names(Space::kPolicy);
  ASSERT_EQ(names.size(), 1U);
  datapath_.counts.denied_by_policy[names.begin()->second] = 3;
  outcome(deny("b"));
  remove("AuthorizationPolicy", "deny-b");
  ASSERT_EQ(node_->policy_counts().size(), 1U) << "no policy's, but in use";
  EXPECT_EQ(node_->policy_counts()[0].denied, 3U);
}

TEST_F(NodeTest, TheNumbersOfWhatIsGoneAreForgotten) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  answer_enrol(id_of("a"));
  const auto known = [this] {
    std::size_t names = 0;
    for (std::size_t i = 0; i < kSpaces; ++i)
      names += numbers_->names(Space{static_cast<std::uint8_t>(i)}).size();
    return names;
  };
  const std::size_t before = known();
  for (int i = 0; i < 20; ++i) {
    outcome(service("s" + std::to_string(i), i % 2 == 0 ? "http" : "tcp"));
    outcome(deny("a"));
    acknowledge();
    EXPECT_GT(known(), before);
    remove("AuthorizationPolicy", "deny-a");
    remove("Service", "s" + std::to_string(i));
    acknowledge();
    EXPECT_EQ(known(), before) << i;
  }
}

// What was connecting while the policy changed is open 2 s later.
TEST_F(NodeTest, ConnectionsThatAPolicyForbidsAreLookedForAgain) {
  connect();
  machine_.cgroups = {{"/cg/a", true}, {"/cg/b", true}};
  outcome(workload("a", "10.77.0.1"));
  outcome(workload("b", "10.77.0.2"));
  answer_enrol(id_of("a"));
  const auto looks_of = [this](int ticks) {
    const int before = datapath_.looks_for_forbidden;
    for (int i = 0; i < ticks; ++i) node_->tick(now_, 0);
    return datapath_.looks_for_forbidden - before;
  };
  outcome(deny("b"));
  EXPECT_EQ(looks_of(3), 1) << "one was at once";
  datapath_.cannot_end = true;
  remove("AuthorizationPolicy", "deny-b");
  outcome(deny("b"));
  EXPECT_EQ(looks_of(3), 3);
  datapath_.cannot_end = false;
  EXPECT_EQ(looks_of(5), 2);
}

TEST_F(NodeTest, AFailedWriteToTheKernelIsToldAndTriedAgain) {
  connect();
  datapath_.fail_at = 1;
  outcome(service("reviews", "tcp"));
  EXPECT_EQ(node_->status(now_).state, "degraded");
  EXPECT_FALSE(datapath_.state.services.contains(kVip));
  node_->tick(now_, 0);
  EXPECT_TRUE(datapath_.state.services.contains(kVip));
  acknowledge();
  EXPECT_EQ(node_->status(now_).state, "ready");
}

}  // namespace
}  // namespace mesh::control
