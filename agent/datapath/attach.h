// What an enrolled workload has in the kernel besides its rows: the order in which it gets it, and
// what becomes of one that cannot have all of it.
#pragma once

#include <string>

#include "base/result.h"
#include "datapath/datapath.h"
#include "datapath/object.h"
#include "datapath/socket_work.h"

namespace mesh::datapath {

// First what judges arrivals, then what catches connections: nobody is captured who is not also
// guarded. On failure a workload that had nothing is left with nothing; a strict one with all that
// could be had, to be refused by it. A strict one that is new to the kernel (has no row there)
// loses what it has open: the TCP connections and connected UDP sockets that no hook may have seen,
// but those with itself. Returns why its packets are not policed, empty where they are or need not
// be. Idempotent.
Result<std::string> attach(Object& object, SocketWork& work, const std::string& set,
                           const EnrolledWorkload& workload, bool has_row);

}  // namespace mesh::datapath
