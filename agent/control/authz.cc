#include "control/authz.h"

#include <algorithm>
#include <set>
#include <utility>

#include "config/policy_parts.h"
#include "datapath/judge.h"

namespace mesh::control {
namespace {

using api::AuthzReply;
using config::AuthorizationPolicy;
using config::NetworkPolicy;
using config::Selection;
using config::Snapshot;
using config::Transport;
using config::Verdict;
using config::Workload;
using datapath::Decision;

constexpr std::uint16_t kSomePort = 40000;  // of a client; nothing asks for it

const char* text_of(bool allowed) { return allowed ? "ALLOW" : "DENY"; }

std::string rule_text(const std::string& which, int rule) {
  return which + "rule " + std::to_string(rule) + " matches";
}

template <class Policy>
std::string names_of(const std::vector<const Policy*>& policies) {
  std::string text;
  for (const Policy* policy : policies)
    text += (text.empty() ? "" : ", ") + policy->name.to_string();
  return text;
}

// One direction of one workload: the policies that select it, and what they say of a connection.
struct Side {
  bool is_ingress = false;
  const Workload* own = nullptr;
  Selection selection;

  Side(const Snapshot& snapshot, bool ingress, const Workload& workload)
      : is_ingress(ingress),
        own(&workload),
        selection(ingress ? config::ingress_selection(snapshot, workload)
                          : config::egress_selection(snapshot, workload)) {}

  const char* name() const { return is_ingress ? "ingress" : "egress"; }
};

// A connection as one end sees it.
struct Flow {
  config::Peer other;
  Transport transport = Transport::kTcp;
  std::uint16_t port = 0;
};

Verdict asked(const Snapshot& snapshot, const Side& side, const Selection& selection,
              const Flow& flow) {
  return side.is_ingress ? config::authorize_ingress(snapshot, selection, flow.other, *side.own,
                                                     flow.transport, flow.port)
                         : config::authorize_egress(snapshot, selection, *side.own, flow.other,
                                                    flow.transport, flow.port);
}

const char* action_of(const AuthorizationPolicy& policy) {
  using Action = AuthorizationPolicy::Action;
  return policy.action == Action::kAllow  ? "ALLOW"
         : policy.action == Action::kDeny ? "DENY"
                                          : "AUDIT";
}

// What each policy says when it is asked alone.
std::vector<AuthzReply::Policy> policies_of(const Snapshot& snapshot, const Side& side,
                                            const Flow& flow) {
  std::vector<AuthzReply::Policy> list;
  for (const AuthorizationPolicy* policy : side.selection.authorization) {
    AuthzReply::Policy said{display_name(*policy), action_of(*policy), "no rule matches"};
    const bool is_audit = policy->action == AuthorizationPolicy::Action::kAudit;
    const Verdict alone = asked(snapshot, side, {{policy}, {}, side.selection.strict}, flow);
    if (policy->refused)
      said.outcome = is_audit ? "refused: audits nothing" : "refused: denies what it selects";
    else if (flow.transport == Transport::kUdp && !side.selection.strict)
      said.outcome = "speaks of TCP alone";
    else if (is_audit && alone.audit)
      said.outcome = rule_text("", alone.audit->rule);
    else if (!is_audit && alone.policy == said.policy && alone.rule >= 0)
      said.outcome = rule_text("", alone.rule);
    list.push_back(std::move(said));
  }
  for (const NetworkPolicy* policy : side.selection.network) {
    AuthzReply::Policy said{display_name(*policy), side.name(), "no rule matches"};
    const Verdict alone = asked(snapshot, side, {{}, {policy}, false}, flow);
    if (policy->refused)
      said.outcome = "refused: denies what it selects";
    else if (alone.rule >= 0)
      said.outcome = rule_text("", alone.rule);
    else if (alone.allowed)
      said.outcome = "lets this node's own addresses in";
    list.push_back(std::move(said));
  }
  return list;
}

std::vector<const AuthorizationPolicy*> allowing(const Side& side) {
  std::vector<const AuthorizationPolicy*> policies;
  for (const AuthorizationPolicy* policy : side.selection.authorization)
    if (policy->action == AuthorizationPolicy::Action::kAllow) policies.push_back(policy);
  return policies;
}

// Why there is no rule to name: nothing selects, or nothing that selects speaks of it.
std::string why_open(const Side& side) {
  const bool is_selected = !side.selection.authorization.empty() || !side.selection.network.empty();
  if (!side.is_ingress) return "no NetworkPolicy selects it for egress";
  if (!is_selected) return "nothing selects it, and its mode is permissive";
  return "no policy that denies matches, and none must allow";
}

std::string why_by(const Side& side, const std::string& policy, int rule, bool allowed) {
  if (policy == config::kStrictDefault)
    return "its mode is strict, and neither an ALLOW policy nor a NetworkPolicy selects it";
  for (const AuthorizationPolicy* own : side.selection.authorization) {
    if (display_name(*own) != policy) continue;
    if (own->refused) return "the policy has an error, so it denies what it selects";
    if (rule >= 0) return rule_text("its ", rule);
    return "no rule of the ALLOW policies that select it matches: " + names_of(allowing(side));
  }
  for (const NetworkPolicy* own : side.selection.network) {
    if (display_name(*own) != policy) continue;
    if (own->refused) return "the policy has an error, so it denies what it selects";
    if (rule >= 0) return rule_text(std::string("its ") + side.name() + " ", rule);
    return std::string("no ") + side.name() +
           " rule of the NetworkPolicies that select it matches: " +
           names_of(side.selection.network);
  }
  return std::string("a policy that is being changed ") + (allowed ? "allows" : "denies") + " it";
}

class Checker {
 public:
  Checker(const AuthzInput& input, const Party& client, Transport transport)
      : input_(input),
        snapshot_(input.known.snapshot),
        client_(client),
        transport_(transport),
        judge_(input.known.kernel, input.service_range),
        parts_(snapshot_) {
    if (client.workload) egress_.emplace(snapshot_, false, *client.workload);
    if (client.shares_addresses) egress_->selection = {};  // nothing selects the gateway
  }

  // One path for each range of ports that is treated as a whole.
  std::vector<AuthzReply::Path> paths_to(const Destination& to) {
    std::vector<AuthzReply::Path> paths;
    for (const std::uint16_t first : port_ranges(to)) {
      AuthzReply::Path path = path_to(to, first);
      path.last_port = to.port ? first : 65535;
      if (!paths.empty()) paths.back().last_port = static_cast<std::uint16_t>(first - 1);
      if (paths.empty() || !is_alike(paths.back(), path))
        paths.push_back(std::move(path));
      else
        paths.back().last_port = path.last_port;
    }
    return paths;
  }

 private:
  datapath::Transport kernel_transport() const {
    return transport_ == Transport::kUdp ? datapath::Transport::kUdp : datapath::Transport::kTcp;
  }

  // Where the ranges begin that the policies of both ends tell apart.
  std::set<std::uint16_t> port_ranges(const Destination& to) const {
    if (to.port) return {*to.port};
    std::set<std::uint16_t> begins = {1};
    const auto add = [&](const std::vector<config::PortRange>& ranges) {
      for (const config::PortRange& range : ranges)
        if (range.first != 0) begins.insert(range.first);
    };
    const Workload* server = to.party.workload;
    if (egress_) add(parts_.egress_ports(snapshot_, egress_->selection, transport_, server));
    if (server)
      add(parts_.ingress_ports(Side(snapshot_, true, *server).selection, transport_, *server));
    return begins;
  }

  static bool is_alike(const AuthzReply::Path& a, const AuthzReply::Path& b) {
    return a.verdict == b.verdict && a.why == b.why &&
           std::ranges::equal(a.ends, b.ends, [](const auto& x, const auto& y) {
             return x.verdict == y.verdict && x.policy == y.policy && x.audit == y.audit;
           });
  }

  AuthzReply::Path path_to(const Destination& to, std::uint16_t port) {
    AuthzReply::Path path;
    if (to.party.workload) path.workload = to.party.workload->name.to_string();
    path.address = to.address.to_string();
    path.first_port = port;
    path.proxied = to.proxied;
    const bool is_self =
        client_.workload && to.party.workload && client_.workload->name == to.party.workload->name;
    if (is_self) {
      path.verdict = text_of(true);
      path.why = "a workload may always talk to itself";
      return path;
    }
    const bool leaves = !client_.workload || add_egress(path, to, port);
    // What never arrives is judged all the same: who mends the one end wants to know of the other.
    const bool enters = !path.why.empty() || add_ingress(path, to, port);
    path.verdict = text_of(leaves && enters);
    if (path.ends.empty() && path.why.empty())
      path.why = "neither end is a workload of the mesh: nothing is asked";
    return path;
  }

  // --- the client's end

  bool add_egress(AuthzReply::Path& path, const Destination& to, std::uint16_t port) {
    const Flow flow{{to.party.workload, to.address}, transport_, port};
    if (client_.enrolled == 0) {
      path.ends.push_back(end_elsewhere(*egress_, flow));
      return path.ends.back().verdict == text_of(true);
    }
    const SocketAddress at{to.address, port};
    connect_ = to.proxied || client_.shares_addresses
                   ? judge_.mesh_connect(client_.enrolled, at)
                   : judge_.connect(client_.enrolled, at, kernel_transport());
    const bool has_set = has_egress_set();
    if (connect_->rulings.empty() && (connect_->is_refused() || has_set)) {
      if (connect_->reason.ends_with("_no_verdict"))
        path.ends.push_back(end_of(*egress_, flow, nullptr, connect_->reason));
      else if (connect_->is_refused())
        path.why = "the kernel refuses it, whatever policies say: " + connect_->reason;
      else
        path.why = "it does not leave the workload";
      return !connect_->is_refused();
    }
    const auto* ruling = has_set ? &connect_->rulings.front() : nullptr;
    path.ends.push_back(end_of(*egress_, flow, ruling, ""));
    return !ruling || ruling->allowed;
  }

  bool has_egress_set() const {
    return input_.known.kernel.workloads.at(client_.enrolled).egress != 0;
  }

  // --- the server's end

  bool add_ingress(AuthzReply::Path& path, const Destination& to, std::uint16_t port) {
    if (!to.party.workload) return true;
    const Side side(snapshot_, true, *to.party.workload);
    const Flow flow{{client_.workload, source_for(to.address)}, transport_, port};
    if (const auto* denied = denied_at_connect()) {
      path.ends.push_back(end_of(side, flow, denied, ""));
      return false;
    }
    if (to.party.enrolled != 0) {
      path.ends.push_back(arrival_at(side, flow, to, port));
    } else if (const auto* ruling = ingress_at_connect()) {
      path.ends.push_back(end_of(side, flow, ruling, ""));
    } else if (connect_ && !connect_->is_refused()) {
      path.ends.push_back(end_of(side, flow, nullptr, ""));
    } else {
      path.ends.push_back(end_elsewhere(side, flow));
    }
    return path.ends.back().verdict == text_of(true);
  }

  const datapath::VerdictEntry* ingress_at_connect() const {
    if (!connect_) return nullptr;
    const std::size_t at = has_egress_set() ? 1 : 0;
    return connect_->rulings.size() > at ? &connect_->rulings[at] : nullptr;
  }
  const datapath::VerdictEntry* denied_at_connect() const {
    const auto* ruling = ingress_at_connect();
    return ruling && !ruling->allowed ? ruling : nullptr;
  }

  // From whichever of its addresses of that family: all must be let in.
  AuthzReply::End arrival_at(const Side& side, const Flow& flow, const Destination& to,
                             std::uint16_t port) {
    std::optional<AuthzReply::End> allowed;
    for (const IpAddress& source : sources_for(to.address)) {
      const Decision arrival =
          judge_.arrival(to.party.enrolled, {source, kSomePort}, {to.address, port},
                         kernel_transport(), client_.shares_addresses ? client_.enrolled : 0);
      Flow from = flow;
      from.other.address = source;
      AuthzReply::End end =
          end_of(side, from, arrival.rulings.empty() ? nullptr : &arrival.rulings.front(),
                 arrival.is_refused() && arrival.rulings.empty() ? arrival.reason : "");
      if (end.verdict != text_of(true)) return end;
      if (!allowed) allowed = std::move(end);
    }
    return *std::move(allowed);
  }

  std::vector<IpAddress> sources_for(const IpAddress& to) const {
    std::vector<IpAddress> sources;
    for (const IpAddress& address : client_.addresses)
      if (address.is_v4() == to.is_v4()) sources.push_back(address);
    if (sources.empty()) sources = client_.addresses;
    return sources;
  }
  std::optional<IpAddress> source_for(const IpAddress& to) const {
    const auto sources = sources_for(to);
    return sources.empty() ? std::nullopt : std::optional(sources.front());
  }

  // --- an end

  // ruling: null where the kernel has no policy to ask, or (`refusal` is the counter) no answer.
  AuthzReply::End end_of(const Side& side, const Flow& flow, const datapath::VerdictEntry* ruling,
                         const std::string& refused_by) const {
    AuthzReply::End end;
    end.end = side.name();
    end.workload = side.own->name.to_string();
    end.policies = policies_of(snapshot_, side, flow);
    end.verdict = text_of(refused_by.empty() && (!ruling || ruling->allowed));
    if (!refused_by.empty()) {
      end.why = refused_by + ": what the kernel has no verdict for is refused";
      return end;
    }
    const PolicyRule by = ruling ? rule_of(ruling->policy) : PolicyRule{};
    end.policy = config::rule_name(by.policy, by.rule);
    end.why =
        by.policy.empty() ? why_open(side) : why_by(side, by.policy, by.rule, ruling->allowed);
    if (ruling && ruling->audit != 0) {
      const PolicyRule audit = rule_of(ruling->audit);
      end.audit = config::rule_name(audit.policy, audit.rule);
    }
    return end;
  }

  AuthzReply::End end_elsewhere(const Side& side, const Flow& flow) const {
    const Verdict verdict = asked(snapshot_, side, side.selection, flow);
    AuthzReply::End end;
    end.end = side.name();
    end.workload = side.own->name.to_string();
    end.policies = policies_of(snapshot_, side, flow);
    end.enforced = false;
    end.verdict = text_of(verdict.allowed);
    end.policy = config::rule_name(verdict.policy, verdict.rule);
    end.why = verdict.policy.empty() ? why_open(side)
                                     : why_by(side, verdict.policy, verdict.rule, verdict.allowed);
    if (verdict.audit) end.audit = config::rule_name(verdict.audit->policy, verdict.audit->rule);
    return end;
  }

  PolicyRule rule_of(std::uint32_t number) const {
    if (number == 0) return {};
    const auto found = input_.rules.find(number);
    return found == input_.rules.end() ? PolicyRule{"policy number " + std::to_string(number), -1}
                                       : found->second;
  }

  const AuthzInput& input_;
  const Snapshot& snapshot_;
  const Party& client_;
  const Transport transport_;
  datapath::Judge judge_;
  config::PolicyParts parts_;
  std::optional<Side> egress_;
  std::optional<Decision> connect_;  // of the path that is being judged
};

std::string note_of_unknown(const Party& client, const AuthzReply& reply) {
  const bool is_asked = !reply.paths.front().ends.empty();
  return "no workload or service of the mesh has this address" +
         (is_asked ? ": only the egress policies of " + client.text +
                         " were asked, not who is there and whom he lets in"
                   : "");
}

void add_notes(const AuthzInput& input, const Party& client, const Destinations& to,
               AuthzReply& reply) {
  if (!to.is_known) reply.notes.push_back(note_of_unknown(client, reply));
  if (to.is_http)
    reply.notes.push_back(
        "an HTTP service: this is the L4 answer, not the last word. meshproxy decides for each "
        "request where it goes, and HTTP rules (routes, faults) may answer it otherwise");
  bool elsewhere = false;
  std::set<std::string> asked;
  for (const auto& path : reply.paths)
    for (const auto& end : path.ends) {
      elsewhere = elsewhere || !end.enforced;
      for (const auto& policy : end.policies) asked.insert(policy.policy);
    }
  if (elsewhere)
    reply.notes.push_back(
        "an end that is not on this node is judged by the configuration; its own node enforces it");
  if (client.workload && client.enrolled == 0 && !client.workload->netns.empty())
    reply.notes.push_back(client.text + " is not enrolled: nothing polices what it sends");
  for (const config::Problem& problem : input.problems) {
    const auto& key = problem.object;
    if (asked.contains(key.kind + " " + config::ObjectName{key.ns, key.name}.to_string()))
      reply.notes.push_back(problem.to_string());
  }
}

}  // namespace

Result<AuthzReply> check_authz(const AuthzInput& input, const AuthzQuestion& question) {
  const Transport transport = question.udp ? Transport::kUdp : Transport::kTcp;
  MESH_TRY(const Party client, find_client(input.known, question.from, question.ns));
  MESH_TRY(const Destinations to,
           find_destinations(input.known, client, question.to, question.ns, transport));
  if (to.all.empty())
    return Error{Errc::refused, to.text +
                                    " has no endpoint: connections to it are refused, whatever "
                                    "policies say"};
  AuthzReply reply;
  reply.from = (client.workload ? "workload " : "address ") + client.text;
  reply.to = to.text;
  reply.destination_known = to.is_known;
  reply.transport = question.udp ? "UDP" : "TCP";
  std::size_t allowed = 0;
  for (const Destination& destination : to.all)
    for (AuthzReply::Path& path : Checker(input, client, transport).paths_to(destination)) {
      allowed += path.verdict == text_of(true) ? 1 : 0;
      reply.paths.push_back(std::move(path));
    }
  reply.verdict = allowed == 0 ? "DENY" : allowed == reply.paths.size() ? "ALLOW" : "PARTLY";
  add_notes(input, client, to, reply);
  return reply;
}

}  // namespace mesh::control
