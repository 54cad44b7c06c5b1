#include "netlink.h"

#include <linux/if_link.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "netlink_message.h"

namespace mesh::cli {

namespace {

constexpr std::uint16_t kCreate = NLM_F_CREATE | NLM_F_EXCL;

// The kernel's sentence for a refusal (NETLINK_EXT_ACK), empty when it gave none.
std::string kernel_words(const nlmsghdr* header, const nlmsgerr* error) {
  if (!(header->nlmsg_flags & NLM_F_ACK_TLVS)) return "";
  std::size_t skip = sizeof(nlmsgerr);
  if (!(header->nlmsg_flags & NLM_F_CAPPED)) skip += error->msg.nlmsg_len - sizeof(nlmsghdr);
  const char* at = reinterpret_cast<const char*>(error) + NLMSG_ALIGN(skip);
  const char* end = reinterpret_cast<const char*>(header) + header->nlmsg_len;
  while (at + sizeof(nlattr) <= end) {
    nlattr attribute;
    std::memcpy(&attribute, at, sizeof attribute);
    if (attribute.nla_len < sizeof attribute || at + attribute.nla_len > end) break;
    if ((attribute.nla_type & NLA_TYPE_MASK) == NLMSGERR_ATTR_MSG)
      return std::string(at + sizeof attribute,
                         ::strnlen(at + sizeof attribute, attribute.nla_len - sizeof attribute));
    at += NLA_ALIGN(attribute.nla_len);
  }
  return "";
}

ifinfomsg link_header(unsigned up) {
  ifinfomsg header{};
  header.ifi_family = AF_UNSPEC;
  header.ifi_flags = up;
  header.ifi_change = up;
  return header;
}

rtmsg route_header(const IpAddress& family_of, std::uint8_t type) {
  rtmsg header{};
  header.rtm_family = family_of.is_v4() ? AF_INET : AF_INET6;
  header.rtm_table = RT_TABLE_MAIN;
  header.rtm_protocol = RTPROT_STATIC;
  header.rtm_scope = RT_SCOPE_UNIVERSE;
  header.rtm_type = type;
  return header;
}

}  // namespace

Result<Netlink> Netlink::open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return errno_error(errno, "netlink socket");
  int on = 1;
  ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return errno_error(errno, "netlink bind");
  return Netlink(std::move(fd));
}

Result<> Netlink::exchange(NetlinkMessage& message, std::string_view what) {
  auto request = message.finish(++sequence_);
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0) return errno_error(errno, what);
  alignas(nlmsghdr) char buffer[16384];
  for (;;) {
    ssize_t n = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, what);
    auto left = static_cast<unsigned>(n);
    for (auto* header = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(header, left);
         header = NLMSG_NEXT(header, left)) {
      if (header->nlmsg_seq != sequence_ || header->nlmsg_type != NLMSG_ERROR) continue;
      auto* error = static_cast<nlmsgerr*>(NLMSG_DATA(header));
      if (error->error == 0) return success();
      Error out = errno_error(-error->error, what);
      if (std::string words = kernel_words(header, error); !words.empty())
        out.message += " (" + words + ")";
      return out;
    }
  }
}

Result<std::optional<int>> Netlink::find_link(std::string_view name) {
  ifinfomsg header = link_header(0);
  NetlinkMessage message(RTM_GETLINK, 0, header);
  message.attribute(IFLA_IFNAME, name);
  // The answer proper carries the index; the acknowledgement that follows is awaited by exchange().
  auto request = message.finish(++sequence_);
  if (::send(fd_.get(), request.data(), request.size(), 0) < 0)
    return errno_error(errno, "netlink send");
  std::optional<int> found;
  alignas(nlmsghdr) char buffer[32768];
  for (;;) {
    ssize_t n = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error(errno, "netlink receive");
    auto left = static_cast<unsigned>(n);
    for (auto* at = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(at, left);
         at = NLMSG_NEXT(at, left)) {
      if (at->nlmsg_seq != sequence_) continue;
      if (at->nlmsg_type == RTM_NEWLINK) found = static_cast<ifinfomsg*>(NLMSG_DATA(at))->ifi_index;
      if (at->nlmsg_type != NLMSG_ERROR) continue;
      int error = static_cast<nlmsgerr*>(NLMSG_DATA(at))->error;
      if (error == 0 || error == -ENODEV) return found;
      return errno_error(-error, "link " + std::string(name));
    }
  }
}

Result<int> Netlink::index_of(std::string_view name) {
  MESH_TRY(auto index, find_link(name));
  if (!index) return Error{Errc::not_found, "no link " + std::string(name)};
  return *index;
}

Result<> Netlink::create_bridge(std::string_view name, const Mac& mac) {
  NetlinkMessage message(RTM_NEWLINK, kCreate, link_header(0));
  message.attribute(IFLA_IFNAME, name);
  message.attribute(IFLA_ADDRESS, mac);
  message.nested(IFLA_LINKINFO, [&] { message.attribute(IFLA_INFO_KIND, "bridge"); });
  MESH_TRY(exchange(message, "cannot make the bridge " + std::string(name)));
  return set_up(name);
}

Result<> Netlink::create_veth(std::string_view name, std::string_view bridge, std::string_view peer,
                              int netns, const Mac& mac, const Mac& peer_mac) {
  MESH_TRY(auto master, index_of(bridge));
  NetlinkMessage message(RTM_NEWLINK, kCreate, link_header(0));
  message.attribute(IFLA_IFNAME, name);
  message.attribute(IFLA_ADDRESS, mac);
  message.attribute(IFLA_MASTER, static_cast<std::uint32_t>(master));
  message.nested(IFLA_LINKINFO, [&] {
    message.attribute(IFLA_INFO_KIND, "veth");
    message.nested(IFLA_INFO_DATA, [&] {
      message.nested(VETH_INFO_PEER, [&] {
        message.raw(link_header(0));
        message.attribute(IFLA_IFNAME, peer);
        message.attribute(IFLA_ADDRESS, peer_mac);
        message.attribute(IFLA_NET_NS_FD, static_cast<std::uint32_t>(netns));
      });
    });
  });
  MESH_TRY(exchange(message, "cannot make the link pair " + std::string(name)));
  return set_up(name);
}

Result<> Netlink::delete_link(std::string_view name) {
  NetlinkMessage message(RTM_DELLINK, 0, link_header(0));
  message.attribute(IFLA_IFNAME, name);
  auto deleted = exchange(message, "cannot delete the link " + std::string(name));
  if (!deleted && deleted.error().code == Errc::not_found) return success();
  return deleted;
}

// In a message of its own, while the link is down: the address is made as it comes up, and of a
// message that has both the kernel does IFF_UP first.
Result<> Netlink::refuse_link_local(std::string_view name) {
  NetlinkMessage message(RTM_NEWLINK, 0, link_header(0));
  message.attribute(IFLA_IFNAME, name);
  const std::uint8_t mode = IN6_ADDR_GEN_MODE_NONE;
  message.nested(IFLA_AF_SPEC, [&] {
    message.nested(AF_INET6,
                   [&] { message.attribute(IFLA_INET6_ADDR_GEN_MODE, &mode, sizeof mode); });
  });
  return exchange(message, "cannot keep link-local addresses off the link " + std::string(name));
}

Result<> Netlink::set_up(std::string_view name) {
  if (::access("/proc/net/if_inet6", F_OK) == 0) {
    MESH_TRY(refuse_link_local(name));
  }
  NetlinkMessage message(RTM_NEWLINK, 0, link_header(IFF_UP));
  message.attribute(IFLA_IFNAME, name);
  return exchange(message, "cannot bring up the link " + std::string(name));
}

Result<> Netlink::add_address(std::string_view name, const IpBlock& block) {
  MESH_TRY(auto index, index_of(name));
  ifaddrmsg header{};
  header.ifa_family = block.base.is_v4() ? AF_INET : AF_INET6;
  header.ifa_prefixlen = static_cast<std::uint8_t>(block.prefix_length);
  header.ifa_flags = block.base.is_v4() ? 0 : IFA_F_NODAD;
  header.ifa_index = static_cast<std::uint32_t>(index);
  NetlinkMessage message(RTM_NEWADDR, kCreate, header);
  message.attribute(IFA_LOCAL, block.base);
  message.attribute(IFA_ADDRESS, block.base);
  return exchange(message, "cannot give " + block.to_string() + " to " + std::string(name));
}

Result<> Netlink::add_default_route(std::string_view name, const IpAddress& gateway) {
  MESH_TRY(auto index, index_of(name));
  NetlinkMessage message(RTM_NEWROUTE, kCreate, route_header(gateway, RTN_UNICAST));
  message.attribute(RTA_GATEWAY, gateway);
  message.attribute(RTA_OIF, static_cast<std::uint32_t>(index));
  return exchange(message, "cannot add the default route by " + gateway.to_string());
}

Result<> Netlink::add_unreachable_route(const IpBlock& block) {
  rtmsg header = route_header(block.base, RTN_UNREACHABLE);
  header.rtm_dst_len = static_cast<std::uint8_t>(block.prefix_length);
  NetlinkMessage message(RTM_NEWROUTE, kCreate, header);
  message.attribute(RTA_DST, block.base);
  return exchange(message, "cannot make " + block.to_string() + " unreachable");
}

}  // namespace mesh::cli
