// What goes into the shim and comes out. Include bpf/decide.h before (with its lookups).
#pragma once

enum um_shim_asked { UM_SHIM_WORKLOAD = 0, UM_SHIM_MESH = 1, UM_SHIM_ARRIVAL = 2 };

struct um_shim {
  struct um_connect in;
  struct um_arrival arrival;
  __u32 asked;  // um_shim_asked
  __u32 zero;
  struct um_decision out;
};
