// Object: one resource as a JSON tree, with the place each field was written at.
//
// Every source (files, `meshctl apply`, later the Kubernetes API) yields Objects; compile() turns
// the whole set into a Snapshot. An object is accepted whole or refused by name, place and field.
// Pure: no files, no clock.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "config/snapshot.h"

namespace mesh::config {

struct ObjectKey {
  std::string kind;  // "VirtualService"
  std::string ns;    // "default" when the object names none and the kind is namespaced
  std::string name;
  std::string to_string() const;  // "VirtualService default/reviews"
  friend auto operator<=>(const ObjectKey&, const ObjectKey&) = default;
};

struct Object {
  ObjectKey key;
  std::string api_version;
  boost::json::object tree;  // apiVersion, kind, metadata, spec, ...
  std::string file;          // where it was read; empty when it came without one
  // Line of each field by path ("spec.http[0].route[1].weight"); 0 or absent: unknown.
  std::map<std::string, int> lines;
};
using ObjectPtr = std::shared_ptr<const Object>;

// Kinds whose refused objects deny what they select, and so take part all the same.
bool is_policy(const ObjectKey& key);

struct Problem {
  enum class Severity : std::uint8_t { kError, kWarning };
  Severity severity = Severity::kError;
  ObjectKey object;  // none (no kind): of a file as a whole
  std::string file;
  int line = 0;
  std::string field;    // "spec.http[0].rewrite"
  std::string message;  // what is wrong and the remedy
  // "reviews.yaml:14: VirtualService default/reviews: spec.http[0].rewrite: not supported yet; ..."
  std::string to_string() const;
};

// One object from its JSON tree (the feed, the admin API, a List). Fails where apiVersion, kind or
// the names are missing or malformed: names are safe as parts of a path.
Result<Object> make_object(boost::json::object tree, std::string file = {},
                           std::map<std::string, int> lines = {});

// All documents of a YAML or JSON text (List kinds are flattened, empty documents skipped). A
// document that is no object is an error and the next is read; a syntax error, a duplicate key, or
// a limit (16 MiB of text, 1 MiB an object, depth 64, 10,000 objects) ends it. Scalars are read as
// kubectl reads them: unquoted yes, no, on, off, y and n are booleans, 0755 is octal, dates are
// strings. Anchors are fine; aliases and merge keys are refused.
struct Parsed {
  std::vector<Object> objects;
  std::vector<std::string> errors;  // "reviews.yaml:14: ...", in the order of the text
};
Parsed parse_text(std::string_view text, std::string_view file);
// The same, but for an error it fails as a whole.
Result<std::vector<Object>> parse_objects(std::string_view text, std::string_view file);

struct CompileOptions {
  std::string root_namespace = "istio-system";
  Labels gateway_labels = {{"istio", "ingressgateway"}};
  WorkloadPtr gateway_workload;           // the node's gateway; may be null
  std::vector<IpAddress> node_addresses;  // this node's own, which NetworkPolicies let in
  std::optional<IpBlock> service_range;   // where the mesh gives services their addresses
};

class Objects;        // objects.h
struct Surroundings;  // of workloads: what recompile() must know (assemble.h)

struct Compiled {
  SnapshotPtr snapshot;
  std::shared_ptr<const Surroundings> surroundings;
  std::vector<Problem> problems;   // errors and warnings, in the order of the objects
  std::vector<ObjectKey> refused;  // objects with an error
};

// Compiles a whole set, one object of each key. An object with an error takes no part, except a
// policy, which then denies what it selects. `previous` lends its unchanged parts. Services have
// their addresses already (spec.clusterIP / clusterIPs): allocation is the caller's.
Compiled compile(const std::vector<ObjectPtr>& objects, std::uint64_t version,
                 const CompileOptions& options, const Snapshot* previous = nullptr);

// So many objects at once are followed one by one; where more changed, all is done again.
inline constexpr std::size_t kFewChanges = 200;

// What compile() would say of `objects`, from what it said of `before`, with the same options but
// node_addresses: at the cost of what changed, where few WorkloadEntries alone did. nullopt: there
// is more to it, or it may be.
std::optional<Compiled> recompile(const Compiled& compiled, const Objects& before,
                                  const Objects& objects, std::uint64_t version,
                                  const CompileOptions& options);

// What is wrong where an object's kind can only be a mistake: it is spelt almost as one that is
// known, or is none of a group of policies. nullopt: it is right, or some other program's.
std::optional<Problem> mistaken_kind(const Object& object);

// Checks one object by itself, as compile would (also offline): its own fields, not its references.
std::vector<Problem> validate(const Object& object);

}  // namespace mesh::config
