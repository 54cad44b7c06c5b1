// FastPath: the same-node fast path's programs and maps (bpf/fastpath.bpf.c), pinned below
// <pin_dir>/fastpath.
//
// Off is detached: no link is left, and sockets that had joined go over to TCP with their next
// send. (Their entries stay: to take out a live one loses data.) Needs root and Linux 6.13. One
// thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "bpf/fastpath.h"
#include "bpf/shared.h"
#include "datapath/datapath.h"
#include "datapath/map.h"
#include "datapath/socket_work.h"

namespace mesh::datapath {

// Empty where the kernel can have the fast path; else why it cannot.
std::string why_no_fast_path();

struct FastPathNode {
  std::map<IpAddress, std::uint64_t> addresses;  // of workloads here -> their namespace's cookie
  std::map<std::string, std::string> cgroups;    // whose sockets may join, by name of the link
  std::set<SocketAddress> excluded;              // listeners whose connections stay by TCP
  friend bool operator==(const FastPathNode&, const FastPathNode&) = default;
};

// The pin of its link at the cgroup of that name.
std::string fast_path_link(const std::string& pin_dir, const std::string& name);

// The programs with maps of their own, none of them pinned, live at one control group until it is
// destroyed: what is tried before anybody's data goes that way (fastpath_probe.h).
struct FastPathCopy {
  UniqueFd sockets, addresses, config;  // um_fast_sockets, um_fast_addresses, um_fast_config
  UniqueFd iterator;                    // of run_fast_path_iterator()
  UniqueFd peers, link;
};
Result<FastPathCopy> copy_of_fast_path(int cgroup);

// Lets the sockets of the calling thread's network namespace join that have asked to. 0, or an
// errno. System calls alone.
int run_fast_path_iterator(int iterator);

class FastPath {
 public:
  // Loads the programs, with the object's maps (by name); takes over the pinned maps. As it was
  // left, off or on, until keep(). Errc::unavailable: not on this kernel.
  static Result<FastPath> open(const std::string& pin_dir,
                               const std::map<std::string, UniqueFd>& shared);
  // Switches off, then detaches, what another process may have left, of any layout; for kernels and
  // switches that say no. After an error it is to be called again.
  // `removed`: as of detach_tree().
  static Result<> remove(const std::string& pin_dir, std::vector<std::string>* removed = nullptr);

  // Who joins where: on. Off, where that cannot be written: who shall stay out might join.
  Result<> keep(const FastPathNode& node);
  // The cgroups whose sockets may join, by name. An error is the first one's that could not be had.
  Result<> link(const std::map<std::string, std::string>& cgroups);
  // Its link at the cgroup of that name, where that is not as link() left it. True: it was not.
  Result<bool> restore_link(const std::string& name, const std::string& cgroup);
  // Pins its maps again; how many were not pinned any more. <pin_dir> is there.
  Result<std::size_t> restore_pins() const;
  // Its switch, where that is not as keep() left it. True: it was not.
  Result<bool> restore_config();
  // So many rows at most of each map that keep() writes, from where the last call ended; how many
  // were not as keep() left them.
  Result<std::size_t> restore_some(std::size_t rows);
  // Where sockets have asked to join since this was asked last: cookies of network namespaces.
  Result<std::vector<std::uint64_t>> take_settled();
  void ask_again(std::uint64_t netns_cookie);  // the next take_settled() has it
  // Errc::timed_out: a socket is locked for long; the walk goes on once it is not.
  Result<> let_join(SocketWork& work, int netns) const;

 private:
  using Excluded = Map<um_destination, std::uint32_t>;
  using Addresses = Map<um_address, std::uint64_t>;
  int map(const char* name) const { return maps_.at(name).get(); }
  Result<> write_config();

  std::string dir_;
  UniqueFd sock_ops_, iterator_;
  std::map<std::string, UniqueFd> maps_;
  Excluded excluded_{-1, "um_fast_excluded"};
  Addresses addresses_{-1, "um_fast_addresses"};
  um_fast_config config_{};
};

}  // namespace mesh::datapath
