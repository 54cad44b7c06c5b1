// NetlinkMessage: a netlink request under construction: a header, then attributes, some of them
// nested. A value.
#pragma once

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/address.h"

namespace mesh::cli {

class NetlinkMessage {
 public:
  template <class Header>
  NetlinkMessage(std::uint16_t type, std::uint16_t flags, const Header& header) {
    nlmsghdr base{};
    base.nlmsg_type = type;
    base.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    append(&base, sizeof base);
    append(&header, sizeof header);
  }

  void attribute(std::uint16_t type, const void* data, std::size_t size) {
    rtattr head{};
    head.rta_type = type;
    head.rta_len = static_cast<std::uint16_t>(RTA_LENGTH(size));
    append(&head, sizeof head);
    append(data, size);
  }
  void attribute(std::uint16_t type, std::string_view text) {
    std::string copy(text);
    attribute(type, copy.c_str(), copy.size() + 1);
  }
  void attribute(std::uint16_t type, std::uint32_t value) { attribute(type, &value, sizeof value); }
  void attribute(std::uint16_t type, const std::array<std::uint8_t, 6>& mac) {
    attribute(type, mac.data(), mac.size());
  }
  void attribute(std::uint16_t type, const IpAddress& ip) {
    std::span<const std::uint8_t> bytes(ip.bytes());
    if (ip.is_v4()) bytes = bytes.subspan(12);
    attribute(type, bytes.data(), bytes.size());
  }

  // Everything that `fill` appends becomes the content of one attribute.
  template <class Fill>
  void nested(std::uint16_t type, Fill fill) {
    std::size_t start = bytes_.size();
    attribute(type, nullptr, 0);
    fill();
    auto length = static_cast<std::uint16_t>(bytes_.size() - start);
    std::memcpy(bytes_.data() + start + offsetof(rtattr, rta_len), &length, sizeof length);
  }
  template <class T>
  void raw(const T& value) {
    append(&value, sizeof value);
  }

  std::span<const char> finish(std::uint32_t sequence) {
    auto length = static_cast<std::uint32_t>(bytes_.size());
    std::memcpy(bytes_.data() + offsetof(nlmsghdr, nlmsg_len), &length, sizeof length);
    std::memcpy(bytes_.data() + offsetof(nlmsghdr, nlmsg_seq), &sequence, sizeof sequence);
    return bytes_;
  }

 private:
  void append(const void* data, std::size_t size) {
    const char* from = static_cast<const char*>(data);
    if (size > 0) bytes_.insert(bytes_.end(), from, from + size);
    bytes_.resize(NLMSG_ALIGN(bytes_.size()));
  }

  std::vector<char> bytes_;
};

}  // namespace mesh::cli
