// Revocation: whether an open connection may stay by a state, as the programs would decide of a new
// one. A value that borrows all that it is given. Reads maps; one thread at a time.
#pragma once

#include <cstdint>

#include "datapath/connections.h"
#include "datapath/datapath.h"
#include "datapath/flows.h"
#include "datapath/object.h"

namespace mesh::datapath {

class Revocation {
 public:
  Revocation(const Object& object, const Flows& flows, const State& state)
      : object_(object), flows_(flows), state_(state) {}

  Fate fate_of(const EnrolledWorkload& workload, Transport transport,
               const Connection& connection) const;
  // It went through a service with resets_on_removal that has no such endpoint (any more).
  bool is_removed(const Connection& connection) const;

 private:
  // kUnknown: nobody wrote it down.
  enum class Direction : std::uint8_t { kInbound, kOutbound, kUnknown };
  Direction direction_of(const EnrolledWorkload& workload, Transport transport,
                         const Connection& connection) const;
  bool is_denied_outbound(const EnrolledWorkload& workload, Transport transport,
                          const Connection& connection) const;
  bool is_denied(SetId id, ClassId peer, Transport transport, std::uint16_t port) const;
  ClassId class_of_client(const Connection& connection) const;
  ClassId class_at(const IpAddress& address) const;

  const Object& object_;
  const Flows& flows_;
  const State& state_;
};

}  // namespace mesh::datapath
