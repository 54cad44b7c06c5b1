#include "datapath/packet.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>

#include "datapath/libbpf_errors.h"
#include "datapath/links.h"
#include "datapath/object.h"
#include "packet.skel.h"

namespace mesh::datapath {
namespace {

// linux/bpf.h of kernel 6.6.
constexpr std::uint32_t kTcxIngress = 46, kTcxEgress = 47;
constexpr std::uint32_t kBefore = 1U << 3U;  // BPF_F_BEFORE: alone, before all others

constexpr std::uint32_t kFilterHandle = 0x756d, kFilterPriority = 1;

struct SkeletonDeleter {
  void operator()(packet_bpf* skeleton) const { packet_bpf__destroy(skeleton); }
};

struct Direction {
  std::string_view name;
  std::uint32_t attach_type;
  bpf_tc_attach_point point;
  UniqueFd PacketPrograms::* program;
};
constexpr Direction kDirections[] = {
    {"from_", kTcxIngress, BPF_TC_INGRESS, &PacketPrograms::from},
    {"to_", kTcxEgress, BPF_TC_EGRESS, &PacketPrograms::to},
};
constexpr std::string_view kLink = "packet_", kFilter = "filter_";

struct Pin {
  std::string_view kind;
  const Direction* direction;
  std::uint32_t device;
};

std::string name_of(const Pin& pin) {
  return std::string(pin.kind) + std::string(pin.direction->name) + std::to_string(pin.device);
}

std::optional<Pin> pin_of(std::string_view name) {
  for (const std::string_view kind : {kLink, kFilter})
    for (const Direction& direction : kDirections) {
      const std::string head = std::string(kind) + std::string(direction.name);
      if (!name.starts_with(head)) continue;
      Pin pin{kind, &direction, 0};
      const auto [end, error] =
          std::from_chars(name.data() + head.size(), name.data() + name.size(), pin.device);
      if (error == std::errc{} && end == name.data() + name.size()) return pin;
    }
  return std::nullopt;
}

// ---- devices

struct Device {
  std::uint32_t index = 0;
  std::uint32_t link = 0;  // the index of a veth's other end
  bool is_loopback = false;
  std::string name;
  std::string kind;                             // empty: hardware
  std::optional<std::int32_t> other_namespace;  // the number that this one has for it
};

template <class See>
void each_attribute(const rtattr* at, std::size_t size, See see) {
  auto left = static_cast<int>(size);
  for (; RTA_OK(at, left); at = RTA_NEXT(at, left)) see(*at);
}

template <class T>
T value_of(const rtattr& attribute) {
  T value{};
  std::memcpy(&value, RTA_DATA(&attribute), std::min(sizeof value, RTA_PAYLOAD(&attribute)));
  return value;
}

Device device_of(const nlmsghdr& message) {
  const auto* info = static_cast<const ifinfomsg*>(NLMSG_DATA(&message));
  Device device;
  device.index = static_cast<std::uint32_t>(info->ifi_index);
  device.is_loopback = (info->ifi_flags & IFF_LOOPBACK) != 0;
  each_attribute(IFLA_RTA(info), IFLA_PAYLOAD(&message), [&](const rtattr& attribute) {
    if (attribute.rta_type == IFLA_IFNAME)
      device.name = static_cast<const char*>(RTA_DATA(&attribute));
    if (attribute.rta_type == IFLA_LINK) device.link = value_of<std::uint32_t>(attribute);
    if (attribute.rta_type == IFLA_LINK_NETNSID)
      device.other_namespace = value_of<std::int32_t>(attribute);
    if ((attribute.rta_type & NLA_TYPE_MASK) != IFLA_LINKINFO) return;
    each_attribute(static_cast<const rtattr*>(RTA_DATA(&attribute)), RTA_PAYLOAD(&attribute),
                   [&](const rtattr& inner) {
                     if (inner.rta_type == IFLA_INFO_KIND)
                       device.kind = static_cast<const char*>(RTA_DATA(&inner));
                   });
  });
  return device;
}

// Sends a request and calls `see` with each message of the answer: of the first, or of all of a
// list.
template <class Request, class See>
Result<> ask(int fd, const Request& request, bool is_dump, See see) {
  if (::send(fd, &request, sizeof request, 0) < 0) return errno_error(errno, "ask rtnetlink");
  alignas(nlmsghdr) char buffer[65536];
  for (;;) {
    const ssize_t got = ::recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return errno_error(errno, "read from rtnetlink");
    auto left = static_cast<std::uint32_t>(got);
    for (auto* at = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(at, left);
         at = NLMSG_NEXT(at, left)) {
      if (at->nlmsg_type == NLMSG_DONE) return success();
      if (at->nlmsg_type == NLMSG_ERROR)
        return errno_error(-static_cast<const nlmsgerr*>(NLMSG_DATA(at))->error, "rtnetlink");
      see(*at);
      if (!is_dump) return success();
    }
  }
}

Result<std::vector<Device>> devices(int fd) {
  struct {
    nlmsghdr header{};
    ifinfomsg body{};
  } request;
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  std::vector<Device> found;
  MESH_TRY(ask(fd, request, true, [&](const nlmsghdr& message) {
    if (message.nlmsg_type == RTM_NEWLINK) found.push_back(device_of(message));
  }));
  return found;
}

// The number that this namespace has for another; negative: none.
Result<std::int32_t> number_of(int fd, int netns) {
  struct {
    nlmsghdr header{};
    rtgenmsg body{};
    char zero[3]{};
    rtattr attribute{};
    std::int32_t netns = 0;
  } request;
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETNSID;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.attribute = {RTA_LENGTH(sizeof request.netns), NETNSA_FD};
  request.netns = netns;
  std::int32_t number = -1;
  MESH_TRY(ask(fd, request, false, [&](const nlmsghdr& message) {
    const auto* body = static_cast<const char*>(NLMSG_DATA(&message));
    const std::size_t head = NLMSG_ALIGN(sizeof(rtgenmsg));
    each_attribute(reinterpret_cast<const rtattr*>(body + head), NLMSG_PAYLOAD(&message, 0) - head,
                   [&](const rtattr& attribute) {
                     if (attribute.rta_type == NETNSA_NSID)
                       number = value_of<std::int32_t>(attribute);
                   });
  }));
  return number;
}

// A netlink socket stays in the namespace that it was made in.
Result<UniqueFd> open_rtnetlink() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return errno_error(errno, "open rtnetlink");
  return fd;
}

Result<std::vector<Device>> devices_of(int netns) {
  Result<UniqueFd> fd = UniqueFd();
  std::thread([&] {
    if (::setns(netns, CLONE_NEWNET) == 0)
      fd = open_rtnetlink();
    else
      fd = errno_error(errno, "look at the devices of a network namespace");
  }).join();
  if (!fd) return std::move(fd).assume_error();
  return devices(fd.value().get());
}

// What has its lower end, or the process that reads it, in the namespace itself goes out by another
// device of it, or not at all; but who reads a tun device nobody can say.
bool may_leave(const Device& device) {
  if (device.is_loopback) return false;
  return device.kind.empty() || device.kind == "tun" || device.other_namespace;
}

// ---- tcx links, where the kernel has them

UniqueFd make_link(int program, std::uint32_t device, std::uint32_t attach_type) {
  bpf_attr attributes;
  std::memset(&attributes, 0, sizeof attributes);
  attributes.link_create.prog_fd = static_cast<std::uint32_t>(program);
  attributes.link_create.target_fd = device;
  attributes.link_create.attach_type = attach_type;
  attributes.link_create.flags = kBefore;
  return UniqueFd(
      static_cast<int>(::syscall(SYS_bpf, BPF_LINK_CREATE, &attributes, sizeof attributes)));
}

// bpf_link_info.tcx, which this libbpf's header does not have: 0 when the device is gone.
std::uint32_t device_of_link(int fd) {
  bpf_link_info info{};
  std::uint32_t size = sizeof info, device = 0;
  if (::bpf_obj_get_info_by_fd(fd, &info, &size) != 0) return 0;
  std::memcpy(&device, &info.cgroup, sizeof device);
  return device;
}

// False: this kernel has no such links.
Result<bool> ensure_link(const std::string& dir, const Direction& direction, std::uint32_t device,
                         int program) {
  const std::string pin = dir + "/" + name_of({kLink, &direction, device});
  UniqueFd known(::bpf_obj_get(pin.c_str()));
  if (!known && errno != ENOENT) return errno_error(errno, "open " + pin);
  if (known && device_of_link(known.get()) == device) {
    if (::bpf_link_update(known.get(), program, nullptr) != 0)
      return errno_error(errno, "update the program of " + pin);
    return true;
  }
  UniqueFd link = make_link(program, device, direction.attach_type);
  if (!link && errno == EINVAL) return false;
  if (!link) return errno_error(errno, "attach a program to device " + std::to_string(device));
  MESH_TRY(pin_over(link.get(), pin));
  return true;
}

// ---- clsact filters, where it has not

// libbpf refuses (EINVAL) a structure of options with anything but zeros behind its last field, so
// the padding too is set here.
struct Filter {
  Filter(const Direction& direction, std::uint32_t device) {
    std::memset(&hook, 0, sizeof hook);
    std::memset(&options, 0, sizeof options);
    hook.sz = sizeof hook;
    hook.ifindex = static_cast<int>(device);
    hook.attach_point = direction.point;
    options.sz = sizeof options;
    options.handle = kFilterHandle;
    options.priority = kFilterPriority;
  }
  bpf_tc_hook hook;
  bpf_tc_opts options;
};

Result<> ensure_filter(const std::string& dir, const Direction& direction, std::uint32_t device,
                       int program) {
  Filter filter(direction, device);
  if (const int err = ::bpf_tc_hook_create(&filter.hook); err != 0 && err != -EEXIST)
    return errno_error(-err, "make the clsact of device " + std::to_string(device));
  filter.options.flags = BPF_TC_F_REPLACE;
  filter.options.prog_fd = program;
  if (const int err = ::bpf_tc_attach(&filter.hook, &filter.options); err != 0)
    return errno_error(-err, "attach a filter to device " + std::to_string(device));
  return pin_over(program, dir + "/" + name_of({kFilter, &direction, device}));
}

bool is_linked(const std::string& dir, const Direction& direction, std::uint32_t device) {
  const UniqueFd link(::bpf_obj_get((dir + "/" + name_of({kLink, &direction, device})).c_str()));
  return link && device_of_link(link.get()) == device;
}

// Ours, the pinned one.
bool is_filtered(const std::string& dir, const Direction& direction, std::uint32_t device) {
  const UniqueFd program(
      ::bpf_obj_get((dir + "/" + name_of({kFilter, &direction, device})).c_str()));
  if (!program) return false;
  const auto id = program_id(program.get());
  Filter filter(direction, device);
  return id && ::bpf_tc_query(&filter.hook, &filter.options) == 0 &&
         filter.options.prog_id == id.value();
}

Result<> detach_others(const std::string& dir, const std::vector<std::uint32_t>& devices) {
  std::vector<std::string> others;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    const std::string name = entry.path().filename();
    const auto pin = pin_of(name);
    if (pin && std::ranges::find(devices, pin->device) == devices.end()) others.push_back(name);
  }
  for (const std::string& name : others) {
    const std::string path = dir + "/" + name;
    if (!detach_filter(dir, name)) {
      const UniqueFd link(::bpf_obj_get(path.c_str()));
      if (link) ::bpf_link_detach(link.get());
    }
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return errno_error(errno, "remove " + path);
  }
  return success();
}

}  // namespace

Result<PacketPrograms> load_packet(const std::map<std::string, UniqueFd>& maps,
                                   std::uint64_t netns_cookie, WorkloadId id) {
  forget_libbpf_errors();
  std::unique_ptr<packet_bpf, SkeletonDeleter> skeleton(packet_bpf__open());
  if (!skeleton) return libbpf_error(errno, "open the BPF object of a workload's packets");
  skeleton->rodata->um_netns_cookie = netns_cookie;
  skeleton->rodata->um_workload_id = id;
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj) {
    const auto shared = maps.find(::bpf_map__name(map));
    if (shared == maps.end()) continue;  // its own constants
    if (const int err = ::bpf_map__reuse_fd(map, shared->second.get()); err != 0)
      return libbpf_error(-err, "share map " + shared->first);
  }
  if (const int err = packet_bpf__load(skeleton.get()); err != 0)
    return libbpf_error(-err, "load the BPF programs of a workload's packets");
  PacketPrograms programs;
  programs.from.reset(
      ::fcntl(::bpf_program__fd(skeleton->progs.um_packet_from), F_DUPFD_CLOEXEC, 3));
  programs.to.reset(::fcntl(::bpf_program__fd(skeleton->progs.um_packet_to), F_DUPFD_CLOEXEC, 3));
  if (!programs.from || !programs.to) return errno_error(errno, "keep a program");
  return programs;
}

Result<Sides> sides_of(int netns) {
  MESH_TRY(const UniqueFd fd, open_rtnetlink());
  // In this order: the list gives numbers to namespaces that had none.
  MESH_TRY(const auto all, devices(fd.get()));
  MESH_TRY(const auto number, number_of(fd.get(), netns));
  std::vector<Device> here;
  for (const Device& device : all)
    if (number >= 0 && device.other_namespace == number && device.kind == "veth")
      here.push_back(device);
  Sides sides;
  for (const Device& device : here) sides.here.push_back(device.index);
  MESH_TRY(const auto own, devices_of(netns));
  for (const Device& device : own) {
    const bool is_policed =
        device.kind == "veth" && std::ranges::any_of(here, [&](const Device& end) {
          return end.index == device.link && end.link == device.index;
        });
    if (may_leave(device) && !is_policed) sides.unpoliced.push_back(device.name);
  }
  return sides;
}

std::string why_uncovered(const Sides& sides) {
  if (sides.here.empty())
    return "strict, but its packets are not policed: no veth device of this machine leads to its "
           "network namespace";
  if (sides.unpoliced.empty()) return {};
  std::string names;
  for (const std::string& name : sides.unpoliced) names += (names.empty() ? "" : ", ") + name;
  return "strict, but its packets are policed at its veth devices of this machine alone, not at " +
         names;
}

Result<> attach_packets(const std::string& dir, const std::vector<std::uint32_t>& devices,
                        const PacketPrograms& programs) {
  MESH_TRY(detach_others(dir, devices));
  for (const std::uint32_t device : devices)
    for (const Direction& direction : kDirections) {
      const int program = (programs.*direction.program).get();
      MESH_TRY(const bool is_linked, ensure_link(dir, direction, device, program));
      if (is_linked) continue;
      MESH_TRY(ensure_filter(dir, direction, device, program));
    }
  return success();
}

std::vector<std::string> missing_packets(const std::string& dir,
                                         const std::vector<std::uint32_t>& devices) {
  std::vector<std::string> missing;
  for (const std::uint32_t device : devices)
    for (const Direction& direction : kDirections) {
      if (!is_linked(dir, direction, device) && !is_filtered(dir, direction, device))
        missing.push_back("the program for its packets " + std::string(direction.name) + "device " +
                          std::to_string(device));
    }
  return missing;
}

bool detach_filter(const std::string& dir, const std::string& name) {
  const auto pin = pin_of(name);
  if (!pin || pin->kind != kFilter) return false;
  // The device may be another by now, with a filter of somebody else's.
  if (!is_filtered(dir, *pin->direction, pin->device)) return true;
  Filter filter(*pin->direction, pin->device);
  ::bpf_tc_detach(&filter.hook, &filter.options);
  return true;
}

}  // namespace mesh::datapath
