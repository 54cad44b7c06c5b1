// Services: where connections to services go (um_services, um_client_services, um_slots,
// um_backends, um_members), and a mirror of it.
//
// A service becomes another by one store of a word: its new backends are there before it, the old
// ones until sweep(), which the caller calls once no program can remember them. A resource; one
// thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/map.h"
#include "datapath/object.h"

namespace mesh::datapath {

class Services {
 public:
  using Entries = SharedMap<um_destination, ServiceEntry, ByteOrder>;
  using Failures = std::map<um_destination, int, ByteOrder>;  // errno

  explicit Services(const Object& object);
  ~Services();
  Services(Services&& other) noexcept;
  Services& operator=(Services&&) = delete;

  // Of one that has no column neither affinity nor resets_on_removal is known.
  const Entries& entries() const { return entries_; }
  // Reads the maps; takes out what a writer that was killed left. No program may remember that.
  Result<> read();
  // What programs may remember was replaced since this was asked last.
  bool take_changed() { return std::exchange(changed_, false); }
  std::uint64_t writes() const;  // entries written or deleted so far
  // Returns what did not fit: that stays as it was, or half as it shall be, until it is put again.
  Failures put(const Entries& wanted);
  // Those that put() found no room for: their addresses refuse connections until a later put() has
  // room. Returns those that cannot even be marked so.
  Failures refuse(const Failures& misfits, const Entries& wanted);
  // After put().
  Result<> keep_only(const Entries& wanted);
  // Writes again what of these entries is not in the kernel as we wrote it; returns how many were
  // not. It looks at so many rows (of all maps; a service as a whole), and goes on there next time.
  Result<std::size_t> restore_some(std::size_t rows);
  // Frees what was replaced and removed before.
  void sweep();

 private:
  using Backends = std::vector<um_backend>;
  struct BackendsOrder {
    bool operator()(const Backends& a, const Backends& b) const;
  };
  using ClientKey = um_client_service;

  Result<> map_slots();
  Result<> read_choices();
  Result<> remove_orphaned_members();
  void count_uses();
  void use(std::uint32_t slot, const um_service& word);
  um_service at(std::uint32_t slot) const;
  void store(std::uint32_t slot, const um_service& word);
  int choose(const um_destination& key, const ServiceEntry& entry, const Columns& columns,
             um_service& word);
  int write_choice(std::uint32_t number, const Backends& backends);
  void delete_choice(std::uint32_t number, const Backends& backends);
  int put_one(const um_destination& key, const ServiceEntry& entry);
  Result<bool> restore_one(const um_destination& key, const ServiceEntry& entry, std::size_t& rows);
  Result<bool> restore_choice(const um_service& word, std::size_t& rows);
  int put_clients(const um_destination& key, const ServiceEntry& entry);
  ServiceEntry entry_of(const um_service& word) const;
  void add_client(WorkloadId client, const um_service& word, ServiceEntry& entry) const;
  void add_columns(const um_service& word, ServiceEntry& entry, Columns& columns) const;
  template <class Key>
  int place(Map<Key, std::uint32_t>& map, const Key& key, const um_service& word);
  template <class Key>
  Result<> leave(Map<Key, std::uint32_t>& map, const Key& key);

  int slots_fd_, backends_fd_, members_fd_;
  std::span<std::uint64_t> slots_;  // mapped
  Map<um_destination, std::uint32_t> services_;
  Map<ClientKey, std::uint32_t> clients_;
  std::map<Backends, std::uint32_t, BackendsOrder> choices_;  // -> number
  std::map<std::uint32_t, const Backends*> by_number_;
  std::uint32_t next_choice_ = 1;
  // By slot that a key leads to, 0: none; by number; and those that no such slot names.
  std::vector<std::uint32_t> choice_of_slot_;
  std::map<std::uint32_t, std::uint32_t> uses_;
  std::set<std::uint32_t> unused_;
  std::vector<std::uint32_t> free_slots_, left_slots_;
  Entries entries_;
  // The maps hold what entries_ says, and no more but former_clients_: those rows of services whose
  // clients are others now.
  bool is_followed_ = false;
  bool has_misfits_ = false;  // of the last put()
  std::vector<ClientKey> former_clients_;
  std::optional<um_destination> looked_at_;  // restore_some() goes on after it
  bool changed_ = false;
  std::uint64_t writes_ = 0;  // of slots, backends and members
};

}  // namespace mesh::datapath
