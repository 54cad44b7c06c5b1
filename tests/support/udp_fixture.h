// UdpTest: the application, and a server that echoes datagrams, enrolled or not. Root; else it
// skips.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "datapath/byte_order.h"
#include "tests/support/datagrams.h"
#include "tests/support/datapath_fixture.h"
#include "tests/support/eventually.h"

namespace mesh::test {

inline constexpr datapath::WorkloadId kServer = 8;
inline constexpr datapath::ClassId kServerClass = 80;
inline constexpr datapath::SetId kIn = 5, kOut = 6;  // the server's, where it is enrolled
inline constexpr const char* kVip = "10.78.0.2:70";

class UdpTest : public DatapathTest {
 protected:
  void udp_verdict(datapath::SetId set, std::uint16_t port, bool allowed, std::uint32_t policy,
                   datapath::ClassId peer = kAppClass) {
    const std::uint16_t last = port == 0 ? 65535 : port;
    state_.sets[set][{peer, datapath::Transport::kUdp, port, last}] = {allowed, policy, 0};
  }
  void enrol_server() {
    datapath::EnrolledWorkload& server = state_.workloads[kServer] =
        workload(kServer, *server_, server_group_->path());
    server.class4 = server.class6 = kServerClass;
    server.addresses = {ip("10.9.0.2"), ip("10.9.0.3"), ip("fd09::2")};
  }
  // Anybody may ask it, by 51; it may ask nobody, by 62. Applied.
  void enrol_server_that_may_only_answer() {
    enrol_server();
    server().ingress = kIn;
    server().egress = kOut;
    udp_verdict(kIn, 0, true, 51, 0);
    udp_verdict(kOut, 0, false, 62, 0);
    apply_all();
  }
  datapath::EnrolledWorkload& app() { return state_.workloads.at(kApp); }
  datapath::EnrolledWorkload& server() { return state_.workloads.at(kServer); }
  void udp_service(const std::string& address, const std::vector<std::string>& backends) {
    std::vector<datapath::Share> shares;
    for (const std::string& backend : backends) shares.push_back({at(backend), 1});
    state_.udp_services[at(address)] = {3, ServiceEntry::Kind::kBalance,
                                        datapath::columns_of(shares)};
  }
  std::unique_ptr<Echo> echo(const std::vector<std::string>& addresses) {
    return std::make_unique<Echo>(state_.workloads.contains(kServer) ? *server_group_ : *elsewhere_,
                                  *server_, addresses);
  }
  template <class Work>
  auto in_app(Work work) {
    return in_child(&*app_group_, &*app_, work);
  }
  Answer ask_from_app(const std::string& to, int family = 0) {
    return in_app([&] {
      const int own = family == 0 ? family_of(at(to)) : family;
      return ask(udp_socket(own).get(), to, own);
    });
  }
  Answer ask_connected(const std::string& to, int family = 0) {
    return in_app([&] {
      const int own = family == 0 ? family_of(at(to)) : family;
      UniqueFd fd = udp_socket(own);
      if (const int err = connect_udp(fd.get(), to, own)) return Answer{err, {}};
      if (::send(fd.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(fd.get());
    });
  }
  // Somebody in the application's namespace who is not enrolled. Connected: a refusal is told him.
  Answer stranger_asks(const std::string& to, const std::string& from = "") {
    return in_child(&*elsewhere_, &*app_, [&] {
      const int own = family_of(at(to));
      UniqueFd fd = udp_socket(own, from);
      if (const int err = connect_udp(fd.get(), to, own)) return Answer{err, {}};
      if (::send(fd.get(), "x", 1, 0) < 0) return Answer{errno, {}};
      return receive(fd.get());
    });
  }

  // What passed was long ago.
  void age_flows() {
    constexpr std::uint64_t kAge = UM_UDP_LASTS_NS + 1;
    ASSERT_TRUE(eventually([] { return now_ns() > kAge; })) << "this machine has just started";
    UniqueFd flows = map("um_udp_flows");
    um_udp_flow_key key{};
    for (const void* at = nullptr; ::bpf_map_get_next_key(flows.get(), at, &key) == 0; at = &key) {
      um_udp_flow flow{};
      ASSERT_EQ(::bpf_map_lookup_elem(flows.get(), &key, &flow), 0);
      flow.used = now_ns() - kAge;
      ASSERT_EQ(::bpf_map_update_elem(flows.get(), &key, &flow, BPF_EXIST), 0);
    }
  }
  // Between 10.9.0.2:7000 of the server and 10.9.0.1:4000.
  static um_udp_flow_key key_of_the_asker() {
    return {kServer, htons(7000), 0, datapath::kernel_destination(at("10.9.0.1:4000"), UM_UDP)};
  }
  um_udp_flow flow_of_the_asker() {
    const um_udp_flow_key key = key_of_the_asker();
    um_udp_flow flow{};
    EXPECT_EQ(::bpf_map_lookup_elem(map("um_udp_flows").get(), &key, &flow), 0);
    return flow;
  }
  void write_flow_of_the_asker(const um_udp_flow& flow) {
    const um_udp_flow_key key = key_of_the_asker();
    EXPECT_EQ(::bpf_map_update_elem(map("um_udp_flows").get(), &key, &flow, BPF_ANY), 0);
  }
};

}  // namespace mesh::test
