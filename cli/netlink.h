// The few rtnetlink operations that sandboxes need, over one NETLINK_ROUTE socket of the namespace
// that it was opened in. Each call is one request that the kernel acknowledges; refusals carry the
// kernel's own words. One thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/address.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::cli {

using Mac = std::array<std::uint8_t, 6>;
class NetlinkMessage;

class Netlink {
 public:
  static Result<Netlink> open();  // in the calling thread's network namespace

  Result<std::optional<int>> find_link(std::string_view name);  // its index
  // A bridge that is up, with a fixed address: otherwise it takes that of a port, and changes it as
  // ports come and go, under the neighbours' feet.
  Result<> create_bridge(std::string_view name, const Mac& mac);
  // `name` here, up, in the bridge; `peer` in the namespace behind `netns`, down.
  Result<> create_veth(std::string_view name, std::string_view bridge, std::string_view peer,
                       int netns, const Mac& mac, const Mac& peer_mac);
  Result<> delete_link(std::string_view name);  // no such link: success
  // It never gets an fe80:: address: no policy could name that.
  Result<> set_up(std::string_view name);
  Result<> add_address(std::string_view name, const IpBlock& block);  // no duplicate detection
  Result<> add_default_route(std::string_view name, const IpAddress& gateway);
  Result<> add_unreachable_route(const IpBlock& block);  // EHOSTUNREACH at once

 private:
  explicit Netlink(UniqueFd fd) : fd_(std::move(fd)) {}
  Result<> exchange(NetlinkMessage& message, std::string_view what);
  Result<int> index_of(std::string_view name);
  Result<> refuse_link_local(std::string_view name);

  UniqueFd fd_;
  std::uint32_t sequence_ = 0;
};

}  // namespace mesh::cli
