// What Sources keeps from one compilation to the next, against what follows from the files alone.
#include "control/sources.h"

#include <gmock/gmock.h>

#include <random>
#include <regex>

#include "tests/support/memory_files.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using test::MemoryFiles;

struct Fixture {
  explicit Fixture(MemoryFiles& in, unsigned seed, const char* addresses = "10.97.0.0/24")
      : files(in), random(seed), range(IpBlock::parse(addresses).value()) {
    EXPECT_TRUE(numbers.load());
    EXPECT_TRUE(store.open());
  }
  MemoryFiles& files;
  unsigned random;
  IpBlock range;
  Store store{files, "/s", Random(random), [] { return "2026-01-01T00:00:00Z"; }};
  Numbers numbers{files, "/ids.json", range};
  Sources sources{store, numbers, config::CompileOptions()};
};

// Nor the generation: of what was refused only who saw it knows that.
std::string without_uid(const std::string& text) {
  static const std::regex kOwn("\"uid\":\"[^\"]*\"|\"generation\":[0-9]*");
  return std::regex_replace(text, kOwn, "");
}

std::vector<std::string> content_of(const Compilation& compiled) {
  std::vector<std::string> texts;
  for (const auto* objects : {&compiled.objects, &compiled.for_proxy})
    for (const config::ObjectPtr& object : *objects)
      texts.push_back(object->key.to_string() + " " + without_uid(json::serialize(object->tree)));
  for (const config::Problem& problem : compiled.problems)  // what was kept on disk has no lines
    texts.push_back(problem.file + problem.object.to_string() + problem.field + problem.message);
  for (const auto& [key, acts] : compiled.refused)
    texts.push_back(key.to_string() + (acts ? " acts" : " is refused"));
  for (const auto& [name, workload] : compiled.snapshot->workloads)
    texts.push_back(name.to_string() + " " + workload->addresses[0].to_string());
  for (const auto& [host, service] : compiled.snapshot->services)
    for (const IpAddress& ip : service->addresses) texts.push_back(host + " " + ip.to_string());
  return texts;
}

// What is kept on disk, but for the uids.
std::map<std::string, std::string> kept_in(const MemoryFiles& files) {
  std::map<std::string, std::string> kept;
  for (const auto& [path, text] : files.texts)
    if (path.starts_with("/s/accepted/") || path.starts_with("/s/parsed/") || path == "/ids.json")
      kept[path] = path == "/ids.json" ? text : without_uid(text);
  return kept;
}

class Texts {
 public:
  explicit Texts(unsigned seed) : random_(seed) {}
  unsigned pick(unsigned n) { return static_cast<unsigned>(random_()) % n; }
  std::string object() {
    const std::string name = "x" + std::to_string(pick(4));
    switch (pick(5)) {
      case 0:
        return head("networking.istio.io/v1", "WorkloadEntry", name) + "spec: {address: 10.77.0." +
               std::to_string(1 + pick(6)) + "}\n";
      case 1:
        return head("v1", "Service", name) + "spec: {ports: [{name: tcp, port: " + port() + "}]" +
               (pick(4) ? "" : ", clusterIP: " + address()) + "}\n";
      case 2:
        return head("networking.istio.io/v1", "VirtualService", name) + "spec: {hosts: [x0], " +
               (pick(2) ? "http: [{route: [{destination: {host: x0}}]}]" : "odd: 1") + "}\n";
      case 3:
        return head("networking.istio.io/v1", "ServiceEntry", name) + "spec: {hosts: [" + name +
               ".test], resolution: STATIC, ports: [{name: tcp, number: " + port() +
               "}], endpoints: [{address: 192.0.2.1}]" +
               (pick(4) ? "" : ", addresses: [" + address() + "]") + "}\n";
      default:
        return head("security.istio.io/v1", "AuthorizationPolicy", name) +
               "spec: {action: " + (pick(3) ? "DENY" : "ODD") + "}\n";
    }
  }

 private:
  static std::string head(const std::string& version, const std::string& kind,
                          const std::string& name) {
    return "---\napiVersion: " + version + "\nkind: " + kind + "\nmetadata: {name: " + name + "}\n";
  }
  std::string port() { return pick(4) ? "80" : "0"; }  // which is refused
  std::string address() { return "10.97.0." + std::to_string(1 + pick(14)); }

  std::mt19937 random_;
};

constexpr const char* kFewAddresses = "10.97.0.0/28";  // so that many are asked for twice

TEST(Sources, FollowEveryChangeAsIfReadAnew) {
  int refused = 0, failed = 0;
  for (unsigned seed = 0; seed < 30; ++seed) {
    Texts texts(seed);
    MemoryFiles files;
    Fixture one(files, 1, kFewAddresses);
    Compilation last;
    for (int step = 0; step < 40; ++step) {
      const std::string path = "/s/objects/" + std::to_string(texts.pick(6)) + ".yaml";
      std::string text;
      for (unsigned i = texts.pick(3); i > 0; --i) text += texts.object();
      if (texts.pick(4) == 0)
        files.texts.erase(path);
      else
        files.set(path, text);
      const std::string where = "seed " + std::to_string(seed) + ", step " + std::to_string(step);
      one.store.rescan();
      MemoryFiles copy = files;
      const auto version = static_cast<std::uint64_t>(step) + 1;
      if (texts.pick(10) == 0) {
        files.fail_at = 1 + static_cast<int>(texts.pick(6));
        last = one.sources.compile(version, last.snapshot.get());
        failed += one.sources.write_errors().empty() ? 0 : 1;
        files.fail_at = 0;
      }
      last = one.sources.compile(version, last.snapshot.get());
      ASSERT_THAT(one.sources.write_errors(), testing::IsEmpty());
      Fixture anew(copy, 2, kFewAddresses);
      const Compilation expected = anew.sources.compile(version, nullptr);
      ASSERT_EQ(content_of(last), content_of(expected)) << where;
      ASSERT_EQ(kept_in(files), kept_in(copy)) << where;
      refused += last.refused.empty() ? 0 : 1;
      // A candidate: what it would say, and that nothing stays of it.
      auto parsed = config::parse_objects(texts.object(), "").value();
      const auto object = std::make_shared<const config::Object>(parsed[0]);
      ASSERT_EQ(content_of(one.sources.compile_with({object}, version + 1)),
                content_of(anew.sources.compile_with({object}, version + 1)))
          << where;
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(failed, 10);
}

TEST(Sources, AnAddressOfACandidateIsForgotten) {
  MemoryFiles files;
  Fixture one(files, 1);
  const Compilation first = one.sources.compile(1, nullptr);
  const auto parsed =
      config::parse_objects(
          "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 80}]}\n", "")
          .value();
  const auto service = std::make_shared<const config::Object>(parsed.at(0));
  EXPECT_EQ(one.sources.compile_with({service}, 2).snapshot->services.size(), 1U);
  one.sources.compile(2, first.snapshot.get());
  EXPECT_THAT(files.texts["/ids.json"], testing::Not(testing::HasSubstr("default/x")));
}

config::ObjectPtr object_of(const std::string& text) {
  return std::make_shared<const config::Object>(config::parse_objects(text, "").value().at(0));
}

std::string service_text(const std::string& name, const std::string& more = "") {
  return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + name +
         "}\nspec: {ports: [{port: 80}]" + more + "}\n";
}

std::string entry_text(const std::string& name, const std::string& more = "") {
  return "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: " + name +
         "}\nspec: {hosts: [" + name + ".test], resolution: STATIC, " +
         "ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]" +
         more + "}\n";
}

// By the first label of the host.
std::map<std::string, std::string> addresses_in(const Compilation& compiled) {
  std::map<std::string, std::string> addresses;
  for (const auto& [host, service] : compiled.snapshot->services)
    addresses[host.substr(0, host.find('.'))] = service->addresses.at(0).to_string();
  return addresses;
}

TEST(Sources, ACandidateMovesNoAddress) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", service_text("s") + entry_text("e"));
  Fixture one(files, 1);
  Compilation last = one.sources.compile(1, nullptr);
  const auto given = addresses_in(last);
  ASSERT_EQ(given.size(), 2U);
  const auto objects = last.objects;
  const int operations = files.operations;
  for (const std::string& address : {given.at("s"), given.at("e")})
    for (const std::string& candidate : {service_text("other", ", clusterIP: " + address),
                                         entry_text("other", ", addresses: [" + address + "]")}) {
      const auto with = addresses_in(one.sources.compile_with({object_of(candidate)}, 2));
      EXPECT_EQ(with.at("other"), address) << "the candidate is judged with what it asks for";
      last = one.sources.compile(2, last.snapshot.get());
      EXPECT_EQ(addresses_in(last), given) << candidate;
      EXPECT_TRUE(last.objects == objects) << "nothing changed: they are the same objects";
    }
  EXPECT_EQ(files.operations, operations) << "nothing is written";
}

TEST(Sources, WhatHasItsAddressStaysTheSameObjectWhileAnotherIsRefused) {
  const auto route = [](const std::string& more) {
    return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n"
           "spec: {hosts: [s], " +
           more + "}\n";
  };
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", service_text("s") + entry_text("e"));
  files.set("/s/objects/route.yaml", route("http: [{route: [{destination: {host: s}}]}]"));
  Fixture one(files, 1);
  Compilation last = one.sources.compile(1, nullptr);
  files.set("/s/objects/route.yaml", route("odd: 1"));
  ASSERT_TRUE(one.store.rescan());
  last = one.sources.compile(2, last.snapshot.get());
  ASSERT_TRUE(last.refused.begin()->second) << "its last accepted version acts";
  const Compilation again = one.sources.compile(3, last.snapshot.get());
  EXPECT_TRUE(again.objects == last.objects);
  EXPECT_TRUE(again.for_proxy == last.for_proxy);
}

TEST(Sources, WhatActsInPlaceOfARefusedVersionKeepsItsAddress) {
  MemoryFiles files;
  files.set("/s/objects/entry.yaml", entry_text("e"));
  Fixture one(files, 1);
  Compilation last = one.sources.compile(1, nullptr);
  const auto given = addresses_in(last);
  files.set("/s/objects/entry.yaml", entry_text("e", ", addresses: [192.0.2.9], odd: 1"));
  for (std::uint64_t version = 2; version < 5; ++version) {
    files.set("/s/objects/other.yaml", service_text("s" + std::to_string(version)));
    one.store.rescan();
    last = one.sources.compile(version, last.snapshot.get());
    ASSERT_EQ(last.refused.size(), 1U);
    EXPECT_EQ(addresses_in(last).at("e"), given.at("e")) << version;
  }
}

// The entry is given what "s" asks for in the version that acts; so it has to have another one.
TEST(Sources, AnAddressThatARefusedServicesLastVersionTakesIsKnownToBeMovedNextTime) {
  MemoryFiles files;
  files.set("/s/objects/s.yaml", service_text("s", ", clusterIP: 10.97.0.1"));
  Fixture one(files, 1);
  Compilation last = one.sources.compile(1, nullptr);
  files.set("/s/objects/s.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
            "spec: {clusterIP: 10.97.0.9, ports: [{port: 0}]}\n");
  files.set("/s/objects/e.yaml", entry_text("e"));
  one.store.rescan();
  last = one.sources.compile(2, last.snapshot.get());
  ASSERT_EQ(last.refused.size(), 1U);
  const auto given = addresses_in(last);
  ASSERT_EQ(given.at("s"), "10.97.0.1");
  ASSERT_NE(given.at("e"), "10.97.0.1");
  last = one.sources.compile(3, last.snapshot.get());
  EXPECT_EQ(addresses_in(last), given);
  const auto entry = last.objects.versions({"ServiceEntry", "default", "e"}).at(0);
  EXPECT_THAT(json::serialize(entry->tree), testing::HasSubstr("\"" + given.at("e") + "\""));
}

TEST(Sources, WhatHasNoAddressIsSaidAsLongAsThereIsNone) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml",
            service_text("one") + service_text("two") + service_text("three"));
  Fixture one(files, 1, "10.97.0.0/30");
  Compilation last;
  for (std::uint64_t version = 1; version < 3; ++version) {
    last = one.sources.compile(version, last.snapshot.get());
    ASSERT_FALSE(last.problems.empty()) << version;
    EXPECT_THAT(last.problems[0].message, testing::HasSubstr("no service address is left"));
  }
  files.set("/s/objects/mine.yaml", service_text("two") + service_text("three"));
  one.store.rescan();
  last = one.sources.compile(3, last.snapshot.get());  // after which one address is free
  last = one.sources.compile(4, last.snapshot.get());
  EXPECT_THAT(last.problems, testing::IsEmpty());
}

TEST(Sources, CandidatesDoNotUseUpTheRange) {
  MemoryFiles files;
  files.set("/s/objects/mine.yaml", service_text("s"));
  Fixture one(files, 1);
  Compilation last = one.sources.compile(1, nullptr);
  std::map<std::string, std::string> with;
  for (int i = 0; i < 1000; ++i) {
    const std::string name = "x" + std::to_string(i);
    const Compilation candidate = one.sources.compile_with(
        {object_of(service_text(name)), object_of(entry_text("e" + name))}, 2);
    ASSERT_THAT(candidate.problems, testing::IsEmpty()) << name;
    with = addresses_in(candidate);
    ASSERT_EQ(with.size(), 3U) << name;
  }
  files.set("/s/objects/new.yaml", service_text("x999") + entry_text("ex999"));
  one.store.rescan();
  last = one.sources.compile(2, last.snapshot.get());
  EXPECT_EQ(addresses_in(last), with) << "what is accepted gets the addresses it was judged with";
}

TEST(Sources, ACandidateTakesThePlaceOfWhatItWouldReplace) {
  MemoryFiles files;
  const auto text = [](const char* head, const std::string& spec) {
    return "---\napiVersion: " + std::string(head) + "\nmetadata: {name: x}\nspec: " + spec + "\n";
  };
  const std::string service = "v1\nkind: Service";
  const std::string policy = "security.istio.io/v1\nkind: AuthorizationPolicy";
  files.set("/s/objects/mine.yaml", text(service.c_str(), "{ports: [{port: 80}]}") +
                                        text(policy.c_str(), "{action: ALLOW}"));
  files.set("/s/objects/AuthorizationPolicy/default.x.yaml",
            text(policy.c_str(), "{action: ALLOW}"));
  Fixture one(files, 1);
  one.sources.compile(1, nullptr);
  const auto with = [&](const std::string& candidate) {
    const auto parsed = config::parse_objects(candidate, "").value();
    auto object = std::make_shared<const config::Object>(parsed.at(0));
    return one.sources.compile_with({std::move(object)}, 2);
  };
  const Compilation other = with(text(service.c_str(), "{ports: [{port: 81}]}"));
  EXPECT_EQ(other.objects.size(), 3U) << "the only version, wherever it is";
  EXPECT_EQ(other.snapshot->services.begin()->second->ports.at(0).port, 81);
  EXPECT_EQ(with(text(policy.c_str(), "{action: DENY}")).objects.size(), 3U)
      << "of two versions that which is put() where it would be";
}

}  // namespace
}  // namespace mesh::control
