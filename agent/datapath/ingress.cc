#include "datapath/ingress.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>

#include <cerrno>
#include <memory>

#include "datapath/libbpf_errors.h"
#include "ingress.skel.h"

namespace mesh::datapath {
namespace {

struct SkeletonDeleter {
  void operator()(ingress_bpf* skeleton) const { ingress_bpf__destroy(skeleton); }
};

}  // namespace

Result<UniqueFd> load_ingress(const std::map<std::string, UniqueFd>& maps,
                              std::uint64_t netns_cookie) {
  forget_libbpf_errors();
  std::unique_ptr<ingress_bpf, SkeletonDeleter> skeleton(ingress_bpf__open());
  if (!skeleton) return libbpf_error(errno, "open the BPF object of a namespace");
  skeleton->rodata->um_netns_cookie = netns_cookie;
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj) {
    const auto shared = maps.find(::bpf_map__name(map));
    if (shared == maps.end()) continue;  // its own constants
    if (int err = ::bpf_map__reuse_fd(map, shared->second.get()); err != 0)
      return libbpf_error(-err, "share map " + shared->first);
  }
  if (int err = ingress_bpf__load(skeleton.get()); err != 0)
    return libbpf_error(-err, "load the BPF program of a namespace");
  UniqueFd fd(::fcntl(::bpf_program__fd(skeleton->progs.um_sk_lookup), F_DUPFD_CLOEXEC, 3));
  if (!fd) return errno_error(errno, "keep a program");
  return fd;
}

}  // namespace mesh::datapath
