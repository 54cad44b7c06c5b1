// Policies, and the verdict on a flow: who may open what to whom.
//
// Values and pure functions of them, so any thread may ask. What the kernel enforces is computed
// with the same functions. Semantics: security.istio.io AuthorizationPolicy.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
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

// One end of a flow.
struct Peer {
  const Workload* workload = nullptr;  // null: a stranger, known by its address alone
  std::optional<IpAddress> address;    // none: not known
};

struct Verdict {
  bool allowed = true;
  // Who says so: "ns/name" of an AuthorizationPolicy; empty when nothing selects either end.
  std::string policy;
  int rule = -1;  // index in the policy; -1: its default (nothing matched), or a refused policy
  struct Audit {
    std::string policy;  // "ns/name"
    int rule = 0;
    friend bool operator==(const Audit&, const Audit&) = default;
  };
  std::optional<Audit> audit;  // the AUDIT policy that matched; it changes nothing
};

// The verdict on a connection, or a datagram, of `client` to port `port` of `server`: both of the
// functions below. A workload may always talk to itself.
Verdict authorize(const Snapshot& snapshot, const Peer& client, const Peer& server,
                  Transport transport, std::uint16_t port);
// What the server's policies say: refused policies first, then DENY, then ALLOW as Istio combines
// them. AuthorizationPolicies speak of TCP only. A stranger is in no list of principals, namespaces
// or accounts, and so outside of every not... list. Where the client's address is not known, what
// asks for it matches in a DENY policy and does not in an ALLOW policy.
Verdict authorize_ingress(const Snapshot& snapshot, const Peer& client, const Workload& server,
                          Transport transport, std::uint16_t port);
// The TCP verdict for a connection to that address of `server`, from whichever of its own the
// client may use: those of the same family, and all must be allowed. With none (the gateway): not
// known.
Verdict authorize(const Snapshot& snapshot, const Workload& client, const Workload& server,
                  const SocketAddress& to);

}  // namespace mesh::config
