// FastPathTest: a workload at 10.9.0.1 and one at 10.9.0.2, with the fast path between them, or a
// naive one. The test is both applications: it is in a cgroup that is enrolled, and makes its
// sockets in either namespace.
#pragma once

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include <array>
#include <thread>
#include <vector>

#include "bpf/fastpath.h"
#include "datapath/fastpath.h"
#include "naive_fastpath.skel.h"
#include "tests/support/datapath_fixture.h"

namespace mesh::test {

inline constexpr datapath::WorkloadId kServer = 8;

// Bytes that tell their place in the stream. The period is no power of two.
inline const std::vector<char>& pattern() {
  static const std::vector<char> made = [] {
    std::vector<char> bytes(1'048'573 + (16U << 20));
    std::uint64_t x = 88172645463325252ULL;
    for (std::size_t i = 0; i < 1'048'573; ++i) {
      x ^= x << 13, x ^= x >> 7, x ^= x << 17;
      bytes[i] = static_cast<char>(x);
    }
    for (std::size_t i = 1'048'573; i < bytes.size(); ++i) bytes[i] = bytes[i - 1'048'573];
    return bytes;
  }();
  return made;
}
inline const char* pattern_at(std::uint64_t place) { return pattern().data() + place % 1'048'573; }

// Both ends of a connection.
struct Pair {
  UniqueFd client, server;
};

inline void do_not_block(const Pair& pair) {
  for (const UniqueFd* fd : {&pair.client, &pair.server}) ::fcntl(fd->get(), F_SETFL, O_NONBLOCK);
}

inline bool send_all(int fd, std::uint64_t from, std::size_t size) {
  for (std::size_t done = 0; done < size;) {
    const std::size_t piece = std::min<std::size_t>(size - done, 16U << 20);
    const ssize_t sent = ::send(fd, pattern_at(from + done), piece, MSG_NOSIGNAL);
    pollfd waiting{fd, POLLOUT, 0};
    if (sent < 0 && errno == EAGAIN && ::poll(&waiting, 1, 20'000) == 1) continue;
    if (sent <= 0) return false;
    done += static_cast<std::size_t>(sent);
  }
  return true;
}
// True: what comes is what was sent from there on.
inline bool receives(int fd, std::uint64_t from, std::size_t size) {
  std::vector<char> buffer(65536);
  for (std::size_t done = 0; done < size;) {
    pollfd waiting{fd, POLLIN, 0};
    if (::poll(&waiting, 1, 20'000) != 1) return false;
    const ssize_t got = ::recv(fd, buffer.data(), std::min(buffer.size(), size - done), 0);
    if (got <= 0) return false;
    if (std::memcmp(buffer.data(), pattern_at(from + done), static_cast<std::size_t>(got)) != 0)
      return false;
    done += static_cast<std::size_t>(got);
  }
  return true;
}

class FastPathTest : public DatapathTest {
 protected:
  void SetUp() override {
    if (const std::string why = why_not_here(); !why.empty()) GTEST_SKIP() << why;
    DatapathTest::SetUp();
    if (home_.empty()) return;
    state_.workloads[kServer] = workload(kServer, *server_, server_group_->path());
    state_.workloads[kServer].addresses = {ip("10.9.0.2"), ip("fd09::2")};
    apply_all();
    other_proxy_ = server_->listen(kProxy4, "lo");  // as the mesh's, in the other namespace
    app_group_->enter();
    listener_ = server_->listen(kListener);
  }
  void TearDown() override {
    naive_links_.clear();
    naive_.reset();
    DatapathTest::TearDown();
  }

  virtual std::string why_not_here() const { return datapath::why_no_fast_path(); }
  void real() { must(datapath_->switch_fast_path(true)); }
  void naive(bool returns_verdict = false) {
    naive_.reset(naive_fastpath_bpf__open());
    naive_->rodata->returns_verdict = returns_verdict ? 1 : 0;
    if (naive_fastpath_bpf__load(naive_.get()) != 0) fixture_failed("load the naive program");
    if (::bpf_prog_attach(::bpf_program__fd(naive_->progs.naive_msg),
                          ::bpf_map__fd(naive_->maps.sockets), BPF_SK_MSG_VERDICT, 0) != 0)
      fixture_failed("attach the naive program");
    for (const Cgroup* group : {&*app_group_, &*mesh_group_}) {
      UniqueFd cgroup(::open(group->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      UniqueFd link(::bpf_link_create(::bpf_program__fd(naive_->progs.naive_sock_ops), cgroup.get(),
                                      BPF_CGROUP_SOCK_OPS, nullptr));
      if (!link) fixture_failed("link the naive program");
      naive_links_.push_back(std::move(link));
    }
  }

  static UniqueFd socket_in(const NetNs& ns, int family = AF_INET) {
    return ns.run([&] { return UniqueFd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)); });
  }
  // From the application to the server, or wherever.
  Pair connected(const std::string& to = kListener) { return connected(to, listener_.get()); }
  Pair connected(const std::string& to, int listener) {
    Pair pair{socket_in(*app_, family_of(at(to))), {}};
    EXPECT_EQ(connect_socket(pair.client.get(), to), 0);
    pair.server = accept_within(listener);
    EXPECT_TRUE(pair.server);
    return pair;
  }
  // One that has lived for some round trips, so that both ends have joined.
  Pair joined(const std::string& to = kListener) { return joined(to, listener_.get()); }
  Pair joined(const std::string& to, int listener) {
    Pair pair = connected(to, listener);
    EXPECT_TRUE(settle(pair));
    return pair;
  }
  bool settle(const Pair& pair) {
    do_not_block(pair);
    for (int trip = 0; trip < kMostTrips; ++trip) {
      if (!exchange(pair)) return false;
      must(datapath_->let_settled_join(state_));
      if (has_joined(pair.client.get()) && has_joined(pair.server.get())) return true;
    }
    return false;
  }
  // As settle(), for what shall not: it had every chance.
  void live(const Pair& pair) {
    for (int trip = 0; trip < kMostTrips; ++trip) {
      EXPECT_TRUE(exchange(pair));
      must(datapath_->let_settled_join(state_));
    }
  }
  bool exchange(const Pair& pair) {
    greeted_ += 1;
    return send_all(pair.client.get(), 0, 1) && receives(pair.server.get(), 0, 1) &&
           send_all(pair.server.get(), 0, 1) && receives(pair.client.get(), 0, 1);
  }
  um_fast_socket storage_of(int fd) const {
    um_fast_socket value{};
    const UniqueFd storage(::bpf_obj_get((options_.pin_dir + "/maps/um_fast_sockets").c_str()));
    EXPECT_TRUE(storage);
    if (::bpf_map_lookup_elem(storage.get(), &fd, &value) != 0) value.state = kNeverAsked;
    return value;
  }
  bool is_of_the_mesh(int fd) const {
    std::uint32_t flag = 0;
    return ::bpf_map_lookup_elem(map("um_mesh_sockets").get(), &fd, &flag) == 0 && flag == 1;
  }
  um_fast_config config_now() const {
    const UniqueFd map(::bpf_obj_get((maps_of_fast_path() + "/um_fast_config").c_str()));
    um_fast_config config{};
    const std::uint32_t zero = 0;
    EXPECT_EQ(::bpf_map_lookup_elem(map.get(), &zero, &config), 0);
    return config;
  }
  // Connections need not have lasted.
  void asks_at_once() const {
    const UniqueFd map(::bpf_obj_get((maps_of_fast_path() + "/um_fast_config").c_str()));
    const um_fast_config config{UM_FAST_ON, 0};
    const std::uint32_t zero = 0;
    EXPECT_EQ(::bpf_map_update_elem(map.get(), &zero, &config, BPF_ANY), 0);
  }
  std::string maps_of_fast_path() const {
    return options_.pin_dir + "/fastpath/maps_" + std::to_string(UM_LAYOUT);
  }
  bool has_joined(int fd) const {
    const auto state = storage_of(fd).state;
    return state >= UM_FAST_UNDECIDED && state <= UM_FAST_TCP;
  }

  static constexpr const char* kListener = "10.9.0.2:8080";
  static constexpr std::uint32_t kNeverAsked = 99;  // to join: the state of who has no storage
  static constexpr int kMostTrips = 50;             // until a connection has asked
  std::uint64_t greeted_ = 0;                       // bytes of exchange(), either way
  struct Destroy {
    void operator()(naive_fastpath_bpf* skeleton) const { naive_fastpath_bpf__destroy(skeleton); }
  };
  UniqueFd listener_, other_proxy_;
  std::unique_ptr<naive_fastpath_bpf, Destroy> naive_;
  std::vector<UniqueFd> naive_links_;
};

inline void disconnect(const UniqueFd& socket) {
  sockaddr unspecified{};
  unspecified.sa_family = AF_UNSPEC;
  ASSERT_EQ(::connect(socket.get(), &unspecified, sizeof unspecified), 0) << std::strerror(errno);
}

}  // namespace mesh::test
