// authz check and policy list: who may talk to whom, and by which policy.
#pragma once

#include <string>

#include "base/result.h"
#include "environment.h"

namespace mesh::cli {

struct AuthzQuestion {
  std::string from, to;
  std::string ns = "default";  // of names without one
  bool udp = false;
};
// kDenied where any of it is denied.
Result<int> authz_check(const Environment& environment, const AuthzQuestion& question,
                        Format format);

struct PolicySelection {
  std::string ns = "default";
  bool all_namespaces = false;
  bool wide = false;  // of a table: rules, workloads and reasons too
};
Result<int> policy_list(const Environment& environment, const PolicySelection& selection,
                        Format format);

}  // namespace mesh::cli
