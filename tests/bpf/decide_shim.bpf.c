// The decision of bpf/decide.h in the kernel, with the real maps: cgroup programs cannot be run by
// BPF_PROG_TEST_RUN, and a syscall program, which may sleep, cannot use tries; one of tc can do
// both.

// clang-format off
#include "maps.h"
#include "decide.h"
#include "../tests/bpf/decide_shim.h"
// clang-format on

struct um_shim shim = {};

SEC("tc")
int um_decide_shim(struct __sk_buff* ctx) {
  (void)ctx;
  struct um_connect in = shim.in;
  struct um_arrival arrival = shim.arrival;
  struct um_decision out = {};
  if (shim.asked == UM_SHIM_MESH)
    um_decide_mesh(&in, &out);
  else if (shim.asked == UM_SHIM_ARRIVAL)
    um_decide_arrival(&arrival, &out);
  else
    um_decide_workload(&in, &out);
  shim.out = out;
  return 0;
}

char _license[] SEC("license") = "Apache-2.0";
