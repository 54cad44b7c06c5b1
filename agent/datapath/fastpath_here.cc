#include "datapath/fastpath_here.h"

#include <fcntl.h>

#include <string>
#include <utility>

#include "base/log.h"

namespace mesh::datapath {
namespace {

Logger log() {
  static const Logger made = logger("datapath");
  return made;
}

}  // namespace

Result<> FastPathHere::turn(bool on, const std::map<std::string, UniqueFd>& shared) {
  why_stopped_.clear();
  if (!on) {
    on_.reset();
    return FastPath::remove(pin_dir_);
  }
  if (!on_) {
    MESH_TRY(on_, FastPath::open(pin_dir_, shared));
  }
  return node_ ? keep() : success();
}

void FastPathHere::want(FastPathNode node) {
  if (node == node_ && !is_due_) return;
  node_ = std::move(node);
  if (!on_) return;
  if (const auto kept = keep(); !kept) why_stopped_ = kept.error().message;
}

Result<> FastPathHere::keep() {
  is_due_ = true;  // until it is done
  MESH_TRY(on_->keep(*node_));
  is_due_ = false;
  if (const auto linked = on_->link(node_->cgroups); !linked) {
    is_due_ = true;
    log()->warn("some connections go on by TCP error={}", linked.error().message);
  }
  return success();
}

Result<bool> FastPathHere::restore_link(const std::string& name) {
  if (!on_ || !node_) return false;
  const auto cgroup = node_->cgroups.find(name);
  if (cgroup == node_->cgroups.end()) return false;
  return on_->restore_link(name, cgroup->second);
}

Result<std::size_t> FastPathHere::restore_pins() const {
  if (!on_) return std::size_t{0};
  return on_->restore_pins();
}

Result<> FastPathHere::restore(std::size_t rows, std::vector<Difference>& differences) {
  if (!on_ || !node_ || is_due_) return success();
  MESH_TRY(const bool config, on_->restore_config());
  if (config) differences.push_back({"the switch of the fast path (um_fast_config)", true, true});
  MESH_TRY(const std::size_t restored, on_->restore_some(rows));
  if (restored != 0)
    differences.push_back({std::to_string(restored) + " of the fast path's rows", true, true});
  return success();
}

Result<> FastPathHere::let_settled_join(const State& state) {
  if (!on_) return success();
  MESH_TRY(const auto settled, on_->take_settled());
  if (settled.empty()) return success();
  const UniqueFd own(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));  // the gateway's
  std::map<std::uint64_t, int> namespaces;  // -1: nobody has told which it is
  for (const auto& [id, workload] : state.workloads) {
    int& netns = namespaces.emplace(workload.netns_cookie, -1).first->second;
    if (netns < 0) netns = workload.cgroup.empty() ? own.get() : workload.netns;
  }
  Result<> outcome = success();
  for (const std::uint64_t cookie : settled) {
    const auto found = namespaces.find(cookie);
    if (found == namespaces.end()) continue;  // its workload has ended
    const auto joined = found->second < 0 ? success() : on_->let_join(work_, found->second);
    if (found->second < 0 || !joined) on_->ask_again(cookie);
    if (!joined)
      outcome = Error{joined.error().code, joined.error().message + " (cookie " +
                                               std::to_string(cookie) + "), which is tried again"};
  }
  return outcome;
}

}  // namespace mesh::datapath
