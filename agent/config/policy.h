// Policies, and the verdict on a flow: who may open what to whom.
//
// Values and pure functions of them, so any thread may ask. What the kernel enforces is computed
// with the same functions. Semantics: security.istio.io AuthorizationPolicy, networking.k8s.io
// NetworkPolicy.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/address.h"
#include "config/values.h"

namespace mesh::config {

struct Snapshot;
struct Workload;

// Values of a policy are exact, "abc*" (kPrefix), "*abc" (kSuffix) or "*" (kPresent).
struct SourceMatch {  // AND over the non-empty lists; OR inside one
  std::vector<StringMatch> principals, not_principals;
  std::vector<StringMatch> namespaces, not_namespaces;
  std::vector<std::string> service_accounts, not_service_accounts;  // "ns/sa"
  std::vector<IpBlock> ip_blocks, not_ip_blocks;
  friend bool operator==(const SourceMatch&, const SourceMatch&) = default;
};

using PortMatch =
    std::pair<std::vector<std::uint16_t>, std::vector<std::uint16_t>>;  // ports, notPorts

struct L4Rule {
  std::vector<SourceMatch> from;     // any of them; empty: any source
  std::vector<PortMatch> to;         // any of them; empty: any port
  std::vector<SourceMatch> when;     // and all of these
  std::vector<PortMatch> when_port;  // and all of these
  bool never = false;  // an ALLOW rule that needs HTTP, of a policy on TCP ports alone: no match
  friend bool operator==(const L4Rule&, const L4Rule&) = default;
};

struct AuthorizationPolicy {
  enum class Action : std::uint8_t { kAllow, kDeny, kAudit };
  ObjectName name;
  Action action = Action::kAllow;
  bool everywhere = false;  // in the root namespace: selects in all namespaces
  Labels selector;          // empty: every workload of the namespace
  std::vector<L4Rule> rules;
  // The object has an error: it denies what it selects, or, as AUDIT, is left alone.
  bool refused = false;

  bool selects(const Workload& workload) const;
  friend bool operator==(const AuthorizationPolicy&, const AuthorizationPolicy&) = default;
};
using AuthorizationPolicyPtr = std::shared_ptr<const AuthorizationPolicy>;

struct LabelRequirement {
  enum class Operator : std::uint8_t { kIn, kNotIn, kExists, kDoesNotExist };
  std::string key;
  Operator op = Operator::kExists;
  std::vector<std::string> values;

  bool holds(const Labels& labels) const;  // NotIn: also where the label is missing
  friend bool operator==(const LabelRequirement&, const LabelRequirement&) = default;
};

struct LabelSelector {  // AND; empty: everything
  Labels labels;
  std::vector<LabelRequirement> requirements;

  bool matches(const Labels& labels) const;
  friend bool operator==(const LabelSelector&, const LabelSelector&) = default;
};

// Which every Namespace has, also without an object.
inline constexpr std::string_view kNamespaceNameLabel = "kubernetes.io/metadata.name";

struct NetworkPeer {
  // Workloads of the policy's own namespace, where `namespaces` is not there.
  std::optional<LabelSelector> pods, namespaces;
  std::optional<IpBlock> block;  // instead of these
  std::vector<IpBlock> except;
  friend bool operator==(const NetworkPeer&, const NetworkPeer&) = default;
};

struct NetworkPort {
  Transport transport = Transport::kTcp;
  std::string name;                        // of one of the server's Workload::ports; or
  std::uint16_t first = 1, last = 0xffff;  // a range
  friend bool operator==(const NetworkPort&, const NetworkPort&) = default;
};

struct NetworkRule {
  std::vector<NetworkPeer> peers;  // any of them; empty: anybody
  std::vector<NetworkPort> ports;  // any of them; empty: any port of any transport
  friend bool operator==(const NetworkRule&, const NetworkRule&) = default;
};

struct NetworkPolicy {
  ObjectName name;
  LabelSelector selector;                // in its own namespace
  bool ingress = false, egress = false;  // the directions that it speaks of
  std::vector<NetworkRule> ingress_rules, egress_rules;
  bool refused = false;  // the object has an error: it denies what it selects in its directions

  bool selects(const Workload& workload) const;
  friend bool operator==(const NetworkPolicy&, const NetworkPolicy&) = default;
};
using NetworkPolicyPtr = std::shared_ptr<const NetworkPolicy>;

// The policies that select a workload in one direction, oldest first. Workloads with the same ones
// are treated alike, but for what ports they name.
struct Selection {
  std::vector<const AuthorizationPolicy*> authorization;  // ingress only
  std::vector<const NetworkPolicy*> network;
  bool strict = false;  // the workload; ingress only
  friend auto operator<=>(const Selection&, const Selection&) = default;
};

// One end of a flow.
struct Peer {
  const Workload* workload = nullptr;  // null: a stranger, known by its address alone
  std::optional<IpAddress> address;    // none: not known
};

// A policy as people read it everywhere: "AuthorizationPolicy ns/name", "NetworkPolicy ns/name".
std::string display_name(const AuthorizationPolicy& policy);
std::string display_name(const NetworkPolicy& policy);
// With a rule of it, counted from 0: "NetworkPolicy ns/name[0]"; of its default (-1): no brackets.
std::string rule_name(const std::string& policy, int rule);

inline constexpr std::string_view kStrictDefault = "default of strict workloads";

struct Verdict {
  bool allowed = true;
  // Who says so: its display_name(), kStrictDefault; empty when nothing selects either end.
  std::string policy;
  int rule = -1;  // index in the policy; -1: its default (nothing matched), or a refused policy
  struct Audit {
    std::string policy;
    int rule = 0;
    friend bool operator==(const Audit&, const Audit&) = default;
  };
  std::optional<Audit> audit;  // the AUDIT policy that matched; it changes nothing
};

// The verdict on a connection, or a datagram, of `client` to port `port` of `server`: the client's
// egress and the server's ingress must allow it; the former is asked first. A workload may always
// talk to itself.
Verdict authorize(const Snapshot& snapshot, const Peer& client, const Peer& server,
                  Transport transport, std::uint16_t port);

// What the server's policies say: AuthorizationPolicies and NetworkPolicies must both allow it.
// AuthorizationPolicy: refused policies first, then DENY, then ALLOW as Istio combines them; of TCP
// only, but for strict workloads. A stranger is in no list of principals, namespaces or accounts,
// and so outside of every not... list. Where the client's address is not known, what asks for it
// matches in a DENY policy and does not in an ALLOW policy. NetworkPolicy: where any selects the
// server, a rule of one of them must match; a block matches by address, strangers and workloads
// alike. This node's own addresses are let in. A strict workload that neither an ALLOW policy nor a
// NetworkPolicy selects lets nobody in.
Verdict authorize_ingress(const Snapshot& snapshot, const Peer& client, const Workload& server,
                          Transport transport, std::uint16_t port);
// What the client's NetworkPolicies say. Named ports are those of the server.
Verdict authorize_egress(const Snapshot& snapshot, const Workload& client, const Peer& server,
                         Transport transport, std::uint16_t port);

// The same in two steps, for many flows of one workload. The selection lives in the snapshot.
Selection ingress_selection(const Snapshot& snapshot, const Workload& server);
Selection egress_selection(const Snapshot& snapshot, const Workload& client);
Verdict authorize_ingress(const Snapshot& snapshot, const Selection& selection, const Peer& client,
                          const Workload& server, Transport transport, std::uint16_t port);
Verdict authorize_egress(const Snapshot& snapshot, const Selection& selection,
                         const Workload& client, const Peer& server, Transport transport,
                         std::uint16_t port);

// The TCP verdict for a connection to that address of `server`, from whichever of its own the
// client may use: those of the same family, and all must be allowed. With none (the gateway): not
// known.
Verdict authorize(const Snapshot& snapshot, const Workload& client, const Workload& server,
                  const SocketAddress& to);

}  // namespace mesh::config
