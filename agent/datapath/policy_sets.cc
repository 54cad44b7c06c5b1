#include "datapath/policy_sets.h"

#include <bpf/bpf.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>
#include <vector>

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

bool is_same_set(const PolicySets::VerdictsPtr& a, const PolicySets::VerdictsPtr& b) {
  return a == b || is_same(*a, *b);
}

Result<> PolicySets::read() {
  entries_.clear();
  um_set_key key{}, next{};
  for (const void* at = nullptr; ::bpf_map_get_next_key(fd_, at, &next) == 0; at = &key) {
    key = next;
    std::uint32_t map_id = 0;
    if (key.generation != generation_ || ::bpf_map_lookup_elem(fd_, &key, &map_id) != 0) continue;
    MESH_TRY(auto verdicts, read_set(map_id));
    entries_.insert_or_assign(key.set, std::make_shared<const Verdicts>(std::move(verdicts)));
  }
  if (errno != ENOENT) return errno_error(errno, "read map um_sets");
  return success();
}

Result<UniqueFd> PolicySets::map_for(SetId set, const VerdictsPtr& wanted,
                                     const PolicySets& other) {
  const auto known = other.entries_.find(set);
  if (known != other.entries_.end() && is_same_set(known->second, wanted)) {
    const um_set_key key = other.key_of(set);
    std::uint32_t map_id = 0;
    if (::bpf_map_lookup_elem(fd_, &key, &map_id) == 0)
      if (UniqueFd fd(::bpf_map_get_fd_by_id(map_id)); fd) return fd;
  }
  writes_ += wanted->size();
  return make_set(*wanted);
}

// All that changed in one call: from kernel 6.8 it waits only once for programs that still read
// the old ones.
std::map<SetId, int> PolicySets::put(const Entries& wanted, const PolicySets& other) {
  std::map<SetId, int> failed;
  std::vector<um_set_key> keys;
  std::vector<int> fds;
  std::vector<UniqueFd> made;
  const auto fail = [&](SetId set, int error) {
    failed.emplace(set, error);
    const um_set_key key = key_of(set);
    if (entries_.erase(set) != 0) ::bpf_map_delete_elem(fd_, &key);
  };
  const auto write = [&] {
    auto count = static_cast<std::uint32_t>(keys.size());
    LIBBPF_OPTS(bpf_map_batch_opts, options);
    if (count == 0) return;
    writes_ += count;
    const int error =
        ::bpf_map_update_batch(fd_, keys.data(), fds.data(), &count, &options) == 0 ? 0 : errno;
    // Where the kernel fails early, `count` is what it was.
    if (error != 0 && count == keys.size()) count = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const SetId set = keys[i].set;
      if (error == 0 || i < count || ::bpf_map_update_elem(fd_, &keys[i], &fds[i], BPF_ANY) == 0)
        entries_.insert_or_assign(set, wanted.at(set));
      else
        fail(set, errno);
    }
    keys.clear();
    fds.clear();
    made.clear();
  };
  constexpr std::size_t kBatch = 256;  // descriptors that are open at once
  std::size_t size = entries_.size();
  for (const auto* entry : missing_of(entries_, wanted, is_same_set)) {
    const auto& [set, verdicts] = *entry;
    if (!entries_.contains(set) && ++size > limit_) {
      fail(set, E2BIG);
      continue;
    }
    auto map = map_for(set, verdicts, other);
    if (!map) {
      fail(set, errno == 0 ? ENOMEM : errno);
      continue;
    }
    keys.push_back(key_of(set));
    fds.push_back(map.value().get());
    made.push_back(std::move(map).value());
    if (keys.size() == kBatch) write();
  }
  write();
  if (failed.empty() && entries_.size() == wanted.size()) entries_ = wanted;
  return failed;
}

Result<> PolicySets::keep_only(const Entries& wanted) {
  std::vector<um_set_key> gone;
  for (const SetId set : keys_but(entries_, wanted)) gone.push_back(key_of(set));
  if (gone.empty()) return success();
  writes_ += gone.size();
  auto count = static_cast<std::uint32_t>(gone.size());
  LIBBPF_OPTS(bpf_map_batch_opts, options);
  if (::bpf_map_delete_batch(fd_, gone.data(), &count, &options) != 0) {
    for (const um_set_key& key : gone)  // some may be gone
      if (::bpf_map_delete_elem(fd_, &key) != 0 && errno != ENOENT)
        return errno_error(errno, "delete from map um_sets");
  }
  for (const um_set_key& key : gone) entries_.erase(key.set);
  return success();
}

Result<bool> PolicySets::restore(SetId set, const PolicySets& other) {
  std::uint32_t inner = 0;
  const um_set_key key = key_of(set);
  const auto known = entries_.find(set);
  if (known == entries_.end() || ::bpf_map_lookup_elem(fd_, &key, &inner) == 0) return false;
  const Entries lost = {*known};
  entries_.erase(set);
  if (const auto failed = put(lost, other); !failed.empty())
    return errno_error(failed.begin()->second, "write again to map um_sets");
  return true;
}

Result<> replace_a_set(int um_sets) {
  const um_set_key nobodys{};
  MESH_TRY(auto set, make_set({}));
  const int fd = set.get();
  if (::bpf_map_update_elem(um_sets, &nobodys, &fd, BPF_ANY) != 0 ||
      ::bpf_map_delete_elem(um_sets, &nobodys) != 0)
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
