#include "control/numbers.h"

#include <boost/json.hpp>
#include <utility>

namespace mesh::control {
namespace {

namespace json = boost::json;

constexpr std::string_view kSpaceNames[kSpaces] = {"workloads", "services", "sets", "policies",
                                                   "classes"};
constexpr std::uint32_t kFirstWorkload = 2;  // 1 is the node's gateway

std::uint32_t number_in(const json::object& object, std::string_view name, std::uint32_t absent) {
  const json::value* value = object.if_contains(name);
  json::error_code error;
  const auto number = value ? value->to_number<std::uint32_t>(error) : absent;
  return error ? absent : number;
}

}  // namespace

Numbers::Numbers(Files& files, std::string path, IpBlock range)
    : files_(files), path_(std::move(path)), range_(std::move(range)) {
  of(Space::kWorkload).next = kFirstWorkload;
}

Result<> Numbers::load() {
  auto text = files_.read(path_);
  if (!text) {
    if (text.error().code == Errc::not_found) return success();
    return std::move(text).as_failure();
  }
  json::error_code error;
  const json::value value = json::parse(text.value(), error);
  if (error || !value.is_object())
    return Error{Errc::internal, path_ + ": damaged; run `meshctl down --purge` and `meshctl up`"};
  const json::object& root = value.get_object();
  for (std::size_t i = 0; i < kSpaces; ++i) {
    const json::value* space = root.if_contains(kSpaceNames[i]);
    if (!space || !space->is_object()) continue;
    spaces_[i].next = number_in(space->get_object(), "next", spaces_[i].next);
    if (const json::value* names = space->get_object().if_contains("numbers");
        names && names->is_object())
      for (const auto& [name, number] : names->get_object())
        spaces_[i].numbers[std::string(name)] = number_in(names->get_object(), name, 0);
  }
  addresses_.next = number_in(root, "next_address", 1);
  if (const json::value* addresses = root.if_contains("addresses");
      addresses && addresses->is_object())
    for (const auto& [service, address] : addresses->get_object())
      if (auto ip = address.is_string() ? IpAddress::parse(address.get_string().c_str())
                                        : IpAddress::parse("");
          ip && range_.contains(ip.value()))
        addresses_.given[std::string(service)] = ip.value();
  return success();
}

std::uint32_t Numbers::number(Space space, const std::string& name) {
  Named& named = of(space);
  const auto [at, is_new] = named.numbers.try_emplace(name, named.next);
  if (is_new) {
    ++named.next;
    changed_ = true;
  }
  return at->second;
}

void Numbers::keep_only(Space space, const std::function<bool(std::uint32_t)>& keep) {
  const auto is_unused = [&](const auto& item) { return !keep(item.second); };
  if (std::erase_if(of(space).numbers, is_unused) != 0) changed_ = true;
}

void Numbers::forget(Space space, const std::string& name) {
  if (of(space).numbers.erase(name) != 0) changed_ = true;
}

void Numbers::reserve_up_to(Space space, std::uint32_t used) {
  if (of(space).next > used) return;
  of(space).next = used + 1;
  changed_ = true;
}

IpAddress Numbers::at(std::uint32_t offset) const {
  IpAddress::Bytes bytes = range_.base.bytes();
  for (std::size_t i = 16; offset != 0 && i-- > 12;) {
    offset += bytes[i];
    bytes[i] = static_cast<std::uint8_t>(offset);
    offset >>= 8U;
  }
  return IpAddress(bytes);
}

// Addresses go round the range, so that one that was just freed is not the next to be given.
Result<IpAddress> Numbers::service_address(const std::string& service,
                                           const std::set<IpAddress>& taken) {
  if (const auto known = addresses_.given.find(service);
      known != addresses_.given.end() && !taken.contains(known->second))
    return known->second;
  std::set<IpAddress> used = taken;
  for (const auto& [name, address] : addresses_.given) used.insert(address);
  const std::uint32_t size = 1U << static_cast<unsigned>(32 - range_.prefix_length);
  for (std::uint32_t tried = 0; tried < size; ++tried) {
    if (addresses_.next == 0 || addresses_.next >= size - 1) addresses_.next = 1;
    const IpAddress candidate = at(addresses_.next++);
    if (used.contains(candidate)) continue;
    addresses_.are_changed = true;
    addresses_.given[service] = candidate;
    return candidate;
  }
  return Error{Errc::exhausted, "no service address is left in " + range_.to_string() +
                                    "; delete services or give a larger --service-cidr"};
}

void Numbers::forget_services_but(const std::set<std::string>& services) {
  const auto is_gone = [&](const auto& item) { return !services.contains(item.first); };
  if (std::erase_if(addresses_.given, is_gone) != 0) addresses_.are_changed = true;
}

Result<> Numbers::save() {
  if (!changed_ && !addresses_.are_changed) return success();
  json::object root;
  for (std::size_t i = 0; i < kSpaces; ++i) {
    json::object numbers;
    for (const auto& [name, number] : spaces_[i].numbers) numbers[name] = number;
    root[kSpaceNames[i]] = {{"next", spaces_[i].next}, {"numbers", std::move(numbers)}};
  }
  json::object addresses;
  for (const auto& [service, address] : addresses_.given) addresses[service] = address.to_string();
  root["addresses"] = std::move(addresses);
  root["next_address"] = addresses_.next;
  MESH_TRY(replace_file(files_, path_, json::serialize(root)));
  changed_ = addresses_.are_changed = false;
  return success();
}

}  // namespace mesh::control
