// The hosts file of all sandboxes: every service's names and addresses.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "config/snapshot.h"

namespace mesh::control {

// localhost, then "address name name.ns name.ns.svc name.ns.svc.cluster.local" for every service
// address. A short name that two namespaces have goes to the namespace "default", else to the
// first.
std::string hosts_text(const config::Snapshot& snapshot);

// In place: the file is bind-mounted into every sandbox, and a rename would break that. The new
// text is written over the old one and then cut to length, so a reader sees at worst a mixture of
// lines of both.
Result<> write_in_place(const std::string& path, std::string_view text);

}  // namespace mesh::control
