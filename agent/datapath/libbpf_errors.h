// What libbpf says goes to the log, and what it said last into errors: the verifier's log among it.
#pragma once

#include <string_view>

#include "base/result.h"

namespace mesh::datapath {

void listen_to_libbpf();      // once a process, before anything is opened
void forget_libbpf_errors();  // before a load
Error libbpf_error(int err, std::string_view what);

}  // namespace mesh::datapath
