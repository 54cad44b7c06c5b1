// Store: the objects of the local source, a directory of files, and what was last accepted of each.
//
//   <dir>/objects/<Kind>/<namespace>.<name>.yaml   written by `meshctl apply`, one object a file;
//                                                  a long name is cut and ends in ~ and a hash
//   <dir>/objects/**                               files that people put there: any name that ends
//                                                  in .yaml, .yml or .json, one object or several.
//                                                  Anything of such a name that is no regular file,
//                                                  and any symbolic link, cannot be read
//   <dir>/accepted/<Kind>/<namespace>.<name>.json  {"file", "object"}: the last accepted version
//   <dir>/parsed/<Kind>/<namespace>.<name>.json    a list of such, for policies: the last version
//                                                  that could be read of each file, accepted or not
//
// <dir>/objects is made where nothing was accepted yet, and never again: where it cannot be read,
// all stays as it was accepted (of policies: as it could be read), also over a restart, and a
// problem says so. One that is empty says that there are no objects. Writes are atomic and fsynced.
// What cannot be read leaves the last accepted version of every object that came from that file;
// the same object in two files leaves its last accepted version too; both are problems. Not so a
// policy, since what it denies must not lapse: of it the last version that could be read stays,
// accepted or not, and all versions of several files are passed on for the compiler to refuse. uid,
// creationTimestamp and generation are set when an object is first seen and kept from then on. A
// resource; one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/result.h"
#include "config/object.h"
#include "config/objects.h"
#include "control/files.h"

namespace mesh::control {

class Store {
 public:
  // now: RFC 3339 in UTC, asked when something is seen for the first time.
  Store(Files& files, std::string directory, Random random, std::function<std::string()> now);

  // Nothing was ever kept here: a first start, or another directory than the one that was (a disk
  // that is not mounted). open() ends that.
  bool is_new() const;
  // Makes the directories (see above), reads what was accepted, and all objects.
  Result<> open();
  // Reads what changed on disk; true when the objects or problems are others than before.
  bool rescan();

  // What acts, before compilation: one version of each object (of a policy: of each file), sorted.
  const config::Objects& objects() const { return objects_; }
  const std::vector<config::Problem>& problems() const { return problems_; }
  bool is_source_read() const { return source_error_.empty(); }  // when it was looked at last
  config::ObjectPtr find(const config::ObjectKey& key) const;
  const std::string& directory() const { return directory_; }
  std::string objects_directory() const { return directory_ + "/objects"; }
  std::string object_path(const config::ObjectKey& key) const;  // where put() writes it

  // The object as it would be stored: with its uid, creationTimestamp and generation.
  config::Object prepare(config::Object object);
  // The files that hold the object, sorted; put() and remove() are for object_path() alone.
  std::vector<std::string> files_of(const config::ObjectKey& key) const;
  bool is_foreign(const config::ObjectKey& key) const;  // another file holds it, alone or too
  Result<> put(const config::Object& object);
  Result<> remove(const config::ObjectKey& key);

  // After compilation: this version of the object is good, or the object is no more.
  Result<> accept(const config::ObjectPtr& object);
  config::ObjectPtr last_accepted(const config::ObjectKey& key) const;
  Result<> forget_accepted_but(const config::Objects& present);
  // Keeps what is known of policies now: of each file, the last version that could be read.
  Result<> remember_policies();

 private:
  struct SourceFile {
    Files::Entry stamp;
    std::vector<config::ObjectPtr> objects;
    std::string error;
  };
  struct Accepted {
    std::string file;
    config::ObjectPtr object;
  };

  using Versions = std::map<config::ObjectKey, std::vector<config::ObjectPtr>>;
  using Keep = std::function<void(config::ObjectPtr)>;

  Result<> read_kept(const std::string& directory, const Keep& keep);
  // What files of before and of now hold that are not as they were.
  struct Touched {
    bool is_unreadable = false;  // one of them was, or is
    std::set<config::ObjectKey> keys;
    std::set<std::string> paths;
    void add(const std::string& path, const SourceFile& file);
  };

  Touched read_changed_files();
  std::map<std::string, SourceFile> kept_sources() const;
  SourceFile read_file(const Files::Entry& entry, const SourceFile* before);
  void assemble();
  // Of these alone; false: that is not enough, and nothing was done.
  bool assemble_touched(const Touched& touched, bool& changed);
  std::vector<config::ObjectPtr> versions_of(const config::ObjectKey& key,
                                             const std::set<std::string>& changed) const;
  void own(const config::ObjectKey& key, const std::vector<config::ObjectPtr>& versions);
  void add_from_unreadable(const std::string& path, const SourceFile& file, Versions& all);
  config::ObjectPtr choose(const config::ObjectKey& key,
                           const std::vector<config::ObjectPtr>& versions);
  void add_damaged();
  config::Object with_metadata(config::Object object, bool trust_own);
  std::string accepted_path(const config::ObjectKey& key) const;
  std::string parsed_path(const config::ObjectKey& key) const;
  std::string new_uid();

  Files& files_;
  std::string directory_;
  Random random_;
  std::function<std::string()> now_;
  std::map<std::string, SourceFile> sources_;
  std::string source_error_;  // why their directory cannot be listed
  std::map<config::ObjectKey, Accepted> accepted_;
  Versions parsed_;                             // of policies: one of each file
  std::set<config::ObjectKey> unsaved_;         // of parsed_
  std::map<std::string, std::string> damaged_;  // files of accepted/ and parsed/ -> why
  std::map<config::ObjectKey, std::vector<std::string>> owners_;  // the files of each object
  config::Objects objects_;
  std::vector<config::Problem> problems_;
};

// The tree without what only the store writes: to compare two versions.
boost::json::object without_server_fields(boost::json::object tree);

}  // namespace mesh::control
