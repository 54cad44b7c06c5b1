#include "control/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <filesystem>
#include <random>
#include <string>

#include "control/numbers.h"
#include "tests/support/memory_files.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::Object;
using config::ObjectKey;
using test::MemoryFiles;

const std::string kReviews = "/s/objects/Service/default.reviews.yaml";
const ObjectKey kKey{"Service", "default", "reviews"};

Object service(int port = 9080, const std::string& name = "reviews") {
  return config::make_object(
             {{"apiVersion", "v1"},
              {"kind", "Service"},
              {"metadata", {{"name", name}}},
              {"spec", {{"ports", json::array{{{"name", "http"}, {"port", port}}}}}}})
      .value();
}

std::string yaml(const std::string& name, int port = 9080) {
  return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name +
         "}\nspec:\n  ports: [{name: http, port: " + std::to_string(port) + "}]\n";
}

std::string denial(const std::string& name) {
  return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name +
         "}\nspec: {action: DENY, rules: [{}]}\n";
}

std::string field(const Object& object, const char* name) {
  const json::value& value = object.tree.at("metadata").at(name);
  return value.is_string() ? std::string(value.as_string()) : json::serialize(value);
}

int port_of(const config::ObjectPtr& object) {
  return object ? object->tree.at("spec").at("ports").at(0).at("port").to_number<int>() : 0;
}

struct Fixture {
  MemoryFiles& files;
  std::string now = "2026-01-01T00:00:00Z";
  Store store{files, "/s", Random(7), [this] { return now; }};
};

void put_and_accept(Store& store, const Object& object) {
  ASSERT_TRUE(store.put(store.prepare(object)));
  store.rescan();
  ASSERT_TRUE(store.accept(store.find(object.key)));
}

TEST(Store, KeepsAnObjectOverARestart) {
  MemoryFiles files;
  {
    Fixture before{files};
    ASSERT_TRUE(before.store.open());
    put_and_accept(before.store, service());
  }
  Fixture after{files};
  ASSERT_TRUE(after.store.open());
  ASSERT_TRUE(after.store.find(kKey));
  EXPECT_EQ(port_of(after.store.find(kKey)), 9080);
  EXPECT_TRUE(after.store.problems().empty());
}

TEST(Store, SetsUidAndTimeOnceAndCountsGenerations) {
  MemoryFiles files;
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  put_and_accept(one.store, service());
  const Object first = *one.store.find(kKey);
  EXPECT_THAT(
      field(first, "uid"),
      testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-.{12}"));
  EXPECT_EQ(field(first, "creationTimestamp"), one.now);
  EXPECT_EQ(field(first, "generation"), "1");
  one.now = "2026-02-02T00:00:00Z";
  put_and_accept(one.store, service());
  EXPECT_EQ(field(*one.store.find(kKey), "generation"), "1") << "nothing changed";
  put_and_accept(one.store, service(9081));
  EXPECT_EQ(field(*one.store.find(kKey), "generation"), "2");
  EXPECT_EQ(field(*one.store.find(kKey), "uid"), field(first, "uid"));
  EXPECT_EQ(field(*one.store.find(kKey), "creationTimestamp"), "2026-01-01T00:00:00Z");
}

TEST(Files, WhatIsInANewDirectorySurvivesACrash) {
  MemoryFiles files;
  files.fail_at = 3;  // whoever tried before was stopped after it had made directories
  EXPECT_FALSE(replace_file(files, "/a/b/c/file", "text"));
  files.fail_at = 0;
  ASSERT_TRUE(replace_file(files, "/a/b/c/file", "text"));
  files.crash();
  EXPECT_EQ(files.texts["/a/b/c/file"], "text");
}

TEST(Files, DirectoriesOfTheMachineAreMadeAtAnyDepth) {
  std::string root = testing::TempDir() + "files-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  auto files = posix_files();
  EXPECT_TRUE(make_directories(*files, root + "/a/b/c"));
  EXPECT_TRUE(make_directories(*files, root + "/a/b/c"));
  EXPECT_TRUE(std::filesystem::is_directory(root + "/a/b/c"));
  ASSERT_TRUE(files->write(root + "/file", ""));
  EXPECT_FALSE(make_directories(*files, root + "/file"));
  std::filesystem::remove_all(root);
}

// Of 253 characters, the longest that a name may have.
TEST(Store, NamesOfAnyLengthHaveFilesOfTheirOwn) {
  auto files = posix_files();
  std::string root = testing::TempDir() + "store-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  Store store(*files, root, Random(7), [] { return "2026-01-01T00:00:00Z"; });
  ASSERT_TRUE(store.open());
  std::vector<ObjectKey> keys;
  for (const char* end : {"a", "b"}) {
    config::Object object = service(9080);
    object.key.ns = std::string(63, 'n');
    object.key.name = std::string(252, 'x') + end;
    object.tree["metadata"].as_object()["name"] = object.key.name;
    object.tree["metadata"].as_object()["namespace"] = object.key.ns;
    const auto stored = store.put(store.prepare(object));
    ASSERT_TRUE(stored) << stored.error().message;
    keys.push_back(object.key);
  }
  store.rescan();
  for (const ObjectKey& key : keys) {
    const auto object = store.find(key);
    ASSERT_TRUE(object);
    EXPECT_FALSE(store.is_foreign(key));
    EXPECT_TRUE(store.accept(object));
  }
  ASSERT_TRUE(store.remove(keys[0]));
  store.rescan();
  EXPECT_FALSE(store.find(keys[0]));
  EXPECT_TRUE(store.find(keys[1]));
  std::filesystem::remove_all(root);
}

TEST(Store, ACrashAtAnyStepOfAWriteLeavesTheOldTextOrTheNew) {
  for (int step = 1;; ++step) {
    MemoryFiles files;
    Fixture one{files};
    ASSERT_TRUE(one.store.open());
    put_and_accept(one.store, service(9080));
    files.fail_at = step;
    const bool done = one.store.put(one.store.prepare(service(9081))).has_value();
    files.fail_at = 0;
    files.crash();
    Fixture after{files};
    ASSERT_TRUE(after.store.open());
    EXPECT_TRUE(after.store.problems().empty()) << step;
    EXPECT_EQ(port_of(after.store.find(kKey)), done ? 9081 : 9080) << step;
    if (done) break;
    ASSERT_LT(step, 20);
  }
}

TEST(Store, AFailedWriteIsToldAndLeavesNoRubbish) {
  for (int step = 1; step <= 4; ++step) {
    MemoryFiles files;
    Fixture one{files};
    ASSERT_TRUE(one.store.open());
    files.fail_at = step;
    const auto written = one.store.put(one.store.prepare(service()));
    ASSERT_FALSE(written) << step;
    EXPECT_THAT(written.error().message, testing::HasSubstr("no space left"));
    for (const auto& [path, text] : files.texts)
      EXPECT_THAT(path, testing::Not(testing::HasSubstr(".tmp"))) << step;
  }
}

TEST(Store, AFileThatCannotBeReadLeavesItsLastAcceptedObjects) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", yaml("details") + "---\n" + yaml("ratings"));
  {
    Fixture one{files};
    ASSERT_TRUE(one.store.open());
    for (const auto& object : one.store.objects()) ASSERT_TRUE(one.store.accept(object));
    files.set("/s/objects/mine.yaml", "kind: [");
    EXPECT_TRUE(one.store.rescan());
    EXPECT_EQ(one.store.objects().size(), 2U);
    ASSERT_EQ(one.store.problems().size(), 1U);
    EXPECT_THAT(one.store.problems()[0].to_string(), testing::HasSubstr("/s/objects/mine.yaml"));
    EXPECT_THAT(one.store.problems()[0].to_string(), testing::HasSubstr("Service default/details"));
  }
  Fixture after{files};
  ASSERT_TRUE(after.store.open());
  EXPECT_EQ(after.store.objects().size(), 2U) << "also after a restart";
  files.set("/s/objects/mine.yaml", yaml("details", 9081));
  EXPECT_TRUE(after.store.rescan());
  EXPECT_EQ(after.store.objects().size(), 1U);
  EXPECT_TRUE(after.store.problems().empty());
}

TEST(Store, TheSameObjectInTwoFilesIsAnErrorThatNamesBoth) {
  MemoryFiles files;
  files.set("/s/objects/a.yaml", yaml("reviews", 1));
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  ASSERT_TRUE(one.store.accept(one.store.find(kKey)));
  files.set("/s/objects/b.yaml", yaml("reviews", 2));
  EXPECT_TRUE(one.store.rescan());
  ASSERT_EQ(one.store.problems().size(), 1U);
  EXPECT_THAT(one.store.problems()[0].to_string(), testing::HasSubstr("/s/objects/a.yaml"));
  EXPECT_THAT(one.store.problems()[0].to_string(), testing::HasSubstr("/s/objects/b.yaml"));
  EXPECT_EQ(port_of(one.store.find(kKey)), 1) << "the last accepted version";
}

// Of each object the file, the place and the meaning; and what is wrong with the files.
std::vector<std::string> content_of(const Store& store) {
  std::vector<std::string> texts;
  for (const config::ObjectPtr& object : store.objects()) {
    std::string text = object->key.to_string() + " " + object->file + " " +
                       json::serialize(object->tree.at("spec")) + " in";
    for (const std::string& file : store.files_of(object->key)) text += " " + file;
    if (store.problems().empty())  // what is kept on disk has no lines
      for (const auto& [field, line] : object->lines) text += " " + std::to_string(line);
    texts.push_back(std::move(text));
  }
  for (const config::Problem& problem : store.problems()) texts.push_back(problem.to_string());
  return texts;
}

TEST(Store, FollowsEveryChangeOfFilesAsIfReadAnew) {
  int quiet = 0, problems = 0;
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    const auto pick = [&](unsigned n) { return static_cast<unsigned>(random()) % n; };
    const auto policy = [&](const std::string& name) {
      return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " +
             name + "}\nspec: {action: " + (pick(2) ? "DENY" : "ALLOW") + "}\n";
    };
    MemoryFiles files;
    Fixture one{files};
    ASSERT_TRUE(one.store.open());
    for (int step = 0; step < 60; ++step) {
      const std::string path = "/s/objects/" + std::to_string(pick(6)) + ".yaml";
      std::string text;
      for (unsigned i = pick(3); i > 0; --i)
        text += "---\n" + (pick(4) ? yaml("s" + std::to_string(pick(20)), 1 + pick(2))
                                   : policy("p" + std::to_string(pick(2))));
      if (pick(6) == 0)
        files.texts.erase(path);
      else if (pick(8) == 0)
        files.set(path, text + "---\n- broken\n");
      else if (files.texts.contains(path) && pick(4) == 0)
        files.set(path, files.texts.at(path));  // touched
      else
        files.set(path, text);
      const auto before = content_of(one.store);
      const bool changed = one.store.rescan();
      Fixture anew{files};
      ASSERT_TRUE(anew.store.open());
      ASSERT_EQ(content_of(one.store), content_of(anew.store)) << seed << ", step " << step;
      ASSERT_TRUE(changed || before == content_of(one.store)) << seed << ", step " << step;
      quiet += one.store.problems().empty() ? 1 : 0;
      problems += one.store.problems().empty() ? 0 : 1;
      ASSERT_TRUE(one.store.remember_policies());
      for (const config::ObjectPtr& object : one.store.objects())
        ASSERT_TRUE(one.store.accept(object));
      ASSERT_TRUE(one.store.forget_accepted_but(one.store.objects()));
    }
  }
  // Both ways were gone.
  EXPECT_GT(quiet, 200);
  EXPECT_GT(problems, 200);
}

TEST(Store, AFileThatIsWrittenAgainLeavesItsObjectsTheSame) {
  MemoryFiles files;
  files.set("/s/objects/a.yaml", yaml("reviews", 1) + "---\n" + yaml("details", 1));
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  const config::ObjectPtr reviews = one.store.find(kKey);
  files.set("/s/objects/a.yaml", yaml("reviews", 1) + "---\n" + yaml("details", 2));
  EXPECT_TRUE(one.store.rescan());
  EXPECT_EQ(one.store.find(kKey), reviews);
  files.set("/s/objects/a.yaml", yaml("reviews", 1) + "---\n" + yaml("details", 2));
  EXPECT_FALSE(one.store.rescan());
}

TEST(Store, ABrokenFileIsNamedOnceWithItsLine) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", yaml("details") + "---\n- a list\n---\n- another\n");
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  ASSERT_EQ(one.store.problems().size(), 1U);
  EXPECT_EQ(
      one.store.problems()[0].to_string(),
      "/s/objects/mine.yaml:7: not an object; apiVersion, kind and metadata are needed (and 1 "
      "more); nothing of it is known from before");
}

// A policy must not lapse by a typing error.
TEST(Store, WhatWasInAFileStaysWhereItHasAKindThatCanOnlyBeAMistake) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", denial("closed"));
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  ASSERT_TRUE(one.store.remember_policies());
  const config::ObjectKey policy{"AuthorizationPolicy", "default", "closed"};
  for (const char* kind :
       {"AuthorizationPolicies", "AuthorizationPolcy", "Authorization", "NetworkPolcy"}) {
    std::string text = denial("closed");
    text.replace(text.find(policy.kind), policy.kind.size(), kind);
    files.set("/s/objects/mine.yaml", text);
    EXPECT_TRUE(one.store.rescan()) << kind;
    EXPECT_TRUE(one.store.find(policy)) << kind;
    ASSERT_EQ(one.store.problems().size(), 1U) << kind;
    EXPECT_THAT(one.store.problems()[0].to_string(),
                testing::AllOf(testing::StartsWith("/s/objects/mine.yaml:2: "),
                               testing::HasSubstr("the kind " + std::string(kind) + " is unknown"),
                               testing::HasSubstr("what was last known of it stays")));
  }
  // Another program's, and one of another group's API that is not supported yet.
  for (const char* other : {"apiVersion: argoproj.io/v1\nkind: Rollout\n",
                            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"}) {
    files.set("/s/objects/mine.yaml", other + std::string("metadata: {name: x}\n"));
    one.store.rescan();
    EXPECT_FALSE(one.store.find(policy)) << other;
    EXPECT_TRUE(one.store.problems().empty()) << other;
    files.set("/s/objects/mine.yaml", denial("closed"));
    one.store.rescan();
  }
}

// A disk that is not mounted, for one: that is no reason to let anything lapse.
TEST(Store, WithoutItsDirectoryAllStaysAsItWasAcceptedAlsoOverARestart) {
  MemoryFiles files;
  {
    Fixture before{files};
    ASSERT_TRUE(before.store.open());
    put_and_accept(before.store, service());
    files.set("/s/objects/mine.yaml", denial("refused"));  // read, and never accepted
    EXPECT_TRUE(before.store.rescan());
    ASSERT_TRUE(before.store.remember_policies());
    files.move_away("/s/objects");
    EXPECT_TRUE(before.store.rescan());
    EXPECT_FALSE(before.store.rescan()) << "nothing changed since";
    EXPECT_EQ(before.store.objects().size(), 2U);
    EXPECT_FALSE(before.store.is_source_read());
  }
  Fixture after{files};
  ASSERT_TRUE(after.store.open());
  EXPECT_EQ(port_of(after.store.find(kKey)), 9080);
  EXPECT_TRUE(after.store.find({"AuthorizationPolicy", "default", "refused"}));
  ASSERT_EQ(after.store.problems().size(), 1U);
  EXPECT_THAT(after.store.problems()[0].to_string(),
              testing::AllOf(testing::StartsWith("/s/objects: "), testing::HasSubstr("mkdir")));
  EXPECT_FALSE(after.store.put(after.store.prepare(service(9081))));
  EXPECT_FALSE(files.list("/s/objects")) << "it was made again";
  EXPECT_FALSE(after.store.rescan());
  EXPECT_EQ(after.store.files_of(kKey), std::vector<std::string>{kReviews});
  files.put_back();
  EXPECT_TRUE(after.store.rescan());
  EXPECT_TRUE(after.store.problems().empty());
  EXPECT_TRUE(after.store.is_source_read());
  EXPECT_EQ(after.store.objects().size(), 2U);
  ASSERT_TRUE(after.store.put(after.store.prepare(service(9081))));
}

TEST(Store, AnEmptyDirectorySaysThatThereIsNothing) {
  MemoryFiles files;
  {
    Fixture before{files};
    ASSERT_TRUE(before.store.open());
    put_and_accept(before.store, service());
  }
  files.move_away("/s/objects");
  ASSERT_TRUE(make_directories(files, "/s/objects"));
  Fixture after{files};
  ASSERT_TRUE(after.store.open());
  EXPECT_TRUE(after.store.objects().empty());
  EXPECT_TRUE(after.store.problems().empty());
}

TEST(Store, WhatIsNoFileIsReportedByName) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", yaml("reviews"));
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  ASSERT_TRUE(one.store.accept(one.store.find(kKey)));
  files.set_odd("/s/objects/mine.yaml", Files::Type::kLink);
  files.set_odd("/s/objects/fifo.json", Files::Type::kOther);
  files.set_odd("/s/objects/folder.yml", Files::Type::kDirectory);
  files.set_odd("/s/objects/elsewhere", Files::Type::kLink);
  files.set_odd("/s/objects/Service", Files::Type::kDirectory);
  files.set_odd("/s/objects/socket", Files::Type::kOther);
  files.set("/s/objects/folder.yml/inside.yaml", yaml("details"));
  EXPECT_TRUE(one.store.rescan());
  std::vector<std::string> named;
  for (const auto& problem : one.store.problems())
    named.push_back(problem.to_string().substr(0, problem.to_string().find(':')));
  EXPECT_THAT(named, testing::ElementsAre("/s/objects/elsewhere", "/s/objects/fifo.json",
                                          "/s/objects/folder.yml", "/s/objects/mine.yaml"));
  EXPECT_EQ(port_of(one.store.find(kKey)), 9080) << "what was known of it stays";
  EXPECT_TRUE(one.store.find({"Service", "default", "details"}));
  for (const char* path : {"elsewhere", "fifo.json", "folder.yml", "mine.yaml"})
    files.texts.erase(std::string("/s/objects/") + path);
  EXPECT_TRUE(one.store.rescan());
  EXPECT_TRUE(one.store.problems().empty());
}

TEST(PosixFiles, ReadsRegularFilesAloneAndListsAll) {
  namespace fs = std::filesystem;
  std::string root = testing::TempDir() + "files-XXXXXX";
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  auto files = posix_files();
  ASSERT_TRUE(files->write(root + "/a.yaml", "text"));
  ASSERT_TRUE(files->write(root + "/.hidden.yaml", "text"));
  ASSERT_TRUE(make_directories(*files, root + "/b.yaml"));
  fs::create_symlink(root + "/a.yaml", root + "/c.yaml");
  fs::create_symlink(root + "/absent", root + "/d.yaml");
  fs::create_symlink(root, root + "/loop");
  ASSERT_EQ(::mkfifo((root + "/e.yaml").c_str(), 0600), 0);
  std::string found;
  const auto entries = files->list(root);
  ASSERT_TRUE(entries);
  for (const auto& entry : entries.value())
    found += entry.path.substr(root.size()) + "=" + std::to_string(static_cast<int>(entry.type));
  EXPECT_EQ(found, "/a.yaml=0/b.yaml=1/c.yaml=2/d.yaml=2/e.yaml=3/loop=2");
  EXPECT_EQ(files->read(root + "/a.yaml").value(), "text");
  for (auto [name, what] : {std::pair{"/b.yaml", "is a directory"},
                            {"/c.yaml", "is a symbolic link"},
                            {"/d.yaml", "is a symbolic link"},
                            {"/e.yaml", "is a FIFO"}}) {
    const auto text = files->read(root + name);
    ASSERT_FALSE(text) << name;
    EXPECT_THAT(text.error().message, testing::HasSubstr(root + name + ": " + what));
  }
  fs::remove_all(root);
}

TEST(Store, KnowsWhatIsNotItsToWrite) {
  MemoryFiles files;
  files.set("/s/objects/mine.yml", yaml("reviews"));
  files.set("/s/objects/readme.txt", "not an object");
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  EXPECT_TRUE(one.store.is_foreign(kKey));
  EXPECT_THAT(one.store.files_of(kKey), testing::ElementsAre("/s/objects/mine.yml"));
  ASSERT_TRUE(one.store.put(one.store.prepare(service(9080, "details"))));
  one.store.rescan();
  EXPECT_FALSE(one.store.is_foreign({"Service", "default", "details"}));
}

TEST(Store, WhatIsGoneIsForgotten) {
  MemoryFiles files;
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  put_and_accept(one.store, service());
  ASSERT_TRUE(one.store.remove(kKey));
  EXPECT_TRUE(one.store.rescan());
  ASSERT_TRUE(one.store.forget_accepted_but(one.store.objects()));
  EXPECT_EQ(one.store.find(kKey), nullptr);
  EXPECT_EQ(one.store.last_accepted(kKey), nullptr);
  EXPECT_TRUE(files.texts.empty());
  EXPECT_FALSE(one.store.rescan()) << "nothing changed since";
}

TEST(Store, TheFileReadsAsYaml) {
  MemoryFiles files;
  Fixture one{files};
  ASSERT_TRUE(one.store.open());
  ASSERT_TRUE(one.store.put(one.store.prepare(service())));
  EXPECT_THAT(files.texts.at(kReviews), testing::HasSubstr("kind: Service\n"));
}

// --- numbers

IpBlock range(const char* text = "10.78.0.0/16") { return IpBlock::parse(text).value(); }

TEST(Numbers, StayOverARestartAndAreNeverGivenTwice) {
  MemoryFiles files;
  std::uint32_t first = 0;
  {
    Numbers numbers(files, "/s/ids.json", range());
    ASSERT_TRUE(numbers.load());
    first = numbers.number(Space::kSet, "a");
    EXPECT_NE(first, 0U);
    EXPECT_EQ(numbers.number(Space::kSet, "a"), first);
    EXPECT_EQ(numbers.service_address("default/reviews", {}).value().to_string(), "10.78.0.1");
    ASSERT_TRUE(numbers.save());
  }
  Numbers numbers(files, "/s/ids.json", range());
  ASSERT_TRUE(numbers.load());
  EXPECT_EQ(numbers.number(Space::kSet, "a"), first);
  EXPECT_EQ(numbers.service_address("default/reviews", {}).value().to_string(), "10.78.0.1");
  numbers.forget(Space::kSet, "a");
  EXPECT_NE(numbers.number(Space::kSet, "a"), first);
  numbers.reserve_up_to(Space::kSet, 40);
  EXPECT_GT(numbers.number(Space::kSet, "b"), 40U);
  EXPECT_GT(numbers.number(Space::kWorkload, "w"), 1U) << "1 is the gateway";
}

TEST(Numbers, AddressesGoRoundAndAvoidThoseInUse) {
  MemoryFiles files;
  Numbers numbers(files, "/s/ids.json", range("10.78.0.0/28"));
  const auto address = [&](const std::string& service) {
    auto given = numbers.service_address(service, {IpAddress::v4(10, 78, 0, 2)});
    return given ? given.value().to_string() : given.error().message;
  };
  EXPECT_EQ(address("a"), "10.78.0.1");
  EXPECT_EQ(address("b"), "10.78.0.3") << ".2 is taken";
  numbers.forget_services_but({"b"});
  EXPECT_EQ(address("c"), "10.78.0.4") << "what was just freed is the last to be given again";
  for (int i = 0; i < 10; ++i) address("x" + std::to_string(i));
  EXPECT_EQ(address("y"), "10.78.0.1");
  EXPECT_THAT(address("z"), testing::HasSubstr("no service address is left"));
}

TEST(Numbers, AFailedWriteIsTriedAgain) {
  MemoryFiles files;
  Numbers numbers(files, "/s/ids.json", range());
  numbers.number(Space::kSet, "a");
  files.fail_at = 2;
  EXPECT_FALSE(numbers.save());
  EXPECT_TRUE(numbers.save());
  EXPECT_TRUE(files.texts.contains("/s/ids.json"));
  const int operations = files.operations;
  EXPECT_TRUE(numbers.save());
  EXPECT_EQ(files.operations, operations) << "nothing changed: nothing is written";
}

}  // namespace
}  // namespace mesh::control
