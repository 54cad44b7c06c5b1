// Endings: ends the connections of enrolled workloads that a state does not let go on, and counts
// them. A resource that borrows all that it is given. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>

#include "base/result.h"
#include "datapath/connections.h"
#include "datapath/datapath.h"
#include "datapath/flows.h"
#include "datapath/object.h"
#include "datapath/socket_work.h"

namespace mesh::datapath {

class Endings {
 public:
  Endings(const Object& object, SocketWork& work, Flows& flows)
      : object_(object), work_(work), flows_(flows) {}

  // As Datapath's. What cannot be looked at, or ended, holds up nothing else.
  Result<> end_forbidden(const State& state);
  Result<> end_removed(const State& state);
  void add_to(Counters& counters) const;

 private:
  using FateOf = std::function<Fate(const EnrolledWorkload&, Transport, const Connection&)>;
  // Which, why (a counter's name, and the reason of flows), and how many so far.
  struct Kind {
    const char* counter;
    std::uint64_t total = 0;
  };

  std::optional<Error> end_where(const State& state, std::initializer_list<Transport> transports,
                                 Kind& kind, const FateOf& fate_of);
  std::optional<Error> end_of_the_gateway(const State& state, const FateOf& fate_of);
  std::optional<Error> end_in(int netns, Transport transport, Kind& kind,
                              const std::function<Fate(const Connection&)>& fate_of);

  const Object& object_;
  SocketWork& work_;
  Flows& flows_;
  Kind by_policy_{"connections_ended_by_policy"}, on_removal_{"connections_reset_on_removal"};
  std::uint64_t not_ended_ = 0;
};

}  // namespace mesh::datapath
