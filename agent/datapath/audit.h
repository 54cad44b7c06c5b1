// What of an enrolled workload's links and filters, or of the mesh's own, is not as it was
// attached. Needs root.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "datapath/datapath.h"
#include "datapath/object.h"

namespace mesh::datapath {

struct LinkFindings {
  std::vector<std::string> missing;  // attach() puts them right
  std::vector<std::string> foreign;  // programs of others, which may override ours
  // Why its packets are not all policed, empty where they are or need not be; none: not known.
  std::optional<std::string> uncovered;
};
Result<LinkFindings> look_at_links(const Object& object, const std::string& set,
                                   const EnrolledWorkload& workload);

// Of the mesh's own hooks at its control group: theirs alone.
Result<LinkFindings> look_at_mesh_links(const Object& object, const std::string& set,
                                        const std::string& cgroup);

}  // namespace mesh::datapath
