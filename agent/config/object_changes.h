// What became of a list of objects: what is the same object still is passed over.
#pragma once

#include <vector>

#include "config/object.h"

namespace mesh::config {

// Calls see(before, now) for each object that came (before is null), went (now is null) or is
// another. Both lists are sorted by key; a key may be there several times. Costs a comparison of
// pointers for each that stayed.
template <class See>
void each_change(const std::vector<ObjectPtr>& before, const std::vector<ObjectPtr>& now, See see) {
  auto old = before.begin();
  auto at = now.begin();
  static const ObjectPtr kNone;
  while (old != before.end() || at != now.end()) {
    if (old != before.end() && at != now.end() && *old == *at) {
      ++old, ++at;
    } else if (at == now.end() || (old != before.end() && (*old)->key < (*at)->key)) {
      see(*old++, kNone);
    } else if (old == before.end() || (*at)->key < (*old)->key) {
      see(kNone, *at++);
    } else {
      see(*old++, *at++);
    }
  }
}

}  // namespace mesh::config
