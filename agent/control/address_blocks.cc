#include "control/address_blocks.h"

#include <algorithm>

namespace mesh::control {
namespace {

// Bits of the mapped form that the block leaves open.
int open_bits(const IpBlock& block) {
  return (block.base.is_v4() ? 32 : 128) - block.prefix_length;
}

IpAddress first_address(const IpBlock& block) {
  IpAddress::Bytes bytes = block.base.bytes();
  for (int bit = 0; bit < open_bits(block); ++bit)
    bytes[static_cast<std::size_t>(15 - bit / 8)] &= static_cast<std::uint8_t>(~(1U << (bit % 8)));
  return IpAddress(bytes);
}

// None: it ends with its family.
std::optional<IpAddress> address_after(const IpBlock& block) {
  IpAddress::Bytes bytes = first_address(block).bytes();
  for (int bit = open_bits(block); bit < (block.base.is_v4() ? 32 : 128); ++bit) {
    const auto mask = static_cast<std::uint8_t>(1U << (bit % 8));
    std::uint8_t& byte = bytes[static_cast<std::size_t>(15 - bit / 8)];
    byte ^= mask;
    if (byte & mask) return IpAddress(bytes);  // no carry
  }
  return std::nullopt;
}

IpBlock only(const IpAddress& address) { return {address, address.is_v4() ? 32 : 128}; }

}  // namespace

IpBlock plain_block(const IpBlock& block) { return {first_address(block), block.prefix_length}; }

AddressBlocks::AddressBlocks(const std::vector<IpBlock>& named,
                             const std::vector<IpAddress>& node_addresses)
    : node_(node_addresses.begin(), node_addresses.end()) {
  std::set<IpBlock> once;
  for (const IpBlock& block : named) once.insert(plain_block(block));
  all_.assign(once.begin(), once.end());
  v4_ = stretches_of(true);
  v6_ = stretches_of(false);
}

// Blocks lie within each other or apart, and in this order a wider one comes first: those that are
// open at an address are a stack.
AddressBlocks::Stretches AddressBlocks::stretches_of(bool v4) const {
  Stretches stretches;
  std::vector<const IpBlock*> open;
  const auto begin_at = [&](const IpAddress& first) {
    if (!stretches.empty() && stretches.back().first == first) stretches.pop_back();
    Stretch stretch{first, {}, open.empty() ? nullptr : open.back()};
    for (const IpBlock* block : open) stretch.around += block->to_string() + ",";
    stretches.push_back(std::move(stretch));
  };
  const auto close_up_to = [&](const std::optional<IpAddress>& next) {
    while (!open.empty()) {
      const auto after = address_after(*open.back());
      if (next && (!after || *next < *after)) return;
      open.pop_back();
      if (after) begin_at(*after);
    }
  };
  begin_at(v4 ? IpAddress::v4(0, 0, 0, 0) : IpAddress());
  for (const IpBlock& block : all_) {
    if (block.base.is_v4() != v4) continue;
    close_up_to(block.base);
    open.push_back(&block);
    begin_at(block.base);
  }
  close_up_to(std::nullopt);
  return stretches;
}

const AddressBlocks::Stretch& AddressBlocks::stretch_of(const IpAddress& address) const {
  static const Stretch kNowhere;
  const Stretches& stretches = address.is_v4() ? v4_ : v6_;
  const auto next = std::ranges::upper_bound(stretches, address, {}, &Stretch::first);
  return next == stretches.begin() ? kNowhere : *(next - 1);
}

std::optional<IpAddress> AddressBlocks::first_of(const Stretches& stretches,
                                                 const IpBlock* innermost) const {
  for (std::size_t i = 0; i < stretches.size(); ++i) {
    if (stretches[i].innermost != innermost) continue;
    std::optional<IpAddress> at = stretches[i].first;
    while (at && is_this_node(*at)) at = address_after(only(*at));
    if (at && (i + 1 == stretches.size() || *at < stretches[i + 1].first)) return at;
  }
  return std::nullopt;
}

std::optional<IpAddress> AddressBlocks::own_address(const IpBlock& block) const {
  const auto found = std::ranges::lower_bound(all_, block);
  return first_of(block.base.is_v4() ? v4_ : v6_, &*found);
}

std::optional<IpAddress> AddressBlocks::outside_all() const {
  const auto found = first_of(v4_, nullptr);
  return found ? found : first_of(v6_, nullptr);
}

}  // namespace mesh::control
