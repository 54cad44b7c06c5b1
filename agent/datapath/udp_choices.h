// Which backends unconnected UDP sockets have chosen: the programs keep a choice while it is used,
// so what is no backend any more must be forgotten from here. One thread at a time.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/address.h"
#include "base/result.h"
#include "datapath/datapath.h"

namespace mesh::datapath {

class UdpChoices {
 public:
  // Before services are written: sockets may choose what is written, also where forget_choices() is
  // not reached then.
  void note_change() {
    if (std::exchange(is_changing_, true)) known_.reset();
  }
  // Of services and backends that `state` has no more, in the map with this descriptor; looks only
  // where some have gone since the last call. After the programs that chose by what was.
  Result<> forget_choices(int map, const State& state);

 private:
  using Backends = std::map<SocketAddress, std::set<SocketAddress>>;
  std::optional<Backends> known_;           // nullopt: what our predecessor left, or a change did
  decltype(State::udp_services) services_;  // that known_ is of
  bool is_changing_ = false;
};

}  // namespace mesh::datapath
