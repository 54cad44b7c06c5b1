#include "datapath/policy_sets.h"

#include <bpf/bpf.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <set>
#include <vector>

#include "base/unique_fd.h"
#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

um_verdict_key class_key(ClassId peer, Transport transport) {
  um_verdict_key key{};
  key.peer_class = network_order(peer);
  key.protocol = static_cast<std::uint8_t>(transport);
  key.bits = transport == Transport::kAny ? UM_ANY_PROTOCOL : UM_ANY_PORT;
  return key;
}

Result<UniqueFd> make_set(const PolicySets::Verdicts& verdicts) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_NO_PREALLOC);
  const auto size = static_cast<std::uint32_t>(std::max<std::size_t>(verdicts.size(), 1));
  UniqueFd fd(::bpf_map_create(BPF_MAP_TYPE_LPM_TRIE, "um_set", sizeof(um_verdict_key),
                               sizeof(um_verdict), size, &options));
  if (!fd) return errno_error(errno, "make the map of a policy set");
  for (const auto& [key, verdict] : verdicts)
    if (::bpf_map_update_elem(fd.get(), &key, &verdict, BPF_ANY) != 0)
      return errno_error(errno, "write the map of a policy set");
  return fd;
}

Result<PolicySets::Verdicts> read_set(std::uint32_t map_id) {
  UniqueFd fd(::bpf_map_get_fd_by_id(map_id));
  if (!fd) return errno_error(errno, "open the map of a policy set");
  PolicySets::Verdicts verdicts;
  um_verdict_key key{}, next{};
  um_verdict verdict{};
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd.get(), at, &next) == 0; at = &key) {
    key = next;
    if (::bpf_map_lookup_elem(fd.get(), &key, &verdict) == 0) verdicts.emplace(key, verdict);
  }
  if (errno != ENOENT) return errno_error(errno, "read the map of a policy set");
  return verdicts;
}

}  // namespace

Result<> PolicySets::read() {
  entries_.clear();
  SetId set = 0, next = 0;
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd_, at, &next) == 0; at = &set) {
    set = next;
    std::uint32_t map_id = 0;
    if (::bpf_map_lookup_elem(fd_, &set, &map_id) != 0) continue;
    MESH_TRY(entries_[set], read_set(map_id));
  }
  if (errno != ENOENT) return errno_error(errno, "read map um_sets");
  return success();
}

PolicySets::Entries PolicySets::with_old_classes(const Entries& wanted) const {
  Entries both = wanted;
  for (auto& [set, verdicts] : both) {
    const auto known = entries_.find(set);
    if (known == entries_.end()) continue;
    std::set<std::uint32_t> named = {0};
    for (const auto& [key, verdict] : verdicts) named.insert(key.peer_class);
    for (const auto& entry : known->second)
      if (!named.contains(entry.first.peer_class)) verdicts.insert(entry);
  }
  return both;
}

// All that changed in one call: from kernel 6.8 it waits only once for programs that still read
// the old ones.
std::map<SetId, int> PolicySets::put(const Entries& wanted) {
  std::map<SetId, int> failed;
  std::vector<SetId> numbers;
  std::vector<int> fds;
  std::vector<UniqueFd> made;
  const auto fail = [&](SetId set, int error) {
    failed.emplace(set, error);
    if (entries_.erase(set) != 0) ::bpf_map_delete_elem(fd_, &set);
  };
  const auto write = [&] {
    auto count = static_cast<std::uint32_t>(numbers.size());
    LIBBPF_OPTS(bpf_map_batch_opts, options);
    if (count == 0) return;
    changed_ = true;
    const int error =
        ::bpf_map_update_batch(fd_, numbers.data(), fds.data(), &count, &options) == 0 ? 0 : errno;
    // Where the kernel fails early, `count` is what it was.
    if (error != 0 && count == numbers.size()) count = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      if (error == 0 || i < count)
        entries_[numbers[i]] = wanted.at(numbers[i]);
      else if (::bpf_map_update_elem(fd_, &numbers[i], &fds[i], BPF_ANY) == 0)
        entries_[numbers[i]] = wanted.at(numbers[i]);
      else
        fail(numbers[i], errno);
    }
    numbers.clear();
    fds.clear();
    made.clear();
  };
  constexpr std::size_t kBatch = 256;  // descriptors that are open at once
  for (const auto& [set, verdicts] : wanted) {
    const auto known = entries_.find(set);
    if (known != entries_.end() && is_same(known->second, verdicts)) continue;
    auto map = make_set(verdicts);
    if (!map) {
      changed_ = true;
      fail(set, errno == 0 ? ENOMEM : errno);
      continue;
    }
    numbers.push_back(set);
    fds.push_back(map.value().get());
    made.push_back(std::move(map).value());
    if (numbers.size() == kBatch) write();
  }
  write();
  return failed;
}

Result<> PolicySets::keep_only(const Entries& wanted) {
  std::vector<SetId> gone;
  for (const auto& [set, verdicts] : entries_)
    if (!wanted.contains(set)) gone.push_back(set);
  if (gone.empty()) return success();
  changed_ = true;
  auto count = static_cast<std::uint32_t>(gone.size());
  LIBBPF_OPTS(bpf_map_batch_opts, options);
  if (::bpf_map_delete_batch(fd_, gone.data(), &count, &options) != 0) {
    for (const SetId set : gone)  // some may be gone
      if (::bpf_map_delete_elem(fd_, &set) != 0 && errno != ENOENT)
        return errno_error(errno, "delete from map um_sets");
  }
  for (const SetId set : gone) entries_.erase(set);
  return success();
}

Result<> PolicySets::wait_for_programs() {
  const SetId nobodys = 0;
  MESH_TRY(auto set, make_set({}));
  const int fd = set.get();
  if (::bpf_map_update_elem(fd_, &nobodys, &fd, BPF_ANY) != 0 ||
      ::bpf_map_delete_elem(fd_, &nobodys) != 0)
    return errno_error(errno, "wait for the kernel's programs");
  return success();
}

PolicySets::Verdicts kernel_verdicts(const PolicySet& set) {
  PolicySets::Verdicts verdicts;
  for (const auto& [key, entry] : set) {
    um_verdict_key prefix = class_key(key.peer, key.transport);
    const um_verdict verdict{entry.policy, entry.allowed ? 1U : 0U, entry.audit};
    if (key.first == 0 && key.last == 65535) {
      verdicts[prefix] = verdict;
      continue;
    }
    // The largest aligned block of ports that begins at `port` and ends within the range.
    for (std::uint32_t port = key.first; port <= key.last;) {
      int size_bits = port == 0 ? 15 : std::min(std::countr_zero(port), 15);
      while (port + (1U << size_bits) - 1 > key.last) --size_bits;
      prefix.bits = static_cast<std::uint32_t>(UM_ONE_PORT - size_bits);
      prefix.port = network_order(static_cast<std::uint16_t>(port));
      verdicts[prefix] = verdict;
      port += 1U << size_bits;
    }
  }
  return verdicts;
}

PolicySet user_verdicts(const PolicySets::Verdicts& verdicts) {
  PolicySet set;
  for (const auto& [key, verdict] : verdicts) {
    VerdictKey out{network_order(key.peer_class), static_cast<Transport>(key.protocol), 0, 65535};
    if (key.bits > UM_ANY_PORT) {
      out.first = network_order(key.port);
      out.last = static_cast<std::uint16_t>(out.first + (1U << (UM_ONE_PORT - key.bits)) - 1);
    }
    set[out] = {verdict.allowed != 0, verdict.policy, verdict.audit};
  }
  return set;
}

const VerdictEntry* find_verdict(const PolicySet& set, ClassId peer, Transport transport,
                                 std::uint16_t port) {
  const VerdictEntry* best = nullptr;
  int best_width = 0;
  const auto width = [](const VerdictKey& key) {
    return key.transport == Transport::kAny ? 65537 : key.last - key.first;
  };
  for (auto at = set.lower_bound({peer, Transport::kAny, 0, 0});
       at != set.end() && at->first.peer == peer; ++at) {
    const VerdictKey& key = at->first;
    const bool covers = (key.transport == Transport::kAny || key.transport == transport) &&
                        key.first <= port && port <= key.last;
    if (!covers || (best && width(key) >= best_width)) continue;
    best = &at->second;
    best_width = width(key);
  }
  return best || peer == 0 ? best : find_verdict(set, 0, transport, port);
}

}  // namespace mesh::datapath
