// AddressBlocks: the address blocks that policies name, and which of them an address is in.
//
// Looking an address up takes the logarithm of the number of blocks: they are cut into
// stretches of addresses that lie in the same of them.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/address.h"

namespace mesh::control {

// However it is written: with no bit set behind its prefix.
IpBlock plain_block(const IpBlock& block);

class AddressBlocks {
 public:
  AddressBlocks(const std::vector<IpBlock>& named, const std::vector<IpAddress>& node_addresses);
  AddressBlocks(const AddressBlocks&) = delete;  // stretches point into all_
  AddressBlocks& operator=(const AddressBlocks&) = delete;

  const std::vector<IpBlock>& all() const { return all_; }  // each once, however it is written
  bool is_this_node(const IpAddress& address) const { return node_.contains(address); }
  // The names of those that an address is in.
  const std::string& around(const IpAddress& address) const { return stretch_of(address).around; }
  // An address of the block that is in no smaller one; none: these cover it. Not this node's, which
  // policies treat as such.
  std::optional<IpAddress> own_address(const IpBlock& block) const;
  // An address that is in none, and not this node's.
  std::optional<IpAddress> outside_all() const;

 private:
  struct Stretch {  // up to the next one
    IpAddress first;
    std::string around;
    const IpBlock* innermost = nullptr;  // null: none
  };
  using Stretches = std::vector<Stretch>;

  Stretches stretches_of(bool v4) const;
  const Stretch& stretch_of(const IpAddress& address) const;
  std::optional<IpAddress> first_of(const Stretches& stretches, const IpBlock* innermost) const;

  std::vector<IpBlock> all_;
  std::set<IpAddress> node_;
  Stretches v4_, v6_;  // of each family, all its addresses
};

}  // namespace mesh::control
