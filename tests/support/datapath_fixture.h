// DatapathTest: the real programs, live: a scratch cgroup for the application, one for the mesh,
// namespaces joined by a veth pair, a bpffs of this process's own mount namespace.
//
// The application is at 10.9.0.1 and fd09::1, servers are at 10.9.0.2, 10.9.0.3 and fd09::2; the
// test is meshhold and meshproxy. Needs root and cgroup2, else it skips.
#pragma once

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <time.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/object.h"
#include "tests/support/netns.h"

namespace mesh::test {

using datapath::Datapath;
using datapath::ServiceEntry;
using datapath::State;

constexpr datapath::WorkloadId kApp = 7;
inline constexpr datapath::ClassId kAppClass = 70;
constexpr const char* kProxy4 = "127.0.0.1:15001";
constexpr const char* kProxy6 = "[::1]:15001";
constexpr int kRefused = ECONNREFUSED;
constexpr int kDenied = EACCES;  // one of the mesh's own sockets

inline SocketAddress at(const std::string& text) { return endpoint(text); }
inline IpAddress ip(const std::string& text) { return IpAddress::parse(text).value(); }

// A bpffs that only this process sees.
class Bpffs {
 public:
  Bpffs() {
    if (::unshare(CLONE_NEWNS) != 0) fixture_failed("unshare(CLONE_NEWNS)");
    ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    char name[] = "/tmp/undermesh-test-XXXXXX";
    if (::mkdtemp(name) == nullptr) fixture_failed("mkdtemp");
    dir_ = name;
    if (!datapath::ensure_bpffs(dir_)) fixture_failed("bpffs");
  }
  ~Bpffs() {
    ::umount2(dir_.c_str(), MNT_DETACH);
    ::rmdir(dir_.c_str());
  }
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
};
inline const std::string& bpffs() {
  static const Bpffs mounted;
  return mounted.dir();
}

template <class T>
T must(Result<T> result) {
  if (result.has_error()) {
    std::fprintf(stderr, "%s\n", result.error().message.c_str());
    std::abort();
  }
  return std::move(result).assume_value();
}
inline void must(const Result<>& result) {
  if (result.has_error()) {
    std::fprintf(stderr, "%s\n", result.error().message.c_str());
    std::abort();
  }
}

inline std::uint64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

// An address as a child process can return it.
struct Peer {
  int err = 0;
  SocketAddress address;
};
static_assert(std::is_trivially_copyable_v<Peer>);

inline Peer peer_of(int fd) {
  sockaddr_storage raw{};
  socklen_t size = sizeof raw;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&raw), &size) != 0) return {errno, {}};
  return {0, socket_address(raw)};
}

inline Peer peer_of_connect(const std::string& to, int family) {
  int fd = dial(to, family);
  if (fd < 0) return {-fd, {}};
  UniqueFd owner(fd);
  return peer_of(fd);
}

// A blocking connect of a socket that the caller made: 0 or errno.
inline int connect_socket(int fd, const std::string& to) {
  SocketAddress address = at(to);
  auto raw = raw_address(address, family_of(address));
  return ::connect(fd, raw.get(), raw.size) == 0 ? 0 : errno;
}

inline UniqueFd tcp_socket_for(const std::string& to) {
  return UniqueFd(::socket(family_of(at(to)), SOCK_STREAM | SOCK_CLOEXEC, 0));
}

inline Peer original_destination(int fd, int level) {
  sockaddr_storage raw{};
  socklen_t size = sizeof raw;
  if (::getsockopt(fd, level, 80, &raw, &size) != 0) return {errno, {}};
  return {0, socket_address(raw)};
}

// Where the next connection at the proxy's listener wanted to go.
inline Peer next_destination(const UniqueFd& listener, int level) {
  UniqueFd accepted = accept_within(listener.get());
  EXPECT_TRUE(accepted) << "no connection";
  return accepted ? original_destination(accepted.get(), level) : Peer{ENOENT, {}};
}

// In an emulated machine a tenth will do.
inline int times(int usual) {
  return std::getenv("MESH_TEST_SMALL") == nullptr ? usual : usual / 10;
}

class DatapathTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!is_root()) GTEST_SKIP() << "needs root";
    if (cgroup2_mount().empty()) GTEST_SKIP() << "needs cgroup2";
    options_.pin_dir = bpffs() + "/pins";
    options_.max_services = 64;
    options_.max_endpoints = 64;
    options_.max_sets = 64;
    options_.max_refusals = 64;
    options_.max_workloads = 64;
    app_.emplace(NetNs::create());
    server_.emplace(NetNs::create());
    join();
    app_->add_address("veth0", "fd09::1/64");
    server_->add_address("veth0", "fd09::2/64");
    server_->add_address("veth0", "10.9.0.3/24");
    app_group_.emplace(Cgroup::create("app"));
    server_group_.emplace(Cgroup::create("server"));
    elsewhere_.emplace(Cgroup::create("elsewhere"));
    mesh_group_.emplace(Cgroup::create("mesh"));
    home_ = home_cgroup();
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    mesh_group_->enter();  // this process plays meshhold and meshproxy
    proxy4_ = app_->listen(kProxy4, "lo");
    // Not bound to lo: the answer to a client that bound its own address would find no route. Linux
    // itself drops what comes for ::1 from elsewhere.
    proxy6_ = app_->listen(kProxy6);
    state_.workloads[kApp] = workload(kApp, *app_, app_group_->path());
    state_.workloads[kApp].addresses = {ip("10.9.0.1"), ip("fd09::1")};
  }
  // Each gets a device veth0.
  virtual void join() { join_veth(*app_, "10.9.0.1/24", *server_, "10.9.0.2/24"); }
  void TearDown() override {
    stop_heart();
    if (home_.empty()) return;
    Cgroup::move_to(home_, ::getpid());
    datapath_.reset();
    must(datapath::disable_all(options_.pin_dir));
  }

  static datapath::EnrolledWorkload workload(datapath::WorkloadId id, const NetNs& ns,
                                             const std::string& cgroup) {
    datapath::EnrolledWorkload made;
    made.id = id;
    made.netns_cookie = ns.cookie();
    made.cgroup = cgroup;
    made.class4 = made.class6 = kAppClass;
    made.netns = ns.fd();
    return made;
  }
  void has_set(const std::string& address, datapath::SetId set) {
    state_.peers[ip(address)].ingress = set;
  }
  // What a set says of the application; port 0: all other ports.
  void verdict(datapath::SetId set, std::uint16_t port, bool allowed, std::uint32_t policy,
               datapath::ClassId peer = kAppClass) {
    const std::uint16_t last = port == 0 ? 65535 : port;
    state_.sets[set][{peer, datapath::Transport::kTcp, port, last}] = {allowed, policy, 0};
  }
  static std::string home_cgroup() {
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("0::")) return cgroup2_mount() + line.substr(3);
    return cgroup2_mount();
  }
  void open() { datapath_ = must(datapath::open_kernel_datapath(options_)); }
  std::map<datapath::WorkloadId, Error> apply() { return must(datapath_->apply(state_)); }
  void apply_all() {
    for (const auto& [id, error] : apply()) ADD_FAILURE() << id << ": " << error.message;
  }
  void stamp(std::uint64_t value) {
    stop_heart();
    UniqueFd fd = must(datapath_->heartbeat_map());
    void* page = ::mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    ASSERT_NE(page, MAP_FAILED);
    *static_cast<volatile std::uint64_t*>(page) = value;
    ::munmap(page, 8);
  }
  // From now on, however slow this machine is, until stamp() says otherwise. The thread allocates
  // nothing: this process forks.
  void proxy_lives() {
    stamp(now_ns());
    UniqueFd fd = must(datapath_->heartbeat_map());
    void* page = ::mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    ASSERT_NE(page, MAP_FAILED);
    is_beating_ = true;
    heart_ = std::thread([this, page] {
      while (is_beating_) {
        *static_cast<volatile std::uint64_t*>(page) = now_ns();
        ::usleep(50'000);
      }
      ::munmap(page, 8);
    });
  }
  void stop_heart() {
    is_beating_ = false;
    if (heart_.joinable()) heart_.join();
  }
  std::uint64_t count(const std::string& name) {
    return must(datapath_->counters()).totals.at(name);
  }
  void proxied(const std::string& address, datapath::ServiceId id) {
    state_.services[at(address)] = {id, ServiceEntry::Kind::kProxy, {}};
  }
  static ServiceEntry balanced(datapath::ServiceId id, const std::vector<std::string>& endpoints) {
    std::vector<datapath::Share> shares;
    for (const std::string& endpoint : endpoints) shares.push_back({at(endpoint), 1});
    return {id, ServiceEntry::Kind::kBalance, datapath::columns_of(shares)};
  }
  // One service, and a proxy that is there for it.
  void proxy_serves(const std::string& address) {
    proxied(address, 1);
    apply_all();
    proxy_lives();
  }
  int connect_from_app(const std::string& to, int family = 0) {
    return in_child(&*app_group_, &*app_, [&] { return try_connect(to, family); });
  }
  Peer peer_from_app(const std::string& to, int family) {
    return in_child(&*app_group_, &*app_, [&] { return peer_of_connect(to, family); });
  }
  // A connect of the mesh's own: a socket made in the workload's namespace, used outside of it.
  int connect_from_mesh(const std::string& to) {
    UniqueFd fd = app_->run([&] { return tcp_socket_for(to); });
    return connect_socket(fd.get(), to);
  }
  void accept_on_both_servers() {
    first_ = server_->listen("10.9.0.2:8080");
    second_ = server_->listen("10.9.0.3:8080");
  }
  std::string map_pin(const std::string& name) const {
    const std::string lasting = options_.pin_dir + "/maps/" + name;
    if (std::filesystem::exists(lasting)) return lasting;
    return options_.pin_dir + "/maps_" + std::to_string(UM_LAYOUT) + "/" + name;
  }
  UniqueFd map(const char* name) const { return UniqueFd(::bpf_obj_get(map_pin(name).c_str())); }
  std::size_t entries_of(const char* name) const {
    UniqueFd fd = map(name);
    EXPECT_TRUE(fd) << name;
    std::array<std::uint8_t, 64> key{}, next{};
    std::size_t entries = 0;
    for (const void* from = nullptr; ::bpf_map_get_next_key(fd.get(), from, &next) == 0;
         from = &key) {
      key = next;
      ++entries;
    }
    return entries;
  }
  // Until there is no room for anybody else's entry, in a hash.
  static void fill(int map) {
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    ASSERT_EQ(::bpf_obj_get_info_by_fd(map, &info, &size), 0);
    std::vector<std::uint8_t> key(info.key_size, 0xff);
    const std::vector<std::uint64_t> value((info.value_size + 7) / 8 *
                                           static_cast<std::size_t>(::libbpf_num_possible_cpus()));
    int waits = 0;
    for (std::uint32_t last = 0xffffffff;;) {
      std::memcpy(key.data(), &last, sizeof last);
      if (::bpf_map_update_elem(map, key.data(), value.data(), BPF_NOEXIST) == 0)
        --last;
      else if (errno == ENOMEM && ++waits < 10'000)  // the kernel has yet to allocate the next ones
        ::usleep(1000);
      else
        break;
    }
    ASSERT_EQ(errno, E2BIG);
  }
  // Until nothing is left of what was there, in a hash that forgets what was not used for longest.
  // From every processor: each keeps what it added last to itself (kernel/bpf/bpf_lru_list.c).
  static void crowd(int map) {
    bpf_map_info info{};
    std::uint32_t size = sizeof info;
    ASSERT_EQ(::bpf_obj_get_info_by_fd(map, &info, &size), 0);
    std::vector<std::uint8_t> key(info.key_size, 0xff);
    const std::vector<std::uint64_t> value((info.value_size + 7) / 8);
    cpu_set_t own{};
    ASSERT_EQ(::sched_getaffinity(0, sizeof own, &own), 0);
    std::uint32_t number = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &own)) continue;
      cpu_set_t one{};
      CPU_SET(cpu, &one);
      ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
      for (std::uint32_t i = 0; i < 3 * info.max_entries; ++i) {
        const std::uint32_t last = ~number++;
        std::memcpy(key.data(), &last, sizeof last);
        ASSERT_EQ(::bpf_map_update_elem(map, key.data(), value.data(), BPF_ANY), 0);
      }
    }
    ASSERT_EQ(::sched_setaffinity(0, sizeof own, &own), 0);
  }
  // As another build would have left it: programs that we do not know.
  void write_meta(std::uint32_t layout) {
    UniqueFd meta(::bpf_obj_get((options_.pin_dir + "/meta").c_str()));
    std::uint32_t zero = 0;
    std::uint32_t other[4] = {layout, 0, 1, 2};
    ASSERT_EQ(::bpf_map_update_elem(meta.get(), &zero, other, BPF_ANY), 0);
  }
  bpf_link_info link_info(const std::string& pin) const {
    UniqueFd link(::bpf_obj_get((options_.pin_dir + "/links/" + pin).c_str()));
    bpf_link_info info{};
    std::uint32_t size = sizeof info;
    EXPECT_EQ(::bpf_obj_get_info_by_fd(link.get(), &info, &size), 0) << pin;
    return info;
  }
  // Links, and the one that judges arrivals.
  static std::size_t pins_of_a_workload() { return datapath::workload_hooks().size() + 1; }
  static std::size_t pins_of_the_mesh() { return datapath::mesh_hooks().size(); }
  std::size_t pins() const {
    std::size_t found = 0;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(options_.pin_dir + "/links"))
      found += entry.is_regular_file() ? 1U : 0U;
    return found;
  }

  std::atomic<bool> is_beating_{false};
  std::thread heart_;
  datapath::Options options_;
  std::string home_;
  std::optional<NetNs> app_, server_;
  std::optional<Cgroup> app_group_, mesh_group_;
  std::optional<Cgroup> server_group_, elsewhere_;  // not enrolled unless a test says so
  std::unique_ptr<Datapath> datapath_;
  UniqueFd proxy4_, proxy6_, first_, second_;
  State state_;
};

}  // namespace mesh::test
