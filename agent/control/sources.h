// Sources: the store's objects on their way to a snapshot: services get their addresses, refused
// objects are replaced by their last accepted versions, and what is good is kept as accepted.
// One thread.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "config/objects.h"
#include "control/numbers.h"
#include "control/store.h"

namespace mesh::control {

struct Compilation {
  config::SnapshotPtr snapshot;
  config::Objects objects;                    // as the store has them, with addresses
  config::Objects for_proxy;                  // what the snapshot was made of
  std::vector<config::Problem> problems;      // of the files, and of the objects as written
  std::map<config::ObjectKey, bool> refused;  // true: its last accepted version acts
};

class Sources {
 public:
  Sources(Store& store, Numbers& numbers, config::CompileOptions options);

  // The store's objects, some of them replaced or added (a candidate): nothing is written, and the
  // addresses that were given for it are forgotten. compile() gives the same ones when the store
  // has become just that.
  Compilation compile_with(const std::vector<config::ObjectPtr>& changed, std::uint64_t version);
  // The store's objects; accepted versions are kept on disk, addresses are saved.
  Compilation compile(std::uint64_t version, const config::Snapshot* previous);

  // Returns true when they are others than before.
  bool set_node_addresses(std::vector<IpAddress> addresses) {
    return std::exchange(options_.node_addresses, addresses) != addresses;
  }
  const std::vector<std::string>& write_errors() const { return write_errors_; }

 private:
  config::Objects with_addresses(const config::Objects& objects,
                                 std::vector<config::Problem>& problems);
  config::Objects follow_addresses(const config::Objects& stored,
                                   std::vector<config::Problem>& problems);
  config::ObjectPtr with_address(const config::ObjectPtr& service,
                                 const std::vector<std::string>& hosts,
                                 const std::set<IpAddress>& taken,
                                 std::vector<config::Problem>& problems);
  // is_candidate: it is not what the next one follows from.
  Compilation compile_objects(const config::Objects& stored, std::uint64_t version,
                              const config::Snapshot* previous, bool is_candidate);
  config::Objects acting_objects(Compilation& compiled, bool& replaced) const;
  void keep(const Compilation& compiled);
  void forget_addresses(const Compilation& compiled);

  Store& store_;
  Numbers& numbers_;
  config::CompileOptions options_;
  // So that an unchanged service stays the same object: as stored -> with its address.
  struct Addressed {
    config::ObjectPtr written, complete;
    std::map<std::string, IpAddress> addresses;  // by host
  };
  std::map<config::ObjectKey, Addressed> addressed_;
  // What has its addresses; none: not all could have one.
  struct Complete {
    config::Objects stored, objects;
  };
  std::optional<Complete> complete_;
  // What was compiled last, where each object acts as it is written.
  struct Last {
    config::Objects objects;
    config::Compiled compiled;
  };
  std::optional<Last> last_;
  // What keep() saw last, and wrote; none: not all could be written.
  std::optional<config::Objects> kept_;
  std::set<config::ObjectKey> kept_refused_;
  std::vector<std::string> write_errors_;
};

}  // namespace mesh::control
