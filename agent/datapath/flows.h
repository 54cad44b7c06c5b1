// Flows: what the kernel's programs write down of connections (um_connections, um_events). A
// resource; the maps' descriptors are borrowed. One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/object.h"
#include "datapath/socket_work.h"

struct ring_buffer;

namespace mesh::datapath {

class Flows {
 public:
  Flows(const Object& object, SocketWork& work);  // `work` outlives it
  ~Flows();
  Flows(const Flows&) = delete;
  Flows& operator=(const Flows&) = delete;

  Result<std::vector<Flow>> take();
  // For the reason of the flows that the next take() returns; their ends are in the ring already.
  void note_ended(const std::vector<std::uint64_t>& cookies, const std::string& reason);
  // Forgets connections of workloads that are gone, and those that two calls did not find. Those of
  // a workload that cannot be listed now (socket_work.h) are left out, and logged once.
  Result<std::vector<Flow>> open(const State& state);
  std::optional<um_connection> find(std::uint64_t cookie) const;

 private:
  static int on_event(void* self, void* data, std::size_t size);
  Result<> forget_orphans(const State& state, const std::set<std::uint64_t>& found);

  SocketWork& work_;
  int connections_fd_, fast_sockets_fd_, events_fd_;
  ring_buffer* ring_;  // null: it could not be opened
  std::vector<Flow> taken_;
  std::map<std::uint64_t, std::string> ended_;  // by cookie
  std::set<std::uint64_t> missing_;             // since the last open()
  std::set<WorkloadId> unlisted_;               // by the last open()
};

}  // namespace mesh::datapath
