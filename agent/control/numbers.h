// Numbers: what must keep its number or address through every restart: service addresses, and the
// ids that the kernel's maps hold. Kept in one file, written before a new number is used.
//
// A number is never given twice, also not after its name is gone: a map entry that still has it
// must not come to mean something else. Names that nobody asks for any more are forgotten, so that
// the file stays bounded. A resource; one thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "base/address.h"
#include "base/result.h"
#include "control/files.h"

namespace mesh::control {

enum class Space : std::uint8_t { kWorkload, kService, kSet, kPolicy, kClass };
inline constexpr std::size_t kSpaces = 5;

class Numbers {
 public:
  // range: where service addresses come from; IPv4, at least 16 addresses.
  Numbers(Files& files, std::string path, IpBlock range);
  Result<> load();
  const IpBlock& range() const { return range_; }

  std::uint32_t number(Space space, const std::string& name);  // the name's, or the next free one
  const std::map<std::string, std::uint32_t>& names(Space space) const { return of(space).numbers; }
  void forget(Space space, const std::string& name);
  void keep_only(Space space, const std::function<bool(std::uint32_t)>& keep);
  void reserve_up_to(Space space, std::uint32_t used);  // numbers that the kernel still has

  // The service's address, its own one when it has one already. exhausted: the range is full.
  Result<IpAddress> service_address(const std::string& service, const std::set<IpAddress>& taken);
  void forget_services_but(const std::set<std::string>& services);
  // What these two change: taken before a trial and put back after it, nothing of it stays.
  struct Addresses {
    std::map<std::string, IpAddress> given;  // by service
    std::uint32_t next = 1;                  // where the search for a free one goes on
    bool are_changed = false;                // since they were saved
  };
  const Addresses& addresses() const { return addresses_; }
  void put_back(Addresses addresses) { addresses_ = std::move(addresses); }

  // Writes what changed. Call before anything is done with a new number.
  Result<> save();

 private:
  struct Named {
    std::map<std::string, std::uint32_t> numbers;
    std::uint32_t next = 1;
  };
  Named& of(Space space) { return spaces_[static_cast<std::size_t>(space)]; }
  const Named& of(Space space) const { return spaces_[static_cast<std::size_t>(space)]; }
  IpAddress at(std::uint32_t offset) const;

  Files& files_;
  std::string path_;
  IpBlock range_;
  Named spaces_[kSpaces];
  Addresses addresses_;
  bool changed_ = false;  // the numbers
};

}  // namespace mesh::control
