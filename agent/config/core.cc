// Service, EndpointSlice, WorkloadEntry.
#include <algorithm>
#include <boost/algorithm/string.hpp>

#include "config/kinds.h"

namespace mesh::config {
namespace {

constexpr std::string_view kAnnotations = "undermesh.io/";
constexpr std::string_view kOnRemoval = "undermesh.io/on-endpoint-removal";
constexpr std::string_view kFastPath = "undermesh.io/fastpath";
constexpr std::string_view kFastPathPorts = "undermesh.io/fastpath-exclude-ports";
constexpr std::string_view kNetns = "undermesh.io/netns";
constexpr std::string_view kCgroup = "undermesh.io/cgroup";
constexpr std::string_view kEnrolment = "undermesh.io/enrolment";
constexpr std::string_view kNoEndpoint =
    "unspecified, loopback, link-local, metadata and multicast addresses are not endpoints";

struct ProtocolWord {
  std::string_view word;
  Protocol protocol;
  bool tcp_only = false;  // an L7 protocol whose requests are not seen
};
constexpr ProtocolWord kProtocols[] = {
    {"http", Protocol::kHttp},
    {"http2", Protocol::kTcp, true},
    {"grpc", Protocol::kTcp, true},
    {"grpc-web", Protocol::kTcp, true},
    {"kubernetes.io/h2c", Protocol::kTcp, true},
    {"kubernetes.io/ws", Protocol::kTcp, true},
    {"kubernetes.io/wss", Protocol::kTcp, true},
};

const ProtocolWord* find_protocol(std::string_view word) {
  auto found = std::find_if(std::begin(kProtocols), std::end(kProtocols),
                            [&](const ProtocolWord& p) { return p.word == word; });
  return found == std::end(kProtocols) ? nullptr : found;
}

Protocol read_protocol(const Fields& port, const std::string& name) {
  auto declared = port.text("appProtocol");
  std::string word = lower(declared ? *declared : name);
  if (!declared && word != "grpc-web" && !word.starts_with("grpc-web-"))
    word.resize(std::min(word.find('-'), word.size()));
  if (!declared && word.starts_with("grpc-web")) word = "grpc-web";
  const ProtocolWord* protocol = find_protocol(word);
  if (!protocol) return Protocol::kTcp;
  if (protocol->tcp_only) warn_of_tcp_only(port, declared ? "appProtocol" : "name", word);
  return protocol->protocol;
}

std::string read_target(const Fields& port, std::uint16_t number) {
  const boost::json::value* target = port.find("targetPort");
  if (!target) return std::to_string(number);
  if (!target->is_string()) {
    auto value = port.number("targetPort", 0, 65535);
    return std::to_string(value.value_or(0) == 0 ? number : *value);
  }
  auto name = port.required_text("targetPort");
  return name.value_or(std::to_string(number));
}

std::optional<Transport> read_transport(const Fields& port) {
  const std::string protocol = port.text("protocol").value_or("TCP");
  if (protocol == "TCP") return Transport::kTcp;
  if (protocol == "UDP") return Transport::kUdp;
  port.error("protocol", protocol == "SCTP" ? "SCTP is not supported; use TCP or UDP"
                                            : "must be TCP or UDP, not '" + protocol + "'");
  return {};
}

std::optional<ServicePort> read_service_port(const Fields& port) {
  const auto transport = read_transport(port);
  if (!transport) return {};
  ServicePort result;
  result.name = port.text("name").value_or("");
  if (!port.has("port")) port.error("port", "is required");
  result.port = port.port("port").value_or(0);
  result.protocol =
      *transport == Transport::kUdp ? Protocol::kUdp : read_protocol(port, result.name);
  result.target = read_target(port, result.port);
  return result;
}

void read_service_addresses(const Fields& spec, Service& service) {
  std::vector<std::string> texts = spec.texts("clusterIPs");
  std::string one = spec.text("clusterIP").value_or("");
  if (texts.empty() && !one.empty()) texts.push_back(one);
  for (const std::string& text : texts) {
    service.headless = service.headless || text == "None";
    if (text == "None" || text.empty()) continue;
    auto address = IpAddress::parse(text);
    if (!address)
      spec.error("clusterIP", address.error().message);
    else if (!is_endpoint_address(address.value()))
      spec.error("clusterIP", "a service cannot have the address " + text);
    else
      service.addresses.push_back(address.value());
  }
}

void read_affinity(const Fields& spec, Service& service) {
  const std::string kind = spec.text("sessionAffinity").value_or("None");
  if (kind != "ClientIP") {
    if (kind != "None")
      spec.error("sessionAffinity", "must be None or ClientIP, not '" + kind + "'");
    return;
  }
  std::optional<std::int64_t> seconds;
  if (auto config = spec.message("sessionAffinityConfig", {}))
    if (auto client = config->message("clientIP", {}))
      seconds = client->number("timeoutSeconds", 1, 86'400);
  service.affinity = std::chrono::seconds(seconds.value_or(10'800));
}

// Done where connections are balanced in the kernel, and a warning of where they are not.
void read_reset(Report& report, const std::string& path, Service& service) {
  service.resets_on_removal = true;
  if (service.headless)
    report.warn(path, "has no effect: clients of a headless Service connect to its endpoints");
  for (const ServicePort& port : service.ports)
    if (port.protocol == Protocol::kHttp)
      report.warn(path, "has no effect on HTTP port " + std::to_string(port.port) +
                            ": a request in flight to an endpoint that is gone may end, and no "
                            "other is sent there");
    else if (port.protocol == Protocol::kUdp)
      report.warn(path, "has no effect on UDP port " + std::to_string(port.port));
}

void read_fast_path(Report& report, const std::string& path, const std::string& value, bool& out) {
  out = value != "disabled";
  if (out)
    report.error(path, "must be disabled, not '" + value + "'; without it connections may join");
}

// "5432, 9000": ports of the service.
void read_slow_ports(Report& report, const std::string& path, const std::string& value,
                     Service& service) {
  std::vector<std::string> texts;
  boost::split(texts, value, boost::is_any_of(","));
  for (std::string& text : texts) {
    boost::trim(text);
    const auto named = std::ranges::find_if(service.ports, [&](const ServicePort& port) {
      return port.transport() == Transport::kTcp && std::to_string(port.port) == text;
    });
    if (named == service.ports.end())
      report.error(path, "'" + text +
                             "' is no TCP port of this service; write port numbers of it, "
                             "separated by commas");
    else
      named->fast_path = false;
  }
}

std::uint32_t read_weight(const Fields& spec) {
  auto weight = spec.number("weight", 0, 1'000'000).value_or(0);
  return weight == 0 ? 1 : static_cast<std::uint32_t>(weight);
}

constexpr Field kWorkload[] = {{"address"},       {"ports"},  {"labels"},        later("network"),
                               later("locality"), {"weight"}, {"serviceAccount"}};

void add_workload_address(Report& report, const std::string& path, std::string_view text,
                          Workload& workload) {
  auto address = IpAddress::parse(text);
  if (!address) {
    report.error(path, address.error().message + "; names and Unix sockets are not supported yet");
  } else if (!is_endpoint_address(address.value())) {
    report.error(path, std::string(kNoEndpoint));
  } else if (std::find(workload.addresses.begin(), workload.addresses.end(), address.value()) ==
             workload.addresses.end()) {
    workload.addresses.push_back(address.value());
  }
}

// Nothing that names another place than it seems to; what it is on this machine, meshd looks at.
bool is_group_path(std::string_view path) {
  if (!path.starts_with('/')) return false;
  for (std::size_t at = 1; at <= path.size();) {
    const std::size_t slash = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, slash - at);
    if (part.empty() || part == "." || part == "..") return false;
    at = slash + 1;
  }
  return path.size() > 1;
}

// Where it is on this machine. One that says half of it is none of another machine: it would run
// here unpoliced.
void read_place(Report& report, const Labels& annotations, Workload& workload) {
  const auto value_of = [&](std::string_view key) {
    const auto found = annotations.find(std::string(key));
    return found == annotations.end() ? nullptr : &found->second;
  };
  const auto error = [&](std::string_view key, std::string message) {
    report.error(path_of_key("metadata.annotations", key), std::move(message));
  };
  const std::string *netns = value_of(kNetns), *cgroup = value_of(kCgroup);
  if (netns) workload.netns = *netns;
  if (netns && !netns->starts_with('/'))
    error(kNetns,
          "must be the absolute path of a network namespace, as /run/netns/NAME or "
          "/proc/PID/ns/net, not '" +
              *netns + "'");
  if (cgroup) workload.cgroup = *cgroup;
  if (cgroup && !is_group_path(*cgroup))
    error(kCgroup,
          "must be the absolute path of a control group, without empty parts, . and .., not '" +
              *cgroup + "'");
  if (!netns != !cgroup)
    error(netns ? kNetns : kCgroup,
          "needs " + std::string(netns ? kCgroup : kNetns) +
              " too: a workload of this machine has both annotations, one of another neither");
  const std::string* enrolment = value_of(kEnrolment);
  workload.disabled = enrolment && *enrolment == "disabled";
  if (enrolment && !workload.disabled)
    error(kEnrolment, "must be disabled, not '" + *enrolment + "'; without it it is enrolled");
  else if (enrolment && !netns && !cgroup)
    report.warn(path_of_key("metadata.annotations", kEnrolment),
                "has no effect: this machine does not enrol it, without " + std::string(kNetns) +
                    " and " + std::string(kCgroup));
}

// What is neither counts as strict: a security object that is refused denies.
bool read_mode(Report& report, const std::string& path, const std::string& value) {
  if (value != "strict" && value != "permissive")
    report.error(path, "must be strict or permissive, not '" + value + "'");
  return value != "permissive";
}

void read_annotations(Report& report, const Labels& annotations, WorkloadPart& part) {
  Workload& workload = part.workload;
  for (const auto& [key, value] : annotations) {
    if (!key.starts_with(kAnnotations)) continue;
    std::string_view name = std::string_view(key).substr(kAnnotations.size());
    std::string path = path_of_key("metadata.annotations", key);
    if (name == "mode") {
      part.has_mode = true;
      workload.strict = read_mode(report, path, value);
    } else if (name == "on-proxy-failure") {
      workload.bypasses_proxy = value == "bypass";
      if (!workload.bypasses_proxy && value != "refuse")
        report.error(path, "must be bypass or refuse, not '" + value + "'");
    } else if (name == "fastpath") {
      read_fast_path(report, path, value, workload.fast_path);
    } else if (name == "addresses") {
      for (std::size_t at = 0; at <= value.size();) {
        std::size_t comma = std::min(value.find(',', at), value.size());
        if (comma > at)
          add_workload_address(report, path, std::string_view(value).substr(at, comma - at),
                               workload);
        at = comma + 1;
      }
    } else if (name != "sandbox" && key != kNetns && key != kCgroup && key != kEnrolment) {
      report.error(path, "not supported; remove the annotation");
    }
  }
  read_place(report, annotations, workload);
}

void read_slice_endpoint(const Fields& endpoint, EndpointSlice& slice) {
  if (auto conditions = endpoint.message("conditions", {}))
    if (!conditions->flag("ready").value_or(true)) return;
  for (const std::string& text : endpoint.texts("addresses")) {
    auto address = IpAddress::parse(text);
    if (!address)
      endpoint.error("addresses", address.error().message);
    else if (!is_endpoint_address(address.value()))
      endpoint.error("addresses", std::string(kNoEndpoint));
    else
      slice.addresses.push_back(address.value());
  }
}

}  // namespace

void warn_of_tcp_only(const Fields& port, std::string_view path, const std::string& protocol) {
  port.warn(path,
            protocol + " is carried as TCP for now: balanced by connection, without HTTP routes");
}

void read_service_annotations(Report& report, Service& service) {
  for (const auto& [key, value] : read_metadata(report).annotations) {
    if (!key.starts_with(kAnnotations)) continue;
    std::string path = path_of_key("metadata.annotations", key);
    if (key == kFastPath) {
      bool fast_path = true;
      read_fast_path(report, path, value, fast_path);
      for (ServicePort& port : service.ports) port.fast_path = port.fast_path && fast_path;
    } else if (key == kFastPathPorts)
      read_slow_ports(report, path, value, service);
    else if (key != kOnRemoval)
      report.error(path, "not supported; remove the annotation");
    else if (value != "reset")
      report.error(path,
                   "must be reset, not '" + value + "'; without it connections are left alone");
    else
      read_reset(report, path, service);
  }
}

void warn_of_annotations(Report& report, std::string_view why) {
  for (const auto& [key, value] : read_metadata(report).annotations)
    if (key.starts_with(kAnnotations))
      report.warn(path_of_key("metadata.annotations", key), "has no effect: " + std::string(why));
}

ServicePart read_service(Report& report) {
  const ObjectKey& key = report.object().key;
  Fields spec = open_spec(report, {}, Strictness::kLenient);
  ServicePart part;
  Service& service = part.service;
  service.name = {key.ns, key.name};
  service.host = service_host(service.name);
  if (spec.text("type").value_or("") == "ExternalName") {
    part.external_name = plain_host(spec.required_text("externalName").value_or(""));
    if (!part.external_name.empty() &&
        (!is_host(part.external_name) || part.external_name[0] == '*'))
      spec.error("externalName", "must be a DNS name");
    const std::size_t errors = report.errors();
    read_service_annotations(report, service);
    if (report.errors() == errors) warn_of_annotations(report, "an ExternalName is a name alone");
    return part;
  }
  for (const Fields& port : spec.messages("ports", {})) {
    auto read = read_service_port(port);
    if (!read) continue;
    if (service.find_port(read->port, read->transport())) port.error("port", "is given twice");
    service.ports.push_back(*std::move(read));
  }
  read_service_addresses(spec, service);
  service.selector = spec.labels("selector");
  read_affinity(spec, service);
  read_service_annotations(report, service);
  return part;
}

EndpointSlice read_endpoint_slice(Report& report) {
  const ObjectKey& key = report.object().key;
  // An EndpointSlice has no spec: its fields are at the top.
  Fields top(report, report.object().tree, "", {}, Strictness::kLenient);
  EndpointSlice slice;
  slice.name = {key.ns, key.name};
  Labels labels = read_metadata(report).labels;
  if (auto service = labels.find("kubernetes.io/service-name"); service != labels.end())
    slice.service = service->second;
  else
    report.warn("metadata.labels",
                "the label kubernetes.io/service-name is missing: the slice belongs to no service");
  if (top.text("addressType").value_or("IPv4") == "FQDN") {
    top.warn("addressType", "endpoints by name are not supported; the slice is left alone");
    return slice;
  }
  for (const Fields& port : top.messages("ports", {})) {
    const auto transport = read_transport(port);
    const auto number = port.port("port");
    if (transport && number)
      slice.ports.push_back({port.text("name").value_or(""), *number, *transport});
  }
  for (const Fields& endpoint : top.messages("endpoints", {})) read_slice_endpoint(endpoint, slice);
  return slice;
}

Schema workload_fields() { return kWorkload; }

NamespacePart read_namespace(Report& report) {
  Metadata metadata = read_metadata(report);
  NamespacePart part{std::move(metadata.labels)};
  for (const auto& [key, value] : metadata.annotations) {
    if (!key.starts_with(kAnnotations)) continue;
    const std::string path = path_of_key("metadata.annotations", key);
    if (std::string_view(key).substr(kAnnotations.size()) == "mode")
      part.strict = read_mode(report, path, value);
    else
      report.error(path, "not supported; remove the annotation");
  }
  return part;
}

Workload read_workload(const Fields& spec) {
  Workload workload;
  if (auto address = spec.required_text("address"))
    add_workload_address(spec.report(), spec.path("address"), *address, workload);
  workload.labels = spec.labels("labels");
  std::string account = spec.text("serviceAccount").value_or("");
  if (!account.empty()) workload.service_account = account;
  if (account.find_first_of("/*:%") != std::string::npos)
    spec.error("serviceAccount", "must be the name of a service account");
  workload.weight = read_weight(spec);
  if (auto ports = spec.lenient_message("ports"))
    spec.each_entry("ports", [&](std::string_view name, const boost::json::value&, const auto&) {
      if (auto number = ports->port(name)) workload.ports.emplace(name, *number);
    });
  return workload;
}

WorkloadPart read_workload_entry(Report& report) {
  const ObjectKey& key = report.object().key;
  Metadata metadata = read_metadata(report);
  WorkloadPart part{read_workload(open_spec(report, workload_fields()))};
  part.workload.name = {key.ns, key.name};
  part.workload.labels.merge(Labels(metadata.labels));  // spec.labels go over them, as in Istio
  read_annotations(report, metadata.annotations, part);
  return part;
}

}  // namespace mesh::config
