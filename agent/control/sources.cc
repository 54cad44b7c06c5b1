#include "control/sources.h"

#include <algorithm>
#include <set>

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::ObjectKey;
using config::ObjectPtr;
using config::Problem;

const json::object* spec_of(const config::Object& object) {
  const json::value* spec = object.tree.if_contains("spec");
  return spec ? spec->if_object() : nullptr;
}

std::string text_in(const json::object* object, std::string_view name) {
  const json::value* value = object ? object->if_contains(name) : nullptr;
  return value && value->is_string() ? std::string(value->get_string()) : std::string();
}

bool wants_address(const config::Object& object) {
  if (object.key.kind != "Service") return false;
  const json::object* spec = spec_of(object);
  return spec && text_in(spec, "clusterIP").empty() && text_in(spec, "type") != "ExternalName";
}

std::set<IpAddress> given_addresses(const std::vector<ObjectPtr>& objects) {
  std::set<IpAddress> taken;
  for (const ObjectPtr& object : objects)
    if (object->key.kind == "Service")
      if (auto ip = IpAddress::parse(text_in(spec_of(*object), "clusterIP")))
        taken.insert(ip.value());
  return taken;
}

}  // namespace

Sources::Sources(Store& store, Numbers& numbers, config::CompileOptions options)
    : store_(store), numbers_(numbers), options_(std::move(options)) {}

ObjectPtr Sources::with_address(const ObjectPtr& service, const std::set<IpAddress>& taken,
                                std::vector<Problem>& problems) {
  auto address = numbers_.service_address(service->key.ns + "/" + service->key.name, taken);
  if (!address) {
    Problem problem;
    problem.object = service->key;
    problem.file = service->file;
    problem.message = address.error().message;
    problems.push_back(std::move(problem));
    return service;
  }
  const std::string text = address.value().to_string();
  auto& known = addressed_[service->key];
  if (known.first == service && text_in(spec_of(*known.second), "clusterIP") == text)
    return known.second;
  auto changed = std::make_shared<config::Object>(*service);
  json::object& spec = changed->tree["spec"].as_object();
  spec["clusterIP"] = text;
  spec["clusterIPs"] = json::array{text};
  known = {service, changed};
  return changed;
}

std::vector<ObjectPtr> Sources::with_addresses(std::vector<ObjectPtr> objects,
                                               std::vector<Problem>& problems) {
  const std::set<IpAddress> taken = given_addresses(objects);
  for (ObjectPtr& object : objects)
    if (wants_address(*object)) object = with_address(object, taken, problems);
  return objects;
}

Compilation Sources::compile_objects(const std::vector<ObjectPtr>& stored, std::uint64_t version,
                                     const config::Snapshot* previous) {
  Compilation result;
  result.problems = store_.problems();
  result.objects = with_addresses(stored, result.problems);
  config::Compiled compiled = config::compile(result.objects, version, options_, previous);
  result.problems.insert(result.problems.end(), compiled.problems.begin(), compiled.problems.end());
  for (const ObjectKey& key : compiled.refused) result.refused[key] = false;
  std::vector<ObjectPtr> acting;
  bool replaced = false;
  for (const ObjectPtr& object : result.objects) {
    const auto refused = result.refused.find(object->key);
    if (refused == result.refused.end() || config::is_policy(object->key)) {
      acting.push_back(object);  // a refused policy is compiled to a refusal of all
      continue;
    }
    const ObjectPtr last = store_.last_accepted(object->key);
    if (!last || last->tree == object->tree) continue;
    acting.push_back(last);
    refused->second = replaced = true;
  }
  if (replaced) {
    std::vector<Problem> ignored;
    acting = with_addresses(std::move(acting), ignored);
    compiled = config::compile(acting, version, options_, previous);
    for (const ObjectKey& key : compiled.refused)
      if (auto known = result.refused.find(key); known != result.refused.end())
        known->second = false;
  }
  result.snapshot = compiled.snapshot;
  const std::set<ObjectKey> without(compiled.refused.begin(), compiled.refused.end());
  for (ObjectPtr& object : acting)
    if (!without.contains(object->key)) result.for_proxy.push_back(std::move(object));
  return result;
}

Compilation Sources::compile_with(const std::vector<ObjectPtr>& changed, std::uint64_t version) {
  std::map<ObjectKey, std::vector<ObjectPtr>> all;
  for (const ObjectPtr& object : store_.objects()) all[object->key].push_back(object);
  for (const ObjectPtr& object : changed) {
    std::vector<ObjectPtr>& versions = all[object->key];
    const std::string path = store_.object_path(object->key);
    std::erase_if(versions, [&](const ObjectPtr& version) {
      return versions.size() == 1 || version->file == path;
    });
    versions.push_back(object);
  }
  std::vector<ObjectPtr> objects;
  for (const auto& [key, versions] : all)
    objects.insert(objects.end(), versions.begin(), versions.end());
  return compile_objects(objects, version, nullptr);
}

Compilation Sources::compile(std::uint64_t version, const config::Snapshot* previous) {
  write_errors_.clear();
  const auto note = [this](const Result<>& written) {
    if (!written) write_errors_.push_back(written.error().message);
  };
  std::set<std::string> services;
  for (const ObjectPtr& object : store_.objects())
    if (object->key.kind == "Service") services.insert(object->key.ns + "/" + object->key.name);
  std::erase_if(addressed_, [&](const auto& item) {
    return !services.contains(item.first.ns + "/" + item.first.name);
  });
  Compilation result = compile_objects(store_.objects(), version, previous);
  numbers_.forget_services_but(services);
  note(numbers_.save());
  for (const ObjectPtr& object : store_.objects())
    if (!result.refused.contains(object->key)) note(store_.accept(object));
  note(store_.remember_policies());
  note(store_.forget_accepted_but(store_.objects()));
  return result;
}

}  // namespace mesh::control
