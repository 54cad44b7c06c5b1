#include "policy_views.h"

#include <cstdio>
#include <set>

#include "api/messages.h"
#include "client.h"
#include "output.h"

namespace mesh::cli {
namespace {

namespace json = boost::json;
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

Result<int> policy_list(const Environment& environment, const PolicySelection& selection,
                        Format format) {
  MESH_TRY(auto reply, Client(environment.run_dir).get<api::Dump>("/v1/dump/policies"));
  std::erase_if(reply.rows, [&](const json::object& row) {
    return !selection.all_namespaces && text_in(row, "namespace") != selection.ns;
  });
  if (format != Format::kTable) {
    json::array rows(reply.rows.begin(), reply.rows.end());
    json::array notes(reply.notes.begin(), reply.notes.end());
    std::fputs(
        render(format, json::object{{"policies", std::move(rows)}, {"notes", std::move(notes)}})
            .c_str(),
        stdout);
    return kOk;
  }
  for (const std::string& note : reply.notes) std::fprintf(stderr, "warning: %s\n", note.c_str());
  if (reply.rows.empty()) {
    std::printf("No policies%s.\n",
                selection.all_namespaces ? "" : (" in namespace " + selection.ns).c_str());
    return kOk;
  }
  std::vector<std::pair<std::string, std::string>> columns = {
      {"POLICY", "policy"}, {"ACTION", "action"},   {"SELECTS", "selects_here"}, {"STATE", "state"},
      {"DENIED", "denied"}, {"ALLOWED", "allowed"}, {"AUDITED", "audited"}};
  if (selection.wide)
    columns.insert(columns.end(),
                   {{"RULES", "rules"}, {"WORKLOADS", "selects"}, {"REASON", "reason"}});
  std::vector<std::string> titles;
  for (const auto& [title, member] : columns) titles.push_back(title);
  Table table(std::move(titles));
  for (const json::object& row : reply.rows) {
    std::vector<std::string> cells;
    for (const auto& [title, member] : columns) cells.push_back(text_in(row, member));
    table.row(std::move(cells));
  }
  std::fputs(table.to_string().c_str(), stdout);
  return kOk;
}

}  // namespace mesh::cli
