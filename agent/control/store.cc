#include "control/store.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>
#include <utility>

#include "config/yaml.h"

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::Object;
using config::ObjectKey;
using config::ObjectPtr;

constexpr std::array<std::string_view, 6> kServerFields = {
    "uid", "creationTimestamp", "generation", "resourceVersion", "managedFields", "selfLink"};

constexpr std::size_t kLongestName = 240;

bool is_source_name(std::string_view path) {
  return path.ends_with(".yaml") || path.ends_with(".yml") || path.ends_with(".json");
}

const json::object* metadata_of(const json::object& tree) {
  const json::value* metadata = tree.if_contains("metadata");
  return metadata ? metadata->if_object() : nullptr;
}

std::string text_field(const json::object* object, std::string_view name) {
  if (!object) return {};
  const json::value* value = object->if_contains(name);
  return value && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::int64_t number_field(const json::object* object, std::string_view name) {
  if (!object) return 0;
  const json::value* value = object->if_contains(name);
  return value && value->is_int64() ? value->get_int64() : 0;
}

// Everything that a generation counts: all but metadata and status.
json::object meaning_of(json::object tree) {
  tree.erase("metadata");
  tree.erase("status");
  return tree;
}

config::Problem problem_of(const ObjectKey& key, const std::string& file, std::string message) {
  config::Problem problem;
  problem.object = key;
  problem.file = file;
  problem.message = std::move(message);
  return problem;
}

// <Kind>/<namespace>.<name>. What would be longer than a file name may be (255, with what
// replace_file() puts around it) is cut, and ends in "~" (which no name has) and a hash (FNV-1a).
std::string stem_of(const ObjectKey& key) {
  std::string name = (key.ns.empty() ? "_" : key.ns) + "." + key.name;
  if (name.size() > kLongestName) {
    std::uint64_t hash = 0xcbf29ce484222325U;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
    char text[24];
    std::snprintf(text, sizeof text, "~%016llx", static_cast<unsigned long long>(hash));
    name = name.substr(0, kLongestName - 17) + text;
  }
  return key.kind + "/" + name;
}

json::object wrapped(const ObjectPtr& object) {
  return {{"file", object->file}, {"object", object->tree}};
}

// Of one file of accepted/ (a wrapped object) or parsed/ (a list of them).
Result<std::vector<ObjectPtr>> kept_objects(Files& files, const std::string& path) {
  MESH_TRY(auto text, files.read(path));
  json::error_code error;
  json::value value = json::parse(text, error);
  if (error) return Error{Errc::invalid_argument, "not JSON: " + error.message()};
  const json::array items = value.is_array() ? value.get_array() : json::array{value};
  std::vector<ObjectPtr> objects;
  for (const json::value& item : items) {
    const json::object* wrapper = item.if_object();
    const json::value* tree = wrapper ? wrapper->if_contains("object") : nullptr;
    if (!tree || !tree->is_object()) return Error{Errc::invalid_argument, "no object in it"};
    MESH_TRY(auto object, config::make_object(tree->get_object(), text_field(wrapper, "file")));
    objects.push_back(std::make_shared<const Object>(std::move(object)));
  }
  return objects;
}

bool same_trees(const std::vector<ObjectPtr>& a, const std::vector<ObjectPtr>& b) {
  return std::ranges::equal(a, b, [](const ObjectPtr& x, const ObjectPtr& y) {
    return x == y || (x->file == y->file && x->tree == y->tree);
  });
}

bool same(const std::vector<config::Problem>& a, const std::vector<config::Problem>& b) {
  return std::ranges::equal(a, b, {}, &config::Problem::to_string, &config::Problem::to_string);
}

}  // namespace

json::object without_server_fields(json::object tree) {
  tree.erase("status");
  if (json::value* metadata = tree.if_contains("metadata"); metadata && metadata->is_object())
    for (const std::string_view field : kServerFields) metadata->get_object().erase(field);
  return tree;
}

Store::Store(Files& files, std::string directory, Random random, std::function<std::string()> now)
    : files_(files), directory_(std::move(directory)), random_(random), now_(std::move(now)) {}

bool Store::is_new() const {
  const auto accepted = files_.list(directory_ + "/accepted");
  return !accepted && accepted.error().code == Errc::not_found;
}

Result<> Store::open() {
  MESH_TRY(make_directories(files_, directory_ + "/accepted"));
  MESH_TRY(make_directories(files_, directory_ + "/parsed"));
  MESH_TRY(read_kept(directory_ + "/accepted", [this](ObjectPtr object) {
    accepted_[object->key] = {object->file, object};
  }));
  MESH_TRY(read_kept(directory_ + "/parsed",
                     [this](ObjectPtr object) { parsed_[object->key].push_back(object); }));
  if (accepted_.empty() && parsed_.empty() && damaged_.empty()) {
    MESH_TRY(make_directories(files_, objects_directory()));
  }
  read_changed_files();
  if (!is_source_read()) sources_ = kept_sources();
  assemble();
  return success();
}

bool Store::rescan() {
  const Touched touched = read_changed_files();
  if (touched.paths.empty() && !touched.is_unreadable) return false;
  if (bool changed = false; assemble_touched(touched, changed)) return changed;
  const auto objects = objects_;
  const auto problems = problems_;
  assemble();
  return objects != objects_ || !same(problems, problems_);
}

ObjectPtr Store::find(const ObjectKey& key) const {
  const auto versions = objects_.versions(key);
  return versions.empty() ? nullptr : versions.front();
}

// --- reading

// One damaged file is no reason not to start: what it held is not known, and that is told.
Result<> Store::read_kept(const std::string& directory, const Keep& keep) {
  MESH_TRY(auto entries, files_.list(directory));
  for (const Files::Entry& entry : entries) {
    if (entry.type == Files::Type::kDirectory) continue;
    auto objects = kept_objects(files_, entry.path);
    if (!objects) {
      damaged_[entry.path] = objects.error().message;
      continue;
    }
    for (ObjectPtr& object : objects.value()) keep(std::move(object));
  }
  return success();
}

void Store::Touched::add(const std::string& path, const SourceFile& file) {
  is_unreadable = is_unreadable || !file.error.empty();
  paths.insert(path);
  for (const ObjectPtr& object : file.objects) keys.insert(object->key);
}

// As the files were when all of them could be read, as far as that was kept; of no file's stamp.
std::map<std::string, Store::SourceFile> Store::kept_sources() const {
  std::map<std::string, SourceFile> files;
  for (const auto& [key, versions] : parsed_)
    for (const ObjectPtr& version : versions) files[version->file].objects.push_back(version);
  for (const auto& [key, accepted] : accepted_)
    if (!parsed_.contains(key)) files[accepted.file].objects.push_back(accepted.object);
  return files;
}

// Without the directory (a disk that is not mounted, for one) nothing is known to have changed.
Store::Touched Store::read_changed_files() {
  Touched touched;
  auto entries = files_.list(objects_directory());
  const std::string error = entries ? std::string() : entries.error().message;
  touched.is_unreadable = error != source_error_;
  source_error_ = error;
  if (!entries) return touched;
  std::map<std::string, SourceFile> now;
  for (const Files::Entry& entry : entries.value()) {
    if (!is_source_name(entry.path) && entry.type != Files::Type::kLink) continue;
    const auto known = sources_.find(entry.path);
    if (known != sources_.end() && known->second.stamp == entry) {
      now.insert(sources_.extract(known));
    } else {
      const SourceFile* before = known == sources_.end() ? nullptr : &known->second;
      touched.add(entry.path, now.emplace(entry.path, read_file(entry, before)).first->second);
    }
  }
  for (const auto& [path, file] : sources_) touched.add(path, file);  // as it was; or it is gone
  sources_ = std::move(now);
  return touched;
}

// What is in it as it was before stays the same object.
Store::SourceFile Store::read_file(const Files::Entry& entry, const SourceFile* before) {
  SourceFile file{entry, {}, {}};
  auto text = files_.read(entry.path);
  if (!text) {
    file.error = text.error().message;
    return file;
  }
  auto parsed = config::parse_objects(text.value(), entry.path);
  if (!parsed) {
    file.error = parsed.error().message;
    return file;
  }
  // It may have been a policy's, which must not lapse by a typing error.
  for (const Object& object : parsed.value())
    if (auto mistake = config::mistaken_kind(object)) {
      file.error = mistake->to_string();
      return file;
    }
  std::map<ObjectKey, ObjectPtr> known;
  if (before)
    for (const ObjectPtr& object : before->objects) known.emplace(object->key, object);
  for (Object& parsed_object : parsed.value()) {
    Object object = with_metadata(std::move(parsed_object), true);
    const auto same = known.find(object.key);
    if (same != known.end() && same->second->tree == object.tree &&
        same->second->lines == object.lines && same->second->api_version == object.api_version)
      file.objects.push_back(same->second);
    else
      file.objects.push_back(std::make_shared<const Object>(std::move(object)));
  }
  return file;
}

void Store::assemble() {
  problems_.clear();
  owners_.clear();
  Versions all;
  for (const auto& [path, file] : sources_)
    for (const ObjectPtr& object : file.objects) all[object->key].push_back(object);
  for (const auto& [path, file] : sources_)
    if (!file.error.empty()) add_from_unreadable(path, file, all);
  config::Objects objects;
  for (const auto& [key, versions] : all) {
    own(key, versions);
    if (versions.size() == 1 || is_policy(key))
      objects.set(key, versions);
    else
      objects.set(key, {choose(key, versions)});
  }
  objects_ = std::move(objects);
  add_damaged();
  if (!source_error_.empty())
    problems_.push_back(problem_of(
        {}, objects_directory(),
        "the source of the configuration cannot be read (" + source_error_ +
            "): what was accepted last stays in force, and nothing new is stored; put the "
            "directory back, or, to remove all objects, make it anew: mkdir " +
            objects_directory()));
}

// In the order of the files, from those that had it and those that changed.
std::vector<ObjectPtr> Store::versions_of(const ObjectKey& key,
                                          const std::set<std::string>& changed) const {
  std::set<std::string> files = changed;
  if (const auto owners = owners_.find(key); owners != owners_.end())
    files.insert(owners->second.begin(), owners->second.end());
  std::vector<ObjectPtr> versions;
  for (const std::string& path : files)
    if (const auto file = sources_.find(path); file != sources_.end())
      for (const ObjectPtr& object : file->second.objects)
        if (object->key == key) versions.push_back(object);
  return versions;
}

// Where all files can be read and each object is in one of them, others follow from nothing else.
bool Store::assemble_touched(const Touched& touched, bool& changed) {
  if (touched.is_unreadable || touched.keys.size() > config::kFewChanges ||
      touched.paths.size() > config::kFewChanges || !problems_.empty() || !damaged_.empty())
    return false;
  std::vector<std::pair<ObjectKey, std::vector<ObjectPtr>>> now;
  for (const ObjectKey& key : touched.keys) {
    auto versions = versions_of(key, touched.paths);
    if (versions.size() > 1 && !is_policy(key)) return false;
    now.emplace_back(key, std::move(versions));
  }
  for (auto& [key, versions] : now) {
    own(key, versions);
    if (objects_.versions(key) == versions) continue;
    changed = true;
    objects_.set(key, std::move(versions));
  }
  return true;
}

void Store::own(const ObjectKey& key, const std::vector<ObjectPtr>& versions) {
  if (versions.empty()) {
    owners_.erase(key);
    return;
  }
  std::vector<std::string>& owners = owners_[key];
  owners.clear();
  for (const ObjectPtr& version : versions)
    if (owners.empty() || owners.back() != version->file) owners.push_back(version->file);
}

// Of an object that is there several times.
ObjectPtr Store::choose(const ObjectKey& key, const std::vector<ObjectPtr>& versions) {
  const std::string& file = versions.front()->file;
  std::string others;
  for (const ObjectPtr& version : versions)
    if (version->file != file) others += (others.empty() ? "" : " and ") + version->file;
  problems_.push_back(problem_of(
      key, file,
      others.empty()
          ? "is in this file twice; remove one of them"
          : "is also in " + others + "; an object has one owner: remove it from all but one"));
  const auto accepted = accepted_.find(key);
  return accepted != accepted_.end() ? accepted->second.object : versions.front();
}

void Store::add_from_unreadable(const std::string& path, const SourceFile& file, Versions& all) {
  std::string kept;
  const auto add = [&](const ObjectPtr& object) {
    // In the order of the files, so that it does not matter to the compiler which can be read.
    std::vector<ObjectPtr>& versions = all[object->key];
    versions.insert(std::ranges::upper_bound(versions, path, {}, &Object::file), object);
    kept += (kept.empty() ? "" : ", ") + object->key.to_string();
  };
  std::set<ObjectKey> parsed;
  for (const auto& [key, versions] : parsed_)
    for (const ObjectPtr& version : versions)
      if (version->file == path) {
        add(version);
        parsed.insert(key);
      }
  for (const auto& [key, accepted] : accepted_)
    if (accepted.file == path && !parsed.contains(key) && (is_policy(key) || !all.contains(key)))
      add(accepted.object);
  problems_.push_back(
      problem_of({}, "",
                 file.error + (kept.empty() ? "; nothing of it is known from before"
                                            : "; what was last known of it stays: " + kept)));
}

void Store::add_damaged() {
  std::erase_if(damaged_, [this](const auto& item) {
    const auto text = files_.read(item.first);
    return !text && text.error().code == Errc::not_found;
  });
  for (const auto& [path, why] : damaged_)
    problems_.push_back(problem_of({}, path,
                                   "damaged (" + why +
                                       "): the version that it kept is lost; check the object "
                                       "that it is named after, and remove this file"));
}

// --- metadata

Object Store::prepare(Object object) { return with_metadata(std::move(object), false); }

Object Store::with_metadata(Object object, bool trust_own) {
  const json::object* own = metadata_of(object.tree);
  ObjectPtr before = last_accepted(object.key);
  if (!before) before = find(object.key);
  const json::object* old = before ? metadata_of(before->tree) : nullptr;
  std::string uid = text_field(old, "uid");
  std::string created = text_field(old, "creationTimestamp");
  std::int64_t generation = number_field(old, "generation");
  if (trust_own && uid.empty()) uid = text_field(own, "uid");
  if (trust_own && created.empty()) created = text_field(own, "creationTimestamp");
  if (trust_own && generation == 0) generation = number_field(own, "generation");
  if (uid.empty()) uid = new_uid();
  if (created.empty()) created = now_();
  if (generation == 0)
    generation = 1;
  else if (before && meaning_of(before->tree) != meaning_of(object.tree))
    ++generation;
  object.tree = without_server_fields(std::move(object.tree));
  json::object& metadata = object.tree["metadata"].as_object();
  if (!object.key.ns.empty()) metadata["namespace"] = object.key.ns;
  metadata["uid"] = uid;
  metadata["creationTimestamp"] = created;
  metadata["generation"] = generation;
  return object;
}

std::string Store::new_uid() {
  const std::uint64_t high = (random_.next() & ~0xf000ULL) | 0x4000ULL;
  const std::uint64_t low = (random_.next() & ~(3ULL << 62U)) | (2ULL << 62U);
  char text[40];
  std::snprintf(text, sizeof text, "%08x-%04x-%04x-%04x-%012llx",
                static_cast<unsigned>(high >> 32U), static_cast<unsigned>(high >> 16U & 0xffffU),
                static_cast<unsigned>(high & 0xffffU), static_cast<unsigned>(low >> 48U),
                static_cast<unsigned long long>(low & 0xffffffffffffULL));
  return text;
}

// --- writing

std::string Store::object_path(const ObjectKey& key) const {
  return objects_directory() + "/" + stem_of(key) + ".yaml";
}

std::string Store::accepted_path(const ObjectKey& key) const {
  return directory_ + "/accepted/" + stem_of(key) + ".json";
}

std::string Store::parsed_path(const ObjectKey& key) const {
  return directory_ + "/parsed/" + stem_of(key) + ".json";
}

std::vector<std::string> Store::files_of(const ObjectKey& key) const {
  const auto owners = owners_.find(key);
  return owners == owners_.end() ? std::vector<std::string>() : owners->second;
}

bool Store::is_foreign(const ObjectKey& key) const {
  const std::string own = object_path(key);
  return std::ranges::any_of(files_of(key), [&](const std::string& file) { return file != own; });
}

// The directory of all objects is not made again: whatever is in it is all there is.
Result<> Store::put(const Object& object) {
  const std::string path = object_path(object.key);
  if (auto made = files_.make_directory(directory_of(path)); !made)
    return Error{made.error().code, "the source of the configuration is gone (" +
                                        made.error().message + "); put the directory back"};
  return replace_file(files_, path, config::to_yaml(object.tree));
}

Result<> Store::remove(const ObjectKey& key) { return remove_file(files_, object_path(key)); }

Result<> Store::accept(const ObjectPtr& object) {
  const auto known = accepted_.find(object->key);
  if (known != accepted_.end() && known->second.file == object->file &&
      (known->second.object == object || known->second.object->tree == object->tree))
    return success();
  const std::string path = accepted_path(object->key);
  MESH_TRY(replace_file(files_, path, json::serialize(wrapped(object))));
  damaged_.erase(path);
  accepted_[object->key] = {object->file, object};
  return success();
}

ObjectPtr Store::last_accepted(const ObjectKey& key) const {
  const auto known = accepted_.find(key);
  return known == accepted_.end() ? nullptr : known->second.object;
}

Result<> Store::forget_accepted_but(const config::Objects& present) {
  for (auto at = accepted_.begin(); at != accepted_.end();) {
    if (present.contains(at->first)) {
      ++at;
      continue;
    }
    MESH_TRY(remove_file(files_, accepted_path(at->first)));
    at = accepted_.erase(at);
  }
  return success();
}

Result<> Store::remember_policies() {
  Versions now;
  for (const ObjectPtr& object : objects_)
    if (is_policy(object->key)) now[object->key].push_back(object);
  for (const auto& [key, versions] : now)
    if (const auto known = parsed_.find(key);
        known == parsed_.end() || !same_trees(known->second, versions))
      unsaved_.insert(key);
  for (const auto& [key, versions] : parsed_)
    if (!now.contains(key)) unsaved_.insert(key);
  parsed_ = std::move(now);  // also where it cannot be written
  while (!unsaved_.empty()) {
    const ObjectKey key = *unsaved_.begin();
    const std::string path = parsed_path(key);
    if (const auto known = parsed_.find(key); known == parsed_.end()) {
      MESH_TRY(make_directories(files_, directory_of(path)));
      MESH_TRY(remove_file(files_, path));
    } else {
      json::array items;
      for (const ObjectPtr& version : known->second) items.push_back(wrapped(version));
      MESH_TRY(replace_file(files_, path, json::serialize(items)));
    }
    damaged_.erase(path);
    unsaved_.erase(key);
  }
  return success();
}

}  // namespace mesh::control
