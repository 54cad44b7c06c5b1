// The decision of bpf/decide.h in the kernel, with the real maps: cgroup programs cannot be run by
// BPF_PROG_TEST_RUN, a syscall program can.

// clang-format off
#include "maps.h"
#include "decide.h"
#include "../tests/bpf/decide_shim.h"
// clang-format on

SEC("syscall")
int um_decide_shim(struct um_shim* shim) {
  struct um_connect in = shim->in;
  struct um_decision out = {};
  if (shim->mesh)
    um_decide_mesh(&in, &out);
  else
    um_decide_workload(&in, &out);
  shim->out = out;
  return 0;
}

char _license[] SEC("license") = "Apache-2.0";
