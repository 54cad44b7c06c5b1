#include <algorithm>

#include "config/kinds.h"

namespace mesh::config {
namespace {

const boost::json::object kEmpty;

constexpr Field kTopLevel[] = {{"apiVersion"}, {"kind"}, {"metadata"}, {"spec"}, {"status"}};

const boost::json::object& object_or_empty(const Fields& parent, std::string_view name) {
  const boost::json::value* value = parent.find(name);
  if (!value) return kEmpty;
  if (value->is_object()) return value->get_object();
  parent.error(name, "must be an object with fields of its own, not " + described(*value));
  return kEmpty;
}

}  // namespace

Metadata read_metadata(Report& report) {
  Fields top(report, report.object().tree, "", {}, Strictness::kLenient);
  Fields metadata(report, object_or_empty(top, "metadata"), "metadata", {}, Strictness::kLenient);
  return {metadata.labels("labels"), metadata.annotations("annotations")};
}

Fields open_spec(Report& report, Schema schema, Strictness strictness) {
  Fields top(report, report.object().tree, "", kTopLevel, strictness);
  return Fields(report, object_or_empty(top, "spec"), "spec", schema, strictness);
}

bool is_endpoint_address(const IpAddress& ip) {
  static const IpAddress kMetadata[] = {IpAddress::parse("fd00:ec2::254").value(),
                                        IpAddress::v4(100, 100, 100, 200)};
  return !ip.is_loopback() && !ip.is_link_local() && !ip.is_multicast() && !ip.is_unspecified() &&
         std::find(std::begin(kMetadata), std::end(kMetadata), ip) == std::end(kMetadata);
}

std::string service_host(const ObjectName& service) {
  return service.name + "." + service.ns + ".svc.cluster.local";
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return result;
}

std::string plain_host(std::string_view written) {
  if (written.ends_with('.')) written.remove_suffix(1);
  return lower(written);
}

bool is_host(std::string_view host) {
  if (host == "*") return true;
  if (host.starts_with("*.")) host.remove_prefix(2);
  if (host.empty() || host.size() > 253 || host.front() == '.' || host.back() == '.') return false;
  return host.find("..") == std::string_view::npos &&
         std::all_of(host.begin(), host.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
                  c == '.';
         });
}

}  // namespace mesh::config
