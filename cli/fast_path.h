// datapath fastpath: the switch of the same-node fast path, and what `check` says of it.
#pragma once

#include "api/messages.h"
#include "base/result.h"
#include "datapath/datapath.h"
#include "environment.h"

namespace mesh::cli {

void print_line(const api::FastPathStatus& status);  // for people
Result<int> fast_path_status(const Environment& environment, Format format);
// On: waits for the self-test; kFailed where it stays off.
Result<int> switch_fast_path(const Environment& environment, bool on);
// By meshd where it runs, else by a self-test (root only).
datapath::Finding check_fast_path(const Environment& environment);

}  // namespace mesh::cli
