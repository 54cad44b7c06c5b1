// The messages between meshd and meshctl: HTTP/1.1 with JSON bodies over the Unix socket
// <run dir>/meshd.sock. Values and their JSON form; who sends them is control's and cli's matter.
//
//   GET  /v1/version                                    -> Version
//   GET  /v1/status                                     -> Status
//   GET  /v1/objects?kind=&namespace=&name=             -> ObjectList (empty list: none matches)
//   GET  /v1/workloads[?wait=<ns>/<name>&seconds=N]     -> WorkloadList
//   GET  /v1/dump/{routes,clusters,endpoints,policies,dns,flows}           -> Dump
//   GET  /v1/authz?from=&to=&namespace=&udp=            -> AuthzReply (404: no such name)
//   GET  /v1/tap?source=&destination=&status=           -> chunked, one TapEvent a line, no end
//   GET  /v1/fastpath                                   -> FastPathStatus
//   POST /v1/fastpath  FastPathRequest                  -> FastPathStatus, tested
//   POST /v1/apply     ApplyRequest                     -> ApplyReply
//   POST /v1/validate  ApplyRequest                     -> ApplyReply, nothing is stored
//   POST /v1/delete    DeleteRequest                    -> ApplyReply
//
// Every other status than 200 carries an ErrorReply. 200 for apply and delete whatever the outcomes
// of the objects: they are in the reply. `wait` answers as soon as that workload is enrolled or
// failed, at the latest after `seconds` (default 10, at most 60), with the list of that workload
// alone. Unknown members are ignored, missing ones take the defaults below, a member of the wrong
// type is an error that names it.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace mesh::api {

inline constexpr int kApiVersion = 1;
inline constexpr std::string_view kSocketName = "meshd.sock";   // below the run directory
inline constexpr std::size_t kMaxBody = std::size_t{16} << 20;  // of a request and of a reply
inline constexpr std::string_view kDefaultRunDir = "/run/undermesh";
inline constexpr std::string_view kDefaultStateDir = "/var/lib/undermesh";

struct Version {
  std::string version;  // "0.1.0"
  int api = kApiVersion;
  std::uint64_t pid = 0;
};

// ---- Objects -----------------------------------------------------------------------------------

struct ObjectRef {
  std::string kind;
  std::string ns;  // JSON: "namespace"
  std::string name;
  friend auto operator<=>(const ObjectRef&, const ObjectRef&) = default;
};

struct StoredObject {
  boost::json::object tree;  // as stored, with uid, creationTimestamp, generation
  std::string file;          // where the store keeps it
  std::string state =
      "accepted";  // "accepted", "refused", "previous" (a refused file; the last good version acts)
  std::vector<std::string> problems;
};
struct ObjectList {
  std::vector<StoredObject> objects;
};

struct ApplyObject {
  boost::json::object tree;
  std::string file;                  // as the user named it; for messages
  std::map<std::string, int> lines;  // config::Object::lines
};
struct ApplyRequest {
  std::vector<ApplyObject> objects;
  bool dry_run = false;
};
struct DeleteRequest {
  std::vector<ObjectRef> objects;
};
struct ObjectResult {
  ObjectRef object;         // JSON: its members, flat
  std::string api_version;  // JSON: "apiVersion"; of the object applied or deleted
  std::string
      outcome;  // "created", "configured", "unchanged", "refused", "deleted", "not_found", "valid"
  std::vector<std::string>
      problems;  // config::Problem::to_string(): errors of a refusal, else warnings
};
struct ApplyReply {
  std::vector<ObjectResult> results;  // in the order of the request
  std::uint64_t version = 0;          // of the snapshot that has them (0: dry run)
  std::string not_in_force;  // JSON: "notInForce"; why what is stored does not act; "": it does
};

// ---- Status ------------------------------------------------------------------------------------

struct WorkloadStatus {
  std::string ns;  // JSON: "namespace"
  std::string name;
  std::uint32_t id = 0;
  std::vector<std::string> addresses;
  // "enrolled", "pending", "failed"; "disabled", "remote": not to be enrolled here
  std::string state = "pending";
  std::string reason;
  std::string service_account;  // JSON: "serviceAccount"
  std::string cgroup;
  std::string netns;
  bool sandbox = false;
  // Of an enrolled one, by the last audit: "yes", "no" (see reason), "" (not known yet).
  std::string captured;
};
struct WorkloadList {
  std::vector<WorkloadStatus> workloads;
};

struct ProgramStatus {
  bool connected = true;
  std::uint64_t pid = 0;
  std::string version;
  std::uint64_t up_seconds = 0;
  std::uint64_t acked_version = 0;  // meshproxy: the snapshot version it acknowledged
  std::string detail;               // why it is not connected, or what is wrong with it
};

// The same-node fast path.
struct FastPathStatus {
  bool on = false;
  // Of off: "default", "operator", "testing", "test", "kernel", "full". Where it is on: why it
  // should not be, and cannot be detached.
  std::string cause = "default";
  std::string reason;
  friend bool operator==(const FastPathStatus&, const FastPathStatus&) = default;
};
struct FastPathRequest {
  bool on = false;
};

struct Status {
  std::string state = "starting";                 // "ready", "degraded", "starting"
  std::vector<std::string> reasons;               // of degraded and starting, each with its remedy
  std::map<std::string, ProgramStatus> programs;  // "meshd", "meshhold", "meshproxy"
  struct SnapshotStatus {
    std::uint64_t version = 0;
    std::uint64_t objects = 0;
    std::vector<std::string> problems;
  } snapshot;
  std::vector<WorkloadStatus> workloads;
  std::vector<std::string> notes;               // what is not covered, said every time
  std::map<std::string, std::uint64_t> kernel;  // counters by name
  FastPathStatus fast_path;                     // JSON: "fastPath"
  // What audits found since meshd began; `last`: "workload ns/name: its hook connect4", or empty.
  struct AuditStatus {
    std::uint64_t differences = 0;
    std::uint64_t repairs = 0;
    std::string last;
    bool is_last_repaired = false;  // JSON: "last_repaired"
    std::uint64_t last_seconds_ago = 0;
    friend bool operator==(const AuditStatus&, const AuditStatus&) = default;
  } audit;
  struct PolicyCount {
    std::string policy;  // "AuthorizationPolicy ns/name"
    int rule = -1;
    std::uint64_t denied = 0;
    std::uint64_t allowed = 0;
    std::uint64_t audited = 0;  // of an AUDIT policy: connections that matched
  };
  std::vector<PolicyCount> policies;
};

// ---- Looking inside ----------------------------------------------------------------------------

// A table whose columns the server names: `columns` is what a terminal shows of each row, in order;
// a row may have more members.
struct Dump {
  std::string what;
  std::uint64_t version = 0;
  std::vector<std::string> columns;
  std::vector<boost::json::object> rows;
  std::vector<std::string> notes;  // of the whole table
};

// Whether somebody may connect to somewhere: what the kernel decides, and why.
struct AuthzReply {
  // A policy that was asked at an end, and what it says of this connection.
  struct Policy {
    std::string policy, action, outcome;  // "AuthorizationPolicy ns/name", "DENY", "rule 0 matches"
  };
  struct End {
    std::string end;       // "egress" (of the client) or "ingress" (of the server)
    std::string workload;  // "ns/name", whose policies are asked
    std::string verdict;   // "ALLOW" or "DENY"
    std::string policy;    // what decided, with its rule: "NetworkPolicy ns/name[0]"; "": none did
    std::string why;
    std::string audit;     // the AUDIT policy and rule that matched
    bool enforced = true;  // by this node; else what the configuration says to another
    std::vector<Policy> policies;
  };
  struct Path {            // to one endpoint, or to a range of ports that are treated alike
    std::string workload;  // "ns/name"; "" where no workload has the address
    std::string address;
    std::uint16_t first_port = 0, last_port = 0;
    bool proxied = false;  // HTTP: meshproxy goes there on behalf of the client
    std::string verdict;   // "ALLOW" or "DENY"
    std::string why;       // where no end says it
    std::vector<End> ends;
  };
  std::string verdict;  // "ALLOW", "DENY", or "PARTLY": of some paths
  std::string from, to;
  bool destination_known = true;  // false: no workload or service of the mesh has the address
  std::string transport;          // "TCP" or "UDP"
  std::uint64_t version = 0;
  std::vector<Path> paths;
  std::vector<std::string> notes;
};

struct TapEvent {
  std::string time;         // RFC 3339 with milliseconds, UTC, of the request's start
  std::string source;       // "ns/name" of the client workload, or the gateway
  std::string destination;  // host of the service
  std::string route;        // name of the route, "" when the rule has none
  std::string cluster;
  std::string endpoint;  // "10.77.0.5:9080", "" when none was reached
  std::string workload;  // "ns/name" behind the endpoint, "" when unknown
  std::string method;
  std::string path;
  std::uint32_t status = 0;  // 0: the client went away before a response
  std::string flags;         // "UO", "-" when none
  double duration_ms = 0;
  std::string request_id;
};

struct ErrorReply {
  std::string code;  // mesh::to_string(Errc)
  std::string message;
};
int http_status(Errc code);               // 400, 404, 503, 504, 403, 409, 507, 500
Error to_error(const ErrorReply& reply);  // the Errc by its name, else internal

// ---- JSON --------------------------------------------------------------------------------------

boost::json::object to_json(const Version&);
boost::json::object to_json(const ObjectRef&);
boost::json::object to_json(const ObjectList&);
boost::json::object to_json(const ApplyRequest&);
boost::json::object to_json(const DeleteRequest&);
boost::json::object to_json(const ApplyReply&);
boost::json::object to_json(const WorkloadStatus&);
boost::json::object to_json(const WorkloadList&);
boost::json::object to_json(const FastPathStatus&);
boost::json::object to_json(const FastPathRequest&);
boost::json::object to_json(const Status&);
boost::json::object to_json(const Dump&);
boost::json::object to_json(const AuthzReply&);
boost::json::object to_json(const TapEvent&);
boost::json::object to_json(const ErrorReply&);

// from_json<ApplyRequest>(value); defined for every type of to_json above.
template <class T>
Result<T> from_json(const boost::json::value& value);

// The text of a body to a message in one step: a syntax error names its place.
Result<boost::json::value> parse_body(std::string_view text);
template <class T>
Result<T> from_text(std::string_view text) {
  MESH_TRY(auto value, parse_body(text));
  return from_json<T>(value);
}

// "a/b c" -> "a%2Fb%20c", and the parameters of "/v1/x?a=1&b=%2F" ("+" is a space; the last of a
// name wins).
std::string encode_query(std::string_view text);
struct Target {
  std::string path;
  std::map<std::string, std::string> query;
};
Result<Target> parse_target(std::string_view target);

}  // namespace mesh::api
