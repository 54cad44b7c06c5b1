// Node: what meshd knows and does, apart from waiting: it takes objects and events in, and keeps
// the kernel, meshhold and meshproxy as they should be.
//
// One thread. The loop (agent.h) brings events and time; what is asked over the admin socket is
// answered from here. Nothing blocks but writes of small files.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/messages.h"
#include "control/audit.h"
#include "control/authz.h"
#include "control/fast_path.h"
#include "control/flow_book.h"
#include "control/heartbeat.h"
#include "control/host_listeners.h"
#include "control/misfits.h"
#include "control/numbers.h"
#include "control/peer.h"
#include "control/publisher.h"
#include "control/sources.h"
#include "control/store.h"
#include "control/workloads.h"
#include "datapath/datapath.h"

namespace mesh::control {

struct NodeOptions {
  std::string version;       // of this program
  std::string node_name;     // of this machine
  std::string sandbox_root;  // <cgroup>/workloads: empty groups below it are ours to remove
  std::string access_log;    // "" : none
};

// What Node needs; all outlive it.
struct NodeParts {
  Store& store;
  Numbers& numbers;
  datapath::Datapath& datapath;
  Machine& machine;
  Peer& hold;
  Peer& proxy;
  FastPathSwitch& fast_path;
};

class Node {
 public:
  using Clock = Publisher::Clock;
  using TapSink = std::function<void(const api::TapEvent&)>;

  Node(NodeOptions options, NodeParts parts, config::CompileOptions compile_options);

  // Reads what the kernel has and what is stored, and writes the first state: the one that was,
  // until the peers are heard. Before it nothing else is called. Errc::refused: the kernel has
  // workloads, but the store is new; then nothing was changed.
  Result<> start(Clock::time_point now);

  PeerEvents& hold_events() { return hold_events_; }
  PeerEvents& proxy_events() { return proxy_events_; }
  void on_store_changed(Clock::time_point now);
  void on_cgroups_changed(Clock::time_point now);
  void tick(Clock::time_point now, std::uint64_t unix_ms);  // every 2 s
  void watch_proxy(Clock::time_point now);                  // every half second
  void report_flows(std::uint64_t unix_ms);                 // every half second
  void audit(Clock::time_point now);                        // every half second
  void watch_fast_path(Clock::time_point now);              // every half second
  void reopen_access_log();

  api::ObjectList objects(const std::string& kind, const std::string& ns,
                          const std::string& name) const;
  api::ApplyReply apply(const api::ApplyRequest& request, Clock::time_point now);
  api::ApplyReply validate(const api::ApplyRequest& request);
  api::ApplyReply remove(const api::DeleteRequest& request, Clock::time_point now);
  api::WorkloadList workloads() const;
  std::optional<api::WorkloadStatus> workload(const config::ObjectName& name) const;
  api::Status status(Clock::time_point now);
  const FastPathSwitch& fast_path() const { return parts_.fast_path; }
  Result<> switch_fast_path(bool on, Clock::time_point now);
  // The proxy has judged all that was published, or is away.
  bool is_settled() const;
  // What the proxy refused of the objects of a reply.
  void add_refusals_of_proxy(api::ApplyReply& reply) const;
  // Where what a reply says is stored, but does not act, or not as it is written: as a warning
  // where it will when the proxy has it, or where it does not fit.
  void add_what_is_due(api::ApplyReply& reply) const;
  const std::string& program_version() const { return options_.version; }

  // Called when an answer of this may have become another; it must not call back.
  std::uint64_t add_change_sink(std::function<void()> sink);
  void remove_change_sink(std::uint64_t id) { change_sinks_.erase(id); }
  std::uint64_t add_tap(TapSink sink);
  void remove_tap(std::uint64_t id);
  // The proxy's view ("routes", ...); 0 while it is away. The answer comes later, once.
  std::uint64_t ask_proxy(const std::string& what);
  std::optional<boost::json::value> take_answer(std::uint64_t id);
  void forget_question(std::uint64_t id) { answers_.erase(id); }
  const config::Snapshot* snapshot() const { return compilation_.snapshot.get(); }
  std::uint64_t version() const { return publisher_.version(); }
  std::vector<api::Status::PolicyCount> policy_counts();
  Result<api::Dump> open_flows();
  api::Dump policies();
  // `from`: the workload that asks, "[namespace/]name"; empty: any of namespace default.
  Result<api::Dump> look_up(const std::string& name, const std::string& from) const;
  Result<api::AuthzReply> check_authz(const AuthzQuestion& question) const;

 private:
  class HoldEvents final : public PeerEvents {
   public:
    explicit HoldEvents(Node& node) : node_(node) {}
    void on_connected() override { node_.on_hold_connected(); }
    void on_lost(const Error&) override {}
    Result<> on_frame(std::string_view payload, feed::Fds fds) override {
      auto handled = node_.on_hold_frame(payload, std::move(fds));
      node_.tell_change();
      return handled;
    }
    void on_drained() override { node_.on_hold_drained(); }

   private:
    Node& node_;
  };
  class ProxyEvents final : public PeerEvents {
   public:
    explicit ProxyEvents(Node& node) : node_(node) {}
    void on_connected() override { node_.on_proxy_connected(Clock::now()); }
    void on_lost(const Error&) override { node_.on_proxy_lost(); }
    Result<> on_frame(std::string_view payload, feed::Fds) override {
      return node_.on_proxy_frame(payload);
    }

   private:
    Node& node_;
  };

  void on_hold_connected();
  Result<> on_hold_frame(std::string_view payload, feed::Fds fds);
  void on_hold_drained();
  void on_proxy_connected(Clock::time_point now);
  void on_proxy_lost();
  Result<> on_proxy_frame(std::string_view payload);
  void on_ack(std::uint64_t version);
  Result<> on_dns(const boost::json::object& message);

  void tell_change() const;
  void recompile(Clock::time_point now);
  void publish(Clock::time_point now);
  void note_kernel_errors();
  void reconcile_host_listeners();
  void sync_hold();
  void end_workloads(Clock::time_point now);
  bool is_sandbox(const config::Workload& workload) const;
  void remove_orphans();
  bool is_any_ending() const;
  bool take_ended_flows();
  void say_flows_failed(const Error& error);
  void send_flows();
  void send_options();
  void send_tap_state();
  void read_counters();
  void push_counters(std::uint64_t unix_ms);
  api::ObjectResult judge(const api::ApplyObject& wanted, config::ObjectPtr& object) const;
  std::vector<api::ObjectResult> judge_all(const api::ApplyRequest& request,
                                           std::vector<config::ObjectPtr>& objects);
  std::string old_state_text() const;
  void add_misfit(api::ObjectResult& result) const;
  void store_accepted(std::vector<api::ObjectResult>& results,
                      const std::vector<config::ObjectPtr>& objects);
  api::WorkloadStatus status_of(const config::ObjectName& name, const Enrolment& enrolment) const;
  void add_reasons(api::Status& status, Clock::time_point now) const;

  NodeOptions options_;
  NodeParts parts_;
  config::WorkloadPtr gateway_;
  Sources sources_;
  Workloads workloads_;
  Publisher publisher_;
  HostListeners host_listeners_;
  Audit audit_;
  HoldEvents hold_events_{*this};
  ProxyEvents proxy_events_{*this};
  Compilation compilation_;
  Clock::time_point started_{};
  Clock::time_point now_{};                      // of the event that is being handled
  std::optional<std::uint64_t> clock_began_ms_;  // the time of day then; of the last report
  std::string access_log_error_, join_error_;    // join_error_: the last, as logged
  bool is_sync_due_ = false;
  bool is_enrolment_due_ = false;  // meshhold answered, and neither kernel nor proxy know
  Heartbeat heartbeat_;
  Clock::time_point proxy_connected_at_{};
  int stale_looks_ = 0;
  std::optional<bool> is_hold_told_of_hang_;
  std::string proxy_version_;
  bool proxy_answers_dns_ = false;
  std::map<std::uint64_t, TapSink> taps_;
  std::map<std::uint64_t, std::optional<boost::json::value>> answers_;
  std::map<std::uint64_t, std::function<void()>> change_sinks_;
  std::uint64_t next_tap_ = 1, next_question_ = 1, next_change_sink_ = 1;
  datapath::Counters counters_;
  NamedMisfits misfits_;  // of the last apply()
  FlowBook flow_book_;
  int flow_reports_ = 0;
  std::string flow_error_;
  std::uint64_t access_log_inode_ = 0;
  int ticks_ = 0;
  std::map<std::string, int> orphans_;  // empty sandbox groups of nobody enrolled -> ticks seen
};

}  // namespace mesh::control
