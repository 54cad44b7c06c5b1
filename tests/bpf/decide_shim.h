// What goes into the shim and comes out. Include bpf/decide.h before (with its lookups).
#pragma once

struct um_shim {
  struct um_connect in;
  struct um_decision out;
  __u32 mesh;  // the mesh's own socket
  __u32 zero;
};
