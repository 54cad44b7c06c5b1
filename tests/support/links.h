// Links and addresses of a test's namespaces, by rtnetlink: a program for each would cost an
// emulated machine seconds in every test. All act in the calling thread's namespace; what fails
// ends the test process.
#pragma once

#include <linux/if_link.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/unique_fd.h"
#include "cli/netlink_message.h"
#include "tests/support/fixture_failed.h"

namespace mesh::test {

inline void route_request(cli::NetlinkMessage& message, const std::string& what) {
  const UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  const auto request = message.finish(1);
  if (!fd || ::send(fd.get(), request.data(), request.size(), 0) < 0) fixture_failed(what);
  struct {
    nlmsghdr head;
    nlmsgerr error;
    char rest[4096];
  } answer{};
  if (::recv(fd.get(), &answer, sizeof answer, 0) < 0) fixture_failed(what);
  errno = -answer.error.error;
  if (answer.head.nlmsg_type != NLMSG_ERROR || errno != 0) fixture_failed(what);
}

inline ifinfomsg link_head(unsigned flags = 0) {
  ifinfomsg head{};
  head.ifi_flags = head.ifi_change = flags;
  return head;
}

constexpr std::uint16_t kMakeNew = NLM_F_CREATE | NLM_F_EXCL;

inline void set_link_up(const std::string& name) {
  cli::NetlinkMessage message(RTM_NEWLINK, 0, link_head(IFF_UP));
  message.attribute(IFLA_IFNAME, name);
  route_request(message, "set up " + name);
}

// Up, and it sends multicast to all, also to who did not ask for it.
inline void add_bridge(const std::string& name) {
  cli::NetlinkMessage message(RTM_NEWLINK, kMakeNew, link_head(IFF_UP));
  message.attribute(IFLA_IFNAME, name);
  message.nested(IFLA_LINKINFO, [&] {
    message.attribute(IFLA_INFO_KIND, "bridge");
    message.nested(IFLA_INFO_DATA, [&] {
      const std::uint8_t snooping = 0;
      message.attribute(IFLA_BR_MCAST_SNOOPING, &snooping, sizeof snooping);
    });
  });
  route_request(message, "add the bridge " + name);
}

// In a bridge, and up.
inline void plug_link(const std::string& name, const std::string& bridge) {
  cli::NetlinkMessage message(RTM_NEWLINK, 0, link_head(IFF_UP));
  message.attribute(IFLA_IFNAME, name);
  message.attribute(IFLA_MASTER, ::if_nametoindex(bridge.c_str()));
  route_request(message, "put " + name + " into " + bridge);
}

// The other end is `peer`, in the namespace behind `netns`. Both are down.
inline void add_veth(const std::string& name, const std::string& peer, int netns) {
  cli::NetlinkMessage message(RTM_NEWLINK, kMakeNew, link_head());
  message.attribute(IFLA_IFNAME, name);
  message.nested(IFLA_LINKINFO, [&] {
    message.attribute(IFLA_INFO_KIND, "veth");
    message.nested(IFLA_INFO_DATA, [&] {
      message.nested(VETH_INFO_PEER, [&] {
        message.raw(link_head());
        message.attribute(IFLA_IFNAME, peer);
        message.attribute(IFLA_NET_NS_FD, static_cast<std::uint32_t>(netns));
      });
    });
  });
  route_request(message, "add the veth pair " + name);
}

inline void add_link_address(const std::string& name, const IpBlock& block) {
  ifaddrmsg head{};
  head.ifa_family = block.base.is_v4() ? AF_INET : AF_INET6;
  head.ifa_prefixlen = static_cast<std::uint8_t>(block.prefix_length);
  head.ifa_flags = block.base.is_v4() ? 0 : IFA_F_NODAD;
  head.ifa_index = ::if_nametoindex(name.c_str());
  cli::NetlinkMessage message(RTM_NEWADDR, kMakeNew, head);
  message.attribute(IFA_LOCAL, block.base);
  message.attribute(IFA_ADDRESS, block.base);
  route_request(message, "give " + name + " an address");
}

// It has seen its carrier, and sends.
inline bool is_link_running(const std::string& name) {
  const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  name.copy(request.ifr_name, sizeof request.ifr_name - 1);
  if (::ioctl(fd.get(), SIOCGIFFLAGS, &request) != 0) fixture_failed("flags of " + name);
  return (request.ifr_flags & IFF_RUNNING) != 0;
}

}  // namespace mesh::test
