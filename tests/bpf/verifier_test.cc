// What the kernel's verifier has to do for the programs of bpf/, as the kernel that runs counts it.
// tests/vm/kernels.py makes a table of what this records.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>

#include "datapath/fastpath.h"

namespace mesh {
namespace {

// The kernel gives up at a million. A program near that fails on a kernel whose verifier prunes
// less, and takes long to load on every one.
constexpr unsigned kBound = 100'000;

struct Close {
  void operator()(bpf_object* object) const { ::bpf_object__close(object); }
};

TEST(Verifier, EveryProgramStaysWithinItsBound) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  std::istringstream paths(MESH_BPF_OBJECTS);
  for (std::string path; std::getline(paths, path, ':');) {
    std::unique_ptr<bpf_object, Close> object(::bpf_object__open_file(path.c_str(), nullptr));
    ASSERT_NE(object, nullptr) << path << ": " << std::strerror(errno);
    // Never loaded on such a kernel (FastPathGate), whether it could be or not.
    if (path.ends_with("/fastpath.bpf.o") && !datapath::why_no_fast_path().empty()) continue;
    ASSERT_EQ(::bpf_object__load(object.get()), 0) << path << ": " << std::strerror(errno);
    bpf_program* program = nullptr;
    bpf_object__for_each_program(program, object.get()) {
      const char* name = ::bpf_program__name(program);
      bpf_prog_info info{};
      __u32 size = sizeof info;
      ASSERT_EQ(::bpf_obj_get_info_by_fd(::bpf_program__fd(program), &info, &size), 0) << name;
      std::printf("%-32s %6u instructions, %6u verified\n", name,
                  info.xlated_prog_len / static_cast<unsigned>(sizeof(bpf_insn)),
                  info.verified_insns);
      RecordProperty(name, std::to_string(info.verified_insns));
      EXPECT_GT(info.verified_insns, 0U) << name;
      EXPECT_LE(info.verified_insns, kBound) << name;
    }
  }
}

}  // namespace
}  // namespace mesh
