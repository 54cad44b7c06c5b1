// The fast path's self-test finds data paths that are wrong: each of its steps fails for a program
// that is right but for one fault (wrong_fastpath.bpf.c).
#include "datapath/fastpath_trial.h"

#include <bpf/bpf.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "bpf/fastpath.h"
#include "datapath/fastpath.h"
#include "tests/bpf/wrong_fastpath.h"
#include "tests/support/netns.h"
#include "wrong_fastpath.skel.h"

namespace mesh::test {
namespace {

using datapath::TrialMaps;
using datapath::TrialStep;

// One run of the self-test, over a copy of the programs with a fault from its `first` connection
// on.
class TrialRun {
 public:
  explicit TrialRun(um_wrong fault, std::uint32_t first = 0)
      : group_(Cgroup::create("trial-" + std::to_string(++made))), ns_(NetNs::create()) {
    load(fault, first);
    attach(fault);
  }
  TrialMaps maps() const {
    return {map_fd(skeleton_->maps.um_fast_sockets), map_fd(skeleton_->maps.um_fast_addresses),
            map_fd(skeleton_->maps.um_fast_config), iterator_.get()};
  }
  const NetNs& ns() const { return ns_; }
  void start() { start(maps()); }
  void start(const TrialMaps& maps) {
    child_ = std::make_unique<Child>(
        &group_, &ns_, [maps] { ::_exit(static_cast<int>(datapath::run_fast_path_trial(maps))); });
  }
  TrialStep outcome() {
    const int status = child_->wait();
    return WIFEXITED(status) ? static_cast<TrialStep>(WEXITSTATUS(status)) : TrialStep::kCount;
  }
  std::uint32_t connections() const { return skeleton_->bss->connections; }

 private:
  static int map_fd(const bpf_map* map) { return ::bpf_map__fd(map); }
  void load(um_wrong fault, std::uint32_t first) {
    skeleton_.reset(wrong_fastpath_bpf__open());
    if (!skeleton_) fixture_failed("open the wrong programs");
    skeleton_->rodata->fault = fault;
    skeleton_->rodata->first = first;
    bpf_map* map = nullptr;
    bpf_object__for_each_map(map, skeleton_->obj) {
      const auto type = ::bpf_map__type(map);
      if (type == BPF_MAP_TYPE_HASH || type == BPF_MAP_TYPE_LRU_HASH ||
          type == BPF_MAP_TYPE_SOCKHASH)
        ::bpf_map__set_max_entries(map, 1024);
    }
    if (wrong_fastpath_bpf__load(skeleton_.get()) != 0) fixture_failed("load the wrong programs");
  }
  void attach(um_wrong fault) {
    const auto& programs = skeleton_->progs;
    if (::bpf_prog_attach(::bpf_program__fd(programs.wrong_msg),
                          map_fd(skeleton_->maps.um_fast_peers), BPF_SK_MSG_VERDICT, 0) != 0)
      fixture_failed("attach the wrong program");
    const bpf_program* join =
        fault == UM_WRONG_EVERYBODY_JOINS ? programs.wrong_join : programs.um_fast_join;
    iterator_.reset(::bpf_link_create(::bpf_program__fd(join), 0, BPF_TRACE_ITER, nullptr));
    const UniqueFd cgroup(::open(group_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    link_.reset(::bpf_link_create(::bpf_program__fd(programs.wrong_sock_ops), cgroup.get(),
                                  BPF_CGROUP_SOCK_OPS, nullptr));
    if (!iterator_ || !link_) fixture_failed("link the wrong programs");
    const std::uint32_t zero = 0;
    const um_fast_config on{UM_FAST_ON, 1};
    ::bpf_map_update_elem(map_fd(skeleton_->maps.um_fast_config), &zero, &on, BPF_ANY);
  }

  struct Destroy {
    void operator()(wrong_fastpath_bpf* skeleton) const { wrong_fastpath_bpf__destroy(skeleton); }
  };
  static inline int made = 0;
  Cgroup group_;
  NetNs ns_;
  std::unique_ptr<wrong_fastpath_bpf, Destroy> skeleton_;
  UniqueFd iterator_, link_;
  std::unique_ptr<Child> child_;
};

class FastPathTrial : public testing::Test {
 protected:
  void SetUp() override {
    if (!is_root()) GTEST_SKIP() << "needs root";
    if (cgroup2_mount().empty()) GTEST_SKIP() << "needs cgroup2";
    if (const std::string why = datapath::why_no_fast_path(); !why.empty()) GTEST_SKIP() << why;
    TrialRun right(UM_WRONG_NOTHING);
    right.start();
    ASSERT_EQ(right.outcome(), TrialStep::kPassed);
    connections_ = right.connections();
  }
  static TrialStep outcome_of(um_wrong fault, std::uint32_t first = 0) {
    TrialRun run(fault, first);
    run.start();
    return run.outcome();
  }

  // Each step that finds other bytes, and the first connection from which on they make it do so.
  std::map<TrialStep, std::uint32_t> first_connections() const {
    std::map<TrialStep, std::uint32_t> found;
    const auto look = [&](std::uint32_t first) {
      const TrialStep step = outcome_of(UM_WRONG_ALTERED, first);
      EXPECT_NE(step, TrialStep::kPassed) << first;
      found.emplace(step, first);
    };
    for (std::uint32_t first = 1; first <= connections_ && !found.contains(TrialStep::kCrowd);)
      look(first++);
    look(connections_ - 1);
    look(connections_);
    return found;
  }

  std::uint32_t connections_ = 0;  // of a run
};

struct Case {
  um_wrong fault;
  std::uint32_t first;
  TrialStep found;
};

TEST_F(FastPathTrial, FindsEachFault) {
  const std::uint32_t full = connections_ - 1, off = connections_;  // its last two connections
  const Case cases[] = {
      {UM_WRONG_NOBODY_JOINS, 0, TrialStep::kJoin},
      {UM_WRONG_EVERYBODY_JOINS, 0, TrialStep::kBlocks},
      {UM_WRONG_BY_TCP, 0, TrialStep::kMove},
      {UM_WRONG_NOT_COUNTED, 0, TrialStep::kMove},
      {UM_WRONG_ALTERED, 0, TrialStep::kBytes},
      {UM_WRONG_ALTERED_BACK, 0, TrialStep::kBytes},
      {UM_WRONG_LARGE, 0, TrialStep::kRead},
      {UM_WRONG_IPV6, 0, TrialStep::kBytes},
      {UM_WRONG_LOST, 0, TrialStep::kBytes},
      {UM_WRONG_HELD, 0, TrialStep::kBytes},
      // On Linux 6.18 FIONREAD is 0 for what came by TCP: as where it is wrong for all.
      {UM_WRONG_SAID_MOVED, 0, TrialStep::kPoll},
      {UM_WRONG_REFUSED, 0, TrialStep::kHalfClose},
      {UM_WRONG_UNBOUNDED, 0, TrialStep::kBounded},
      {UM_WRONG_IN_TURNS, full, TrialStep::kFullOrder},
      {UM_WRONG_NEVER_OFF, off, TrialStep::kOff},
  };
  std::vector<std::unique_ptr<TrialRun>> runs;  // all at once: some of them wait
  for (const Case& c : cases) {
    runs.push_back(std::make_unique<TrialRun>(c.fault, c.first));
    runs.back()->start();
  }
  for (std::size_t i = 0; i < std::size(cases); ++i)
    EXPECT_EQ(runs[i]->outcome(), cases[i].found)
        << "fault " << cases[i].fault << ": " << text_of(cases[i].found);
}

// Each way of reading tells other bytes from its own, who gets its answer does, and both tell what
// never comes, past TCP or not.
TEST_F(FastPathTrial, FindsAFaultAtEachConnection) {
  const auto found = first_connections();
  for (const TrialStep step : {TrialStep::kBytes, TrialStep::kFullOrder, TrialStep::kOff})
    EXPECT_TRUE(found.contains(step)) << text_of(step);
  std::vector<std::pair<TrialStep, std::unique_ptr<TrialRun>>> waiting;
  for (const TrialStep step :
       {TrialStep::kRead, TrialStep::kMessage, TrialStep::kPoll, TrialStep::kLevel,
        TrialStep::kEdge, TrialStep::kPeek, TrialStep::kCrowd}) {
    ASSERT_TRUE(found.contains(step)) << text_of(step);
    for (const um_wrong fault : {UM_WRONG_ALTERED_BACK, UM_WRONG_HELD, UM_WRONG_HELD_BY_TCP}) {
      if (step == TrialStep::kCrowd && fault == UM_WRONG_HELD_BY_TCP) continue;
      waiting.emplace_back(step, std::make_unique<TrialRun>(fault, found.at(step)));
      waiting.back().second->start();
    }
  }
  for (const auto& [step, run] : waiting) EXPECT_EQ(run->outcome(), step) << text_of(step);
}

TEST_F(FastPathTrial, IsMadeWithoutIpv6WhereThereIsNone) {
  TrialRun run(UM_WRONG_IPV6);
  run.ns().command("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
  run.start();
  EXPECT_EQ(run.outcome(), TrialStep::kPassed);
  EXPECT_EQ(run.connections(), connections_ - 2);
}

TEST_F(FastPathTrial, DoesNotPassWhereItCannotBeMade) {
  TrialRun without_map(UM_WRONG_NOTHING), taken(UM_WRONG_NOTHING);
  TrialMaps maps = without_map.maps();
  maps.addresses = -1;
  without_map.start(maps);
  EXPECT_EQ(without_map.outcome(), TrialStep::kNamespace);
  const UniqueFd listener = taken.ns().listen("127.0.0.1:" + std::to_string(UM_PROXY_PORT));
  taken.start();
  EXPECT_EQ(taken.outcome(), TrialStep::kConnect);
}

}  // namespace
}  // namespace mesh::test
