#include "control/host_listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include <utility>

namespace mesh::control {
namespace {

using feed::HoldMessage;
using feed::HoldStatus;
using feed::HoldType;
using feed::ListenerKind;

HoldMessage message_of(HoldType type, ListenerKind kind, const SocketAddress& address) {
  HoldMessage message;
  message.type = type;
  message.workload = kind == ListenerKind::kGateway ? feed::kGatewayWorkload : 0;
  message.kind = kind;
  message.family = address.ip.is_v4() ? feed::kFamily4 : feed::kFamily6;
  message.ip = address.ip.bytes();
  message.port = address.port;
  return message;
}

}  // namespace

void HostListeners::reconcile(const std::set<SocketAddress>& gateway_binds) {
  std::set<Key> wanted = {{ListenerKind::kMetrics, {IpAddress::v4(127, 0, 0, 1), kMetricsPort}}};
  for (const SocketAddress& bind : gateway_binds) wanted.insert({ListenerKind::kGateway, bind});
  std::erase_if(listeners_, [&](const auto& item) {
    if (wanted.contains(item.first)) return false;
    hold_.send(
        feed::as_bytes(message_of(HoldType::kEndHostListener, item.first.first, item.first.second)),
        {});
    return true;
  });
  for (const Key& key : wanted) {
    const auto [at, is_new] = listeners_.try_emplace(key);
    if (is_new || !at->second.problem.empty()) ask(key, at->second);
  }
}

void HostListeners::ask(const Key& key, const Listener& listener) {
  feed::Fds fds;
  if (listener.fd) fds.emplace_back(::fcntl(listener.fd.get(), F_DUPFD_CLOEXEC, 3));
  hold_.send(feed::as_bytes(message_of(HoldType::kHostListener, key.first, key.second)),
             std::move(fds));
}

void HostListeners::on_hold_connected() {
  for (const auto& [key, listener] : listeners_) ask(key, listener);
}

void HostListeners::on_hold_message(const HoldMessage& message, feed::Fds fds) {
  if (message.type != HoldType::kHostListening) return;
  const auto at = listeners_.find({message.kind, {IpAddress(message.ip), message.port}});
  if (at == listeners_.end()) return;
  at->second.problem.clear();
  if (message.status == HoldStatus::kOk) {
    if (!fds.empty()) at->second.fd = std::move(fds[0]);
    return;
  }
  at->second.problem = "cannot listen on " + at->first.second.to_string() + ": ";
  if (message.status == HoldStatus::kPortTaken)
    at->second.problem += "another process has the port; stop it or use another port";
  else if (message.detail != 0)
    at->second.problem += ::strerror(static_cast<int>(message.detail));
  else
    at->second.problem += feed::to_string(message.status);
}

std::vector<std::string> HostListeners::problems() const {
  std::vector<std::string> problems;
  for (const auto& [key, listener] : listeners_)
    if (!listener.problem.empty())
      problems.push_back((key.first == ListenerKind::kMetrics ? "/metrics: " : "gateway: ") +
                         listener.problem);
  return problems;
}

std::set<SocketAddress> gateway_binds(const config::Snapshot& wanted,
                                      const config::Snapshot& acked) {
  std::set<SocketAddress> known, binds;
  for (const config::GatewayServer& server : acked.gateway_servers) known.insert(server.bind);
  for (const config::GatewayServer& server : wanted.gateway_servers)
    if (known.contains(server.bind)) binds.insert(server.bind);
  return binds;
}

}  // namespace mesh::control
