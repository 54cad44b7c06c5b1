// SharedMap and SharedHashMap against std::map, by random changes of maps that share blocks.
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/shared_hash_map.h"
#include "base/shared_map.h"

namespace mesh {
namespace {

using Model = std::map<int, std::string>;
using Small = SharedMap<int, std::string, std::less<>, 4>;
struct Collide {  // three keys in four fall into few buckets
  std::size_t operator()(int key) const {
    return static_cast<std::size_t>(key % 4 ? key & 7 : key);
  }
};
using SmallHash = SharedHashMap<int, std::string, Collide, std::equal_to<>, 2>;
constexpr int kKeys = 60;

Model model_of(const Small& map) {
  Model model;
  int last = -1;
  for (const auto& [key, value] : map) {
    EXPECT_LT(last, key) << "not in order";
    last = key;
    model.emplace(key, value);
  }
  return model;
}
Model model_of(const SmallHash& map) {
  Model model;
  for (const auto& [key, value] : map) EXPECT_TRUE(model.emplace(key, value).second);
  return model;
}

// What each_difference() says, as a text for each key.
template <class Map>
std::map<int, std::string> differences(const Map& before, const Map& now) {
  std::map<int, std::string> said;
  each_difference(before, now, [&](const auto* old, const auto* at) {
    const int key = old ? old->first : at->first;
    EXPECT_TRUE(
        said.emplace(key, (old ? old->second : "none") + " " + (at ? at->second : "none")).second);
  });
  return said;
}
std::map<int, std::string> differences(const Model& before, const Model& now) {
  std::map<int, std::string> all;
  for (int key = 0; key < kKeys; ++key) {
    const auto old = before.find(key), at = now.find(key);
    const std::string was = old == before.end() ? "none" : old->second;
    const std::string is = at == now.end() ? "none" : at->second;
    if (was != is) all[key] = was + " " + is;
  }
  return all;
}

void expect_lookups(const Small& map, const Model& model) {
  for (int key = -1; key <= kKeys; ++key) {
    const auto found = map.find(key);
    ASSERT_EQ(found != map.end(), model.contains(key));
    ASSERT_EQ(map.contains(key), model.contains(key));
    if (found != map.end()) {
      ASSERT_EQ(found->second, model.at(key));
    }
    for (const bool above : {false, true}) {
      const auto at = above ? map.upper_bound(key) : map.lower_bound(key);
      const auto expected = above ? model.upper_bound(key) : model.lower_bound(key);
      ASSERT_EQ(at == map.end(), expected == model.end());
      if (at != map.end()) {
        ASSERT_EQ(at->first, expected->first);
      }
    }
  }
}
void expect_lookups(const SmallHash& map, const Model& model) {
  for (int key = 0; key <= kKeys; ++key) {
    ASSERT_EQ(map.contains(key), model.contains(key));
    if (model.contains(key)) {
      ASSERT_EQ(map.at(key), model.at(key));
    }
  }
}

template <class Map>
void put(Map& map, Model& model, int key, const std::string& value) {
  const auto [at, is_new] = map.insert_or_assign(key, value);
  ASSERT_EQ(is_new, model.insert_or_assign(key, value).second);
  ASSERT_EQ(at->first, key);
  ASSERT_EQ(at->second, value);
}
template <class Map>
void add(Map& map, Model& model, int key, const std::string& value) {
  const auto [at, is_new] = map.emplace(key, value);
  const auto expected = model.emplace(key, value);
  ASSERT_EQ(is_new, expected.second);
  ASSERT_EQ(at->first, key);
  ASSERT_EQ(at->second, expected.first->second);
}

void change(Small& map, Model& model, int key, Random& random) {
  const std::string value = std::to_string(random.below(3));
  switch (random.below(6)) {
    case 0:
      map[key] = value;
      model[key] = value;
      break;
    case 1:
      put(map, model, key, value);
      break;
    case 2:
      add(map, model, key, value);
      break;
    case 3: {
      const unsigned parts = 2 + random.below(3);
      const auto is_unwanted = [&](const auto& entry) {
        return entry.first > key && static_cast<unsigned>(entry.first) % parts == 0;
      };
      ASSERT_EQ(erase_if(map, is_unwanted), std::erase_if(model, is_unwanted));
      break;
    }
    default:
      ASSERT_EQ(map.erase(key), model.erase(key));
  }
}
void change(SmallHash& map, Model& model, int key, Random& random) {
  const std::string value = std::to_string(random.below(3));
  switch (random.below(4)) {
    case 0:
      put(map, model, key, value);
      break;
    case 1:
      add(map, model, key, value);
      break;
    default:
      ASSERT_EQ(map.erase(key), model.erase(key));
  }
}

// Some maps that are copied from one another all the time; each must be what its model is.
template <class Map>
void compare_with_model(std::uint64_t seed) {
  constexpr std::uint32_t kMaps = 3;
  Random random(seed);
  std::vector<Map> maps(kMaps);
  std::vector<Model> models(kMaps);
  for (int step = 0; step < 3000; ++step) {
    SCOPED_TRACE("seed " + std::to_string(seed) + " step " + std::to_string(step));
    const std::uint32_t one = random.below(kMaps), other = random.below(kMaps);
    if (random.below(8) == 0) {
      maps[one] = maps[other];
      models[one] = models[other];
    } else if (random.below(200) == 0) {
      maps[one] = Map();
      models[one].clear();
    } else {
      const std::uint32_t keys = random.below(2) == 0 ? kKeys : 12;
      ASSERT_NO_FATAL_FAILURE(
          change(maps[one], models[one], static_cast<int>(random.below(keys)), random));
    }
    for (std::uint32_t i = 0; i < kMaps; ++i) {
      ASSERT_EQ(maps[i].size(), models[i].size());
      ASSERT_EQ(maps[i].empty(), models[i].empty());
      ASSERT_EQ(model_of(maps[i]), models[i]);
    }
    ASSERT_NO_FATAL_FAILURE(expect_lookups(maps[one], models[one]));
    ASSERT_EQ(differences(maps[one], maps[other]), differences(models[one], models[other]));
    ASSERT_EQ(maps[one] == maps[other], models[one] == models[other]);
  }
}

TEST(SharedMap, IsWhatAnOrderedMapIsAndItsCopiesAreIndependent) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) compare_with_model<Small>(seed);
}

TEST(SharedHashMap, IsWhatAMapIsAndItsCopiesAreIndependent) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) compare_with_model<SmallHash>(seed);
}

// Counts how often it is compared and copied.
struct Counted {
  static inline int compared = 0, copied = 0;
  int value = 0;
  Counted() = default;
  explicit Counted(int v) : value(v) {}
  Counted(const Counted& other) : value(other.value) { ++copied; }
  Counted& operator=(const Counted& other) {
    value = other.value;
    ++copied;
    return *this;
  }
  Counted(Counted&&) = default;
  Counted& operator=(Counted&&) = default;
  ~Counted() = default;
  friend bool operator==(const Counted& a, const Counted& b) {
    ++compared;
    return a.value == b.value;
  }
};

template <class Map>
void change_one_of_many(int most) {
  Map map;
  for (int i = 0; i < 10'000; ++i) map.emplace(i, Counted(i));
  Counted::compared = Counted::copied = 0;
  Map changed = map;
  EXPECT_EQ(Counted::copied, 0);
  changed.insert_or_assign(5000, Counted(-1));
  changed.erase(7000);
  changed.emplace(20'000, Counted(1));
  EXPECT_LE(Counted::copied, 3 * most);
  int seen = 0;
  each_difference(map, changed, [&](const auto*, const auto*) { ++seen; });
  EXPECT_EQ(seen, 3);
  EXPECT_LE(Counted::compared, 3 * most);
}

TEST(SharedMap, CostsWhatChanged) { change_one_of_many<SharedMap<int, Counted>>(64); }
TEST(SharedHashMap, CostsWhatChanged) {
  change_one_of_many<SharedHashMap<int, Counted, std::hash<int>, std::equal_to<>, 64>>(64);
}

// Blocks that entries went from are joined: a map that was large is small again.
TEST(SharedMap, JoinsSmallBlocks) {
  Small map;
  for (int i = 0; i < 4000; ++i) map.emplace(i, "");
  for (int i = 0; i < 4000; ++i)
    if (i % 4 != 0) map.erase(i);
  ASSERT_EQ(map.size(), 1000U);
  int blocks = 0;
  const Small::value_type* last = nullptr;
  for (const auto& entry : map) {
    if (last == nullptr || &entry != last + 1) ++blocks;
    last = &entry;
  }
  EXPECT_LE(blocks, 700);
}

}  // namespace
}  // namespace mesh
