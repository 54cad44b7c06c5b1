// The programs, live: a scratch cgroup for the application, one for the mesh, namespaces joined by
// a veth pair, a bpffs of this process's own mount namespace.
#include <bpf/bpf.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <time.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "tests/support/netns.h"

namespace mesh {
namespace {

using datapath::Datapath;
using datapath::ServiceEntry;
using datapath::State;
using test::Cgroup;
using test::Child;
using test::in_child;
using test::NetNs;

constexpr datapath::WorkloadId kApp = 7;
constexpr const char* kProxy4 = "127.0.0.1:15001";
constexpr const char* kProxy6 = "[::1]:15001";
constexpr int kRefused = ECONNREFUSED;
constexpr int kDenied = EACCES;  // one of the mesh's own sockets

SocketAddress at(const std::string& text) { return test::endpoint(text); }
IpAddress ip(const std::string& text) { return IpAddress::parse(text).value(); }

// A bpffs that only this process sees.
class Bpffs {
 public:
  Bpffs() {
    if (::unshare(CLONE_NEWNS) != 0) test::fixture_failed("unshare(CLONE_NEWNS)");
    ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    char name[] = "/tmp/undermesh-test-XXXXXX";
    if (::mkdtemp(name) == nullptr) test::fixture_failed("mkdtemp");
    dir_ = name;
    if (!datapath::ensure_bpffs(dir_)) test::fixture_failed("bpffs");
  }
  ~Bpffs() {
    ::umount2(dir_.c_str(), MNT_DETACH);
    ::rmdir(dir_.c_str());
  }
  const std::string& dir() const { return dir_; }

 private:
  std::string dir_;
};
const std::string& bpffs() {
  static const Bpffs mounted;
  return mounted.dir();
}

std::string text_of(const Error& error) { return error.message; }

template <class T>
T must(Result<T> result) {
  if (result.has_error()) {
    std::fprintf(stderr, "%s\n", text_of(result.error()).c_str());
    std::abort();
  }
  return std::move(result).assume_value();
}
void must(const Result<>& result) {
  if (result.has_error()) {
    std::fprintf(stderr, "%s\n", text_of(result.error()).c_str());
    std::abort();
  }
}

std::uint64_t now_ns() {
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

Peer peer_of_connect(const std::string& to, int family) {
  UniqueFd fd(test::dial(to, family));
  if (!fd) return {-fd.get(), {}};
  sockaddr_storage raw{};
  socklen_t size = sizeof raw;
  if (::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&raw), &size) != 0) return {errno, {}};
  return {0, test::socket_address(raw)};
}

Peer original_destination(int fd, int level) {
  sockaddr_storage raw{};
  socklen_t size = sizeof raw;
  if (::getsockopt(fd, level, 80, &raw, &size) != 0) return {errno, {}};
  return {0, test::socket_address(raw)};
}

class DatapathTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::is_root()) GTEST_SKIP() << "needs root";
    if (test::cgroup2_mount().empty()) GTEST_SKIP() << "needs cgroup2";
    options_.pin_dir = bpffs() + "/pins";
    options_.max_services = 64;
    options_.max_endpoints = 64;
    options_.max_verdicts = 64;
    options_.max_workloads = 64;
    app_.emplace(NetNs::create());
    server_.emplace(NetNs::create());
    test::join_veth(*app_, "10.9.0.1/24", *server_, "10.9.0.2/24");
    app_->add_address("veth0", "fd09::1/64");
    server_->add_address("veth0", "fd09::2/64");
    server_->add_address("veth0", "10.9.0.3/24");
    app_group_.emplace(Cgroup::create("app"));
    mesh_group_.emplace(Cgroup::create("mesh"));
    home_ = home_cgroup();
    open();
    must(datapath_->attach_mesh(mesh_group_->path()));
    mesh_group_->enter();  // this process plays meshhold and meshproxy
    proxy4_ = app_->listen(kProxy4, "lo");
    // Not bound to lo: the answer to a client that bound its own address would find no route. Linux
    // itself drops what comes for ::1 from elsewhere.
    proxy6_ = app_->listen(kProxy6);
    state_.workloads[kApp] = {
        kApp, app_->cookie(), app_group_->path(), {ip("10.9.0.1"), ip("fd09::1")}};
  }
  void TearDown() override {
    if (home_.empty()) return;
    Cgroup::move_to(home_, ::getpid());
    datapath_.reset();
    must(datapath::disable_all(options_.pin_dir));
  }

  static std::string home_cgroup() {
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("0::")) return test::cgroup2_mount() + line.substr(3);
    return test::cgroup2_mount();
  }
  void open() { datapath_ = must(datapath::open_kernel_datapath(options_)); }
  std::map<datapath::WorkloadId, Error> apply() { return must(datapath_->apply(state_)); }
  void apply_all() {
    for (const auto& [id, error] : apply()) ADD_FAILURE() << id << ": " << error.message;
  }
  void stamp(std::uint64_t value) {
    UniqueFd fd = must(datapath_->heartbeat_map());
    void* page = ::mmap(nullptr, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    ASSERT_NE(page, MAP_FAILED);
    *static_cast<volatile std::uint64_t*>(page) = value;
    ::munmap(page, 8);
  }
  void proxy_lives() { stamp(now_ns()); }
  std::uint64_t count(const std::string& name) {
    return must(datapath_->counters()).totals.at(name);
  }
  void proxied(const std::string& address, datapath::ServiceId id) {
    state_.services[at(address)] = {id, ServiceEntry::Kind::kProxy, {}};
  }
  int connect_from_app(const std::string& to, int family = 0) {
    return in_child(&*app_group_, &*app_, [&] { return test::try_connect(to, family); });
  }
  Peer peer_from_app(const std::string& to, int family) {
    return in_child(&*app_group_, &*app_, [&] { return peer_of_connect(to, family); });
  }
  // A connect of the mesh's own: a socket made in the workload's namespace, used outside of it.
  int connect_from_mesh(const std::string& to) {
    SocketAddress address = at(to);
    UniqueFd fd = app_->run([&] {
      return UniqueFd(::socket(test::family_of(address), SOCK_STREAM | SOCK_CLOEXEC, 0));
    });
    auto raw = test::raw_address(address, test::family_of(address));
    return ::connect(fd.get(), raw.get(), raw.size) == 0 ? 0 : errno;
  }
  void accept_on_both_servers() {
    first_ = server_->listen("10.9.0.2:8080");
    second_ = server_->listen("10.9.0.3:8080");
  }
  UniqueFd map(const char* name) const {
    return UniqueFd(::bpf_obj_get((options_.pin_dir + "/maps/" + name).c_str()));
  }
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
  bpf_link_info link_info(const std::string& pin) const {
    UniqueFd link(::bpf_obj_get((options_.pin_dir + "/links/" + pin).c_str()));
    bpf_link_info info{};
    std::uint32_t size = sizeof info;
    EXPECT_EQ(::bpf_obj_get_info_by_fd(link.get(), &info, &size), 0) << pin;
    return info;
  }
  std::size_t pins() const {
    std::size_t found = 0;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(options_.pin_dir + "/links"))
      found += entry.is_regular_file() ? 1U : 0U;
    return found;
  }

  datapath::Options options_;
  std::string home_;
  std::optional<NetNs> app_, server_;
  std::optional<Cgroup> app_group_, mesh_group_;
  std::unique_ptr<Datapath> datapath_;
  UniqueFd proxy4_, proxy6_, first_, second_;
  State state_;
};

TEST_F(DatapathTest, RedirectsIpv4ToTheProxyWithItsDestination) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  Peer peer = peer_from_app("10.78.0.1:9080", AF_INET);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.78.0.1:9080"));
  UniqueFd accepted = test::accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  Peer destination = original_destination(accepted.get(), SOL_IP);
  EXPECT_EQ(destination.err, 0);
  EXPECT_EQ(destination.address, at("10.78.0.1:9080"));
  EXPECT_NE(original_destination(accepted.get(), SOL_IPV6).err, 0);
  EXPECT_EQ(count("connects_redirected"), 1);
  EXPECT_EQ(count("accepted_with_destination"), 1);
}

TEST_F(DatapathTest, RedirectsIpv6ToTheProxyWithItsDestination) {
  proxied("[fd78::1]:9080", 1);
  apply_all();
  proxy_lives();
  Peer peer = peer_from_app("[fd78::1]:9080", AF_INET6);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("[fd78::1]:9080"));
  UniqueFd accepted = test::accept_within(proxy6_.get());
  ASSERT_TRUE(accepted);
  Peer destination = original_destination(accepted.get(), SOL_IPV6);
  EXPECT_EQ(destination.err, 0);
  EXPECT_EQ(destination.address, at("[fd78::1]:9080"));
  EXPECT_NE(original_destination(accepted.get(), SOL_IP).err, 0);
}

TEST_F(DatapathTest, RedirectsAMappedAddressToTheIpv4Listener) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  Peer peer = peer_from_app("10.78.0.1:9080", AF_INET6);
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.78.0.1:9080"));
  UniqueFd accepted = test::accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(original_destination(accepted.get(), SOL_IP).address, at("10.78.0.1:9080"));
}

TEST_F(DatapathTest, KnowsTheDestinationOfClientsThatBoundTheirAddress) {
  proxied("10.78.0.1:9080", 1);
  proxied("10.78.0.2:9080", 2);
  proxied("[fd78::1]:9080", 3);
  apply_all();
  proxy_lives();
  struct Try {
    const char* from;
    const char* to;
    int listener;
    int level;
  };
  for (const Try& t : {Try{"10.9.0.1:7777", "10.78.0.1:9080", proxy4_.get(), SOL_IP},
                       Try{"127.0.0.1:7777", "10.78.0.2:9080", proxy4_.get(), SOL_IP},
                       Try{"[fd09::1]:7777", "[fd78::1]:9080", proxy6_.get(), SOL_IPV6}}) {
    Child client(&*app_group_, &*app_, [&] {
      SocketAddress from = at(t.from), to = at(t.to);
      int fd = ::socket(test::family_of(from), SOCK_STREAM, 0);
      auto source = test::raw_address(from, test::family_of(from));
      auto target = test::raw_address(to, test::family_of(to));
      if (::bind(fd, source.get(), source.size) == 0) ::connect(fd, target.get(), target.size);
      ::pause();
    });
    UniqueFd accepted = test::accept_within(t.listener);
    ASSERT_TRUE(accepted) << t.from;
    EXPECT_EQ(original_destination(accepted.get(), t.level).address, at(t.to)) << t.from;
  }
}

TEST_F(DatapathTest, KnowsTheDestinationOfAClientThatClosedBeforeAccept) {
  proxied("10.78.0.1:9080", 1);
  proxied("[fd78::1]:9080", 2);
  apply_all();
  proxy_lives();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(connect_from_app("10.78.0.1:9080"), 0);
  ASSERT_EQ(connect_from_app("[fd78::1]:9080"), 0);
  for (int i = 0; i < 20; ++i) {
    UniqueFd accepted = test::accept_within(proxy4_.get());
    ASSERT_TRUE(accepted);
    EXPECT_EQ(original_destination(accepted.get(), SOL_IP).address, at("10.78.0.1:9080"));
  }
  UniqueFd accepted = test::accept_within(proxy6_.get());
  EXPECT_EQ(original_destination(accepted.get(), SOL_IPV6).address, at("[fd78::1]:9080"));
  EXPECT_EQ(entries_of("um_records"), 0);
}

TEST_F(DatapathTest, TakesBackTheRecordOfAConnectThatNobodyAnswered) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  proxy4_.reset();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(count("records_written"), 1);
  EXPECT_EQ(count("records_unused"), 1);
  EXPECT_EQ(entries_of("um_records"), 0);
}

TEST_F(DatapathTest, GivesNoDestinationToSomeoneWhoDialsTheProxyHimself) {
  apply_all();
  EXPECT_EQ(connect_from_app(kProxy4), 0);
  UniqueFd accepted = test::accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  EXPECT_NE(original_destination(accepted.get(), SOL_IP).err, 0);
  EXPECT_EQ(count("accepted_without_destination"), 1);
}

TEST_F(DatapathTest, LeavesEveryOtherSocketOptionAlone) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  ASSERT_EQ(connect_from_app("10.78.0.1:9080"), 0);
  UniqueFd accepted = test::accept_within(proxy4_.get());
  int type = 0;
  socklen_t size = sizeof type;
  EXPECT_EQ(::getsockopt(accepted.get(), SOL_SOCKET, SO_TYPE, &type, &size), 0);
  EXPECT_EQ(type, SOCK_STREAM);
  // Longer than the page that a program sees.
  std::vector<char> name(70000, 'x');
  size = static_cast<socklen_t>(name.size());
  EXPECT_EQ(::getsockopt(accepted.get(), SOL_SOCKET, SO_BINDTODEVICE, name.data(), &size), 0);
  EXPECT_STREQ(name.data(), "lo");
  UniqueFd plain(::socket(AF_INET, SOCK_STREAM, 0));
  int own =
      original_destination(plain.get(), SOL_IP).err;  // the kernel's, with conntrack or without
  EXPECT_TRUE(own == ENOPROTOOPT || own == ENOENT) << own;
  sockaddr_storage small{};
  size = 4;
  EXPECT_NE(::getsockopt(accepted.get(), SOL_IP, 80, &small, &size), 0);
}

TEST_F(DatapathTest, ShowsTheNewPeerAfterAReconnect) {
  proxied("10.78.0.1:9080", 1);
  accept_on_both_servers();
  apply_all();
  proxy_lives();
  Peer peer = in_child(&*app_group_, &*app_, [] {
    UniqueFd fd(test::dial("10.78.0.1:9080"));
    sockaddr none{};
    none.sa_family = AF_UNSPEC;
    if (::connect(fd.get(), &none, sizeof none) != 0) return Peer{errno, {}};
    auto raw = test::raw_address(at("10.9.0.2:8080"), AF_INET);
    if (::connect(fd.get(), raw.get(), raw.size) != 0) return Peer{errno, {}};
    sockaddr_storage got{};
    socklen_t size = sizeof got;
    ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&got), &size);
    return Peer{0, test::socket_address(got)};
  });
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.9.0.2:8080"));
}

TEST_F(DatapathTest, RefusesByPolicyAtOnceAndNamesIt) {
  accept_on_both_servers();
  state_.endpoints[ip("10.9.0.2")] = 3;
  state_.endpoints[ip("10.9.0.3")] = 4;
  state_.verdicts[{kApp, 3, 0, 8080}] = {false, 21};
  state_.verdicts[{kApp, 3, 0, 0}] = {true, 22};
  state_.verdicts[{kApp, 4, 0, 0}] = {true, 23};
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080", AF_INET6), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
  EXPECT_FALSE(test::accept_within(first_.get(), 0));
  auto counters = must(datapath_->counters());
  EXPECT_EQ(counters.totals["connects_denied_policy"], 2);
  EXPECT_EQ(counters.denied_by_policy, (std::map<std::uint32_t, std::uint64_t>{{21, 2}}));
  EXPECT_EQ(counters.allowed_by_policy, (std::map<std::uint32_t, std::uint64_t>{{23, 1}}));
  state_.verdicts[{kApp, 3, 0, 8080}] = {true, 21};
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(DatapathTest, DeniesAGroupWithoutAVerdict) {
  accept_on_both_servers();
  state_.endpoints[ip("10.9.0.2")] = 3;
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(count("connects_denied_no_verdict"), 1);
  EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
  EXPECT_EQ(connect_from_app("10.9.0.3:8081"), kRefused);  // nobody listens: not ours
  EXPECT_EQ(count("connects_direct"), 2);
}

TEST_F(DatapathTest, RefusesAProxiedServiceWhoseEveryRouteRefuses) {
  proxied("10.78.0.1:9080", 1);
  state_.verdicts[{kApp, 0, 1, 0}] = {false, 5};
  apply_all();
  proxy_lives();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[5], 1);
  EXPECT_FALSE(test::accept_within(proxy4_.get(), 0));
}

TEST_F(DatapathTest, RefusesWhileTheProxyIsAway) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);  // never stamped
  stamp(now_ns() - 2'500'000'000);
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  stamp(now_ns() + 60'000'000'000);
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(count("connects_refused_proxy_away"), 3);
  proxy_lives();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), 0);
}

TEST_F(DatapathTest, BalancesToTheEndpointsAndShowsTheService) {
  accept_on_both_servers();
  state_.services[at("10.78.0.2:70")] = {
      2, ServiceEntry::Kind::kBalance, {at("10.9.0.2:8080"), at("10.9.0.3:8080")}};
  apply_all();
  for (int i = 0; i < 40; ++i) {
    Peer peer = peer_from_app("10.78.0.2:70", i % 2 == 0 ? AF_INET : AF_INET6);
    ASSERT_EQ(peer.err, 0);
    EXPECT_EQ(peer.address, at("10.78.0.2:70"));
  }
  int first = 0, second = 0;
  while (test::accept_within(first_.get(), 0)) ++first;
  while (test::accept_within(second_.get(), 0)) ++second;
  EXPECT_EQ(first + second, 40);
  EXPECT_GT(first, 0);
  EXPECT_GT(second, 0);
  EXPECT_EQ(count("connects_balanced"), 40);
}

TEST_F(DatapathTest, AnIpv4ServiceGoesToItsIpv4EndpointsAlone) {
  accept_on_both_servers();
  state_.services[at("10.78.0.2:70")] = {
      2, ServiceEntry::Kind::kBalance, {at("[fd09::2]:8080"), at("10.9.0.2:8080")}};
  apply_all();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(connect_from_app("10.78.0.2:70"), 0);
}

TEST_F(DatapathTest, ChecksThePolicyOfTheEndpointThatItPicks) {
  accept_on_both_servers();
  state_.services[at("10.78.0.2:70")] = {2, ServiceEntry::Kind::kBalance, {at("10.9.0.2:8080")}};
  state_.endpoints[ip("10.9.0.2")] = 3;
  state_.verdicts[{kApp, 3, 0, 0}] = {false, 9};
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), kRefused);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[9], 1);
}

TEST_F(DatapathTest, RefusesAServiceWithoutEndpoints) {
  state_.services[at("10.78.0.2:70")] = {2, ServiceEntry::Kind::kBalance, {}};
  state_.services[at("10.78.0.3:70")] = {3, ServiceEntry::Kind::kBalance, {at("[fd09::2]:8080")}};
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.2:70"), kRefused);
  EXPECT_EQ(connect_from_app("10.78.0.3:70", AF_INET), kRefused);  // no IPv4 endpoint
  EXPECT_EQ(count("connects_refused_no_endpoint"), 2);
}

TEST_F(DatapathTest, TheMeshIsPolicedButNeverRedirected) {
  accept_on_both_servers();
  proxied("10.9.0.3:8080", 1);  // a service address that really exists
  state_.endpoints[ip("10.9.0.2")] = 3;
  state_.verdicts[{kApp, 3, 0, 0}] = {false, 9};
  apply_all();
  proxy_lives();
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), kDenied);
  EXPECT_EQ(connect_from_mesh("10.9.0.3:8080"), 0);
  EXPECT_TRUE(test::accept_within(second_.get(), 1000));
  for (const char* forbidden :
       {"127.0.0.1:15001", "[::1]:15001", "169.254.169.254:80", "[fe80::1]:80", "0.0.0.0:80",
        "[::]:80", "224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80"})
    EXPECT_EQ(connect_from_mesh(forbidden), kDenied) << forbidden;
  EXPECT_EQ(count("mesh_connects_refused_address"), 9);
  EXPECT_EQ(count("mesh_connects_denied_policy"), 1);
  EXPECT_EQ(must(datapath_->counters()).denied_by_policy[9], 1);
  EXPECT_EQ(server_->run([] { return test::try_connect("10.9.0.1:1"); }), kDenied);
  EXPECT_EQ(count("mesh_connects_denied_unknown_workload"), 1);
}

// Sockets that the mesh made keep their flag where redirecting programs run for them too.
TEST_F(DatapathTest, AFlaggedSocketBelowAWorkloadsCgroupIsNotRedirected) {
  Cgroup inner = Cgroup::create("app/mesh");
  proxied("10.9.0.3:8080", 1);
  accept_on_both_servers();
  must(datapath_->attach_mesh(inner.path()));
  apply_all();
  proxy_lives();
  EXPECT_EQ(in_child(&inner, &*app_, [] { return test::try_connect("10.9.0.3:8080"); }), 0);
  EXPECT_TRUE(test::accept_within(second_.get(), 1000));
  EXPECT_FALSE(test::accept_within(proxy4_.get(), 0));
}

TEST_F(DatapathTest, PassesWhatStaysInTheWorkload) {
  apply_all();
  UniqueFd own = app_->listen("10.9.0.1:8081");
  UniqueFd lo = app_->listen("127.0.0.1:8082");
  UniqueFd own6 = app_->listen("[fd09::1]:8081");
  state_.endpoints[ip("10.9.0.1")] = 3;  // and no verdict
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.1:8081"), 0);
  EXPECT_EQ(connect_from_app("127.0.0.1:8082"), 0);
  EXPECT_EQ(connect_from_app("0.0.0.0:8082"), 0);
  EXPECT_EQ(connect_from_app("[fd09::1]:8081"), 0);
  EXPECT_EQ(count("connects_local"), 4);
}

TEST_F(DatapathTest, PassesUdp) {
  proxied("10.9.0.2:53", 1);
  apply_all();
  Peer peer = in_child(&*app_group_, &*app_, [] {
    UniqueFd fd(::socket(AF_INET, SOCK_DGRAM, 0));
    auto raw = test::raw_address(at("10.9.0.2:53"), AF_INET);
    if (::connect(fd.get(), raw.get(), raw.size) != 0) return Peer{errno, {}};
    sockaddr_storage got{};
    socklen_t size = sizeof got;
    ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&got), &size);
    return Peer{0, test::socket_address(got)};
  });
  EXPECT_EQ(peer.err, 0);
  EXPECT_EQ(peer.address, at("10.9.0.2:53"));
}

TEST_F(DatapathTest, RefusesANamespaceThatItDoesNotKnow) {
  apply_all();
  NetNs stranger = NetNs::create();
  UniqueFd lo = stranger.listen("127.0.0.1:80");
  EXPECT_EQ(in_child(&*app_group_, &stranger, [] { return test::try_connect("127.0.0.1:80"); }),
            kRefused);
  EXPECT_EQ(count("connects_denied_unknown_workload"), 1);
}

TEST_F(DatapathTest, TakesASocketOffItsDevice) {
  proxied("10.78.0.1:9080", 1);
  proxied("[fd78::1]:9080", 1);
  apply_all();
  proxy_lives();
  for (const char* to : {"10.78.0.1:9080", "[fd78::1]:9080"}) {
    int err = in_child(&*app_group_, &*app_, [&] {
      SocketAddress address = at(to);
      UniqueFd fd(::socket(test::family_of(address), SOCK_STREAM, 0));
      timeval limit{2, 0};
      ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
      if (::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "veth0", 5) != 0) return errno;
      auto raw = test::raw_address(address, test::family_of(address));
      return ::connect(fd.get(), raw.get(), raw.size) == 0 ? 0 : errno;
    });
    EXPECT_EQ(err, 0) << to;
  }
}

// Only root may take a socket off its device: the others are refused, not left hanging.
TEST_F(DatapathTest, RefusesASocketThatItCannotTakeOffItsDevice) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  int err = in_child(&*app_group_, &*app_, [&] {
    if (::setuid(65530) != 0) return -1;
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM, 0));
    timeval limit{2, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "veth0", 5) != 0) return -2;
    auto raw = test::raw_address(at("10.78.0.1:9080"), AF_INET);
    return ::connect(fd.get(), raw.get(), raw.size) == 0 ? 0 : errno;
  });
  EXPECT_EQ(err, kRefused);
  EXPECT_EQ(count("connects_refused_bound_device"), 1);
}

TEST_F(DatapathTest, ASecondOwnerIsRefused) {
  auto second = datapath::open_kernel_datapath(options_);
  ASSERT_TRUE(second.has_error());
  EXPECT_EQ(second.error().code, Errc::unavailable);
}

TEST_F(DatapathTest, GoesOnWithoutItsOwnerAndIsAdopted) {
  datapath_.reset();
  proxied("10.78.0.1:9080", 1);
  accept_on_both_servers();
  state_.services[at("[fd78::2]:70")] = {
      2, ServiceEntry::Kind::kBalance, {at("[fd09::2]:8080"), at("[fd09::2]:8081")}};
  state_.endpoints[ip("10.9.0.2")] = 3;
  state_.verdicts[{kApp, 3, 0, 8080}] = {false, 21};
  state_.verdicts[{kApp, 0, 1, 0}] = {true, 22};
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  UniqueFd reader(ends[0]), writer(ends[1]);
  Child owner(nullptr, nullptr, [&] {
    auto own = must(datapath::open_kernel_datapath(options_));
    if (!must(own->apply(state_)).empty()) std::abort();
    if (::write(writer.get(), "x", 1) != 1) std::abort();
    ::pause();
  });
  char ready = 0;
  ASSERT_EQ(::read(reader.get(), &ready, 1), 1);
  owner.kill();

  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(connect_from_app("10.9.0.3:8080"), 0);
  std::size_t links = pins();
  open();
  EXPECT_EQ(must(datapath_->adopt()).workloads, state_.workloads);
  EXPECT_EQ(must(datapath_->adopt()).services, state_.services);
  EXPECT_EQ(must(datapath_->adopt()).endpoints, state_.endpoints);
  EXPECT_EQ(must(datapath_->adopt()).verdicts, state_.verdicts);
  apply_all();
  EXPECT_EQ(pins(), links);
  EXPECT_EQ(count("connects_denied_policy"), 1);
  proxy_lives();
  EXPECT_EQ(peer_from_app("10.78.0.1:9080", AF_INET).address, at("10.78.0.1:9080"));
  UniqueFd accepted = test::accept_within(proxy4_.get());
  EXPECT_EQ(original_destination(accepted.get(), SOL_IP).address, at("10.78.0.1:9080"));
}

TEST_F(DatapathTest, ReplacesTheProgramsOfAnotherBuildInPlace) {
  accept_on_both_servers();
  state_.endpoints[ip("10.9.0.2")] = 3;
  apply_all();
  datapath_.reset();
  bpf_link_info before = link_info("7/connect4");
  // What a start that died half-way, or another build, leaves: no programs that we know.
  UniqueFd meta(::bpf_obj_get((options_.pin_dir + "/meta").c_str()));
  std::uint32_t zero = 0;
  std::uint32_t other[4] = {UM_LAYOUT, 0, 1, 2};
  ASSERT_EQ(::bpf_map_update_elem(meta.get(), &zero, other, BPF_ANY), 0);
  open();
  must(datapath_->attach_mesh(mesh_group_->path()));
  apply_all();
  bpf_link_info after = link_info("7/connect4");
  EXPECT_EQ(after.id, before.id);
  EXPECT_NE(after.prog_id, before.prog_id);
  EXPECT_EQ(after.cgroup.cgroup_id, before.cgroup.cgroup_id);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
}

TEST_F(DatapathTest, RefusesMapsOfAnotherLayoutAndNamesTheRemedy) {
  datapath_.reset();
  UniqueFd meta(::bpf_obj_get((options_.pin_dir + "/meta").c_str()));
  std::uint32_t zero = 0;
  std::uint32_t other[4] = {UM_LAYOUT + 1, 0, 0, 0};
  ASSERT_EQ(::bpf_map_update_elem(meta.get(), &zero, other, BPF_ANY), 0);
  auto opened = datapath::open_kernel_datapath(options_);
  ASSERT_TRUE(opened.has_error());
  EXPECT_THAT(opened.error().message, testing::HasSubstr("meshctl disable --all"));
}

TEST_F(DatapathTest, ALoadErrorCarriesWhatLibbpfAndTheKernelSaid) {
  datapath_.reset();
  UniqueFd meta(::bpf_obj_get((options_.pin_dir + "/meta").c_str()));
  std::uint32_t zero = 0;
  std::uint32_t other[4] = {UM_LAYOUT, 0, 1, 2};
  ASSERT_EQ(::bpf_map_update_elem(meta.get(), &zero, other, BPF_ANY), 0);
  std::string pin = options_.pin_dir + "/maps/um_config";
  ASSERT_EQ(::unlink(pin.c_str()), 0);
  UniqueFd wrong(::bpf_map_create(BPF_MAP_TYPE_ARRAY, "wrong", 4, 64, 1, nullptr));
  ASSERT_EQ(::bpf_obj_pin(wrong.get(), pin.c_str()), 0);
  auto opened = datapath::open_kernel_datapath(options_);
  ASSERT_TRUE(opened.has_error());
  EXPECT_THAT(opened.error().message, testing::HasSubstr("um_config"));
  EXPECT_LT(opened.error().message.size(), 4000);
}

TEST_F(DatapathTest, AWorkloadThatComesBackUnderItsIdIsCaughtAgain) {
  apply_all();
  NetNs second = NetNs::create();
  std::string path = app_group_->path();
  ASSERT_EQ(::rmdir(path.c_str()), 0);  // and made again at the same place
  ASSERT_EQ(::mkdir(path.c_str(), 0755), 0);
  state_.workloads[kApp].netns_cookie = second.cookie();
  state_.verdicts[{kApp, 3, 0, 0}] = {false, 1};
  state_.endpoints[ip("10.9.0.2")] = 3;
  apply_all();
  EXPECT_EQ(in_child(&*app_group_, &second, [] { return test::try_connect("10.9.0.2:80"); }),
            kRefused);
  EXPECT_EQ(count("connects_denied_policy"), 1);
}

TEST_F(DatapathTest, AWorkloadThatEndsLeavesNothing) {
  std::size_t before = pins();
  proxied("10.78.0.1:9080", 1);
  state_.verdicts[{kApp, 0, 1, 0}] = {true, 22};
  accept_on_both_servers();
  apply_all();
  EXPECT_EQ(pins(), before + 5);
  EXPECT_EQ(entries_of("um_workloads"), 1);
  state_ = {};
  apply_all();
  EXPECT_EQ(pins(), before);
  for (const char* map : {"um_workloads", "um_own_addresses", "um_workload_records", "um_services",
                          "um_backends", "um_groups", "um_verdicts", "um_records"})
    EXPECT_EQ(entries_of(map), 0) << map;
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);  // no program is left to refuse it
}

TEST_F(DatapathTest, AWorkloadThatEndedWhileNobodyLookedLeavesNothing) {
  std::size_t before = pins();
  apply_all();
  datapath_.reset();
  open();
  state_ = {};
  apply_all();
  EXPECT_EQ(pins(), before);
  EXPECT_EQ(entries_of("um_workloads"), 0);
}

TEST_F(DatapathTest, AWorkloadThatEndsTakesItsRecordsAlong) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  proxy4_.reset();
  UniqueFd small = app_->listen(kProxy4, "lo", 0);
  // The backlog takes one; the rest stay unanswered, their records with them.
  Child clients(&*app_group_, &*app_, [] {
    auto raw = test::raw_address(at("10.78.0.1:9080"), AF_INET);
    for (int i = 0; i < 6; ++i) {
      int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
      (void)::connect(fd, raw.get(), raw.size);
    }
    ::pause();
  });
  for (int i = 0; i < 500 && count("records_written") < 6; ++i) ::usleep(10'000);
  EXPECT_EQ(count("records_written"), 6);
  state_ = {};
  apply_all();
  EXPECT_EQ(entries_of("um_records"), 0);
}

TEST_F(DatapathTest, AWorkloadWhoseCgroupIsGoneIsReportedAlone) {
  state_.workloads[8] = {8, 12345, app_group_->path() + "-gone", {}};
  auto problems = apply();
  ASSERT_EQ(problems.size(), 1);
  EXPECT_EQ(problems.begin()->first, 8);
  EXPECT_EQ(problems.begin()->second.code, Errc::not_found);
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);  // by the server: nobody listens
  EXPECT_EQ(count("connects_direct"), 1);
}

TEST_F(DatapathTest, TwoWorkloadsCannotShareANamespace) {
  state_.workloads[8] = {8, app_->cookie(), app_group_->path(), {}};
  auto problems = apply();
  ASSERT_EQ(problems.size(), 1);
  EXPECT_EQ(problems.begin()->first, 8);
}

TEST_F(DatapathTest, DisableAllDetachesEverything) {
  accept_on_both_servers();
  state_.endpoints[ip("10.9.0.2")] = 3;
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  UniqueFd held(::bpf_obj_get((options_.pin_dir + "/links/7/connect4").c_str()));  // by whomever
  EXPECT_FALSE(must(datapath::disable_all(options_.pin_dir)).empty());
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), 0);
  EXPECT_FALSE(std::filesystem::exists(options_.pin_dir));
  EXPECT_TRUE(must(datapath::disable_all(options_.pin_dir)).empty());
}

TEST_F(DatapathTest, DisableAllTouchesNothingButABpffs) {
  EXPECT_TRUE(datapath::disable_all("/tmp").has_error());
}

TEST_F(DatapathTest, AFullMapOfVerdictsDenies) {
  accept_on_both_servers();
  state_.endpoints[ip("10.9.0.2")] = 200;
  state_.endpoints[ip("10.9.0.3")] = 300;
  for (datapath::GroupId group = 100; group < 201; ++group)
    state_.verdicts[{kApp, group, 0, 0}] = {true, 1};
  auto problems = apply();
  EXPECT_TRUE(problems.contains(kApp));
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(count("connects_denied_no_verdict"), 1);
  // Room again: everything that is wanted gets in, in one call.
  state_.verdicts.clear();
  for (datapath::GroupId group = 200; group < 250; ++group)
    state_.verdicts[{kApp, group, 0, 0}] = {true, 1};
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(DatapathTest, ARefusalOfAServiceThatDoesNotFitRefuses) {
  proxied("10.78.0.1:9080", 900);
  for (datapath::ServiceId service = 800; service < 901; ++service)
    state_.verdicts[{kApp, 0, service, 0}] = {false, 1};
  EXPECT_TRUE(apply().contains(kApp));
  proxy_lives();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), kRefused);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  state_.verdicts.clear();
  apply_all();
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), 0);
}

TEST_F(DatapathTest, AFullMapOfDestinationsRefusesWhatItDoesNotHold) {
  accept_on_both_servers();
  for (int i = 0; i < 80; ++i)
    state_.endpoints[IpAddress::v4(10, 200, 0, static_cast<std::uint8_t>(i))] = 3;
  state_.endpoints[ip("10.250.0.1")] = 3;
  EXPECT_TRUE(apply().contains(0));
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
  EXPECT_EQ(connect_from_mesh("10.9.0.2:8080"), kDenied);
  EXPECT_EQ(count("connects_denied_map_full"), 1);
  EXPECT_EQ(count("mesh_connects_denied_map_full"), 1);
  state_.endpoints.clear();
  apply_all();
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), 0);
}

TEST_F(DatapathTest, AWorkloadThatDoesNotFitIsRefusedEverything) {
  // Before the application's in the order of writing (by bytes).
  for (datapath::WorkloadId id = 100; id < 164; ++id)
    state_.workloads[id] = {id, std::uint64_t{id} << 16, "", {}};
  state_.workloads.erase(kApp);
  state_.workloads[500] = {500, app_->cookie(), app_group_->path(), {}};
  EXPECT_TRUE(apply().contains(500));
  UniqueFd listening = server_->listen("10.9.0.2:8080");
  EXPECT_EQ(connect_from_app("10.9.0.2:8080"), kRefused);
}

TEST_F(DatapathTest, WithoutRoomForARecordTheProxyGetsNoDestination) {
  proxied("10.78.0.1:9080", 1);
  apply_all();
  proxy_lives();
  UniqueFd records = map("um_records");
  um_destination nowhere{};
  um_record_key key{};
  while (::bpf_map_update_elem(records.get(), &key, &nowhere, BPF_ANY) == 0) ++key.netns_cookie;
  EXPECT_EQ(connect_from_app("10.78.0.1:9080"), 0);
  UniqueFd accepted = test::accept_within(proxy4_.get());
  ASSERT_TRUE(accepted);
  EXPECT_NE(original_destination(accepted.get(), SOL_IP).err, 0);
  EXPECT_EQ(count("records_full"), 1);
  EXPECT_EQ(count("accepted_without_destination"), 1);
}

TEST(Machine, FindsCgroup2ByItsType) {
  auto found = datapath::find_cgroup2();
  ASSERT_TRUE(found);
  EXPECT_EQ(found.value(), test::cgroup2_mount());
}

TEST_F(DatapathTest, CheckSaysOkOfThisMachine) {
  for (const auto& finding : datapath::check_machine(app_group_->path()))
    EXPECT_NE(finding.level, datapath::Finding::Level::kError)
        << finding.subject << ": " << finding.message << ": " << finding.remedy;
}

// What neighbours attach above ours: `flags` at a parent of the cgroup that is checked.
class CheckTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::is_root() || test::cgroup2_mount().empty()) GTEST_SKIP() << "needs root and cgroup2";
    parent_.emplace(Cgroup::create("parent"));
    const bpf_insn pass[] = {{BPF_ALU64 | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, 1},
                             {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}};
    LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_CGROUP_INET4_CONNECT);
    program_.reset(
        ::bpf_prog_load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, "neighbour", "GPL", pass, 2, &options));
    ASSERT_TRUE(program_);
  }
  // False where this kernel does not know the flags.
  bool attach(std::uint32_t flags) {
    group_.reset(::open(parent_->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return ::bpf_prog_attach(program_.get(), group_.get(), BPF_CGROUP_INET4_CONNECT, flags) == 0;
  }
  datapath::Finding worst() {
    datapath::Finding out;
    for (const auto& finding : datapath::check_machine(parent_->path() + "/undermesh/mesh"))
      if (finding.subject == "programs" && finding.level > out.level) out = finding;
    return out;
  }
  std::optional<Cgroup> parent_;
  UniqueFd program_, group_;
};

using Level = datapath::Finding::Level;

TEST_F(CheckTest, IsContentWithANeighbourThatAllowsOthers) {
  ASSERT_TRUE(attach(BPF_F_ALLOW_MULTI));
  EXPECT_EQ(worst().level, Level::kOk);
}

TEST_F(CheckTest, NamesAnExclusiveProgram) {
  ASSERT_TRUE(attach(0));
  datapath::Finding finding = worst();
  EXPECT_EQ(finding.level, Level::kError);
  EXPECT_NE(finding.remedy, "");
  bool named = false;
  for (const auto& f : datapath::check_machine(parent_->path()))
    named |= f.message.find("neighbour") != std::string::npos && f.level == Level::kError;
  EXPECT_TRUE(named);
}

TEST_F(CheckTest, WarnsOfAProgramThatOursWouldReplace) {
  ASSERT_TRUE(attach(BPF_F_ALLOW_OVERRIDE));
  EXPECT_EQ(worst().level, Level::kWarning);
}

TEST_F(CheckTest, WarnsOfAProgramThatRunsBeforeOurs) {
  if (!attach(BPF_F_ALLOW_MULTI | (1U << 6))) GTEST_SKIP() << "the kernel has no BPF_F_PREORDER";
  datapath::Finding finding = worst();
  EXPECT_EQ(finding.level, Level::kWarning);
  EXPECT_THAT(finding.message, testing::HasSubstr("neighbour"));
}

}  // namespace
}  // namespace mesh
