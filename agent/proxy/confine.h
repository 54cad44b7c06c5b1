// How meshproxy gives up every power before its first thread and its first byte of input.
//
// Called once by meshproxy.cc, as root, single-threaded, after the logs are open. Any step that
// fails is an error and the process must exit: there is no half-confined proxy. Afterwards the
// process has a user of its own, no group, no capability in any set, no_new_privs, an empty network
// namespace and a seccomp allow-list (libseccomp; all else fails with EPERM and is logged by the
// kernel): it cannot open, make a socket, exec, ptrace, enter a namespace, or use bpf, io_uring or
// executable memory. A deny-list would not do: io_uring's IORING_OP_SOCKET passes it (measured,
// docs/kernel-facts.md).
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace mesh::proxy {

// Binds `socket_path` (mode 0600, a dead one is replaced), confines the process to `uid` (also the
// group id) and returns the socket, listening and non-blocking. listen() comes after the change of
// user, since SO_PEERCRED tells a dialler the user of listen(). permission: not root, or uid is 0.
Result<UniqueFd> confine(const std::string& socket_path, std::uint32_t uid);

}  // namespace mesh::proxy
