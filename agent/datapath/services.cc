#include "datapath/services.h"

#include <bpf/bpf.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <functional>
#include <set>

#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

um_destination backend_of(const std::optional<SocketAddress>& endpoint, std::uint8_t protocol) {
  if (!endpoint) return {};
  um_destination out = kernel_destination(*endpoint);
  out.protocol = protocol;
  return out;
}

std::optional<SocketAddress> endpoint_of(const um_destination& backend) {
  if (backend.protocol == 0) return std::nullopt;
  return user_destination(backend);
}

std::set<um_destination, ByteOrder> members_of(const std::vector<um_backend>& backends) {
  std::set<um_destination, ByteOrder> members;
  for (const um_backend& column : backends) {
    if (column.affinity_seconds == 0) continue;
    for (const um_destination& backend : {column.first, column.second})
      if (backend.protocol != 0) members.insert(backend);
  }
  return members;
}

std::vector<um_backend_key> keys_of(std::uint32_t choice, std::size_t columns) {
  std::vector<um_backend_key> keys;
  for (std::uint32_t i = 0; i < columns; ++i) keys.push_back({choice, i});
  return keys;
}

}  // namespace

bool Services::BackendsOrder::operator()(const Backends& a, const Backends& b) const {
  if (a.size() != b.size()) return a.size() < b.size();
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(um_backend)) < 0;
}

Services::Services(const Object& object)
    : slots_fd_(object.map("um_slots")),
      backends_fd_(object.map("um_backends")),
      members_fd_(object.map("um_members")),
      services_(object.map("um_services"), "um_services"),
      clients_(object.map("um_client_services"), "um_client_services") {}

Services::~Services() {
  if (!slots_.empty()) ::munmap(slots_.data(), slots_.size_bytes());
}

Services::Services(Services&& other) noexcept
    : slots_fd_(other.slots_fd_),
      backends_fd_(other.backends_fd_),
      members_fd_(other.members_fd_),
      slots_(std::exchange(other.slots_, {})),
      services_(std::move(other.services_)),
      clients_(std::move(other.clients_)),
      choices_(std::move(other.choices_)),
      by_number_(std::move(other.by_number_)),
      next_choice_(other.next_choice_),
      choice_of_slot_(std::move(other.choice_of_slot_)),
      uses_(std::move(other.uses_)),
      unused_(std::move(other.unused_)),
      free_slots_(std::move(other.free_slots_)),
      left_slots_(std::move(other.left_slots_)),
      entries_(std::move(other.entries_)),
      is_followed_(other.is_followed_),
      has_misfits_(other.has_misfits_),
      former_clients_(std::move(other.former_clients_)),
      looked_at_(other.looked_at_),
      changed_(other.changed_),
      writes_(other.writes_) {}

// --- what is there

Result<> Services::map_slots() {
  if (!slots_.empty()) return success();
  bpf_map_info info{};
  std::uint32_t size = sizeof info;
  if (::bpf_obj_get_info_by_fd(slots_fd_, &info, &size) != 0)
    return errno_error(errno, "read the size of map um_slots");
  void* mapped = ::mmap(nullptr, std::size_t{info.max_entries} * sizeof(std::uint64_t),
                        PROT_READ | PROT_WRITE, MAP_SHARED, slots_fd_, 0);
  if (mapped == MAP_FAILED) return errno_error(errno, "map um_slots into memory");
  slots_ = {static_cast<std::uint64_t*>(mapped), info.max_entries};
  return success();
}

Result<> Services::read_choices() {
  choices_.clear();
  by_number_.clear();
  std::map<std::uint32_t, std::map<std::uint32_t, um_backend>> found;
  um_backend_key key{}, next{};
  um_backend column{};
  for (const void* from = nullptr; ::bpf_map_get_next_key(backends_fd_, from, &next) == 0;
       from = &key) {
    key = next;
    if (::bpf_map_lookup_elem(backends_fd_, &key, &column) == 0)
      found[key.choice].emplace(key.index, column);
  }
  if (errno != ENOENT) return errno_error(errno, "read map um_backends");
  for (const auto& [number, columns] : found) {
    next_choice_ = std::max(next_choice_, number + 1);
    Backends backends;
    for (const auto& [index, value] : columns) backends.push_back(value);
    const bool is_whole = columns.rbegin()->first + 1 == columns.size();
    const auto added =
        is_whole ? choices_.emplace(backends, number) : std::pair(choices_.end(), false);
    if (added.second) {
      by_number_[number] = &added.first->first;
      continue;
    }
    // Half written, or half deleted: nobody's.
    for (const auto& [index, value] : columns) {
      const um_backend_key left{number, index};
      ::bpf_map_delete_elem(backends_fd_, &left);
    }
  }
  return remove_orphaned_members();
}

Result<> Services::remove_orphaned_members() {
  std::vector<um_member> orphans;
  um_member key{}, next{};
  for (const void* from = nullptr; ::bpf_map_get_next_key(members_fd_, from, &next) == 0;
       from = &key) {
    key = next;
    if (!by_number_.contains(key.choice)) orphans.push_back(key);
  }
  if (errno != ENOENT) return errno_error(errno, "read map um_members");
  for (const um_member& orphan : orphans) ::bpf_map_delete_elem(members_fd_, &orphan);
  return success();
}

Result<> Services::read() {
  MESH_TRY(map_slots());
  MESH_TRY(services_.read());
  MESH_TRY(clients_.read());
  MESH_TRY(read_choices());
  std::set<std::uint32_t> used;
  for (const auto& [key, slot] : services_.entries()) used.insert(slot);
  for (const auto& [key, slot] : clients_.entries()) used.insert(slot);
  free_slots_.clear();
  left_slots_.clear();
  for (auto slot = static_cast<std::uint32_t>(slots_.size()); slot-- > 0;)
    if (!used.contains(slot)) free_slots_.push_back(slot);
  entries_.clear();
  for (const auto& [key, slot] : services_.entries())
    if (const um_service word = at(slot); word.kind != UM_SERVICE_REFUSED)
      entries_.emplace(key, entry_of(word));
  for (const auto& [client, slot] : clients_.entries())
    if (entries_.contains(client.service))
      add_client(client.client, at(slot), entries_[client.service]);
  is_followed_ = false;
  former_clients_.clear();
  count_uses();
  sweep();
  return success();
}

void Services::count_uses() {
  choice_of_slot_.assign(slots_.size(), 0);
  uses_.clear();
  unused_.clear();
  for (const auto& [number, backends] : by_number_) unused_.insert(number);
  for (const auto& [key, slot] : services_.entries()) use(slot, at(slot));
  for (const auto& [key, slot] : clients_.entries()) use(slot, at(slot));
}

// What the slot of a key says now; nothing, where none leads to it any more.
void Services::use(std::uint32_t slot, const um_service& word) {
  if (slot >= choice_of_slot_.size()) return;
  const bool has_choice = word.kind == UM_SERVICE_BALANCE && word.columns != 0;
  const std::uint32_t now = has_choice ? word.number : 0;
  const std::uint32_t before = std::exchange(choice_of_slot_[slot], now);
  if (before == now) return;
  if (now != 0) {
    ++uses_[now];
    unused_.erase(now);
  }
  if (before != 0 && --uses_[before] == 0) {
    uses_.erase(before);
    unused_.insert(before);
  }
}

um_service Services::at(std::uint32_t slot) const {
  if (slot >= slots_.size()) return {};
  return std::bit_cast<um_service>(
      std::atomic_ref<std::uint64_t>(slots_[slot]).load(std::memory_order_acquire));
}

void Services::store(std::uint32_t slot, const um_service& word) {
  const um_service old = at(slot);
  if (std::memcmp(&old, &word, sizeof old) == 0) return;
  changed_ = true;
  ++writes_;
  std::atomic_ref<std::uint64_t>(slots_[slot])
      .store(std::bit_cast<std::uint64_t>(word), std::memory_order_release);
}

void Services::add_columns(const um_service& word, ServiceEntry& entry, Columns& columns) const {
  const auto choice = by_number_.find(word.number);
  if (word.kind != UM_SERVICE_BALANCE || word.columns == 0 || choice == by_number_.end()) return;
  for (const um_backend& column : *choice->second) {
    columns.push_back({endpoint_of(column.first), endpoint_of(column.second), column.threshold});
    entry.id = column.service;
    entry.affinity = std::chrono::seconds(column.affinity_seconds);
    entry.resets_on_removal = (column.flags & UM_BACKEND_RESETS) != 0;
  }
}

ServiceEntry Services::entry_of(const um_service& word) const {
  ServiceEntry entry;
  entry.id = word.number;
  if (word.kind == UM_SERVICE_PROXY) entry.kind = ServiceEntry::Kind::kProxy;
  add_columns(word, entry, entry.columns);
  if (word.kind == UM_SERVICE_BY_CLIENT) entry.of_clients.emplace();
  return entry;
}

void Services::add_client(WorkloadId client, const um_service& word, ServiceEntry& entry) const {
  if (!entry.of_clients) {
    if (entry.kind != ServiceEntry::Kind::kProxy) return;
    entry.of_clients.emplace();
  }
  add_columns(word, entry, (*entry.of_clients)[client]);
}

std::uint64_t Services::writes() const { return writes_ + services_.writes() + clients_.writes(); }

// --- what shall be there

void Services::delete_choice(std::uint32_t number, const Backends& backends) {
  auto keys = keys_of(number, backends.size());
  auto count = static_cast<std::uint32_t>(keys.size());
  LIBBPF_OPTS(bpf_map_batch_opts, options);
  if (::bpf_map_delete_batch(backends_fd_, keys.data(), &count, &options) != 0)
    for (const um_backend_key& key : keys) ::bpf_map_delete_elem(backends_fd_, &key);
  writes_ += keys.size();
  for (const um_destination& backend : members_of(backends)) {
    const um_member member{number, backend};
    ::bpf_map_delete_elem(members_fd_, &member);
    ++writes_;
  }
}

// Members first: whoever finds a column of this choice finds its members.
int Services::write_choice(std::uint32_t number, const Backends& backends) {
  const std::uint32_t one = 1;
  int error = 0;
  for (const um_destination& backend : members_of(backends)) {
    const um_member member{number, backend};
    if (error == 0 && ::bpf_map_update_elem(members_fd_, &member, &one, BPF_ANY) != 0)
      error = errno;
    ++writes_;
  }
  auto keys = keys_of(number, backends.size());
  auto count = static_cast<std::uint32_t>(keys.size());
  writes_ += keys.size();
  LIBBPF_OPTS(bpf_map_batch_opts, options);
  if (error == 0 &&
      ::bpf_map_update_batch(backends_fd_, keys.data(), backends.data(), &count, &options) != 0)
    error = errno;
  if (error != 0) delete_choice(number, backends);
  return error;
}

// The word for these columns, which are written where they are not there yet: 0, or errno.
int Services::choose(const um_destination& key, const ServiceEntry& entry, const Columns& columns,
                     um_service& word) {
  word = {entry.id, UM_SERVICE_BALANCE, 0, 0};
  if (columns.empty()) return 0;
  if (columns.size() > 65535) return E2BIG;
  Backends backends;
  for (const Column& column : columns)
    backends.push_back({backend_of(column.first, key.protocol),
                        backend_of(column.second, key.protocol), column.threshold, entry.id,
                        static_cast<std::uint32_t>(entry.affinity.count()),
                        entry.resets_on_removal ? UM_BACKEND_RESETS : 0U});
  auto known = choices_.find(backends);
  if (known == choices_.end()) {
    while (next_choice_ == 0 || by_number_.contains(next_choice_)) ++next_choice_;
    const std::uint32_t number = next_choice_++;
    if (const int error = write_choice(number, backends); error != 0) return error;
    known = choices_.emplace(std::move(backends), number).first;
    by_number_[number] = &known->first;
    unused_.insert(number);
  }
  word.number = known->second;
  word.columns = static_cast<std::uint16_t>(columns.size());
  return 0;
}

// A slot says what it shall say before a key leads to it.
template <class Key>
int Services::place(Map<Key, std::uint32_t>& map, const Key& key, const um_service& word) {
  if (const auto known = map.entries().find(key); known != map.entries().end()) {
    store(known->second, word);
    use(known->second, word);
    return 0;
  }
  if (free_slots_.empty()) return ENOSPC;
  const std::uint32_t slot = free_slots_.back();
  store(slot, word);
  if (const int error = map.put(key, slot); error != 0) return error;
  free_slots_.pop_back();
  use(slot, word);
  return 0;
}

int Services::put_clients(const um_destination& key, const ServiceEntry& entry) {
  for (const auto& [client, columns] : *entry.of_clients) {
    um_service word{};
    if (const int error = choose(key, entry, columns, word); error != 0) return error;
    if (const int error = place(clients_, {client, key}, word); error != 0) return error;
  }
  return 0;
}

int Services::put_one(const um_destination& key, const ServiceEntry& entry) {
  um_service word{entry.id, UM_SERVICE_PROXY, 0, 0};
  const bool is_proxied = entry.kind == ServiceEntry::Kind::kProxy;
  if (entry.of_clients) {
    if (!is_proxied) word.kind = UM_SERVICE_BY_CLIENT;
    if (const int error = put_clients(key, entry); error != 0) return error;
  } else if (!is_proxied) {
    if (const int error = choose(key, entry, entry.columns, word); error != 0) return error;
  }
  return place(services_, key, word);
}

Services::Failures Services::put(const Entries& wanted) {
  Failures failed;
  for (const auto* one : missing_of(entries_, wanted, std::equal_to<>())) {
    const auto& [key, entry] = *one;
    if (const int error = put_one(key, entry); error != 0) {
      failed.emplace(key, error);
      entries_.erase(key);  // it may be half written: neither the old one nor this one
      continue;
    }
    const auto known = entries_.find(key);
    if (known != entries_.end() && known->second.of_clients)
      for (const auto& [client, columns] : *known->second.of_clients)
        former_clients_.push_back({client, key});
    entries_.insert_or_assign(key, entry);
  }
  has_misfits_ = !failed.empty();
  if (has_misfits_) is_followed_ = false;
  if (!has_misfits_ && entries_.size() == wanted.size()) entries_ = wanted;
  return failed;
}

Services::Failures Services::refuse(const Failures& misfits, const Entries& wanted) {
  Failures failed;
  for (const auto& [key, why] : misfits) {
    const um_service word{wanted.at(key).id, UM_SERVICE_REFUSED, 0, 0};
    if (const int error = place(services_, key, word); error != 0) failed.emplace(key, error);
  }
  return failed;
}

template <class Key>
Result<> Services::leave(Map<Key, std::uint32_t>& map, const Key& key) {
  const auto known = map.entries().find(key);
  if (known == map.entries().end()) return success();
  const std::uint32_t slot = known->second;
  MESH_TRY(map.remove(key));
  left_slots_.push_back(slot);
  use(slot, {});
  changed_ = true;
  return success();
}

// What the maps hold is looked at as a whole where it may be more than entries_ says.
Result<> Services::keep_only(const Entries& wanted) {
  std::vector<um_destination> services = keys_but(entries_, wanted);
  std::vector<ClientKey> clients = former_clients_;
  for (const um_destination& key : services)
    if (const auto& own = entries_.find(key)->second.of_clients)
      for (const auto& [client, columns] : *own) clients.push_back({client, key});
  if (!is_followed_) {
    for (const auto& [key, slot] : services_.entries())
      if (!wanted.contains(key)) services.push_back(key);
    for (const auto& [key, slot] : clients_.entries()) clients.push_back(key);
  }
  is_followed_ = false;
  for (const um_destination& key : services) {
    MESH_TRY(leave(services_, key));
    entries_.erase(key);
  }
  for (const ClientKey& key : clients) {
    const auto service = wanted.find(key.service);
    const bool is_wanted = service != wanted.end() && service->second.of_clients &&
                           service->second.of_clients->contains(key.client);
    if (is_wanted) continue;
    MESH_TRY(leave(clients_, key));
  }
  former_clients_.clear();
  is_followed_ = !has_misfits_ && services_.entries().size() == entries_.size();
  return success();
}

// --- what is not there any more

Result<bool> Services::restore_choice(const um_service& word, std::size_t& rows) {
  const auto known = by_number_.find(word.number);
  if (word.kind != UM_SERVICE_BALANCE || word.columns == 0 || known == by_number_.end())
    return false;
  const Backends& backends = *known->second;
  bool is_whole = true;
  um_backend column{};
  std::uint32_t index = 0, one = 0;
  for (const um_backend& wanted : backends) {
    const um_backend_key key{word.number, index++};
    is_whole = is_whole && ::bpf_map_lookup_elem(backends_fd_, &key, &column) == 0 &&
               std::memcmp(&column, &wanted, sizeof column) == 0;
  }
  const auto members = members_of(backends);
  for (const um_destination& backend : members) {
    const um_member member{word.number, backend};
    is_whole = is_whole && ::bpf_map_lookup_elem(members_fd_, &member, &one) == 0;
  }
  rows += backends.size() + members.size();
  if (is_whole) return false;
  if (const int error = write_choice(word.number, backends); error != 0)
    return errno_error(error, "write again to map um_backends");
  return true;
}

// Its slots are compared, and stored again, as a put of the same does it.
Result<bool> Services::restore_one(const um_destination& key, const ServiceEntry& entry,
                                   std::size_t& rows) {
  MESH_TRY(bool was_restored, services_.restore(key));
  const std::uint64_t before = writes();
  if (const int error = put_one(key, entry); error != 0)
    return errno_error(error, "write a service again");
  was_restored = was_restored || writes() != before;
  const auto choice_at = [&](const auto& map, const auto& own) -> Result<> {
    ++rows;
    const auto slot = map.entries().find(own);
    if (slot == map.entries().end()) return success();
    MESH_TRY(const bool was_torn, restore_choice(at(slot->second), rows));
    was_restored = was_restored || was_torn;
    return success();
  };
  MESH_TRY(choice_at(services_, key));
  if (!entry.of_clients) return was_restored;
  for (const auto& [client, columns] : *entry.of_clients) {
    const ClientKey own{client, key};
    MESH_TRY(const bool row, clients_.restore(own));
    was_restored = was_restored || row;
    MESH_TRY(choice_at(clients_, own));
  }
  return was_restored;
}

Result<std::size_t> Services::restore_some(std::size_t rows) {
  std::size_t restored = 0, seen = 0;
  for (std::size_t left = entries_.size(); left != 0 && seen < rows; --left) {
    auto at = looked_at_ ? entries_.upper_bound(*looked_at_) : entries_.begin();
    if (at == entries_.end()) at = entries_.begin();
    looked_at_ = at->first;
    MESH_TRY(const bool was_restored, restore_one(at->first, at->second, seen));
    restored += was_restored ? 1 : 0;
  }
  return restored;
}

void Services::sweep() {
  free_slots_.insert(free_slots_.end(), left_slots_.begin(), left_slots_.end());
  left_slots_.clear();
  for (const std::uint32_t number : std::exchange(unused_, {})) {
    const auto known = by_number_.find(number);
    if (known == by_number_.end()) continue;
    const auto choice = choices_.find(*known->second);
    delete_choice(number, choice->first);
    by_number_.erase(known);
    choices_.erase(choice);
  }
}

}  // namespace mesh::datapath
