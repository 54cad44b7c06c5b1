#include "datapath/fastpath_probe.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/clone.h"
#include "bpf/fastpath.h"
#include "datapath/fastpath_trial.h"

namespace mesh::datapath {
namespace {

[[noreturn]] void run_child(const FastPathCopy& copy) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::_exit(static_cast<int>(run_fast_path_trial(
      {copy.sockets.get(), copy.addresses.get(), copy.config.get(), copy.iterator.get()})));
}

Result<> outcome_of(const siginfo_t& info) {
  if (info.si_code != CLD_EXITED) return Error{Errc::unavailable, "its self-test was killed"};
  if (info.si_status == 0) return success();
  return Error{Errc::refused, std::string("its self-test failed: ") +
                                  text_of(static_cast<TrialStep>(info.si_status))};
}

}  // namespace

Result<FastPathProbe> FastPathProbe::start(const std::string& cgroup, Clock::time_point now) {
  if (const std::string why = why_no_fast_path(); !why.empty())
    return Error{Errc::unavailable, why};
  FastPathProbe probe;
  probe.started_ = now;
  MESH_TRY(probe.attach(cgroup));
  return probe;
}

Result<> FastPathProbe::attach(const std::string& cgroup) {
  if (::mkdir(cgroup.c_str(), 0755) != 0 && errno != EEXIST)
    return errno_error(errno, "make the control group " + cgroup);
  cgroup_ = cgroup;
  const UniqueFd group(::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!group) return errno_error(errno, "open the control group " + cgroup);
  MESH_TRY(copy_, copy_of_fast_path(group.get()));
  const std::uint32_t zero = 0;
  const um_fast_config config{UM_FAST_ON, 1};
  if (::bpf_map_update_elem(copy_.config.get(), &zero, &config, BPF_ANY) != 0)
    return errno_error(errno, "write map um_fast_config");
  Clone child = clone_into(group.get(), CLONE_NEWNET);
  if (child.pid == 0) run_child(copy_);
  if (child.pid < 0) return errno_error(errno, "start the self-test of the fast path");
  pidfd_ = std::move(child.pidfd);
  return success();
}

FastPathProbe::~FastPathProbe() { end(); }

// Its readers, too. A child that the kernel holds is left, a zombie until meshd ends: nothing here
// waits for it.
void FastPathProbe::end() {
  if (cgroup_.empty()) return;
  const UniqueFd kill(::open((cgroup_ + "/cgroup.kill").c_str(), O_WRONLY | O_CLOEXEC));
  if (kill) (void)!::write(kill.get(), "1", 1);
  if (pidfd_) {
    siginfo_t info{};
    pollfd ended{pidfd_.get(), POLLIN, 0};
    ::poll(&ended, 1, 100);
    ::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG);
    pidfd_.reset();
  }
  copy_ = {};
  ::rmdir(cgroup_.c_str());
  cgroup_.clear();
}

std::optional<Result<>> FastPathProbe::outcome(Clock::time_point now) {
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG) != 0)
    return Result<>(errno_error(errno, "wait for the self-test of the fast path"));
  if (info.si_pid == 0) {
    if (now - started_ < kPatience) return std::nullopt;
    end();
    return Result<>(Error{Errc::timed_out, "its self-test did not end in " +
                                               std::to_string(kPatience.count()) + " s"});
  }
  pidfd_.reset();
  end();
  return outcome_of(info);
}

Result<> try_fast_path(const std::string& cgroup) {
  MESH_TRY(auto probe, FastPathProbe::start(cgroup, FastPathProbe::Clock::now()));
  for (;;) {
    if (auto outcome = probe.outcome(FastPathProbe::Clock::now())) return *std::move(outcome);
    pollfd ended{probe.pidfd(), POLLIN, 0};
    ::poll(&ended, 1, 1000);
  }
}

}  // namespace mesh::datapath
