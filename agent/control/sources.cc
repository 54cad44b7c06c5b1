#include "control/sources.h"

#include <algorithm>
#include <set>

namespace mesh::control {
namespace {

namespace json = boost::json;
using config::ObjectKey;
using config::ObjectPtr;
using config::Objects;
using config::Problem;

const json::object* spec_of(const config::Object& object) {
  const json::value* spec = object.tree.if_contains("spec");
  return spec ? spec->if_object() : nullptr;
}

std::string text_in(const json::object* object, std::string_view name) {
  const json::value* value = object ? object->if_contains(name) : nullptr;
  return value && value->is_string() ? std::string(value->get_string()) : std::string();
}

// The texts of a list; what is none is the compiler's to refuse.
std::vector<std::string> texts_in(const json::object* object, std::string_view name) {
  std::vector<std::string> texts;
  const json::value* list = object ? object->if_contains(name) : nullptr;
  if (list && list->is_array())
    for (const json::value& text : list->get_array())
      if (text.is_string()) texts.emplace_back(text.get_string());
  return texts;
}

bool wants_addresses(const ObjectKey& key) {
  return key.kind == "Service" || key.kind == "ServiceEntry";
}

std::string key_text(const ObjectKey& key) { return key.ns + "/" + key.name; }

// Those of an object that want an address of their own: the Service itself (""), or each host of a
// ServiceEntry.
std::vector<std::string> hosts_without_address(const config::Object& object) {
  const json::object* spec = spec_of(object);
  if (!spec) return {};
  if (object.key.kind == "Service") {
    const bool wants =
        text_in(spec, "clusterIP").empty() && text_in(spec, "type") != "ExternalName";
    return wants ? std::vector<std::string>{""} : std::vector<std::string>{};
  }
  const std::string resolution = text_in(spec, "resolution");
  if (object.key.kind != "ServiceEntry" || resolution.empty() || resolution == "NONE" ||
      !texts_in(spec, "addresses").empty())
    return {};
  std::vector<std::string> hosts;
  for (const std::string& host : texts_in(spec, "hosts")) hosts.push_back(config::plain_host(host));
  return hosts;
}

// What the host's address is kept under.
std::string number_key(const ObjectKey& key, const std::string& host) {
  return host.empty() ? key_text(key) : "ServiceEntry " + key_text(key) + " " + host;
}

std::set<IpAddress> given_addresses(const Objects& objects) {
  std::set<IpAddress> taken;
  const auto take = [&](const std::string& text) {
    if (auto ip = IpAddress::parse(text)) taken.insert(ip.value());
  };
  for (const ObjectPtr& object : objects)
    if (object->key.kind == "Service")
      take(text_in(spec_of(*object), "clusterIP"));
    else if (object->key.kind == "ServiceEntry")
      std::ranges::for_each(texts_in(spec_of(*object), "addresses"), take);
  return taken;
}

// `tree` with its addresses in it, as Kubernetes and Istio write them.
void write_addresses(const std::map<std::string, IpAddress>& addresses, json::object& tree) {
  if (const auto own = addresses.find(""); own != addresses.end()) {
    json::object& spec = tree["spec"].as_object();
    const std::string text = own->second.to_string();
    spec["clusterIP"] = text;
    spec["clusterIPs"] = json::array{text};
    return;
  }
  json::array list;
  for (const auto& [host, ip] : addresses)
    list.push_back(json::object{{"value", ip.to_string()}, {"host", host}});
  json::value& status = tree["status"];
  if (!status.is_object()) status.emplace_object();
  status.get_object()["addresses"] = std::move(list);
}

}  // namespace

Sources::Sources(Store& store, Numbers& numbers, config::CompileOptions options)
    : store_(store), numbers_(numbers), options_(std::move(options)) {}

ObjectPtr Sources::with_address(const ObjectPtr& service, const std::vector<std::string>& hosts,
                                const std::set<IpAddress>& taken, std::vector<Problem>& problems) {
  std::map<std::string, IpAddress> addresses;
  for (const std::string& host : hosts) {
    const auto address = numbers_.service_address(number_key(service->key, host), taken);
    if (!address) {
      Problem problem;
      problem.object = service->key;
      problem.file = service->file;
      problem.message = address.error().message;
      problems.push_back(std::move(problem));
      return service;
    }
    addresses.emplace(host, address.value());
  }
  Addressed& known = addressed_[service->key];
  // One that has them already (of what acted last) stays what it is.
  if ((known.written == service || known.complete == service) && known.addresses == addresses)
    return known.complete;
  auto complete = std::make_shared<config::Object>(*service);
  write_addresses(addresses, complete->tree);
  known = {service, std::move(complete), std::move(addresses)};
  return known.complete;
}

Objects Sources::with_addresses(const Objects& objects, std::vector<Problem>& problems) {
  const std::set<IpAddress> taken = given_addresses(objects);
  std::map<ObjectKey, Objects::Versions> others;
  for (const ObjectPtr& object : objects)
    if (const auto hosts = hosts_without_address(*object); !hosts.empty()) {
      const auto [known, is_new] = others.try_emplace(object->key);
      if (is_new) known->second = objects.versions(object->key);
      std::ranges::replace(known->second, object, with_address(object, hosts, taken, problems));
    }
  Objects complete = objects;
  for (auto& [key, versions] : others) complete.set(key, std::move(versions));
  return complete;
}

// Where no service is another, each has the address that it had.
Objects Sources::follow_addresses(const Objects& stored, std::vector<Problem>& problems) {
  bool is_known = complete_.has_value();
  std::map<ObjectKey, Objects::Versions> others;
  if (complete_)
    each_change(complete_->stored, stored, [&](const ObjectPtr& before, const ObjectPtr& now) {
      const ObjectKey& key = (now ? now : before)->key;
      is_known = is_known && !wants_addresses(key);
      if (is_known) others.try_emplace(key, stored.versions(key));
    });
  if (is_known) {
    for (auto& [key, versions] : others) complete_->objects.set(key, std::move(versions));
    complete_->stored = stored;
    return complete_->objects;
  }
  const std::size_t before = problems.size();
  Objects complete = with_addresses(stored, problems);
  complete_.reset();
  if (problems.size() == before) complete_ = {stored, complete};
  return complete;
}

// Without what is refused, or with its last accepted version; a refused policy is compiled to a
// refusal of all.
Objects Sources::acting_objects(Compilation& compiled, bool& replaced) const {
  Objects acting = compiled.objects;
  for (auto& [key, has_last] : compiled.refused) {
    if (config::is_policy(key)) continue;
    const ObjectPtr last = store_.last_accepted(key);
    Objects::Versions versions;
    for (const ObjectPtr& object : compiled.objects.versions(key))
      if (last && last->tree != object->tree) versions.push_back(last);
    if (!versions.empty()) has_last = replaced = true;
    acting.set(key, std::move(versions));
  }
  return acting;
}

Compilation Sources::compile_objects(const Objects& stored, std::uint64_t version,
                                     const config::Snapshot* previous, bool is_candidate) {
  const auto compiled_as_a_whole = [&](const Objects& objects) {
    return config::compile({objects.begin(), objects.end()}, version, options_, previous);
  };
  Compilation result;
  result.problems = store_.problems();
  result.objects = is_candidate ? with_addresses(stored, result.problems)
                                : follow_addresses(stored, result.problems);
  std::optional<config::Compiled> followed;
  if (last_ && last_->compiled.snapshot.get() == previous)
    followed =
        config::recompile(last_->compiled, last_->objects, result.objects, version, options_);
  config::Compiled compiled = followed ? *std::move(followed) : compiled_as_a_whole(result.objects);
  result.problems.insert(result.problems.end(), compiled.problems.begin(), compiled.problems.end());
  for (const ObjectKey& key : compiled.refused) result.refused[key] = false;
  bool replaced = false;
  Objects acting = acting_objects(result, replaced);
  if (!is_candidate) last_.reset();
  if (!is_candidate && !replaced) last_ = {result.objects, compiled};
  if (replaced) {
    std::vector<Problem> ignored;
    acting = with_addresses(acting, ignored);
    if (!is_candidate) complete_.reset();  // it may have moved an address
    compiled = compiled_as_a_whole(acting);
    for (const ObjectKey& key : compiled.refused)
      if (auto known = result.refused.find(key); known != result.refused.end())
        known->second = false;
  }
  result.snapshot = compiled.snapshot;
  result.for_proxy = std::move(acting);
  for (const ObjectKey& key : compiled.refused) result.for_proxy.set(key, {});
  return result;
}

Compilation Sources::compile_with(const std::vector<ObjectPtr>& changed, std::uint64_t version) {
  Objects objects = store_.objects();
  for (const ObjectPtr& object : changed) {
    Objects::Versions versions = objects.versions(object->key);
    const std::string path = store_.object_path(object->key);
    const bool is_only = versions.size() == 1;
    std::erase_if(versions,
                  [&](const ObjectPtr& version) { return is_only || version->file == path; });
    versions.push_back(object);
    objects.set(object->key, std::move(versions));
  }
  // Anybody who may read may ask this: no service that is at work may get another address by it.
  auto addresses = numbers_.addresses();
  auto addressed = addressed_;
  Compilation result =
      compile_objects(objects, version, last_ ? last_->compiled.snapshot.get() : nullptr, true);
  numbers_.put_back(std::move(addresses));
  addressed_ = std::move(addressed);
  return result;
}

Compilation Sources::compile(std::uint64_t version, const config::Snapshot* previous) {
  write_errors_.clear();
  Compilation result = compile_objects(store_.objects(), version, previous, false);
  keep(result);
  return result;
}

// What did not change since the last time was kept then.
void Sources::keep(const Compilation& compiled) {
  const auto note = [this](const Result<>& written) {
    if (!written) write_errors_.push_back(written.error().message);
  };
  const Objects& objects = store_.objects();
  bool are_addresses_due = !kept_, are_policies_due = !kept_, is_any_gone = !kept_;
  std::vector<ObjectPtr> changed;
  each_change(kept_.value_or(Objects()), objects,
              [&](const ObjectPtr& before, const ObjectPtr& now) {
                const ObjectKey& key = (now ? now : before)->key;
                are_addresses_due = are_addresses_due || wants_addresses(key);
                are_policies_due = are_policies_due || config::is_policy(key);
                is_any_gone = is_any_gone || !now;
                if (now) changed.push_back(now);
              });
  for (const ObjectKey& key : kept_refused_)
    if (const ObjectPtr object = store_.find(key)) changed.push_back(object);
  if (are_addresses_due) forget_addresses(compiled);
  note(numbers_.save());
  for (const ObjectPtr& object : changed)
    if (!compiled.refused.contains(object->key)) note(store_.accept(object));
  if (are_policies_due) note(store_.remember_policies());
  if (is_any_gone) note(store_.forget_accepted_but(objects));
  kept_.reset();
  if (write_errors_.empty()) kept_ = objects;
  kept_refused_.clear();
  for (const auto& [key, acts] : compiled.refused) kept_refused_.insert(key);
}

// Of what there is no more. Of what is refused the last accepted version acts, with its addresses.
void Sources::forget_addresses(const Compilation& compiled) {
  std::set<std::string> services;
  std::set<ObjectKey> kept;
  const auto keep_hosts = [&](const config::Object& object) {
    for (const std::string& host : hosts_without_address(object))
      services.insert(number_key(object.key, host));
  };
  for (const ObjectPtr& object : store_.objects()) {
    if (!wants_addresses(object->key)) continue;
    kept.insert(object->key);
    if (object->key.kind == "Service") services.insert(key_text(object->key));
    keep_hosts(*object);
  }
  for (const auto& [key, acts] : compiled.refused)
    if (const ObjectPtr last = store_.last_accepted(key)) keep_hosts(*last);
  std::erase_if(addressed_, [&](const auto& item) { return !kept.contains(item.first); });
  numbers_.forget_services_but(services);
}

}  // namespace mesh::control
