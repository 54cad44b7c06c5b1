// A strict workload's packets, live, at the host's side of its link: each way round the hooks of
// its sockets, in both modes.
#include <gmock/gmock.h>
#include <netinet/tcp.h>

#include <functional>

#include "datapath/byte_order.h"
#include "tests/support/datagrams.h"
#include "tests/support/eventually.h"
#include "tests/support/packets.h"

namespace mesh::test {
namespace {

constexpr std::uint16_t kAllowed = 8080, kForbidden = 8081;
// Milliseconds: of who shall be answered, and of who shall not.
constexpr int kPatience = 30'000, kNoAnswer = 300;

// The application may go to 10.9.0.2 and fd09::2, but not to port 8081; nobody may come to its own
// port 8081.
class PacketTest : public BridgedTest {
 protected:
  void SetUp() override {
    BridgedTest::SetUp();
    if (IsSkipped()) return;
    accept_on_both_servers();
    app_wire_.emplace(*app_);
    server_wire_.emplace(*server_);
    for (const char* address : {"10.9.0.2", "fd09::2"}) has_set(address, 5);
    for (const auto peer : {kAppClass, 0U})
      for (const auto transport : {datapath::Transport::kTcp, datapath::Transport::kUdp}) {
        state_.sets[5][{peer, transport, 0, 65535}] = {true, 51, 0};
        state_.sets[5][{peer, transport, kForbidden, kForbidden}] = {false, 52, 0};
      }
    state_.workloads[kApp].ingress = 5;
  }
  void is_strict(bool strict) {
    state_.workloads[kApp].strict = strict;
    apply_all();
    EXPECT_THAT(datapath_->uncovered(), testing::IsEmpty());
  }

  Bytes from_app(const Bytes& content, std::uint16_t type = 0) const {
    return frame(server_wire_->mac(), app_wire_->mac(), content, type);
  }
  Bytes from_server(const Bytes& content, std::uint16_t type = 0) const {
    return frame(app_wire_->mac(), server_wire_->mac(), content, type);
  }
  // Whether a frame that the application sends reaches the other end; it carries "<it>".
  bool leaves(const Bytes& sent) {
    const std::string end = next_end();
    app_wire_->send(sent);
    app_wire_->send(from_app(ip_packet({"10.9.0.1", "10.9.0.2", IPPROTO_ICMP, icmp(0, end)})));
    return is_among(server_wire_->until(end), sent);
  }
  bool arrives(const Bytes& sent) {
    const std::string end = next_end();
    server_wire_->send(sent);
    server_wire_->send(
        from_server(ip_packet({"10.9.0.2", "10.9.0.1", IPPROTO_ICMP, icmp(0, end)})));
    return is_among(app_wire_->until(end), sent);
  }
  std::string next_end() { return "<end " + std::to_string(++ends_) + ">"; }
  // A packet socket hears a VLAN's frame without its tag; an ICMP error that quotes it is longer.
  static bool is_among(const std::vector<Bytes>& seen, const Bytes& sent) {
    return std::ranges::any_of(seen, [&](const Bytes& frame) {
      return Wire::carries(frame, "<it>") &&
             (frame.size() == sent.size() || frame.size() + 4 == sent.size());
    });
  }

  int ends_ = 0;
  std::optional<Wire> app_wire_, server_wire_;
};

struct Way {
  std::string name;
  Bytes content;
  std::string counter;  // of the drop; empty: it passes in both modes
  std::uint16_t type = 0;
};

Ip v4(std::uint8_t protocol, const Bytes& payload) {
  return {"10.9.0.1", "10.9.0.2", protocol, payload};
}
Ip v6(std::uint8_t protocol, const Bytes& payload) {
  return {"fd09::1", "fd09::2", protocol, payload};
}
Ip with_options(Ip ip, Bytes options) {
  ip.options = std::move(options);
  return ip;
}
Ip as_fragment(Ip ip, std::uint16_t fragment) {
  ip.fragment = fragment;
  return ip;
}
Ip with_extension(Ip ip, std::uint8_t first, Bytes extension) {
  ip.first = first;
  ip.extension = std::move(extension);
  return ip;
}
Ip between(Ip ip, const std::string& from, const std::string& to) {
  ip.from = from;
  ip.to = to;
  return ip;
}
Bytes vlan(const Bytes& packet) {
  Bytes out = {0, 5, 8, 0};
  append(out, packet);
  return out;
}
Bytes arp(const std::string& sender) {
  Bytes out = {0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1};
  append(out, bytes_of(ip(sender)));
  append(out, Bytes{2, 0, 0, 0, 0, 2, 10, 9, 0, 2});
  append(out, std::string_view("<it>"));
  return out;
}
Bytes advertisement(const std::string& target) {
  Bytes rest = {0x20, 0, 0, 0};
  append(rest, bytes_of(ip(target)));
  return icmp(136, "<it>", rest);
}

const Bytes kSynAllowed = tcp(4000, kAllowed, kSyn, "<it>");
const Bytes kSynForbidden = tcp(4000, kForbidden, kSyn, "<it>");
const Bytes kDatagramAllowed = udp(4000, kAllowed, "<it>");
const Bytes kDatagramForbidden = udp(4000, kForbidden, "<it>");
const Bytes kRouterAlert = {IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0};

std::vector<Way> ways_out() {
  const auto more = [](std::uint8_t next, std::uint8_t flag, std::uint8_t offset = 0) {
    return Bytes{next, 0, 0, static_cast<std::uint8_t>(offset | flag), 0, 0, 0, 9};
  };
  return {
      {"a SYN that policy allows", ip_packet(v4(6, kSynAllowed)), ""},
      {"the same by IPv6", ip_packet(v6(6, kSynAllowed)), ""},
      {"a datagram that policy allows", ip_packet(v4(17, kDatagramAllowed)), ""},
      {"a SYN", ip_packet(v4(6, kSynForbidden)), "connects_denied_policy"},
      {"a SYN by IPv6", ip_packet(v6(6, kSynForbidden)), "connects_denied_policy"},
      {"a SYN with other flags", ip_packet(v4(6, tcp(4000, kForbidden, kSyn | kPush, "<it>"))),
       "connects_denied_policy"},
      {"a datagram", ip_packet(v4(17, kDatagramForbidden)), "connects_denied_policy"},
      {"a datagram by IPv6", ip_packet(v6(17, kDatagramForbidden)), "connects_denied_policy"},
      {"a segment that opens nothing", ip_packet(v4(6, tcp(4000, kForbidden, kAck, "<it>"))), ""},
      {"another's address", ip_packet(between(v4(6, kSynAllowed), "10.9.0.9", "10.9.0.2")),
       "packets_dropped_source"},
      {"another's address by IPv6", ip_packet(between(v6(6, kSynAllowed), "fd09::9", "fd09::2")),
       "packets_dropped_source"},
      {"another's echo", ip_packet(between(v4(1, icmp(8, "<it>")), "10.9.0.9", "10.9.0.2")),
       "packets_dropped_source"},
      {"a link-local address", ip_packet(between(v6(6, kSynAllowed), "fe80::1", "fd09::2")),
       "packets_dropped_source"},
      {"to an address of the link", ip_packet(between(v6(6, kSynAllowed), "fd09::1", "fe80::2")),
       "connects_refused_link_local"},
      {"a service", ip_packet(between(v4(6, kSynAllowed), "10.9.0.1", "10.78.0.5")),
       "packets_dropped_service"},
      {"IPv4 options", ip_packet(with_options(v4(6, kSynAllowed), {0x94, 4, 0, 0})),
       "packets_dropped_options"},
      {"a source route",
       ip_packet(with_options(v4(17, kDatagramAllowed), {0x83, 7, 4, 10, 9, 0, 2, 0})),
       "packets_dropped_options"},
      {"a TCP fragment", ip_packet(as_fragment(v4(6, kSynAllowed), 0x2000)),
       "packets_dropped_fragment"},
      {"a later TCP fragment", ip_packet(as_fragment(v4(6, plain("<it>")), 1)),
       "packets_dropped_fragment"},
      {"the first fragment of a datagram",
       ip_packet(as_fragment(v4(17, kDatagramForbidden), 0x2000)), "connects_denied_policy"},
      {"a later fragment of a datagram", ip_packet(as_fragment(v4(17, plain("<it>")), 5)), ""},
      {"a first fragment without ports", ip_packet(as_fragment(v4(17, plain("<it>")), 0x2000)),
       "packets_dropped_malformed"},
      {"destination options",
       ip_packet(with_extension(v6(6, kSynAllowed), 60, {6, 0, 1, 4, 0, 0, 0, 0})),
       "packets_dropped_options"},
      {"hop-by-hop options",
       ip_packet(with_extension(v6(6, kSynAllowed), 0, {6, 0, 1, 4, 0, 0, 0, 0})),
       "packets_dropped_options"},
      {"a router alert before an echo",
       ip_packet(with_extension(v6(58, icmp(128, "<it>")), 0, kRouterAlert)),
       "packets_dropped_options"},
      {"a routing header",
       ip_packet(with_extension(v6(6, kSynAllowed), 43, {6, 0, 4, 0, 0, 0, 0, 0})),
       "packets_dropped_options"},
      {"an IPv6 fragment of TCP", ip_packet(with_extension(v6(6, kSynAllowed), 44, more(6, 1))),
       "packets_dropped_fragment"},
      {"an IPv6 datagram in one fragment",
       ip_packet(with_extension(v6(17, kDatagramForbidden), 44, more(17, 0))),
       "connects_denied_policy"},
      {"options behind a fragment header",
       ip_packet(with_extension(v6(6, kSynAllowed), 44, more(60, 0))), "packets_dropped_fragment"},
      {"SCTP", ip_packet(v4(132, plain("<it>"))), "packets_dropped_protocol"},
      {"DCCP", ip_packet(v4(33, plain("<it>"))), "packets_dropped_protocol"},
      {"UDP-Lite", ip_packet(v4(136, kDatagramForbidden)), "packets_dropped_protocol"},
      {"a tunnel", ip_packet(v4(4, ip_packet(v4(6, kSynAllowed)))), "packets_dropped_protocol"},
      {"GRE", ip_packet(v4(47, plain("<it>"))), "packets_dropped_protocol"},
      {"SCTP by IPv6", ip_packet(v6(132, plain("<it>"))), "packets_dropped_protocol"},
      {"ESP", ip_packet(v6(50, plain("<it>"))), "packets_dropped_protocol"},
      {"an echo", ip_packet(v4(1, icmp(8, "<it>"))), ""},
      {"an ICMP redirect", ip_packet(v4(1, icmp(5, "<it>"))), "packets_dropped_icmp"},
      {"an ICMPv6 redirect", ip_packet(v6(58, icmp(137, "<it>"))), "packets_dropped_icmp"},
      {"a router advertisement", ip_packet(v6(58, icmp(134, "<it>"))), "packets_dropped_source"},
      {"its own neighbour advertisement", ip_packet(v6(58, advertisement("fd09::1"))), ""},
      {"another's neighbour advertisement", ip_packet(v6(58, advertisement("fd09::9"))),
       "packets_dropped_source"},
      {"a listener report", ip_packet(with_extension(v6(58, icmp(143, "<it>")), 0, kRouterAlert)),
       ""},
      {"its own ARP", arp("10.9.0.1"), "", ETH_P_ARP},
      {"another's ARP", arp("10.9.0.9"), "packets_dropped_source", ETH_P_ARP},
      {"a VLAN", vlan(ip_packet(v4(6, kSynAllowed))), "packets_dropped_ethertype", ETH_P_8021Q},
      {"MPLS", plain("<it>"), "packets_dropped_ethertype", ETH_P_MPLS_UC},
  };
}

TEST_F(PacketTest, WhatAStrictWorkloadSendsByPacketSockets) {
  state_.services[at("10.78.0.5:8080")] = {9, ServiceEntry::Kind::kBalance, {}};
  is_strict(false);
  for (const Way& way : ways_out())
    EXPECT_TRUE(leaves(from_app(way.content, way.type))) << way.name;
  is_strict(true);
  for (const Way& way : ways_out()) {
    const std::uint64_t before = way.counter.empty() ? 0 : count(way.counter);
    EXPECT_EQ(leaves(from_app(way.content, way.type)), way.counter.empty()) << way.name;
    if (!way.counter.empty()) {
      EXPECT_EQ(count(way.counter), before + 1) << way.name;
    }
  }
}

Way in(std::string name, Ip ip, std::string counter) {
  std::swap(ip.from, ip.to);
  return {std::move(name), ip_packet(std::move(ip)), std::move(counter)};
}

TEST_F(PacketTest, WhatReachesAStrictWorkloadsPacketSockets) {
  const std::vector<Way> ways = {
      in("a SYN that policy allows", v4(6, kSynAllowed), ""),
      in("a datagram that policy allows", v6(17, kDatagramAllowed), ""),
      in("a SYN", v4(6, kSynForbidden), "arrivals_denied_policy"),
      in("a SYN by IPv6", v6(6, kSynForbidden), "arrivals_denied_policy"),
      in("a datagram", v4(17, kDatagramForbidden), "arrivals_denied_policy"),
      in("an answer", v4(6, tcp(8080, 4000, kSyn | kAck, "<it>")), ""),
      in("IPv4 options", with_options(v4(6, kSynAllowed), {0x94, 4, 0, 0}),
         "packets_dropped_options"),
      in("SCTP", v4(132, plain("<it>")), "packets_dropped_protocol"),
      in("to another", between(v4(6, kSynAllowed), "10.9.0.9", "10.9.0.2"),
         "packets_dropped_destination"),
      in("from itself", between(v4(6, kSynAllowed), "10.9.0.1", "10.9.0.1"),
         "packets_dropped_source"),
      in("from itself by IPv6", between(v6(17, kDatagramForbidden), "fd09::1", "fd09::1"),
         "packets_dropped_source"),
      in("a segment from itself",
         between(v6(6, tcp(4000, kForbidden, kAck, "<it>")), "fd09::1", "fd09::1"),
         "packets_dropped_source"),
      in("from a loopback address", between(v4(17, kDatagramForbidden), "10.9.0.1", "127.0.0.1"),
         "packets_dropped_source"),
      in("to all", between(v4(17, kDatagramAllowed), "255.255.255.255", "10.9.0.2"), ""),
      in("to all, forbidden", between(v4(17, kDatagramForbidden), "255.255.255.255", "10.9.0.2"),
         "arrivals_denied_policy"),
  };
  is_strict(false);
  for (const Way& way : ways) EXPECT_TRUE(arrives(from_server(way.content))) << way.name;
  is_strict(true);
  for (const Way& way : ways) {
    const std::uint64_t before = way.counter.empty() ? 0 : count(way.counter);
    EXPECT_EQ(arrives(from_server(way.content)), way.counter.empty()) << way.name;
    if (!way.counter.empty()) {
      EXPECT_EQ(count(way.counter), before + 1) << way.name;
    }
  }
}

// The reset is made of the SYN: its checksum, its numbers and its way back must be right.
TEST_F(PacketTest, WhoIsRefusedIsToldSoAtOnce) {
  UniqueFd four = app_->listen("10.9.0.1:8081"), six = app_->listen("[fd09::1]:8081");
  UniqueFd fine = app_->listen("10.9.0.1:8080"), fine_six = app_->listen("[fd09::1]:8080");
  is_strict(true);
  const auto from = [&](const NetNs& ns, const std::string& to) {
    return in_child(&*elsewhere_, &ns, [&] { return try_connect(to, 0, 30000); });
  };
  host_->add_address("br0", "10.9.0.254/24");
  host_->add_address("br0", "fd09::fe/64");
  for (const NetNs* ns : {&*server_, &*host_}) {
    EXPECT_EQ(from(*ns, "10.9.0.1:8081"), kRefused);
    EXPECT_EQ(from(*ns, "[fd09::1]:8081"), kRefused);
    EXPECT_EQ(from(*ns, "10.9.0.1:8080"), 0);
    EXPECT_EQ(from(*ns, "[fd09::1]:8080"), 0);
  }
  // As by a device that leaves no checksum to others.
  server_->command("ethtool -K veth0 tx off >/dev/null 2>&1 || true");
  EXPECT_EQ(from(*server_, "10.9.0.1:8081"), kRefused);
  EXPECT_EQ(count("arrivals_denied_policy"), 5);
}

TEST_F(PacketTest, AResetToASynThatWasMadeByHandIsValid) {
  is_strict(true);
  Ip syn = v4(6, tcp(4000, kForbidden, kSyn, "early data", 0xfffffff0));
  std::swap(syn.from, syn.to);
  server_wire_->send(from_server(ip_packet(syn)));
  for (;;) {
    Bytes answer = server_wire_->receive();
    ASSERT_FALSE(answer.empty());
    if (answer.size() < 54 || answer[12] != 8 || answer[13] != 0 || answer[23] != 6) continue;
    Bytes segment(answer.begin() + 34, answer.end());
    Ip back = v4(6, segment);
    EXPECT_EQ(internet_sum(segment, pseudo_sum(back)), 0);
    EXPECT_EQ(Bytes(segment.begin(), segment.begin() + 12),
              (Bytes{kForbidden >> 8, kForbidden & 0xff, 4000 >> 8, 4000 & 0xff,  // ports
                     0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfb}));
    EXPECT_EQ(segment[13], kRst | kAck);
    break;
  }
}

// Over a wire of one's own: SYN, answer, ACK and data, with an address that the kernel there does
// not use.
TEST_F(PacketTest, AHandshakeByHandIsJudgedAsAConnect) {
  state_.workloads[kApp].addresses.push_back(ip("10.9.0.7"));
  UniqueFd forbidden = server_->listen("10.9.0.2:8081");
  server_->command("ip neigh replace 10.9.0.7 dev veth0 lladdr " + text_of(app_wire_->mac()));
  const auto send = [&](std::uint8_t flags, std::string_view data, std::uint32_t sequence,
                        std::uint32_t acknowledged) {
    app_wire_->send(
        from_app(ip_packet({"10.9.0.7", "10.9.0.2", IPPROTO_TCP,
                            tcp(4001, kForbidden, flags, data, sequence, acknowledged)})));
  };
  is_strict(false);
  send(kSyn, "", 1000, 0);
  Bytes answer;
  do {
    answer = app_wire_->receive();
    ASSERT_FALSE(answer.empty());
  } while (answer.size() < 54 || answer[23] != IPPROTO_TCP || answer[47] != (kSyn | kAck));
  const std::uint32_t theirs = static_cast<std::uint32_t>(answer[38]) << 24U |
                               static_cast<std::uint32_t>(answer[39]) << 16U |
                               static_cast<std::uint32_t>(answer[40]) << 8U | answer[41];
  send(kAck | kPush, "hello", 1001, theirs + 1);
  UniqueFd accepted = accept_within(forbidden.get(), 30000);
  ASSERT_TRUE(accepted) << "default mode: unpoliced";
  char hello[6] = {};
  EXPECT_EQ(::recv(accepted.get(), hello, 5, 0), 5);
  EXPECT_STREQ(hello, "hello");
  is_strict(true);
  const std::uint64_t before = count("connects_denied_policy");
  send(kSyn, "", 1000, 0);
  EXPECT_TRUE(eventually([&] { return count("connects_denied_policy") == before + 1; }));
}

TEST_F(PacketTest, RawSocketsAndOtherCgroupsAreJudgedAlike) {
  UniqueFd forbidden = server_->listen("10.9.0.2:8081"), six = server_->listen("[fd09::2]:8081");
  const auto stranger = [&](const std::string& to, int patience_ms) {
    return in_child(&*elsewhere_, &*app_, [&] { return try_connect(to, 0, patience_ms); });
  };
  is_strict(false);
  EXPECT_EQ(stranger("10.9.0.2:8081", kPatience), 0)
      << "in the namespace from another cgroup: unpoliced";
  EXPECT_EQ(stranger("[fd09::2]:8081", kPatience), 0);
  is_strict(true);
  EXPECT_EQ(stranger("10.9.0.2:8081", kNoAnswer), ETIMEDOUT);
  EXPECT_EQ(stranger("[fd09::2]:8081", kNoAnswer), ETIMEDOUT);
  EXPECT_EQ(stranger("10.9.0.2:8080", kPatience), 0);
  EXPECT_EQ(connect_from_app("10.9.0.2:8081"), kRefused) << "at the socket, at once";
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), 0) << "the proxy's";
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8081"), kDenied);
  // IP_HDRINCL.
  const std::uint64_t before = count("connects_denied_policy");
  const auto raw = [&](std::uint16_t port) {
    return in_child(&*app_group_, &*app_, [&] {
      UniqueFd fd(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
      const Bytes packet = ip_packet(v4(6, tcp(4000, port, kSyn, "<it>")));
      auto to = raw_address(at("10.9.0.2:0"), AF_INET);
      return ::sendto(fd.get(), packet.data(), packet.size(), 0, to.get(), to.size) < 0 ? errno : 0;
    });
  };
  EXPECT_EQ(raw(kForbidden), 0) << "sent, as far as the sender sees";
  EXPECT_TRUE(eventually([&] { return count("connects_denied_policy") == before + 1; }));
  EXPECT_EQ(raw(kAllowed), 0);
  while (!Wire::carries(server_wire_->receive(), "<it>")) {
  }
}

// Who began is asked; and what it may do now.
TEST_F(PacketTest, DatagramsAreJudgedAsThoseThatBegan) {
  state_.sets[6][{0, datapath::Transport::kUdp, 53, 53}] = {true, 61, 0};
  state_.sets[6][{0, datapath::Transport::kAny, 0, 65535}] = {false, 62, 0};
  state_.workloads[kApp].egress = 6;   // to port 53 alone
  state_.workloads[kApp].ingress = 7;  // by nobody
  state_.sets[7][{0, datapath::Transport::kAny, 0, 65535}] = {false, 71, 0};
  is_strict(true);
  const auto out = [&](std::uint16_t from, std::uint16_t to) {
    return leaves(from_app(ip_packet(v4(17, udp(from, to, "<it>")))));
  };
  const auto back = [&](std::uint16_t from, std::uint16_t to) {
    Ip ip = v4(17, udp(from, to, "<it>"));
    std::swap(ip.from, ip.to);
    return arrives(from_server(ip_packet(ip)));
  };
  EXPECT_FALSE(back(53, 4000)) << "nobody asked";
  EXPECT_TRUE(out(4000, 53));
  EXPECT_TRUE(back(53, 4000));
  EXPECT_FALSE(back(53, 4001));
  EXPECT_FALSE(back(54, 4000));
  EXPECT_FALSE(out(4000, 54));
  state_.sets[6][{0, datapath::Transport::kUdp, 53, 53}] = {false, 61, 0};
  apply_all();
  EXPECT_FALSE(back(53, 4000)) << "it may not have asked any more";
  EXPECT_FALSE(out(4000, 53));

  state_.sets[7][{0, datapath::Transport::kUdp, 9000, 9000}] = {true, 72, 0};
  apply_all();
  EXPECT_FALSE(out(9000, 4000));
  EXPECT_TRUE(back(4000, 9000));
  EXPECT_TRUE(out(9000, 4000)) << "an answer";
  EXPECT_FALSE(out(9000, 4001));
  state_.sets[7].erase({0, datapath::Transport::kUdp, 9000, 9000});
  apply_all();
  EXPECT_FALSE(out(9000, 4000));
}

// It answers all the time, which its own direction permits: that makes no server of who asks.
TEST_F(PacketTest, AnswersMakeNoAskerAServer) {
  for (const datapath::SetId set : {6U, 7U})
    state_.sets[set][{0, datapath::Transport::kAny, 0, 65535}] = {true, 61, 0};
  state_.workloads[kApp].egress = 6;
  state_.workloads[kApp].ingress = 7;
  is_strict(true);
  const auto out = [&](std::uint16_t from, std::uint16_t to) {
    return leaves(from_app(ip_packet(v4(17, udp(from, to, "<it>")))));
  };
  const auto back = [&](std::uint16_t from, std::uint16_t to) {
    Ip ip = v4(17, udp(from, to, "<it>"));
    std::swap(ip.from, ip.to);
    return arrives(from_server(ip_packet(ip)));
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(out(4000, 53));
    EXPECT_TRUE(back(53, 4000));
    EXPECT_TRUE(back(4000, 9000));
    EXPECT_TRUE(out(9000, 4000));
  }
  state_.sets[6][{0, datapath::Transport::kUdp, 53, 53}] = {false, 62, 0};
  apply_all();
  EXPECT_FALSE(out(4000, 53)) << "it asked, and may no more";
  EXPECT_TRUE(back(4000, 9000));
  EXPECT_TRUE(out(9000, 4000));
  state_.sets[7][{0, datapath::Transport::kUdp, 9000, 9000}] = {false, 72, 0};
  apply_all();
  EXPECT_FALSE(back(4000, 9000)) << "the other one asked";
}

// What was not used for longest is forgotten: an answer is refused then, until somebody asks again.
// Who may send of his own accord is one who began.
TEST_F(PacketTest, MoreDatagramsThanTheMapHoldsLetNobodyIn) {
  for (const datapath::SetId set : {6U, 7U})
    state_.sets[set][{0, datapath::Transport::kAny, 0, 65535}] = {false, 61, 0};
  state_.sets[6][{0, datapath::Transport::kUdp, 53, 53}] = {true, 62, 0};
  state_.workloads[kApp].egress = 6;
  state_.workloads[kApp].ingress = 7;
  is_strict(true);
  const auto out = [&] { return leaves(from_app(ip_packet(v4(17, udp(4000, 53, "<it>"))))); };
  const auto back = [&] {
    Ip ip = v4(17, udp(53, 4000, "<it>"));
    std::swap(ip.from, ip.to);
    return arrives(from_server(ip_packet(ip)));
  };
  EXPECT_TRUE(out());
  EXPECT_TRUE(back());
  const UniqueFd datagrams = map("um_datagrams");
  const std::uint64_t lost = count("datagram_records_lost");
  um_datagram_key other{~0U, {}, {}};
  const um_udp_flow flow{now_ns(), UM_BEGAN_HERE, 0};
  for (; other.own.address.word[0] < 40'000; ++other.own.address.word[0])
    ASSERT_EQ(::bpf_map_update_elem(datagrams.get(), &other, &flow, BPF_ANY), 0);
  EXPECT_TRUE(out()) << "there is room for who comes";
  EXPECT_TRUE(back());
  EXPECT_EQ(count("datagram_records_lost"), lost);
  // As the map does it with what was not used for longest.
  const auto forget = [&] {
    const um_datagram_key asked{kApp, datapath::kernel_destination(at("10.9.0.1:4000"), UM_UDP),
                                datapath::kernel_destination(at("10.9.0.2:53"), UM_UDP)};
    EXPECT_EQ(::bpf_map_delete_elem(datagrams.get(), &asked), 0);
  };
  forget();
  const std::uint64_t denied = count("arrivals_denied_policy");
  EXPECT_FALSE(back()) << "what it answers is forgotten";
  EXPECT_EQ(count("arrivals_denied_policy"), denied + 1);
  EXPECT_TRUE(out());
  EXPECT_TRUE(back());
  // The asker may no more, and the other end may send at any time: its answers begin.
  state_.sets[7][{0, datapath::Transport::kUdp, 4000, 4000}] = {true, 63, 0};
  state_.sets[6].erase({0, datapath::Transport::kUdp, 53, 53});
  apply_all();
  EXPECT_TRUE(back());
  EXPECT_FALSE(out());
  forget();
  EXPECT_FALSE(out());
  EXPECT_TRUE(back());
  EXPECT_TRUE(out()) << "an answer, to who may ask";
}

// IPv6 takes a datagram for its own that comes from its own address, wherever it comes from.
TEST_F(PacketTest, NobodyElseSendsInItsName) {
  UniqueFd own = app_->run([] { return udp_socket(AF_INET6, "[fd09::1]:8081"); });
  Ip ip{"fd09::1", "fd09::1", IPPROTO_UDP, udp(9, kForbidden, "<it>")};
  const std::uint16_t sum = internet_sum(ip.payload, pseudo_sum(ip));
  ip.payload[6] = static_cast<std::uint8_t>(sum >> 8U);
  ip.payload[7] = static_cast<std::uint8_t>(sum);
  const Bytes forged = from_server(ip_packet(ip));
  is_strict(false);
  EXPECT_TRUE(arrives(forged));
  EXPECT_EQ(receive(own.get(), 30000).from, at("[fd09::1]:9")) << "default mode: believed";
  is_strict(true);
  const std::uint64_t before = count("packets_dropped_source");
  EXPECT_FALSE(arrives(forged));
  EXPECT_EQ(count("packets_dropped_source"), before + 1);
  EXPECT_EQ(receive(own.get(), 0).err, ETIMEDOUT);
}

// A namespace within the workload, whose traffic the workload forwards.
TEST_F(PacketTest, WhatAWorkloadForwardsIsDropped) {
  NetNs nested = NetNs::create();
  app_->command("ip link add in type veth peer name veth0 netns " + nested.path() +
                " && ip link set in up && sysctl -qw net.ipv4.ip_forward=1");
  app_->add_address("in", "10.10.0.1/24");
  nested.command("ip link set veth0 up");
  nested.add_address("veth0", "10.10.0.2/24");
  nested.command("ip route add default via 10.10.0.1");
  server_->command("ip route add 10.10.0.0/24 via 10.9.0.1");
  UniqueFd inside = nested.listen("10.10.0.2:8080");
  const auto out = [&] {
    return in_child(&*app_group_, &nested,
                    [&] { return try_connect("10.9.0.2:8080", 0, kPatience); });
  };
  const auto in = [&](int patience_ms) {
    return in_child(&*elsewhere_, &*server_,
                    [&] { return try_connect("10.10.0.2:8080", 0, patience_ms); });
  };
  is_strict(false);
  EXPECT_EQ(in(kPatience), 0) << "default mode: unpoliced";
  state_.workloads[kApp].strict = true;
  apply_all();
  EXPECT_THAT(datapath_->uncovered().at(kApp), testing::HasSubstr("not at in"));
  const std::uint64_t from = count("packets_dropped_source");
  const std::uint64_t to = count("packets_dropped_destination");
  EXPECT_EQ(in(kNoAnswer), ETIMEDOUT);
  EXPECT_GT(count("packets_dropped_destination"), to);
  EXPECT_EQ(
      in_child(&*elsewhere_, &nested, [&] { return try_connect("10.9.0.2:8080", 0, kNoAnswer); }),
      ETIMEDOUT);
  EXPECT_GT(count("packets_dropped_source"), from);
  EXPECT_EQ(out(), kRefused) << "its own cgroup, another namespace: the hooks know no workload";
}

TEST_F(PacketTest, TheProgramsStayWithTheDeviceAndComeBackToANewOne) {
  is_strict(true);
  const auto strict = [&] {
    return !leaves(from_app(ip_packet(v4(6, kSynForbidden)))) &&
           leaves(from_app(ip_packet(v4(6, kSynAllowed))));
  };
  EXPECT_TRUE(strict());
  datapath_.reset();
  EXPECT_TRUE(strict()) << "without an agent";
  open();
  apply_all();
  EXPECT_TRUE(strict()) << "adopted";
  state_.workloads[kApp].strict = false;
  apply_all();
  EXPECT_FALSE(strict()) << "permissive again";
  state_.workloads[kApp].strict = true;
  apply_all();
  EXPECT_TRUE(strict());
  state_.workloads.erase(kApp);
  apply_all();
  EXPECT_FALSE(strict()) << "ended";
}

TEST_F(PacketTest, DisablingLeavesNothingAtTheDevice) {
  is_strict(true);
  datapath_.reset();
  must(datapath::disable_all(options_.pin_dir));
  EXPECT_TRUE(leaves(from_app(ip_packet(v4(6, kSynForbidden)))));
}

// Its veth device is policed, and others are not: they are named, also when they come later.
TEST_F(PacketTest, ADeviceOfAStrictWorkloadThatIsNotPolicedIsNamed) {
  const auto named = [&] {
    must(datapath_->audit(state_.workloads.at(kApp)));
    const auto& uncovered = datapath_->uncovered();
    const auto found = uncovered.find(kApp);
    return found == uncovered.end() ? std::string() : found->second;
  };
  app_->command("ip link add br1 type bridge && ip link add in1 type veth peer name in2");
  is_strict(true);
  EXPECT_EQ(named(), "") << "what leads nowhere is nothing to name";
  const NetNs elsewhere = NetNs::create();
  elsewhere.command("ip link add net1 type veth peer name net1 netns " + app_->path());
  EXPECT_THAT(named(), testing::HasSubstr("not at net1"));
  app_->command("ip link del net1");
  EXPECT_EQ(named(), "");
  EXPECT_TRUE(leaves(from_app(ip_packet(v4(6, kSynAllowed)))));
  host_->command("ip link del to-app");
  EXPECT_THAT(named(), testing::HasSubstr("no veth device"));
}

TEST_F(PacketTest, AStrictWorkloadWithoutADeviceHereIsNamed) {
  host_->command("ip link del to-app");
  state_.workloads[kApp].strict = true;
  apply_all();
  EXPECT_THAT(datapath_->uncovered(), testing::Contains(testing::Key(kApp)));
  state_.workloads[kApp].strict = false;
  apply_all();
  EXPECT_THAT(datapath_->uncovered(), testing::IsEmpty());
}

}  // namespace
}  // namespace mesh::test
