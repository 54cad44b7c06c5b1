// Node and Publisher with fakes of everything around them: what the tests of node_*_test.cc share.
#pragma once

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "control/node.h"
#include "feed/messages.h"
#include "tests/support/fake_datapath.h"
#include "tests/support/memory_files.h"

namespace mesh::control {

namespace json = boost::json;

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
  std::map<std::string, std::vector<std::uint64_t>> cgroup_ids;
  Result<std::vector<std::uint64_t>> look_at_cgroup(const std::string& cgroup) override {
    if (cgroup == "/cg/mesh") return Error{Errc::refused, "/cg/mesh: is the mesh's own"};
    const auto at = cgroup_ids.find(cgroup);
    return at == cgroup_ids.end() ? std::vector<std::uint64_t>() : at->second;
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
  std::optional<std::vector<IpAddress>> inside;  // of every namespace; none: it cannot be entered
  Result<std::vector<IpAddress>> addresses_in(int) override {
    if (!inside) return Error{Errc::permission, "setns"};
    return *inside;
  }
  Result<> remove_cgroup(const std::string& cgroup) override {
    removed.push_back(cgroup);
    cgroups.erase(cgroup);
    return success();
  }
  void watch_cgroup(const std::string&) override {}
  void unwatch_cgroup(const std::string&) override {}
};

inline json::object object(const std::string& kind, const std::string& version,
                           const std::string& name, json::object spec,
                           json::object annotations = {}) {
  return {{"apiVersion", version},
          {"kind", kind},
          {"metadata", {{"name", name}, {"namespace", "default"}, {"annotations", annotations}}},
          {"spec", std::move(spec)}};
}
inline json::object service(const std::string& name, const std::string& port_name = "http") {
  return object("Service", "v1", name,
                {{"selector", {{"app", name}}},
                 {"ports", json::array{{{"name", port_name}, {"port", 9080}}}}});
}
inline json::object workload(const std::string& name, const std::string& address,
                             const std::string& groups = "/cg/") {
  return object("WorkloadEntry", "networking.istio.io/v1", name,
                {{"address", address}, {"labels", {{"app", name}}}},
                {{"undermesh.io/netns", "/proc/1/ns/net"}, {"undermesh.io/cgroup", groups + name}});
}
inline json::object strict_workload(const std::string& name, const std::string& address) {
  json::object entry = workload(name, address);
  entry["metadata"].as_object()["annotations"].as_object()["undermesh.io/mode"] = "strict";
  return entry;
}
inline json::object deny(const std::string& app) {
  return object("AuthorizationPolicy", "security.istio.io/v1", "deny-" + app,
                {{"selector", {{"matchLabels", {{"app", app}}}}}, {"action", "ALLOW"}});
}
inline json::object virtual_service(const std::string& host, json::object route) {
  return object("VirtualService", "networking.istio.io/v1", host,
                {{"hosts", {host}}, {"http", json::array{std::move(route)}}});
}
inline json::object route_to(const std::string& host) {
  return {{"route", json::array{{{"destination", {{"host", host}}}}}}};
}

inline const SocketAddress kVip = SocketAddress::parse("10.78.0.1:9080").value();

class NodeTest : public testing::Test {
 protected:
  NodeTest() { restart(); }

  void restart() {
    const auto started = start_anew();
    ASSERT_TRUE(started) << started.error().message;
  }
  Result<> start_anew() {
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
    return node_->start(now_);
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
  // A workload with a group of its own, as far as meshhold's answer; the proxy has yet to
  // acknowledge it. Returns its id.
  std::uint32_t enrol(const std::string& name, const std::string& address) {
    machine_.cgroups["/cg/" + name] = true;
    outcome(workload(name, address));
    const std::uint32_t id = id_of(name);
    answer_enrol(id);
    return id;
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

}  // namespace mesh::control
