// FastPathHere: the fast path of this node, off or on, and as apply() wants it. Needs root. One
// thread at a time.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "datapath/datapath.h"
#include "datapath/fastpath.h"

namespace mesh::datapath {

class FastPathHere {
 public:
  // `work` outlives it.
  FastPathHere(std::string pin_dir, SocketWork& work) : pin_dir_(std::move(pin_dir)), work_(work) {}

  // As of Datapath::switch_fast_path(); `shared`: as of FastPath::open().
  Result<> turn(bool on, const std::map<std::string, UniqueFd>& shared);
  // Kept also while it is off. Whom it cannot be had for goes by TCP, which is no failure: it is
  // logged, and the next one tries again.
  void want(FastPathNode node);
  // As of Datapath::why_fast_path_stopped().
  const std::string& why_stopped() const { return why_stopped_; }
  // Puts the link of that name right. True: it was not as it should be.
  Result<bool> restore_link(const std::string& name);
  // As of FastPath::restore_pins().
  Result<std::size_t> restore_pins() const;
  // Puts its switch right, and so many rows of each of its maps at most, the next ones next time.
  Result<> restore(std::size_t rows, std::vector<Difference>& differences);
  // As of Datapath::let_settled_join().
  Result<> let_settled_join(const State& state);

 private:
  Result<> keep();

  std::string pin_dir_;
  SocketWork& work_;
  std::optional<FastPath> on_;        // none: off
  std::optional<FastPathNode> node_;  // as it shall be; none: nobody has said yet
  bool is_due_ = false;               // it was not made so
  std::string why_stopped_;
};

}  // namespace mesh::datapath
