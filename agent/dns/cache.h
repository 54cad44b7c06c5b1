// Cache: answers of one workload's resolvers, for as long as their TTL says.
//
// It belongs to one workload, so that nobody learns or changes what another is told. Bounded in
// entries and bytes; the least recently used goes first. Time is an argument. One thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/address.h"
#include "dns/message.h"

namespace mesh::dns {

// Everything that an answer depends on; the letters of the name in lower case.
std::string cache_key(const SocketAddress& resolver, const Query& query);

class Cache {
 public:
  using Time = std::chrono::steady_clock::time_point;
  Cache(std::size_t most_entries, std::size_t most_bytes)
      : most_entries_(most_entries), most_bytes_(most_bytes) {}

  // The answer with its TTLs as they are now, and the number and question of somebody else (set_id,
  // echo_question); empty: none, or one of more than `limit` bytes.
  std::vector<std::uint8_t> find(std::string_view key, Time now, std::size_t limit = kMaxMessage);
  // Kept only where time_to_live() allows it.
  void put(std::string key, Bytes response, Time now);
  std::size_t size() const { return entries_.size(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::string key;
    std::vector<std::uint8_t> response;
    Time stored, until;
    std::size_t cost() const { return sizeof(Entry) + 2 * key.size() + response.size(); }
  };
  using Entries = std::list<Entry>;
  void erase(Entries::iterator entry);

  const std::size_t most_entries_, most_bytes_;
  std::size_t bytes_ = 0;
  Entries entries_;  // the last used is in front
  std::unordered_map<std::string_view, Entries::iterator> by_key_;
};

}  // namespace mesh::dns
