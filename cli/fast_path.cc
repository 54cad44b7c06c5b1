#include "fast_path.h"

#include <unistd.h>

#include <cstdio>

#include "api/messages.h"
#include "cgroup.h"
#include "client.h"
#include "datapath/fastpath.h"
#include "datapath/fastpath_probe.h"
#include "inspect.h"
#include "lifecycle.h"
#include "output.h"

namespace mesh::cli {
namespace {

using std::chrono::seconds;

constexpr seconds kTestTime{60};

std::string remedy_of(const std::string& cause) {
  if (cause == "kernel") return "boot a kernel of 6.13 or later, or go on by TCP: nothing is lost";
  if (cause == "full")
    return "go on by TCP: nothing is lost; annotate fewer Services with undermesh.io/fastpath, "
           "then: "
           "meshctl datapath fastpath on";
  return "go on by TCP: nothing is lost; after a change of the kernel: meshctl datapath fastpath "
         "on";
}

datapath::Finding finding_of(const api::FastPathStatus& status) {
  using Level = datapath::Finding::Level;
  if (status.on && !status.reason.empty())
    return {Level::kWarning, "fastpath", "the same-node fast path is still on: " + status.reason,
            "repair what keeps it, or meshctl disable --all"};
  if (status.on) return {Level::kOk, "fastpath", "the same-node fast path is on", ""};
  if (status.cause == "default" || status.cause == "operator")
    return {Level::kOk, "fastpath", "the same-node fast path is off: " + status.reason, ""};
  return {Level::kWarning, "fastpath", "the same-node fast path is off: " + status.reason,
          remedy_of(status.cause)};
}

}  // namespace

void print_line(const api::FastPathStatus& status) {
  if (status.on && status.reason.empty())
    std::puts("The same-node fast path is on.");
  else if (status.on)
    std::printf("The same-node fast path is still on: %s.\n", status.reason.c_str());
  else
    std::printf("The same-node fast path is off: %s.\n", status.reason.c_str());
}

Result<int> fast_path_status(const Environment& environment, Format format) {
  const Client client(environment.run_dir);
  MESH_TRY(auto status, client.get<api::FastPathStatus>("/v1/fastpath"));
  if (format == Format::kTable)
    print_line(status);
  else
    std::fputs(render(format, api::to_json(status)).c_str(), stdout);
  return kOk;
}

Result<int> switch_fast_path(const Environment& environment, bool on) {
  MESH_TRY(auto status,
           Client(environment.run_dir)
               .post<api::FastPathStatus>("/v1/fastpath", api::FastPathRequest{on}, kTestTime));
  print_line(status);
  return status.on == on ? kOk : kFailed;
}

datapath::Finding check_fast_path(const Environment& environment) {
  if (auto status =
          Client(environment.run_dir).get<api::FastPathStatus>("/v1/fastpath", seconds(5)))
    return finding_of(status.value());
  if (const std::string why = datapath::why_no_fast_path(); !why.empty())
    return finding_of({false, "kernel", why});
  auto cgroups = find_cgroups(environment.cgroup_name);
  if (::geteuid() != 0 || !cgroups)
    return {datapath::Finding::Level::kWarning, "fastpath",
            "not tried: only root may, where cgroup2 is mounted", "run meshctl check with sudo"};
  // Beside the mesh's own group, which need not be there.
  const auto tried = datapath::try_fast_path(cgroups.value().root + "-check");
  if (!tried) return finding_of({false, "test", tried.error().message});
  return {datapath::Finding::Level::kOk, "fastpath", "its self-test passes", ""};
}

}  // namespace mesh::cli
