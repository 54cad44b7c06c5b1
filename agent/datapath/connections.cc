#include "datapath/connections.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstring>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "datapath/byte_order.h"

namespace mesh::datapath {
namespace {

constexpr std::uint32_t state_bit(int state) { return 1U << state; }
// Not TIME_WAIT: it carries nothing any more.
constexpr std::uint32_t kTcpStates =
    state_bit(TCP_ESTABLISHED) | state_bit(TCP_SYN_SENT) | state_bit(TCP_SYN_RECV) |
    state_bit(TCP_FIN_WAIT1) | state_bit(TCP_FIN_WAIT2) | state_bit(TCP_CLOSE_WAIT) |
    state_bit(TCP_LAST_ACK) | state_bit(TCP_CLOSING) | state_bit(TCP_LISTEN);

struct Request {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

struct Found {
  std::uint8_t family;
  std::uint8_t state;
  inet_diag_sockid id;
};

// A netlink socket stays in the namespace that it was made in.
Result<UniqueFd> open_in(int netns) {
  UniqueFd fd;
  int error = 0;
  std::thread([&] {
    if (::setns(netns, CLONE_NEWNET) == 0)
      fd.reset(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
    if (!fd) error = errno;
  }).join();
  if (!fd) return errno_error(error, "look at the connections of a network namespace");
  return fd;
}

Result<> send_request(int fd, std::uint16_t type, std::uint16_t flags,
                      const inet_diag_req_v2& body) {
  Request request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = type;
  request.header.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  request.body = body;
  if (::send(fd, &request, sizeof request, 0) < 0) return errno_error(errno, "ask sock_diag");
  return success();
}

// Calls `see` with each message of the answer, which an error or its end ends.
template <class See>
Result<> read_answer(int fd, See see) {
  alignas(nlmsghdr) char buffer[32768];
  for (;;) {
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return errno_error(errno, "read from sock_diag");
    auto left = static_cast<std::uint32_t>(got);
    for (auto* at = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(at, left);
         at = NLMSG_NEXT(at, left)) {
      if (at->nlmsg_type == NLMSG_DONE) return success();
      if (at->nlmsg_type == NLMSG_ERROR) {
        const int error = -static_cast<const nlmsgerr*>(NLMSG_DATA(at))->error;
        if (error == 0) return success();
        return errno_error(error, "sock_diag");
      }
      if (at->nlmsg_len >= NLMSG_LENGTH(sizeof(inet_diag_msg)))
        see(*static_cast<const inet_diag_msg*>(NLMSG_DATA(at)));
    }
  }
}

Result<std::vector<Found>> list(int fd, int family, Transport transport) {
  inet_diag_req_v2 body{};
  body.sdiag_family = static_cast<std::uint8_t>(family);
  body.sdiag_protocol = static_cast<std::uint8_t>(transport);
  body.idiag_states = transport == Transport::kTcp ? kTcpStates : state_bit(TCP_ESTABLISHED);
  MESH_TRY(send_request(fd, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, body));
  std::vector<Found> found;
  MESH_TRY(read_answer(fd, [&](const inet_diag_msg& message) {
    found.push_back({message.idiag_family, message.idiag_state, message.id});
  }));
  return found;
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

// False: it ended by itself meanwhile.
Result<bool> end(int fd, Transport transport, const Found& found) {
  inet_diag_req_v2 body{};
  body.sdiag_family = found.family;
  body.sdiag_protocol = static_cast<std::uint8_t>(transport);
  body.idiag_states = state_bit(found.state);
  body.id = found.id;
  MESH_TRY(send_request(fd, SOCK_DESTROY, NLM_F_ACK, body));
  auto ended = read_answer(fd, [](const inet_diag_msg&) {});
  if (ended) return true;
  if (ended.error().code == Errc::not_found) return false;
  return std::move(ended).assume_error();
}

}  // namespace

Result<std::size_t> end_connections(int netns, Transport transport,
                                    const std::function<bool(const Connection&)>& is_forbidden) {
  MESH_TRY(auto fd, open_in(netns));
  std::vector<Found> all;
  for (const int family : {AF_INET, AF_INET6}) {
    MESH_TRY(auto found, list(fd.get(), family, transport));
    all.insert(all.end(), found.begin(), found.end());
  }
  std::set<std::uint16_t> listening;
  for (const Found& found : all)
    if (found.state == TCP_LISTEN) listening.insert(found.id.idiag_sport);
  std::size_t ended = 0;
  for (const Found& found : all) {
    if (found.state == TCP_LISTEN) continue;
    const Connection connection{address_of(found.family, found.id.idiag_src, found.id.idiag_sport),
                                address_of(found.family, found.id.idiag_dst, found.id.idiag_dport),
                                listening.contains(found.id.idiag_sport)};
    if (connection.remote.ip.is_loopback() || !is_forbidden(connection)) continue;
    MESH_TRY(const bool was_there, end(fd.get(), transport, found));
    ended += was_there ? 1 : 0;
  }
  return ended;
}

}  // namespace mesh::datapath
