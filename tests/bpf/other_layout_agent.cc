// What meshd does with the kernel, built with the programs and maps of another layout
// (other_layout.py): other_layout_agent PIN_DIR MESH_CGROUP COOKIE NETNS CGROUP. Enrols workload 7
// of that namespace and control group, says "ready", and waits to be killed.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "bpf/shared.h"
#include "datapath/datapath.h"

namespace {

using namespace mesh;

static_assert(sizeof(um_backend) == 60 && sizeof(um_set_key) == 12, "the shapes of another layout");

SocketAddress at(const char* text) { return SocketAddress::parse(text).value(); }
IpAddress ip(const char* text) { return IpAddress::parse(text).value(); }

datapath::State state_of(char** words) {
  datapath::State state;
  datapath::EnrolledWorkload& app = state.workloads[7];
  app.id = 7;
  app.netns_cookie = std::strtoull(words[0], nullptr, 10);
  app.netns = ::open(words[1], O_RDONLY | O_CLOEXEC);
  app.cgroup = words[2];
  app.addresses = {ip("10.9.0.1"), ip("fd09::1")};
  app.class4 = app.class6 = 70;
  state.peers = {{ip("10.9.0.2"), {0, 3}}, {ip("10.9.0.3"), {0, 3}}};
  const auto tcp = datapath::Transport::kTcp;
  state.sets[3] = {{{70, tcp, 0, 65535}, {false, 21, 0}}, {{70, tcp, 8080, 8080}, {true, 22, 0}}};
  state.services[at("10.78.0.1:9080")] = {1, datapath::ServiceEntry::Kind::kProxy, {}};
  state.services[at("10.78.0.2:70")] = {
      2, datapath::ServiceEntry::Kind::kBalance,
      datapath::columns_of({{at("10.9.0.2:8080"), 1}, {at("10.9.0.3:8080"), 1}})};
  return state;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  datapath::Options options;
  options.pin_dir = argv[1];
  auto kernel = datapath::open_kernel_datapath(options);
  if (!kernel) {
    std::fprintf(stderr, "%s\n", kernel.error().message.c_str());
    return 1;
  }
  if (!kernel.value()->attach_mesh(argv[2])) return 1;
  const auto problems = kernel.value()->apply(state_of(argv + 3));
  if (!problems || !problems.value().empty()) return 1;
  std::puts("ready");
  std::fflush(stdout);
  ::pause();
}
