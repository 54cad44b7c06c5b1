// What `meshctl authz check` answers: may somebody connect to somewhere, by which rule, and why.
//
// The verdict of an end that is on this node comes from the rows that the kernel was given, judged
// by the programs' own code (datapath/judge.h); that of an end on another node from the functions
// that such rows are made with. Why is told by the policies. Pure.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "api/messages.h"
#include "base/result.h"
#include "config/object.h"
#include "control/authz_names.h"
#include "control/kernel_state.h"

namespace mesh::control {

struct AuthzInput {
  Known known;
  const std::map<std::uint32_t, PolicyRule>& rules;  // of the kernel's numbers
  std::optional<IpBlock> service_range;
  const std::vector<config::Problem>& problems;  // of the configuration
};
struct AuthzQuestion {
  std::string from, to;  // as find_client() and find_destinations() read them
  std::string ns = "default";
  bool udp = false;
};

// not_found: there is nobody of that name. refused: a service without endpoints.
Result<api::AuthzReply> check_authz(const AuthzInput& input, const AuthzQuestion& question);

}  // namespace mesh::control
