#include "dns/cache.h"

namespace mesh::dns {

std::string cache_key(const SocketAddress& resolver, const Query& query) {
  const auto& ip = resolver.ip.bytes();
  std::string key(ip.begin(), ip.end());
  // RD, AD and CD of the header; EDNS and DO.
  const auto depends = static_cast<std::uint16_t>(
      (query.flags & 0x0130) | (query.has_edns ? 1 : 0) | (query.wants_dnssec ? 2 : 0));
  for (const std::uint16_t value : {resolver.port, query.type, query.klass, depends}) {
    key += static_cast<char>(value >> 8);
    key += static_cast<char>(value & 0xff);
  }
  return key + query.name;
}

std::vector<std::uint8_t> Cache::find(std::string_view key, Time now, std::size_t limit) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return {};
  const Entries::iterator entry = found->second;
  if (now >= entry->until) {
    erase(entry);
    return {};
  }
  if (entry->response.size() > limit) return {};
  entries_.splice(entries_.begin(), entries_, entry);
  std::vector<std::uint8_t> response = entry->response;
  const auto old = std::chrono::duration_cast<std::chrono::seconds>(now - entry->stored);
  age(response, static_cast<std::uint32_t>(old.count()));
  return response;
}

void Cache::put(std::string key, Bytes response, Time now) {
  const auto ttl = time_to_live(response);
  if (!ttl || *ttl == 0) return;
  if (const auto found = by_key_.find(key); found != by_key_.end()) erase(found->second);
  entries_.push_front(
      {std::move(key), {response.begin(), response.end()}, now, now + std::chrono::seconds(*ttl)});
  by_key_.emplace(entries_.front().key, entries_.begin());
  bytes_ += entries_.front().cost();
  while (!entries_.empty() && (entries_.size() > most_entries_ || bytes_ > most_bytes_))
    erase(std::prev(entries_.end()));
}

void Cache::erase(Entries::iterator entry) {
  bytes_ -= entry->cost();
  by_key_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace mesh::dns
