// One port for UDP and TCP, as DNS has.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>

#include "base/unique_fd.h"

namespace mesh::test {

// Sockets at an address (host order) and a port that is free for both; `flags` of their type.
inline std::uint16_t bind_both(std::uint32_t ip, int flags, UniqueFd& udp, UniqueFd& tcp) {
  for (int tries = 0; tries < 100; ++tries) {  // the kernel knows what is free for one
    udp.reset(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | flags, 0));
    tcp.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(ip);
    socklen_t size = sizeof at;
    auto* raw = reinterpret_cast<sockaddr*>(&at);
    if (::bind(udp.get(), raw, size) == 0 && ::getsockname(udp.get(), raw, &size) == 0 &&
        ::bind(tcp.get(), raw, size) == 0)
      return ntohs(at.sin_port);
  }
  ADD_FAILURE() << "no port is free for UDP and TCP";
  return 0;
}

}  // namespace mesh::test
