#include "policy_views.h"

#include <cstdio>
#include <set>

#include "api/messages.h"
#include "client.h"
#include "output.h"

namespace mesh::cli {
namespace {

using api::AuthzReply;

std::string ports_of(const AuthzReply::Path& path) {
  if (path.first_port <= 1 && path.last_port == 65535) return "any";
  const std::string first = std::to_string(path.first_port);
  return path.first_port == path.last_port ? first : first + "-" + std::to_string(path.last_port);
}

Table table_of(const AuthzReply& reply) {
  Table table({"DESTINATION", "ADDRESS", "PORT", "VERDICT", "END", "SAYS", "BY", "AUDIT", "WHY"});
  for (const AuthzReply::Path& path : reply.paths) {
    std::vector<std::string> head = {path.workload, path.address, ports_of(path), path.verdict};
    if (path.ends.empty()) {
      head.insert(head.end(), {"", "", "", "", path.why});
      table.row(std::move(head));
    }
    for (const AuthzReply::End& end : path.ends) {
      std::vector<std::string> row = head;
      row.insert(row.end(), {end.end + " of " + end.workload, end.verdict, end.policy, end.audit,
                             end.enforced ? end.why : end.why + " (by another node)"});
      table.row(std::move(row));
    }
  }
  return table;
}

// Each once, though several paths ask it.
Table policies_of(const AuthzReply& reply) {
  Table table({"END", "POLICY", "ACTION", "RESULT"});
  std::set<std::vector<std::string>> rows;
  for (const AuthzReply::Path& path : reply.paths)
    for (const AuthzReply::End& end : path.ends)
      for (const AuthzReply::Policy& policy : end.policies) {
        std::vector<std::string> row = {end.end + " of " + end.workload, policy.policy,
                                        policy.action, policy.outcome};
        if (rows.insert(row).second) table.row(std::move(row));
      }
  return table;
}

}  // namespace

Result<int> authz_check(const Environment& environment, const AuthzQuestion& question,
                        Format format) {
  const std::string target = "/v1/authz?from=" + api::encode_query(question.from) +
                             "&to=" + api::encode_query(question.to) +
                             "&namespace=" + api::encode_query(question.ns) +
                             (question.udp ? "&udp=1" : "");
  MESH_TRY(const auto reply, Client(environment.run_dir).get<AuthzReply>(target));
  const int code = reply.verdict == "ALLOW" ? kOk : kDenied;
  if (format != Format::kTable) {
    std::fputs(render(format, api::to_json(reply)).c_str(), stdout);
    return code;
  }
  std::printf("%s: %s to %s by %s\n\n%s", reply.verdict.c_str(), reply.from.c_str(),
              reply.to.c_str(), reply.transport.c_str(), table_of(reply).to_string().c_str());
  if (const Table policies = policies_of(reply); !policies.empty())
    std::printf("\nPolicies that were asked:\n%s", policies.to_string().c_str());
  if (!reply.notes.empty()) std::puts("\nNotes:");
  for (const std::string& note : reply.notes) std::printf("  - %s\n", note.c_str());
  return code;
}

}  // namespace mesh::cli
