#include "api/messages.h"

#include <array>
#include <limits>
#include <type_traits>
#include <utility>

namespace mesh::api {
namespace {

namespace json = boost::json;

// ---- Reading: each read() fills `out` or leaves the first problem in the context.
// -----------------

struct Context {
  std::string path;
  std::optional<Error> problem;

  void wrong(std::string_view wanted) {
    if (problem) return;
    problem = Error{Errc::invalid_argument, (path.empty() ? std::string("body") : path) +
                                                ": must be " + std::string(wanted)};
  }
};

void read(const json::value& value, std::string& out, Context& at) {
  if (const auto* text = value.if_string())
    out.assign(text->data(), text->size());
  else
    at.wrong("a string");
}

void read(const json::value& value, bool& out, Context& at) {
  if (const auto* flag = value.if_bool())
    out = *flag;
  else
    at.wrong("true or false");
}

void read(const json::value& value, double& out, Context& at) {
  if (!value.is_number()) return at.wrong("a number");
  out = value.to_number<double>();
}

template <class T>
  requires std::is_integral_v<T>
void read(const json::value& value, T& out, Context& at) {
  boost::system::error_code ec;
  T number = value.is_number() ? value.to_number<T>(ec) : T{};
  if (!value.is_number() || ec) return at.wrong("a whole number in range");
  out = number;
}

void read(const json::value& value, json::object& out, Context& at) {
  if (const auto* object = value.if_object())
    out = *object;
  else
    at.wrong("an object");
}

// Reads the members of one object, by name.
class Members {
 public:
  Members(const json::value& value, Context& at) : object_(value.if_object()), at_(at) {
    if (!object_) at_.wrong("an object");
  }

  template <class T>
  Members& operator()(std::string_view name, T& out) {
    if (!object_) return *this;
    if (const json::value* value = object_->if_contains(name)) {
      std::size_t length = at_.path.size();
      if (length > 0) at_.path += '.';
      at_.path += name;
      read(*value, out, at_);
      if (!at_.problem) at_.path.resize(length);
    }
    return *this;
  }

 private:
  const json::object* object_;
  Context& at_;
};

template <class T>
void read(const json::value& value, std::vector<T>& out, Context& at);
template <class T>
void read(const json::value& value, std::map<std::string, T>& out, Context& at);

void read(const json::value& value, Version& out, Context& at) {
  Members(value, at)("version", out.version)("api", out.api)("pid", out.pid);
}

void read(const json::value& value, ObjectRef& out, Context& at) {
  Members(value, at)("kind", out.kind)("namespace", out.ns)("name", out.name);
}

void read(const json::value& value, StoredObject& out, Context& at) {
  Members(value, at)("tree", out.tree)("file", out.file)("state", out.state)("problems",
                                                                             out.problems);
}

void read(const json::value& value, ObjectList& out, Context& at) {
  Members(value, at)("objects", out.objects);
}

void read(const json::value& value, ApplyObject& out, Context& at) {
  Members(value, at)("tree", out.tree)("file", out.file)("lines", out.lines);
}

void read(const json::value& value, ApplyRequest& out, Context& at) {
  Members(value, at)("objects", out.objects)("dry_run", out.dry_run);
}

void read(const json::value& value, DeleteRequest& out, Context& at) {
  Members(value, at)("objects", out.objects);
}

void read(const json::value& value, ObjectResult& out, Context& at) {
  read(value, out.object, at);
  Members(value, at)("apiVersion", out.api_version)("outcome", out.outcome)("problems",
                                                                            out.problems);
}

void read(const json::value& value, ApplyReply& out, Context& at) {
  Members(value, at)("results", out.results)("version", out.version)("notInForce",
                                                                     out.not_in_force);
}

void read(const json::value& value, WorkloadStatus& out, Context& at) {
  Members(value, at)("namespace", out.ns)("name", out.name)("id", out.id)(
      "addresses", out.addresses)("state", out.state)("reason", out.reason)(
      "serviceAccount", out.service_account)("cgroup", out.cgroup)("netns", out.netns)(
      "sandbox", out.sandbox)("captured", out.captured);
}

void read(const json::value& value, WorkloadList& out, Context& at) {
  Members(value, at)("workloads", out.workloads);
}

void read(const json::value& value, ProgramStatus& out, Context& at) {
  Members(value, at)("connected", out.connected)("pid", out.pid)("version", out.version)(
      "up_seconds", out.up_seconds)("acked_version", out.acked_version)("detail", out.detail);
}

void read(const json::value& value, Status::SnapshotStatus& out, Context& at) {
  Members(value, at)("version", out.version)("objects", out.objects)("problems", out.problems);
}

void read(const json::value& value, Status::PolicyCount& out, Context& at) {
  Members(value, at)("policy", out.policy)("rule", out.rule)("denied", out.denied)(
      "allowed", out.allowed)("audited", out.audited);
}

void read(const json::value& value, FastPathStatus& out, Context& at) {
  Members(value, at)("on", out.on)("cause", out.cause)("reason", out.reason);
}

void read(const json::value& value, FastPathRequest& out, Context& at) {
  Members(value, at)("on", out.on);
}

void read(const json::value& value, Status::AuditStatus& out, Context& at) {
  Members(value, at)("differences", out.differences)("repairs", out.repairs)("last", out.last)(
      "last_repaired", out.is_last_repaired)("last_seconds_ago", out.last_seconds_ago);
}

void read(const json::value& value, Status& out, Context& at) {
  Members(value, at)("state", out.state)("reasons", out.reasons)("programs", out.programs)(
      "snapshot", out.snapshot)("workloads", out.workloads)("notes", out.notes)(
      "kernel", out.kernel)("fastPath", out.fast_path)("audit", out.audit)("policies",
                                                                           out.policies);
}

void read(const json::value& value, AuthzReply::Policy& out, Context& at) {
  Members(value, at)("policy", out.policy)("action", out.action)("outcome", out.outcome);
}

void read(const json::value& value, AuthzReply::End& out, Context& at) {
  Members(value, at)("end", out.end)("workload", out.workload)("verdict", out.verdict)(
      "policy", out.policy)("why", out.why)("audit", out.audit)("enforced", out.enforced)(
      "policies", out.policies);
}

void read(const json::value& value, AuthzReply::Path& out, Context& at) {
  Members(value, at)("workload", out.workload)("address", out.address)(
      "first_port", out.first_port)("last_port", out.last_port)("proxied", out.proxied)(
      "verdict", out.verdict)("why", out.why)("ends", out.ends);
}

void read(const json::value& value, AuthzReply& out, Context& at) {
  Members(value, at)("verdict", out.verdict)("from", out.from)("to", out.to)(
      "destination_known", out.destination_known)("transport", out.transport)(
      "version", out.version)("paths", out.paths)("notes", out.notes);
}

void read(const json::value& value, Dump& out, Context& at) {
  Members(value, at)("what", out.what)("version", out.version)("columns", out.columns)(
      "rows", out.rows)("notes", out.notes);
}

void read(const json::value& value, TapEvent& out, Context& at) {
  Members(value, at)("time", out.time)("source", out.source)("destination", out.destination)(
      "route", out.route)("cluster", out.cluster)("endpoint", out.endpoint)(
      "workload", out.workload)("method", out.method)("path", out.path)("status", out.status)(
      "flags", out.flags)("duration_ms", out.duration_ms)("request_id", out.request_id);
}

void read(const json::value& value, ErrorReply& out, Context& at) {
  const json::object* object = value.if_object();
  const json::value* error = object ? object->if_contains("error") : nullptr;
  if (!error) return at.wrong("an object with a member 'error'");
  Members(*error, at)("code", out.code)("message", out.message);
}

template <class T>
void read(const json::value& value, std::vector<T>& out, Context& at) {
  const json::array* array = value.if_array();
  if (!array) return at.wrong("a list");
  out.clear();
  out.reserve(array->size());
  std::string path = at.path;
  for (const json::value& item : *array) {
    at.path = path + "[" + std::to_string(out.size()) + "]";
    read(item, out.emplace_back(), at);
    if (at.problem) return;
  }
  at.path = path;
}

template <class T>
void read(const json::value& value, std::map<std::string, T>& out, Context& at) {
  const json::object* object = value.if_object();
  if (!object) return at.wrong("an object");
  out.clear();
  std::string path = at.path;
  for (const auto& [name, item] : *object) {
    at.path = path + "[" + std::string(name) + "]";
    read(item, out[std::string(name)], at);
    if (at.problem) return;
  }
  at.path = path;
}

// ---- Writing ------------------------------------------------------------------------------------

json::array list_of(const std::vector<std::string>& texts) {
  return json::array(texts.begin(), texts.end());
}

template <class T, class Write>
json::array list_of(const std::vector<T>& items, Write write) {
  json::array out;
  out.reserve(items.size());
  for (const T& item : items) out.push_back(write(item));
  return out;
}

template <class T>
json::object object_of(const std::map<std::string, T>& map) {
  json::object out;
  for (const auto& [name, value] : map) out[name] = value;
  return out;
}

constexpr std::array kErrcs = {Errc::invalid_argument, Errc::not_found,  Errc::unavailable,
                               Errc::timed_out,        Errc::refused,    Errc::reset,
                               Errc::exhausted,        Errc::permission, Errc::internal};

bool is_unreserved(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_' || c == '~';
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Result<std::string> decode(std::string_view text, bool plus_is_space) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      out += ' ';
    } else if (text[i] != '%') {
      out += text[i];
    } else {
      int high = i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
      int low = i + 2 < text.size() ? hex_digit(text[i + 2]) : -1;
      if (high < 0 || low < 0)
        return Error{Errc::invalid_argument, "bad percent-encoding in '" + std::string(text) + "'"};
      out += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return out;
}

}  // namespace

json::object to_json(const Version& m) {
  return {{"version", m.version}, {"api", m.api}, {"pid", m.pid}};
}

json::object to_json(const ObjectRef& m) {
  return {{"kind", m.kind}, {"namespace", m.ns}, {"name", m.name}};
}

json::object to_json(const ObjectList& m) {
  return {{"objects", list_of(m.objects, [](const StoredObject& o) {
             return json::object{{"tree", o.tree},
                                 {"file", o.file},
                                 {"state", o.state},
                                 {"problems", list_of(o.problems)}};
           })}};
}

json::object to_json(const ApplyRequest& m) {
  return {{"objects", list_of(m.objects,
                              [](const ApplyObject& o) {
                                return json::object{{"tree", o.tree},
                                                    {"file", o.file},
                                                    {"lines", object_of(o.lines)}};
                              })},
          {"dry_run", m.dry_run}};
}

json::object to_json(const DeleteRequest& m) {
  return {{"objects", list_of(m.objects, [](const ObjectRef& o) { return to_json(o); })}};
}

json::object to_json(const ApplyReply& m) {
  return {{"results", list_of(m.results,
                              [](const ObjectResult& r) {
                                json::object out = to_json(r.object);
                                out["apiVersion"] = r.api_version;
                                out["outcome"] = r.outcome;
                                out["problems"] = list_of(r.problems);
                                return out;
                              })},
          {"version", m.version},
          {"notInForce", m.not_in_force}};
}

json::object to_json(const WorkloadStatus& m) {
  return {{"namespace", m.ns},
          {"name", m.name},
          {"id", m.id},
          {"addresses", list_of(m.addresses)},
          {"state", m.state},
          {"reason", m.reason},
          {"serviceAccount", m.service_account},
          {"cgroup", m.cgroup},
          {"netns", m.netns},
          {"sandbox", m.sandbox},
          {"captured", m.captured}};
}

json::object to_json(const WorkloadList& m) {
  return {{"workloads", list_of(m.workloads, [](const auto& w) { return to_json(w); })}};
}

json::object to_json(const FastPathStatus& m) {
  return {{"on", m.on}, {"cause", m.cause}, {"reason", m.reason}};
}

json::object to_json(const FastPathRequest& m) { return {{"on", m.on}}; }

json::object to_json(const Status& m) {
  json::object programs;
  for (const auto& [name, p] : m.programs)
    programs[name] = {{"connected", p.connected},
                      {"pid", p.pid},
                      {"version", p.version},
                      {"up_seconds", p.up_seconds},
                      {"acked_version", p.acked_version},
                      {"detail", p.detail}};
  return {{"state", m.state},
          {"reasons", list_of(m.reasons)},
          {"programs", programs},
          {"snapshot",
           {{"version", m.snapshot.version},
            {"objects", m.snapshot.objects},
            {"problems", list_of(m.snapshot.problems)}}},
          {"workloads", list_of(m.workloads, [](const auto& w) { return to_json(w); })},
          {"notes", list_of(m.notes)},
          {"kernel", object_of(m.kernel)},
          {"fastPath", to_json(m.fast_path)},
          {"audit",
           {{"differences", m.audit.differences},
            {"repairs", m.audit.repairs},
            {"last", m.audit.last},
            {"last_repaired", m.audit.is_last_repaired},
            {"last_seconds_ago", m.audit.last_seconds_ago}}},
          {"policies", list_of(m.policies, [](const Status::PolicyCount& p) {
             return json::object{{"policy", p.policy},
                                 {"rule", p.rule},
                                 {"denied", p.denied},
                                 {"allowed", p.allowed},
                                 {"audited", p.audited}};
           })}};
}

namespace {

json::object json_of(const AuthzReply::Policy& p) {
  return {{"policy", p.policy}, {"action", p.action}, {"outcome", p.outcome}};
}

json::object json_of(const AuthzReply::End& e) {
  return {{"end", e.end},
          {"workload", e.workload},
          {"verdict", e.verdict},
          {"policy", e.policy},
          {"why", e.why},
          {"audit", e.audit},
          {"enforced", e.enforced},
          {"policies", list_of(e.policies, [](const auto& p) { return json_of(p); })}};
}

json::object json_of(const AuthzReply::Path& p) {
  return {{"workload", p.workload},
          {"address", p.address},
          {"first_port", p.first_port},
          {"last_port", p.last_port},
          {"proxied", p.proxied},
          {"verdict", p.verdict},
          {"why", p.why},
          {"ends", list_of(p.ends, [](const auto& e) { return json_of(e); })}};
}

}  // namespace

json::object to_json(const AuthzReply& m) {
  return {{"verdict", m.verdict},
          {"from", m.from},
          {"to", m.to},
          {"destination_known", m.destination_known},
          {"transport", m.transport},
          {"version", m.version},
          {"paths", list_of(m.paths, [](const auto& p) { return json_of(p); })},
          {"notes", list_of(m.notes)}};
}

json::object to_json(const Dump& m) {
  return {{"what", m.what},
          {"version", m.version},
          {"columns", list_of(m.columns)},
          {"rows", list_of(m.rows, [](const json::object& row) { return row; })},
          {"notes", list_of(m.notes)}};
}

json::object to_json(const TapEvent& m) {
  return {{"time", m.time},
          {"source", m.source},
          {"destination", m.destination},
          {"route", m.route},
          {"cluster", m.cluster},
          {"endpoint", m.endpoint},
          {"workload", m.workload},
          {"method", m.method},
          {"path", m.path},
          {"status", m.status},
          {"flags", m.flags},
          {"duration_ms", m.duration_ms},
          {"request_id", m.request_id}};
}

json::object to_json(const ErrorReply& m) {
  return {{"error", {{"code", m.code}, {"message", m.message}}}};
}

template <class T>
Result<T> from_json(const json::value& value) {
  T out;
  Context at;
  read(value, out, at);
  if (at.problem) return *std::move(at.problem);
  return out;
}

template Result<Version> from_json(const json::value&);
template Result<ObjectRef> from_json(const json::value&);
template Result<ObjectList> from_json(const json::value&);
template Result<ApplyRequest> from_json(const json::value&);
template Result<DeleteRequest> from_json(const json::value&);
template Result<ApplyReply> from_json(const json::value&);
template Result<WorkloadStatus> from_json(const json::value&);
template Result<WorkloadList> from_json(const json::value&);
template Result<FastPathStatus> from_json(const json::value&);
template Result<FastPathRequest> from_json(const json::value&);
template Result<Status> from_json(const json::value&);
template Result<AuthzReply> from_json(const json::value&);
template Result<Dump> from_json(const json::value&);
template Result<TapEvent> from_json(const json::value&);
template Result<ErrorReply> from_json(const json::value&);

Result<json::value> parse_body(std::string_view text) {
  boost::system::error_code ec;
  json::parse_options options;
  options.max_depth = 64;
  json::stream_parser parser({}, options);
  std::size_t used = parser.write_some({text.data(), text.size()}, ec);
  if (!ec && used == text.size()) parser.finish(ec);
  if (ec || used != text.size())
    return Error{Errc::invalid_argument, "body is not JSON at byte " + std::to_string(used) + ": " +
                                             (ec ? ec.message() : "text after the value")};
  return parser.release();
}

int http_status(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
      return 400;
    case Errc::permission:
      return 403;
    case Errc::not_found:
      return 404;
    case Errc::refused:
      return 409;
    case Errc::unavailable:
      return 503;
    case Errc::timed_out:
      return 504;
    case Errc::exhausted:
      return 507;
    case Errc::reset:
    case Errc::internal:
      return 500;
  }
  return 500;
}

Error to_error(const ErrorReply& reply) {
  for (Errc code : kErrcs)
    if (to_string(code) == reply.code) return {code, reply.message};
  return {Errc::internal, reply.message};
}

std::string encode_query(std::string_view text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (char c : text) {
    if (is_unreserved(c)) {
      out += c;
    } else {
      auto byte = static_cast<unsigned char>(c);
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

Result<Target> parse_target(std::string_view target) {
  Target out;
  std::size_t question = target.find('?');
  MESH_TRY(out.path, decode(target.substr(0, question), false));
  std::string_view rest =
      question == std::string_view::npos ? std::string_view{} : target.substr(question + 1);
  while (!rest.empty()) {
    std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    if (pair.empty()) continue;
    std::size_t equals = pair.find('=');
    MESH_TRY(auto name, decode(pair.substr(0, equals), true));
    MESH_TRY(auto value,
             decode(equals == std::string_view::npos ? std::string_view{} : pair.substr(equals + 1),
                    true));
    out.query[name] = value;
  }
  return out;
}

}  // namespace mesh::api
