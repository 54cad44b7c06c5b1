// Node: services: their addresses, names and connections.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "control/dumps.h"
#include "tests/unit/control/node_fixture.h"

namespace mesh::control {
namespace {

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
  const std::uint32_t id = enrol("a", "10.77.0.1");
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
  const std::uint32_t id = enrol("a", "10.77.0.1");
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

}  // namespace
}  // namespace mesh::control
