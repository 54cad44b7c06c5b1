#include "datapath/fastpath_here.h"

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
  if (!on) {
    on_.reset();
    return FastPath::remove(pin_dir_);
  }
  if (!on_) {
    MESH_TRY(on_, FastPath::open(pin_dir_, shared));
  }
  MESH_TRY(on_->turn(true));
  return keep();
}

void FastPathHere::want(FastPathNode node) {
  if (node == node_ && !is_due_) return;
  node_ = std::move(node);
  if (!on_) return;
  if (const auto kept = keep(); !kept)
    log()->warn("the fast path is not as it should be error={}", kept.error().message);
}

Result<> FastPathHere::keep() {
  is_due_ = true;  // until it is done
  MESH_TRY(on_->keep(node_));
  is_due_ = false;
  return success();
}

Result<bool> FastPathHere::restore_link(const std::string& name) {
  const auto cgroup = node_.cgroups.find(name);
  if (!on_ || cgroup == node_.cgroups.end()) return false;
  return on_->restore_link(name, cgroup->second);
}

Result<std::vector<FastPathPort>> FastPathHere::ports() const {
  if (!on_) return std::vector<FastPathPort>{};
  return on_->ports();
}

}  // namespace mesh::datapath
