#include "datapath/fastpath_trial.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <utility>

#include "base/unique_fd.h"
#include "bpf/fastpath.h"
#include "datapath/fastpath.h"
#include "datapath/fastpath_trial_ends.h"

namespace mesh::datapath {

const char* text_of(TrialStep step) {
  switch (step) {
    case TrialStep::kPassed:
      return "passed";
    case TrialStep::kNamespace:
      return "its network namespace could not be made ready";
    case TrialStep::kConnect:
      return "a connection could not be made";
    case TrialStep::kJoin:
      return "a connection that lasts did not join";
    case TrialStep::kBlocks:
      return "a socket joined that blocks, or got other bytes";
    case TrialStep::kMove:
      return "what was sent did not go past TCP, or was not counted";
    case TrialStep::kBytes:
      return "what arrived is not what was sent";
    case TrialStep::kRead:
      return "a reader of read() stalled or got other bytes";
    case TrialStep::kMessage:
      return "a reader of recvmsg() stalled or got other bytes";
    case TrialStep::kPoll:
      return "a reader that polls, and asks how much there is, stalled or got other bytes";
    case TrialStep::kLevel:
      return "a reader of level-triggered epoll stalled or got other bytes";
    case TrialStep::kEdge:
      return "a reader of edge-triggered epoll stalled or got other bytes";
    case TrialStep::kPeek:
      return "a reader that peeks first stalled or got other bytes";
    case TrialStep::kCrowd:
      return "one of many connections at once stalled or got other bytes";
    case TrialStep::kHalfClose:
      return "what was sent after the other side had ended did not arrive";
    case TrialStep::kBounded:
      return "a sender was not stopped whose receiver never reads";
    case TrialStep::kFullOrder:
      return "bytes were lost or mixed up as a full receiver changed to TCP";
    case TrialStep::kOff:
      return "bytes were lost or mixed up as it was switched off";
    case TrialStep::kCount:
      break;
  }
  return "for no known reason";
}

namespace {

constexpr int kMostTrips =
    200;                     // until a connection has asked to join: an acknowledgement may wait
constexpr int kRounds = 12;  // trips of each of kCrowd
constexpr std::uint16_t kProxyPort = UM_PROXY_PORT, kOtherPort = 7007;
constexpr std::uint32_t kOwnAddress = 0xc0000201;  // 192.0.2.1, of documentation
constexpr in6_addr kOwnAddress6 = {{{0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}};

struct Place {
  sockaddr_storage storage{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};
Place place_of(std::uint32_t host, std::uint16_t port) {
  Place place;
  auto& in = reinterpret_cast<sockaddr_in&>(place.storage);
  in.sin_family = AF_INET;
  in.sin_port = htons(port);
  in.sin_addr.s_addr = htonl(host);
  place.size = sizeof in;
  return place;
}
Place place_of(const in6_addr& host, std::uint16_t port) {
  Place place;
  auto& in = reinterpret_cast<sockaddr_in6&>(place.storage);
  in.sin6_family = AF_INET6;
  in.sin6_port = htons(port);
  in.sin6_addr = host;
  place.size = sizeof in;
  return place;
}

bool set_lo(const char* name, unsigned long what, std::uint32_t host) {
  const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, name, sizeof request.ifr_name - 1);
  if (host == 0) {
    request.ifr_flags = IFF_UP;
  } else {
    const Place place = place_of(host, 0);
    std::memcpy(&request.ifr_addr, place.get(), sizeof request.ifr_addr);
  }
  return ::ioctl(fd.get(), what, &request) == 0;
}
// False: this machine has no IPv6. The kernel makes it usable a moment later.
bool add_to_lo(const in6_addr& host) {
  const UniqueFd fd(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  struct {  // in6_ifreq of <linux/ipv6.h>
    in6_addr address;
    std::uint32_t prefix;
    int interface;
  } request{host, 128, static_cast<int>(::if_nametoindex("lo"))};
  if (!fd || ::ioctl(fd.get(), SIOCSIFADDR, &request) != 0) return false;
  const Place place = place_of(host, 0);
  for (int waited = 0; waited < kWaitMs; ++waited) {
    if (::bind(fd.get(), place.get(), place.size) == 0) return true;
    ::poll(nullptr, 0, 1);
  }
  return false;
}

class Trial {
 public:
  explicit Trial(const TrialMaps& maps) : maps_(maps) {}

  TrialStep run() {
    fill_pattern();
    if (!prepare()) return TrialStep::kNamespace;
    if (has_ipv6_) {
      for (const Place& place :
           {place_of(in6addr_loopback, kProxyPort), place_of(kOwnAddress6, kOtherPort)})
        if (const TrialStep failed = move_at(place); failed != TrialStep::kPassed) return failed;
    }
    for (const Place& place :
         {place_of(INADDR_LOOPBACK, kProxyPort), place_of(kOwnAddress, kOtherPort)})
      if (const TrialStep failed = move_at(place); failed != TrialStep::kPassed) return failed;
    if (const TrialStep failed = keep_out_who_blocks(); failed != TrialStep::kPassed) return failed;
    for (const TrialStep reader : {TrialStep::kRead, TrialStep::kMessage, TrialStep::kPoll,
                                   TrialStep::kLevel, TrialStep::kEdge, TrialStep::kPeek})
      if (const TrialStep failed = talk_to(reader); failed != TrialStep::kPassed) return failed;
    if (const TrialStep failed = talk_to_many(); failed != TrialStep::kPassed) return failed;
    if (const TrialStep failed = overfill(); failed != TrialStep::kPassed) return failed;
    return switch_off();
  }

 private:
  // Addresses of its own beside loopback, registered as a workload's.
  bool prepare() {
    if (!set_lo("lo", SIOCSIFFLAGS, 0) || !set_lo("lo:1", SIOCSIFADDR, kOwnAddress)) return false;
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    std::uint64_t cookie = 0;
    socklen_t size = sizeof cookie;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) != 0) return false;
    const um_address own{{0, 0, htonl(0xffff), htonl(kOwnAddress)}};
    um_address own6{};
    std::memcpy(own6.word, &kOwnAddress6, sizeof own6.word);
    has_ipv6_ = add_to_lo(kOwnAddress6);
    return ::bpf_map_update_elem(maps_.addresses, &own, &cookie, BPF_ANY) == 0 &&
           ::bpf_map_update_elem(maps_.addresses, &own6, &cookie, BPF_ANY) == 0;
  }

  bool switch_on(bool is_on) const {
    const std::uint32_t zero = 0;
    const um_fast_config config{is_on ? UM_FAST_ON : 0U, 1};
    return ::bpf_map_update_elem(maps_.config, &zero, &config, BPF_ANY) == 0;
  }

  TrialStep listen_at(const Place& place) {
    at_ = place;
    listener_.reset(::socket(at_.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const bool listens =
        ::bind(listener_.get(), at_.get(), at_.size) == 0 && ::listen(listener_.get(), 8) == 0;
    return listens ? TrialStep::kPassed : TrialStep::kConnect;
  }
  TrialStep move_at(const Place& place) {
    if (const TrialStep failed = listen_at(place); failed != TrialStep::kPassed) return failed;
    return move();
  }

  // The server's end blocks, or not.
  bool connect(Pair& pair, bool blocks) {
    pair.client.reset(::socket(at_.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(pair.client.get(), at_.get(), at_.size) != 0) return false;
    ::fcntl(pair.client.get(), F_SETFL, O_NONBLOCK);
    const int mode = blocks ? 0 : SOCK_NONBLOCK;
    pair.server.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | mode));
    return static_cast<bool>(pair.server);
  }

  // A connection that both ends of have joined. buffer: of the receiver; 0: as it comes.
  TrialStep join(Pair& pair, int buffer = 0) {
    if (buffer != 0) ::setsockopt(listener_.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (!connect(pair, false)) return TrialStep::kConnect;
    return join_all(&pair, &pair + 1);
  }
  TrialStep join_all(const Pair* begin, const Pair* end) const {
    const auto has_joined = [this](const Pair& pair) {
      return is_at(pair.client, UM_FAST_UNDECIDED, 0) && is_at(pair.server, UM_FAST_UNDECIDED, 0);
    };
    for (int trip = 0; trip < kMostTrips; ++trip) {
      for (const Pair* pair = begin; pair != end; ++pair)
        if (!has_joined(*pair) && !greet(*pair)) return TrialStep::kBytes;
      if (run_fast_path_iterator(maps_.iterator) != 0) return TrialStep::kJoin;
      if (std::all_of(begin, end, has_joined)) return TrialStep::kPassed;
    }
    return TrialStep::kJoin;
  }
  // A round trip by TCP; who has asked to join by then may.
  static bool greet(const Pair& pair) {
    return send_all(pair.client.get(), 0, 1) && receive(pair.server.get(), 0, 1) &&
           send_all(pair.server.get(), 0, 1) && receive(pair.client.get(), 0, 1);
  }

  // It stays as it is, and so does what is sent to it.
  TrialStep keep_out_who_blocks() {
    Pair pair;
    if (!connect(pair, true)) return TrialStep::kConnect;
    for (int trip = 0; trip < kMostTrips; ++trip) {
      if (!greet(pair)) return TrialStep::kBytes;
      if (run_fast_path_iterator(maps_.iterator) != 0) return TrialStep::kJoin;
      if (!is_at(pair.server, UM_FAST_STAYS, 0)) continue;
      const bool is_right = send_all(pair.client.get(), 0, 1000) &&
                            receive(pair.server.get(), 0, 1000) && has_sent_nothing(pair.client);
      return is_right ? TrialStep::kPassed : TrialStep::kBlocks;
    }
    return TrialStep::kBlocks;
  }

  bool look_up(const UniqueFd& fd, um_fast_socket& record) const {
    const int number = fd.get();
    return ::bpf_map_lookup_elem(maps_.sockets, &number, &record) == 0;
  }
  bool is_at(const UniqueFd& fd, um_fast_state state, std::uint64_t sent) const {
    um_fast_socket record{};
    return look_up(fd, record) && record.state == state && record.sent_bytes == sent;
  }
  bool has_sent_nothing(const UniqueFd& fd) const {
    um_fast_socket record{};
    return !look_up(fd, record) || record.sent_bytes == 0;
  }

  // Every size, both ways; past TCP.
  TrialStep move() {
    Pair pair;
    if (const TrialStep failed = join(pair); failed != TrialStep::kPassed) return failed;
    std::uint64_t sent = 0;
    for (const std::size_t size : kPieces) {
      for (const auto& [from, to] :
           {std::pair{&pair.client, &pair.server}, {&pair.server, &pair.client}}) {
        if (!send_all(from->get(), sent, size)) return TrialStep::kBytes;
        if (!receive(to->get(), sent, size)) return TrialStep::kBytes;
      }
      sent += size;
    }
    for (const UniqueFd* fd : {&pair.client, &pair.server})
      if (!is_at(*fd, UM_FAST_REDIRECT, sent)) return TrialStep::kMove;
    return half_close(pair, sent);
  }
  // Each end hears of the other's; the later one still sends, past TCP.
  TrialStep half_close(const Pair& pair, std::uint64_t sent) const {
    ::shutdown(pair.client.get(), SHUT_WR);
    if (!has_ended(pair.server.get()) || !send_all(pair.server.get(), sent, kTail) ||
        !receive(pair.client.get(), sent, kTail))
      return TrialStep::kHalfClose;
    if (!is_at(pair.server, UM_FAST_REDIRECT, sent + kTail)) return TrialStep::kMove;
    ::shutdown(pair.server.get(), SHUT_WR);
    return has_ended(pair.client.get()) ? TrialStep::kPassed : TrialStep::kHalfClose;
  }

  // Round trips with another process, which reads as `reader` says: past TCP, then with so much at
  // once that a queue may fill, then by TCP, where a kernel may forget to wake it (929e30f93125).
  // It hears of our end, and says something more.
  TrialStep talk_to(TrialStep reader) {
    Pair pair;
    if (const TrialStep failed = join(pair); failed != TrialStep::kPassed) return failed;
    limit_buffers(pair);
    const long child = fork_reader();
    if (child < 0) return TrialStep::kNamespace;
    if (child == 0) {
      pair.client.reset();
      ::_exit(echo(pair.server.get(), reader) ? 0 : 1);
    }
    pair.server.reset();
    const int fd = pair.client.get();
    if (!make_trips(fd, 0)) return reader;
    if (!is_at(pair.client, UM_FAST_REDIRECT, kBytesOfTrips)) return TrialStep::kMove;
    if (!exchange_huge(fd, kBytesOfTrips)) return reader;
    if (!switch_on(false)) return TrialStep::kOff;
    if (!make_trips(fd, kBytesOfTrips + kHuge)) return reader;
    um_fast_socket record{};
    if (!look_up(pair.client, record) || record.state != UM_FAST_TCP || !switch_on(true))
      return TrialStep::kOff;
    ::shutdown(fd, SHUT_WR);
    if (!receive(fd, 2 * kBytesOfTrips + kHuge, kTail) || !has_ended(fd))
      return TrialStep::kHalfClose;
    return has_succeeded(child) ? TrialStep::kPassed : reader;
  }
  // What may wait between them is our memory: they would grow to some MB each.
  static void limit_buffers(const Pair& pair) {
    constexpr int kMost = 4 * kLargest;
    for (const UniqueFd* fd : {&pair.client, &pair.server})
      for (const int which : {SO_SNDBUF, SO_RCVBUF})
        ::setsockopt(fd->get(), SOL_SOCKET, which, &kMost, sizeof kMost);
  }
  static long fork_reader() {
    clone_args args{};
    args.exit_signal = SIGCHLD;
    const long child = ::syscall(SYS_clone3, &args, sizeof args);
    if (child == 0) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
  }
  static bool has_succeeded(long child) {
    int status = 0;
    return ::waitpid(static_cast<pid_t>(child), &status, 0) == child && status == 0;
  }
  // Many connections at once, with one process that waits for all of them.
  TrialStep talk_to_many() {
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
    Pair pairs[kCrowd];
    for (Pair& pair : pairs)
      if (!connect(pair, false)) return TrialStep::kConnect;
    if (const TrialStep failed = join_all(std::begin(pairs), std::end(pairs));
        failed != TrialStep::kPassed)
      return failed;
    const long child = fork_reader();
    if (child < 0) return TrialStep::kNamespace;
    if (child == 0) {
      for (Pair& pair : pairs) pair.client.reset();
      ::_exit(echo_all(pairs) ? 0 : 1);
    }
    for (Pair& pair : pairs) pair.server.reset();
    std::uint64_t sent = 0;
    for (int round = 0; round < kRounds; ++round) {
      const std::size_t size = std::min<std::size_t>(size_of_trip(round), 16384);
      for (int i = 0; i < kCrowd; ++i)
        if (!send_all(pairs[i].client.get(), begin_of(i) + sent, size)) return TrialStep::kCrowd;
      for (int i = 0; i < kCrowd; ++i)
        if (!receive(pairs[i].client.get(), begin_of(i) + sent, size)) return TrialStep::kCrowd;
      sent += size;
    }
    for (const Pair& pair : pairs) {
      if (!is_at(pair.client, UM_FAST_REDIRECT, sent)) return TrialStep::kMove;
      ::shutdown(pair.client.get(), SHUT_WR);
    }
    return has_succeeded(child) ? TrialStep::kPassed : TrialStep::kCrowd;
  }
  TrialStep overfill() {
    constexpr int kBuffer = 65536;  // the kernel doubles it
    constexpr std::size_t kMost = 4 * 2 * kBuffer, kPiece = 16384;
    Pair pair;
    if (const TrialStep failed = join(pair, kBuffer); failed != TrialStep::kPassed) return failed;
    ::setsockopt(pair.client.get(), SOL_SOCKET, SO_SNDBUF, &kBuffer, sizeof kBuffer);
    std::size_t taken = 0;
    while (taken < kMost) {
      const ssize_t sent =
          ::send(pair.client.get(), pattern_at(taken), kPiece, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent > 0) {
        taken += static_cast<std::size_t>(sent);
        continue;
      }
      if (!is_ready_within(pair.client.get(), POLLOUT, 100)) break;
    }
    if (taken >= kMost) return TrialStep::kBounded;
    um_fast_socket record{};
    if (!look_up(pair.client, record) || record.state != UM_FAST_TCP || record.sent_bytes == 0)
      return TrialStep::kMove;
    if (!receive(pair.server.get(), 0, taken)) return TrialStep::kFullOrder;
    return send_all(pair.client.get(), taken, kPiece) && receive(pair.server.get(), taken, kPiece)
               ? TrialStep::kPassed
               : TrialStep::kFullOrder;
  }

  TrialStep switch_off() {
    constexpr std::size_t kBefore = 5003, kAfter = 3001;
    Pair pair;
    if (const TrialStep failed = join(pair); failed != TrialStep::kPassed) return failed;
    if (!send_all(pair.client.get(), 0, kBefore) || !is_at(pair.client, UM_FAST_REDIRECT, kBefore))
      return TrialStep::kMove;
    if (!switch_on(false)) return TrialStep::kOff;
    const bool is_right = send_all(pair.client.get(), kBefore, kAfter) &&
                          is_at(pair.client, UM_FAST_TCP, kBefore) &&
                          receive(pair.server.get(), 0, kBefore + kAfter);
    return is_right ? TrialStep::kPassed : TrialStep::kOff;
  }

  TrialMaps maps_;
  bool has_ipv6_ = false;
  Place at_;
  UniqueFd listener_;
};

}  // namespace

TrialStep run_fast_path_trial(const TrialMaps& maps) { return Trial(maps).run(); }

}  // namespace mesh::datapath
