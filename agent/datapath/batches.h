// All entries of a hash that programs write to meanwhile. In batches: going from key to key begins
// anew where one has gone, and from these they go all the time.
#pragma once

#include <bpf/bpf.h>

#include <cerrno>
#include <string>
#include <vector>

#include "base/result.h"

namespace mesh::datapath {

template <class Key, class Value, class See>
Result<> for_each_entry(int map, const char* name, See see) {
  constexpr std::uint32_t kBatch = 4096;
  std::vector<Key> keys(kBatch);
  std::vector<Value> values(kBatch);
  std::uint32_t at = 0;
  bool is_first = true;
  for (;;) {
    std::uint32_t count = kBatch;
    LIBBPF_OPTS(bpf_map_batch_opts, options);
    const int failed = ::bpf_map_lookup_batch(map, is_first ? nullptr : &at, &at, keys.data(),
                                              values.data(), &count, &options);
    if (failed != 0 && errno != ENOENT) return errno_error(errno, std::string("read map ") + name);
    for (std::uint32_t i = 0; i < count; ++i) see(keys[i], values[i]);
    if (failed != 0) return success();
    is_first = false;
  }
}

}  // namespace mesh::datapath
