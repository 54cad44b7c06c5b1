// ProxyFixture: the real proxy in this process, on loopback, with configuration from YAML.
//
// The test plays meshd and meshhold: it compiles objects and publishes them, makes listeners and
// upstream sockets. Where a client wanted to go is told by the port of the listener that it dialled
// (there is no redirection on loopback).
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "config/object.h"
#include "proxy/proxy.h"
#include "tests/support/bind_both.h"
#include "tests/support/fake_upstream.h"

namespace mesh::test {

class ProxyFixture : public testing::Test {
 protected:
  ProxyFixture() {
    destinations().clear();
    resolvers().clear();
    options_.original_resolver = &find_resolver;
    options_.original_destination = &find_destination;
    options_.limits.allow_loopback_endpoints = true;
  }
  ~ProxyFixture() override { stop(); }

  // Objects as YAML; the proxy serves by them when this returns.
  void configure(const std::string& yaml) {
    start();
    auto objects = config::parse_objects(yaml, "test.yaml");
    ASSERT_TRUE(objects) << objects.error().message;
    std::vector<config::ObjectPtr> list;
    for (auto& object : objects.value()) {
      list.push_back(std::make_shared<config::Object>(std::move(object)));
    }
    config::CompileOptions options;
    auto gateway = std::make_shared<config::Workload>();
    gateway->name = {"istio-system", "undermesh-gateway"};
    gateway->labels = {{"istio", "ingressgateway"}, {"app", "istio-ingressgateway"}};
    options.gateway_workload = gateway;
    auto compiled = config::compile(list, ++version_, options, previous_.get());
    for (const auto& problem : compiled.problems) {
      EXPECT_NE(problem.severity, config::Problem::Severity::kError) << problem.to_string();
    }
    previous_ = compiled.snapshot;
    auto configuration = std::make_shared<proxy::Configuration>();
    configuration->snapshot = on_loopback(*compiled.snapshot);
    configuration->gateway = gateway;
    configuration->enrolled = enrolled_;
    auto done = std::make_shared<std::promise<void>>();
    auto future = done->get_future();
    on_main([this, configuration, done] {
      proxy_->publish(configuration, [done] { done->set_value(); });
    });
    future.wait();
  }

  // A client workload "default/<name>" and a listener through which it reaches `destination`.
  // Returns the port to dial. Call before configure().
  std::uint16_t client(const std::string& name, const SocketAddress& destination) {
    start();
    auto& id = ids_[name];
    if (id == 0) id = ++last_id_;
    enrolled_[id] = {"default", name};
    std::uint16_t port = 0;
    UniqueFd fd = listen_on_loopback(&port);
    listeners_[port].reset(::dup(fd.get()));
    {
      std::lock_guard lock(mutex());
      destinations()[port] = destination;
    }
    add_listener({id, feed::ListenerKind::kOutbound, 4, {IpAddress::v4(127, 0, 0, 1), port}},
                 std::move(fd));
    return port;
  }
  // The same for its DNS: the port of every loopback address. resolvers() says what they stand for.
  std::uint16_t dns_client(const std::string& name) {
    start();
    auto& id = ids_[name];
    if (id == 0) id = ++last_id_;
    enrolled_[id] = {"default", name};
    UniqueFd udp, tcp;
    const std::uint16_t port = bind_both(INADDR_ANY, SOCK_NONBLOCK, udp, tcp);
    const int on = 1, buffer = 1 << 20;
    ::setsockopt(udp.get(), IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    ::setsockopt(udp.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    EXPECT_EQ(::listen(tcp.get(), 128), 0);
    const SocketAddress address{IpAddress::v4(0, 0, 0, 0), port};
    add_listener({id, feed::ListenerKind::kDnsUdp, 4, address}, std::move(udp));
    add_listener({id, feed::ListenerKind::kDnsTcp, 4, address}, std::move(tcp));
    return address.port;
  }
  proxy::WorkloadId workload_id(const std::string& name) { return ids_.at(name); }
  // Under mutex().
  static std::map<IpAddress, SocketAddress>& resolvers() {
    static std::map<IpAddress, SocketAddress> instance;
    return instance;
  }
  // Removes the client's listener and adds it anew, before the proxy's worker can look.
  void listen_again(const std::string& name, std::uint16_t port) {
    const proxy::ListenerId id{
        ids_[name], feed::ListenerKind::kOutbound, 4, {IpAddress::v4(127, 0, 0, 1), port}};
    on_main([&] {
      proxy_->remove_listener(id);
      proxy_->add_listener(id, UniqueFd(::dup(listeners_.at(port).get())));
    });
  }
  std::uint16_t gateway() {
    start();
    std::uint16_t port = 0;
    UniqueFd fd = listen_on_loopback(&port);
    gateway_ = {IpAddress::v4(127, 0, 0, 1), port};
    add_listener({feed::kGatewayWorkload, feed::ListenerKind::kGateway, 4, gateway_},
                 std::move(fd));
    return port;
  }

  void on_main(std::function<void()> action) {
    auto done = std::make_shared<std::promise<void>>();
    auto future = done->get_future();
    main_->post([action = std::move(action), done] {
      action();
      done->set_value();
    });
    future.wait();
  }
  // Returns when every worker is done with what it was at, and the main thread with what they said.
  void wait_for_workers() {
    auto done = std::make_shared<std::promise<void>>();
    auto future = done->get_future();
    on_main([this, done] { proxy_->dump_clusters([done](auto) { done->set_value(); }); });
    future.wait();
  }
  std::string metrics() {
    std::string text;
    on_main([&] { proxy_->write_metrics(text); });
    return text;
  }
  // The value of the first sample whose line begins with `name` and contains every part.
  double metric(const std::string& name, const std::vector<std::string>& parts = {}) {
    const std::string text = metrics();
    std::size_t at = 0;
    while (at < text.size()) {
      const std::size_t end = text.find('\n', at);
      const std::string line = text.substr(at, end - at);
      at = end + 1;
      if (!line.starts_with(name) || (line[name.size()] != '{' && line[name.size()] != ' '))
        continue;
      bool all = true;
      for (const auto& part : parts) all = all && line.find(part) != std::string::npos;
      if (all) return std::strtod(line.c_str() + line.rfind(' '), nullptr);
    }
    return 0;
  }
  // The same, once it is `expected`: a request is counted after its last byte was sent.
  double metric_at(double expected, const std::string& name,
                   const std::vector<std::string>& parts = {}) {
    eventually([&] { return metric(name, parts) == expected; });
    return metric(name, parts);
  }
  template <class Condition>
  bool eventually(Condition condition) {
    const auto give_up = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < give_up) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  void start() {
    if (main_thread_.joinable()) return;
    std::promise<void> ready;
    main_thread_ = std::thread([this, &ready] {
      net::Reactor reactor;
      main_ = &reactor;
      proxy::Proxy::Callbacks callbacks;
      callbacks.want_sockets = [this](proxy::WorkloadId id, proxy::SocketKind kind,
                                      std::uint32_t count) { give_sockets(id, kind, count); };
      callbacks.tap = [this](const proxy::TapEvent& event) {
        std::lock_guard lock(mutex());
        taps_.push_back(event);
      };
      proxy_ = std::make_unique<proxy::Proxy>(reactor, workers_, options_, std::move(callbacks));
      ready.set_value();
      reactor.run();
      proxy_.reset();
    });
    ready.get_future().wait();
  }
  void stop() {
    if (!main_thread_.joinable()) return;
    listeners_.clear();
    main_->stop();
    main_thread_.join();
  }

  static UniqueFd listen_on_loopback(std::uint16_t* port) {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    EXPECT_EQ(::listen(fd.get(), 128), 0);
    socklen_t size = sizeof at;
    ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &size);
    *port = ntohs(at.sin_port);
    return fd;
  }

  // Endpoints may not be loopback addresses, and the fake ones are: a test writes 10.77.1.n, and
  // every IPv4 endpoint is reached on 127.0.0.1 at its port.
  static config::SnapshotPtr on_loopback(const config::Snapshot& compiled) {
    auto snapshot = std::make_shared<config::Snapshot>(compiled);
    const auto moved = [](const auto& clusters) {
      std::remove_cvref_t<decltype(clusters)> there;
      for (const auto& [name, cluster] : clusters) {
        auto one = std::make_shared<config::Cluster>(*cluster);
        for (auto& endpoint : one->endpoints) {
          if (endpoint.address.ip.is_v4()) endpoint.address.ip = IpAddress::v4(127, 0, 0, 1);
        }
        there.emplace(name, std::move(one));
      }
      return there;
    };
    snapshot->clusters = moved(compiled.clusters);
    snapshot->client_clusters = moved(compiled.client_clusters);
    return snapshot;
  }

  unsigned workers_ = 1;
  proxy::WorkerOptions options_;
  std::atomic<bool> sockets_stopped_{false};  // meshhold is away
  std::atomic<int> sockets_given_{0};
  std::atomic<int> v6_sockets_wanted_{0};
  std::atomic<bool> keep_sockets_{false};
  std::vector<UniqueFd> kept_sockets_;  // second descriptors of those given; under mutex()
  SocketAddress gateway_;
  std::vector<proxy::TapEvent> taps_;
  std::unique_ptr<proxy::Proxy> proxy_;
  // How often a worker has asked where a connection was going.
  static std::atomic<int>& destinations_asked() {
    static std::atomic<int> instance;
    return instance;
  }
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }

 private:
  static std::map<std::uint16_t, SocketAddress>& destinations() {
    static std::map<std::uint16_t, SocketAddress> instance;
    return instance;
  }
  static Result<SocketAddress> find_destination(int fd) {
    MESH_TRY(auto local, net::local_address(fd));
    ++destinations_asked();
    std::lock_guard lock(mutex());
    const auto found = destinations().find(local.port);
    if (found == destinations().end() || found->second.port == 0) {
      return Error{Errc::not_found, "no original destination"};
    }
    return found->second;
  }
  static Result<SocketAddress> find_resolver(int, const IpAddress& at) {
    std::lock_guard lock(mutex());
    const auto found = resolvers().find(at);
    if (found == resolvers().end()) return Error{Errc::not_found, "no resolver"};
    return found->second;
  }
  void give_sockets(proxy::WorkloadId id, proxy::SocketKind kind, std::uint32_t count) {
    if (kind == proxy::SocketKind::kTcp6) v6_sockets_wanted_ += static_cast<int>(count);
    if (sockets_stopped_) return;
    std::vector<UniqueFd> sockets;
    const bool v4 = kind == proxy::SocketKind::kTcp4 || kind == proxy::SocketKind::kUdp4;
    const bool udp = kind == proxy::SocketKind::kUdp4 || kind == proxy::SocketKind::kUdp6;
    const int domain = v4 ? AF_INET : AF_INET6;
    const int type = (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC;
    for (std::uint32_t i = 0; i < count; ++i) {
      sockets.emplace_back(::socket(domain, type, 0));
      if (!keep_sockets_) continue;
      std::lock_guard lock(mutex());
      kept_sockets_.emplace_back(::dup(sockets.back().get()));
    }
    sockets_given_ += static_cast<int>(count);
    proxy_->add_sockets(id, kind, std::move(sockets));
  }
  void add_listener(const proxy::ListenerId& id, UniqueFd fd) {
    auto shared = std::make_shared<UniqueFd>(std::move(fd));
    on_main([this, id, shared] { proxy_->add_listener(id, std::move(*shared)); });
  }

  net::Reactor* main_ = nullptr;
  std::thread main_thread_;
  std::map<std::string, proxy::WorkloadId> ids_;
  std::map<std::uint16_t, UniqueFd> listeners_;
  std::map<proxy::WorkloadId, config::ObjectName> enrolled_;
  proxy::WorkloadId last_id_ = 1;
  std::uint64_t version_ = 0;
  config::SnapshotPtr previous_;
};

}  // namespace mesh::test
