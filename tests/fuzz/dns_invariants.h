// What must hold of any bytes that are taken for a DNS message.
#pragma once

#include <cstdlib>
#include <limits>
#include <vector>

#include "dns/cache.h"
#include "dns/message.h"

namespace mesh::dns {

inline void require(bool holds) {
  if (!holds) std::abort();
}

inline void check_as_query(Bytes bytes) {
  const auto query = parse_query(bytes);
  if (!query) return;
  const auto refusal = write_refusal(*query, Rcode::kNotImplemented);
  require(refusal.size() == kHeaderSize && id_of(refusal) == query->id);
  if (!query->is_standard) return;
  require(kHeaderSize + query->question_size <= bytes.size() && query->name.size() < 256);
  Answer answer{.zone = "cluster.local", .serial = 1, .negative_ttl = 5};
  for (int i = 0; i < 40; ++i) {
    answer.records.push_back({"", type::kA, 30, IpAddress::v4(10, 0, 0, 1)});
    answer.records.push_back({query->name, type::kCname, 30, query->name});
  }
  for (const std::size_t limit : {kPlainUdpSize, kMaxMessage}) {
    const auto written = write_answer(*query, bytes, answer, limit);
    require(written.size() <= limit);
    require(is_response(written, *query, bytes, query->id));
    require(read_records(written).has_value());
    require(limit == kPlainUdpSize || !is_truncated(written));
  }
  const auto asked = write_query(*query, query->name);
  const auto again = parse_query(asked);
  require(again && again->is_standard && again->is_cacheable && again->type == query->type);
  (void)cache_key({}, *query);
}

inline void check_as_response(Bytes bytes) {
  if (bytes.size() < kHeaderSize) return;
  const auto ttl = time_to_live(bytes);
  (void)read_records(bytes);
  std::vector<std::uint8_t> old(bytes.begin(), bytes.end());
  age(old, 7);
  const auto left = time_to_live(old);
  // Names that point into a TTL change with it: such a message may not be one any more.
  if (ttl && left) require(*left <= *ttl || *ttl < 7 || left == ttl);
  age(old, std::numeric_limits<std::uint32_t>::max());
  require(time_to_live(old).value_or(0) == 0);
  Cache cache(4, 4096);
  const auto now = Cache::Time{} + std::chrono::hours(1);
  cache.put("key", bytes, now);
  require(cache.size() == 0 || (ttl && *ttl > 0 && cache.bytes() <= 4096));
}

inline void check_message(Bytes bytes) {
  check_as_query(bytes);
  check_as_response(bytes);
}

}  // namespace mesh::dns
