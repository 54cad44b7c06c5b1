// ServiceEntry (networking.istio.io/v1): names that are no Service of the cluster.
//
// Each host is a service of its own, as in Istio. Where the entry gives no address, each host has
// one that the source of the object wrote into status.addresses (Istio's automatic allocation).
#include <algorithm>

#include "config/kinds.h"

namespace mesh::config {
namespace {

constexpr Field kServiceEntry[] = {{"hosts"},    {"addresses"},        {"ports"},
                                   {"location"}, {"resolution"},       {"endpoints"},
                                   {"exportTo"}, {"workloadSelector"}, later("subjectAltNames")};
constexpr Field kPort[] = {{"number"}, {"protocol"}, {"name"}, {"targetPort"}};
constexpr Field kSelector[] = {{"labels"}};
constexpr std::string_view kClusterZone = ".cluster.local";

enum class Resolution : std::uint8_t { kNone, kStatic, kDns };

Resolution read_resolution(const Fields& spec) {
  const std::string word = spec.text("resolution").value_or("NONE");
  if (word == "STATIC") return Resolution::kStatic;
  if (word == "DNS" || word == "DNS_ROUND_ROBIN") return Resolution::kDns;
  if (word == "DYNAMIC_DNS")
    spec.error("resolution", "DYNAMIC_DNS is not supported yet; use STATIC, DNS or NONE");
  else if (word != "NONE")
    spec.error("resolution", "must be NONE, STATIC, DNS or DNS_ROUND_ROBIN, not '" + word + "'");
  return Resolution::kNone;
}

void check_words(const Fields& spec) {
  const std::string location = spec.text("location").value_or("MESH_EXTERNAL");
  if (location != "MESH_EXTERNAL" && location != "MESH_INTERNAL")
    spec.error("location", "must be MESH_EXTERNAL or MESH_INTERNAL, not '" + location + "'");
  for (const std::string& scope : spec.texts("exportTo"))
    if (scope != "*")
      spec.error("exportTo", "'" + scope +
                                 "' is not supported yet, only '*' (clients of every "
                                 "namespace); remove the field");
}

std::vector<std::string> read_hosts(const Fields& spec, Resolution resolution) {
  std::vector<std::string> hosts;
  for (std::string& written : spec.texts("hosts")) {
    std::string host = plain_host(written);
    if (!is_host(host))
      spec.error("hosts", "'" + written + "' must be a DNS name");
    else if (host.ends_with(kClusterZone))
      spec.error("hosts", "'" + written + "' is a name of the cluster's own: write a Service");
    else if (host.starts_with('*') && resolution != Resolution::kNone)
      spec.error("hosts", "'" + written +
                              "' names no single host, which resolution NONE alone "
                              "takes");
    else if (std::ranges::find(hosts, host) != hosts.end())
      spec.error("hosts", "'" + written + "' is given twice");
    else
      hosts.push_back(std::move(host));
  }
  if (hosts.empty() && !spec.report().failed()) spec.error("hosts", "is required");
  return hosts;
}

Protocol read_protocol(const Fields& port) {
  const std::string word = port.text("protocol").value_or("TCP");
  constexpr std::string_view kTcpOnly[] = {"HTTP2", "GRPC", "GRPC-WEB"};
  constexpr std::string_view kAsTcp[] = {"TCP", "TLS", "HTTPS", "MONGO"};
  if (word == "HTTP") return Protocol::kHttp;
  if (word == "UDP") return Protocol::kUdp;
  if (std::ranges::find(kTcpOnly, word) != std::end(kTcpOnly))
    warn_of_tcp_only(port, "protocol", word);
  else if (std::ranges::find(kAsTcp, word) == std::end(kAsTcp))
    port.error(
        "protocol",
        "must be HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, TCP, TLS, MONGO or UDP, not '" + word + "'");
  return Protocol::kTcp;
}

void read_ports(const Fields& spec, Service& service) {
  for (const Fields& fields : spec.messages("ports", kPort)) {
    ServicePort port;
    port.name = fields.required_text("name").value_or("");
    if (!fields.has("number")) fields.error("number", "is required");
    port.port = fields.port("number").value_or(0);
    port.protocol = read_protocol(fields);
    const auto target = fields.number("targetPort", 0, 65535).value_or(0);
    port.target = std::to_string(target == 0 ? port.port : target);
    if (service.find_port(port.port, port.transport())) fields.error("number", "is given twice");
    service.ports.push_back(std::move(port));
  }
  if (service.ports.empty() && !spec.report().failed()) spec.error("ports", "is required");
}

// Blocks of addresses are the real ones of resolution NONE, to which connections go by themselves.
void read_addresses(const Fields& spec, Resolution resolution, Service& service) {
  for (const std::string& text : spec.texts("addresses")) {
    const auto block = IpBlock::parse(text);
    if (!block) {
      spec.error("addresses", block.error().message);
    } else if (resolution == Resolution::kNone) {
      continue;
    } else if (!IpAddress::parse(text)) {
      spec.error("addresses",
                 text + " is more than one address, which resolution NONE alone takes");
    } else if (!is_endpoint_address(block.value().base)) {
      spec.error("addresses", "a service cannot have the address " + text);
    } else {
      service.addresses.push_back(block.value().base);
    }
  }
}

// Those that the object's source gave to `host`.
std::vector<IpAddress> allocated(Report& report, const std::string& host) {
  Fields top(report, report.object().tree, "", {}, Strictness::kLenient);
  std::vector<IpAddress> addresses;
  if (const auto status = top.message("status", {}); status && status->has("addresses"))
    for (const Fields& one : status->messages("addresses", {}))
      if (one.text("host") == host)
        if (const auto address = IpAddress::parse(one.text("value").value_or("")))
          addresses.push_back(address.value());
  return addresses;
}

// Names are resolved by nobody yet; where there are none, DNS says the same as STATIC.
void check_resolution(const Fields& spec, Resolution resolution, const ServicePart& part) {
  if (spec.is_set("workloadSelector") && spec.is_set("endpoints"))
    spec.error("workloadSelector", "cannot be there together with endpoints");
  if (resolution == Resolution::kNone) {
    if (spec.is_set("endpoints") || spec.is_set("workloadSelector"))
      spec.error("endpoints", "resolution NONE has none; write resolution: STATIC");
    spec.warn("resolution",
              "NONE: connections go to the address that they ask for, without routes; names are "
              "left to the workload's own resolver");
  } else if (resolution == Resolution::kDns && part.endpoints.empty() &&
             !spec.is_set("workloadSelector")) {
    spec.error("resolution",
               "DNS without endpoints by address is not supported yet; use NONE, which leaves the "
               "name to the workload's own resolver, or write endpoints");
  }
}

}  // namespace

std::vector<ServicePart> read_service_entry(Report& report) {
  const ObjectKey& key = report.object().key;
  Fields spec = open_spec(report, kServiceEntry);
  const Resolution resolution = read_resolution(spec);
  check_words(spec);
  ServicePart part;
  part.service.name = {key.ns, key.name};
  part.service.is_entry = true;
  const std::vector<std::string> hosts = read_hosts(spec, resolution);
  read_ports(spec, part.service);
  read_addresses(spec, resolution, part.service);
  read_service_annotations(report, part.service);
  for (const Fields& endpoint : spec.messages("endpoints", workload_fields()))
    part.endpoints.push_back(read_workload(endpoint));
  if (const auto selector = spec.message("workloadSelector", kSelector))
    part.service.selector = selector->labels("labels");
  check_resolution(spec, resolution, part);
  if (hosts.size() > 1 && !part.service.addresses.empty())
    spec.error("addresses",
               "is for one host alone: without it each host has an address of its "
               "own, else write an entry for each");
  std::vector<ServicePart> parts;
  if (resolution == Resolution::kNone) {
    warn_of_annotations(report, "the mesh gives resolution NONE no endpoints");
    return parts;
  }
  for (const std::string& host : hosts) {
    parts.push_back(part);
    Service& service = parts.back().service;
    service.host = host;
    if (service.addresses.empty()) service.addresses = allocated(report, host);
  }
  return parts;
}

}  // namespace mesh::config
