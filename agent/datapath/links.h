// What is pinned below a directory of a bpffs.
#pragma once

#include <linux/bpf.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace mesh::datapath {

Result<> make_dir(const std::string& path);  // its parent is there; may be there itself
std::vector<std::string> names_in(const std::string& dir);  // sorted; none: also where it is not
Result<> unpin(const std::string& path);  // also a directory that took a pin's place
// Replaces the pin at once: there is never a moment without one. (Dots are reserved in bpffs.)
Result<> pin_over(int fd, const std::string& path);
// Pins it there where it is not pinned. True: it was not.
Result<bool> restore_pin(int fd, const std::string& path);
// What a descriptor is of: "map", "prog", "link", or "".
std::string kind_of(int fd);
Result<bpf_link_info> info_of_link(int fd, const std::string& path);
Result<std::uint32_t> program_id(int fd);

}  // namespace mesh::datapath
