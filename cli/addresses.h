// The addresses of sandboxes: 10.77.x.y and fd77::(the same 16 bits). Pure but for the caller's
// file.
//
// They are given out in turn, so that one is not given again before all others were: a peer that
// still remembers a dead sandbox does not reach the wrong one.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "base/address.h"
#include "netlink.h"

namespace mesh::cli {

using AddressNumber = std::uint16_t;  // x * 256 + y; 1 is the bridge

inline constexpr const char* kBridge = "undermesh0";
inline constexpr AddressNumber kBridgeNumber = 1;

IpAddress address_v4(AddressNumber number);
IpAddress address_v6(AddressNumber number);
std::optional<AddressNumber> number_of(const IpAddress& v4);  // none outside 10.77/16
Mac link_address(AddressNumber number);       // of the sandbox's end: fixed by the address, so no
                                              // neighbour entry is ever stale
Mac host_link_address(AddressNumber number);  // of the host's end
std::string link_name(AddressNumber number);  // of the host's end: "um004d"

// The first number after `last` that is free and no .0 or .255; none when all are in use.
std::optional<AddressNumber> next_address(AddressNumber last, const std::set<AddressNumber>& used);

}  // namespace mesh::cli
