#include <boost/json.hpp>
#include <random>

#include "config/yaml.h"
#include "tests/unit/config/support.h"

namespace mesh::config {
namespace {

namespace json = boost::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::string_view kHead = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";

TEST(ParseObjects, ReadsSeveralDocumentsAndSkipsEmptyOnes) {
  auto objects = objects_of(R"(---
# only a comment
---
apiVersion: v1
kind: Service
metadata:
  name: reviews
  namespace: books
---
apiVersion: v1
kind: Namespace
metadata: {name: books}
---
)");
  ASSERT_EQ(objects.size(), 2u);
  EXPECT_EQ(objects[0]->key.to_string(), "Service books/reviews");
  EXPECT_EQ(objects[1]->key.to_string(), "Namespace books");
}

TEST(ParseObjects, PutsObjectsWithoutNamespaceInDefault) {
  EXPECT_EQ(objects_of(kHead).at(0)->key.ns, "default");
}

TEST(ParseObjects, KnowsTheLineOfEachField) {
  auto object = objects_of(R"(
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: a
  labels:
    app.kubernetes.io/name: x
spec:
  hosts: [a,
    b]
  http:
  - route:
    - destination:
        host: a
      weight: 10
)")
                    .at(0);
  EXPECT_EQ(object->lines.at("spec.http[0].route[0].weight"), 15);
  EXPECT_EQ(object->lines.at("spec.http[0].route[0].destination.host"), 14);
  EXPECT_EQ(object->lines.at("spec.http[0]"), 12);
  EXPECT_EQ(object->lines.at("spec.hosts[1]"), 10);
  EXPECT_EQ(object->lines.at("metadata.labels[\"app.kubernetes.io/name\"]"), 7);
}

TEST(ParseObjects, KnowsTheLinesOfJson) {
  auto object = objects_of(
                    "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Service\",\n"
                    "\t\"metadata\": {\"name\": \"a\",\n\"x\": \"\\ud83d\\ude00\"}}\n")
                    .at(0);
  EXPECT_EQ(object->lines.at("kind"), 3);
  EXPECT_EQ(object->lines.at("metadata.x"), 5);
  EXPECT_EQ(object->tree.at("metadata").at("x").as_string(), "\xf0\x9f\x98\x80");
}

TEST(ParseObjects, ReadsJsonDocumentsOneAfterTheOther) {
  std::string one = R"({"apiVersion":"v1","kind":"Service","metadata":{"name":"a"}})";
  EXPECT_EQ(objects_of(one + one + "\n" + one).size(), 3u);
}

TEST(ParseObjects, FlattensLists) {
  auto objects = objects_of(R"(apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a}
- apiVersion: v1
  kind: Service
  metadata:
    name: b
)");
  ASSERT_EQ(objects.size(), 2u);
  EXPECT_EQ(objects[1]->key.name, "b");
  EXPECT_EQ(objects[1]->lines.at("metadata.name"), 10);
}

TEST(ParseObjects, ReadsScalarsAsKubectlDoes) {
  auto tree = objects_of(std::string(kHead) + R"(v:
- 80
- "80"
- '80'
- yes
- "yes"
- off
- ~
-
- 0x1f
- 0755
- 1_000
- 1.5
- -3
- 1e3
- 2024-01-02T03:04:05Z
- 1.2.3
- !!str 5
- 18446744073709551615
- -
- .
- 99999999999999999999999
)")
                  .at(0)
                  ->tree;
  EXPECT_EQ(json::serialize(tree.at("v")),
            R"([80,"80","80",true,"yes",false,null,null,31,493,1000,1.5E0,-3,1E3,)"
            R"("2024-01-02T03:04:05Z","1.2.3","5",18446744073709551615,[null],".",1E23])");
}

TEST(ParseObjects, KeepsBlockScalars) {
  auto tree = objects_of(std::string(kHead) + "v: |\n  a\n  b\nw: >-\n  a\n  b\n").at(0)->tree;
  EXPECT_EQ(tree.at("v").as_string(), "a\nb\n");
  EXPECT_EQ(tree.at("w").as_string(), "a b");
}

TEST(ParseObjects, RefusesWithThePlace) {
  struct {
    std::string text, message;
  } cases[] = {
      {"a: 1\na: 2\n", "t.yaml:2: duplicate key 'a'"},
      {"{\"a\": 1,\n\"a\": 2}", "t.yaml:2: duplicate key 'a'"},
      {"a: &x 1\nb: *x\n", "t.yaml:2: aliases (*name) are not supported; write the value out"},
      {"a: {<<: {b: 1}}\n", "t.yaml:1: merge keys (<<) are not supported; write the values out"},
      {"a: !!binary aGk=\n", "t.yaml:1: the tag 'tag:yaml.org,2002:binary' is not supported here"},
      {"? [a]\n: b\n", "t.yaml:1: a key must be a scalar"},
      {"a: b: c\n", "t.yaml:1: illegal map value"},
      {"a: [1\n", "t.yaml:2: end of sequence flow not found"},
      {"a: \xff\n", "t.yaml:1: not UTF-8 text, or a control character"},
      {std::string("a: b\nc: \0x\n", 11), "t.yaml:2: not UTF-8 text, or a control character"},
      {"just text\n", "t.yaml:1: not an object; apiVersion, kind and metadata are needed"},
      {"kind: Service\n", "t.yaml:1: apiVersion: is required"},
      {"\napiVersion: v1\n", "t.yaml:2: kind: is required"},
      {"apiVersion: v1\nkind: Service\n", "t.yaml:1: metadata: is required"},
      {"apiVersion: v1\nkind: Service\nmetadata: {}\n", "t.yaml:3: metadata.name: is required"},
      {"apiVersion: v1\nkind: Service\nmetadata: {name: 5}\n",
       "t.yaml:3: metadata.name: must be a string"},
      {"apiVersion: v1\nkind: Service\nmetadata: {name: ../../etc}\n",
       "t.yaml:3: metadata.name: must be lower-case letters, digits, '-' and '.', at most 253"},
      {"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b.c}\n",
       "t.yaml:3: metadata.namespace: must be lower-case letters, digits and '-', at most 63"},
      {"apiVersion: v1\nkind: ../x\nmetadata: {name: a}\n",
       "t.yaml:2: kind: not the name of a kind"},
      {"apiVersion: v1\nkind: List\nitems:\n- 5\n",
       "t.yaml:4: an item of a List must be an object"},
  };
  for (const auto& c : cases) EXPECT_EQ(error_of(c.text), c.message) << c.text;
}

TEST(ParseObjects, RefusesDeepAndLargeInput) {
  EXPECT_THAT(error_of(std::string(kHead) + "v: " + std::string(100, '[') + std::string(100, ']')),
              HasSubstr("t.yaml:4: nested too deeply"));
  EXPECT_THAT(error_of("{\"a\":" + std::string(5000, '[')), HasSubstr("nested too deeply"));
  EXPECT_THAT(error_of(std::string(kHead) + "v: " + std::string(2u << 20, 'x')),
              HasSubstr("an object larger than 1 MiB"));
  std::string many = "[";
  for (int i = 0; i < 1'000'001; ++i) many += "1,";
  EXPECT_EQ(error_of(many), "t.yaml:1: more than a million values in one text");
  EXPECT_EQ(error_of(std::string((16u << 20) + 1, ' ')), "t.yaml:1: more than 16 MiB of text");
}

TEST(ParseObjects, RefusesTheBillionLaughs) {
  EXPECT_THAT(error_of("a: &a [x, x]\nb: &b [*a, *a]\n"), HasSubstr("aliases"));
}

TEST(ParseText, GoesOnBehindDocumentsThatAreNoObjects) {
  Parsed parsed = parse_text(
      "---\n# nothing\n- a list\n---\n" + std::string(kHead) +
          "---\napiVersion: v1\nkind: Service\nmetadata:\n  labels: {}\n  name: Not_a_name\n"
          "---\n\njust text\n---\nkind: List\nitems:\n- 7\n- {apiVersion: v1, kind: "
          "Service}\n---\n" +
          std::string(kHead),
      "t");
  EXPECT_EQ(parsed.objects.size(), 2u);
  EXPECT_THAT(
      parsed.errors,
      ElementsAre(
          "t:3: not an object; apiVersion, kind and metadata are needed",
          "t:13: metadata.name: must be lower-case letters, digits, '-' and '.', at most 253",
          "t:16: not an object; apiVersion, kind and metadata are needed",
          "t:20: an item of a List must be an object", "t:21: metadata: is required"));
}

TEST(ParseText, KeepsWhatStandsBeforeASyntaxError) {
  for (std::string broken : {"a: [", "a: 1\na: 2\n", "a: *b\n"}) {
    Parsed parsed = parse_text(std::string(kHead) + "---\n- x\n---\n" + broken, "t");
    EXPECT_EQ(parsed.objects.size(), 1u) << broken;
    ASSERT_EQ(parsed.errors.size(), 2u) << broken;
    EXPECT_THAT(parsed.errors[0], HasSubstr("t:5: not an object"));
  }
}

TEST(ParseObjects, FailsAsAWholeWithTheFirstErrorAndTheirNumber) {
  EXPECT_EQ(error_of(std::string(kHead) + "---\n- x\n---\n- y\n"),
            "t.yaml:5: not an object; apiVersion, kind and metadata are needed (and 1 more)");
}

TEST(ToYaml, WritesWhatPeopleExpect) {
  auto value = json::parse(R"({"apiVersion":"v1","spec":{"ports":[{"port":80,"name":"http"},
    {"port":81}],"empty":{},"none":[],"list":["a",["b"]],"port":"80","yes":"yes","text":"a: b",
    "lines":"a\nb","share":0.5,"whole":50.0,"null":null,"key with space":true}})");
  EXPECT_EQ(to_yaml(value), R"(apiVersion: v1
spec:
  ports:
  - port: 80
    name: http
  - port: 81
  empty: {}
  none: []
  list:
  - a
  - - b
  port: "80"
  "yes": "yes"
  text: "a: b"
  lines: "a\nb"
  share: 0.5
  whole: 50.0
  "null": null
  key with space: true
)");
}

class RandomTree {
 public:
  explicit RandomTree(unsigned seed) : random_(seed) {}
  json::value value(int depth) {
    switch (pick(depth > 0 ? 8 : 6)) {
      case 0:
        return nullptr;
      case 1:
        return pick(2) == 0;
      case 2:
        return static_cast<std::int64_t>(random_()) - (1ll << 31);
      case 3:
        return static_cast<double>(random_()) / 1000.0;
      case 4:
      case 5:
        return json::string(text());
      case 6: {
        json::array array;
        for (unsigned i = pick(4); i > 0; --i) array.push_back(value(depth - 1));
        return array;
      }
      default: {
        json::object object;
        for (unsigned i = pick(4); i > 0; --i) object.insert_or_assign(text(), value(depth - 1));
        return object;
      }
    }
  }

 private:
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_()) % n; }
  std::string text() {
    static constexpr std::string_view kPieces[] = {
        "a", " ", ":", "#", "-", "\n", "\t", "\"",       "'",    "yes", "0x1", "1",  ".", "~", "{}",
        "[", ",", "&", "*", "!", "%",  "@",  "\xc3\xa9", "null", "\\",  "---", "<<", "=", "?"};
    std::string text;
    for (unsigned i = pick(5); i > 0; --i) text += kPieces[pick(std::size(kPieces))];
    return text;
  }
  std::mt19937 random_;
};

TEST(ToYaml, ReadsBackAsTheSameTree) {
  for (unsigned seed = 0; seed < 2000; ++seed) {
    json::object tree = {{"apiVersion", "v1"},
                         {"kind", "Service"},
                         {"metadata", {{"name", "a"}}},
                         {"v", RandomTree(seed).value(4)}};
    std::string text = to_yaml(tree);
    auto parsed = parse_objects(text, "t");
    ASSERT_TRUE(parsed.has_value()) << parsed.error().message << "\n" << text;
    ASSERT_EQ(json::serialize(parsed.value().at(0).tree), json::serialize(tree)) << text;
  }
}

}  // namespace
}  // namespace mesh::config
