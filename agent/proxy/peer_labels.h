// The labels of a workload, as Istio derives them (pilot/pkg/model: canonical service, revision).
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "config/snapshot.h"
#include "telemetry/metrics.h"

namespace mesh::proxy {

inline std::string_view label(const config::Labels& labels,
                              std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const auto found = labels.find(name);
    if (found != labels.end()) return found->second;
  }
  return {};
}

// Borrows from both.
inline telemetry::Peer peer_labels(const config::Workload& workload, const std::string& principal) {
  telemetry::Peer peer;
  peer.workload = workload.name.name;
  peer.workload_namespace = workload.name.ns;
  peer.principal = principal;
  peer.app = label(workload.labels, {"app"});
  peer.version = label(workload.labels, {"version"});
  peer.canonical_service =
      label(workload.labels, {"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"});
  if (peer.canonical_service.empty()) peer.canonical_service = workload.name.name;
  peer.canonical_revision = label(workload.labels, {"service.istio.io/canonical-revision",
                                                    "app.kubernetes.io/version", "version"});
  if (peer.canonical_revision.empty()) peer.canonical_revision = "latest";
  return peer;
}

}  // namespace mesh::proxy
