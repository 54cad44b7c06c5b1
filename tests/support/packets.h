// Frames made by hand, a device that sends and hears them, and a host with a bridge between two
// namespaces: what can go round the hooks of sockets.
#pragma once

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/datapath_fixture.h"

namespace mesh::test {

using Bytes = std::vector<std::uint8_t>;
using Mac = std::array<std::uint8_t, 6>;

template <class Range>
void append(Bytes& to, const Range& bytes) {
  to.insert(to.end(), std::begin(bytes), std::end(bytes));
}
inline void append16(Bytes& to, std::uint32_t value) {
  to.push_back(static_cast<std::uint8_t>(value >> 8U));
  to.push_back(static_cast<std::uint8_t>(value));
}
inline void append32(Bytes& to, std::uint32_t value) {
  append16(to, value >> 16U);
  append16(to, value & 0xffffU);
}
inline Bytes bytes_of(const IpAddress& address) {
  const auto& all = address.bytes();
  return {all.begin() + (address.is_v4() ? 12 : 0), all.end()};
}

inline std::string text_of(const Mac& mac) {
  char text[18];
  std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3],
                mac[4], mac[5]);
  return text;
}

inline std::uint16_t internet_sum(const Bytes& bytes, std::uint32_t sum = 0) {
  for (std::size_t i = 0; i < bytes.size(); i += 2)
    sum += static_cast<std::uint32_t>(bytes[i] << 8U) + (i + 1 < bytes.size() ? bytes[i + 1] : 0U);
  while (sum > 0xffff) sum = (sum & 0xffffU) + (sum >> 16U);
  return static_cast<std::uint16_t>(~sum);
}

enum TcpFlag : std::uint8_t { kFin = 1, kSyn = 2, kRst = 4, kPush = 8, kAck = 16 };

// A layer 4 payload with its own header; the checksum of TCP and ICMPv6 is filled in by
// `ip_packet`.
inline Bytes tcp(std::uint16_t from, std::uint16_t to, std::uint8_t flags, std::string_view data,
                 std::uint32_t sequence = 1000, std::uint32_t acknowledged = 0) {
  Bytes out;
  append16(out, from);
  append16(out, to);
  append32(out, sequence);
  append32(out, acknowledged);
  out.push_back(0x50);
  out.push_back(flags);
  append16(out, 64000);
  append32(out, 0);
  append(out, data);
  return out;
}
inline Bytes udp(std::uint16_t from, std::uint16_t to, std::string_view data) {
  Bytes out;
  append16(out, from);
  append16(out, to);
  append16(out, static_cast<std::uint32_t>(8 + data.size()));
  append16(out, 0);
  append(out, data);
  return out;
}
// ICMP or ICMPv6.
inline Bytes icmp(std::uint8_t type, std::string_view data, const Bytes& rest = {0, 1, 0, 1}) {
  Bytes out = {type, 0, 0, 0};
  append(out, rest);
  append(out, data);
  return out;
}
inline Bytes plain(std::string_view data) { return {data.begin(), data.end()}; }

struct Ip {
  std::string from, to;
  std::uint8_t protocol = IPPROTO_TCP;
  Bytes payload;
  Bytes options;               // IPv4
  std::uint16_t fragment = 0;  // flags and offset
  Bytes extension;             // IPv6: headers between; `first` is what the IP header names
  std::uint8_t first = 0;
};

// The sum over the pseudo-header of both families.
inline std::uint32_t pseudo_sum(const Ip& ip) {
  Bytes pseudo = bytes_of(IpAddress::parse(ip.from).value());
  append(pseudo, bytes_of(IpAddress::parse(ip.to).value()));
  append16(pseudo, ip.protocol);
  append16(pseudo, static_cast<std::uint32_t>(ip.payload.size()));
  return static_cast<std::uint16_t>(~internet_sum(pseudo));
}

inline Bytes ip_packet(Ip ip) {
  const auto set_sum = [&ip](std::size_t at, std::uint32_t start) {
    const std::uint16_t sum = internet_sum(ip.payload, start);
    ip.payload[at] = static_cast<std::uint8_t>(sum >> 8U);
    ip.payload[at + 1] = static_cast<std::uint8_t>(sum);
  };
  if (ip.fragment == 0 && ip.protocol == IPPROTO_TCP && ip.payload.size() >= 20)
    set_sum(16, pseudo_sum(ip));
  if (ip.fragment == 0 && ip.protocol == IPPROTO_ICMP) set_sum(2, 0);
  if (ip.protocol == IPPROTO_ICMPV6 && ip.payload.size() >= 4) set_sum(2, pseudo_sum(ip));
  const IpAddress from = IpAddress::parse(ip.from).value(), to = IpAddress::parse(ip.to).value();
  Bytes out;
  if (from.is_v4()) {
    out.push_back(static_cast<std::uint8_t>(0x45 + ip.options.size() / 4));
    out.push_back(0);
    append16(out, static_cast<std::uint32_t>(20 + ip.options.size() + ip.payload.size()));
    append16(out, 77);
    append16(out, ip.fragment);
    out.push_back(64);
    out.push_back(ip.protocol);
    append16(out, 0);
    append(out, bytes_of(from));
    append(out, bytes_of(to));
    append(out, ip.options);
    const std::uint16_t sum = internet_sum(out);
    out[10] = static_cast<std::uint8_t>(sum >> 8U);
    out[11] = static_cast<std::uint8_t>(sum);
  } else {
    append32(out, 0x60000000);
    append16(out, static_cast<std::uint32_t>(ip.extension.size() + ip.payload.size()));
    out.push_back(ip.extension.empty() ? ip.protocol : ip.first);
    out.push_back(255);
    append(out, bytes_of(from));
    append(out, bytes_of(to));
    append(out, ip.extension);
  }
  append(out, ip.payload);
  return out;
}

inline Bytes frame(const Mac& to, const Mac& from, const Bytes& content,
                   std::uint16_t type_or_zero = 0) {
  Bytes out;
  append(out, to);
  append(out, from);
  const bool is_v6 = !content.empty() && content[0] >> 4U == 6;
  append16(out, type_or_zero != 0 ? type_or_zero : is_v6 ? ETH_P_IPV6 : ETH_P_IP);
  append(out, content);
  return out;
}

// A packet socket at veth0 of a namespace.
class Wire {
 public:
  explicit Wire(const NetNs& ns) {
    ns.run([this] {
      fd_.reset(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
      ifreq request{};
      std::strcpy(request.ifr_name, "veth0");
      if (!fd_ || ::ioctl(fd_.get(), SIOCGIFHWADDR, &request) != 0) fixture_failed("veth0's MAC");
      std::memcpy(mac_.data(), request.ifr_hwaddr.sa_data, mac_.size());
      if (::ioctl(fd_.get(), SIOCGIFINDEX, &request) != 0) fixture_failed("veth0");
      sockaddr_ll here{};
      here.sll_family = AF_PACKET;
      here.sll_protocol = htons(ETH_P_ALL);
      here.sll_ifindex = request.ifr_ifindex;
      if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&here), sizeof here) != 0)
        fixture_failed("bind a packet socket");
    });
  }
  const Mac& mac() const { return mac_; }
  void send(const Bytes& bytes) const {
    if (::send(fd_.get(), bytes.data(), bytes.size(), 0) < 0) fixture_failed("send a frame");
  }
  // The next frame from elsewhere; empty when none came in time.
  Bytes receive(int timeout_ms = 30000) const {
    for (;;) {
      pollfd waiting{fd_.get(), POLLIN, 0};
      if (::poll(&waiting, 1, timeout_ms) != 1) return {};
      Bytes bytes(65536);
      sockaddr_ll from{};
      socklen_t size = sizeof from;
      const ssize_t got = ::recvfrom(fd_.get(), bytes.data(), bytes.size(), 0,
                                     reinterpret_cast<sockaddr*>(&from), &size);
      if (got < 0) fixture_failed("receive a frame");
      bytes.resize(static_cast<std::size_t>(got));
      if (from.sll_pkttype != PACKET_OUTGOING) return bytes;
    }
  }
  // All frames until one that carries `mark`.
  std::vector<Bytes> until(std::string_view mark) const {
    std::vector<Bytes> frames;
    for (;;) {
      Bytes next = receive();
      if (next.empty()) fixture_failed("a frame that was to come: " + std::string(mark));
      if (carries(next, mark)) return frames;
      frames.push_back(std::move(next));
    }
  }
  static bool carries(const Bytes& frame, std::string_view text) {
    return std::string_view(reinterpret_cast<const char*>(frame.data()), frame.size()).find(text) !=
           std::string_view::npos;
  }

 private:
  UniqueFd fd_;
  Mac mac_{};
};

// As sandboxes are: each workload has a veth device whose other end is in a bridge of the host,
// whose namespace is the test's own.
class BridgedTest : public DatapathTest {
 protected:
  void join() override {
    home_netns_.reset(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    host_.emplace(NetNs::create());
    host_->enter();
    add_bridge("br0");
    plug(*app_, "to-app", "10.9.0.1/24");
    plug(*server_, "to-server", "10.9.0.2/24");
  }
  void plug(const NetNs& ns, const std::string& device, const std::string& address) {
    add_veth(device, "veth0", ns.fd());
    plug_link(device, "br0");
    ns.set_up("veth0");
    ns.add_address("veth0", address);
    carries(ns, device);
  }
  // Both ends of a device that was set up send only when the kernel has seen their carrier, which
  // it does later, in a work queue: with many namespaces being taken down, seconds later.
  void carries(const NetNs& ns, const std::string& device) const {
    const auto until_up = [](const std::string& end) {
      for (int i = 0; i < 3000; ++i) {
        if (is_link_running(end)) return;
        ::usleep(10'000);
      }
      fixture_failed("no carrier at " + end);
    };
    host_->run([&] { until_up(device); });
    ns.run([&] { until_up("veth0"); });
  }
  void TearDown() override {
    DatapathTest::TearDown();
    if (home_netns_) ::setns(home_netns_.get(), CLONE_NEWNET);
  }

  UniqueFd home_netns_;
  std::optional<NetNs> host_;
};

}  // namespace mesh::test
