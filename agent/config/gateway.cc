#include <algorithm>

#include "config/kinds.h"

namespace mesh::config {
namespace {

constexpr Field kGateway[] = {{"servers"}, {"selector"}};
constexpr Field kServer[] = {{"port"}, {"bind"}, {"hosts"}, later("tls"), later("defaultEndpoint"),
                             {"name"}};
constexpr Field kPort[] = {{"number"}, {"protocol"}, {"name"}, later("targetPort")};

constexpr std::string_view kProtocols[] = {"HTTPS", "GRPC", "GRPC-WEB", "HTTP2",
                                           "MONGO", "TCP",  "TLS"};

void read_port(const Fields& server, GatewayServer& result) {
  auto port = server.message("port", kPort);
  if (!server.has("port")) server.error("port", "is required");
  if (!port) return;
  if (!port->has("number")) port->error("number", "is required");
  result.bind.port = port->port("number").value_or(0);
  std::string protocol = port->required_text("protocol").value_or("HTTP");
  bool known =
      std::find(std::begin(kProtocols), std::end(kProtocols), protocol) != std::end(kProtocols);
  if (known)
    port->error("protocol", protocol + " is not supported yet; use HTTP");
  else if (protocol != "HTTP")
    port->error("protocol", "must be HTTP, not '" + protocol + "'");
}

void read_bind(const Fields& server, GatewayServer& result) {
  std::string text = server.text("bind").value_or("");
  if (text.empty()) return;
  auto address = IpAddress::parse(text);
  if (!address)
    server.error("bind", address.error().message + "; Unix sockets are not supported yet");
  else
    result.bind.ip = address.value();
}

void read_hosts(const Fields& server, GatewayServer& result) {
  const std::string& own = server.report().object().key.ns;
  std::size_t index = 0;
  for (const std::string& text : server.texts("hosts")) {
    std::string path = path_of_item(server.path("hosts"), index++);
    std::string ns = "*";
    std::string host = lower(text);
    if (std::size_t slash = host.find('/'); slash != std::string::npos) {
      ns = host.substr(0, slash);
      host.erase(0, slash + 1);
      if (ns == ".") ns = own;
    }
    if (ns.empty() || !is_host(host)) {
      server.report().error(path,
                            "must be [namespace/]host, with '*' or '*.suffix', not '" + text + "'");
      continue;
    }
    result.hosts.push_back(std::move(host));
    result.host_namespaces.push_back(std::move(ns));
  }
  if (index == 0 && (!server.has("hosts") || server.find("hosts")->is_array()))
    server.error("hosts", "is required");
}

}  // namespace

Gateway read_gateway(Report& report) {
  const ObjectKey& key = report.object().key;
  Fields spec = open_spec(report, kGateway);
  Gateway gateway;
  gateway.name = {key.ns, key.name};
  gateway.selector = spec.labels("selector");
  for (const Fields& server : spec.messages("servers", kServer)) {
    GatewayServer result;
    result.gateway = gateway.name;
    read_port(server, result);
    read_bind(server, result);
    read_hosts(server, result);
    gateway.servers.push_back(std::move(result));
  }
  if (gateway.servers.empty() && (!spec.has("servers") || spec.find("servers")->is_array()))
    spec.error("servers", "is required");
  return gateway;
}

}  // namespace mesh::config
