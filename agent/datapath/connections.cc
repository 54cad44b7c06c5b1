#include "datapath/connections.h"

#include <errno.h>
#include <linux/bpf.h>  // BPF_TCP_*
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "bpf/fastpath.h"
#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

constexpr std::uint32_t state_bit(int state) { return 1U << state; }
constexpr bool is_in(std::uint32_t states, std::uint8_t state) {
  return (states & state_bit(state)) != 0;
}
constexpr std::uint32_t kFinSent = state_bit(BPF_TCP_FIN_WAIT1) | state_bit(BPF_TCP_FIN_WAIT2) |
                                   state_bit(BPF_TCP_CLOSING) | state_bit(BPF_TCP_LAST_ACK);
constexpr std::uint32_t kFinReceived =
    state_bit(BPF_TCP_CLOSE_WAIT) | state_bit(BPF_TCP_CLOSING) | state_bit(BPF_TCP_LAST_ACK);
// Neither who listens nor TIME_WAIT, which carries nothing any more.
constexpr std::uint32_t kTcpStates = state_bit(BPF_TCP_SYN_SENT) | state_bit(BPF_TCP_SYN_RECV) |
                                     state_bit(BPF_TCP_ESTABLISHED) | kFinSent | kFinReceived;
// inet_diag_msg.idiag_timer of what is in TIME_WAIT, which may say FIN_WAIT2 of itself.
constexpr std::uint8_t kTimeWaitTimer = 3;

// Asks for what a map of socket storage holds of each socket, if its length says so.
struct Request {
  nlmsghdr header;
  inet_diag_req_v2 body;
  nlattr storages;
  nlattr map;
  std::int32_t map_fd;
};

struct Found {
  std::uint8_t family;
  std::uint8_t state;
  inet_diag_sockid id;
  bool is_request;       // of a client, to a listener
  std::uint32_t stored;  // the first word of what it has in the map that was asked for; 0: nothing
  TcpCounts counts;
};

// What is to be told of each socket beside its addresses.
struct Question {
  int storage = -1;     // what it has in this map of socket storage
  bool counts = false;  // TcpCounts: `storage` is um_fast_sockets
};

// These give 0, or an errno.
int send_request(int fd, std::uint16_t type, std::uint16_t flags, const inet_diag_req_v2& body,
                 int storage = -1) {
  Request request{};
  request.header.nlmsg_len = storage < 0 ? offsetof(Request, storages) : sizeof request;
  request.storages = {sizeof request - offsetof(Request, storages),
                      INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED};
  request.map = {sizeof request - offsetof(Request, map), SK_DIAG_BPF_STORAGE_REQ_MAP_FD};
  request.map_fd = storage;
  request.header.nlmsg_type = type;
  request.header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  request.body = body;
  return ::send(fd, &request, request.header.nlmsg_len, 0) < 0 ? errno : 0;
}

// The attribute of this type in what lies at `at`; null: it is not there.
const rtattr* attribute(const void* at, std::size_t size, unsigned short type) {
  auto left = static_cast<int>(size);
  auto* attribute = static_cast<const rtattr*>(at);
  for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left))
    if ((attribute->rta_type & NLA_TYPE_MASK) == type) return attribute;
  return nullptr;
}
const rtattr* attribute_in(const rtattr* outer, unsigned short type) {
  return outer ? attribute(RTA_DATA(outer), RTA_PAYLOAD(outer), type) : nullptr;
}

// What the socket has in the map that was asked for.
const rtattr* stored(const char* first, std::size_t size) {
  const rtattr* storages = attribute(first, size, INET_DIAG_SK_BPF_STORAGES);
  return attribute_in(attribute_in(storages, SK_DIAG_BPF_STORAGE), SK_DIAG_BPF_STORAGE_MAP_VALUE);
}

std::uint32_t first_word(const rtattr* value) {
  std::uint32_t word = 0;
  if (value && RTA_PAYLOAD(value) >= sizeof word) std::memcpy(&word, RTA_DATA(value), sizeof word);
  return word;
}

void add_fast(const rtattr* value, TcpCounts& counts) {
  um_fast_socket fast{};
  if (!value || RTA_PAYLOAD(value) < sizeof fast) return;
  std::memcpy(&fast, RTA_DATA(value), sizeof fast);
  counts.sent += fast.sent_bytes;
  counts.received += fast.received_bytes;
}

std::optional<tcp_info> info_in(const char* first, std::size_t size) {
  const rtattr* at = attribute(first, size, INET_DIAG_INFO);
  if (!at) return std::nullopt;
  tcp_info info{};  // the kernel's may be longer or shorter
  std::memcpy(&info, RTA_DATA(at), std::min<std::size_t>(RTA_PAYLOAD(at), sizeof info));
  return info;
}

// A FIN of the other end is counted as a byte.
TcpCounts counts_of(const inet_diag_msg& message, const char* first, std::size_t size) {
  TcpCounts counts;
  if (const auto info = info_in(first, size)) {
    counts = {info->tcpi_bytes_sent - info->tcpi_bytes_retrans, info->tcpi_bytes_received,
              info->tcpi_total_retrans};
    if (is_in(kFinReceived, message.idiag_state) && counts.received != 0) --counts.received;
  }
  add_fast(stored(first, size), counts);
  return counts;
}

// A message of the answer, and its attributes.
struct Message {
  explicit Message(nlmsghdr* header)
      : body(*static_cast<const inet_diag_msg*>(NLMSG_DATA(header))),
        first(static_cast<const char*>(NLMSG_DATA(header)) + NLMSG_ALIGN(sizeof body)),
        size(header->nlmsg_len - NLMSG_LENGTH(sizeof body)) {}
  const inet_diag_msg& body;
  const char* first;
  std::size_t size;
};

// A request is no socket yet, so it has nothing stored and no inode. Who connects while the other
// end does is in the same state, and has one.
Found found_in(const Message& message, const Question& asked) {
  const auto& [body, first, size] = message;
  return {body.idiag_family,
          body.idiag_state,
          body.id,
          body.idiag_state == BPF_TCP_SYN_RECV && body.idiag_inode == 0,
          first_word(stored(first, size)),
          asked.counts ? counts_of(body, first, size) : TcpCounts{}};
}

// Calls `see` with each message of the answer, which an error or its end ends.
template <class See>
int read_answer(int fd, See see) {
  alignas(nlmsghdr) char buffer[32768];
  for (;;) {
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? errno : EPROTO;
    auto left = static_cast<std::uint32_t>(got);
    for (auto* at = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(at, left);
         at = NLMSG_NEXT(at, left)) {
      if (at->nlmsg_type == NLMSG_DONE) return 0;
      if (at->nlmsg_type == NLMSG_ERROR)
        return -static_cast<const nlmsgerr*>(NLMSG_DATA(at))->error;
      if (at->nlmsg_len >= NLMSG_LENGTH(sizeof(inet_diag_msg))) see(at);
    }
  }
}

int list(int fd, int family, Transport transport, std::uint32_t states, const Question& asked,
         std::vector<Found>& found) {
  inet_diag_req_v2 body{};
  body.sdiag_family = static_cast<std::uint8_t>(family);
  body.sdiag_protocol = static_cast<std::uint8_t>(transport);
  body.idiag_states = states;
  if (asked.counts) body.idiag_ext = 1U << (INET_DIAG_INFO - 1U);
  const int error = send_request(fd, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, body, asked.storage);
  if (error != 0) return error;
  return read_answer(fd, [&](nlmsghdr* header) {
    const Message message(header);
    if (message.body.idiag_timer != kTimeWaitTimer) found.push_back(found_in(message, asked));
  });
}

SocketAddress address_of(std::uint8_t family, const std::uint32_t* words, std::uint16_t port) {
  um_address address{};
  if (family == AF_INET) {
    address.word[2] = network_order(0xffffU);
    address.word[3] = words[0];
  } else {
    std::memcpy(&address, words, sizeof address);
  }
  return {user_address(address), network_order(port)};
}

inet_diag_req_v2 request_for(const Found& found, Transport transport) {
  inet_diag_req_v2 body{};
  body.sdiag_family = found.family;
  body.sdiag_protocol = static_cast<std::uint8_t>(transport);
  body.idiag_states = state_bit(found.state);
  body.id = found.id;
  return body;
}

// ENOENT: it ended by itself meanwhile.
int end(int fd, Transport transport, const Found& found) {
  const int error = send_request(fd, SOCK_DESTROY, NLM_F_ACK, request_for(found, transport));
  return error != 0 ? error : read_answer(fd, [](nlmsghdr*) {});
}

// What one message tells of a TCP connection's own direction, in the order in which the kernel
// reads it: all but the first three under the socket's lock.
struct Sequence {
  std::uint8_t state = 0;
  std::uint32_t not_acked = 0;  // of what was written, sent or not; so with the next
  std::uint8_t state_then = 0;
  std::uint32_t not_sent = 0;
  std::uint64_t acked = 0, sent = 0, sent_again = 0;
  bool operator==(const Sequence&) const = default;
};

// ENOENT: it is over. What is in TIME_WAIT by now has no such counts.
int read_sequence(int fd, const Found& found, Sequence& out) {
  inet_diag_req_v2 body = request_for(found, Transport::kTcp);
  body.idiag_ext = 1U << (INET_DIAG_INFO - 1U);
  if (const int error = send_request(fd, SOCK_DIAG_BY_FAMILY, NLM_F_ACK, body); error != 0)
    return error;
  std::optional<Sequence> sequence;
  const int error = read_answer(fd, [&](nlmsghdr* header) {
    const Message message(header);
    if (const auto info = info_in(message.first, message.size))
      sequence = {message.body.idiag_state, message.body.idiag_wqueue, info->tcpi_state,
                  info->tcpi_notsent_bytes, info->tcpi_bytes_acked,    info->tcpi_bytes_sent,
                  info->tcpi_bytes_retrans};
  });
  if (error != 0) return error;
  if (!sequence) return ENOENT;
  out = *sequence;
  return 0;
}

// How far the sequence numbers went, but for data and FIN: by the SYN, if it was ours. (The number
// of a SYN that answers one is none of these counts.)
std::uint64_t syns_in(const Sequence& sequence) {
  const std::uint64_t fin = is_in(kFinSent, sequence.state) && sequence.not_sent == 0 ? 1 : 0;
  return sequence.acked + sequence.not_acked - sequence.not_sent -
         (sequence.sent - sequence.sent_again) - fin;
}

// 0: it may have accepted. ENOENT: it surely connected, or it is over.
// The message that repeats the one before it tells of one moment. Who sends without pause has such
// moments, too: between two of its segments; and where these are small, and it runs as fast as who
// looks, in the next millisecond or the one after. A process can make this too small (what leaves
// with an error is counted as sent, and again when it leaves), so nothing but 1 says anything
// (docs/decisions/0007); nor is anything counted of who sends its SYN with its first data
// (TCP_FASTOPEN_CONNECT), but only who connects is in SYN_SENT.
int look_whether_it_accepted(int fd, const Found& found) {
  constexpr int kTries = 64, kTriesAtOnce = 16;
  std::optional<Sequence> last;
  for (int i = 0; i < kTries; ++i) {
    if (i != 0 && i % kTriesAtOnce == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    Sequence now;
    if (const int error = read_sequence(fd, found, now); error != 0) return error;
    if (now.state == BPF_TCP_SYN_SENT) return ENOENT;
    if (now == last && now.state == now.state_then) return syns_in(now) == 1 ? ENOENT : 0;
    last = now;
  }
  return 0;
}

// Beside the sockets' cookies, which count from 1. Only who counts waits for locks.
constexpr std::uint64_t kListing = 0, kCounting = ~std::uint64_t{0};

Error failure_of(int error, const char* what) {
  if (error == EBUSY) return Error{Errc::timed_out, std::string(what) + ": " + kLockHeld};
  return errno_error(error, what);
}

Result<std::vector<Found>> list_all(SocketWork& work, int netns, Transport transport,
                                    const Question& asked) {
  auto found = std::make_shared<std::vector<Found>>();
  const auto list_both = [=](int diag, std::size_t) {
    const auto states = transport == Transport::kTcp ? kTcpStates : state_bit(BPF_TCP_ESTABLISHED);
    const int error = list(diag, AF_INET, transport, states, asked, *found);
    return error != 0 ? error : list(diag, AF_INET6, transport, states, asked, *found);
  };
  if (const int error =
          work.run(netns, {asked.counts ? kCounting : kListing}, asked.storage, list_both)[0];
      error != 0)
    return failure_of(error, "look at the connections of a network namespace");
  return std::move(*found);
}

std::uint64_t cookie_of(const Found& found) {
  return std::uint64_t{found.id.idiag_cookie[1]} << 32U | found.id.idiag_cookie[0];
}

Connection connection_of(const Found& found) {
  return {address_of(found.family, found.id.idiag_src, found.id.idiag_sport),
          address_of(found.family, found.id.idiag_dst, found.id.idiag_dport),
          cookie_of(found),
          found.state,
          found.stored,
          found.is_request};
}

}  // namespace

void load_diag_modules() {
  const UniqueFd diag(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  std::vector<Found> none;  // as of no state
  for (const auto transport : {Transport::kTcp, Transport::kUdp})
    for (const int family : {AF_INET, AF_INET6}) list(diag.get(), family, transport, 0, {}, none);
}

Ended end_connections(SocketWork& work, int netns, Transport transport,
                      const std::function<Fate(const Connection&)>& fate_of, int mesh_sockets) {
  Ended out;
  auto all = list_all(work, netns, transport, {mesh_sockets, false});
  if (!all) {
    out.failure = all.error();
    return out;
  }
  auto forbidden = std::make_shared<std::vector<std::pair<Found, Fate>>>();
  std::vector<std::uint64_t> cookies;
  for (const Found& found : all.value()) {
    const Connection connection = connection_of(found);
    if (connection.remote.ip.is_loopback()) continue;
    const Fate fate = fate_of(connection);
    if (fate == Fate::kStays) continue;
    forbidden->emplace_back(found, fate);
    cookies.push_back(connection.cookie);
  }
  const auto outcomes = work.run(netns, cookies, -1, [=](int diag, std::size_t i) {
    const auto& [found, fate] = (*forbidden)[i];
    if (fate == Fate::kEndsUnlessItConnected)
      if (const int error = look_whether_it_accepted(diag, found); error != 0) return error;
    return end(diag, transport, found);
  });
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    if (outcomes[i] == 0) out.ended.push_back(cookies[i]);
    if (outcomes[i] == 0 || outcomes[i] == ENOENT) continue;
    ++out.not_ended;
    if (!out.failure) out.failure = failure_of(outcomes[i], "look at a connection, or end it");
  }
  return out;
}

Result<> for_each_connection(SocketWork& work, int netns, int fast_sockets,
                             const std::function<void(const Connection&, const TcpCounts&)>& see) {
  MESH_TRY(const auto all,
           list_all(work, netns, Transport::kTcp, {fast_sockets, fast_sockets >= 0}));
  for (const Found& found : all) see(connection_of(found), found.counts);
  return success();
}

}  // namespace mesh::datapath
